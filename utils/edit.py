"""Put new notes into some bars of a MIDI file and keep the rest. Explained in notebook 08.

All other messages stay in their track, on their tick. Which bar a note belongs to is decided on the
grid: a note that is played a little early belongs to the bar that it leads into. A file that mido
cannot read in full (a key of eight sharps, say) is refused.
"""

import collections
import copy
import io
import itertools
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import mido
import numpy as np
from mido.midifiles.meta import _META_SPECS, MetaSpec, add_meta_spec

from utils import audio, bars, pianoroll
from utils.files import MusicError, atomic
from utils.pianoroll import DIFFUSION, SUSTAIN, PianoRoll

MODES = ("continue", "infill", "vary", "long", "accompany")
LIMITS = {"bars": (1, 2000), "density": (0, 64), "first_bar": (0, 100_000), "strength": (0, 1),
          "sampling_steps": (1, 1000), "seed": (0, 2**32 - 1)}
STEPS_PER_BEAT = 4
LOWEST, HIGHEST = 21, 108  # the keys of a piano: new notes stay within
DRUMS, PEDAL = 9, 64  # the channel (counted from 0), the control change
NEVER = 2**40  # the tick at which a note ends that is never released
TRACK, CHANNEL, PITCH, VELOCITY, ON, OFF, ON_INDEX, OFF_INDEX, START, STOP = range(10)
CHORD = re.compile(r"N|[A-G][#b]?(:\S+|(maj|min|m|M|dim|aug|sus|add|[-+°ø#b0-9()])*(/\S+)?)")


@dataclass(frozen=True, eq=False)
class MidiPiece:
    """A MIDI file with all its messages, its notes (without drums), its piano roll and its bars.

    `messages[track]` are pairs (tick, message). `notes` is int64 `[N, 10]`: track, channel, pitch,
    velocity, start and end in ticks, where its messages stand in the track, start and end in steps.
    `bar_lines` are the steps where bars begin, int64 `[bars + 1]`: the first may be negative, the
    last is where the piece ends. The last notes may ring a little beyond it.
    """

    path: Path
    midi: mido.MidiFile
    messages: list[list[tuple[int, mido.Message]]]
    notes: np.ndarray
    picture: PianoRoll
    bar_lines: np.ndarray

    @property
    def bars(self) -> int:
        """How many bars the piece has; the last may be partly empty."""
        return len(self.bar_lines) - 1

    def bar_at(self, step: int) -> int:
        """Steps in the bar that holds a column; after the end, in the last bar."""
        number = np.searchsorted(self.bar_lines[1:-1], step, side="right")
        return int(self.bar_lines[number + 1] - self.bar_lines[number])

    def tick(self, step: int) -> int:
        """The tick at which a column begins."""
        return round(step * self.midi.ticks_per_beat / STEPS_PER_BEAT)


# ---------------------------------------------------------------- read a MIDI file


def open_midi(path: str | Path) -> MidiPiece:
    """Read a MIDI file with all its messages.

    Raises `MusicError` for a folder, a damaged file, one without notes (drums are none), one that
    lasts too long to be rendered, and one with a bar that is longer than the network's window.
    """
    path = Path(path)
    if path.is_dir():
        raise MusicError(f"{path}: is a folder; give one MIDI file in it")
    picture = pianoroll.read_midi(path, STEPS_PER_BEAT)
    try:
        midi = _read(path.read_bytes())
    except Exception:  # mido raises many kinds
        raise MusicError(f"{path}: damaged, it cannot be changed without loss; save it anew with a "
                         "music program first") from None
    messages = [list(zip(np.cumsum([message.time for message in track]).tolist(), track,
                         strict=True)) for track in midi.tracks]
    rows = np.array(_pair(messages), dtype=np.int64).reshape(-1, 8)
    start, stop = (rows[:, [ON, OFF]] * STEPS_PER_BEAT / midi.ticks_per_beat + 0.5).astype(int).T
    notes = np.column_stack([rows, start, np.maximum(stop, start + 1)])
    released = notes[notes[:, OFF] < NEVER]
    if not len(released):
        raise MusicError(f"{path}: no notes (drums are left out); choose another file")
    picture = replace(picture, pixels=_roll(notes, int(released[:, STOP].max())))
    drums = [tick * STEPS_PER_BEAT // midi.ticks_per_beat for tick, message in
             itertools.chain(*messages) if message.type == "note_on" and message.channel == DRUMS]
    lines = _bar_lines(path, picture, max([*drums, int(released[:, START].max())]))
    if (seconds := seconds_until(picture, int(lines[-1]))) > audio.LONGEST_S:
        raise MusicError(f"{path}: lasts {seconds / 60:.0f} minutes; cut it to "
                         f"{audio.LONGEST_S // 60} or fewer")
    return MidiPiece(path, midi, messages, notes, picture, lines)


