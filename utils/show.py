"""Look at piano rolls and hear them, in a notebook. Used by every notebook.

`look` draws, `listen` plays. Both put small files into the notebook, so it opens offline.
"""

import base64
import html
import inspect
import io
import itertools
import json
import re
import string
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from IPython.display import HTML, Code, Image, display
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image as PILImage

from utils import audio, pianoroll
from utils.files import MusicError, atomic
from utils.pianoroll import PianoRoll

DPI, WIDTH_INCHES = 80, 10.5
MARGIN = 3  # rows left free above and below what sounds
FEWEST_ROWS = 24  # a lone note is still shown within two octaves
PLAYER_RATE_HZ = 22_050
PLAYER_SECONDS = 60  # a longer piece is faded out: a notebook stays small
GALLERY_SECONDS = 900
# pixel values 0…255 as colours: silence near black, sustain dim, onsets bright by velocity
COLORS = ListedColormap(matplotlib.colormaps["magma"](
    np.interp(np.arange(256), [0, 64, 128, 255], [0.03, 0.45, 0.62, 1.0])), "piano roll")
ARTICLE = """<article><h2>{label}</h2>
<p>{onsets:,} notes · {seconds:.1f} s · {tempo_bpm:.0f} beats a minute</p>
<div class="scroll"><div class="roll" role="slider" tabindex="0" aria-label="Position in {label}" \
aria-valuemin="0" aria-valuemax="{seconds:.0f}" aria-valuenow="0" data-times="{times}"{style}>
<img src="{image}" alt="Piano roll of {label}"><div class="playhead"></div></div></div>
<audio controls preload="metadata" aria-label="Player for {label}" src="{sound}"></audio>
<a download="{file_name}" aria-label="Download the MIDI of {label}" href="{midi}">\
Download the MIDI</a></article>"""


def as_rolls(things: PianoRoll | np.ndarray | Sequence) -> list[PianoRoll]:
    """One piano roll or several as a list. Plain arrays, `uint8 [pitches, steps]` or `[N, pitches,
    steps]`, get the usual facts. Raises `MusicError` for other arrays."""
    if isinstance(things, PianoRoll) or (isinstance(things, np.ndarray) and things.ndim == 2):
        things = [things]
    rolls = []
    for thing in things:
        if not isinstance(thing, PianoRoll):
            thing = np.asarray(thing)
            if thing.ndim != 2 or thing.dtype != np.uint8:
                raise MusicError("look and listen take piano rolls or uint8 arrays [pitches, steps]"
                                 f", not {thing.dtype} {list(thing.shape)}; see from_planes")
            thing = PianoRoll(thing, pianoroll.LOWEST_PITCH_OF_ROWS.get(len(thing), 0))
        rolls.append(thing)
    return rolls


def one_line(text: object, longest: int = 34) -> str:
    """A text without line breaks or control characters, cut to `longest` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def active_rows(rolls: Sequence[PianoRoll]) -> tuple[int, int]:
    """The pitches (from, up to and without) that hold all that sounds, with a margin."""
    pitches = np.concatenate(
        [p.lowest_pitch + np.flatnonzero(p.pixels.any(axis=1)) for p in rolls])
    if not len(pitches):
        return 48, 72
    low, high = int(pitches.min()) - MARGIN, int(pitches.max()) + MARGIN + 1
    missing = max(FEWEST_ROWS - (high - low), 0)
    return max(low - missing // 2, 0), min(high + missing - missing // 2, 128)


# ---------------------------------------------------------------- look


def figure_of(rolls: PianoRoll | np.ndarray | Sequence,
              titles: str | Sequence[str] | None = None, columns: int = 4,
              seconds: bool = False) -> Figure:
    """Draw piano rolls side by side, `columns` in a row, all with the same pitch axis.

    Low notes are at the bottom and each C is labelled. Time runs in beats, or in seconds at the
    roll's tempo. `titles` is one text or one for each roll; without it, a roll's source.
    """
    rolls = as_rolls(rolls)
    if not rolls:
        raise MusicError("no piano rolls to look at; check the folder they should come from")
    if titles is None:
        titles = [Path(roll.source).stem for roll in rolls]
    titles = [titles] if isinstance(titles, str) else list(titles)
    columns = min(columns, len(rolls))
    rows = -(-len(rolls) // columns)
    low, high = active_rows(rolls)
    octaves = np.arange(-(-low // 12) * 12, high, 12 if high - low <= 84 else 24)
    figure = Figure(figsize=(WIDTH_INCHES, (2.2 if columns > 1 else 2.8) * rows + 0.25),
                    layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for i, (axis, roll) in enumerate(itertools.zip_longest(axes, rolls)):
        if roll is None:
            axis.set_axis_off()
            continue
        width = roll.pixels.shape[1]
        right = roll.seconds if seconds else width / roll.steps_per_beat
        factor = -(-width // int(WIDTH_INCHES / columns * 2 * DPI))  # steps that share a column:
        # the loudest of them is drawn, so no onset is lost
        pixels = np.maximum.reduceat(roll.pixels, range(0, width, factor), axis=1)
        bottom = roll.lowest_pitch - 0.5
        axis.imshow(pixels, COLORS, aspect="auto", origin="lower", vmin=0, vmax=255,
                    interpolation="nearest" if pixels.shape[1] < 200 else "antialiased",
                    extent=(0, right, bottom, bottom + len(pixels)))
        axis.set(xlim=(0, right), ylim=(low - 0.5, high - 0.5), facecolor=COLORS(0))
        axis.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
        steps = [1, 2, 5, 10] if seconds else [1, 2, 4, 8, 10]
        axis.xaxis.set_major_locator(MaxNLocator(4 if columns > 1 else 8, steps=steps))
        axis.tick_params(labelsize=8, length=2)
        axis.grid(color="white", alpha=0.13, linewidth=0.6)
        if i < len(titles) and titles[i]:
            axis.set_title(one_line(titles[i], 110 // columns), fontsize=9, parse_math=False)
        if i + columns >= len(rolls):
            axis.set_xlabel("seconds" if seconds else "beats", fontsize=8)
    return figure


def png_of(figure: Figure) -> bytes:
    """A figure as a small PNG: 64 colours are enough for piano rolls."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI)
    image = PILImage.open(raw).convert("RGB").quantize(64, dither=PILImage.Dither.NONE)
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def look(rolls: PianoRoll | np.ndarray | Sequence, titles: str | Sequence[str] | None = None,
         columns: int = 4, seconds: bool = False) -> None:
    """Show one piano roll or many in the notebook. For what the arguments mean see `figure_of`."""
    rolls = as_rolls(rolls)
    notes = ", ".join(str(int((p.pixels > pianoroll.SUSTAIN).sum())) for p in rolls)
    show_figure(figure_of(rolls, titles, columns, seconds), f"Piano rolls with {notes} notes")


