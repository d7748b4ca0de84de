// The Write tab: rewrite a selection from both sides, fill holes, go on from the end; and the parent beside it.

import { ask, streamed } from "./api.js";
import { at, count, enable, made, say, short } from "./dom.js";
import * as link from "./link.js";
import * as replay from "./replay.js";
import { busy, cost, running } from "./run.js";
import * as settings from "./settings.js";

const HOLE = /<hole(?::(?:\d+-)?(\d+)|:[^<>]*)?>/g;
const FREE = 16; // tokens of a hole that names no length, at most
const text = at("text");
const past = []; // [text, selection] before each rewrite
let last = null; // what the last one left
let models = {}; // { model, parent }: facts of the server, parent undefined where none is served

export function serve(facts) {
  models = facts;
  at("parent").hidden = at("ask-parent-field").hidden = !models.parent;
  at("parent-title").textContent = `The parent ${models.parent?.id ?? ""}, left to right`;
}

export function buttons() {
  for (const id of ["rewrite", "fill", "hole", "free-hole"]) enable(at(id), models.model?.infills !== false);
  enable(at("undo"), past.length > 0);
  if (!models.model) for (const id of ["rewrite", "fill", "continue"]) enable(at(id), false);
}

export function put(value, from, to) {
  if (text.value !== value && text.value !== "") past.push([text.value, text.selectionStart, text.selectionEnd]);
  last = text.value = value;
  text.setSelectionRange(from, to);
  keep();
  seen();
}

export function undo() {
  if (busy() || !past.length) return;
  const [value, from, to] = past.pop();
  last = text.value = value;
  text.focus();
  text.setSelectionRange(from, to);
  keep();
  buttons();
  say("Undone.");
}

// A reload brings back what was written since the address was made.
const keep = () => sessionStorage.setItem("diffulm-draft", JSON.stringify([location.hash, text.value]));

export function draft() {
  const [hash, value] = JSON.parse(sessionStorage.getItem("diffulm-draft") ?? "[]");
  return hash === location.hash ? value : undefined;
}

function seen() {
  const { selectionStart: from, selectionEnd: to } = text;
  at("selected").textContent =
    from === to ? "Nothing is selected." : `Selected: ${count(to - from, "character")}, “${short(text.value.slice(from, to), 60)}”`;
}

// What the key does: what there is to do.
export function act() {
  if (!models.model) return undefined;
  if (models.model.infills === false) return proceed();
  if (text.selectionStart !== text.selectionEnd) return rewrite();
  return text.value.match(HOLE) ? fill() : proceed();
}

export function rewrite() {
  const { selectionStart: from, selectionEnd: to, value } = text;
  if (from === to) return say("Select the part that is to be written anew, or put a hole into the text.");
  const [before, old, after] = [value.slice(0, from), value.slice(from, to), value.slice(to)];
  return start("rewrite", { from, to }, async (seed, signal) => {
    const hole = await holeFor(before, old, signal);
    const parts = [before, hole, after].filter((part) => part !== "");
    const reply = await infill({ parts }, hole.most ?? hole.length, seed, signal);
    const [fill] = reply.fills;
    put(before + fill + after, from, from + fill.length);
    tell(fill === old ? "The same text came again; more variety or another length gives others." : `Rewritten: “${short(fill)}”`, reply, seed);
    return [before, reply];
  });
}

export function fill() {
  const { value } = text;
  const marks = [...value.matchAll(HOLE)];
  if (!marks.length) return say("There is no hole in the text: put one in, or write <hole:3> where three tokens are missing.");
  return start("fill", {}, async (seed, signal) => {
    const most = marks.reduce((sum, mark) => sum + Number(mark[1] ?? FREE), 0);
    const reply = await infill({ text: value }, most, seed, signal);
    const from = marks[0].index;
    put(reply.text, from, from + reply.fills[0].length);
    tell(`Filled: ${reply.fills.map((one) => `“${short(one)}”`).join(", ")}`, reply, seed);
    return [value.slice(0, from), reply];
  });
}

