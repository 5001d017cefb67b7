/**
 * A piano roll to draw on, whose gaps a model fills. One plain ES module.
 *
 * In Jupyter it is the front end of `utils/canvas.py` (an anywidget: the default export). Without
 * Jupyter, `createCanvas(el, host, song)` builds the same canvas; a `host` brings the model:
 *
 *   generate(request, onProgress, signal) → { notes }       new notes, rows as below
 *   play(notes, tempo)                    → { url }         their sound, for an <audio> element
 *   save(notes, tempo, name)              → { name, bytes, where }   a MIDI file to download
 *   load(name, bytes)                     → song            a MIDI file as a song
 *   changed(notes)                        called with all notes after each change (optional)
 *   key                                   where the browser keeps a draft (optional)
 *
 * All but `changed` are asynchronous and throw an Error of one line. A note in a message is a row
 * [start, length, pitch, velocity, by], in sixteenths and MIDI numbers; `by` is 0 for yours, 1 for
 * the model's. A song is { notes, steps, lines, tempo, name }; `lines` are the columns where bars
 * begin. A request's rows count from the first column that is shown.
 */

const COLUMNS = 128, PITCHES = 128, BEAT = 4; // the model sees 128 sixteenths at once
const ROW = 12, KEYS = 54, RULER = 26, NARROWEST = 4; // pixels; NARROWEST is a column's width
const YOU = 0, MODEL = 1;
const VELOCITY = 84, USUAL_LENGTH = 4; // of a note that is drawn with one click
const SILENT_MS = 5000; // after so long without a word the kernel is busy, or gone
const DARK = "(prefers-color-scheme: dark)";
const LARGEST_FILE = 2 ** 21; // bytes
const NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];
const EMPTY = { notes: [], steps: COLUMNS, lines: [0, 16, 32, 48, 64, 80, 96, 112], tempo: 120,
                name: "drawn" };

// ---------------------------------------------------------------- notes (never changed in place)

/** One note per pitch and column: the later in the list stays, an onset ends the note before. */
export function settle(notes) {
  const byOnset = new Map(notes.map((note) => [note.pitch * 2 ** 20 + note.start, note]));
  const sorted = [...byOnset.values()].sort((a, b) => a.pitch - b.pitch || a.start - b.start);
  return sorted.map((note, i) => {
    const next = sorted[i + 1];
    const room = next?.pitch === note.pitch ? next.start - note.start : Infinity;
    return room < note.length ? { ...note, length: room } : note;
  });
}

const fromRow = ([start, length, pitch, velocity, by = YOU]) =>
  ({ start, length, pitch, velocity, by, pending: false });
const toRow = ({ start, length, pitch, velocity, by }) => [start, length, pitch, velocity, by];
const end = (note) => note.start + note.length;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const overlap = (a, b) => a.pitch === b.pitch && a.start < end(b) && b.start < end(a);
const within = (note, box) => note.start >= box.begin && end(note) <= box.end
  && note.pitch >= box.low && note.pitch <= box.high;
