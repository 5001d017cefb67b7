"""The one format that everything passes: MIDI ↔ piano roll ↔ PNG. Explained in notebooks 01 and 05.

A piano roll is a `uint8` array `[pitches, steps]`. Row 0 is the lowest pitch, a column is one step
of the beat grid. A pixel is 0 for silence, 64 for a sustain, 128 + velocity for an onset.
"""

import io
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pretty_midi
import symusic
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils import bars
from utils.files import MusicError, atomic, printable

SILENCE, SUSTAIN, ONSET = 0, 64, 128
VELOCITY_UNKNOWN = 64  # of a sustain without an onset: the note began before the image
VELOCITY_BLACK_AND_WHITE = 100  # black-and-white images hold no loudness
MAX_STEPS = 2**19  # 18 hours of sixteenths at 120 bpm; longer files are damaged
MAX_TRACKS = 4096
MAX_BYTES = 2**23  # of a MIDI file; more is no piece of music
LATE = 2**27  # ticks, more than any piece has
FACTS = ("lowest_pitch", "steps_per_beat", "tempo_bpm", "source", "start_step")  # in a PNG
LOWEST_PITCH_OF_ROWS = {128: 0, 106: 21}  # for images that carry no facts of their own
PLANE_ACTIVE, PLANE_ONSET = 0.5, 0.25  # thresholds of `from_planes`


@dataclass(frozen=True)
class Preset:
    """The size of image that a model learns: rows from `lowest_pitch` up, columns."""

    name: str
    pitches: int
    steps: int
    lowest_pitch: int


DIFFUSION = Preset("diffusion", 128, 128, 0)
GAN = Preset("gan", 106, 300, 21)
PRESETS = {preset.name: preset for preset in (DIFFUSION, GAN)}


@dataclass(frozen=True, eq=False)
class PianoRoll:
    """A piano roll and its facts.

    `pixels` is the roll, `tempo_bpm` the tempo at its first column, `start_step` where that column
    lies in `source` (negative where a window begins before it). A whole file also has
    `tempo_changes`, (step, bpm), and `signatures`, (step, numerator, denominator).
    """

    pixels: np.ndarray
    lowest_pitch: int = 0
    steps_per_beat: int = 4
    tempo_bpm: float = 120.0
    source: str = ""
    start_step: int = 0
    tempo_changes: tuple[tuple[int, float], ...] = ()
    signatures: tuple[tuple[int, int, int], ...] = ()

    @property
    def seconds(self) -> float:
        """How long it lasts, in seconds, at its first tempo."""
        return self.pixels.shape[1] / self.steps_per_beat * 60 / self.tempo_bpm


# ---------------------------------------------------------------- notes ↔ piano roll


def without_overlaps(notes: np.ndarray) -> np.ndarray:
    """One note per pitch and step: the louder onset stays, and a new onset ends the note before.

    `notes` is int `[N, 4]`: start, length (1 or more), pitch, velocity, in steps and MIDI numbers.
    Returns the same, int32, ordered by pitch and start.
    """
    start, length, pitch, velocity = np.asarray(notes, dtype=np.int64).reshape(-1, 4).T
    order = np.lexsort((length, velocity, start, pitch))  # by pitch and start, the loudest last
    start, length, pitch, velocity = (part[order] for part in (start, length, pitch, velocity))
    following = np.full(len(start), MAX_STEPS)  # how many steps later the next note begins
    following[:-1] = np.where(np.diff(pitch) == 0, np.diff(start), MAX_STEPS)
    notes = np.stack([start, np.minimum(length, following), pitch, velocity], axis=1)
    return notes[following > 0].astype(np.int32)


def roll_of(notes: np.ndarray, pitches: int, steps: int, lowest_pitch: int = 0) -> np.ndarray:
    """Notes `[N, 4]` as a piano roll, `uint8 [pitches, steps]`. What lies outside is left out."""
    start, length, pitch, velocity = without_overlaps(notes).T
    row = pitch - lowest_pitch
    inside = (row >= 0) & (row < pitches) & (start < steps)
    onset = (row * steps + start)[inside]  # of each note, the number of its first pixel
    length = np.minimum(length, steps - start)[inside]
    before = np.cumsum(length, dtype=np.int32) - length  # pixels of the notes before it
    roll = np.zeros(pitches * steps, dtype=np.uint8)
    roll[np.repeat(onset - before, length) + np.arange(length.sum(), dtype=np.int32)] = SUSTAIN
    roll[onset] = ONSET + velocity[inside]
    return roll.reshape(pitches, steps)


