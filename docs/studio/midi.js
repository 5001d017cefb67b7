/**
 * MIDI files: `read` makes a song of the canvas, `write` a file. The twin of `load_song` in
 * `utils/canvas.py` and of `read_midi` and `to_midi` in `utils/pianoroll.py`; bars are those of the
 * file's time signatures. Format 0 and 1, drums left out; errors are one line.
 */

const TICKS = 480, STEPS = 4; // of a quarter note
const DRUMS = 9, MOST_BARS = 512, LONGEST_STEPS = 2 ** 19;
const text = (bytes) => String.fromCharCode(...bytes);

/** Calls `visit(tick, status, data)` for each event of a track; returns its last tick. */
function eachEvent(data, visit) {
  let at = 0, tick = 0, running = 0;
  const byte = () => {
    if (at >= data.length) throw new Error("it ends in the middle of a track");
    at += 1;
    return data[at - 1];
  };
  const number = () => { // seven bits a byte, the last one below 128
    let value = 0, next;
    do {
      next = byte();
      value = value * 128 + (next & 127);
    } while (next > 127);
    return value;
  };
  const bytes = (count) => {
    if (at + count > data.length) throw new Error("it ends in the middle of a track");
    at += count;
    return data.subarray(at - count, at);
  };
  while (at < data.length) {
    tick += number();
    let status = data[at];
    if (status > 127) at += 1;
    else status = running;
    if (status === 0xff) {
      const kind = byte(), content = bytes(number());
      if (kind === 0x2f) return tick;
      visit(tick, 0xff00 + kind, content);
    } else if (status >= 0xf0) bytes(number());
    else if (status < 0x80) throw new Error("a track is damaged");
    else {
      running = status;
      visit(tick, status, bytes([0xc0, 0xd0].includes(status & 0xf0) ? 1 : 2));
    }
  }
  return tick;
}

/** The notes of a track in ticks: [start, end, pitch, velocity]. */
function notesOfTrack(data, onMeta) {
  const notes = [], sounding = new Map();
  const release = (key, tick) => {
    for (const note of sounding.get(key) ?? []) note[1] = tick;
    sounding.delete(key);
  };
  const last = eachEvent(data, (tick, status, [pitch, velocity, ...more]) => {
    if (status >= 0xff00) return onMeta(tick, status & 0xff, [pitch, velocity, ...more]);
    const kind = status & 0xf0, channel = status & 15, key = channel * 128 + pitch;
    if (channel === DRUMS) return undefined;
    if (kind === 0x90 && velocity) {
      const note = [tick, null, pitch, velocity];
      notes.push(note);
      sounding.set(key, [...(sounding.get(key) ?? []), note]);
    } else if (kind === 0x80 || kind === 0x90) release(key, tick);
    return undefined;
  });
  return notes.map(([start, end, ...rest]) => [start, end ?? last, ...rest]);
}

/** The columns where bars begin, by [column, columns of a bar]. `bars.lines_of` */
function linesOf(signatures, steps) {
  const changes = [...new Map([[0, 16], ...signatures])].filter(([at]) => at < Math.max(steps, 1));
  changes.sort((a, b) => a[0] - b[0]);
  return changes.flatMap(([at, length], i) => {
    const end = changes[i + 1]?.[0] ?? Math.max(steps, 1);
    return Array.from({ length: Math.ceil((end - at) / length) }, (_, n) => at + n * length);
  });
}

function parse(given) {
  const bytes = Uint8Array.from(given), view = new DataView(bytes.buffer);
  if (bytes.length < 14 || text(bytes.subarray(0, 4)) !== "MThd") throw new Error("not MIDI");
  const division = view.getUint16(12);
  if (!division || division > 0x7fff) throw new Error("it counts in seconds, not in beats");
  const tracks = [], tempos = [], signatures = [], step = (tick) =>
    Math.floor(tick * STEPS / division + 0.5);
  for (let at = 8 + view.getUint32(4); at + 8 <= bytes.length;) {
    const name = text(bytes.subarray(at, at + 4)), end = at + 8 + view.getUint32(at + 4);
    if (end > bytes.length) throw new Error("it ends in the middle of a track");
    if (name === "MTrk") tracks.push(bytes.subarray(at + 8, end));
    at = end;
  }
  const notes = tracks.flatMap((track) => notesOfTrack(track, (tick, kind, data) => {
    if (kind === 0x51) tempos.push([step(tick), 6e7 / (data[0] * 65536 + data[1] * 256 + data[2])]);
    if (kind === 0x58 && data[0]) {
      const columns = Math.round(4 * STEPS * data[0] / 2 ** data[1]);
      signatures.push([step(tick), Math.max(columns, 1)]);
    }
  })).map(([start, end, pitch, velocity]) =>
    [step(start), Math.max(step(end) - step(start), 1), pitch, velocity]);
  if (!notes.length) throw new Error("no notes (drums are left out)");
  const tempo = tempos.findLast(([at]) => at <= 0)?.[1] ?? 120;
  return { notes, tempo, signatures };
}

/** A file's bytes as a song: { notes, steps, lines, tempo, name }. */
export function read(name, bytes) {
  try {
    const { notes, tempo, signatures } = parse(bytes);
    const end = notes.reduce((most, [start, length]) => Math.max(most, start + length), 0);
    if (end > LONGEST_STEPS) throw new Error("a note lies past 131,072 beats");
    const lines = linesOf(signatures, end);
    if (lines.length > MOST_BARS) {
      throw new Error(`${lines.length.toLocaleString("en")} bars, more than the ${MOST_BARS} that `
        + "the canvas takes");
    }
    return { notes: notes.map((note) => [...note, 0]), lines,
      steps: Math.max(Math.ceil(end / 16) * 16, 128), tempo: Math.round(tempo * 10) / 10,
      name: name.replace(/\.[^.]*$/, "") };
  } catch (error) {
    throw new Error(`${name}: ${error.message}; choose another MIDI file.`);
  }
}

/** A MIDI file's bytes: one track, the tempo, each note exactly on the grid. */
export function write(notes, tempo) {
  const events = notes.flatMap(([start, length, pitch, velocity]) => [
    [start, 1, 0x90, pitch, velocity], [start + length, 0, 0x80, pitch, 0]]);
  events.sort((a, b) => a[0] - b[0] || a[1] - b[1]); // a note ends before the next one begins
  const micros = Math.round(6e7 / tempo), bytes = (value, count) =>
    Array.from({ length: count }, (_, i) => (value >>> (8 * (count - 1 - i))) & 255);
  const track = [0, 0xff, 0x51, 3, ...bytes(micros, 3)];
  let now = 0;
  for (const [at, , ...data] of events) {
    const wait = (at - now) * TICKS / STEPS;
    for (let shift = 21; shift > 0; shift -= 7) {
      if (wait >>> shift) track.push(((wait >>> shift) & 127) | 128);
    }
    track.push(wait & 127, ...data);
    now = at;
  }
  track.push(0, 0xff, 0x2f, 0);
  const mark = (name) => [...name].map((c) => c.charCodeAt(0));
  return Uint8Array.from([...mark("MThd"), ...bytes(6, 4), 0, 0, 0, 1, ...bytes(TICKS, 2),
    ...mark("MTrk"), ...bytes(track.length, 4), ...track]);
}
