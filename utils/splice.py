"""Put new notes into some bars of a MIDI file and leave all else as it was. See notebook 08.

Every message of the file is kept in its place. Which bar a note belongs to is decided on the grid:
one that is struck a hair early belongs to the bar it leads into.
"""

import collections
import copy
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import mido
import numpy as np

from utils import audio, endings, messages, pianoroll
from utils.files import MusicError, atomic
from utils.pianoroll import DIFFUSION, HELD, Picture

MODES = ("continue", "infill", "vary", "long")
STEPS_PER_BEAT = 4
WIDTH = DIFFUSION.steps  # columns that the network sees at once
LONGEST_S, MOST_BARS = 3600, 2000
LIMITS = {"bars": (1, MOST_BARS), "first_bar": (0, 100_000), "strength": (0, 1),
          "sampling_steps": (1, 1000), "seed": (0, 2**32 - 1)}
DRUMS = 9
NEVER = 2**40  # the tick at which a note ends that is never released


@dataclass(frozen=True, eq=False)
class Piece:
    """A MIDI file, every message of it, and its picture. Where `damaged`, what could be repaired.

    `events[track]` are pairs (tick, message); `groups[track]` gives each message the number of the
    stroke it belongs to, -1 for what is no note. `notes` is int64 `[N, 8]`: group, track, channel,
    pitch, velocity, start tick, start step, end step. `spans` is int64 `[groups, 2]`, the ticks
    between which a group sounds. `bar_lines` are the steps where bars begin, and last where the
    final one ends, the last that holds a note or a drum.
    """

    path: Path
    midi: mido.MidiFile
    events: list[list[tuple[int, mido.Message]]]
    groups: list[list[int]]
    notes: np.ndarray
    spans: np.ndarray
    picture: Picture
    bar_lines: np.ndarray
    damaged: bool = False

    @property
    def bars(self) -> int:
        """How many bars the piece has; the last may be partly empty."""
        return len(self.bar_lines) - 1

    @property
    def steps_per_bar(self) -> int:
        """Steps in a bar at the end of the piece."""
        return self.bar_at(int(self.bar_lines[-1]))

    def bar_at(self, step: int) -> int:
        """Steps in the bar that holds a column; after the end, in the last bar."""
        number = np.searchsorted(self.bar_lines[1:-1], step, side="right")
        return int(self.bar_lines[number + 1] - self.bar_lines[number])


# ---------------------------------------------------------------- a MIDI file and its bars


def open_midi(path: str | Path) -> Piece:
    """Read a file with all its messages. Of a damaged one only notes, pedal and tempo are read.

    Raises `MusicError` for a file without notes, one of more than an hour, and one whose metre
    does not fit sixteenths.
    """
    path = Path(path)
    picture = pianoroll.read_midi(path, STEPS_PER_BEAT)
    data = path.read_bytes()
    if (piece := _faithful(path, data[data.find(b"MThd"):], picture)) is not None:
        return piece
    try:
        sound = pianoroll.sound_bytes(data)
    except MusicError as reason:
        raise MusicError(f"{path}: {reason}") from None
    if (piece := _faithful(path, sound, picture)) is not None:
        return replace(piece, damaged=True)
    raise MusicError(f"{path}: damaged, it cannot be changed without loss; save it anew with a "
                     "music program first")


def _faithful(path: Path, data: bytes, picture: Picture) -> Piece | None:
    """The piece, or None where its messages cannot be read or do not give its picture."""
    try:
        piece = _piece(path, messages.read(data), picture)
    except MusicError:
        raise
    except Exception:  # mido raises many kinds
        return None
    width = int(piece.notes[:, 7].max(initial=0))
    return piece if np.array_equal(_levels(piece.notes, width), picture.levels) else None


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
    ends = end < NEVER / per_step / 2
    end = np.maximum(np.where(ends, end, start), start + 1)
    last = int(end.max(initial=1))
    if (seconds := seconds_until(picture, last)) > LONGEST_S:
        raise MusicError(f"{path}: lasts {seconds / 60:.0f} minutes; cut it to 60 or fewer")
    notes = np.column_stack([notes[:, :6], start, end])[(notes[:, 2] != DRUMS) & ends]
    lines = bar_lines(path, events, midi.ticks_per_beat, last)
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
            if ended and not sounding[key]:  # later note-offs end nothing
                spans[group][1] = tick
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


def tempo_after(piece: Piece) -> float:
    """The beats a minute of bars that follow: a ritardando at the end does not slow them."""
    return 60e6 / endings.usual_tempo(piece.events, *_last_bars(piece))


