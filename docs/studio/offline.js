/** A service worker: after the first visit the page works without a network. */

const CACHE = "studio";
const OWN = ["./", "studio.js", "worker.js", "fill.js", "diffusion.js", "harmony.js",
  "pianoroll.js", "midi.js", "piano.js", "model.json", "../../utils/canvas.js",
  "../../utils/canvas.css"];

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(OWN)));
});
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

/** What never changes under its address: the engine of one version, the model of one hash. */
const isFixed = (url) => url.includes("onnxruntime-web@") || url.includes("model.onnx?");

async function answer(request) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(request);
  if (kept && isFixed(request.url)) return kept;
  try {
    const response = await fetch(request);
    if (response.ok) await keep(cache, request, response.clone());
    return response;
  } catch (error) {
    if (kept) return kept;
    throw error;
  }
}

/** A new model takes the place of the one before. */
async function keep(cache, request, response) {
  if (isFixed(request.url)) {
    const name = new URL(request.url).pathname.split("/").pop();
    for (const old of await cache.keys()) if (old.url.includes(`/${name}`)) await cache.delete(old);
  }
  await cache.put(request, response);
}

addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(answer(event.request));
});
