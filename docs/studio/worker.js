/**
 * Runs the network, so that the page never freezes. Messages have an `id` and say `what`, "load",
 * "generate" or "stop"; answers have the same `id` and are of the `kind` loading, progress, done or
 * error: those of `utils/canvas.py`.
 */

import { fill } from "./fill.js";
import { SIZE } from "./pianoroll.js";

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
      throw new Error("model.onnx did not load whole; press Generate again. What you drew is kept.");
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

async function hasWebGpu() {
  return Boolean("Suspending" in WebAssembly && await navigator.gpu?.requestAdapter());
}

/** The network as a function, on WebGPU where there is one, otherwise in WebAssembly. */
async function networkOf(model, onShare) {
  if (!WebAssembly.validate(SIMD)) {
    throw new Error("This browser's WebAssembly has no SIMD, which the model needs; a current "
      + "Firefox, Chrome, Edge or Safari has it.");
  }
  const device = await hasWebGpu().catch(() => false) ? "webgpu" : "wasm";
  const [ort, bytes] = await Promise.all([engineOf(ENGINES[device]), model(onShare)]);
  const session = await ort.InferenceSession.create(bytes, { executionProviders: [device] });
  return async (x_t, logSnr, x_0_hat, known, style) => {
    const tensor = (values, ...shape) => new ort.Tensor("float32", values, shape);
    const label = (value) => new ort.Tensor("int64", [BigInt(value)], [1]);
    const found = await session.run({ x_t: tensor(x_t, 1, 2, 128, 128),
      log_snr: tensor(Float32Array.of(logSnr), 1), x_0_hat: tensor(x_0_hat, 1, 2, 128, 128),
      known: tensor(known, 1, 1, 128, 128), style: label(style), shift: label(0) });
    return Object.fromEntries(Object.entries(found).map(([name, one]) => [name, one.data]));
  };
}

async function load(tell) {
  const facts = await (await get("model.json", { cache: "no-cache" })).json();
  const call = await networkOf((onShare) => modelOf(facts, onShare),
    (share) => tell({ kind: "loading", share }));
  const network = (x_t, logSnr, x_0_hat, known) =>
    call(x_t, logSnr, x_0_hat, known, facts.network.style);
  const none = () => new Float32Array(2 * SIZE);
  await network(none(), 0, none(), new Float32Array(SIZE)); // the first call is slower
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
