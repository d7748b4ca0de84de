// Requests to the server that this page came from: its errors in its own words, the events of a stream, the key.

import { at } from "./dom.js";

const KEY = "diffulm-key";

export class Failure extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    Object.assign(this, { status, param });
  }
}

export async function ask(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    throw lost(error, "The server does not answer: is it still running?");
  }
  if (response.ok) return response;
  const failure = await refusal(response);
  if (response.status === 401 && (await keyGiven(failure.message, signal))) return ask(path, body, signal);
  throw failure;
}

const lost = (error, line) => (error.name === "AbortError" ? error : new Failure(line));

async function refusal(response) {
  const { message, param } = (await response.json().catch(() => ({}))).error ?? {};
  const wait = response.headers.get("Retry-After");
  const line = message ?? `The server answers with an error (${response.status})`;
  return new Failure(wait === null ? line : `${line} (try again in ${wait} s)`, response.status, param);
}

// One dialog, however many requests were refused for want of a key.
let asked = null;

function keyGiven(why, signal) {
  asked ??= new Promise((resolve) => {
    const dialog = at("key-dialog");
    const cancel = () => dialog.close("");
    dialog.returnValue = at("key").value = "";
    dialog.addEventListener("close", () => {
      asked = null;
      signal?.removeEventListener("abort", cancel);
      if (dialog.returnValue === "use") sessionStorage.setItem(KEY, at("key").value);
      at("key").value = "";
      resolve(dialog.returnValue === "use");
    }, { once: true });
    signal?.addEventListener("abort", cancel, { once: true });
    at("key-why").textContent = why;
    dialog.showModal();
  });
  return asked;
}

// Yields every chunk of a stream; a Failure where the server says so, or where it ends before its end.
export async function* events(path, body, signal) {
  const options = { stream: true, stream_options: { include_usage: true, ...body.stream_options } };
  const response = await ask(path, { ...body, ...options }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw lost(error, "The connection to the server was lost in the middle of the answer; try again.");
    });
    if (done) throw new Failure("The server ended in the middle of the answer; try again.");
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const data of blocks.map(dataOf).filter(Boolean)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure(chunk.error.message, 0, chunk.error.param);
      yield chunk;
    }
  }
}

const dataOf = (block) => block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("");

// -> { text, fills, usage, seconds } of a streamed request. canvas: called with every canvas, piece: with the text so far.
export async function streamed(path, body, signal, { canvas, piece }) {
  const started = performance.now();
  const reply = { text: "", fills: null, usage: {} };
  const wants = canvas ? { stream_options: { canvas: true } } : {};
  for await (const chunk of events(path, { ...body, ...wants }, signal)) {
    const choice = chunk.choices?.[0];
    const more = choice?.text ?? choice?.delta?.content ?? "";
    if (chunk.canvas) canvas?.(chunk.canvas);
    reply.text += more;
    if (more) piece?.(reply.text);
    if (chunk.fills) [reply.text, reply.fills] = [chunk.text, chunk.fills]; // an infill comes whole, after its canvases
    reply.usage = chunk.usage ?? reply.usage;
  }
  return { ...reply, seconds: (performance.now() - started) / 1000 };
}