def snap(gray: np.ndarray) -> np.ndarray:
    """Any gray image as a piano roll: below 32 silence, from 97 on an onset, else a sustain."""
    gray = np.asarray(gray)
    active = np.where(gray < 97, SUSTAIN, np.maximum(gray, ONSET + 1))
    return np.where(gray < 32, SILENCE, active).astype(np.uint8)


def notes_of(roll: PianoRoll) -> np.ndarray:
    """The notes in a piano roll, int32 `[N, 4]`: start, length, pitch, velocity; by pitch and
    start. A sustain without an onset is a note of velocity 64."""
    pixels = np.asarray(roll.pixels)
    active = np.flatnonzero(pixels >= 32)  # few pixels are
    row, step = np.divmod(active, pixels.shape[1])
    pixel = snap(pixels.ravel()[active])
    follows = (np.diff(active, prepend=-2) == 1) & (step > 0)  # the pixel to the left is active
    first = np.flatnonzero((pixel > SUSTAIN) | ~follows)  # of each note
    length = np.diff(first, append=len(active))
    velocity = np.where(pixel > SUSTAIN, pixel.astype(np.int32) - ONSET, VELOCITY_UNKNOWN)
    return np.stack([step[first], length, row[first] + roll.lowest_pitch, velocity[first]],
                    axis=1).astype(np.int32)


# ---------------------------------------------------------------- MIDI → piano roll


def read_midi(path: str | Path, steps_per_beat: int = 4, data: bytes | None = None) -> PianoRoll:
    """A whole MIDI file as a piano roll of 128 rows, on the file's own beat grid, without drums.

    `data` are its bytes where it is no file of its own, as in `load_png`. Raises `MusicError` with
    the reason for a file that is not MIDI, is damaged, or has no notes.
    """
    score = open_midi(path, data)
    per_step = score.ticks_per_quarter / steps_per_beat
    start, end, pitch, velocity = notes_in_ticks(score).T
    start, end = (np.floor(tick / per_step + 0.5).astype(np.int64) for tick in (start, end))
    if start.min() < 0 or start.max() >= MAX_STEPS:
        raise MusicError(f"{path}: damaged (a note lies past {MAX_STEPS // steps_per_beat:,} "
                         "beats); leave it out")
    length = np.maximum(np.minimum(end, MAX_STEPS) - start, 1)
    notes = np.stack([start, length, pitch, velocity], axis=1)
    tempos = {int(np.floor(tempo.time / per_step + 0.5)): 60e6 / tempo.mspq  # a step's last one
              for tempo in sorted(score.tempos, key=lambda tempo: tempo.time)
              if 60_000 <= tempo.mspq <= 15_000_000}  # 4 to 1,000 beats a minute
    signatures = sorted((round(sign.time / per_step), sign.numerator, sign.denominator)
                        for sign in score.time_signatures)
    return PianoRoll(roll_of(notes, 128, int((start + length).max())), 0, steps_per_beat,
                     tempos.pop(0, 120.0), printable(Path(path).name), 0, tuple(tempos.items()),
                     tuple(signatures))


def open_midi(path: str | Path, data: bytes | None = None) -> symusic.Score:
    """A file's tracks, notes in ticks, tempos and time signatures, as symusic holds them.

    A note without a note-off lasts to its track's end. `data` is that of `read_midi`. Raises
    `MusicError` with the reason for a file that is not MIDI, is damaged, or has no notes.
    """
    try:
        if (Path(path).stat().st_size if data is None else len(data)) > MAX_BYTES:
            raise MusicError(f"over {MAX_BYTES >> 20} MiB, more than any piece needs; leave it out")
        data = Path(path).read_bytes() if data is None else data
        score = symusic.Score.from_midi(with_note_offs(data), sanitize_data=True)  # else may crash
        if any(track.end() >= LATE for track in score.tracks):  # notes that are never released
            score = symusic.Score.from_midi(with_note_offs(data, 256, 0), sanitize_data=True)
    except MusicError as reason:
        raise MusicError(f"{path}: {reason}") from None
    except OSError as error:
        raise MusicError(f"{path}: {str(error.strerror).lower()}; check the path") from None
    except Exception as error:  # symusic raises many kinds
        reason = str(error).partition("\n")[0][:60]
        raise MusicError(f"{path}: damaged ({reason}); leave it out") from None
    if not any(len(track.notes) for track in score.tracks if not track.is_drum):
        raise MusicError(f"{path}: no notes (drums are left out); choose another file")
    return score


