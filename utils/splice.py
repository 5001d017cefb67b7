"""Put new notes into some bars of a MIDI file and leave all else as it was. See notebook 08.

Every message of the file is kept in its place. Which bar a note belongs to is decided on the grid:
one that is struck a hair early belongs to the bar it leads into.
"""

import copy
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np

from utils import pianoroll, repair
from utils.files import MusicError, atomic
from utils.pianoroll import DIFFUSION, HELD, Picture

MODES = ("continue", "infill", "vary", "long")
STEPS_PER_BEAT = 4
WIDTH = DIFFUSION.steps  # columns that the network sees at once
LONGEST_S, MOST_BARS = 3600, 2000
DRUMS = 9
NEVER = 2**40  # the tick at which a note ends that is never released
PEDAL, VOLUME, EXPRESSION = 64, 7, 11
RESTING = {PEDAL: (0, 63, 0), VOLUME: (32, 127, 100), EXPRESSION: (32, 127, 127)}  # from, to, reset


@dataclass(frozen=True, eq=False)
class Piece:
    """A MIDI file, every message of it, and its picture.

    `events[track]` are pairs (tick, message); `groups[track]` gives each message the number of the
    stroke it belongs to, -1 for what is no note. `notes` is int64 `[N, 8]`: group, track, channel,
    pitch, velocity, start tick, start step, end step. `spans` is int64 `[groups, 2]`, the ticks of
    a group's first and last message. `bar_lines` are the steps where bars begin, and last where
    the final one ends.
    """

    path: Path
    midi: mido.MidiFile
    events: list[list[tuple[int, mido.Message]]]
    groups: list[list[int]]
    notes: np.ndarray
    spans: np.ndarray
    picture: Picture
    bar_lines: np.ndarray

    @property
    def bars(self) -> int:
        """How many bars the piece has; the last may be partly empty."""
        return len(self.bar_lines) - 1

    @property
    def steps_per_bar(self) -> int:
        """Steps in a bar at the end of the piece."""
        return int(self.bar_lines[-1] - self.bar_lines[-2])


# ---------------------------------------------------------------- a MIDI file and its bars


def open_midi(path: str | Path) -> Piece:
    """Read a file with all its messages. A damaged one is repaired first: notes, pedal and tempo.

    Raises `MusicError` for a file without notes, one of more than an hour, and one whose metre
    does not fit sixteenths.
    """
    path = Path(path)
    picture = pianoroll.read_midi(path, STEPS_PER_BEAT)
    seconds = seconds_until(picture, picture.levels.shape[1])
    if seconds > LONGEST_S:
        raise MusicError(f"{path}: lasts {seconds / 3600:.1f} hours; cut it to one or less")
    data = path.read_bytes()
    for sound in (lambda: data, lambda: repair.repair(data)):
        try:
            midi = mido.MidiFile(file=io.BytesIO(sound()), clip=True)
            piece = _piece(path, midi, picture)
        except MusicError:
            raise
        except Exception:  # mido raises many kinds
            continue
        if np.array_equal(_levels(piece.notes, picture.levels.shape[1]), picture.levels):
            return piece
    raise MusicError(f"{path}: damaged, it cannot be changed without loss; save it anew with a "
                     "music program first")


def seconds_until(picture: Picture, step: int) -> float:
    """The second at which a column of a whole piece begins, by its tempo map."""
    changes = [(0, picture.tempo_bpm), *picture.tempo_changes, (max(step, 0) + 2**30, 1.0)]
    return sum(max(min(after, step) - at, 0) / STEPS_PER_BEAT * 60 / bpm
               for (at, bpm), (after, _) in itertools.pairwise(changes))