def _read(data: bytes) -> mido.MidiFile:
    """A MIDI file, in ticks that are fine enough for sixteenths. Raises errors of many kinds."""
    midi = mido.MidiFile(file=io.BytesIO(data[max(data.find(b"MThd"), 0) :]), clip=True)
    if midi.type > 1 or midi.ticks_per_beat < 1:
        raise ValueError("not a file of one piece in beats")
    if midi.ticks_per_beat < 24:
        for message in itertools.chain(*midi.tracks):
            message.time *= 24
        midi.ticks_per_beat *= 24
    return midi


class _OtherMeta(MetaSpec):
    """A meta event of a kind that mido does not know. Without it, mido forgets the event's time,
    so that all that follows comes too early (mido's manual: Adding Your Own Meta Messages)."""

    attributes, defaults = ["data"], [()]

    def decode(self, message: mido.MetaMessage, data: list[int]) -> None:
        message.data = tuple(data)

    def encode(self, message: mido.MetaMessage) -> list[int]:
        return list(message.data)

    def check(self, name: str, value: object) -> None:
        """Any data will do."""


for _kind in set(range(128)) - set(_META_SPECS):
    add_meta_spec(type("OtherMeta", (_OtherMeta,), {"type_byte": _kind, "type": f"meta_{_kind}"}))


def _is_note(message: mido.Message) -> bool:
    return message.type in ("note_on", "note_off") and message.channel != DRUMS


def _pair(messages: list[list[tuple[int, mido.Message]]]) -> list[list[int]]:
    """All notes but drums, from the track to the index of the note-off, as `MidiPiece.notes`.

    A note-off ends all notes of its key that began before it, as on a piano (and in pretty_midi).
    """
    rows, active = [], collections.defaultdict(list)
    for track, pairs in enumerate(messages):
        for index, (tick, message) in enumerate(pairs):
            if not _is_note(message):
                continue
            key = track, message.channel, message.note
            if message.type == "note_on" and message.velocity:
                active[key].append([*key, message.velocity, tick, NEVER, index, -1])
                rows.append(active[key][-1])
                continue
            for row in [row for row in active[key] if row[ON] < tick] or active[key][:1]:
                row[OFF], row[OFF_INDEX] = tick, index
                active[key].remove(row)
    return rows


def _roll(notes: np.ndarray, steps: int) -> np.ndarray:
    """The piano roll of rows of `MidiPiece.notes`, uint8 `[128, steps]`."""
    start, stop, pitch, velocity = notes[notes[:, OFF] < NEVER][:, [START, STOP, PITCH, VELOCITY]].T
    return pianoroll.roll_of(np.stack([start, stop - start, pitch, velocity], 1), 128, steps)


