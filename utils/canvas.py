"""A piano roll to draw on in a notebook, whose gaps the network fills. Explained in notebook 09.

What the browser does stands in `canvas.js`; this is the kernel's side. The two exchange messages: a
request has an `id` and says `what`; the answer has the same `id` and is of the `kind` started,
progress, done or error. Notes in them are rows of start, length, pitch and velocity.
"""

import itertools
import math
import threading
from collections.abc import Callable
from pathlib import Path

import anywidget
import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils import diffusion, harmony, pianoroll, show
from utils.diffusion import WIDTH
from utils.files import MusicError
from utils.pianoroll import DIFFUSION, PianoRoll

SAMPLING_STEPS = 25  # about a second on two cores
SHOWN_EVERY = 3  # steps from one prediction that is shown to the next
MOST_BARS = 512  # of a loaded piece; a browser still draws it at once
YOU, MODEL = 0, 1  # who wrote a note, the last number of its row
COLORS = ("#ff922b", "#4dabf7")  # of a note, by who wrote it


class Stopped(Exception):
    """Raised while a prediction is shown, to stop the sampling."""


class Canvas(anywidget.AnyWidget):
    """The canvas, a widget. `notes` holds what is drawn: rows of start, length, pitch, velocity and
    who wrote it (`YOU` or `MODEL`), in sixteenths and MIDI numbers.

    `network` is a `unet.UNet`. `midi_file`, where given, is opened. Saved files lie in `midi/drawn`
    under `run_dir`. Raises `MusicError` for a file that cannot be read or is too long.
    """

    _esm = Path(__file__).with_name("canvas.js")
    _css = Path(__file__).with_name("canvas.css")
    song = traitlets.Dict().tag(sync=True)
    notes = traitlets.List().tag(sync=True)
    seed = traitlets.Int().tag(sync=True)

    def __init__(self, network: torch.nn.Module, run_dir: str | Path, midi_file: str | Path = "",
                 seed: int = 0):
        song = load_song(midi_file) if midi_file else {"notes": [], "name": "drawn"}
        super().__init__(notes=song.pop("notes"), song=song, seed=seed)
        self.network, self.folder = network, Path(run_dir) / "midi" / "drawn"
        self.stopping, self.turn = threading.Event(), threading.Lock()
        self.on_msg(self._receive)

    @property
    def roll(self) -> PianoRoll:
        """What is on the canvas, as a piano roll of at least eight bars."""
        return piano_roll_of(self.notes, self.song.get("tempo", 120.0))

    def _receive(self, _widget: object, message: dict, buffers: list) -> None:
        """Starts what is asked for in a thread, so that the notebook stays free."""
        if message["what"] == "stop":
            self.stopping.set()
            return
        self.send({"id": message["id"], "kind": "started"})
        threading.Thread(target=self._reply, args=(message, buffers), daemon=True).start()

    def _reply(self, message: dict, buffers: list) -> None:
        """Sends the answer to one message, or what went wrong in one line."""
        data = []
        try:
            with self.turn:
                self.stopping.clear()
                answer = {"kind": "done"} | self._answer(message, buffers)
            data = [answer.pop("data")] if "data" in answer else []
        except Stopped:
            return
        except Exception as error:  # whatever it is, the reader of the canvas is told
            known = isinstance(error, MusicError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            answer = {"kind": "error", "text": show.one_line(text, 300)}
        self.send({"id": message["id"]} | answer, data)

    def _answer(self, message: dict, buffers: list) -> dict:
        """What a message asks for; `data` are bytes."""
        def show_step(**seen: object) -> None:
            if self.stopping.is_set():
                raise Stopped
            self.send({"id": message["id"], "kind": "progress", **seen})

        if message["what"] == "generate":
            return {"notes": fill(self.network, message["request"], show_step)}
        if message["what"] == "load":
            return {"song": load_bytes(message["name"], bytes(buffers[0]))}
        drawn = piano_roll_of(message["notes"], message["tempo"])
        if message["what"] == "play":
            return {"url": show.data_uri(show.mp3_of(drawn), "audio/mpeg")}
        path = save(drawn, self.folder, message["name"])
        return {"name": path.name, "where": path.as_posix(), "data": path.read_bytes()}


# ---------------------------------------------------------------- generate


def masked_region(keep: np.ndarray, selection: dict | None) -> np.ndarray:
    """What may be generated, bool `[128, 128]`: the selection, or all, without active pixels.

    `keep` is the roll of the notes that stay, uint8 `[128, 128]`; a selection has the columns
    `begin` to `end` (without) and the pitches `low` to `high` (with).
    """
    mask = np.zeros(keep.shape, bool)
    box = selection or {"begin": 0, "end": WIDTH, "low": 0, "high": DIFFUSION.pitches - 1}
    mask[max(box["low"], 0) : box["high"] + 1, max(box["begin"], 0) : max(box["end"], 0)] = True
    return mask & (keep == 0)


def fill(network: torch.nn.Module, request: dict, watch: Callable | None = None,
         sampling_steps: int = SAMPLING_STEPS) -> list[list[int]]:
    """New notes for a request of `canvas.js`, rows of start, length, pitch and velocity.

    `keep` are notes that stay, `vary` notes that are the beginning of a variation of `strength`;
    they count from the first column shown, as the `selection` does. `chords` hold from the first of
    `lines` on, the piece's bar lines; `left` is the piece's column that is shown first. `density`
    counts new notes a bar. `watch(notes=…, share=…)` sees each third step's prediction, and may
    raise. Raises `MusicError` for chords or a scale that cannot be read, or a full region.
    """
    keep, vary = window_of(request["keep"]), window_of(request["vary"])
    mask = masked_region(keep, request["selection"])
    if not mask.any():
        raise MusicError("the selection is full of notes; select some empty place too")
    lines = np.array([*request["lines"], request["lines"][-1] + 16]) - request["left"]
    chords = harmony.chords_by_bar(request["chords"], lines) if request["chords"] else []
    weights = harmony.pitch_weights(WIDTH, chords, request["scale"])  # all 1 without either
    bars = mask.any(axis=0).sum() / (np.median(np.diff(lines)) or 16)
    total = math.ceil(request["strength"] * sampling_steps)

    def follow(step: int, _x_t: torch.Tensor, x_0: torch.Tensor) -> None:
        if step % SHOWN_EVERY == 0:
            roll = pianoroll.from_planes(network.planes(x_0)[0].cpu().numpy())
            watch(notes=new_notes(roll, mask), share=(step + 1) / total)

    roll = np.where(mask, vary, keep)
    found = diffusion.generate(network, 1, sampling_steps, request["seed"] % 2**32, roll=roll,
                               mask=mask, strength=request["strength"], pitch_weights=weights,
                               onsets=request["density"] * bars,
                               callback=follow if watch else None)[0]
    return new_notes(found, mask)


def new_notes(roll: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    """The notes of a roll that begin and end where `mask` is True: both `[128, 128]`."""
    inside = np.pad(np.where(mask, roll, 0), ((0, 0), (1, 0)))  # no sustain from before the window
    inside = diffusion.without_stray_sustains(inside)[:, 1:]
    return pianoroll.notes_of(PianoRoll(inside)).tolist()


def window_of(rows: list[list[int]]) -> np.ndarray:
    """Notes as the roll that the network sees, uint8 `[128, 128]`; some may begin before it."""
    notes = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4)
    before = max(-int(notes[:, 0].min(initial=0)), 0)
    notes[:, 0] += before
    return pianoroll.roll_of(notes, DIFFUSION.pitches, before + WIDTH)[:, before:]


# ---------------------------------------------------------------- songs, sound and files


def piano_roll_of(rows: list[list[int]], tempo_bpm: float) -> PianoRoll:
    """Notes as a piano roll of whole bars, eight at least."""
    notes = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4)
    end = int((notes[:, 0] + notes[:, 1]).max(initial=WIDTH))
    return PianoRoll(pianoroll.roll_of(notes, 128, -(-end // 16) * 16), tempo_bpm=float(tempo_bpm))


def figure_of(rows: list[list[int]], title: str = "", selection: dict | None = None) -> Figure:
    """A still image of a canvas: your notes orange, the model's blue, the selection dashed."""
    figure = show.figure_of(piano_roll_of(rows, 120), title, columns=1)
    axis = figure.axes[0]
    axis.images[0].set_visible(False)
    for start, length, pitch, _, by in rows:
        axis.broken_barh([(start / 4, length / 4 - 0.04)], (pitch - 0.4, 0.8), color=COLORS[by])
    if selection:
        begin, low = selection["begin"] / 4, selection["low"] - 0.5
        axis.add_patch(Rectangle((begin, low), selection["end"] / 4 - begin,
                                 selection["high"] + 0.5 - low, fill=False, linestyle="--",
                                 edgecolor="white", linewidth=1))
        bottom, top = axis.get_ylim()
        axis.set_ylim(min(bottom, low - 1), max(top, selection["high"] + 1.5))
    return figure


def load_song(path: str | Path, data: bytes | None = None) -> dict:
    """A MIDI file as a song of `canvas.js`: its notes from the first bar line on, on the grid.

    `data` is that of `pianoroll.read_midi`. Raises `MusicError` where that does, and for a piece
    over `MOST_BARS` bars.
    """
    roll = pianoroll.read_midi(Path(path).expanduser(), data=data)
    lines = pianoroll.bar_lines_of(roll)
    if len(lines) > MOST_BARS:
        raise MusicError(f"{Path(path).name}: {len(lines):,} bars, more than the {MOST_BARS} that "
                         "the canvas takes; cut the file first")
    first, notes = int(lines[0]), pianoroll.notes_of(roll)
    notes = notes[notes[:, 0] >= first] - [first, 0, 0, 0]
    steps = max(roll.pixels.shape[1] - first, WIDTH)
    return {"notes": [[*row, YOU] for row in notes.tolist()], "steps": -(-steps // 16) * 16,
            "lines": [int(line) - first for line in lines], "tempo": roll.tempo_bpm,
            "name": Path(path).stem}


def load_bytes(name: str, data: bytes) -> dict:
    """`load_song` of a file that the browser sends. Its name is never used as a path."""
    return load_song(show.download_name(Path(name).stem), data)


def save(roll: PianoRoll, folder: Path, name: str) -> Path:
    """Write a MIDI file under a number that is free: `drawn_1.mid`, `drawn_2.mid` and so on."""
    stem = Path(show.download_name(name)).stem
    paths = (folder / f"{stem}_{number}.mid" for number in itertools.count(1))
    return pianoroll.save_midi(roll, next(path for path in paths if not path.exists()))