const nameOf = (pitch) => `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;
const isBlack = (pitch) => [1, 3, 6, 8, 10].includes(pitch % 12);
const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

/** A song without what the model proposed, and with what a variation stood in for. */
const rejected = (song) => ({ ...song, replaced: [],
  notes: settle([...song.notes.filter((note) => !note.pending), ...song.replaced]) });
const kept = (song) => ({ ...song, replaced: [],
  notes: song.notes.map((note) => (note.pending ? { ...note, pending: false } : note)) });

function songFrom(given) {
  const song = { ...EMPTY, ...given, replaced: [] };
  song.steps = Math.max(COLUMNS, song.steps);
  song.notes = settle(song.notes.map(fromRow));
  return song;
}

// ---------------------------------------------------------------- building the page

const ICONS = { // paths on a grid of 16
  draw: "M3 13l1-3.5L11 2.5l2.5 2.5-7 7z", erase: "M2.5 10L9 3.5l4 4L8 12.5H5zM8 12.5h5.5",
  select: "M2.5 5V2.5H5M8 2.5h1M11 2.5h2.5V5M13.5 8v1M13.5 11v2.5H11M8 13.5H7M5 13.5H2.5V11M2.5 8V7",
  undo: "M6 3L2.5 6.5 6 10M3 6.5h6.5a3.5 3.5 0 010 7H6", redo: "M10 3l3.5 3.5L10 10M13 6.5H6.5a3.5 3.5 0 000 7H10",
  clear: "M3 4.5h10M6 4.5V2.5h4v2M4.5 4.5l.5 9h6l.5-9", play: "M4.5 2.5l8.5 5.5-8.5 5.5z",
  stop: "M4 4h8v8H4z", generate: "M8 1.5l1.5 5L14.5 8l-5 1.5L8 14.5 6.5 9.5 1.5 8l5-1.5z",
  vary: "M2 6c2-4 4-4 6 0s4 4 6 0M2 11c2-4 4-4 6 0s4 4 6 0", keep: "M2.5 8.5L6 12l7.5-8",
  reject: "M3.5 3.5l9 9M12.5 3.5l-9 9", load: "M8 11V3M4.5 6L8 2.5 11.5 6M2.5 13.5h11",
  save: "M8 2.5v8M4.5 7.5L8 11l3.5-3.5M2.5 13.5h11",
  dice: "M2.5 2.5h11v11h-11zM5.5 5.5h.01M10.5 5.5h.01M8 8h.01M5.5 10.5h.01M10.5 10.5h.01",
};

/** An element with properties (an `aria` object, a `text`, an `on` object) and children. */
function make(tag, { aria = {}, on = {}, text, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(aria)) node.setAttribute(name, value);
  for (const [name, handler] of Object.entries(on)) node.addEventListener(name, handler);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function button(name, label, title, click, alone = false) {
  const words = alone ? [] : [make("span", { text: label })];
  return make("button", { type: "button", className: `roll-${name}`, title,
    aria: { "aria-label": alone ? title : label }, on: { click } }, icon(name), ...words);
}

const field = (label, ...inputs) => make("label", { className: "roll-field" },
  make("span", { text: label }), ...inputs);
const group = (label, ...children) => make("div", { className: "roll-group",
  aria: { role: "group", "aria-label": label } }, ...children);

/** A 2D context of a canvas `width` × `height` CSS pixels, sharp on every screen, and empty. */
function blank(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

// ---------------------------------------------------------------- the canvas

export function createCanvas(el, host, given = {}) {
  let song = songFrom(given), past = [], future = [];
  let left = 0; // the first column shown, a bar line
  let tool = "draw", selection = null, drag = null, ghosts = [], sound = null, corner = null;
  let cursor = { column: 0, pitch: 60 }, cursorShown = false, length = USUAL_LENGTH;
  let working = null; // the AbortController of the request that runs
  let from = 0; // where Play begins, in columns of the window
  let column = 9, colors = {}, frame = 0;
  const gone = new AbortController(); // ends the listeners outside of `el`

  // ---- the page

  const tools = Object.fromEntries([["draw", "Draw", "Draw, move and stretch notes (D)"],
    ["erase", "Erase", "Erase notes (E)"], ["select", "Select", "Select bars and pitches (S)"]]
    .map(([name, label, title]) => [name, button(name, label, title, () => setTool(name))]));
  const back = button("undo", "Undo", "Undo (Ctrl+Z)", () => undo(), true);
  const again = button("redo", "Redo", "Redo (Ctrl+Shift+Z)", () => redo(), true);
  const clear = button("clear", "Clear", "Clear the selection, or all", clearAll, true);
  const go = button("generate", "Generate", "Fill the selection, or all that is empty",
    () => (working ? working.abort() : generate(false)));
  const vary = button("vary", "Vary", "Vary the notes of the selection, or all", () => generate(true));
  const playing = button("play", "Play", "Play or stop (Space)", play);
  const keep = button("keep", "Keep", "Keep what the model wrote", () => decide(kept(song)));
  const reject = button("reject", "Reject", "Reject what the model wrote",
    () => decide(rejected(song)));
  const choice = group("What the model wrote", keep, reject);
  const number = (value, min, max) => make("input", { type: "number", value, min, max });
  const range = (label, value, max, step, title, words) => {
    const input = make("input", { type: "range", min: 0, max, step, title, value });
    const output = make("output", { text: words(value) });
    input.addEventListener("input", () => { output.textContent = words(+input.value); });
    return [input, field(label, input, output)];
  };
  const seed = number(given.seed ?? 0, 0, 2 ** 31 - 1), tempo = number(song.tempo, 20, 400);
  const dice = button("dice", "Dice", "Another seed, by dice",
    () => { seed.value = Math.floor(Math.random() * 100000); }, true);
  const chords = make("input", { type: "text", placeholder: "C Am F,G C", maxLength: 400,
    title: "One chord a bar; several in a bar are joined by commas" });
  const scale = make("input", { type: "text", placeholder: "D dorian", maxLength: 40,
    title: "Notes outside the scale are not generated" });
  const [density, densityField] = range("Density", 0, 32, 1, "New notes a bar to aim at",
    (value) => (value ? `${value} a bar` : "free"));
  const [strength, strengthField] = range("Vary by", 0.5, 1, 0.05, "How much Vary changes",
    (value) => `${Math.round(value * 100)} %`);
  const file = make("input", { type: "file", accept: ".mid,.midi,audio/midi", hidden: true,
    on: { change: load } });
  const loading = button("load", "Load", "Load a MIDI file", () => file.click());
  const saving = button("save", "Save", "Save as MIDI", save);
  const status = make("p", { className: "roll-status", aria: { role: "status" } });
  const bringBack = make("button", { type: "button", className: "roll-draft", hidden: true });
  const progress = make("div", { className: "roll-progress" });
  const strip = make("canvas", { className: "roll-strip", tabIndex: 0,
    aria: { role: "slider", "aria-label": "Bars that are shown", "aria-valuemin": 1 } });
  const ruler = make("canvas", { className: "roll-ruler", aria: { "aria-hidden": "true" } });
  const keys = make("canvas", { className: "roll-keys", aria: { "aria-hidden": "true" } });
  const grid = make("canvas", { className: "roll-grid", tabIndex: 0, aria: {
    role: "application", "aria-label": "Piano roll. Arrows move the cursor, Enter draws or erases, "
      + "Shift with left or right changes a note's length, Alt with arrows moves it." } });
  const playhead = make("div", { className: "roll-playhead", hidden: true });
  const sheet = make("div", { className: "roll-sheet" }, grid, playhead);
  const view = make("div", { className: "roll-view" },
    make("div", { className: "roll-corner" }), ruler, keys, sheet);
  const root = make("div", { className: "roll-root", aria: { "data-lm-suppress-shortcuts": "true" } },
    make("div", { className: "roll-bar" },
      group("Tools", ...Object.values(tools)), group("History", back, again, clear),
      group("Model", go, vary), group("Sound", playing)),
    make("div", { className: "roll-bar roll-settings" },
      field("Seed", seed), dice, field("Chords", chords), field("Scale", scale),
      densityField, strengthField, field("Tempo", tempo), group("Files", loading, saving), file),
    strip, view, progress, make("div", { className: "roll-foot" }, status, bringBack, choice,
      make("div", { className: "roll-legend" }, make("span", { text: "yours" }),
        make("span", { text: "the model's", className: "roll-by-model" }),
        make("span", { text: "proposed", className: "roll-new" }))));
  el.append(root);

  // ---- state and history

  /** Takes a new state of the song; the old one can be had back. */
  function commit(next) {
    past = [...past, song].slice(-200);
    future = [];
    show(next);
  }

  function goBack(here, there) {
    if (!here.length) return;
    there.push(song);
    show(here.pop());
  }

  const undo = () => goBack(past, future), redo = () => goBack(future, past);

  function show(next) {
    if (next.tempo !== song.tempo) tempo.value = Math.round(next.tempo * 10) / 10;
    song = next;
    left = Math.min(left, lastLine());
    host.changed?.(song.notes.map(toRow));
    if (host.key) {
      try {
        sessionStorage.setItem(host.key, JSON.stringify({ ...song, notes: song.notes.map(toRow) }));
      } catch { /* no room, or not allowed: there is no draft then */ }
    }
    redraw();
  }

  const lastLine = () => song.lines.find((line) => line + COLUMNS >= song.steps) ?? 0;
  const pending = () => song.notes.some((note) => note.pending) || song.replaced.length > 0;
  const shown = () => song.notes.filter((n) => n.start < left + COLUMNS && end(n) > left);
  const noteAt = (at, pitch) =>
    song.notes.findLast((n) => n.pitch === pitch && n.start <= at && at < end(n));
  const whole = () => ({ begin: left, end: left + COLUMNS, low: 0, high: PITCHES - 1 });
  const relative = (note) => toRow({ ...note, start: note.start - left });

  function say(text, isError = false) {
    status.textContent = text;
    status.classList.toggle("roll-error", isError);
  }

  function setTool(name) {
    tool = name;
    redraw();
  }

  function decide(next) {
    commit(next);
    say(`${count(next.notes.length, "note")}.`);
  }

  function clearAll() {
    const gone = (note) => !selection || (note.start >= selection.begin && note.start < selection.end
      && note.pitch >= selection.low && note.pitch <= selection.high);
    if (song.notes.some(gone)) commit({ ...song, notes: song.notes.filter((n) => !gone(n)) });
  }

  // ---- the model

  /** Asks the host for new notes; they are shown as a proposal, to keep or to reject. */
  async function generate(varies) {
    const box = selection ?? whole();
    const candidates = varies ? shown().filter((note) => within(note, box)) : [];
    if (varies && !candidates.length) {
      return say("There are no notes to vary here: draw some, or generate first.", true);
    }
    const ofModel = candidates.filter((note) => note.by === MODEL);
    const varied = new Set(ofModel.length ? ofModel : candidates);
    const without = () => (varies ? { ...song, notes: song.notes.filter((n) => !varied.has(n)) }
      : rejected(song));
    const at = left;
    const isHere = (note) => note.start < at + COLUMNS && end(note) > at;
    const request = { keep: without().notes.filter(isHere).map(relative),
      vary: [...varied].map(relative), left, lines: song.lines, seed: +seed.value || 0,
      chords: chords.value.trim(), scale: scale.value.trim(), density: +density.value,
      strength: varies ? +strength.value : 1,
      selection: selection && { ...selection, begin: box.begin - at, end: box.end - at } };
    const absolute = (row) => ({ ...fromRow(row), start: row[0] + at, by: MODEL, pending: true });
    const news = await work(varies ? "Varying …" : "Generating …", (signal) =>
      host.generate(request, ({ notes, share }) => {
        ghosts = signal.aborted ? [] : notes.map(absolute);
        progress.style.width = `${100 * share}%`;
        redraw();
      }, signal));
    ghosts = [];
    redraw();
    if (!news) return;
    const base = without(); // of now: what was drawn in the meantime stays
    const added = news.notes.map(absolute).filter((n) => !base.notes.some((o) => overlap(n, o)));
    const replaced = varies ? [...song.replaced, ...[...varied].filter((n) => !n.pending)] : [];
    commit({ ...base, replaced, notes: settle([...base.notes, ...added]) });
    say(added.length ? `${count(added.length, "new note")}: keep or reject.`
      : "The model chose silence here; try another seed, or a higher density.");
  }

  /** Runs one request; returns its answer, or nothing where it failed, with one line that says why. */
  async function work(text, ask) {
    if (working) return undefined;
    const own = working = new AbortController();
    const stopped = new Promise((_, fail) => {
      own.signal.addEventListener("abort", () => fail(new Error("Stopped.")));
    });
    say(text);
    redraw();
    try {
      const answer = await Promise.race([ask(own.signal), stopped]);
      say("");
      return answer;
    } catch (error) {
      say(String(error.message ?? error).split("\n")[0], !own.signal.aborted);
      return undefined;
    } finally {
      working = null;
      progress.style.width = "0";
      redraw();
    }
  }

  // ---- sound and files

  const audio = new Audio();
  audio.addEventListener("ended", stop);

  async function play() {
    if (!audio.paused) return stop();
    const rows = shown().map((note) => relative({ ...note, start: Math.max(note.start, left),
      length: Math.min(end(note), left + COLUMNS) - Math.max(note.start, left) }));
    if (!rows.length) return say("There is nothing to hear yet: draw a note.", true);
    const what = JSON.stringify([rows, song.tempo]);
    if (sound?.what !== what) {
      const answer = await work("Rendering the sound …", () => host.play(rows, song.tempo));
      if (!answer) return undefined;
      sound = { what, url: answer.url };
      audio.src = answer.url;
    }
    try {
      audio.currentTime = from * 15 / song.tempo; // a sixteenth lasts 15 / tempo seconds
      await audio.play();
    } catch (error) {
      return say(`The browser cannot play the sound (${error.message}).`, true);
    }
    redraw();
    return follow();
  }

  function follow() {
    if (audio.paused) return;
    const at = audio.currentTime * song.tempo / 15;
    playhead.hidden = at > COLUMNS;
    playhead.style.transform = `translateX(${at * column}px)`;
    requestAnimationFrame(follow);
  }

  function stop() {
    audio.pause();
    redraw();
  }

  async function save() {
    const saved = await work("Saving …", () =>
      host.save(song.notes.map(toRow), song.tempo, song.name));
    if (!saved) return;
    const url = URL.createObjectURL(new Blob([saved.bytes], { type: "audio/midi" }));
    make("a", { href: url, download: saved.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    say(`Saved ${count(song.notes.length, "note")}${saved.where ? ` to ${saved.where}` : ""}.`);
  }

  async function load() {
    const [chosen] = file.files;
    file.value = "";
    if (!chosen) return;
    if (chosen.size > LARGEST_FILE) {
      return say(`${chosen.name}: over 2 MB, more than a piece needs; choose another file.`, true);
    }
    const loaded = await work("Loading …", async () =>
      host.load(chosen.name, new Uint8Array(await chosen.arrayBuffer())));
    if (loaded) open(loaded);
  }

  function open(loaded) {
    selection = null;
    left = 0;
    commit(songFrom(loaded));
    lookAtNotes();
    say(`${song.name}: ${count(song.notes.length, "note")}, ${count(song.lines.length, "bar")}.`);
  }

  // ---- drawing the canvas

  function redraw() {
    frame ||= requestAnimationFrame(() => { frame = 0; drawAll(); });
  }

  function readColors() {
    const { jpThemeLight, vscodeThemeKind } = document.body.dataset;
    const theme = jpThemeLight ? jpThemeLight === "false" : vscodeThemeKind?.includes("dark");
    root.classList.toggle("roll-dark", theme ?? matchMedia(DARK).matches);
    const style = getComputedStyle(root);
    for (const name of ["paper", "black-row", "line", "beat", "bar", "ink", "you", "model", "accent",
      "white-key", "black-key"]) {
      colors[name] = style.getPropertyValue(`--roll-${name}`).trim();
    }
    redraw();
  }

  function drawAll() {
    column = Math.max(NARROWEST, (view.clientWidth - KEYS) / COLUMNS);
    for (const [name, node] of Object.entries(tools)) {
      node.setAttribute("aria-pressed", name === tool);
    }
    back.disabled = !past.length;
    again.disabled = !future.length;
    choice.hidden = !pending();
    go.lastChild.textContent = working ? "Stop" : "Generate";
    go.setAttribute("aria-label", go.lastChild.textContent);
    for (const node of [vary, saving, loading]) node.disabled = Boolean(working);
    playing.lastChild.textContent = audio.paused ? "Play" : "Stop";
    playing.setAttribute("aria-label", playing.lastChild.textContent);
    playing.firstChild.replaceWith(icon(audio.paused ? "play" : "stop"));
    playing.disabled = Boolean(working);
    playhead.hidden = audio.paused && !from;
    if (audio.paused) playhead.style.transform = `translateX(${from * column}px)`;
    root.classList.toggle("roll-working", Boolean(working));
    grid.dataset.tool = tool;
    drawStrip();
    drawRuler();
    drawKeys();
    drawGrid();
  }

  const yOf = (pitch) => (PITCHES - 1 - pitch) * ROW;
  const barsShown = () => song.lines.filter((line) => line >= left && line < left + COLUMNS);

  function drawRuler() {
    const context = blank(ruler, column * COLUMNS, RULER);
    context.font = "600 11px system-ui, sans-serif";
    for (let at = 0; at < COLUMNS; at += BEAT) {
      context.fillStyle = colors.beat;
      context.fillRect(at * column, RULER - 5, 1, 5);
    }
    for (const line of barsShown()) {
      context.fillStyle = colors.bar;
      context.fillRect((line - left) * column, 6, 1, RULER - 6);
      context.fillStyle = colors.ink;
      context.fillText(song.lines.indexOf(line) + 1, (line - left) * column + 5, 16);
    }
    if (selection) {
      context.fillStyle = colors.accent;
      context.fillRect((selection.begin - left) * column, RULER - 3,
        (selection.end - selection.begin) * column, 3);
    }
  }

  function drawKeys() {
    const context = blank(keys, KEYS, ROW * PITCHES);
    context.font = "10px system-ui, sans-serif";
    for (let pitch = 0; pitch < PITCHES; pitch += 1) {
      context.fillStyle = colors["white-key"];
      context.fillRect(0, yOf(pitch), KEYS, ROW);
      if (pitch % 12 === 0 || pitch % 12 === 5) {
        context.fillStyle = colors.bar;
        context.fillRect(0, yOf(pitch) + ROW - 1, KEYS, 1);
      }
      if (isBlack(pitch)) {
        context.fillStyle = colors.bar;
        context.fillRect(0, yOf(pitch) + ROW / 2 - 0.5, KEYS, 1);
        context.fillStyle = colors["black-key"];
        context.fillRect(0, yOf(pitch) + 0.5, KEYS * 0.58, ROW - 1);
      } else if (pitch % 12 === 0) {
        context.fillStyle = "#55555c";
        context.fillText(nameOf(pitch), KEYS - 22, yOf(pitch) + ROW - 2.5);
      }
    }
    if (cursorShown) {
      context.fillStyle = colors.accent;
      context.fillRect(KEYS - 4, yOf(cursor.pitch), 4, ROW);
    }
  }

  function drawGrid() {
    const context = blank(grid, column * COLUMNS, ROW * PITCHES);
    const line = (color, x, y, width, height) => {
      context.fillStyle = color;
      context.fillRect(x, y, width, height);
    };
    line(colors.paper, 0, 0, column * COLUMNS, ROW * PITCHES);
    for (let pitch = 0; pitch < PITCHES; pitch += 1) {
      if (isBlack(pitch)) line(colors["black-row"], 0, yOf(pitch), column * COLUMNS, ROW);
      if (pitch % 12 === 0) line(colors.beat, 0, yOf(pitch) + ROW - 1, column * COLUMNS, 1);
    }
    for (let at = 1; at < COLUMNS; at += 1) {
      if (at % BEAT === 0 || column > 8) {
        line(at % BEAT ? colors.line : colors.beat, Math.round(at * column), 0, 1, ROW * PITCHES);
      }
    }
    for (const bar of barsShown()) {
      line(colors.bar, Math.round((bar - left) * column), 0, 1, ROW * PITCHES);
    }
    for (const ghost of ghosts) drawNote(context, ghost, 0.4);
    for (const note of shown()) drawNote(context, note, 1);
    const box = drag?.box ?? selection;
    if (box) {
      const [x, y] = [(box.begin - left) * column, yOf(box.high)];
      const [w, h] = [(box.end - box.begin) * column, (box.high - box.low + 1) * ROW];
      context.globalAlpha = 0.1;
      line(colors.accent, x, y, w, h);
      context.globalAlpha = 1;
      Object.assign(context, { strokeStyle: colors.accent, lineWidth: 1.5 });
      context.setLineDash([5, 4]);
      context.strokeRect(x + 1, y + 1, w - 2, h - 2);
      context.setLineDash([]);
    }
    if (cursorShown) {
      Object.assign(context, { strokeStyle: colors.ink, lineWidth: 1.5 });
      context.strokeRect((cursor.column - left) * column - 1, yOf(cursor.pitch) - 1,
        Math.max(column, 6) + 2, ROW + 2);
    }
  }

  function drawNote(context, note, alpha) {
    const begin = Math.max(note.start - left, 0), until = Math.min(end(note) - left, COLUMNS);
    const [x, y, w] = [begin * column + 0.5, yOf(note.pitch) + 1, (until - begin) * column - 1.5];
    const color = colors[note.by === YOU ? "you" : "model"];
    context.beginPath();
    context.roundRect(x, y, Math.max(w, 2), ROW - 2, Math.min(3, w / 2));
    context.globalAlpha = alpha * (note.pending ? 0.45 : 0.55 + 0.45 * note.velocity / 127);
    context.fillStyle = color;
    context.fill();
    context.globalAlpha = alpha;
    if (note.pending && alpha === 1) {
      Object.assign(context, { strokeStyle: color, lineWidth: 1.25 });
      context.stroke();
    }
    context.fillStyle = color;
    context.fillRect(x, y + 1, Math.min(2.5, w), ROW - 4); // the onset
    context.globalAlpha = 1;
  }

  function drawStrip() {
    strip.hidden = song.steps <= COLUMNS;
    if (strip.hidden) return;
    const width = view.clientWidth, scaled = width / song.steps, height = 44;
    const context = blank(strip, width, height);
    const pitches = song.notes.map((note) => note.pitch);
    const low = Math.min(...pitches, 48) - 2, high = Math.max(...pitches, 72) + 2;
    for (const note of song.notes) {
      context.fillStyle = colors[note.by === YOU ? "you" : "model"];
      context.fillRect(note.start * scaled, (high - note.pitch) / (high - low) * height,
        Math.max(note.length * scaled, 1), 1.5);
    }
    context.globalAlpha = 0.14;
    context.fillStyle = colors.accent;
    context.fillRect(left * scaled, 0, COLUMNS * scaled, height);
    context.globalAlpha = 1;
    Object.assign(context, { strokeStyle: colors.accent, lineWidth: 2 });
    context.strokeRect(left * scaled + 1, 1, COLUMNS * scaled - 2, height - 2);
    const bars = song.lines.indexOf(barsShown()[0]) + 1;
    strip.setAttribute("aria-valuemax", song.lines.indexOf(lastLine()) + 1);
    strip.setAttribute("aria-valuenow", bars);
    strip.setAttribute("aria-valuetext", `bars ${bars} to ${bars + barsShown().length - 1}`);
  }

  /** Scrolls to the middle of the notes that are shown, or to middle C. */
  function lookAtNotes() {
    const pitches = shown().map((note) => note.pitch).sort((a, b) => a - b);
    const middle = pitches.length ? (pitches[0] + pitches.at(-1)) / 2 : 62;
    view.scrollTop = yOf(middle) + RULER - view.clientHeight / 2;
  }

  // ---- mouse, pen and touch

  function cell(event) {
    const box = grid.getBoundingClientRect();
    return { column: left + clamp(Math.floor((event.clientX - box.left) / column), 0, COLUMNS - 1),
             pitch: clamp(PITCHES - 1 - Math.floor((event.clientY - box.top) / ROW), 0, PITCHES - 1),
             x: (event.clientX - box.left) / column + left };
  }

  const nearEnd = (note, x) => end(note) - x < Math.min(note.length * 0.35, 8 / column + 0.3);

  /** What a note becomes when it is touched: yours, and no longer a proposal. */
  const taken = (note) => ({ ...note, by: note.pending ? YOU : note.by, pending: false });

  /** The song with a note in place of another; with no other, one note more. */
  const changedNote = (base, note, old) =>
    ({ ...base, notes: settle([...base.notes.filter((other) => other !== old), note]) });

  grid.addEventListener("pointerdown", (event) => {
    if (event.button > 2 || drag) return;
    grid.setPointerCapture(event.pointerId);
    grid.focus({ preventScroll: true });
    cursorShown = false;
    const at = cell(event), note = noteAt(at.column, at.pitch);
    const kind = event.button === 2 || tool === "erase" ? "erase" : tool === "select" ? "select"
      : !note ? "draw" : nearEnd(note, at.x) ? "stretch" : "move";
    drag = { kind, at, note, song, moved: false, pointer: event.pointerId };
    if (kind === "draw") {
      drag.note = { start: at.column, length: 1, pitch: at.pitch, velocity: VELOCITY,
        by: YOU, pending: false };
      song = changedNote(song, drag.note);
    } else if (kind === "erase" && note) song = without(note);
    redraw();
  });

  const without = (note) => ({ ...song, notes: song.notes.filter((other) => other !== note) });

  grid.addEventListener("pointermove", (event) => {
    const at = cell(event);
    cursor = { column: at.column, pitch: at.pitch };
    if (!drag) {
      const note = tool === "draw" && noteAt(at.column, at.pitch);
      grid.style.cursor = note ? (nearEnd(note, at.x) ? "ew-resize" : "grab") : "";
      return;
    }
    if (event.pointerId !== drag.pointer) return;
    drag.moved ||= at.column !== drag.at.column || at.pitch !== drag.at.pitch;
    if (!drag.moved) return;
    const { kind, note, song: base } = drag;
    const by = at.column - drag.at.column;
    if (kind === "erase") {
      const hit = noteAt(at.column, at.pitch);
      if (hit) song = without(hit);
    } else if (kind === "select") {
      drag.box = boxOf(drag.at, at);
    } else if (kind === "move") {
      song = changedNote(base, taken({ ...note, pitch: clamp(note.pitch + at.pitch - drag.at.pitch,
        0, PITCHES - 1), start: clamp(note.start + by, left, left + COLUMNS - 1) }), note);
    } else {
      const long = kind === "draw" ? by + 1 : note.length + by;
      song = changedNote(base, taken({ ...note, length: Math.max(long, 1) }), note);
      length = Math.max(long, 1);
    }
    redraw();
  });

  grid.addEventListener("pointerup", () => {
    if (!drag) return;
    const { kind, moved, song: base, box, note } = drag;
    drag = null;
    if (kind === "select") {
      selection = box ?? null; // a click takes the selection away
      say(selection ? `Selected ${described(selection)}.` : "");
    } else if (kind === "draw" && !moved) {
      const room = Math.min(...base.notes.filter((n) => n.pitch === note.pitch
        && n.start > note.start).map((n) => n.start), left + COLUMNS) - note.start;
      song = changedNote(base, { ...note, length: Math.min(length, room) });
    }
    const after = song;
    song = base;
    if (after !== base) commit(after);
    redraw();
  });

  grid.addEventListener("pointercancel", () => {
    if (drag) song = drag.song;
    drag = null;
    redraw();
  });
  grid.addEventListener("contextmenu", (event) => event.preventDefault());

  /** The rectangle of two cells, in whole beats. */
  function boxOf(a, b) {
    const [first, last] = [Math.min(a.column, b.column), Math.max(a.column, b.column)];
    return { begin: left + Math.floor((first - left) / BEAT) * BEAT,
             end: left + (Math.floor((last - left) / BEAT) + 1) * BEAT,
             low: Math.min(a.pitch, b.pitch), high: Math.max(a.pitch, b.pitch) };
  }

  const barOf = (at) => song.lines.findLastIndex((line) => line <= at) + 1;
  const described = (box) => `bars ${barOf(box.begin)} to ${barOf(box.end - 1)}, `
    + `${nameOf(box.low)} to ${nameOf(box.high)}`;

  /** On the ruler a click says where Play begins, and dragging selects whole bars. */
  ruler.addEventListener("pointerdown", (event) => {
    ruler.setPointerCapture(event.pointerId);
    const begin = cell(event).column;
    const drawBars = (move) => {
      const columns = [begin, cell(move).column].sort((a, b) => a - b);
      if (columns[0] === columns[1]) return;
      const lines = [...song.lines, song.steps];
      selection = { ...whole(), begin: lines.findLast((line) => line <= columns[0]) ?? left,
        end: Math.min(lines.find((line) => line > columns[1]) ?? song.steps, left + COLUMNS) };
      selection.begin = Math.max(selection.begin, left);
      redraw();
    };
    ruler.addEventListener("pointermove", drawBars);
    ruler.addEventListener("pointerup", (up) => {
      ruler.removeEventListener("pointermove", drawBars);
      if (cell(up).column !== begin) return say(`Selected ${described(selection)}.`);
      from = Math.floor((begin - left) / BEAT) * BEAT;
      if (!audio.paused) audio.currentTime = from * 15 / song.tempo;
      return redraw();
    }, { once: true });
  });

  function turnTo(at) {
    const line = song.lines.findLast((one) => one <= Math.max(at, 0)) ?? 0;
    stop();
    [selection, from, left] = [null, 0, Math.min(line, lastLine())];
    redraw();
  }
  const onStrip = (event) => {
    if (event.buttons) turnTo((event.offsetX / strip.clientWidth) * song.steps - COLUMNS / 2);
  };
  strip.addEventListener("pointerdown", onStrip);
  strip.addEventListener("pointermove", onStrip);
  strip.addEventListener("keydown", (event) => {
    const bars = { ArrowLeft: -1, ArrowRight: 1, PageUp: -8, PageDown: 8 }[event.key];
    if (!bars) return;
    event.preventDefault();
    turnTo(song.lines[clamp(barOf(left) - 1 + bars, 0, song.lines.length - 1)]);
  });

  // ---- keyboard

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
    PageUp: [0, 12], PageDown: [0, -12] };

  root.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook has its own meaning for most keys
    if (event.target.matches("input")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const command = event.ctrlKey || event.metaKey;
    if (command && key === "z") (event.shiftKey ? redo : undo)();
    else if (command && key === "y") redo();
    else if (event.target !== grid || (command && !ARROWS[key])) return;
    else if (ARROWS[key]) moveCursor(event, ARROWS[key]);
    else if (key === "Enter") atCursor();
    else if (key === "Delete" || key === "Backspace") {
      const note = noteAt(cursor.column, cursor.pitch);
      if (note && cursorShown) commit(without(note));
      else if (selection) clearAll();
    } else if (key === " ") play();
    else if (key === "Escape") escape();
    else if ("des".includes(key)) setTool({ d: "draw", e: "erase", s: "select" }[key]);
    else return;
    event.preventDefault();
  });

  function escape() {
    working?.abort();
    selection = corner = null;
    redraw();
  }

  function moveCursor(event, [across, up]) {
    const note = noteAt(cursor.column, cursor.pitch);
    const by = across * (event.ctrlKey ? 16 : 1);
    if (event.shiftKey && across) {
      if (!note) return;
      length = Math.max(note.length + across, 1);
      cursor = { ...cursor, column: Math.min(cursor.column, note.start + length - 1) };
      commit(changedNote(song, taken({ ...note, length }), note));
    } else {
      cursor = { column: clamp(cursor.column + by, left, left + COLUMNS - 1),
                 pitch: clamp(cursor.pitch + up, 0, PITCHES - 1) };
      if (event.altKey && note) {
        const start = clamp(note.start + by, left, left + COLUMNS - 1);
        cursor.column = clamp(cursor.column, start, start + note.length - 1);
        commit(changedNote(song, taken({ ...note, pitch: cursor.pitch, start }), note));
      }
    }
    cursorShown = true;
    const y = yOf(cursor.pitch) + RULER;
    view.scrollTop = clamp(view.scrollTop, y + 2 * ROW - view.clientHeight, y - RULER - ROW);
    announce();
    redraw();
  }

  function atCursor() {
    cursorShown = true;
    const note = noteAt(cursor.column, cursor.pitch);
    if (tool === "select") {
      if (corner) selection = boxOf(corner, cursor);
      corner = corner ? null : { ...cursor };
      say(corner ? "One corner; move on and press Enter." : `Selected ${described(selection)}.`);
      return redraw();
    }
    if (note) commit(without(note));
    else if (tool === "draw") {
      commit(changedNote(song, { start: cursor.column, length, pitch: cursor.pitch,
        velocity: VELOCITY, by: YOU, pending: false }));
    }
    return announce();
  }

  function announce() {
    const note = noteAt(cursor.column, cursor.pitch), bar = barOf(cursor.column);
    const beat = 1 + (cursor.column - (song.lines[bar - 1] ?? 0)) / BEAT;
    say(`${nameOf(cursor.pitch)}, bar ${bar}, beat ${beat}`
      + (note ? `: ${note.by === YOU ? "your" : "the model's"} note of `
        + `${count(note.length, "sixteenth")}.` : "."));
  }

  // ---- life

  tempo.addEventListener("change", () => {
    commit({ ...song, tempo: clamp(+tempo.value || 120, 20, 400) });
  });
  matchMedia(DARK).addEventListener("change", readColors, { signal: gone.signal });
  const themes = new MutationObserver(readColors);
  themes.observe(document.body, { attributes: true });
  const sizes = new ResizeObserver(redraw);
  sizes.observe(view);
  let looked = false;
  const seen = new ResizeObserver(() => {
    if (looked || !view.clientHeight) return;
    looked = true;
    readColors();
    lookAtNotes();
  });
  seen.observe(view);
  offerDraft();
  readColors();

  /** After a restart of the kernel, or of the page: what was drawn can be had back. */
  function offerDraft() {
    try {
      const draft = JSON.parse((host.key && sessionStorage.getItem(host.key)) || "null");
      if (!draft?.notes.length || JSON.stringify(draft.notes) === JSON.stringify(song.notes.map(toRow))) return;
      bringBack.textContent = `Bring back the ${count(draft.notes.length, "note")} drawn before`;
      bringBack.hidden = false;
      bringBack.addEventListener("click", () => { open(draft); bringBack.hidden = true; });
    } catch { /* a draft that cannot be read is none */ }
  }

  function destroy() {
    gone.abort();
    for (const observer of [themes, sizes, seen]) observer.disconnect();
    audio.pause();
    root.remove();
  }

  const api = { open, destroy, grid,
    get notes() { return song.notes; }, get selection() { return selection; },
    /** Where the middle of a cell lies in the browser's window. */
    place(at, pitch) {
      const box = grid.getBoundingClientRect();
      return { x: box.left + (at - left + 0.5) * column, y: box.top + yOf(pitch) + ROW / 2 };
    } };
  root.canvas = api; // for tests and for the curious
  return api;
}

// ---------------------------------------------------------------- Jupyter: the kernel as the host

/** A host that asks the kernel, by the messages that `utils/canvas.py` answers. */
function kernelHost(model) {
  const waiting = new Map();
  let last = 0;
  model.on("msg:custom", (message, buffers) => {
    const call = waiting.get(message.id);
    if (!call) return;
    clearTimeout(call.timer);
    if (message.kind === "progress") return call.onProgress?.(message);
    if (message.kind === "started") return;
    waiting.delete(message.id);
    if (message.kind === "error") call.fail(new Error(message.text));
    else call.done({ ...message, bytes: buffers?.[0] });
  });

  function ask(what, content, { onProgress, signal, buffers = [] } = {}) {
    return new Promise((done, fail) => {
      const id = `${Date.now()}-${last += 1}`;
      const timer = setTimeout(() => onSilence(id), SILENT_MS);
      waiting.set(id, { done, fail, onProgress, timer });
      signal?.addEventListener("abort", () => {
        clearTimeout(timer);
        waiting.delete(id);
        model.send({ id, what: "stop" });
      });
      try {
        model.send({ id, what, ...content }, undefined, buffers);
      } catch {
        onSilence(id);
      }
    });
  }

  function onSilence(id) {
    waiting.get(id)?.fail(new Error("The kernel does not answer: it is busy, or was restarted. "
      + "Run the notebook's cells again; what you drew is kept."));
    waiting.delete(id);
  }

  return {
    key: `canvas of ${model.get("song").name}`,
    changed(notes) {
      model.set("notes", notes);
      model.save_changes();
    },
    generate: (request, onProgress, signal) => ask("generate", { request }, { onProgress, signal }),
    play: (notes, tempo) => ask("play", { notes, tempo }),
    save: (notes, tempo, name) => ask("save", { notes, tempo, name }),
    load: async (name, bytes) => (await ask("load", { name }, { buffers: [bytes.buffer] })).song,
  };
}

export default {
  render({ model, el }) {
    const song = { ...model.get("song"), notes: model.get("notes"), seed: model.get("seed") };
    const canvas = createCanvas(el, kernelHost(model), song);
    return () => canvas.destroy();
  },
};