def _bar_lines(path: Path, picture: PianoRoll, last_onset: int) -> np.ndarray:
    """The bar lines of a piece, and where its last bar ends: the last one in which a note or a drum
    begins, or that sounds to its middle."""
    steps = max(picture.pixels.shape[1], last_onset + 1)
    longer = np.pad(picture.pixels, ((0, 0), (0, steps - picture.pixels.shape[1])))
    lines = pianoroll.bar_lines_of(replace(picture, pixels=longer))
    own = bars.lines_of(list(picture.signatures), steps + 4 * DIFFUSION.steps)
    estimated = not np.array_equal(lines, own[: len(lines)])
    lines = np.append(lines, lines[-1] + bars.BAR if estimated else own[len(lines)])
    if set(np.diff(lines)) == {STEPS_PER_BEAT}:  # no music has bars of one beat: four make a bar
        lines = np.arange(0, steps + bars.BAR, bars.BAR)
    if np.diff(lines).max() > DIFFUSION.steps:
        raise MusicError(f"{path}: its time signature gives bars of over {DIFFUSION.steps} "
                         "sixteenths; correct it in a music program, or choose another file")
    rings = len(lines) > 2 and last_onset < lines[-2] and 2 * steps < lines[-2] + lines[-1]
    return lines[:-1] if rings else lines


def seconds_until(picture: PianoRoll, step: int) -> float:
    """The second at which a column of a whole piece begins, by its tempo changes."""
    changes = [(0, picture.tempo_bpm), *picture.tempo_changes, (max(step, 0) + 2**30, 1.0)]
    return sum(max(min(after, step) - at, 0) / STEPS_PER_BEAT * 60 / bpm
               for (at, bpm), (after, _) in itertools.pairwise(changes))


def chord_markers(piece: MidiPiece) -> list[tuple[int, str]]:
    """The chords that stand in the file as markers or texts, (step, text): `A:min7`, `F#m`, `N`."""
    found = [(round(tick * STEPS_PER_BEAT / piece.midi.ticks_per_beat), message.text.strip())
             for tick, message in itertools.chain(*piece.messages)
             if message.type in ("marker", "text")]
    return sorted((step, text) for step, text in found if CHORD.fullmatch(text))


# ---------------------------------------------------------------- which bars, which notes


def check(mode: str, **numbers: float) -> None:
    """Raise `MusicError` for an unknown mode or a number out of its `LIMITS`.

    0 bars are the whole piece, for "vary" and "accompany".
    """
    if mode not in MODES:
        raise MusicError(f"mode {mode!r}; choose one of {', '.join(MODES)}")
    for name, value in numbers.items():
        low, high = LIMITS[name]
        if name == "bars" and mode in ("vary", "accompany"):
            low = 0
        kinds = (int, float) if name in ("strength", "density") else int
        if not isinstance(value, kinds) or not low <= value <= high:
            raise MusicError(f"{name} is {value}; choose {low} to {high:,}")


