"""The picture of music: MIDI ↔ piano roll ↔ PNG. Explained in notebooks 01 and 05.

A picture is a `uint8` array `[pitches, steps]`. Row 0 is the lowest pitch, a column is one step of
the beat grid. Level 0 is silence, 64 a held note, 128 + velocity the column where a note starts.
"""

import contextlib
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pretty_midi
import symusic
from PIL import Image, PngImagePlugin

from utils import bars, repair
from utils.files import MusicError, atomic, printable

SILENCE, HELD, ONSET = 0, 64, 128
VELOCITY_UNKNOWN = 64  # a tail without a head: the note began before the picture
VELOCITY_TWO_LEVEL = 100  # black-and-white pictures hold no loudness
MAX_STEPS = 2**19  # 18 hours of sixteenths at 120 bpm; longer files are damaged
MAX_BYTES = 2**23  # of a MIDI file; more is no piece of music
MAX_TRACKS = 4096
LOWEST_PITCH_OF_ROWS = {128: 0, 106: 21}  # for pictures that carry no facts of their own
PLANE_SOUNDING, PLANE_ONSET = 0.5, 0.25  # thresholds of `from_planes`


@dataclass(frozen=True)
class Preset:
    """A size of picture that a model learns: rows from `lowest_pitch` up, columns."""

    name: str
    pitches: int
    steps: int
    lowest_pitch: int


DIFFUSION = Preset("diffusion", 128, 128, 0)
GAN = Preset("gan", 106, 300, 21)
PRESETS = {preset.name: preset for preset in (DIFFUSION, GAN)}


@dataclass(frozen=True, eq=False)
class Picture:
    """A piano roll and its facts.

    `levels` is `uint8 [pitches, steps]`; `tempo_bpm` the tempo at its first column; `start_step`
    where that column lies in `source` (below 0 where a window begins before it); `tempo_changes`
    are pairs (step, bpm) further on, `signatures` the file's (step, numerator, denominator).
    """

    levels: np.ndarray
    lowest_pitch: int = 0
    steps_per_beat: int = 4
    tempo_bpm: float = 120.0
    source: str = ""
    start_step: int = 0
    tempo_changes: tuple[tuple[int, float], ...] = ()
    signatures: tuple[tuple[int, int, int], ...] = ()

    @property
    def seconds(self) -> float:
        """How long the picture sounds, in seconds, at its first tempo."""
        return self.levels.shape[1] / self.steps_per_beat * 60 / self.tempo_bpm


# ---------------------------------------------------------------- notes ↔ picture


def settle(notes: np.ndarray) -> np.ndarray:
    """One note per pitch and step: the louder onset stays, and a new onset ends the note before.

    `notes` is int `[N, 4]`: start, length (1 or more), pitch, velocity, in steps and MIDI numbers.
    Returns the same, ordered by pitch and start.
    """
    start, length, pitch, velocity = np.asarray(notes, dtype=np.int64).reshape(-1, 4).T
    key = np.sort(pitch << 47 | start << 27 | velocity << 20 | length)  # one key, one fast sort
    onset = key >> 27
    key = key[np.append(onset[1:] != onset[:-1], True)[: len(key)]]
    pitch, start, velocity, length = key >> 47, key >> 27 & 0xFFFFF, key >> 20 & 0x7F, key & 0xFFFFF
    until_next = np.where(pitch[1:] == pitch[:-1], start[1:] - start[:-1], MAX_STEPS)
    length[:-1] = np.minimum(length[:-1], until_next)
    return np.stack([start, length, pitch, velocity], axis=1).astype(np.int32)


def paint(notes: np.ndarray, pitches: int, steps: int, lowest_pitch: int = 0) -> np.ndarray:
    """Notes `[N, 4]` as levels, `uint8 [pitches, steps]`. What lies outside is left out."""
    levels = np.zeros(pitches * steps, dtype=np.uint8)
    start, length, pitch, velocity = settle(notes).T.astype(np.int64)
    row = pitch - lowest_pitch
    inside = (row >= 0) & (row < pitches) & (start < steps)
    start, row, velocity = start[inside], row[inside], velocity[inside]
    head = row * steps + start
    length = np.minimum(length[inside], steps - start)
    total = np.cumsum(length)
    first = head - (total - length)  # cell number minus the number of cells painted before it
    cuts = np.flatnonzero(np.diff(total >> 22)) + 1  # a few million cells at a time
    for begin, end in zip([0, *cuts], [*cuts, len(head)], strict=True):
        cells = np.repeat(first[begin:end], length[begin:end])
        cells += np.arange(total[begin] - length[begin], total[end - 1]) if len(cells) else 0
        levels[cells] = HELD
    levels[head] = ONSET + velocity
    return levels.reshape(pitches, steps)


