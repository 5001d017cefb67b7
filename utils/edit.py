"""Put new notes into some bars of a MIDI file and keep the rest. Explained in notebook 08.

All other messages stay in their track, on their tick. Which bar a note belongs to is decided on the
grid: a note that is played a little early belongs to the bar that it leads into.
"""

import collections
import io
import itertools
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import mido
import numpy as np

from utils import audio, bars, pianoroll
from utils.files import MusicError, atomic
from utils.pianoroll import SUSTAIN, PianoRoll

MODES = ("continue", "infill", "vary", "long", "accompany")
LIMITS = {"bars": (1, 2000), "density": (0, 64), "first_bar": (0, 100_000), "strength": (0, 1),
          "sampling_steps": (1, 1000), "seed": (0, 2**32 - 1)}
STEPS_PER_BEAT = 4
LONGEST_BAR = 16 * 255  # columns: a time signature of 255/1
LOWEST, HIGHEST = 21, 108  # the keys of a piano: new notes stay within
DRUMS, PEDAL = 9, 64  # the channel (counted from 0), the control change
TRACK, CHANNEL, PITCH, VELOCITY, ON, OFF, PAIR, ON_INDEX, OFF_INDEX, PAIR_INDEX, START, STOP = (
    range(12))
CHORD = re.compile(r"N|[A-G][#b]?(:\S+|(maj|min|m|M|dim|aug|sus|add|[-+°ø#b0-9()])*(/\S+)?)")