def choose_bars(piece: MidiPiece, mode: str, bars: int, first_bar: int = 0) -> tuple[int, int]:
    """The columns of the new bars, from and up to. Bars count from 1.

    `first_bar` 0 takes the middle for "infill" and the whole piece for "vary" and "accompany";
    "continue" begins after the last bar that sounds. Raises `MusicError` for a range outside the
    piece, and for a result that lasts too long to be rendered.
    """
    check(mode, bars=bars)
    lines, count = piece.bar_lines, piece.bars
    if mode == "continue":
        begin = int(lines[-1])
        end = begin + bars * piece.bar_at(begin)
        more_s = (end - begin) / STEPS_PER_BEAT * 60 / tempo_after(piece)
        if (seconds := seconds_until(piece.picture, begin) + more_s) > audio.LONGEST_S:
            raise MusicError(f"{piece.path}: with {bars} more bars it would last {seconds / 60:.0f}"
                             f" minutes; choose fewer, {audio.LONGEST_S // 60} minutes is the most")
        return begin, end
    if mode in ("vary", "accompany") and first_bar == 0:
        first_bar, bars = 1, count
    first_bar = first_bar or max((count - bars) // 2, 0) + 1
    if not 1 <= first_bar <= count - bars + 1:
        raise MusicError(f"{piece.path}: has {count} bars; {mode} cannot replace bars {first_bar} "
                         f"to {first_bar + bars - 1}, change bars or first_bar")
    end = int(lines[first_bar - 1 + bars])
    if first_bar - 1 + bars == count:
        end = max(end, piece.picture.pixels.shape[1])
    return max(int(lines[first_bar - 1]), 0), end


def tempo_after(piece: MidiPiece) -> float:
    """The beats a minute of bars that follow: the median of the last 16 bars, so that a ritardando
    at the end does not slow them."""
    end = int(piece.bar_lines[-1])
    return statistics.median_low(pianoroll.tempo_at(piece.picture, step) for step in
                                 range(max(end - 16 * piece.bar_at(end), 0), end))


def inside(piece: MidiPiece, begin: int, end: int) -> np.ndarray:
    """Which notes give way to new ones, bool `[N]`: those that are active in these columns alone.

    A note that reaches over the edge stays whole, and so do all that overlap with it on its pitch:
    the roll cannot show them one by one.
    """
    start, stop, pitch = np.minimum(piece.notes[:, [START, STOP, PITCH]], NEVER // 8).T
    order = np.lexsort((start, pitch))
    first, last = ((edge + pitch * NEVER)[order] for edge in (start, stop))
    chain = np.empty(len(order), int)  # notes of one pitch that overlap have one number
    chain[order] = np.cumsum(np.append(True, first[1:] >= np.maximum.accumulate(last)[:-1]))
    return ~np.isin(chain, chain[(start < begin) | (stop > end)])


def kept_roll(piece: MidiPiece, begin: int, end: int) -> np.ndarray:
    """The roll without the notes that give way, uint8 `[128, steps]`, to `end` at least."""
    width = max(end, int(piece.bar_lines[-1]), piece.picture.pixels.shape[1])
    return _roll(piece.notes[~inside(piece, begin, end)], width)


def neighbours(piece: MidiPiece, begin: int, end: int, bars: int = 8) -> np.ndarray:
    """The notes of so many bars before and after these columns, rows of `MidiPiece.notes`; all
    notes of the piece where there are none."""
    start = piece.notes[:, START]
    near = (start >= begin - bars * piece.bar_at(begin - 1)) & (start < begin)
    near |= (start >= end) & (start < end + bars * piece.bar_at(end))
    return piece.notes[near] if near.any() else piece.notes


def new_notes(roll: np.ndarray, kept: np.ndarray, begin: int, end: int,
              piece: MidiPiece | None = None) -> np.ndarray:
    """The notes of `roll` in these columns that are not in `kept`, `[M, 4]` in steps.

    Left out are sustains without an onset, pitches that a piano lacks, and notes of one column more
    than an octave beyond all others. Velocities get the mean and the spread of the neighbouring
    bars of `piece`. A note that `piece` has there already is given as it is.
    """
    free = np.where(kept[:, begin:end] > 0, 0, roll[:, begin:end]).astype(np.uint8)
    notes = pianoroll.notes_of(PianoRoll(free))
    notes = notes[free[notes[:, 2], notes[:, 0]] > SUSTAIN]
    notes[:, 0] += begin
    length, pitch = notes[:, 1], notes[:, 2]
    fits = (pitch >= LOWEST) & (pitch <= HIGHEST)
    used = [*np.flatnonzero(kept.any(axis=1)), *pitch[fits & (length > 1)]] or [LOWEST, HIGHEST]
    fits &= (length > 1) | ((pitch >= min(used) - 12) & (pitch <= max(used) + 12))
    if piece is None:
        return notes[fits]
    shown = _shown(piece, begin, end)
    old = np.array([tuple(note) in shown for note in notes[:, :3].tolist()], bool)
    notes, new = notes[old | fits], ~old[old | fits]
    if new.any():
        usual, velocity = neighbours(piece, begin, end)[:, VELOCITY], notes[new, 3]
        scaled = (velocity - velocity.mean()) * usual.std() / (velocity.std() or 1) + usual.mean()
        notes[new, 3] = np.clip(np.rint(scaled), 1, 127)
    return notes


def _shown(piece: MidiPiece, begin: int, end: int) -> set[tuple[int, ...]]:
    """(start, length, pitch) of the notes that give way, as the roll shows them."""
    roll = _roll(piece.notes[inside(piece, begin, end)], end)
    return set(map(tuple, pianoroll.notes_of(PianoRoll(roll))[:, :3].tolist()))


# ---------------------------------------------------------------- write a MIDI file


def replace_notes(piece: MidiPiece, notes: np.ndarray, begin: int, end: int) -> mido.MidiFile:
    """The file with the notes within these columns replaced by `notes`, `[M, 4]` in steps.

    All other messages stay on their ticks, and so do old notes that are among the new ones. A new
    note goes to the track and channel of the old note nearest in pitch and time; one for which a
    kept note leaves no room is left out. Before bars that follow the piece, pedals are lifted and
    the usual tempo returns; a volume that fades at the end stays as it is.
    """
    shown = _shown(piece, begin, end)
    same = {(start, pitch) for start, length, pitch in notes[:, :3].tolist()
            if (start, length, pitch) in shown}
    stay = np.array([tuple(at) in same for at in piece.notes[:, [START, PITCH]].tolist()])
    stay |= ~inside(piece, begin, end)
    kept, old = piece.notes[stay], piece.notes[~stay]
    placed = _place(piece, [note for note in notes.tolist() if (note[0], note[2]) not in same],
                    kept)
    gone = _pairs(old, ON_INDEX) | _pairs(old, OFF_INDEX) - _pairs(kept, OFF_INDEX)
    spans = collections.defaultdict(list)
    for *key, _, on, off in placed:
        spans[tuple(key)].append((on, off))
    for track, pairs in enumerate(piece.messages):  # no stray note-off may end them
        gone |= {(track, index) for index, (tick, message) in enumerate(pairs)
                 if _is_note(message) and any(
                     on < tick < off for on, off in spans[track, message.channel, message.note])}
    tracks = [[(tick, 0, message) for index, (tick, message) in enumerate(pairs)
               if (track, index) not in gone] for track, pairs in enumerate(piece.messages)]
    for track, channel, pitch, velocity, on, off in placed:
        tracks[track] += _strike(channel, pitch, velocity, on, off)
    if begin >= piece.bar_lines[-1]:
        for track, tick, message in _as_usual(piece, piece.tick(begin)):
            tracks[track].append((tick, 0, message))
    return _assemble(piece, tracks)


def add_track(piece: MidiPiece, notes: np.ndarray, program: int = 0, name: str = "accompaniment"
              ) -> mido.MidiFile:
    """The file with `notes`, `[M, 4]` in steps, on a track and a channel of their own.

    All else stays; a file of type 0 becomes one of type 1. Raises `MusicError` where all channels
    are taken.
    """
    taken = {getattr(message, "channel", DRUMS) for _, message in itertools.chain(*piece.messages)}
    channel = min(set(range(16)) - {DRUMS} - taken, default=None)
    if channel is None:
        raise MusicError(f"{piece.path}: all 16 channels are taken; remove an instrument first")
    track = [(0, 0, mido.MetaMessage("track_name", name=name)),
             (0, 0, mido.Message("program_change", channel=channel, program=program))]
    for start, length, pitch, velocity in notes.tolist():
        track += _strike(channel, pitch, velocity, piece.tick(start), piece.tick(start + length))
    return _assemble(piece, [*([(tick, 0, message) for tick, message in pairs]
                               for pairs in piece.messages), track])


def _pairs(notes: np.ndarray, column: int) -> set[tuple[int, int]]:
    """(track, index) of the messages in a column of notes."""
    return set(map(tuple, notes[:, [TRACK, column]].tolist()))


def _place(piece: MidiPiece, notes: list[list[int]], kept: np.ndarray) -> list[tuple[int, ...]]:
    """(track, channel, pitch, velocity, start tick, end tick), clear of kept notes of the pitch.

    Notes off the grid may reach into a column that seems free; new ones give way by half a step.
    """
    placed = []
    for start, length, pitch, velocity in notes:
        first, last = piece.tick(start), piece.tick(start + length)
        others = kept[kept[:, PITCH] == pitch]
        before = others[:, ON] <= first
        on = max([first, *others[before, OFF].tolist()])
        off = min([last, *others[~before, ON].tolist()])
        if on < off and on - first <= piece.tick(1) / 2:
            far = abs(piece.notes[:, PITCH] - pitch) + abs(piece.notes[:, START] - start) / 4
            track, channel = piece.notes[far.argmin(), [TRACK, CHANNEL]].tolist()
            placed.append((track, channel, pitch, velocity, on, off))
    return placed


def _strike(channel: int, pitch: int, velocity: int, on: int, off: int) -> list[tuple]:
    """(tick, rank, message) of a new note; at one tick new note-offs come first, note-ons last."""
    message = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
    return [(on, 1, message), (off, -1, message.copy(velocity=0))]


def _as_usual(piece: MidiPiece, begin: int) -> list[tuple[int, int, mido.Message]]:
    """(track, tick, message) that lift the pedals and restore the usual tempo at a tick."""
    last = {}  # the last tempo, and the last pedal of each channel
    for _, track, message in sorted(
            ((tick, track, message) for track, pairs in enumerate(piece.messages)
             for tick, message in pairs if tick <= begin), key=lambda event: event[0]):
        if message.type == "set_tempo":
            last["tempo"] = track, message, {"tempo": round(60e6 / tempo_after(piece))}
        elif message.is_cc(PEDAL):
            last[message.channel] = track, message, {"value": 0}
    return [(track, begin, message.copy(**usual)) for track, message, usual in last.values()
            if message.copy(**usual) != message]


def _assemble(piece: MidiPiece, tracks: list[list[tuple[int, int, mido.Message]]]) -> mido.MidiFile:
    """A file of (tick, rank, message); each track ends where it did, or with its last message."""
    result = mido.MidiFile(type=1 if len(tracks) > 1 else piece.midi.type,
                           ticks_per_beat=piece.midi.ticks_per_beat)
    for events in tracks:
        last, before, track = max((tick for tick, *_ in events), default=0), 0, result.add_track()
        events = [event for event in events if event[2].type != "end_of_track"]
        for tick, _, message in [*sorted(events, key=lambda event: event[:2]),
                                 (last, 0, mido.MetaMessage("end_of_track"))]:
            track.append(copy.copy(message))
            track[-1].time, before = tick - before, tick
    return result


def stays(piece: MidiPiece, path: str | Path, begin: int = 0, end: int = 0) -> bool:
    """Whether a file still has all notes of the piece but for those that may give way in these
    columns, and every message that is no note, each in its track on its tick."""
    after, kept = open_midi(path), piece.notes[~inside(piece, begin, end)]
    kept, now = ({tuple(note) for note in notes[:, : OFF + 1].tolist()}
                 for notes in (kept, after.notes))
    return kept <= now and _others(piece) <= _others(after)


def _others(piece: MidiPiece) -> collections.Counter:
    """How often each (track, tick, message) occurs that is no note; drums are among them."""
    return collections.Counter(
        (track, tick, str(message.copy(time=0))) for track, pairs in enumerate(piece.messages)
        for tick, message in pairs if message.type != "end_of_track" and not _is_note(message))


def save(midi: mido.MidiFile, path: str | Path) -> Path:
    """Write a MIDI file, whole or not at all."""
    with atomic(path) as temporary:
        midi.save(temporary)
    return Path(path)
