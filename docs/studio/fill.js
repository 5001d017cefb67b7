/** New notes for a request of the canvas: the twin of `fill` and `masked_region` in canvas.py. */

import { generate } from "./diffusion.js";
import { chordsByBar, pitchWeights } from "./harmony.js";
import { PITCHES, SIZE, WIDTH, newNotes, paint } from "./pianoroll.js";

const SAMPLING_STEPS = 25, SHOWN_EVERY = 3;

/** 1 where something may be generated: the selection, or all, without active pixels. */
function maskedRegion(keep, selection) {
  const box = selection ?? { begin: 0, end: WIDTH, low: 0, high: PITCHES - 1 };
  return Uint8Array.from({ length: SIZE }, (_, i) => {
    const pitch = Math.floor(i / WIDTH), column = i % WIDTH;
    return +(column >= box.begin && column < box.end && pitch >= box.low && pitch <= box.high
      && !keep[i]);
  });
}

const median = (numbers) => {
  const sorted = [...numbers].sort((a, b) => a - b), half = sorted.length / 2;
  return (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2;
};

/** `watch({ notes, share })` sees each step; `notes` are null where nothing is to be shown. */
export async function fill(network, { network: config, harmony }, request, watch) {
  const keep = paint(request.keep), vary = paint(request.vary);
  const mask = maskedRegion(keep, request.selection);
  if (!mask.includes(1)) {
    throw new Error("the selection is full of notes; select some empty place too");
  }
  const lines = [...request.lines, request.lines.at(-1) + 16].map((line) => line - request.left);
  const chords = request.chords ? chordsByBar(request.chords, lines) : [];
  const columns = [...Array(WIDTH).keys()].filter((column) =>
    [...Array(PITCHES).keys()].some((pitch) => mask[pitch * WIDTH + column]));
  const bar = median(lines.slice(1).map((line, i) => line - lines[i])) || 16;
  const total = Math.ceil(request.strength * SAMPLING_STEPS);
  const roll = await generate(network, config, {
    samplingSteps: SAMPLING_STEPS, seed: request.seed, mask, strength: request.strength,
    roll: keep.map((level, i) => (mask[i] ? vary[i] : level)),
    pitchWeights: chords.length || request.scale
      ? pitchWeights(chords, request.scale, harmony) : null,
    onsets: request.density * columns.length / bar,
    watch: (step, seen) => watch({ share: (step + 1) / total,
      notes: step % SHOWN_EVERY ? null : newNotes(seen, mask) }),
  });
  return newNotes(roll, mask);
}