def show_figure(figure: Figure, alt: str = "") -> None:
    """Show any matplotlib figure as a small PNG, once; `alt` says in words what it shows."""
    plt.close(figure)  # or the notebook would show it again, larger
    display(Image(png_of(figure), alt=alt))


def source(*things: object) -> Code:
    """The code that runs, of functions, methods or classes, as Python shows it: never a copy."""
    parts = [textwrap.dedent(inspect.getsource(thing)).rstrip() for thing in things]
    return Code("\n\n\n".join(parts) + "\n", language="python")


def denoiser_figure(widths: Sequence[int], rows: int) -> Figure:
    """The denoiser of notebook 02 at its two sizes, with `widths` channels and one block each;
    `rows` × 32 positions at the finer one. Each box says its output, channels × size."""
    fine, coarse = (widths[0], rows, 32), (widths[1], rows // 2, 16)
    boxes = [("input planes", (7, 12 * rows, 128)), ("space-to-depth", (336, rows, 32)),
             ("1×1 conv + place", fine), ("residual", fine), ("stride-2 conv", coarse),
             ("residual", coarse), ("residual", coarse), ("attention", coarse),
             ("residual", coarse), ("transposed conv", fine), ("residual", fine),
             ("attention", fine), ("1×1 conv", (144, rows, 32)),
             ("depth-to-space", (3, 12 * rows, 128))]
    colors = {"residual": "orange", "attention": "lightgreen"}
    heights = [-1 if shape == coarse else 0 for _, shape in boxes]
    figure = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
    axis = figure.subplots()
    axis.plot(heights, color="0.4", zorder=0)  # it joins the boxes, from left to right
    for x, (name, shape) in enumerate(boxes):
        words = name.replace(" ", "\n").replace("-to", "-\nto").replace("\n+\n", " +\n")
        axis.text(x, heights[x], f"{words}\n{'×'.join(map(str, shape))}", ha="center", va="center",
                  fontsize=7.5, bbox={"boxstyle": "round,pad=0.25", "edgecolor": "0.4",
                                      "facecolor": colors.get(name, "lightblue")})
    for start, end, y in ((3, 10, 0.48), (5, 8, -0.52)):  # from one residual block to another
        axis.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "->", "linestyle": "--"})
        axis.text((start + end) / 2, y + 0.05, "skip: added", ha="center", fontsize=8)
    axis.text(3, -1.1, "orange: scaled and shifted\nby noise level and labels", ha="right",
              va="center", fontsize=8)
    axis.set(xlim=(-0.6, len(boxes) - 0.4), ylim=(-1.6, 0.85))
    axis.set_axis_off()
    return figure


# ---------------------------------------------------------------- listen