export function proceed() {
  const { value } = text;
  return start("continue", {}, async (seed, signal) => {
    const body = { model: models.model.id, prompt: value, ...settings.body(settings.length(16), seed) };
    const reply = await streamed("v1/completions", body, signal, { canvas: replay.add });
    put(value + reply.text, value.length, value.length + reply.text.length);
    tell(reply.text === "" ? "The model ends the text here: nothing is added." : `Continued: “${short(reply.text)}”`, reply, seed);
    return [value, reply];
  });
}

function start(verb, more, work) {
  const seed = settings.drawn();
  link.write({ do: verb, model: models.model.id, text: text.value, ...more, ...settings.state(), seed });
  at("linked").hidden = true;
  return running("Writing ...", async (signal) => {
    at("parent").hidden = !models.parent || !at("ask-parent").checked;
    const [left, reply] = await work(seed, signal);
    cost(`${models.model.id}, ${verb === "continue" ? "any order" : "from both sides"}`, reply);
    if (!at("parent").hidden) await askParent(verb, left, reply.usage.completion_tokens, seed, signal);
  });
}

// As many tokens as the selection has, as many as the field says, or up to that many.
async function holeFor(context, selection, signal) {
  const tokens = settings.number(at("tokens").value);
  if (at("span").value === "exactly") return { length: tokens };
  if (at("span").value === "most") return { length: 1, most: tokens };
  const body = { model: models.model.id, text: selection, context, samples: 1 };
  return { length: (await (await ask("v1/score", body, signal)).json()).data[0].tokens };
}

function infill(what, tokens, seed, signal) {
  const { max_tokens: _, ...rest } = settings.body(tokens, seed);
  return streamed("v1/infill", { model: models.model.id, ...what, ...rest }, signal, { canvas: replay.add });
}

function tell(line, { usage, seconds }, seed) {
  say(`${line} (${count(usage.completion_tokens, "token")}, ${count(usage.forwards, "forward")}, ${seconds.toFixed(2)} s, seed ${seed})`);
}

async function askParent(verb, left, tokens, seed, signal) {
  const { id } = models.parent;
  const name = `${id}, left to right`;
  const shown = made("span", { className: "new" });
  at("parent-text").replaceChildren(made("span", { className: "given", textContent: left }), shown);
  at("parent-how").textContent = verb === "continue"
    ? "The same text, continued one token after the other."
    : "It cannot see what stands to the right: this is how it goes on from the left side alone, for as many tokens.";
  const body = { model: id, prompt: left, max_tokens: tokens, ...settings.body(tokens, seed, ["temperature", "top_p"]) };
  try {
    cost(name, await streamed("v1/completions", body, signal, { piece: (so) => { shown.textContent = so; } }));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    at("parent-how").textContent = `It gave no answer: ${error.message}`;
  }
}

function insert(mark) {
  const { selectionStart: from, selectionEnd: to, value } = text;
  put(value.slice(0, from) + mark + value.slice(to), from + mark.length, from + mark.length);
  text.focus();
  buttons();
}

export function wire() {
  at("rewrite").addEventListener("click", rewrite);
  at("fill").addEventListener("click", fill);
  at("continue").addEventListener("click", proceed);
  at("undo").addEventListener("click", undo);
  at("hole").addEventListener("click", () => insert(`<hole:${at("tokens").value.trim()}>`));
  at("free-hole").addEventListener("click", () => insert("<hole>"));
  at("tokens").addEventListener("input", () => { at("hole").textContent = `Put in a hole of ${at("tokens").value.trim()}`; });
  text.addEventListener("input", keep);
  document.addEventListener("selectionchange", seen);
  text.addEventListener("select", seen);
  text.addEventListener("keydown", (event) => {
    const held = event.ctrlKey || event.metaKey;
    const undoes = held && !event.shiftKey && event.key.toLowerCase() === "z" && text.value === last && past.length > 0;
    if (undoes) undo(); // the browser's own undo knows nothing of what was put in from here
    else if (held && event.key === "Enter") act();
    else return;
    event.preventDefault();
  });
}
