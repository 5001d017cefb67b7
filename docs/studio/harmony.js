/**
 * Chords and scales as a table of pitch weights: the twin of `utils/harmony.py`. What each symbol
 * means stands in model.json (`tables`), which `docs/export_onnx.py` writes from its twin's tables.
 */

import { PITCHES, WIDTH } from "./pianoroll.js";

/** The pitch classes of a chord, all of them for `N`. `chord_tones` */
export function chordTones(symbol, tables) {
  if (["N", "N.C.", "NC", "X"].includes(symbol)) return [...Array(12).keys()];
  let text = symbol.replaceAll("♭", "b").replaceAll("♯", "#"), degree;
  if (text.includes(":")) {
    const [root, ...rest] = text.split(":"), quality = rest.join(":");
    [text, degree] = quality.split("/");
    text = root + (tables.harte[text] ?? text);
  } else text = text.replace(/^([A-G][#b]?)min/, "$1m");
  const [, root, quality, bass] = /^([A-G][#b]?)([^/]*)(?:\/([A-G][#b]?))?$/.exec(text) ?? [];
  const tonic = tables.classes[root], tones = tables.qualities[quality];
  if (tonic === undefined || !tones) {
    throw new Error(`chord '${symbol}' cannot be read; write it as Am7, F#dim, Bbmaj7, C/E or `
      + "A:min7, and N for a bar without a chord");
  }
  const found = tones.map((tone) => (tonic + tone) % 12);
  if (bass) found.push(tables.classes[bass]);
  if (degree in tables.degrees) found.push((tonic + tables.degrees[degree]) % 12);
  return found;
}

/** The pitch classes of a scale such as `D dorian`. `scale_tones` */
export function scaleTones(name, tables) {
  const [first, ...rest] = name.trim().split(/\s+/), mode = rest.join(" ").toLowerCase() || "major";
  const tonic = tables.classes[first.slice(0, 1).toUpperCase() + first.slice(1)];
  if (tonic === undefined || !tables.modes[mode]) {
    throw new Error(`scale '${name}' is unknown; write a note and one of `
      + `${Object.keys(tables.modes).join(", ")}, such as 'D dorian'`);
  }
  return tables.modes[mode].map((step) => (tonic + step) % 12);
}

/** [column, symbol] of chords written as one chord a bar, `"C Am F,G C"`. `chords_by_bar` */
export function chordsByBar(chords, lines) {
  const bars = chords.replace(/\s*,\s*/g, ",").trim().split(/\s+/).map((bar) => bar.split(","));
  if (!bars.every((bar) => bar.every(Boolean))) {
    throw new Error(`chords '${chords}': write one chord a bar, such as 'C Am F,G C'`);
  }
  return lines.slice(0, -1).flatMap((begin, number) => {
    const bar = bars[number % bars.length], length = lines[number + 1] - begin;
    return bar.map((symbol, i) => [Math.round(begin + length * i / bar.length), symbol]);
  });
}

/** What the odds of each pixel are multiplied by, 128 × 128. `pitch_weights` */
export function pitchWeights(chords, scale, tables) {
  const weights = new Float32Array(PITCHES * WIDTH).fill(1);
  const weigh = (tones, weight, begin, end) => {
    for (let pitch = 0; pitch < PITCHES; pitch += 1) {
      if (tones.includes(pitch % 12)) continue;
      weights.fill(weight, pitch * WIDTH + begin, pitch * WIDTH + end);
    }
  };
  const inside = (column) => Math.min(Math.max(column, 0), WIDTH);
  chords.forEach(([begin, symbol], i) => {
    const end = chords[i + 1]?.[0] ?? WIDTH;
    weigh(chordTones(symbol, tables), tables.outside, inside(begin), inside(end));
  });
  if (scale) weigh(scaleTones(scale, tables), 0, 0, WIDTH);
  return weights;
}