def _piece(path: Path, midi: mido.MidiFile, picture: Picture) -> Piece:
    if midi.type > 1 or not 0 < midi.ticks_per_beat < 2**15:
        raise ValueError("not a file of one piece in beats")
    if midi.ticks_per_beat < 48:  # too coarse for whole ticks: the same times in finer ticks
        finer = -(-96 // midi.ticks_per_beat)
        midi.ticks_per_beat *= finer
        for message in (message for track in midi.tracks for message in track):
            message.time *= finer
    events, groups, rows, spans = [], [], [], []
    for number, track in enumerate(midi.tracks):
        ticks = np.cumsum([message.time for message in track]).tolist()
        events.append(list(zip(ticks, track, strict=True)))
        groups.append(_strokes(events[-1], number, rows, spans))
    notes = np.array(rows, dtype=np.int64).reshape(-1, 7)
    per_step = midi.ticks_per_beat / STEPS_PER_BEAT
    start, end = (np.floor(notes[:, i] / per_step + 0.5).astype(np.int64) for i in (5, 6))
    notes = np.column_stack([notes[:, :6], start, np.maximum(end, start + 1)])
    notes = notes[(notes[:, 2] != DRUMS) & (end < NEVER / per_step / 2)]
    lines = bar_lines(path, events, midi.ticks_per_beat, picture.levels.shape[1])
    return Piece(path, midi, events, groups, notes, np.array(spans).reshape(-1, 2), picture, lines)


def _strokes(events: list, track: int, rows: list, spans: list) -> list[int]:
    """The group of each message. Appends to `rows` (group, track, channel, pitch, velocity, start
    tick, end tick) and to `spans`.

    The first note-off ends all notes of its key that began before it, as on a piano; what sounded
    together is one group, with the note-offs that follow it.
    """
    group_of, sounding, latest = [], {}, {}
    for tick, message in events:
        if message.type not in ("note_on", "note_off"):
            group_of.append(-1)
            continue
        key = message.channel, message.note
        is_on = message.type == "note_on" and message.velocity > 0
        if is_on and not sounding.get(key):
            latest[key] = len(spans)
            spans.append([tick, NEVER])
        group_of.append(group := latest.get(key, -1))
        if is_on:
            sounding.setdefault(key, []).append(len(rows))
            rows.append([group, track, *key, message.velocity, tick, NEVER])
            spans[group][1] = NEVER
        elif group >= 0:
            still = sounding.get(key, [])
            ended = [row for row in still if rows[row][5] < tick] or still[:1]
            for row in ended:
                rows[row][6] = tick
            sounding[key] = [row for row in still if row not in ended]
            spans[group][1] = NEVER if sounding[key] else tick
    return group_of


def bar_lines(path: Path, events: list, ticks_per_beat: int, steps: int) -> np.ndarray:
    """Steps where bars begin, by the file's time signatures (4/4 without), int64, to past the end.

    A signature in the middle of a bar begins a new one. Raises `MusicError` where a bar is not a
    whole number of sixteenths, or longer than the network sees.
    """
    signatures = {0: (4, 4)}
    for track in events:
        for tick, message in track:
            if message.type == "time_signature" and message.numerator:
                step = round(tick / ticks_per_beat * STEPS_PER_BEAT)
                signatures[step] = message.numerator, message.denominator
    lines, starts = [], sorted(step for step in signatures if step < steps)
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        upper, lower = signatures[start]
        length = 4 * STEPS_PER_BEAT * upper / lower
        if length % 1 or not 1 <= length <= WIDTH:
            raise MusicError(f"{path}: its metre is {upper}/{lower} from bar {len(lines) + 1} on; "
                             "a bar must be 1 to 128 sixteenths, choose another file")
        lines += range(start, end, int(length))
    return np.array([*lines, lines[-1] + int(length)], dtype=np.int64)


def _levels(notes: np.ndarray, steps: int) -> np.ndarray:
    """The picture of a table of notes, uint8 `[128, steps]`."""
    start, end = notes[:, 6], notes[:, 7]
    return pianoroll.paint(np.stack([start, end - start, notes[:, 3], notes[:, 4]], 1), 128, steps)


# ---------------------------------------------------------------- which bars, which notes


def choose_bars(piece: Piece, mode: str, bars: int, first_bar: int = 0) -> tuple[int, int]:
    """The columns to paint, from and up to. Bars count from 1.

    `first_bar` 0 takes the middle for "infill" and the whole piece for "vary"; "continue" begins
    after the last bar. Raises `MusicError` for a range outside the piece.
    """
    check(mode, bars)
    lines = piece.bar_lines
    if mode == "continue":
        return int(lines[-1]), int(lines[-1]) + bars * piece.steps_per_bar
    if first_bar == 0:
        first_bar, bars = ((piece.bars - bars) // 2 + 1, bars) if mode == "infill" else \
            (1, piece.bars)
    if first_bar < 1 or first_bar + bars - 1 > piece.bars:
        raise MusicError(f"{piece.path}: has {piece.bars} bars; {mode} cannot paint bars "
                         f"{first_bar} to {first_bar + bars - 1}, change bars or first_bar")
    return int(lines[first_bar - 1]), int(lines[first_bar - 1 + bars])


def check(mode: str, bars: int) -> None:
    """Raise `MusicError` for an unknown mode or an impossible number of bars."""
    if mode not in MODES:
        raise MusicError(f"mode {mode!r}; choose one of {', '.join(MODES)}")
    if not 1 <= bars <= MOST_BARS:
        raise MusicError(f"bars is {bars}; choose 1 to {MOST_BARS:,}")


def inside(piece: Piece, begin: int, end: int) -> np.ndarray:
    """Which notes give way to new ones, bool `[N]`: those that sound in these columns alone.

    A note that reaches over the edge stays whole, and so does any that it touches on its own
    pitch: without it the other would sound for longer.
    """
    group, pitch, start, stop = piece.notes[:, [0, 3, 6, 7]].T
    staying = np.isin(group, group[(start < begin) | (stop > end)])
    for i in np.flatnonzero(staying & (start < end) & (stop > begin)):
        touched = (pitch == pitch[i]) & (start < stop[i]) & (stop > start[i])
        staying |= np.isin(group, group[touched])
    return ~staying


def kept_levels(piece: Piece, begin: int, end: int) -> np.ndarray:
    """The picture without the notes that give way, uint8 `[128, steps]`, at least to `end`."""
    notes = piece.notes[~inside(piece, begin, end)]
    return _levels(notes, max(end, int(piece.bar_lines[-1])))


def new_notes(levels: np.ndarray, kept: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The notes that were painted in these columns, `[M, 4]` as `pianoroll.notes_of`.

    A tail without a head is left out: it is a stray pixel, or would prolong a note that is kept.
    """
    free = np.where(kept[:, begin:end] > 0, 0, levels[:, begin:end]).astype(np.uint8)
    notes = pianoroll.notes_of(Picture(free))
    notes = notes[free[notes[:, 2], notes[:, 0]] > HELD]
    notes[:, 0] += begin
    return notes


# ---------------------------------------------------------------- back into the file


def replace_notes(piece: Piece, notes: np.ndarray, begin: int, end: int) -> mido.MidiFile:
    """The file with the notes within these columns replaced by `notes` (`[M, 4]`, in steps).

    All other messages stay as they are, on their ticks. An old note that stands among the new ones
    on the grid stays too, with its own timing and loudness. A new note goes to the track and
    channel of the old note nearest in pitch and time.
    """
    old = inside(piece, begin, end)
    wanted = {tuple(note) for note in notes[:, :3].tolist()}
    places = [(start, stop - start, pitch) for pitch, start, stop in piece.notes[:, [3, 6, 7]]
              .tolist()]
    same = old & np.array([place in wanted for place in places], dtype=bool)
    single = np.bincount(piece.notes[:, 0], minlength=len(piece.spans))[piece.notes[:, 0]] == 1
    same &= single
    gone = set(piece.notes[old & ~same, 0].tolist())
    found = {place for place, stays in zip(places, same, strict=True) if stays}
    notes = notes[[tuple(note) not in found for note in notes[:, :3].tolist()]]
    tracks = [[(tick, 0, message) for (tick, message), group in zip(events, groups, strict=True)
               if group not in gone and message.type != "end_of_track"]
              for events, groups in zip(piece.events, piece.groups, strict=True)]
    for track, on_tick, off_tick, channel, pitch, velocity in _in_ticks(piece, notes, gone):
        on = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
        tracks[track].append((on_tick, 1, on))
        tracks[track].append((off_tick, -1, on.copy(velocity=0)))
    if begin >= piece.bar_lines[-1]:
        for track, message in _resting(piece):
            tracks[track].append((round(begin * piece.midi.ticks_per_beat / STEPS_PER_BEAT), 0,
                                  message))
    return _assembled(piece, tracks)


def _in_ticks(piece: Piece, notes: np.ndarray, gone: set[int]) -> list[tuple[int, ...]]:
    """(track, start tick, end tick, channel, pitch, velocity), clear of what stays on the pitch."""
    per_step = piece.midi.ticks_per_beat / STEPS_PER_BEAT
    staying: dict[int, list[tuple[int, int]]] = {}
    tracks = zip(piece.events, piece.groups, strict=True)
    pitches = {group: message.note for events, groups in tracks
               for (_, message), group in zip(events, groups, strict=True)
               if group >= 0 and message.channel != DRUMS}
    for group in pitches.keys() - gone:
        staying.setdefault(pitches[group], []).append(tuple(piece.spans[group].tolist()))
    placed = []
    for start, length, pitch, velocity in notes.tolist():
        on, off = round(start * per_step), round((start + length) * per_step)
        for first, last in sorted(staying.get(pitch, [])):
            if first <= on < last:
                on = last
            elif on < first < off:
                off = first
        if on < off:
            far = np.abs(piece.notes[:, 3] - pitch) + np.abs(piece.notes[:, 6] - start) / 4
            _, track, channel = piece.notes[far.argmin(), :3].tolist()
            placed.append((track, on, off, channel, pitch, velocity))
    return placed


def _resting(piece: Piece) -> list[tuple[int, mido.Message]]:
    """(track, message) that lift pedals, undo fade-outs and unbend pitches at the piece's end."""
    last: dict[tuple, tuple[int, mido.Message]] = {}
    for track, events in enumerate(piece.events):
        for tick, message in events:
            if message.type == "pitchwheel" or (message.type == "control_change"
                                                and message.control in RESTING):
                key = message.channel, getattr(message, "control", -1)
                last[key] = max(last.get(key, (-1, 0, None)), (tick, track, message),
                                key=lambda seen: seen[0])
    result = []
    for _, track, message in last.values():
        if message.type == "pitchwheel" and message.pitch:
            result.append((track, message.copy(pitch=0, time=0)))
        elif message.type == "control_change":
            low, high, reset = RESTING[message.control]
            if not low <= message.value <= high:
                result.append((track, message.copy(value=reset, time=0)))
    return result


def _assembled(piece: Piece, tracks: list[list[tuple[int, int, mido.Message]]]) -> mido.MidiFile:
    """A file of (tick, rank, message); at one tick new note-offs come first, new note-ons last."""
    result = mido.MidiFile(type=piece.midi.type, ticks_per_beat=piece.midi.ticks_per_beat,
                           charset=piece.midi.charset)
    for events, old in zip(tracks, piece.events, strict=True):
        events.sort(key=lambda event: event[:2])
        last = max([events[-1][0] if events else 0, old[-1][0] if old else 0])
        track, before = mido.MidiTrack(), 0
        for tick, _, message in [*events, (last, 0, mido.MetaMessage("end_of_track"))]:
            message = copy.copy(message)
            message.time, before = tick - before, tick
            track.append(message)
        result.tracks.append(track)
    return result


def save(midi: mido.MidiFile, path: str | Path) -> Path:
    """Write a MIDI file, whole or not at all."""
    with atomic(path) as temporary:
        midi.save(temporary)
    return Path(path)
