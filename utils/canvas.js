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
 * The first four are asynchronous and throw an Error of one line. A note in a message is a row
 * [start, length, pitch, velocity, by], in sixteenths and MIDI numbers; `by` is 0 for yours, 1 for
 * the model's. A song is { notes, steps, lines, tempo, name }; `lines` are the columns where bars
 * begin. `onProgress({ notes, share })` shows a prediction. A request is that of `canvas.fill`; its
 * rows count from the first column that is shown.
 */

const COLUMNS = 128, PITCHES = 128, BEAT = 4; // the model sees 128 sixteenths at once
const KEYS = 54, RULER = 26, STRIP = 44; // pixels
const [ROW, NARROWEST] = matchMedia("(pointer: coarse)").matches ? [17, 7] : [12, 4]; // of a cell
const YOU = 0, MODEL = 1;
const VELOCITY = 84, USUAL_LENGTH = 4; // of a note that is drawn with one click
const SILENT_MS = 5000; // after so long without a word the kernel is busy, or gone
const LARGEST_FILE = 2 ** 21; // bytes
const DARK = "(prefers-color-scheme: dark)";
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
const begins = (note, box) => note.start >= box.begin && note.start < box.end
  && note.pitch >= box.low && note.pitch <= box.high;
const nameOf = (pitch) => `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;
const isBlack = (pitch) => [1, 3, 6, 8, 10].includes(pitch % 12);
const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

/** The song with a note in place of another; with no other, one note more. */
const withNote = (song, note, old) =>
  ({ ...song, notes: settle([...song.notes.filter((other) => other !== old), note]) });
const without = (song, gone) => ({ ...song, notes: song.notes.filter((note) => !gone(note)) });
/** What a note becomes when it is touched: no longer a proposal, and then yours. */
const taken = (note) => ({ ...note, by: note.pending ? YOU : note.by, pending: false });
/** The song without what the model proposed, and with what a variation stood in for. */
const rejected = (song) => ({ ...song, replaced: [],
  notes: settle([...song.notes.filter((note) => !note.pending), ...song.replaced]) });
const kept = (song) => ({ ...song, replaced: [],
  notes: song.notes.map((note) => (note.pending ? { ...note, pending: false } : note)) });

function songFrom(given) {
  const song = { ...EMPTY, ...given, replaced: [] };
  return { ...song, steps: Math.max(COLUMNS, song.steps), notes: settle(song.notes.map(fromRow)) };
}

// ---------------------------------------------------------------- building the page

const ICONS = { // paths on a grid of 16
  draw: "M3 13l1-3.5L11 2.5l2.5 2.5-7 7z", erase: "M2.5 10L9 3.5l4 4L8 12.5H5zM8 12.5h5.5",
  select: "M3 5V3h2M8 3h1M11 3h2v2M13 8v1M13 11v2h-2M8 13H7M5 13H3v-2M3 8V7",
  vary: "M2 6c2-4 4-4 6 0s4 4 6 0M2 11c2-4 4-4 6 0s4 4 6 0",
  undo: "M6 3L2.5 6.5 6 10M3 6.5h6.5a3.5 3.5 0 010 7H6",
  redo: "M10 3l3.5 3.5L10 10M13 6.5H6.5a3.5 3.5 0 000 7H10", play: "M4.5 2.5l8.5 5.5-8.5 5.5z",
  clear: "M3 4.5h10M6 4.5V2.5h4v2M4.5 4.5l.5 9h6l.5-9", stop: "M4 4h8v8H4z",
  generate: "M8 1.5l1.5 5L14.5 8l-5 1.5L8 14.5 6.5 9.5 1.5 8l5-1.5z",
  keep: "M2.5 8.5L6 12l7.5-8", reject: "M3.5 3.5l9 9M12.5 3.5l-9 9",
  load: "M8 11V3M4.5 6L8 2.5 11.5 6M2.5 13.5h11", save: "M8 2.5v8M4.5 7.5L8 11l3.5-3.5M2.5 13.5h11",
  dice: "M2.5 2.5h11v11h-11zM5.5 5.5h.01M10.5 5.5h.01M8 8h.01M5.5 10.5h.01M10.5 10.5h.01",
};

/** An element with properties (`aria`: attributes, `text`, `on`: listeners) and children. */
function make(tag, { aria = {}, on = {}, text, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(aria)) node.setAttribute(name, value);
  for (const [name, handler] of Object.entries(on)) node.addEventListener(name, handler);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

function icon(name) {
  const [svg, path] = ["svg", "path"].map((tag) =>
    document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button `.roll-NAME`; without words, only its icon is seen. */
function button(name, label, title, click, words = true) {
  return make("button", { type: "button", className: `roll-${name}`, title, on: { click },
    aria: { "aria-label": label } }, icon(name), ...(words ? [make("span", { text: label })] : []));
}

const field = (label, ...inputs) =>
  make("label", { className: "roll-field" }, make("span", { text: label }), ...inputs);
const group = (label, ...children) => make("div", { className: "roll-group",
  aria: { role: "group", "aria-label": label } }, ...children);

/** A slider, and its field with the value in words beside it. */
function slider(label, value, max, step, title, words) {
  const output = make("output", { text: words(value) });
  const input = make("input", { type: "range", min: 0, max, step, title, value,
    on: { input: () => { output.textContent = words(+input.value); } } });
  return [input, field(label, input, output)];
}

/** What draws on a canvas of `width` × `height` CSS pixels, sharp on every screen, and empty. */
function blank(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.lineWidth = 1.5;
  const box = (color, x, y, w, h, alpha = 1) => {
    Object.assign(context, { fillStyle: color, globalAlpha: alpha });
    context.fillRect(x, y, w, h);
    context.globalAlpha = 1;
  };
  const frame = (color, x, y, w, h, dash = []) => {
    context.strokeStyle = color;
    context.setLineDash(dash);
    context.strokeRect(x, y, w, h);
  };
  return { context, box, frame };
}

// ---------------------------------------------------------------- the canvas

export function createCanvas(el, host, given = {}) {
  let song = songFrom(given), past = [], future = [];
  let left = 0, from = 0; // the first column shown, a bar line; where Play begins, from there
  let tool = "draw", selection = null, corner = null, drag = null, ghosts = [], sound = null;
  let cursor = { column: 0, pitch: 60 }, cursorShown = false, length = USUAL_LENGTH;
  let working = null; // the AbortController of the request that runs
  let column = 9, frame = 0, looked = false;
  const gone = new AbortController(); // ends the listeners outside of `el`

  // ---- the page

  const tools = [button("draw", "Draw", "Draw, move and stretch notes (D)", () => setTool("draw")),
    button("erase", "Erase", "Erase notes (E)", () => setTool("erase")),
    button("select", "Select", "Select bars and pitches (S)", () => setTool("select"))];
  const back = button("undo", "Undo", "Undo (Ctrl+Z)", () => undo(), false);
  const again = button("redo", "Redo", "Redo (Ctrl+Shift+Z)", () => redo(), false);
  const clear = button("clear", "Clear", "Clear the selection, or all", () => clearAll(), false);
  const go = button("generate", "Generate", "Fill the selection, or all that is empty",
    () => (working ? working.abort() : generate(false)));
  const vary = button("vary", "Vary", "Vary the notes of the selection, or all",
    () => generate(true));
  const playing = button("play", "Play", "Play or stop (Space)", () => play());
  const choice = group("What the model wrote",
    button("keep", "Keep", "Keep what the model wrote", () => decide(kept(song))),
    button("reject", "Reject", "Reject what the model wrote", () => decide(rejected(song))));
  const number = (value, min, max) => make("input", { type: "number", value, min, max });
  const seed = number(given.seed ?? 0, 0, 2 ** 31 - 1), tempo = number(song.tempo, 20, 400);
  const dice = button("dice", "Dice", "Another seed, by dice",
    () => { seed.value = Math.floor(Math.random() * 100000); }, false);
  const chords = make("input", { type: "text", placeholder: "C Am F,G C", maxLength: 400,
    title: "One chord a bar; several in a bar are joined by commas" });
  const scale = make("input", { type: "text", placeholder: "D dorian", maxLength: 40,
    title: "Notes outside the scale are not generated" });
  const [density, densityField] = slider("Density", 0, 32, 1, "New notes a bar to aim at",
    (value) => (value ? `${value} a bar` : "free"));
  const [strength, strengthField] = slider("Vary by", 0.5, 1, 0.05, "How much Vary changes",
    (value) => `${Math.round(value * 100)} %`);
  const file = make("input", { type: "file", accept: ".mid,.midi,audio/midi", hidden: true,
    on: { change: () => load() } });
  const loading = button("load", "Load", "Load a MIDI file", () => file.click());
  const saving = button("save", "Save", "Save as MIDI", () => save());
  const status = make("p", { className: "roll-status", aria: { role: "status" } });
  const draftButton = make("button", { type: "button", className: "roll-draft", hidden: true });
  const progress = make("div", { className: "roll-progress" });
  const strip = make("canvas", { className: "roll-strip", tabIndex: 0,
    aria: { role: "slider", "aria-label": "Bars that are shown", "aria-valuemin": 1 } });
  const ruler = make("canvas", { className: "roll-ruler", aria: { "aria-hidden": "true" } });
  const keys = make("canvas", { className: "roll-keys", aria: { "aria-hidden": "true" } });
  const grid = make("canvas", { className: "roll-grid", tabIndex: 0, aria: {
    role: "application", "aria-label": "Piano roll. Arrows move the cursor, Enter draws or erases, "
      + "Shift with left or right changes a note's length, Alt with arrows moves it." } });
  const playhead = make("div", { className: "roll-playhead", hidden: true });
  const view = make("div", { className: "roll-view" }, make("div", { className: "roll-corner" }),
    ruler, keys, make("div", { className: "roll-sheet" }, grid, playhead));
  const legend = make("div", { className: "roll-legend" }, make("span", { text: "yours" }),
    make("span", { text: "the model's", className: "roll-by-model" }),
    make("span", { text: "proposed", className: "roll-new" }));
  const root = make("div", { className: "roll-root", aria: { "data-lm-suppress-shortcuts": "" } },
    make("div", { className: "roll-bar" }, group("Tools", ...tools),
      group("History", back, again, clear), group("Model", go, vary), group("Sound", playing),
      group("Files", loading, saving)),
    make("div", { className: "roll-bar roll-settings" }, field("Seed", seed), dice,
      field("Chords", chords), field("Scale", scale), densityField, strengthField,
      field("Tempo", tempo), file),
    strip, view, progress,
    make("div", { className: "roll-foot" }, status, draftButton, choice, legend));
  el.append(root);

  // ---- state and history

  /** Takes a new state of the song; the old one can be had back. */
  function commit(next) {
    past = [...past, song].slice(-200);
    future = [];
    show(next);
  }

  function turnBack(here, there) {
    if (!here.length) return;
    there.push(song);
    show(here.pop());
  }
  const undo = () => turnBack(past, future), redo = () => turnBack(future, past);

  function show(next) {
    drag = null;
    if (next.tempo !== song.tempo) tempo.value = Math.round(next.tempo * 10) / 10;
    song = next;
    left = Math.min(left, lastLine());
    const notes = song.notes.map(toRow);
    host.changed?.(notes);
    try {
      if (host.key) sessionStorage.setItem(host.key, JSON.stringify({ ...song, notes }));
    } catch { /* no room, or not allowed: there is no draft then */ }
    redraw();
  }

  const lastLine = () => song.lines.find((line) => line + COLUMNS >= song.steps) ?? 0;
  const isShown = (note) => note.start < left + COLUMNS && end(note) > left;
  const whole = () => ({ begin: left, end: left + COLUMNS, low: 0, high: PITCHES - 1 });
  const noteAt = ({ column: at, pitch }) =>
    song.notes.findLast((note) => note.pitch === pitch && note.start <= at && at < end(note));
  const barOf = (at) => song.lines.findLastIndex((line) => line <= at) + 1;

  function say(text, isError = false) {
    status.textContent = text;
    status.classList.toggle("roll-error", isError);
  }

  function select(box) {
    selection = box;
    say(box ? `Selected bars ${barOf(box.begin)} to ${barOf(box.end - 1)}, ${nameOf(box.low)} to `
      + `${nameOf(box.high)}.` : "");
    redraw();
  }

  function setTool(name) {
    [tool, corner] = [name, null];
    redraw();
  }

  function decide(next) {
    commit(next);
    say(`${count(next.notes.length, "note")}.`);
  }

  function clearAll() {
    commit(without(song, (note) => !selection || begins(note, selection)));
  }

  // ---- the model

  /** Asks the host for new notes; they are shown as a proposal, to keep or to reject. */
  async function generate(varies) {
    const at = left, box = selection ?? whole();
    const inside = varies
      ? song.notes.filter((note) => begins(note, box) && end(note) <= box.end) : [];
    if (varies && !inside.length) {
      return say("There are no notes to vary here: draw some, or generate first.", true);
    }
    const ofModel = inside.filter((note) => note.by === MODEL);
    const varied = new Set(ofModel.length ? ofModel : inside);
    const others = () => (varies ? without(song, (note) => varied.has(note)) : rejected(song));
    const shift = (note, by) => ({ ...note, start: note.start + by });
    const relative = (notes) => notes.map((note) => toRow(shift(note, -at)));
    const absolute = (rows) => rows.map((row) =>
      ({ ...shift(fromRow(row), at), by: MODEL, pending: true }));
    const request = { keep: relative(others().notes.filter(isShown)), vary: relative([...varied]),
      left, lines: song.lines, seed: +seed.value || 0, chords: chords.value.trim(),
      scale: scale.value.trim(), density: +density.value, strength: varies ? +strength.value : 1,
      selection: selection && { ...box, begin: box.begin - at, end: box.end - at } };
    const answer = await work(varies ? "Varying …" : "Generating …", (signal) =>
      host.generate(request, ({ notes, share }) => {
        if (signal.aborted) return;
        ghosts = absolute(notes);
        progress.style.width = `${100 * share}%`;
        redraw();
      }, signal));
    ghosts = [];
    if (!answer) return undefined;
    const base = others(); // of now: what was drawn in the meantime stays
    const added = absolute(answer.notes).filter((n) => !base.notes.some((o) => overlap(n, o)));
    const replaced = varies ? [...song.replaced, ...[...varied].filter((n) => !n.pending)] : [];
    commit({ ...base, replaced, notes: settle([...base.notes, ...added]) });
    return say(added.length ? `${count(added.length, "new note")}: keep or reject.`
      : "The model chose silence here; try another seed, or a higher density.");
  }

  /** Runs one request; returns its answer. Where it failed, nothing, and one line says why. */
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

  const audio = make("audio", { on: { ended: () => stop() } });
  const secondsOf = (at) => at * 15 / song.tempo; // a sixteenth lasts 15 / tempo seconds

  async function play() {
    if (!audio.paused) return stop();
    const rows = song.notes.filter(isShown).map((note) => {
      const start = Math.max(note.start - left, 0);
      return toRow({ ...note, start, length: Math.min(end(note) - left, COLUMNS) - start });
    });
    if (!rows.length) return say("There is nothing to hear yet: draw a note.", true);
    const what = JSON.stringify([rows, song.tempo]);
    if (sound?.what !== what) {
      const answer = await work("Rendering the sound …", () => host.play(rows, song.tempo));
      if (!answer) return undefined;
      sound = { what };
      audio.src = answer.url;
    }
    try {
      audio.currentTime = secondsOf(from);
      await audio.play();
    } catch (error) {
      return say(`The browser cannot play the sound (${error.message}).`, true);
    }
    redraw();
    return follow();
  }

  function follow() {
    if (audio.paused) return;
    movePlayhead(audio.currentTime / secondsOf(1));
    requestAnimationFrame(follow);
  }

  function movePlayhead(at) {
    playhead.hidden = !at || at > COLUMNS;
    playhead.style.transform = `translateX(${at * column}px)`;
  }

  function stop() {
    audio.pause();
    redraw();
  }

  async function save() {
    const rows = song.notes.map(toRow);
    const saved = await work("Saving …", () => host.save(rows, song.tempo, song.name));
    if (!saved) return;
    const url = URL.createObjectURL(new Blob([saved.bytes], { type: "audio/midi" }));
    make("a", { href: url, download: saved.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    say(`Saved ${count(rows.length, "note")}${saved.where ? ` to ${saved.where}` : ""}.`);
  }

  async function load() {
    const [chosen] = file.files;
    if (!chosen) return;
    const loaded = await work("Loading …", async () => {
      if (chosen.size > LARGEST_FILE) {
        throw new Error(`${chosen.name}: over 2 MB, more than a piece needs; choose another file.`);
      }
      return host.load(chosen.name, new Uint8Array(await chosen.arrayBuffer()));
    });
    file.value = "";
    if (loaded) open(loaded);
  }

  function open(loaded) {
    [selection, left, from] = [null, 0, 0];
    commit(songFrom(loaded));
    lookAtNotes();
    say(`${song.name}: ${count(song.notes.length, "note")}, ${count(song.lines.length, "bar")}.`);
  }

  // ---- drawing the canvas

  const styles = getComputedStyle(root);
  const color = (name) => styles.getPropertyValue(`--roll-${name}`).trim();
  const colorsOf = () => [color("you"), color("model")]; // by who wrote the note
  const yOf = (pitch) => (PITCHES - 1 - pitch) * ROW;
  const barsShown = () => song.lines.filter((line) => line >= left && line < left + COLUMNS);

  function redraw() {
    frame ||= requestAnimationFrame(() => { frame = 0; drawAll(); });
  }

  function setTheme() {
    const { jpThemeLight, vscodeThemeKind } = document.body.dataset;
    const theme = jpThemeLight ? jpThemeLight === "false" : vscodeThemeKind?.includes("dark");
    root.classList.toggle("roll-dark", theme ?? matchMedia(DARK).matches);
    redraw();
  }

  function drawAll() {
    column = Math.max(NARROWEST, (view.clientWidth - KEYS) / COLUMNS);
    const label = (node, text) => {
      node.lastChild.textContent = text;
      node.setAttribute("aria-label", text);
    };
    for (const node of tools) {
      node.setAttribute("aria-pressed", node.classList.contains(`roll-${tool}`));
    }
    for (const node of [vary, saving, loading, playing]) node.disabled = Boolean(working);
    [back.disabled, again.disabled] = [!past.length, !future.length];
    choice.hidden = !song.replaced.length && !song.notes.some((note) => note.pending);
    label(go, working ? "Stop" : "Generate");
    label(playing, audio.paused ? "Play" : "Stop");
    playing.firstChild.replaceWith(icon(audio.paused ? "play" : "stop"));
    if (audio.paused) movePlayhead(from);
    grid.dataset.tool = tool;
    drawStrip();
    drawRuler();
    drawKeys();
    drawGrid();
  }

  function drawRuler() {
    const { context, box } = blank(ruler, column * COLUMNS, RULER);
    context.font = "600 11px system-ui, sans-serif";
    for (let at = 0; at < COLUMNS; at += BEAT) box(color("beat"), at * column, RULER - 5, 1, 5);
    for (const line of barsShown()) {
      box(color("bar"), (line - left) * column, 6, 1, RULER - 6);
      context.fillStyle = color("ink");
      context.fillText(barOf(line), (line - left) * column + 5, 16);
    }
    if (!selection) return;
    const wide = (selection.end - selection.begin) * column;
    box(color("accent"), (selection.begin - left) * column, RULER - 3, wide, 3);
  }

  function drawKeys() {
    const { context, box } = blank(keys, KEYS, ROW * PITCHES);
    context.font = "10px system-ui, sans-serif";
    box(color("white-key"), 0, 0, KEYS, ROW * PITCHES);
    for (let pitch = 0; pitch < PITCHES; pitch += 1) {
      const y = yOf(pitch);
      if ([0, 5].includes(pitch % 12)) box(color("bar"), 0, y + ROW - 1, KEYS, 1);
      if (isBlack(pitch)) {
        box(color("bar"), 0, y + ROW / 2 - 0.5, KEYS, 1);
        box(color("black-key"), 0, y + 0.5, KEYS * 0.58, ROW - 1);
      } else if (pitch % 12 === 0) {
        context.fillStyle = color("key-name");
        context.fillText(nameOf(pitch), KEYS - 22, y + ROW - 2.5);
      }
    }
    if (cursorShown) box(color("accent"), KEYS - 4, yOf(cursor.pitch), 4, ROW);
  }

  function drawGrid() {
    const width = column * COLUMNS, height = ROW * PITCHES;
    const { context, box, frame: outline } = blank(grid, width, height);
    box(color("paper"), 0, 0, width, height);
    for (let pitch = 0; pitch < PITCHES; pitch += 1) {
      if (isBlack(pitch)) box(color("black-row"), 0, yOf(pitch), width, ROW);
      if (pitch % 12 === 0) box(color("beat"), 0, yOf(pitch) + ROW - 1, width, 1);
    }
    for (let at = 1; at < COLUMNS; at += column > 8 ? 1 : BEAT) {
      const x = Math.round((column > 8 ? at : at + 3) * column);
      box(color(column > 8 && at % BEAT ? "line" : "beat"), x, 0, 1, height);
    }
    for (const line of barsShown()) {
      box(color("bar"), Math.round((line - left) * column), 0, 1, height);
    }
    const colors = colorsOf();
    for (const ghost of ghosts) drawNote(context, ghost, colors, 0.4);
    for (const note of song.notes) if (isShown(note)) drawNote(context, note, colors, 1);
    const area = drag?.box ?? selection;
    if (area) {
      const [x, w] = [(area.begin - left) * column, (area.end - area.begin) * column];
      const [y, h] = [yOf(area.high), (area.high - area.low + 1) * ROW];
      box(color("accent"), x, y, w, h, 0.1);
      outline(color("accent"), x + 1, y + 1, w - 2, h - 2, [5, 4]);
    }
    if (cursorShown) {
      outline(color("ink"), (cursor.column - left) * column - 1, yOf(cursor.pitch) - 1,
        Math.max(column, 6) + 2, ROW + 2);
    }
  }

  /** A note: loud ones stronger, proposed ones outlined, the onset as a full bar. */
  function drawNote(context, note, colors, alpha) {
    const begin = Math.max(note.start - left, 0), until = Math.min(end(note) - left, COLUMNS);
    const [x, y, w] = [begin * column + 0.5, yOf(note.pitch) + 1, (until - begin) * column - 1.5];
    context.beginPath();
    context.roundRect(x, y, Math.max(w, 2), ROW - 2, Math.min(3, w / 2));
    context.fillStyle = context.strokeStyle = colors[note.by];
    context.globalAlpha = alpha * (note.pending ? 0.45 : 0.55 + 0.45 * note.velocity / 127);
    context.fill();
    context.globalAlpha = alpha;
    if (note.pending && alpha === 1) context.stroke();
    if (note.start >= left) context.fillRect(x, y + 1, Math.min(2.5, w), ROW - 4);
    context.globalAlpha = 1;
  }

  function drawStrip() {
    strip.hidden = song.steps <= COLUMNS;
    if (strip.hidden) return;
    const width = view.clientWidth, scaled = width / song.steps, colors = colorsOf();
    const { box, frame: outline } = blank(strip, width, STRIP);
    const low = song.notes[0]?.pitch ?? 48, range = (song.notes.at(-1)?.pitch ?? 72) - low + 8;
    for (const note of song.notes) { // they are ordered by pitch
      box(colors[note.by], note.start * scaled, STRIP * (1 - (note.pitch - low + 4) / range),
        Math.max(note.length * scaled, 1), 1.5);
    }
    box(color("accent"), left * scaled, 0, COLUMNS * scaled, STRIP, 0.14);
    outline(color("accent"), left * scaled + 1, 1, COLUMNS * scaled - 2, STRIP - 2);
    const bar = barOf(left);
    strip.setAttribute("aria-valuemax", barOf(lastLine()));
    strip.setAttribute("aria-valuenow", bar);
    strip.setAttribute("aria-valuetext", `bars ${bar} to ${bar + barsShown().length - 1}`);
  }

  /** Scrolls to the middle of the notes that are shown, or to the middle of the piano. */
  function lookAtNotes() {
    const pitches = song.notes.filter(isShown).map((note) => note.pitch);
    const middle = pitches.length ? (pitches[0] + pitches.at(-1)) / 2 : 62;
    view.scrollTop = yOf(middle) + RULER - view.clientHeight / 2;
  }

  // ---- mouse, pen and touch

  function cell(event) {
    const box = grid.getBoundingClientRect(), x = (event.clientX - box.left) / column;
    return { x: x + left, column: left + clamp(Math.floor(x), 0, COLUMNS - 1),
      pitch: clamp(PITCHES - 1 - Math.floor((event.clientY - box.top) / ROW), 0, PITCHES - 1) };
  }

  const nearEnd = (note, x) => end(note) - x < Math.min(note.length * 0.35, 8 / column + 0.3);

  grid.addEventListener("pointerdown", (event) => {
    if (event.button === 1) return;
    if (drag) {
      if (event.pointerType === "touch") beginPan(event);
      return;
    }
    grid.setPointerCapture(event.pointerId);
    grid.focus({ preventScroll: true });
    cursorShown = false;
    const at = cell(event), note = noteAt(at);
    const kind = event.button === 2 ? "erase" : tool !== "draw" ? tool
      : !note ? "draw" : nearEnd(note, at.x) ? "stretch" : "move";
    drag = { kind, at, note, song, moved: false, pointer: event.pointerId };
    if (kind === "draw") {
      drag.note = fromRow([at.column, 1, at.pitch, VELOCITY]);
      song = withNote(song, drag.note);
    } else if (kind === "erase") song = without(song, (other) => other === note);
    redraw();
  });

  grid.addEventListener("pointermove", (event) => {
    const at = cell(event);
    if (!drag) {
      const note = tool === "draw" && noteAt(at);
      grid.style.cursor = note ? (nearEnd(note, at.x) ? "ew-resize" : "grab") : "";
    } else if (event.pointerId === drag.pointer) {
      if (drag.kind === "pan") pan(event);
      else dragTo(at);
    }
  });

  /** A second finger takes back what the first one began, and moves the roll. */
  function beginPan({ pointerId, clientX, clientY }) {
    song = drag.song;
    drag = { kind: "pan", song, pointer: pointerId, x: clientX, y: clientY };
    redraw();
  }

  function pan({ clientX, clientY }) {
    view.scrollBy(drag.x - clientX, drag.y - clientY);
    [drag.x, drag.y] = [clientX, clientY];
  }

  function dragTo(at) {
    const { kind, note, song: base } = drag, by = at.column - drag.at.column;
    drag.moved ||= by !== 0 || at.pitch !== drag.at.pitch;
    if (!drag.moved) return;
    if (kind === "erase") {
      const hit = noteAt(at);
      song = without(song, (other) => other === hit);
    } else if (kind === "select") {
      drag.box = boxOf(drag.at, at);
    } else if (kind === "move") {
      const start = clamp(note.start + by, left, left + COLUMNS - 1);
      const pitch = clamp(note.pitch + at.pitch - drag.at.pitch, 0, PITCHES - 1);
      song = withNote(base, taken({ ...note, pitch, start }), note);
    } else {
      length = Math.max(kind === "draw" ? by + 1 : note.length + by, 1);
      song = withNote(base, taken({ ...note, length }), note);
    }
    redraw();
  }

  grid.addEventListener("pointerup", () => {
    if (!drag) return;
    const { kind, moved, song: base, box, note } = drag;
    drag = null;
    cursor = { column: note?.start ?? cursor.column, pitch: note?.pitch ?? cursor.pitch };
    if (kind === "select") select(box ?? null); // a click takes the selection away
    if (kind === "draw" && !moved) song = drawn(base, note);
    const after = song;
    song = base;
    if (after.notes.length !== base.notes.length || (moved && after !== base)) commit(after);
    redraw();
  });

  /** The song with a new note of the last length, or as long as there is room. */
  function drawn(base, { start, pitch }) {
    const next = base.notes.find((note) => note.pitch === pitch && note.start > start);
    const room = Math.min(next?.start ?? Infinity, left + COLUMNS) - start;
    return withNote(base, fromRow([start, Math.min(length, room), pitch, VELOCITY]));
  }

  grid.addEventListener("pointercancel", () => {
    if (drag) song = drag.song;
    drag = null;
    redraw();
  });
  grid.addEventListener("contextmenu", (event) => {
    event.preventDefault(); // the right button erases
    event.stopPropagation();
  });

  /** The rectangle of two cells, in whole beats. */
  function boxOf(a, b) {
    const columns = [a.column, b.column].sort((one, other) => one - other);
    const beat = (at) => left + Math.floor((at - left) / BEAT) * BEAT;
    return { begin: beat(columns[0]), end: beat(columns[1]) + BEAT,
      low: Math.min(a.pitch, b.pitch), high: Math.max(a.pitch, b.pitch) };
  }

  /** On the ruler a click says where Play begins, and dragging selects whole bars. */
  ruler.addEventListener("pointerdown", (event) => {
    ruler.setPointerCapture(event.pointerId);
    const first = cell(event).column, lines = [...song.lines, song.steps];
    const ends = new AbortController(), { signal } = ends;
    ruler.addEventListener("pointermove", (move) => {
      const [low, high] = [first, cell(move).column].sort((a, b) => a - b);
      if (low === high) return;
      const begin = Math.max(lines.findLast((line) => line <= low) ?? left, left);
      const until = lines.find((line) => line > high) ?? song.steps;
      select({ ...whole(), begin, end: Math.min(until, left + COLUMNS) });
    }, { signal });
    ruler.addEventListener("pointercancel", () => ends.abort(), { signal });
    ruler.addEventListener("pointerup", (up) => {
      ends.abort();
      if (cell(up).column !== first) return;
      from = Math.floor((first - left) / BEAT) * BEAT;
      if (!audio.paused) audio.currentTime = secondsOf(from);
      redraw();
    }, { signal });
  });

  function turnTo(at) {
    const line = song.lines.findLast((one) => one <= Math.max(at, 0)) ?? 0;
    stop();
    [selection, from, left] = [null, 0, Math.min(line, lastLine())];
    cursor = { ...cursor, column: left };
    redraw();
  }
  for (const kind of ["pointerdown", "pointermove"]) {
    strip.addEventListener(kind, (event) => {
      if (!event.buttons) return;
      strip.setPointerCapture(event.pointerId);
      turnTo((event.offsetX / strip.clientWidth) * song.steps - COLUMNS / 2);
    });
  }
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
    if (command && (key === "y" || (key === "z" && event.shiftKey))) redo();
    else if (command && key === "z") undo();
    else if (event.target !== grid || (command && !ARROWS[key])) return;
    else if (ARROWS[key]) moveCursor(event, ...ARROWS[key]);
    else if (key === "Enter") enter();
    else if (key === "Delete" || key === "Backspace") {
      if (selection) clearAll();
      else commit(without(song, (note) => note === noteAt(cursor)));
    } else if (key === " ") play();
    else if (key === "Escape") {
      working?.abort();
      select(corner = null);
    } else if ("des".includes(key)) setTool({ d: "draw", e: "erase", s: "select" }[key]);
    else return;
    event.preventDefault();
  });

  function moveCursor({ shiftKey, altKey, ctrlKey }, across, up) {
    const note = noteAt(cursor), by = across * (ctrlKey ? 16 : 1);
    if (shiftKey && across && note) {
      length = Math.max(note.length + across, 1);
      cursor.column = Math.min(cursor.column, note.start + length - 1);
      commit(withNote(song, taken({ ...note, length }), note));
    } else if (!shiftKey) {
      cursor = { column: clamp(cursor.column + by, left, left + COLUMNS - 1),
        pitch: clamp(cursor.pitch + up, 0, PITCHES - 1) };
      if (altKey && note) {
        const start = clamp(note.start + by, left, left + COLUMNS - 1);
        cursor.column = clamp(cursor.column, start, start + note.length - 1);
        commit(withNote(song, taken({ ...note, pitch: cursor.pitch, start }), note));
      }
    }
    const y = yOf(cursor.pitch) + RULER;
    view.scrollTop = clamp(view.scrollTop, y + 2 * ROW - view.clientHeight, y - RULER - ROW);
    announce();
  }

  function enter() {
    const note = noteAt(cursor);
    if (tool === "select") {
      [corner, selection] = corner ? [null, boxOf(corner, cursor)] : [{ ...cursor }, null];
      cursorShown = true;
      if (selection) select(selection);
      else say("One corner; move on and press Enter.");
      return;
    }
    if (note) commit(without(song, (other) => other === note));
    else if (tool === "draw") {
      commit(drawn(song, { start: cursor.column, pitch: cursor.pitch }));
    }
    announce();
  }

  /** Says in words where the cursor is, for a screen reader too. */
  function announce() {
    const note = noteAt(cursor), bar = barOf(cursor.column);
    const beat = 1 + (cursor.column - (song.lines[bar - 1] ?? 0)) / BEAT;
    const what = note && `${note.by === YOU ? "your" : "the model's"} note of `
      + count(note.length, "sixteenth");
    say(`${nameOf(cursor.pitch)}, bar ${bar}, beat ${beat}${what ? `: ${what}` : ""}.`);
    cursorShown = true;
    redraw();
  }

  // ---- life

  /** After a restart of the kernel, or of the page: what was drawn can be had back. */
  function offerDraft() {
    try {
      const draft = JSON.parse((host.key && sessionStorage.getItem(host.key)) || "null");
      const same = JSON.stringify(draft?.notes) === JSON.stringify(song.notes.map(toRow));
      if (!draft?.notes.length || same) return;
      draftButton.textContent = `Bring back the ${count(draft.notes.length, "note")} drawn before`;
      draftButton.hidden = false;
      draftButton.addEventListener("click", () => { open(draft); draftButton.hidden = true; });
    } catch { /* a draft that cannot be read is none */ }
  }

  tempo.addEventListener("change", () => {
    commit({ ...song, tempo: clamp(+tempo.value || 120, 20, 400) });
  });
  matchMedia(DARK).addEventListener("change", setTheme, { signal: gone.signal });
  const themes = new MutationObserver(setTheme);
  themes.observe(document.body, { attributes: true });
  const sizes = new ResizeObserver(() => {
    if (!looked && view.clientHeight) drawAll(), lookAtNotes(), looked = true;
    redraw();
  });
  sizes.observe(view);
  setTheme();
  offerDraft();

  function destroy() {
    gone.abort();
    themes.disconnect();
    sizes.disconnect();
    audio.pause();
    root.remove();
  }

  /** Where the middle of a cell lies in the browser's window. */
  function place(at, pitch) {
    const box = grid.getBoundingClientRect();
    return { x: box.left + (at - left + 0.5) * column, y: box.top + yOf(pitch) + ROW / 2 };
  }

  root.canvas = { open, destroy, place, grid, get notes() { return song.notes; },
    get selection() { return selection; } };
  return root.canvas;
}

// ---------------------------------------------------------------- Jupyter: the kernel as the host

/** A host that asks the kernel, by the messages that `utils/canvas.py` answers. */
function kernelHost(model) {
  const waiting = new Map();
  const tried = (act) => { // after a restart of the kernel nothing can be sent
    try {
      act();
      return true;
    } catch {
      return false;
    }
  };

  model.on("msg:custom", (message, buffers) => {
    const call = waiting.get(message.id);
    clearTimeout(call?.timer); // it is alive
    if (message.kind === "progress") call?.onProgress?.(message);
    if (message.kind === "error") call?.fail(new Error(message.text));
    if (message.kind === "done") call?.done({ ...message, bytes: buffers?.[0] });
    if (["error", "done"].includes(message.kind)) waiting.delete(message.id);
  });

  function ask(what, content, { onProgress, signal, buffers = [] } = {}) {
    const id = `${Date.now()}-${Math.random()}`;
    return new Promise((done, fail) => {
      const giveUp = () => fail(new Error("The kernel does not answer: it is busy, or was "
        + "restarted. Run the notebook's cells again; what you drew is kept."));
      waiting.set(id, { done, fail, onProgress, timer: setTimeout(giveUp, SILENT_MS) });
      signal?.addEventListener("abort", () => tried(() => model.send({ id, what: "stop" })));
      if (!tried(() => model.send({ id, what, ...content }, undefined, buffers))) giveUp();
    });
  }

  return {
    key: `canvas of ${model.get("song").name}`,
    changed(notes) {
      model.set("notes", notes);
      tried(() => model.save_changes());
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