@dataclass(frozen=True, eq=False)
class MidiPiece:
    """A MIDI file with all its messages, its notes (without drums), its piano roll and its bars.

    `tracks` are lists of messages whose `time` is the tick, counted from the beginning. `notes` is
    int64 `[N, 12]`: track, channel, pitch, velocity; in ticks its start, its end, and the note-off
    that pairs with it where note-offs end notes in their order; where these three messages stand in
    the track; start and end in steps. `bar_lines` are the steps where bars begin, int64
    `[bars + 1]`: the first may be negative, the last is where the piece ends.
    """

    path: Path
    midi: mido.MidiFile
    tracks: list[list[mido.Message]]
    notes: np.ndarray
    roll: PianoRoll
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

    Raises `MusicError` where `pianoroll.read_midi` does, and for a file that mido cannot read in
    full (a damaged one, or a key of eight sharps).
    """
    path = Path(path)
    if path.is_dir():
        raise MusicError(f"{path}: is a folder; give one MIDI file in it")
    roll = pianoroll.read_midi(path, STEPS_PER_BEAT)
    try:
        data = path.read_bytes()
        midi = mido.MidiFile(file=io.BytesIO(data[data.find(b"MThd") :]), clip=True)
        messages = list(itertools.chain(*midi.tracks))
        if (midi.type > 1 or midi.ticks_per_beat < 1 or not any(map(_is_note, messages))
                or any(message.type == "unknown_meta" for message in messages)):
            raise ValueError("not one piece in beats, or with messages whose time mido forgets")
    except Exception:  # mido raises many kinds
        raise MusicError(f"{path}: damaged or of an odd kind, it cannot be changed without loss; "
                         "save it again with a music program first") from None
    tracks, notes = zip(*itertools.starmap(_read_track, enumerate(midi.tracks)), strict=True)
    notes = np.array(list(itertools.chain(*notes)))
    start, stop = (notes[:, [ON, OFF]] * STEPS_PER_BEAT / midi.ticks_per_beat + 0.5).astype(int).T
    notes = np.column_stack([notes, start, np.maximum(stop, start + 1)])
    roll = replace(roll, pixels=_roll(notes, int(notes[:, STOP].max())))
    drums = [message.time * STEPS_PER_BEAT // midi.ticks_per_beat for message in
             itertools.chain(*tracks) if message.type == "note_on" and message.channel == DRUMS]
    return MidiPiece(path, midi, list(tracks), notes, roll,
                     _bar_lines(roll, max([*drums, int(start.max())])))


def _is_note(message: mido.Message) -> bool:
    return message.type in ("note_on", "note_off") and message.channel != DRUMS


def _read_track(number: int, track: mido.MidiTrack) -> tuple[list[mido.Message], list[list[int]]]:
    """A track's messages, their time in ticks from the beginning, and its notes (no drums), from
    the track's number to the index of the note-off as in `MidiPiece.notes`.

    A note-off ends all notes of its key that began before it, as on a piano (and in pretty_midi).
    Other readers let each note-off end the earliest note of its key, so a note-off that ends
    nothing stays as long as the note that it is for. One without such a note is left out; a note
    that is never released ends with the track.
    """
    messages, notes, tick = [], [], 0
    active, unpaired = collections.defaultdict(list), collections.defaultdict(list)
    for message in track:
        tick += message.time
        if _is_note(message):
            key = message.channel, message.note
            if message.type == "note_on" and message.velocity:
                notes.append([number, *key, message.velocity, tick, 0, 0, len(messages), 0, 0])
                active[key].append(notes[-1])
                unpaired[key].append(notes[-1])
            else:
                ended = [note for note in active[key] if note[ON] < tick] or active[key][:1]
                if not unpaired[key]:
                    continue
                for note in ended:
                    note[OFF], note[OFF_INDEX] = tick, len(messages)
                    active[key].remove(note)
                pair = unpaired[key].pop(0)
                pair[PAIR], pair[PAIR_INDEX] = tick, len(messages)
        messages.append(message.copy(skip_checks=True, time=tick))
    for note in itertools.chain(*unpaired.values()):
        note[PAIR], note[PAIR_INDEX] = note[OFF], note[OFF_INDEX]
    for note in itertools.chain(*active.values()):
        note[OFF], note[OFF_INDEX] = note[PAIR], note[PAIR_INDEX] = tick, len(messages)
        messages.append(mido.Message("note_off", channel=note[CHANNEL], note=note[PITCH],
                                     time=tick))
    return messages, notes


def _roll(notes: np.ndarray, steps: int) -> np.ndarray:
    """The piano roll of rows of `MidiPiece.notes`, uint8 `[128, steps]`."""
    start, stop, pitch, velocity = notes[:, [START, STOP, PITCH, VELOCITY]].T
    return pianoroll.roll_of(np.stack([start, stop - start, pitch, velocity], 1), 128, steps)


def _bar_lines(roll: PianoRoll, last_onset: int) -> np.ndarray:
    """The bar lines of a piece, and where its last bar ends: the last one in which a note or a drum
    begins, or that sounds to its middle."""
    steps, signatures = max(roll.pixels.shape[1], last_onset + 1), list(roll.signatures)
    lines = bars.bar_lines(pianoroll.notes_of(roll), steps, signatures)
    own = bars.lines_of(signatures, steps + LONGEST_BAR)[: len(lines) + 1]
    lines = own if np.array_equal(lines, own[:-1]) else np.append(lines, lines[-1] + bars.BAR)
    if (np.diff(lines) == STEPS_PER_BEAT).all():  # no music has bars of one beat: four make a bar
        lines = np.arange(0, steps + bars.BAR, bars.BAR)
    rings = len(lines) > 2 and last_onset < lines[-2] and 2 * steps < lines[-2] + lines[-1]
    return lines[:-1] if rings else lines


def seconds_until(roll: PianoRoll, step: int) -> float:
    """The second at which a column of a whole piece begins, by its tempo changes."""
    changes = [(0, roll.tempo_bpm), *roll.tempo_changes, (max(step, 0) + 2**30, 1.0)]
    return sum(max(min(after, step) - at, 0) / STEPS_PER_BEAT * 60 / bpm
               for (at, bpm), (after, _) in itertools.pairwise(changes))


def chord_markers(piece: MidiPiece) -> list[tuple[int, str]]:
    """The chords that stand in the file as markers or texts, (step, text): `A:min7`, `F#m`, `N`."""
    found = [(round(message.time * STEPS_PER_BEAT / piece.midi.ticks_per_beat),
              message.text.strip()) for message in itertools.chain(*piece.tracks)
             if message.type in ("marker", "text")]
    return sorted((step, text) for step, text in found if CHORD.fullmatch(text))


# ---------------------------------------------------------------- which bars, which notes


def check(mode: str, **numbers: float) -> None:
    """Raise `MusicError` for an unknown mode or a number out of its `LIMITS`.

    0 bars are all bars from `first_bar` on, for "vary" and "accompany".
    """
    if mode not in MODES:
        raise MusicError(f"mode {mode!r}; choose one of {', '.join(MODES)}")
    for name, value in numbers.items():
        low, high = LIMITS[name]
        if name == "bars" and mode in ("vary", "accompany"):
            low = 0
        if not low <= value <= high:
            raise MusicError(f"{name} is {value}; choose {low} to {high:,}")


def choose_bars(piece: MidiPiece, mode: str, bars: int, first_bar: int = 0) -> tuple[int, int]:
    """The columns of the new bars, from and up to. Bars count from 1.

    `first_bar` 0 takes the middle for "infill" and the whole piece for "vary" and "accompany",
    where `bars` 0 takes all bars from `first_bar` on; "continue" begins after the last bar that
    sounds. Raises `MusicError` for a range outside the piece, and for a result that lasts too long
    to be rendered.
    """
    check(mode, bars=bars)
    lines, count = piece.bar_lines, piece.bars
    begin = end = int(lines[-1])
    if mode == "continue":
        end += bars * piece.bar_at(begin)
    seconds = seconds_until(piece.roll, begin)
    seconds += (end - begin) / STEPS_PER_BEAT * 60 / tempo_after(piece)
    if seconds > audio.LONGEST_S:
        raise MusicError(f"{piece.path}: the result would last {seconds / 60:.0f} minutes, and "
                         f"{audio.LONGEST_S // 60} is the most; choose fewer bars, or cut the file")
    if mode == "continue":
        return begin, end
    if mode in ("vary", "accompany") and 0 in (first_bar, bars):
        first_bar = first_bar or 1
        bars = count - first_bar + 1
    first_bar = first_bar or max((count - bars) // 2, 0) + 1
    last_bar = first_bar + bars - 1
    if first_bar < 1 or last_bar > count:
        raise MusicError(f"{piece.path}: has {count} bars; {mode} cannot replace bars {first_bar} "
                         f"to {last_bar}, change bars or first_bar")
    end = int(lines[last_bar])
    if last_bar == count:  # its last notes may ring a little beyond it
        end = max(end, piece.roll.pixels.shape[1])
    return max(int(lines[first_bar - 1]), 0), end


def tempo_after(piece: MidiPiece) -> float:
    """The beats a minute of bars that follow: the median of the last 16 bars, so that a ritardando
    at the end does not slow them."""
    end = int(piece.bar_lines[-1])
    return statistics.median_low(pianoroll.tempo_at(piece.roll, step) for step in
                                 range(max(end - 16 * piece.bar_at(end), 0), end))


def inside(piece: MidiPiece, begin: int, end: int) -> np.ndarray:
    """Which notes give way to new ones, bool `[N]`: those that are active in these columns alone.

    A note that reaches over the edge stays whole, and so do all that overlap with it on its pitch:
    the roll cannot show them one by one.
    """
    start, stop, pitch = piece.notes[:, [START, STOP, PITCH]].T
    first, last = np.full(128, begin), np.full(128, end)  # columns that are free, for each pitch
    np.maximum.at(first, pitch[start < begin], stop[start < begin])
    np.minimum.at(last, pitch[stop > end], start[stop > end])
    return (start >= first[pitch]) & (stop <= last[pitch])


def kept_roll(piece: MidiPiece, begin: int, end: int) -> np.ndarray:
    """The roll without the notes that give way, uint8 `[128, steps]`, to `end` at least."""
    width = max(end, int(piece.bar_lines[-1]), piece.roll.pixels.shape[1])
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
    both = _shown(piece, begin, end) & set(map(tuple, notes[:, :3].tolist()))
    same = {(start, pitch) for start, _, pitch in both}
    stay = np.array([tuple(at) in same for at in piece.notes[:, [START, PITCH]].tolist()])
    stay |= ~inside(piece, begin, end)
    kept = piece.notes[stay]
    new = [note for note in notes.tolist() if (note[0], note[2]) not in same]
    gone = _places(piece.notes[~stay]) - _places(kept)  # two notes may share a note-off
    tracks = [[message for index, message in enumerate(messages) if (number, index) not in gone]
              for number, messages in enumerate(piece.tracks)]
    if begin >= piece.bar_lines[-1]:
        for number, message in _as_usual(piece, piece.tick(begin)):
            tracks[number].append(message)
    return _assemble(piece, tracks, _place(piece, new, kept))


def add_track(piece: MidiPiece, notes: np.ndarray, program: int = 0, name: str = "accompaniment"
              ) -> mido.MidiFile:
    """The file with `notes`, `[M, 4]` in steps, on a track and a channel of their own.

    All else stays; a file of type 0 becomes one of type 1. Raises `MusicError` where all channels
    are taken.
    """
    taken = {getattr(message, "channel", DRUMS) for message in itertools.chain(*piece.tracks)}
    channel = min(set(range(16)) - {DRUMS} - taken, default=None)
    if channel is None:
        raise MusicError(f"{piece.path}: all 16 channels are taken; remove an instrument first")
    track = [mido.MetaMessage("track_name", name=name),
             mido.Message("program_change", channel=channel, program=program)]
    return _assemble(piece, [*piece.tracks, track], [
        (len(piece.tracks), channel, pitch, velocity, piece.tick(start), piece.tick(start + length))
        for start, length, pitch, velocity in notes.tolist()])


def _places(notes: np.ndarray) -> set[tuple[int, int]]:
    """(track, index) of the messages of notes."""
    columns = [TRACK, ON_INDEX, OFF_INDEX, PAIR_INDEX]
    return {(track, index) for track, *places in notes[:, columns].tolist() for index in places}


def _place(piece: MidiPiece, notes: list[list[int]], kept: np.ndarray) -> list[tuple[int, ...]]:
    """(track, channel, pitch, velocity, start tick, end tick), clear of kept notes of the pitch.

    Notes off the grid may reach into a column that seems free; new ones give way by half a step.
    """
    placed = []
    for start, length, pitch, velocity in notes:
        first, last = piece.tick(start), piece.tick(start + length)
        others = kept[kept[:, PITCH] == pitch]
        before = others[:, ON] <= first
        on = max([first, *others[before, OFF], *others[before, PAIR]])
        off = min([last, *others[~before, ON].tolist()])
        if on < off and on - first <= piece.tick(1) / 2:
            far = abs(piece.notes[:, PITCH] - pitch) + abs(piece.notes[:, START] - start) / 4
            track, channel = piece.notes[far.argmin(), [TRACK, CHANNEL]].tolist()
            placed.append((track, channel, pitch, velocity, on, off))
    return placed


def _as_usual(piece: MidiPiece, begin: int) -> list[tuple[int, mido.Message]]:
    """(track, message) that lift the pedals and restore the usual tempo at a tick."""
    last = {}  # the last tempo and the last pedal of each channel
    for number, message in sorted(
            ((number, message) for number, messages in enumerate(piece.tracks)
             for message in messages if message.time <= begin), key=lambda pair: pair[1].time):
        if message.type == "set_tempo":
            last["tempo"] = number, message, {"tempo": round(60e6 / tempo_after(piece))}
        elif message.is_cc(PEDAL):
            last[message.channel] = number, message, {"value": 0}
    return [(number, message.copy(time=begin, **usual)) for number, message, usual in last.values()
            if message.copy(**usual) != message]


def _assemble(piece: MidiPiece, tracks: list[list[mido.Message]],
              notes: list[tuple[int, ...]]) -> mido.MidiFile:
    """A file of tracks, whose messages have ticks as their times, and new notes (see `_place`); at
    one tick new note-offs come first, new note-ons last."""
    result = mido.MidiFile(type=1 if len(tracks) > 1 else piece.midi.type,
                           ticks_per_beat=piece.midi.ticks_per_beat)
    for number, messages in enumerate(tracks):
        new = [[mido.Message("note_on", channel=channel, note=pitch, velocity=loud, time=tick)
                for loud, tick in ((velocity, on), (0, off))]
               for track, channel, pitch, velocity, on, off in notes if track == number]
        ordered = [*(off for _, off in new), *messages, *(on for on, _ in new)]
        track, before = result.add_track(), 0
        for message in sorted(ordered, key=lambda message: message.time):
            track.append(message.copy(skip_checks=True, time=message.time - before))
            before = message.time
    return result


def stays(piece: MidiPiece, path: str | Path, begin: int = 0, end: int = 0) -> bool:
    """Whether a file still has all notes of the piece but for those that may give way in these
    columns, and every message that is no note, each in its track on its tick."""
    after, kept = open_midi(path), piece.notes[~inside(piece, begin, end)]
    kept, now = ({tuple(note) for note in notes[:, : OFF + 1].tolist()}
                 for notes in (kept, after.notes))
    return kept <= now and _others(piece) <= _others(after)


def _others(piece: MidiPiece) -> collections.Counter:
    """How often each (track, message) occurs that is no note; drums are among them."""
    return collections.Counter((number, str(message)) for number, messages in
                               enumerate(piece.tracks) for message in messages
                               if message.type != "end_of_track" and not _is_note(message))


def save(midi: mido.MidiFile, path: str | Path) -> Path:
    """Write a MIDI file, whole or not at all."""
    with atomic(path) as temporary:
        midi.save(temporary)
    return Path(path)
