/** The page: the canvas of notebook 09, with a model that runs in the visitor's own browser. */

import { createCanvas } from "../../utils/canvas.js";
import { read, write } from "./midi.js";
import { soundOf } from "./piano.js";

const MOTIF = [[0, 4, 64, 84], [4, 2, 67, 76], [6, 2, 69, 78], [8, 6, 72, 92], [14, 2, 71, 74],
  [16, 4, 69, 84], [20, 4, 67, 78], [24, 8, 64, 84]].map((note) => [...note, 0]); // to begin with
const NOTEBOOK = "notebooks/09_draw.ipynb";
const find = (id) => document.getElementById(id);

/** Sends requests to the worker, whose answers find the request that they belong to. */
function workerOf() {
  const worker = new Worker("worker.js", { type: "module" }), waiting = new Map();
  let last = 0;
  worker.addEventListener("message", ({ data }) => {
    const call = waiting.get(data.id);
    if (data.kind === "loading") showLoading(data.share);
    if (data.kind === "progress") call.onProgress(data);
    if (data.kind === "done") call.done(data);
    if (data.kind === "error") call.fail(new Error(data.text));
  });
  worker.addEventListener("error", () => {
    const gone = new Error("This browser cannot run the model; a current Firefox, Chrome, Edge or "
      + "Safari can. Drawing and playing work all the same.");
    for (const call of waiting.values()) call.fail(gone);
  });
  return (what, request, onProgress, signal) => new Promise((done, fail) => {
    const id = last += 1;
    waiting.set(id, { done, fail, onProgress });
    signal?.addEventListener("abort", () => worker.postMessage({ id, what: "stop" }));
    worker.postMessage({ id, what, request });
  }).finally(() => showLoading(1));
}

function showLoading(share) {
  find("loading").hidden = share === 1;
  find("loading-bar").value = share;
}

function showError(text) {
  find("problem").textContent = text;
}

/** Resolves when later visits need no network: what is loaded from then on is kept. */
async function keepOffline() {
  const workers = navigator.serviceWorker;
  if (!workers) return;
  await workers.register("offline.js");
  if (workers.controller) return;
  await new Promise((done) => {
    workers.addEventListener("controllerchange", done, { once: true });
  });
}

/** On GitHub's pages the notebook's own page, elsewhere the file. */
function notebookAddress() {
  const [owner, , host] = location.hostname.split(/\.(github)\./);
  const [name] = location.pathname.split("/").filter(Boolean);
  return host === "io" ? `https://github.com/${owner}/${name}/blob/HEAD/${NOTEBOOK}`
    : `../../${NOTEBOOK}`;
}

let soundUrl = "";
let ask = null; // the worker is made once the service worker keeps what it loads
const ready = Promise.race([keepOffline().catch(() => {}),
  new Promise((done) => { setTimeout(done, 3000); })]).then(() => { ask = workerOf(); });

const host = {
  key: "studio",
  generate: async (request, onProgress, signal) => {
    await ready;
    const answer = await ask("generate", request, onProgress, signal);
    showError("");
    return answer;
  },
  play: async (notes, tempo) => {
    const sound = await soundOf(notes, tempo);
    URL.revokeObjectURL(soundUrl);
    soundUrl = URL.createObjectURL(sound);
    return { url: soundUrl };
  },
  save: async (notes, tempo, name) => {
    if (!notes.length) throw new Error("There is nothing to save yet: draw a note.");
    return { name: `${name}.mid`, bytes: write(notes, tempo) };
  },
  load: async (name, bytes) => read(name, bytes),
};

for (const link of document.querySelectorAll("a.notebook")) link.href = notebookAddress();
createCanvas(find("canvas"), host, { notes: MOTIF });
ready.then(() => ask("load")).catch((error) => showError(error.message));