def snap_levels(gray: np.ndarray) -> np.ndarray:
    """Any gray picture as the picture format: below 32 silence, from 97 on an onset, else held."""
    gray = np.asarray(gray)
    levels = np.where(gray < 97, HELD, np.maximum(gray, ONSET + 1))
    return np.where(gray < 32, SILENCE, levels).astype(np.uint8)


def notes_of(picture: Picture) -> np.ndarray:
    """The notes in a picture, int32 `[N, 4]`: start, length, pitch, velocity; by pitch and start.

    A held run without a head decodes as a note with velocity 64.
    """
    levels = snap_levels(picture.levels)
    sounding = np.pad(levels != SILENCE, ((0, 0), (1, 1)))
    head = levels > HELD
    starts = head | (sounding[:, 1:-1] & ~sounding[:, :-2])
    row, start = np.nonzero(starts)
    ends = np.pad(starts, ((0, 0), (0, 1))) | ~sounding[:, 1:]  # a note lasts until one of these
    ends_flat = np.flatnonzero(ends)
    width = ends.shape[1]
    end = ends_flat[np.searchsorted(ends_flat, row * width + start, side="right")] - row * width
    level = levels[row, start].astype(np.int32)
    velocity = np.where(level > HELD, level - ONSET, VELOCITY_UNKNOWN)
    return np.stack([start, end - start, row + picture.lowest_pitch, velocity], 1).astype(np.int32)


# ---------------------------------------------------------------- MIDI → picture


def read_midi(path: str | Path, steps_per_beat: int = 4, pedal: bool = False,
              careful: bool = False) -> Picture:
    """A whole MIDI file as one picture of 128 rows, on the file's own beat grid, without drums.

    `pedal=True` lets notes ring while the sustain pedal is down; `careful=True` reads with our own
    slow parser alone, as damaged files are read. Raises `MusicError` with the reason for a file
    that is not MIDI, is damaged beyond repair, or has no notes.
    """
    path = Path(path)
    try:
        score, ticks = _parse(_bytes_of(path), pedal, careful)
    except MusicError as reason:
        raise MusicError(f"{path}: {reason}") from None
    start_tick, end_tick, pitch, velocity = ticks
    per_step = score.ticks_per_quarter / steps_per_beat
    start = np.floor(start_tick / per_step + 0.5).astype(np.int64)
    end = np.minimum(np.floor(end_tick / per_step + 0.5).astype(np.int64), MAX_STEPS)
    if start.min() < 0 or start.max() >= MAX_STEPS:
        raise MusicError(f"{path}: a note lies past {MAX_STEPS // steps_per_beat:,} beats; the "
                         "file is damaged, leave it out")
    notes = np.stack([start, np.maximum(end - start, 1), pitch, velocity], axis=1)
    levels = paint(notes, 128, int((start + notes[:, 1]).max()))
    changes = _tempo_changes(score, per_step)
    tempo_bpm = next((bpm for step, bpm in reversed(changes) if step <= 0), 120.0)
    return Picture(levels, 0, steps_per_beat, tempo_bpm, printable(path.name), 0,
                   tuple((step, bpm) for step, bpm in changes if step > 0),
                   _signatures(score, per_step))


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise MusicError("no such file; check the path")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MusicError(f"cannot be read ({error.strerror}); check its permissions") from None
    if len(data) > MAX_BYTES:
        raise MusicError(f"over {MAX_BYTES >> 20} MiB, more than any piece needs; leave it out")
    return data


