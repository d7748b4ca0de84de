// The page: which models there are, the tabs, and a result that came with the address.

import { ask } from "./api.js";
import * as chat from "./chat.js";
import { at, made, say } from "./dom.js";
import * as link from "./link.js";
import { buttons, stop, whenIdle } from "./run.js";
import * as settings from "./settings.js";
import * as write from "./write.js";

const TABS = ["write", "chat"];
const SAMPLE = "def add(a, b):\n    return <hole:3>\n";
const VERBS = { rewrite: "a rewrite", fill: "filled holes", continue: "a continuation", chat: "a conversation" };
let models = [];

const wait = (ms) => new Promise((then) => setTimeout(then, ms));

function open(name) {
  for (const tab of TABS) {
    at(tab).hidden = tab !== name;
    at(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    at(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
}

function million(parameters) {
  return parameters >= 1e9 ? `${(parameters / 1e9).toFixed(1)}B` : `${(parameters / 1e6).toFixed(1)}M`;
}

function choose() {
  const model = models.find((one) => one.id === at("model").value) ?? models[0];
  const parent = models.find((one) => one.autoregressive);
  const blocks = model.attention === "block" ? `blocks of ${model.block_size}` : `${model.attention} attention`;
  const facts = [`${model.id}: ${million(model.parameters)} parameters`, `context ${model.context} tokens`, blocks];
  at("facts").textContent = facts.join(", ") + (parent ? `; beside it its parent, ${parent.id}` : "")
    + (model.infills === false ? ". It sees no text to the right and cannot rewrite." : "");
  at("block_size").closest(".field").hidden = model.attention === "block"; // it is always filled by its own blocks
  at("max_tokens").placeholder = `16; a reply ${model.reply_length ?? 64}`;
  write.serve({ model, parent });
  chat.serve({ model, parent });
  buttons();
}

// Till the server has read its model. false where it wants a key and nobody gives one.
async function meet() {
  for (;;) {
    try {
      models = (await (await ask("v1/models")).json()).data;
      if (models.length) break;
      settings.forgive();
      at("facts").textContent = "The server is still reading its model ...";
    } catch (error) {
      settings.forgive();
      settings.complain(error);
      at("facts").textContent = error.status === 401 ? "Reload the page to be asked for the key again." : "Waiting for the server ...";
      if (error.status === 401) return false;
    }
    await wait(1000);
  }
  settings.forgive();
  at("model").replaceChildren(...models.filter((one) => !one.autoregressive).map(({ id }) => made("option", { value: id, textContent: id })));
  return true;
}

// Puts what the address carries into the form; nothing runs until somebody says so.
function unpack() {
  const state = link.read();
  at("linked").hidden = state === null;
  if (state === null) return;
  settings.restore(state);
  open(state.do === "chat" ? "chat" : "write");
  if (state.do === "chat") chat.restore(state);
  else write.put(state.text ?? "", Number(state.from ?? 0), Number(state.to ?? 0));
  const here = models.some(({ id }) => id === state.model);
  if (here) at("model").value = state.model;
  choose();
  at("linked-what").textContent = `This link carries ${VERBS[state.do]} by ${state.model}, seed ${state.seed}.`
    + (here ? "" : ` That model is not served here: ${at("model").value} will give another text.`);
}

function rerun() {
  unpack(); // what has been changed since does not count
  const verb = link.read()?.do;
  at("linked").hidden = true;
  ({ rewrite: write.rewrite, fill: write.fill, continue: write.proceed, chat: chat.retry })[verb]?.();
}

async function copy() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say("This browser does not let the page copy: take the link from its address bar.");
  }
}

function wire() {
  for (const tab of TABS) {
    at(`tab-${tab}`).addEventListener("click", () => open(tab));
    at(`tab-${tab}`).addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const other = TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length];
      open(other);
      at(`tab-${other}`).focus();
    });
  }
  for (const id of ["stop", "chat-stop"]) at(id).addEventListener("click", stop);
  at("model").addEventListener("change", choose);
  at("copy").addEventListener("click", copy);
  at("linked-run").addEventListener("click", rerun);
  addEventListener("hashchange", () => { stop(); unpack(); });
  whenIdle(() => { write.buttons(); chat.buttons(); });
}

write.wire();
chat.wire();
wire();
at("settings").open = matchMedia("(min-width: 60rem)").matches;
buttons();
const kept = write.draft();
if (await meet()) {
  choose();
  if (!at("text").value) write.put(SAMPLE, 0, 0);
  unpack();
  if (kept !== undefined && kept !== at("text").value) write.put(kept, 0, 0);
  document.body.dataset.ready = "yes";
}
