// The Chat tab: a conversation, the answer as it becomes final, the canvas below it.

import { streamed } from "./api.js";
import { at, count, enable, made, say, short } from "./dom.js";
import * as link from "./link.js";
import * as replay from "./replay.js";
import { cost, running } from "./run.js";
import * as settings from "./settings.js";

let messages = []; // { role, content }, without the system text
let model = null;

export function serve(facts) {
  model = facts.model;
  at("untuned").hidden = model.chat !== false;
}

export function buttons() {
  enable(at("send"), model !== null);
  for (const id of ["retry", "clear"]) enable(at(id), messages.length > 0);
}

function draw() {
  const names = { user: "You", assistant: model?.id ?? "Model" };
  at("talk").replaceChildren(...messages.map(({ role, content }) => made("li", { className: role }, made("b", { textContent: names[role] }), made("span", { textContent: content }))));
}

export function send() {
  const content = at("say").value;
  if (content.trim() === "") return say("Write a message first.");
  if (messages.at(-1)?.role === "user") messages.pop(); // it had no answer
  messages.push({ role: "user", content });
  at("say").value = "";
  return answer();
}

// The last question once more.
export function retry() {
  const old = messages.at(-1)?.role === "assistant" ? messages.pop().content : null;
  return messages.length ? answer(old) : undefined;
}

export function clear() {
  messages = [];
  draw();
  buttons();
  say("Cleared.");
}

export function restore(state) {
  try {
    const found = JSON.parse(state.messages);
    messages = found.filter(({ role, content }) => ["user", "assistant"].includes(role) && typeof content === "string");
  } catch {
    messages = [];
  }
  draw();
}

function answer(old = null) {
  const seed = settings.drawn();
  const system = at("system").value;
  link.write({ do: "chat", model: model.id, messages: JSON.stringify(messages), ...settings.state(), seed });
  at("linked").hidden = true;
  draw();
  return running("Answering ...", async (signal) => {
    at("parent").hidden = true;
    const reply = { role: "assistant", content: "" };
    const asked = [...(system ? [{ role: "system", content: system }] : []), ...messages];
    const body = { model: model.id, messages: asked, ...settings.body(settings.length(model.reply_length ?? 64), seed) };
    messages.push(reply);
    draw();
    const shown = at("talk").lastElementChild.lastElementChild;
    let done = null;
    try {
      done = await streamed("v1/chat/completions", body, signal, {
        canvas: replay.add,
        piece: (so) => { shown.textContent = reply.content = so; },
      });
      const same = done.text === old ? " The same answer came again; more variety gives others." : "";
      say(`${model.id}: ${short(done.text, 600)} (${count(done.usage.completion_tokens, "token")}, ${count(done.usage.forwards, "forward")}, ${done.seconds.toFixed(2)} s, seed ${seed})${same}`);
      cost(model.id, done);
    } finally {
      if (reply.content.trim() === "" && messages.at(-1) === reply) messages.pop(); // no model takes it for a turn
      draw();
    }
  });
}

export function wire() {
  at("send").addEventListener("click", send);
  at("retry").addEventListener("click", retry);
  at("clear").addEventListener("click", clear);
  at("say").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (at("send").getAttribute("aria-disabled") !== "true") send();
  });
}
