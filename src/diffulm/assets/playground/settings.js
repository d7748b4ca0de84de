// The form: what of it goes into a request, what into a link, and where a refusal is shown.

import { at, made } from "./dom.js";

const SENT = ["max_tokens", "threshold", "sampler", "temperature", "top_p", "block_size"];
const KEPT = [...SENT, "pace", "seed", "span", "tokens", "system"];

// As it stands, where it is no number: the server says what is wrong with it.
export function number(raw) {
  const value = Number(raw);
  return raw.trim() !== "" && Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value)) ? value : raw;
}

const given = (id) => (at(id).value.trim() === "" || at(id).closest("[hidden]") ? undefined : at(id).value);

const values = (ids) => Object.fromEntries(ids.filter((id) => given(id) !== undefined).map((id) => [id, given(id)]));

export const drawn = () => given("seed") ?? String(crypto.getRandomValues(new Uint32Array(1))[0]);

// The settings of a request that writes `tokens` tokens, as far as they are set.
export function body(tokens, seed, names = SENT) {
  const out = Object.fromEntries(Object.entries(values(names)).map(([id, raw]) => [id, id === "sampler" ? raw : number(raw)]));
  const pace = names === SENT && given("pace");
  return { ...out, ...(pace && { steps: Math.max(1, Math.ceil(tokens / Number(pace))) }), seed: number(seed) };
}

export const length = (otherwise) => Number(given("max_tokens")) || otherwise;

export const state = () => values(KEPT);

export function restore(state) {
  for (const id of KEPT) if (id in state || at(id).tagName !== "SELECT") at(id).value = state[id] ?? at(id).defaultValue ?? "";
  for (const id of ["sampler", "pace", "span"]) if (!(id in state) || at(id).selectedIndex < 0) at(id).selectedIndex = 0;
}

// The line of the server beside the field that it names, or below the buttons where it names none of ours.
export function complain(error) {
  const param = error.param ?? "";
  const hole = param.startsWith("parts.") ? "length" : param; // of the parts only the hole can be wrong
  const names = [param.split(".").at(-1), hole, param.split(".")[0]].filter(Boolean);
  const field = names.map((name) => document.querySelector(`[data-param~="${CSS.escape(name)}"]`)).find(Boolean);
  if (!field || field.closest("[hidden]")) {
    at("problem").textContent = error.message;
    at("problem").hidden = false;
    return;
  }
  const line = made("p", { className: "error", id: `${field.id}-error`, textContent: error.message, role: "alert" });
  field.after(line);
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", line.id);
  if (field.closest("details")) field.closest("details").open = true;
}

export function forgive() {
  at("problem").hidden = true;
  at("problem").textContent = "";
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    at(`${field.id}-error`)?.remove();
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}
