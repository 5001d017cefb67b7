"""The one format that everything passes: MIDI ↔ piano roll ↔ PNG. Explained in notebooks 01 and 05.

A piano roll is a `uint8` array `[pitches, steps]`. Row 0 is the lowest pitch, a column is one step
of the beat grid. A pixel is 0 for silence, 64 for a sustain, 128 + velocity for an onset.
"""

import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import symusic
from PIL import Image

from utils import bars
from utils.files import MusicError, atomic, printable

SILENCE, SUSTAIN, ONSET = 0, 64, 128
VELOCITY_UNKNOWN = 64  # of a sustain without an onset: the note began before the image
VELOCITY_BLACK_AND_WHITE = 100  # black-and-white images hold no loudness
MAX_STEPS = 2**19  # 18 hours of sixteenths at 120 bpm; longer files are damaged
MAX_BYTES = 2**23  # of a MIDI file; more is no piece of music
MAX_ODD_BYTES = 2**20  # of one that only mido may be able to read: a second of work at most
MAX_TRACKS = 4096
END_OF_TRACK = b"\xff\x2f\x00"
ALL_KEYS = b"".join(bytes([key, 0, 0]) for key in range(128))  # the rest of 128 note-offs
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
    notes = np.asarray(notes, dtype=np.int64).reshape(-1, 4)
    start, length, pitch, velocity = notes.T
    place = pitch * 2**20 + start
    notes = notes[np.argsort((place * 128 + velocity) * 2**20 + length)]  # the loudest comes last
    next_place = np.append(np.diff(notes[:, 2] * 2**20 + notes[:, 0]), 2**20)[: len(notes)]
    notes[:, 1] = np.minimum(notes[:, 1], next_place)  # of another pitch: too far to matter
    return notes[next_place > 0].astype(np.int32)


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


def notes_of(picture: PianoRoll) -> np.ndarray:
    """The notes in a piano roll, int32 `[N, 4]`: start, length, pitch, velocity; by pitch and
    start. A sustain without an onset is a note of velocity 64."""
    roll = np.asarray(picture.pixels)
    active = np.flatnonzero(roll >= 32)  # few pixels are
    row, step = np.divmod(active, roll.shape[1])
    pixel = snap(roll.ravel()[active])
    follows = (np.diff(active, prepend=-2) == 1) & (step > 0)  # the pixel to the left is active
    first = np.flatnonzero((pixel > SUSTAIN) | ~follows)  # of each note
    length = np.diff(first, append=len(active))
    velocity = np.where(pixel > SUSTAIN, pixel.astype(np.int32) - ONSET, VELOCITY_UNKNOWN)
    return np.stack([step[first], length, row[first] + picture.lowest_pitch, velocity[first]],
                    axis=1).astype(np.int32)


# ---------------------------------------------------------------- MIDI → piano roll


def read_midi(path: str | Path, steps_per_beat: int = 4, pedal: bool = False) -> PianoRoll:
    """A whole MIDI file as a piano roll of 128 rows, on the file's own beat grid, without drums.

    `pedal=True` prolongs notes while the sustain pedal is down. Raises `MusicError` with the
    reason for a file that is not MIDI, is damaged, or has no notes.
    """
    path = Path(path)
    score = open_midi(path)
    start_tick, end_tick, pitch, velocity = notes_in_ticks(score, pedal).T
    per_step = score.ticks_per_quarter / steps_per_beat
    start = np.floor(start_tick / per_step + 0.5).astype(np.int64)
    end = np.minimum(np.floor(end_tick / per_step + 0.5).astype(np.int64), MAX_STEPS)
    if start.min() < 0 or start.max() >= MAX_STEPS:
        raise MusicError(f"{path}: a note lies past {MAX_STEPS // steps_per_beat:,} beats; the "
                         "file is damaged, leave it out")
    notes = np.stack([start, np.maximum(end - start, 1), pitch, velocity], axis=1)
    changes = _tempo_changes(score, per_step)
    signatures = sorted((round(sign.time / per_step), sign.numerator, sign.denominator)
                        for sign in score.time_signatures)
    return PianoRoll(roll_of(notes, 128, int((start + notes[:, 1]).max())), 0, steps_per_beat,
                   next((bpm for step, bpm in reversed(changes) if step <= 0), 120.0),
                   printable(path.name), 0,
                   tuple((step, bpm) for step, bpm in changes if step > 0), tuple(signatures))