def _last_bars(piece: Piece) -> tuple[int, int]:
    """The ticks from which on, and to which, the last bars say what is usual."""
    end = piece.bar_lines[-1]
    first = max(end - endings.LATE_BARS * piece.steps_per_bar, 0)
    per_step = piece.midi.ticks_per_beat / STEPS_PER_BEAT
    return round(first * per_step), round(end * per_step)


def choose_bars(piece: Piece, mode: str, bars: int, first_bar: int = 0) -> tuple[int, int]:
    """The columns to paint, from and up to. Bars count from 1.

    `first_bar` 0 takes the middle for "infill" and the whole piece for "vary"; "continue" begins
    after the last bar. Raises `MusicError` for a range outside the piece, and for a result that is
    too long to be heard.
    """
    check(mode, bars=bars)
    lines, count = piece.bar_lines, piece.bars
    if mode == "continue":
        begin, end = int(lines[-1]), int(lines[-1]) + bars * piece.steps_per_bar
        more_s = (end - begin) / STEPS_PER_BEAT * 60 / tempo_after(piece)
        if (seconds := seconds_until(piece.picture, begin) + more_s) > audio.LONGEST_S:
            raise MusicError(f"{piece.path}: with {bars} more bars it would last "
                             f"{seconds / 3600:.1f} hours; choose fewer bars, 2 hours is the most")
        return begin, end
    if mode == "vary" and first_bar == 0:
        first_bar, bars = 1, count
    if bars > count:
        raise MusicError(f"{piece.path}: has {count} bars; {mode} cannot paint {bars}, set bars to "
                         f"{count} or fewer")
    first_bar = first_bar or (count - bars) // 2 + 1
    if not 1 <= first_bar <= count - bars + 1:
        raise MusicError(f"{piece.path}: has {count} bars; {mode} cannot paint bars "
                         f"{first_bar} to {first_bar + bars - 1}, change bars or first_bar")
    return int(lines[first_bar - 1]), int(lines[first_bar - 1 + bars])


def check(mode: str, **numbers: float) -> None:
    """Raise `MusicError` for an unknown mode or a number out of its `LIMITS`."""
    if mode not in MODES:
        raise MusicError(f"mode {mode!r}; choose one of {', '.join(MODES)}")
    for name, value in numbers.items():
        low, high = LIMITS[name]
        kinds = (int, float) if name == "strength" else int
        if not isinstance(value, kinds) or not low <= value <= high:
            raise MusicError(f"{name} is {value}; choose {low} to {high:,}")


def _runs(notes: np.ndarray) -> np.ndarray:
    """The number of each note's run, int64 `[N]`: notes of a pitch that overlap, or share a group.

    The picture cannot show such notes one by one, so they stay or go together.
    """
    group, pitch, start, stop = notes[:, [0, 3, 6, 7]].T
    first, last = np.full(group.max(initial=0) + 1, NEVER), np.zeros(group.max(initial=0) + 1, int)
    np.minimum.at(first, group, start)
    np.maximum.at(last, group, stop)
    order = np.lexsort((first[group], pitch))
    first, last = ((edge[group] + pitch * NEVER)[order] for edge in (first, last))
    begins = np.append(True, first[1:] >= np.maximum.accumulate(last)[:-1])[: len(notes)]
    runs = np.empty(len(notes), np.int64)
    runs[order] = np.cumsum(begins)
    return runs


def inside(piece: Piece, begin: int, end: int) -> np.ndarray:
    """Which notes give way to new ones, bool `[N]`: those that sound in these columns alone.

    A note that reaches over the edge stays whole, and so does its run: without it the others would
    sound for longer.
    """
    runs, start, stop = _runs(piece.notes), piece.notes[:, 6], piece.notes[:, 7]
    return ~np.isin(runs, runs[(start < begin) | (stop > end)])


def kept_levels(piece: Piece, begin: int, end: int) -> np.ndarray:
    """The picture without the notes that give way, uint8 `[128, steps]`, at least to `end`."""
    notes = piece.notes[~inside(piece, begin, end)]
    return _levels(notes, max(end, int(piece.bar_lines[-1])))