def _parse(data: bytes, pedal: bool, careful: bool) -> tuple[symusic.Score, tuple]:
    """The score and its notes in ticks, by symusic; what that finds unsound is repaired first."""
    if (tracks := data.count(b"MTrk")) > MAX_TRACKS:
        raise MusicError(f"{tracks:,} tracks, more than any piece has; leave it out")
    if not careful and repair.is_whole(data):
        with contextlib.suppress(Exception):  # symusic raises many kinds
            score = symusic.Score.from_midi(data, sanitize_data=True)  # without it, it may crash
            ticks = start, _, pitch, velocity = _notes_in_ticks(score, pedal)
            if len(start) and min(start.min(), pitch.min()) >= 0 and velocity.max() < 128:
                return score, ticks
    score = symusic.Score.from_midi(repair.repair(data))
    ticks = _notes_in_ticks(score, pedal)
    if not len(ticks[0]):
        raise MusicError("no notes (drums are left out); choose another file")
    return score, ticks


def _notes_in_ticks(score: symusic.Score, pedal: bool) -> tuple[np.ndarray, ...]:
    """All notes but drums, four int64 arrays `[N]`: start tick, end tick, pitch, velocity.

    Where notes of one pitch overlap, symusic pairs the first note-on with the first note-off. On a
    piano the first note-off lifts the key, and pretty_midi reads it so too: so do we. A note that
    is released in the tick where it is struck stays (pretty_midi loses it).
    """
    tracks = [track for track in score.tracks if len(track.notes) and not track.is_drum]
    parts = [track.notes.numpy() for track in tracks]
    start, duration, pitch, velocity = (
        np.concatenate([part[name] for part in parts] or [[]]).astype(np.int64)
        for name in ("time", "duration", "pitch", "velocity"))
    key = np.repeat(np.arange(len(parts)) * 128, [len(part["time"]) for part in parts]) + pitch
    small = key.astype(np.uint16) if len(parts) <= 512 else key  # 16 bits: numpy's radix sort
    order = np.argsort(small, kind="stable") if len(parts) else np.zeros(0, dtype=np.int64)
    if np.any((start[1:] < start[:-1]) & (key[1:] >> 7 == key[:-1] >> 7)):
        order = np.lexsort((start, key))
    key, start, pitch, velocity = key[order], start[order], pitch[order], velocity[order]
    end = start + np.maximum(duration[order], 0)
    end = _first_note_off(key, start, end)
    if pedal:
        for number, track in enumerate(tracks):
            if len(track.pedals):
                own = key >> 7 == number
                end[own] = _ring(end[own], track.pedals.numpy())
    loud = velocity > 0
    return start[loud], end[loud], pitch[loud], velocity[loud]