def open_midi(path: str | Path) -> symusic.Score:
    """A file's tracks, notes in ticks, tempos and time signatures, as symusic holds them.

    What symusic cannot read, mido tries. A note without a note-off lasts to its track's end.
    Raises `MusicError` with the reason for a file that neither reads, or without notes.
    """
    path = Path(path)
    try:
        data = _bytes_of(path)
        score = _parsed(data) or _parsed(_rewritten(data))
    except MusicError as reason:
        raise MusicError(f"{path}: {reason}") from None
    if not score or not any(len(track.notes) for track in score.tracks if not track.is_drum):
        raise MusicError(f"{path}: no notes (drums are left out); choose another file")
    return score


def notes_in_ticks(score: symusic.Score, pedal: bool = False) -> np.ndarray:
    """All notes but drums, int64 `[N, 4]`: start tick, end tick, pitch, velocity.

    A note ends at the first note-off of its pitch after its onset, as on a piano and in
    pretty_midi (symusic pairs the first note-on with the first note-off). A note that is released
    in the tick where it is struck stays; pretty_midi loses it.
    """
    parts = [np.zeros((0, 4), dtype=np.int64)]
    for track in score.tracks:
        if track.is_drum or not len(track.notes):
            continue
        columns = track.notes.numpy()
        notes = np.stack([columns[name] for name in ("time", "duration", "pitch", "velocity")],
                         axis=1).astype(np.int64)
        notes[:, 1] = notes[:, 0] + np.maximum(notes[:, 1], 0)  # the duration becomes the end
        onset = notes[:, 2] * 2**32 + notes[:, 0]  # pitch and tick in one number
        notes, onset = notes[order := np.argsort(onset)], onset[order]
        note_off = np.sort(notes[:, 2] * 2**32 + notes[:, 1])
        after = np.searchsorted(note_off, onset, side="right")
        first = note_off[np.minimum(after, len(note_off) - 1)]  # the first one after the onset
        notes[:, 1] = np.minimum(notes[:, 1], first - notes[:, 2] * 2**32)
        if pedal and len(track.pedals):
            notes[:, 1] = _prolonged(notes[:, 1], track.pedals.numpy())
        parts.append(notes)
    return np.concatenate(parts)


def _prolonged(end: np.ndarray, pedals: dict[str, np.ndarray]) -> np.ndarray:
    """Ends of notes, each moved to where the sustain pedal that is down there goes up."""
    last = np.searchsorted(pedals["time"], end, side="right") - 1
    up = (pedals["time"] + pedals["duration"])[np.maximum(last, 0)]
    return np.where(last >= 0, np.maximum(end, up), end)


def _tempo_changes(score: symusic.Score, ticks_per_step: float) -> list[tuple[int, float]]:
    """(step, bpm) in order; of several in a step the last counts. A tempo that no metronome has
    (under 4, over 1,000) is left out."""
    tempos = sorted(score.tempos, key=lambda tempo: tempo.time)
    return list({int(np.floor(tempo.time / ticks_per_step + 0.5)): 60e6 / tempo.mspq
                 for tempo in tempos if 60_000 <= tempo.mspq <= 15_000_000}.items())


# ---------------------------------------------------------------- the bytes of a MIDI file


