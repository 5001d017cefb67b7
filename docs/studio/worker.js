/**
 * Runs the network, so that the page never freezes. Messages have an `id` and say `what`, "load",
 * "generate" or "stop"; answers have the same `id` and are of the `kind` loading, progress, done or
 * error: those of `utils/canvas.py`.
 */

import { fill } from "./fill.js";
import { PITCHES, SIZE, WIDTH } from "./pianoroll.js";

const CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/";
const ENGINES = { // of ONNX Runtime Web: script and WebAssembly, each with its hash
  webgpu: [["ort.jspi.bundle.min.mjs",
    "sha384-9RUgRCKe1ziB7Sof69RRpoybxSmnC67IsfHFamx/k+9m39GbvHvw5Sets/Xpsro+"],
  ["ort-wasm-simd-threaded.jspi.wasm",
    "sha384-bMP/XSpH5FjIIaVnUc1eR3cDsGZGdO1ZPjcHGEtvMwOgZZFcOEN8VrGooR81HSFO"]],
  wasm: [["ort.wasm.bundle.min.mjs",
    "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"],
  ["ort-wasm-simd-threaded.wasm",
    "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"]],
};
const SIMD = Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10,
  10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]); // a program of one SIMD instruction
const stopped = new Set();
let loaded = null, turn = Promise.resolve();

// ---------------------------------------------------------------- the model

/** A fetch whose failure is one line that names the file. */
async function get(url, options) {
  const name = new URL(url, location).pathname.split("/").pop();
  try {
    const response = await fetch(url, options);
    if (response.ok) return response;
    throw new Error(`the server answered ${response.status}`);
  } catch (error) {
    throw new Error(`${name} did not load (${error.message}); check the connection and press `
      + "Generate again. What you drew is kept.");
  }
}

/** The model's bytes; `onShare` is told which share of them is there. */
async function modelOf(facts, onShare) {
  const response = await get(`model.onnx?${facts.sha256.slice(0, 16)}`);
  const bytes = new Uint8Array(facts.bytes), reader = response.body.getReader();
  for (let at = 0; ;) {
    const { done, value } = await reader.read();
    if (done && at === bytes.length) return bytes;
    if (done || at + value.length > bytes.length) {
      throw new Error("model.onnx did not load whole; press Generate again. What you drew is "
        + "kept.");
    }
    bytes.set(value, at);
    at += value.length;
    onShare(at / bytes.length);
  }
}

/** ONNX Runtime from the CDN, each file checked against its hash. */
async function engineOf([[script, scriptHash], [wasm, wasmHash]]) {
  const [code, binary] = await Promise.all([get(CDN + script, { integrity: scriptHash }),
    get(CDN + wasm, { integrity: wasmHash })]);
  const url = URL.createObjectURL(await code.blob());
  const ort = await import(url);
  URL.revokeObjectURL(url);
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: await binary.arrayBuffer() });
  return ort;
}

/** Whether WebGPU computes on hardware; its engine needs promises in WebAssembly, too. */
async function hasWebGpu() {
  const adapter = "Suspending" in WebAssembly && await navigator.gpu?.requestAdapter();
  return adapter && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
}

/** The network on a device, as a function. It has answered once: the first call is slower. */
async function networkOn(device, bytes, style) {
  const ort = await engineOf(ENGINES[device]), model = await bytes;
  const session = await ort.InferenceSession.create(model, { executionProviders: [device],
    logSeverityLevel: 3 });
  const label = (value) => new ort.Tensor("int64", [BigInt(value)], [1]);
  const planes = (values) =>
    new ort.Tensor("float32", values, [1, values.length / SIZE, PITCHES, WIDTH]);
  const call = async (x_t, logSnr, x_0_hat, known) => {
    const found = await session.run({ x_t: planes(x_t), x_0_hat: planes(x_0_hat),
      known: planes(known), log_snr: new ort.Tensor("float32", [logSnr], [1]),
      style: label(style), shift: label(0) });
    return Object.fromEntries(Object.entries(found).map(([name, one]) => [name, one.data]));
  };
  const none = new Float32Array(2 * SIZE);
  const { logits } = await call(none, 0, none, none.subarray(SIZE));
  if (!logits.every(Number.isFinite)) throw new Error(`the model does not compute on ${device}`);
  return call;
}

async function load(tell) {
  if (!WebAssembly.validate(SIMD)) {
    throw new Error("This browser's WebAssembly has no SIMD, which the model needs; a current "
      + "Firefox, Chrome, Edge or Safari has it.");
  }
  const facts = await (await get("model.json", { cache: "no-cache" })).json();
  const bytes = modelOf(facts, (share) => tell({ kind: "loading", share }));
  bytes.catch(() => {}); // whoever waits for them is told
  const on = (device) => networkOn(device, bytes, facts.network.style);
  const network = await hasWebGpu().catch(() => false)
    ? await on("webgpu").catch(() => on("wasm")) : await on("wasm");
  return { network, facts };
}

// ---------------------------------------------------------------- messages

/** Lets messages in between two steps, without the wait of a timer. */
const breath = () => new Promise((done) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { port1.close(); done(); };
  port2.postMessage(null);
});

async function answer({ id, what, request }) {
  const tell = (message) => postMessage({ id, ...message });
  try {
    loaded ??= load(tell);
    loaded.catch(() => { loaded = null; }); // the next request tries again
    const { network, facts } = await loaded;
    const notes = what === "generate" ? await fill(network, facts, request, async (seen) => {
      await breath();
      if (stopped.has(id)) throw new Error("Stopped.");
      if (seen.notes) tell({ kind: "progress", ...seen });
    }) : [];
    tell({ kind: "done", notes });
  } catch (error) {
    tell({ kind: "error", text: error.message });
  }
}

addEventListener("message", ({ data }) => {
  if (data.what === "stop") stopped.add(data.id);
  else turn = turn.then(() => answer(data));
});