def _first_note_off(key: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Each note's end, or the end of an overlapping note of the same key that comes before it.

    The notes are ordered by key (track and pitch) and start.
    """
    overlap = (key[1:] == key[:-1]) & (end[:-1] > start[1:])
    if not overlap.any():
        return end
    some = np.flatnonzero(np.isin(key, key[1:][overlap]))
    offs = np.sort(key[some] << 33 | end[some])  # ends stay below 2^32
    at = np.searchsorted(offs, key[some] << 33 | start[some], side="right")
    first = offs[np.minimum(at, len(offs) - 1)] - (key[some] << 33)
    end[some] = np.where(first > start[some], np.minimum(end[some], first), end[some])
    return end


def _ring(end: np.ndarray, pedals: dict[str, np.ndarray]) -> np.ndarray:
    """Ends of notes, each moved to where the sustain pedal that is down there goes up."""
    last = np.searchsorted(pedals["time"], end, side="right") - 1
    up = (pedals["time"] + pedals["duration"])[np.maximum(last, 0)]
    return np.where(last >= 0, np.maximum(end, up), end)


def _tempo_changes(score: symusic.Score, ticks_per_step: float) -> list[tuple[int, float]]:
    """(step, bpm) in order; a tempo that no metronome has (under 4, over 1,000) is left out."""
    tempos = score.tempos.numpy()
    steps = np.floor(tempos["time"] / ticks_per_step + 0.5).astype(np.int64)
    return sorted((int(step), 60e6 / int(mspq)) for step, mspq in zip(steps, tempos["mspq"],
                  strict=True) if 60_000 <= mspq <= 15_000_000)


def _signatures(score: symusic.Score, ticks_per_step: float) -> tuple[tuple[int, int, int], ...]:
    """(step, numerator, denominator) of the time signatures, in order."""
    return tuple(sorted((round(sign.time / ticks_per_step), sign.numerator, sign.denominator)
                        for sign in score.time_signatures))


def bar_lines_of(picture: Picture) -> np.ndarray:
    """The columns where the bars of a whole piece begin, int64, see `bars.bar_lines`."""
    return bars.bar_lines(notes_of(picture), picture.levels.shape[1], list(picture.signatures),
                          picture.steps_per_beat)


def windows(picture: Picture, preset: Preset, hop: int = 8, lines: np.ndarray | None = None,
            min_notes: int = 1) -> list[Picture]:
    """Cut a piece into pictures of the preset's size that begin on bar lines; the last is padded.

    `hop` is the distance from one window to the next in eighths of the preset's width, cut to
    whole bars: for 128 columns of 4/4 it counts bars. 8 is side by side; with less they overlap.
    `lines` are the piece's bar lines, `bar_lines_of` it by default. Windows with fewer than
    `min_notes` onsets are left out, so a long silence costs nothing.
    """
    low = preset.lowest_pitch - picture.lowest_pitch
    rows = picture.levels[max(low, 0) : max(low + preset.pitches, 0)]
    cut = []
    for first in _window_starts(bar_lines_of(picture) if lines is None else lines, rows.shape[1],
                                preset.steps, preset.steps * hop // 8):
        part = rows[:, max(first, 0) : first + preset.steps]
        if np.count_nonzero(part > HELD) >= min_notes:
            levels = np.zeros((preset.pitches, preset.steps), dtype=np.uint8)
            levels[max(-low, 0) :, max(-first, 0) :][: len(part), : part.shape[1]] = part
            cut.append(replace(picture, levels=levels, lowest_pitch=preset.lowest_pitch,
                               start_step=picture.start_step + first, tempo_changes=(),
                               signatures=(), tempo_bpm=tempo_at(picture, first)))
    return cut


def _window_starts(lines: np.ndarray, end: int, width: int, hop: int) -> list[int]:
    """Bar lines at most `hop` columns apart, from the first until a window reaches the end."""
    starts = [int(lines[0])]
    while starts[-1] + width < end:
        number = np.searchsorted(lines, starts[-1] + max(hop, 1), side="right") - 1
        if lines[number] <= starts[-1]:  # a bar longer than that
            number = min(number + 1, len(lines) - 1)
        bar_line = int(lines[number])
        starts.append(bar_line if starts[-1] < bar_line <= starts[-1] + width
                      else starts[-1] + width)
    return starts


def tempo_at(picture: Picture, step: int) -> float:
    """The tempo in beats a minute at a column of the picture."""
    return next((bpm for at, bpm in reversed(picture.tempo_changes) if at <= step),
                picture.tempo_bpm)


# ---------------------------------------------------------------- picture → MIDI


def to_midi(picture: Picture, program: int = 0) -> pretty_midi.PrettyMIDI:
    """A picture as MIDI: one track, the picture's tempo, every note exactly on the grid."""
    step_s = 60 / picture.tempo_bpm / picture.steps_per_beat
    resolution = picture.steps_per_beat * max(1, 480 // picture.steps_per_beat)
    midi = pretty_midi.PrettyMIDI(resolution=resolution, initial_tempo=picture.tempo_bpm)
    instrument = pretty_midi.Instrument(program=program, name="piano roll")
    instrument.notes = [
        pretty_midi.Note(velocity, pitch, start * step_s, (start + length) * step_s)
        for start, length, pitch, velocity in notes_of(picture).tolist()]
    midi.instruments.append(instrument)
    return midi


def save_midi(picture: Picture, path: str | Path) -> Path:
    """Write `to_midi(picture)`, whole or not at all. Raises `MusicError` for a silent picture."""
    midi = to_midi(picture)
    if not midi.instruments[0].notes:
        raise MusicError(f"{path}: the picture is silent, so there is no MIDI to write")
    with atomic(path) as temporary:
        midi.write(str(temporary))
    return Path(path)


# ---------------------------------------------------------------- picture ↔ PNG


def png_bytes(picture: Picture) -> bytes:
    """A gray 8-bit PNG whose text chunks carry the picture's facts."""
    facts = PngImagePlugin.PngInfo()
    for name in ("lowest_pitch", "steps_per_beat", "tempo_bpm", "source", "start_step"):
        facts.add_text(name, str(getattr(picture, name)))
    file = io.BytesIO()
    Image.fromarray(picture.levels).save(file, "PNG", pnginfo=facts, compress_level=1,
                                         compress_type=zlib.Z_RLE)  # small and fast on such runs
    return file.getvalue()


def save_png(picture: Picture, path: str | Path) -> Path:
    """Write `png_bytes(picture)`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(png_bytes(picture))
    return Path(path)


def load_png(path: str | Path, data: bytes | None = None) -> Picture:
    """Read a picture. One without facts has 128 rows from pitch 0 or 106 from pitch 21.

    `data` are the PNG's bytes where it is no file of its own; `path` then says where it came from.
    Black and white (two levels, no facts): each run of lit pixels is one note, velocity 100.
    16-bit gray keeps its upper eight bits. Raises `MusicError` for what is no picture of music.
    """
    path = Path(path)
    wrong = "is not a picture of music; give 128 or 106 gray rows, or one that notebook 01 made"
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=["PNG"]) as image:
            facts = dict(getattr(image, "text", {}))
            if image.width > MAX_STEPS or image.height > 128:
                raise MusicError(f"{path}: {image.width}×{image.height} pixels: {wrong}")
            if image.mode.startswith("I"):  # 16 bits, which convert("L") would clip
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            color = np.asarray(image.convert("RGB"))
            levels = np.asarray(image.convert("L"))
    except MusicError:
        raise
    except Exception:  # Pillow raises many kinds
        raise MusicError(f"{path}: cannot be read as a PNG; make it again, or leave it out"
                         ) from None
    if "lowest_pitch" in facts and "steps_per_beat" in facts:
        return _with_facts(path, levels, facts)
    if (color != levels[..., None]).any():
        raise MusicError(f"{path}: a colour image; convert it to grayscale, or give one that "
                         "notebook 01 made")
    if len(levels) not in LOWEST_PITCH_OF_ROWS:
        raise MusicError(f"{path}: {levels.shape[1]}×{len(levels)} pixels, no facts: {wrong}")
    if np.mean(levels >= 32) > 0.5:
        raise MusicError(f"{path}: most of it would sound at once: {wrong}")
    lit = levels > 0
    if len(np.unique(levels)) <= 2:  # two levels: light the first column of each run
        first = lit & ~np.pad(lit, ((0, 0), (1, 0)))[:, :-1]
        levels = np.where(first, ONSET + VELOCITY_TWO_LEVEL, lit * HELD).astype(np.uint8)
    return Picture(levels, LOWEST_PITCH_OF_ROWS[len(levels)], source=path.name)


def _with_facts(path: Path, levels: np.ndarray, facts: dict[str, str]) -> Picture:
    try:
        picture = Picture(levels, int(facts["lowest_pitch"]), int(facts["steps_per_beat"]),
                          float(facts.get("tempo_bpm", 120)), facts.get("source", path.name),
                          int(facts.get("start_step", 0)))
    except ValueError:
        raise MusicError(f"{path}: its text chunks are damaged; make the picture again") from None
    sane = (0 <= picture.lowest_pitch <= 128 - len(levels) and 1 <= picture.steps_per_beat <= 480
            and 4 <= picture.tempo_bpm <= 1000)
    if not sane:
        raise MusicError(f"{path}: its text chunks are out of range; make the picture again")
    return picture


# ---------------------------------------------------------------- picture ↔ what a network sees


def to_planes(levels: np.ndarray) -> np.ndarray:
    """Levels `[..., pitches, steps]` as float32 `[..., 2, pitches, steps]` in 0…1.

    Plane 0 is 1 where a note sounds. Plane 1 is (128 + velocity) / 255 at an onset, else 0.
    """
    onset = np.where(levels > HELD, levels, 0) / np.float32(255)
    return np.stack([(levels > 0).astype(np.float32), onset.astype(np.float32)], axis=-3)


def from_planes(planes: np.ndarray) -> np.ndarray:
    """The exact inverse of `to_planes`; in-between values go to the nearer side."""
    sounding, onset = np.moveaxis(np.asarray(planes), -3, 0)
    head = np.clip(np.rint(onset * 255), ONSET + 1, 255)
    return np.where(onset > PLANE_ONSET, head, np.where(sounding > PLANE_SOUNDING, HELD, SILENCE)
                    ).astype(np.uint8)