def split_midi(data: bytes) -> tuple[bytes, list[bytes]]:
    """The header's six bytes and the tracks' bodies. What stands before the header (RIFF) and
    chunks of other kinds are passed over.

    Raises `MusicError` with the reason, without the file's name, as do the functions below.
    """
    at = data.find(b"MThd", 0, 2**16)
    if at < 0:
        raise MusicError(f"not a MIDI file but {_what_else(data)}")
    header, at = data[at + 8 : at + 14], at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
    if len(header) < 6:
        raise MusicError("cut short within the header; download it again, or leave it out")
    frames, ticks = 256 - header[4], header[5]
    if frames in (24, 25, 29, 30):  # SMPTE: ticks of seconds, not of beats; read at 120 bpm
        header = header[:4] + max(frames * ticks // 2, 1).to_bytes(2, "big")
    if not 0 < int.from_bytes(header[4:], "big") < 2**15:
        raise MusicError("its header gives no ticks per beat; leave it out")
    tracks, name = [], b""
    while at + 8 <= len(data):
        name, end = data[at : at + 4], at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        if name == b"MTrk":
            tracks.append(data[at + 8 : end])
        if end > len(data):
            break
        at = end
    missing = len(tracks) < int.from_bytes(header[2:4], "big")
    if at + 8 <= len(data) and (name == b"MTrk" or missing):  # the last chunk does not end here
        raise MusicError(f"cut short or damaged on the way, from byte {at:,} on; download it again "
                         "as binary, or leave it out")
    if not tracks:
        raise MusicError("a header and no tracks, so no notes; leave it out")
    if len(tracks) > MAX_TRACKS:
        raise MusicError(f"{len(tracks):,} tracks, more than any piece has; leave it out")
    return header, tracks


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


def _what_else(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if not data:
        return "an empty one; download it again, or leave it out"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer to one; run 'git lfs pull'"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; download it again, or leave it out"
    return "something else (it has no MThd header); leave it out"


def _parsed(data: bytes) -> "symusic.Score | None":
    """The score as symusic reads it; None where it fails or finds no notes."""
    header, tracks = split_midi(data)
    try:
        score = symusic.Score.from_midi(_joined(header, map(_released, tracks)),
                                        sanitize_data=True)  # without it, it may crash
    except Exception:  # it raises many kinds
        return None
    return score if score.note_num() else None


def _rewritten(data: bytes) -> bytes:
    """The file written anew with what mido reads in it, numbers out of range made to fit."""
    if len(data) > MAX_ODD_BYTES:
        raise MusicError(f"damaged, and over {MAX_ODD_BYTES >> 20} MiB; leave it out")
    tracks, anew = _joined(*split_midi(data)), io.BytesIO()
    try:
        mido.MidiFile(file=io.BytesIO(tracks), clip=True).save(file=anew)
    except Exception as error:  # mido raises many kinds
        reason = str(error).partition("\n")[0][:60] or "it ends within an event"
        raise MusicError(f"damaged ({reason}); download it again, or leave it out") from None
    return anew.getvalue()


def _joined(header: bytes, tracks: Iterable[bytes]) -> bytes:
    """A MIDI file of a header's six bytes and the tracks' bodies."""
    chunks = [b"MTrk" + len(body).to_bytes(4, "big") + body for body in tracks]
    count = min(len(chunks), 65535).to_bytes(2, "big")
    return b"".join([b"MThd\0\0\0\6", header[:2], count, header[4:], *chunks])


def _released(body: bytes) -> bytes:
    """A track with a note-off for every key at its end: symusic drops notes that have none."""
    channels = [channel for channel in range(16) if bytes([0x90 | channel]) in body]
    body = body.removesuffix(END_OF_TRACK) if body.endswith(END_OF_TRACK) else body + b"\0"
    offs = (bytes([0x80 | channel]) + ALL_KEYS for channel in channels)
    return b"".join([body, *offs, END_OF_TRACK])


# ---------------------------------------------------------------- bars and windows


def bar_lines_of(picture: PianoRoll) -> np.ndarray:
    """The columns where the bars of a whole piece begin, int64, see `bars.bar_lines`."""
    return bars.bar_lines(notes_of(picture), picture.pixels.shape[1], list(picture.signatures),
                          picture.steps_per_beat)


def windows(picture: PianoRoll, preset: Preset, hop: int = 8, lines: np.ndarray | None = None,
            min_notes: int = 1) -> list[PianoRoll]:
    """Cut a piece into images of the preset's size that begin on bar lines; the last is padded.

    `hop` is the distance from one window to the next in eighths of the preset's width, cut to
    whole bars: 8 is side by side, with less they overlap. `lines` are the piece's bar lines,
    `bar_lines_of` it by default. Windows with fewer than `min_notes` onsets are left out.
    """
    low = preset.lowest_pitch - picture.lowest_pitch
    rows = picture.pixels[max(low, 0) : max(low + preset.pitches, 0)]
    cut = []
    for first in _window_starts(bar_lines_of(picture) if lines is None else lines, rows.shape[1],
                                preset.steps, preset.steps * hop // 8):
        part = rows[:, max(first, 0) : first + preset.steps]
        if np.count_nonzero(part > SUSTAIN) >= min_notes:
            pixels = np.zeros((preset.pitches, preset.steps), dtype=np.uint8)
            pixels[max(-low, 0) :, max(-first, 0) :][: len(part), : part.shape[1]] = part
            cut.append(replace(picture, pixels=pixels, lowest_pitch=preset.lowest_pitch,
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


def tempo_at(picture: PianoRoll, step: int) -> float:
    """The tempo in beats a minute at a column of the roll."""
    return next((bpm for at, bpm in reversed(picture.tempo_changes) if at <= step),
                picture.tempo_bpm)


# ---------------------------------------------------------------- piano roll → MIDI


def to_midi(picture: PianoRoll, program: int = 0) -> pretty_midi.PrettyMIDI:
    """A piano roll as MIDI: one instrument, its first tempo, every note exactly on the grid."""
    step_s = 60 / picture.tempo_bpm / picture.steps_per_beat
    resolution = picture.steps_per_beat * max(1, 480 // picture.steps_per_beat)
    midi = pretty_midi.PrettyMIDI(resolution=resolution, initial_tempo=picture.tempo_bpm)
    instrument = pretty_midi.Instrument(program=program, name="piano roll")
    instrument.notes = [
        pretty_midi.Note(velocity, pitch, start * step_s, (start + length) * step_s)
        for start, length, pitch, velocity in notes_of(picture).tolist()]
    midi.instruments.append(instrument)
    return midi


def save_midi(picture: PianoRoll, path: str | Path) -> Path:
    """Write `to_midi(picture)`, whole or not at all. Raises `MusicError` for a silent one."""
    midi = to_midi(picture)
    if not midi.instruments[0].notes:
        raise MusicError(f"{path}: the picture is silent, so there is no MIDI to write")
    with atomic(path) as temporary:
        midi.write(str(temporary))
    return Path(path)


# ---------------------------------------------------------------- piano roll ↔ PNG


def png_bytes(picture: PianoRoll) -> bytes:
    """A gray 8-bit PNG whose text chunks carry the roll's `FACTS`.

    Written as the PNG specification says, rows without a filter: a third of Pillow's time, which
    tries five filters on each row.
    """
    height, width = picture.pixels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row after the number of its filter, 0
    rows[:, 1:] = picture.pixels
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
              *((b"iTXt", f"{name}\0\0\0\0\0{getattr(picture, name)}".encode()) for name in FACTS),
              (b"IDAT", deflate.compress(rows) + deflate.flush()), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks)


def save_png(picture: PianoRoll, path: str | Path) -> Path:
    """Write `png_bytes(picture)`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(png_bytes(picture))
    return Path(path)


def load_png(path: str | Path, data: bytes | None = None) -> PianoRoll:
    """Read an image. One without facts has 128 rows from pitch 0 or 106 from pitch 21.

    `data` are the PNG's bytes where it is no file of its own; `path` then says where it came from.
    Black and white (two values, no facts): each run of lit pixels is one note, velocity 100.
    16-bit gray keeps its upper eight bits. Raises `MusicError` for what is no piano roll.
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
            is_gray = image.mode == "L" or not np.ptp(np.asarray(image.convert("RGB")), 2).any()
            pixels = np.asarray(image.convert("L"))
    except MusicError:
        raise
    except Exception:  # Pillow raises many kinds
        raise MusicError(f"{path}: cannot be read as a PNG; make it again, or leave it out"
                         ) from None
    if "lowest_pitch" in facts and "steps_per_beat" in facts:
        return _with_facts(path, pixels, facts)
    if not is_gray:
        raise MusicError(f"{path}: a colour image; convert it to grayscale, or give one that "
                         "notebook 01 made")
    if len(pixels) not in LOWEST_PITCH_OF_ROWS:
        raise MusicError(f"{path}: {pixels.shape[1]}×{len(pixels)} pixels, no facts: {wrong}")
    if np.mean(pixels >= 32) > 0.5:
        raise MusicError(f"{path}: most of it would sound at once: {wrong}")
    if len(np.unique(pixels)) <= 2:
        lit = pixels > 0
        first = lit & ~np.pad(lit, ((0, 0), (1, 0)))[:, :-1]
        pixels = np.where(first, ONSET + VELOCITY_BLACK_AND_WHITE, lit * SUSTAIN).astype(np.uint8)
    return PianoRoll(pixels, LOWEST_PITCH_OF_ROWS[len(pixels)], source=path.name)


def _with_facts(path: Path, pixels: np.ndarray, facts: dict[str, str]) -> PianoRoll:
    try:
        picture = PianoRoll(pixels, int(facts["lowest_pitch"]), int(facts["steps_per_beat"]),
                          float(facts.get("tempo_bpm", 120)), str(facts.get("source", path.name)),
                          int(facts.get("start_step", 0)))
        sane = (0 <= picture.lowest_pitch <= 128 - len(pixels)
                and 1 <= picture.steps_per_beat <= 480 and 4 <= picture.tempo_bpm <= 1000)
    except ValueError:
        sane = False
    if not sane:
        raise MusicError(f"{path}: its text chunks are damaged; make the image again")
    return picture


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