def read_chunks(data: bytes) -> tuple[bytes, list[bytes]]:
    """The header, 6 bytes, and the tracks of a MIDI file, each without the chunk's name and length.

    Raises `MusicError`, without the file's name, for what is not whole MIDI.
    """
    at, header, tracks = data.find(b"MThd"), b"", []  # a RIFF file has a header before it
    if at < 0:
        raise MusicError(f"not a MIDI file (it begins with {data[:20]!r}); leave it out")
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">4sI", data, at)
        body, at = data[at + 8 : at + 8 + length], at + 8 + length
        if kind == b"MThd":
            header = header or body[:6]
        elif kind == b"MTrk" and len(tracks) == MAX_TRACKS:
            raise MusicError(f"over {MAX_TRACKS} tracks, more than any piece has; leave it out")
        elif kind == b"MTrk":
            tracks.append(body)
    missing = len(tracks) < int.from_bytes(header[2:4])
    if len(header) < 6 or not tracks or (at > len(data) and (kind == b"MTrk" or missing)):
        raise MusicError("cut short or damaged on the way; download it again, or leave it out")
    if (frames := 256 - header[4]) in (24, 25, 29, 30):  # SMPTE: ticks of seconds, read at 120 bpm
        header = header[:4] + max(frames * header[5] // 2, 1).to_bytes(2)
    if not 0 < int.from_bytes(header[4:]) < 2**15:
        raise MusicError("its header gives no ticks per beat; leave it out")
    return header, tracks


def with_note_offs(data: bytes, times: int = 1, late: int = LATE) -> bytes:
    """The same MIDI file with `times` note-offs for every key, `late` ticks after each track's end:
    symusic drops a note that has none, and such a note is now one that ends late. `late` is 0 or
    `LATE`. Raises what `read_chunks` raises."""
    keys = b"".join(bytes([key, 0, 0]) for key in range(128))  # key, velocity, ticks to the next
    end, wait = b"\xff\x2f\x00", b"\xff\1\0" + (b"\xc0\x80\x80\0" if late else b"\0")
    header, tracks = read_chunks(data)
    count = min(len(tracks), 65535).to_bytes(2)
    parts = [b"MThd\0\0\0\6", header[:2], count, header[4:]]
    for body in tracks:
        status = [bytes([0x80 | channel]) for channel in range(16) if 0x90 | channel in body]
        body = body.removesuffix(end) if body.endswith(end) else body + b"\0"
        body += wait + b"".join(note_off + times * keys for note_off in status) + end
        parts.append(b"MTrk" + len(body).to_bytes(4) + body)
    return b"".join(parts)


def notes_in_ticks(score: symusic.Score) -> np.ndarray:
    """All notes but drums, int64 `[N, 4]`: start tick, end tick, pitch, velocity.

    A note ends at the first note-off of its pitch after its onset, as on a piano and in
    pretty_midi (symusic pairs the first note-on with the first note-off). A note that is released
    in the tick where it is struck stays; pretty_midi loses it.
    """
    parts = []
    for track in score.tracks:
        if track.is_drum:
            continue
        columns = track.notes.numpy()
        start, duration, pitch, velocity = (
            columns[name].astype(np.int64) for name in ("time", "duration", "pitch", "velocity"))
        end = start + np.maximum(duration, 0)
        place = pitch * 2**32  # pitch and tick in one number
        note_offs = np.sort(place + end)
        following = np.searchsorted(note_offs, place + start, side="right")
        first = note_offs[np.minimum(following, len(start) - 1)] - place  # after the onset
        notes = np.stack([start, np.minimum(end, first), pitch, velocity], axis=1)
        parts.append(notes[np.argsort(place + start)])
    return np.concatenate(parts)


# ---------------------------------------------------------------- bars and windows


def bar_lines_of(roll: PianoRoll) -> np.ndarray:
    """The columns where the bars of a whole piece begin, int64, see `bars.bar_lines`."""
    return bars.bar_lines(notes_of(roll), roll.pixels.shape[1], list(roll.signatures),
                          roll.steps_per_beat)


def windows(roll: PianoRoll, preset: Preset, hop: int = 8, lines: np.ndarray | None = None,
            min_notes: int = 1) -> list[PianoRoll]:
    """Cut a piece into images of the preset's size that begin on bar lines; the last is padded.

    `hop` is the distance from one window to the next in eighths of the preset's width, cut to
    whole bars: 8 is side by side, with less they overlap. `lines` are the piece's bar lines,
    `bar_lines_of` it by default. Windows with fewer than `min_notes` onsets are left out.
    """
    low = preset.lowest_pitch - roll.lowest_pitch
    rows = roll.pixels[max(low, 0) : max(low + preset.pitches, 0)]
    cut = []
    for first in _window_starts(bar_lines_of(roll) if lines is None else lines, rows.shape[1],
                                preset.steps, preset.steps * hop // 8):
        part = rows[:, max(first, 0) : first + preset.steps]
        if np.count_nonzero(part > SUSTAIN) >= min_notes:
            pixels = np.zeros((preset.pitches, preset.steps), dtype=np.uint8)
            pixels[max(-low, 0) :, max(-first, 0) :][: len(part), : part.shape[1]] = part
            cut.append(replace(roll, pixels=pixels, lowest_pitch=preset.lowest_pitch,
                               start_step=roll.start_step + first, tempo_changes=(),
                               signatures=(), tempo_bpm=tempo_at(roll, first)))
    return cut


def _window_starts(lines: np.ndarray, end: int, width: int, hop: int) -> list[int]:
    """Bar lines at most `hop` columns apart, from the first until a window reaches the end."""
    starts = [int(lines[0])]
    while (at := starts[-1]) + width < end:
        ahead = lines[(lines > at) & (lines <= at + width)]
        near = ahead[ahead <= at + hop]
        starts.append(int([*near[-1:], *ahead[:1], at + width][0]))  # the first that there is
    return starts


def tempo_at(roll: PianoRoll, step: int) -> float:
    """The tempo in beats a minute at a column of the roll."""
    return next((bpm for at, bpm in reversed(roll.tempo_changes) if at <= step),
                roll.tempo_bpm)


# ---------------------------------------------------------------- piano roll → MIDI


def to_midi(roll: PianoRoll, program: int = 0) -> pretty_midi.PrettyMIDI:
    """A piano roll as MIDI: one instrument, its first tempo, every note exactly on the grid."""
    step_s = 60 / roll.tempo_bpm / roll.steps_per_beat
    resolution = roll.steps_per_beat * max(1, 480 // roll.steps_per_beat)
    midi = pretty_midi.PrettyMIDI(resolution=resolution, initial_tempo=roll.tempo_bpm)
    instrument = pretty_midi.Instrument(program=program, name="piano roll")
    instrument.notes = [
        pretty_midi.Note(velocity, pitch, start * step_s, (start + length) * step_s)
        for start, length, pitch, velocity in notes_of(roll).tolist()]
    midi.instruments.append(instrument)
    return midi


def save_midi(roll: PianoRoll, path: str | Path) -> Path:
    """Write `to_midi(roll)`, whole or not at all. Raises `MusicError` for a silent one."""
    midi = to_midi(roll)
    if not midi.instruments[0].notes:
        raise MusicError(f"{path}: the piano roll is silent, so there is no MIDI to write")
    with atomic(path) as temporary:
        midi.write(str(temporary))
    return Path(path)


# ---------------------------------------------------------------- piano roll ↔ PNG


def png_bytes(roll: PianoRoll) -> bytes:
    """A gray 8-bit PNG whose text chunks carry the roll's `FACTS`."""
    facts, png = PngInfo(), io.BytesIO()
    for name in FACTS:
        facts.add_itxt(name, str(getattr(roll, name)))
    Image.fromarray(roll.pixels).save(png, "PNG", pnginfo=facts, compress_level=1)
    return png.getvalue()


def save_png(roll: PianoRoll, path: str | Path) -> Path:
    """Write `png_bytes(roll)`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(png_bytes(roll))
    return Path(path)


def load_png(path: str | Path, data: bytes | None = None) -> PianoRoll:
    """Read an image. One without facts has 128 rows from pitch 0 or 106 from pitch 21.

    `data` are the PNG's bytes where it is no file of its own; `path` then says where it came from.
    Of two values without facts, the brighter one is the notes: each run of it is a note of
    velocity 100. Raises `MusicError` for what is no piano roll.
    """
    path, facts = Path(path), {}
    rule = "a piano roll has 128 or 106 gray rows, bright on dark, or was made by notebook 01"
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            if height <= 128 and width <= MAX_STEPS:  # a larger one is refused unread
                facts = dict(image.text)
                if image.mode.startswith("I"):  # 16 bits, which convert("L") would clip
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                in_colour = np.ptp(np.asarray(image.convert("RGB")), axis=2).any()
                pixels = np.asarray(image.convert("L"))
    except Exception:  # Pillow raises many kinds
        raise MusicError(f"{path}: cannot be read as a PNG; make it again, or leave it out"
                         ) from None
    if facts.keys() >= {"lowest_pitch", "steps_per_beat"}:
        return _with_facts(path, pixels, facts)
    if height not in LOWEST_PITCH_OF_ROWS or width > MAX_STEPS:
        raise MusicError(f"{path}: {width}×{height} pixels; {rule}")
    if in_colour:
        raise MusicError(f"{path}: a colour image; {rule}")
    if len(np.unique(pixels)) == 2:
        lit = pixels == pixels.max()
        first = lit & ~np.pad(lit, ((0, 0), (1, 0)))[:, :-1]  # nothing is lit to the left
        pixels = np.where(first, ONSET + VELOCITY_BLACK_AND_WHITE, lit * SUSTAIN).astype(np.uint8)
    if np.mean(pixels >= 32) > 0.5:
        raise MusicError(f"{path}: most of it would sound at once; {rule}")
    return PianoRoll(pixels, LOWEST_PITCH_OF_ROWS[height], source=path.name)


def _with_facts(path: Path, pixels: np.ndarray, facts: dict[str, str]) -> PianoRoll:
    try:
        roll = PianoRoll(pixels, int(facts["lowest_pitch"]), int(facts["steps_per_beat"]),
                            float(facts.get("tempo_bpm", 120)), facts.get("source", path.name),
                            int(facts.get("start_step", 0)))
        if (0 <= roll.lowest_pitch <= 128 - len(pixels) and 4 <= roll.tempo_bpm <= 1000
                and 1 <= roll.steps_per_beat <= 480):
            return roll
    except ValueError:
        pass
    raise MusicError(f"{path}: its text chunks are damaged; make the image again")


# ---------------------------------------------------------------- piano roll ↔ a network's input


def to_planes(pixels: np.ndarray) -> np.ndarray:
    """Piano rolls `[..., pitches, steps]` as float32 `[..., 2, pitches, steps]` in 0…1.

    Plane 0 is 1 where a note is active. Plane 1 is (128 + velocity) / 255 at an onset, else 0.
    """
    onset = np.where(pixels > SUSTAIN, pixels, 0) / np.float32(255)
    return np.stack([(pixels > 0).astype(np.float32), onset.astype(np.float32)], axis=-3)


def from_planes(planes: np.ndarray) -> np.ndarray:
    """The exact inverse of `to_planes`; in-between values go to the nearer side."""
    active, onset = np.moveaxis(np.asarray(planes), -3, 0)
    onset_pixel = np.clip(np.rint(onset * 255), ONSET + 1, 255)
    return np.where(onset > PLANE_ONSET, onset_pixel,
                    np.where(active > PLANE_ACTIVE, SUSTAIN, SILENCE)).astype(np.uint8)
