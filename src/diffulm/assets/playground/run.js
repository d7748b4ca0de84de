// One request at a time: what may be pressed while it runs, how it is stopped, what is said when it fails.

import { at, enable, made, say } from "./dom.js";
import { complain, forgive } from "./settings.js";
import * as replay from "./replay.js";

const STARTS = ["rewrite", "fill", "continue", "send", "retry", "clear", "linked-run", "hole", "free-hole", "undo"];
let controller = null;
let idle = () => {};

export const busy = () => controller !== null;
export const stop = () => controller?.abort();
export const whenIdle = (then) => { idle = then; };

// What can be pressed now; `idle` says more where nothing runs.
export function buttons() {
  for (const id of STARTS) enable(at(id), !busy());
  for (const id of ["stop", "chat-stop"]) enable(at(id), busy());
  for (const id of ["text", "say", "system"]) at(id).readOnly = busy();
  if (!busy()) idle();
}

export async function running(line, work) {
  if (busy()) return;
  controller = new AbortController();
  forgive();
  buttons();
  say(line);
  at("results").hidden = false;
  at("costs").tBodies[0].replaceChildren();
  at("parent-text").replaceChildren();
  at("parent-how").textContent = "";
  for (const id of ["costs", "costs-how"]) at(id).hidden = true;
  replay.begin();
  try {
    await work(controller.signal);
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped. What was not finished has changed nothing." : "");
    if (error.name !== "AbortError") complain(error);
  } finally {
    controller = null;
    replay.end();
    buttons();
  }
}

export function cost(name, { usage, seconds }) {
  const cells = [usage.completion_tokens, usage.forwards, seconds.toFixed(2)].map((value) => made("td", { textContent: value ?? "?" }));
  at("costs").tBodies[0].append(made("tr", {}, made("th", { scope: "row", textContent: name }), ...cells));
  for (const id of ["costs", "costs-how"]) at(id).hidden = false;
}
