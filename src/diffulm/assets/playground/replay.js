// The canvas while it fills, and again afterwards: every frame is kept, the slider says which one is shown.

import { at, made } from "./dom.js";

const SLOW = 450; // ms a frame when someone plays it again; while it arrives it goes as fast as it comes, but for ...
const FAST = 80; // ... frames that arrive together: they still come one after the other
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const [canvas, play, slider, line] = ["canvas", "play", "slider", "frame"].map(at);

let frames = []; // { step, masked, tokens: [[text or null where masked, confidence or null, free], ...] }
let now = -1;
let live = false; // more may come
let timer = null;

export function begin() {
  halt();
  [frames, now, live] = [[], -1, true];
  canvas.replaceChildren();
  canvas.setAttribute("aria-busy", "true");
  line.textContent = "Nothing to see yet. Where the model picks the length, it tries all of them first.";
  slider.max = slider.value = 0;
}

export function add(frame) {
  const last = frames.at(-1);
  if (last && last.masked === frame.masked && String(last.tokens) === String(frame.tokens)) return;
  frames.push(frame);
  slider.max = frames.length - 1;
  if (calm.matches) return; // drawn when it is full; the slider shows the steps to those who want them
  if (now < 0) show(0);
  if (timer === null && now === frames.length - 2) next();
}

export function end() {
  live = false;
  canvas.setAttribute("aria-busy", "false");
  if (timer === null) play.textContent = "Play";
  if (!frames.length) line.textContent = "No step was computed.";
  else if (calm.matches) show(frames.length - 1);
}

export function show(index) {
  if (!frames.length) return;
  now = Math.max(0, Math.min(frames.length - 1, index));
  const { step, masked, tokens } = frames[now];
  const before = now > 0 ? frames[now - 1].tokens : [];
  canvas.replaceChildren(...tokens.map((token, i) => cell(token, before.length === tokens.length && before[i][0] === null)));
  slider.value = now;
  line.textContent = `Step ${step} of ${frames.at(-1).step}, ${masked} masked`;
  slider.setAttribute("aria-valuetext", line.textContent);
}

function cell([text, sure, free], wasMasked) {
  if (text === null) return made("span", { className: "masked", textContent: "░" });
  if (text === "") return made("span"); // the end of the text, what is behind it, a part of a character
  const names = [free ? "free" : "given", text.includes("\n") && free ? "line" : "", free && wasMasked ? "new" : ""];
  if (free && sure !== null) names.push(`s${Math.min(3, Math.floor(sure * 4))}`);
  const title = free && sure !== null ? `probability ${sure.toFixed(2)}` : "";
  return made("span", { className: names.filter(Boolean).join(" "), textContent: text, title });
}

function next() {
  show(now + 1);
  const left = frames.length - 1 - now;
  play.textContent = left || live ? "Pause" : "Play";
  timer = left ? setTimeout(() => { timer = null; next(); }, Math.max(15, Math.min(FAST, 2000 / left))) : null;
}

function halt() {
  clearTimeout(timer);
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}

function again() {
  if (now === frames.length - 1) show(0);
  play.textContent = "Pause";
  timer = setInterval(() => (now + 1 < frames.length ? show(now + 1) : halt()), SLOW);
}

play.addEventListener("click", () => (timer === null ? again() : halt()));
slider.addEventListener("input", () => { halt(); show(Number(slider.value)); });