def mp3_of(thing: PianoRoll | np.ndarray | str | Path, longest_s: float = PLAYER_SECONDS) -> bytes:
    """The sound of a piano roll, a MIDI or a WAV file as mono MP3 of 22.05 kHz, 3 kB a second.

    Past `longest_s` it is faded out. Raises `audio.Silence` for music without a note.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, wav_path = Path(folder, "piano roll.mid"), Path(folder, "sound.wav")
        if isinstance(thing, (str, Path)):
            path = Path(thing)
        else:
            (roll, *others) = as_rolls(thing)
            if others:
                raise MusicError("listen takes one piano roll; give one of them")
            pianoroll.to_midi(roll).write(str(path))
        if path.suffix.lower() == ".wav":
            wav_path = path
        else:
            audio.midi_to_wav(path, wav_path, sample_rate=PLAYER_RATE_HZ)
        with soundfile.SoundFile(wav_path) as wav:
            rate_hz = wav.samplerate
            sound = wav.read(int(longest_s * rate_hz) + 1, dtype="float32", always_2d=True)
    sound = sound.mean(axis=1)  # [n, channels] -> [n]
    if len(sound) > longest_s * rate_hz:
        sound[-2 * rate_hz :] *= np.linspace(1, 0, 2 * rate_hz, dtype=np.float32)
    sound, small = audio.resample(sound, rate_hz, PLAYER_RATE_HZ), io.BytesIO()
    soundfile.write(small, sound, PLAYER_RATE_HZ, format="MP3", subtype="MPEG_LAYER_III",
                    bitrate_mode="CONSTANT", compression_level=0.9)
    return small.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a text that stands in a page in place of a file's address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def listen(thing: PianoRoll | np.ndarray | str | Path, title: str = "") -> HTML:
    """A player for a piano roll, a MIDI file or a WAV file. It holds its sound as a small MP3.

    Music that is silent, or nearly so, gets a line that says it in place of a player.
    """
    label = html.escape(one_line(title, 80))
    caption = f"<figcaption>{label}</figcaption>" if label else ""
    try:
        sound = data_uri(mp3_of(thing), "audio/mpeg")
    except audio.Silence:
        return HTML(f"<figure>{caption}<em>Silence: nothing to hear.</em></figure>")
    return HTML(f'<figure style="margin:0">{caption}<audio controls preload="metadata" '
                f'aria-label="{label or "player"}" src="{sound}"></audio></figure>')


# ---------------------------------------------------------------- gallery


def seconds_and_steps(roll: PianoRoll) -> list[tuple[float, int]]:
    """Pairs (second, column) where the tempo changes, from the first column to the last."""
    last = roll.pixels.shape[1]
    changes = [(0, roll.tempo_bpm), *(c for c in roll.tempo_changes if 0 < c[0] < last)]
    pairs, second = [], 0.0
    for (step, bpm), (after, _) in itertools.pairwise([*changes, (last, 0)]):
        pairs.append((round(second, 3), step))
        second += (after - step) * 60 / bpm / roll.steps_per_beat
    return [*pairs, (round(second, 3), last)]


def pixels_of(roll: PianoRoll) -> bytes:
    """A piano roll as a colour PNG, a pixel for each step, low notes at the bottom, cropped."""
    low, high = active_rows([roll])
    low, high = max(low - roll.lowest_pitch, 0), max(high - roll.lowest_pitch, 1)
    image = PILImage.fromarray(np.ascontiguousarray(roll.pixels[low:high][::-1]), mode="P")
    image.putpalette((COLORS(np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes())
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def download_name(title: str) -> str:
    """A name for a MIDI file, of letters, digits, dots and dashes, that any system can save."""
    safe = re.sub(r"[^\w.-]+", "_", title).strip("._-")
    return f"{safe[:80] or 'piece'}.mid"


def gallery(pieces: Iterable[tuple[str, PianoRoll, str | Path, str | Path]], path: str | Path,
            title: str = "Music through pictures") -> Path:
    """Write one page that opens offline: look at each piece, hear it, download its MIDI.

    `pieces` holds title, piano roll, WAV file and MIDI file of each.
    """
    articles = []
    for name, roll, wav_path, midi_path in pieces:
        times, steps = seconds_and_steps(roll), roll.pixels.shape[1]
        articles.append(ARTICLE.format(
            label=html.escape(one_line(name, 120)), file_name=download_name(name),
            onsets=int((roll.pixels > pianoroll.SUSTAIN).sum()), seconds=times[-1][0],
            tempo_bpm=roll.tempo_bpm, times=json.dumps(times),
            style=f' style="min-width:{steps * 2}px"' if steps > 400 else "",  # it scrolls
            image=data_uri(pixels_of(roll), "image/png"),
            sound=data_uri(mp3_of(wav_path, GALLERY_SECONDS), "audio/mpeg"),
            midi=data_uri(Path(midi_path).read_bytes(), "audio/midi")))
    template = string.Template(Path(__file__).with_name("gallery.html").read_text("utf-8"))
    page = template.substitute(title=html.escape(one_line(title, 120)), pieces="\n".join(articles),
                               background=matplotlib.colors.to_hex(COLORS(0)))
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)
