/**
 * The roll that the network sees and the notes in it: the twin of `utils/pianoroll.py`.
 * A roll is a Uint8Array of 128 × 128 pixels, pitch by pitch; notes are rows of start, length,
 * pitch and velocity, in sixteenths and MIDI numbers.
 */

export const PITCHES = 128, WIDTH = 128, SIZE = PITCHES * WIDTH;
export const SILENCE = 0, HELD = 64, ONSET = 128;
const VELOCITY_UNKNOWN = 64; // of a sustain without an onset

/** One note per pitch and column: the louder stays, an onset ends the note before. `settle` */
export function settle(notes) {
  const sorted = [...notes].sort((a, b) => a[2] - b[2] || a[0] - b[0] || b[3] - a[3] || b[1] - a[1])
    .filter((note, i, all) => !i || note[2] !== all[i - 1][2] || note[0] !== all[i - 1][0]);
  return sorted.map(([start, length, pitch, velocity], i) => {
    const next = sorted[i + 1];
    const room = next?.[2] === pitch ? next[0] - start : Infinity;
    return [start, Math.min(length, room), pitch, velocity];
  });
}

/** Notes as a roll; some may begin before it, or end after. `canvas.window_of`, `paint` */
export function paint(notes) {
  const roll = new Uint8Array(SIZE);
  for (const [start, length, pitch, velocity] of settle(notes)) {
    if (pitch < 0 || pitch >= PITCHES) continue;
    const begin = Math.max(start, 0), end = Math.min(start + length, WIDTH);
    if (begin < end) roll.fill(HELD, pitch * WIDTH + begin, pitch * WIDTH + end);
    if (start >= 0 && start < WIDTH) roll[pitch * WIDTH + start] = ONSET + velocity;
  }
  return roll;
}

/** The notes of a roll, by pitch and start. `notes_of` */
export function notesOf(roll) {
  const notes = [];
  for (let pixel = 0; pixel < SIZE; pixel += 1) {
    const level = roll[pixel], start = pixel % WIDTH;
    if (!level || (level <= HELD && start && roll[pixel - 1])) continue;
    let end = start + 1;
    while (end < WIDTH && roll[pixel - start + end] === HELD) end += 1;
    notes.push([start, end - start, Math.floor(pixel / WIDTH),
      level > HELD ? level - ONSET : VELOCITY_UNKNOWN]);
  }
  return notes;
}

/** Two planes in one Float32Array: active, and (128 + velocity) / 255 at onsets. `to_planes` */
export function toPlanes(roll) {
  const planes = new Float32Array(2 * SIZE);
  roll.forEach((level, i) => {
    planes[i] = level > 0 ? 1 : 0;
    planes[SIZE + i] = level > HELD ? level / 255 : 0;
  });
  return planes;
}

/** The inverse of `toPlanes`. `from_planes` */
export function fromPlanes(planes) {
  return Uint8Array.from({ length: SIZE }, (_, i) => {
    const onset = planes[SIZE + i];
    if (onset > 0.25) return Math.min(Math.max(Math.round(onset * 255), ONSET + 1), 255);
    return planes[i] > 0.5 ? HELD : SILENCE;
  });
}

/** Fills gaps of one pixel in the notes, in `mask`. `diffusion.without_gaps` */
export function withoutGaps(roll, mask) {
  return roll.map((level, pixel) => {
    const column = pixel % WIDTH, inside = mask[pixel] && column > 0 && column < WIDTH - 1;
    const gap = inside && level === SILENCE && roll[pixel - 1] > 0 && roll[pixel + 1] === HELD;
    return gap ? HELD : level;
  });
}

/** Removes sustains in `mask` that no onset leads to. `diffusion.without_stray_sustains` */
export function withoutStraySustains(roll, mask, edge = false) {
  const tidy = roll.slice();
  for (let pixel = 0; pixel < SIZE; pixel += 1) {
    const leads = pixel % WIDTH ? tidy[pixel - 1] !== SILENCE : !edge;
    if (mask[pixel] && tidy[pixel] === HELD && !leads) tidy[pixel] = SILENCE;
  }
  return tidy;
}

/** The notes that begin and end where `mask` is 1. `canvas.new_notes` */
export function newNotes(roll, mask) {
  const inside = roll.map((level, i) => (mask[i] ? level : SILENCE));
  return notesOf(withoutStraySustains(inside, mask, true));
}