def density(kept: np.ndarray, begin: int, end: int) -> float:
    """Share of the pixels of `kept` that sound outside these columns; 0 where there are none."""
    outside = np.delete(kept, np.s_[begin:end], axis=1)
    return float((outside > 0).mean()) if outside.size else 0.0


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

    All other messages stay as they are, on their ticks. Old notes that stand among the new ones on
    the grid stay too, with their own timing and loudness. A new note goes to the track and channel
    of the old note nearest in pitch and time. One for which a kept note leaves no room is left out.
    """
    old, runs = inside(piece, begin, end), _runs(piece.notes)
    wanted = {tuple(note) for note in notes[:, :3].tolist()}
    run_at = {(start, pitch): run for pitch, start, run in
              np.column_stack([piece.notes[:, [3, 6]], runs])[old].tolist()}
    shown = [tuple(note) for note in  # the old notes as the picture shows them
             pianoroll.notes_of(Picture(_levels(piece.notes[old], end)))[:, :3].tolist()]
    changed = {run_at[note[0], note[2]] for note in shown if note not in wanted}
    same = {note for note in shown if run_at[note[0], note[2]] not in changed}
    gone = set(piece.notes[old & np.isin(runs, list(changed)), 0].tolist())
    notes = notes[[tuple(note) not in same for note in notes[:, :3].tolist()]]
    tracks = [[(tick, 0, message) for (tick, message), group in zip(events, groups, strict=True)
               if group not in gone and message.type != "end_of_track"]
              for events, groups in zip(piece.events, piece.groups, strict=True)]
    for track, on_tick, off_tick, channel, pitch, velocity in _in_ticks(piece, notes, gone):
        on = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
        tracks[track].append((on_tick, 1, on))
        tracks[track].append((off_tick, -1, on.copy(velocity=0)))
    if begin >= piece.bar_lines[-1]:
        for tick, track, message in endings.resting(piece.events, *_last_bars(piece)):
            tracks[track].append((tick, 0, message))
    return _assembled(piece, tracks)


def _in_ticks(piece: Piece, notes: np.ndarray, gone: set[int]) -> list[tuple[int, ...]]:
    """(track, start tick, end tick, channel, pitch, velocity), clear of what stays on the pitch."""
    per_step = piece.midi.ticks_per_beat / STEPS_PER_BEAT
    staying: dict[int, set[tuple[int, int]]] = {}
    for events, groups in zip(piece.events, piece.groups, strict=True):
        for (tick, message), group in zip(events, groups, strict=True):
            if message.type in ("note_on", "note_off") and message.channel != DRUMS \
                    and group not in gone:
                blocks = staying.setdefault(message.note, set())
                blocks.add((tick, tick))  # a note-off that ends no old note would end a new one
                if group >= 0:
                    blocks.add(tuple(piece.spans[group].tolist()))
    ordered = {pitch: sorted(blocks) for pitch, blocks in staying.items()}
    placed = []
    for start, length, pitch, velocity in notes.tolist():
        on, off = round(start * per_step), round((start + length) * per_step)
        for first, last in ordered.get(pitch, []):
            if first <= on < last:
                on = last
            elif on < first < off:
                off = first
        if on < off:
            far = np.abs(piece.notes[:, 3] - pitch) + np.abs(piece.notes[:, 6] - start) / 4
            _, track, channel = piece.notes[far.argmin(), :3].tolist()
            placed.append((track, on, off, channel, pitch, velocity))
    return placed


def _assembled(piece: Piece, tracks: list[list[tuple[int, int, mido.Message]]]) -> mido.MidiFile:
    """A file of (tick, rank, message); at one tick new note-offs come first, new note-ons last."""
    kind = 1 if len(tracks) > 1 else piece.midi.type  # type 0 has one track alone
    result = mido.MidiFile(type=kind, ticks_per_beat=piece.midi.ticks_per_beat,
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


def stays(piece: Piece, path: str | Path, begin: int, end: int) -> bool:
    """Whether a file still has each message of the piece on its tick, but for the notes within
    these columns that may give way."""
    may_go = set(piece.notes[inside(piece, begin, end), 0].tolist())
    were = collections.Counter(
        (track, tick, str(message).rpartition("time=")[0])
        for track, pairs in enumerate(zip(piece.events, piece.groups, strict=True))
        for (tick, message), group in zip(*pairs, strict=True)
        if group not in may_go and message.type != "end_of_track")
    now: collections.Counter = collections.Counter()
    for track, found in enumerate(messages.read(Path(path).read_bytes()).tracks):
        tick = 0
        for message in found:
            tick += message.time
            now[track, tick, str(message).rpartition("time=")[0]] += 1
    return were <= now


def save(midi: mido.MidiFile, path: str | Path) -> Path:
    """Write a MIDI file, whole or not at all."""
    with atomic(path) as temporary:
        midi.save(temporary)
    return Path(path)
