"""utils.edit: whatever is generated, all that was to be kept is kept."""

import re
import warnings
from collections import Counter

import hostile_midi
import mido
import numpy as np
import pretty_midi
import pytest
import symusic
from hypothesis import given, settings
from hypothesis import strategies as st
from mido import Message, MetaMessage

from real_midi import REAL_MIDI, real_files
from utils import edit, pianoroll
from utils.files import MusicError
from utils.pianoroll import SUSTAIN

LIEDER = sorted((REAL_MIDI / "lieder").rglob("*.mid"))[::400]
KEY_ON_OFF = [edit.PITCH, edit.ON, edit.OFF]


def note(pitch, start, end, velocity=80, channel=0):
    """Its two events, (tick, message); without an end there is no note-off."""
    both = [(start, Message("note_on", note=pitch, velocity=velocity, channel=channel)),
            (end, Message("note_off", note=pitch, channel=channel))]
    return both[: 1 if end is None else 2]


def quarters(count, pitch=60, channel=0, velocity=80):
    return [event for i in range(count)
            for event in note(pitch, 480 * i, 480 * i + 480, velocity, channel)]


def tempo(beat_s):
    return MetaMessage("set_tempo", tempo=int(beat_s * 1e6))


def pedal(value):
    return Message("control_change", control=edit.PEDAL, value=value)


def opened(folder, *tracks, kind=1):
    """A piece of tracks of (tick, message), in any order; 480 ticks are a beat."""
    midi = mido.MidiFile(type=kind, ticks_per_beat=480)
    for events in tracks:
        track, before = midi.add_track(), 0
        for tick, message in sorted(events, key=lambda event: event[0]):
            track.append(message.copy(time=tick - before))
            before = tick
    return edit.open_midi(edit.save(midi, folder / "m.mid"))


def replaced(piece, notes, begin, end, folder):
    """The piece with other notes in some columns, read from the file that was written."""
    midi = edit.replace_notes(piece, np.array(notes).reshape(-1, 4), begin, end)
    return edit.open_midi(edit.save(midi, folder / "result.mid"))


def messages(piece):
    """How often each (track, message) occurs; the message's time is its tick."""
    return Counter((number, str(message)) for number, track in enumerate(piece.tracks)
                   for message in track if message.type != "end_of_track")


def heard(path):
    """All notes as pretty_midi reads them: program, pitch, velocity, start and end in ticks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        midi = pretty_midi.PrettyMIDI(str(path))
    return {(-1 if part.is_drum else part.program, note.pitch, note.velocity,
             midi.time_to_tick(note.start), midi.time_to_tick(note.end))
            for part in midi.instruments for note in part.notes}


def noise(rng, kept, begin, end):
    """A roll with any notes at all in these columns where nothing is kept."""
    count = rng.integers(1, 300)
    start = rng.integers(begin, end, count)
    notes = np.stack([start, np.minimum(rng.integers(1, 24, count), end - start),
                      rng.integers(0, 128, count), rng.integers(1, 128, count)], axis=1)
    return np.where(kept > 0, kept, pianoroll.roll_of(notes, 128, kept.shape[1]))


def check_kept(piece, begin, end, rng, folder):
    """Put noise into these columns. Notes and messages outside must stay as they were, also as
    pretty_midi reads them. Returns the share of new notes that are there.
    """
    kept = edit.kept_roll(piece, begin, end)
    notes = edit.new_notes(noise(rng, kept, begin, end), kept, begin, end, piece)
    result = replaced(piece, notes, begin, end, folder)
    assert edit.stays(piece, result.path, begin, end)
    changed = heard(piece.path) ^ heard(result.path)
    first, last = piece.tick(begin - 1), piece.tick(end + 1)
    assert all(start >= first and stop <= last for *_, start, stop in changed)
    shown, after = result.roll.pixels[:, : kept.shape[1]], np.zeros_like(kept)
    after[:, : shown.shape[1]] = shown
    asked = kept + pianoroll.roll_of(notes, 128, kept.shape[1])
    assert not after[:, begin:end][asked[:, begin:end] == 0].any(), "nothing sounds unasked"
    return len(edit.new_notes(after, kept, begin, end, piece)) / max(len(notes), 1)


# ---------------------------------------------------------------- what is kept


@pytest.mark.slow
@pytest.mark.parametrize("path", [*real_files(1), *LIEDER], ids=lambda path: path.name[:40])
def test_real_files_are_kept_outside_the_new_bars(path, tmp_path):
    """A few new notes may lack room beside notes that are off the grid."""
    piece, rng = edit.open_midi(path), np.random.default_rng(path.stat().st_size)
    for mode in ("infill", "continue", "vary"):
        bars = 8 if mode == "continue" else min(8, piece.bars)
        columns = edit.choose_bars(piece, mode, bars)
        assert check_kept(piece, *columns, rng, tmp_path) >= 0.98


messy_note = st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([60, 61, 64]),
                       st.integers(0, 3000), st.integers(1, 900), st.integers(1, 127))


@settings(max_examples=30)
@given(notes=st.lists(messy_note, min_size=1, max_size=30), seed=st.integers(0, 2**32),
       lost=st.integers(0, 5))
def test_restrikes_overlaps_and_lost_note_offs_are_kept(notes, seed, lost, tmp_path_factory):
    folder, tracks = tmp_path_factory.mktemp("messy"), ([], [])
    for number, (track, channel, pitch, start, length, velocity) in enumerate(notes):
        end = start + length if number >= lost else None
        tracks[track].extend(note(pitch, start, end, velocity, channel))
    found, rng = opened(folder, *tracks), np.random.default_rng(seed)
    same = edit.replace_notes(found, np.zeros((0, 4), int), 0, 0)  # pretty_midi needs note-offs
    piece = edit.open_midi(edit.save(same, folder / "released.mid"))
    assert edit.stays(found, piece.path)
    columns = edit.choose_bars(piece, "infill", 1, int(rng.integers(piece.bars)) + 1)
    check_kept(piece, *columns, rng, folder)


def test_an_unbalanced_restrike_is_opened_and_its_stray_note_off_cuts_no_new_note(tmp_path):
    """Fault 4: on, on, off at pitch 60; at 64 a second note-off, which ends nothing."""
    piece = opened(tmp_path, [
        *note(60, 0, None), *note(60, 240, 480), *note(60, 1920, 2400), *note(64, 0, 480),
        note(64, 0, 960)[1]])
    later = [60, 1920, 2400]
    assert sorted(piece.notes[:, KEY_ON_OFF].tolist()) == [
        [60, 0, 480], [60, 240, 480], later, [64, 0, 480]]
    result = replaced(piece, [[4, 8, 64, 90]], 0, 16, tmp_path)
    assert sorted(result.notes[:, KEY_ON_OFF].tolist()) == [later, [64, 480, 1440]]


def in_order(path):
    """(pitch, start, end) of the notes where each note-off ends the earliest note of its key."""
    return sorted((note.pitch, note.time, note.time + note.duration)
                  for track in symusic.Score(path).tracks for note in track.notes)


def test_a_key_struck_twice_and_released_twice_stays_so_for_readers_of_either_kind(tmp_path):
    first = [(60, at, at + 480) for at in range(0, 7680, 1920)]
    second = [(60, at + 240, at + 720) for at in range(0, 7680, 1920)]
    piece = opened(tmp_path, [event for one in (*first, *second) for event in note(*one)])
    assert in_order(replaced(piece, [], 0, 0, tmp_path).path) == sorted(first + second)
    result = replaced(piece, [[20, 4, 60, 90]], 16, 32, tmp_path)
    assert in_order(result.path) == sorted(
        one for one in (*first, *second, (60, 2400, 2880)) if not 1920 <= one[1] < 2400)
    assert len(pianoroll.notes_of(pianoroll.read_midi(result.path))) == 7


def test_a_note_that_reaches_over_the_edge_stays_whole_and_new_ones_make_room(tmp_path):
    piece = opened(tmp_path, [*note(60, 1440, 2400), *note(62, 2400, 2880), *note(64, 7600, 7680)])
    result = replaced(piece, [[16, 4, 70, 80], [22, 2, 60, 80]], 16, 32, tmp_path)
    assert result.notes[:, KEY_ON_OFF].tolist() == [
        [60, 1440, 2400], [70, 1920, 2400], [60, 2640, 2880], [64, 7600, 7680]]


def test_new_notes_join_the_nearest_track_and_channel_and_all_that_is_no_note_stays(tmp_path):
    others = [(0, tempo(0.4)), (960, Message("program_change")), (0, pedal(127))]
    piece = opened(tmp_path, quarters(16, 80, 0) + others, quarters(16, 40, 1),
                   quarters(16, 36, edit.DRUMS))
    result = replaced(piece, [[16, 4, 78, 90], [20, 4, 43, 70]], 16, 32, tmp_path)
    gone, new = messages(piece) - messages(result), messages(result) - messages(piece)
    assert len(gone) == 16 and all("note=80" in text or "note=40" in text for _, text in gone)
    assert all("note_" in text for _, text in new)
    added = result.notes[np.isin(result.notes[:, edit.PITCH], [78, 43])]
    assert added[:, [edit.TRACK, edit.CHANNEL, edit.PITCH]].tolist() == [[0, 0, 78], [1, 1, 43]]


# ---------------------------------------------------------------- bars


def test_new_bars_follow_the_last_bar_in_which_something_begins(tmp_path):
    """Fault 7: a chord that rings a little into a bar leaves that bar empty. Drums sound, too."""
    ringing = note(60, 0, 1920) + note(64, 1920, 4200)
    piece = opened(tmp_path, ringing)
    assert piece.bars == 2 and edit.choose_bars(piece, "continue", 2) == (32, 64)
    assert edit.kept_roll(piece, 32, 64)[64, 32:36].tolist() == [SUSTAIN, SUSTAIN, SUSTAIN, 0]
    with_drums = opened(tmp_path, ringing, quarters(64, 36, edit.DRUMS))
    assert edit.choose_bars(with_drums, "continue", 2) == (256, 288)


def test_pedals_are_lifted_and_the_usual_tempo_returns_before_bars_that_follow(tmp_path):
    piece = opened(tmp_path, quarters(32), [
        (0, tempo(0.5)), (0, pedal(127)), (13_440, tempo(2))])
    assert edit.tempo_after(piece) == 120
    for begin, expected in ((128, ["tempo=500000", "value=0"]), (16, [])):
        result = replaced(piece, [[begin, 4, 61, 80]], begin, begin + 32, tmp_path)
        new = " ".join(text for _, text in messages(result) - messages(piece))
        assert sorted(re.findall(r"tempo=\d+|value=\d+", new)) == expected


@pytest.mark.parametrize(("signature", "steps"), [
    ((3, 4), 12), ((6, 8), 12), ((7, 8), 14), ((48, 4), 192),
    ((1, 4), 16)])  # fault 6: bars of one beat are grouped
def test_the_time_signature_decides_how_long_a_bar_is(signature, steps, tmp_path):
    upper, lower = signature
    metre = MetaMessage("time_signature", numerator=upper, denominator=lower)
    piece = opened(tmp_path, [(0, metre), *quarters(192)])
    begin, end = edit.choose_bars(piece, "continue", 3)
    assert piece.bar_at(0) == steps and end - begin == 3 * steps
    assert edit.choose_bars(piece, "infill", 1, 2) == (steps, 2 * steps)


def test_no_bars_are_all_from_the_first_one_on(tmp_path):
    piece = opened(tmp_path, quarters(16))
    assert edit.choose_bars(piece, "vary", 0, 3) == (32, 64)
    assert edit.choose_bars(piece, "accompany", 0) == edit.choose_bars(piece, "vary", 8) == (0, 64)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("mode", "bars", "first", "said"), [
    ("infill", 2, 4, "has 4 bars; infill cannot replace bars 4 to 5"), ("infill", 1, -3, "bars -3"),
    ("vary", 9, 1, "has 4 bars"), ("continue", 2000, 0, "would last 200 minutes")])
def test_bars_outside_the_piece_or_too_many_to_render_are_refused(mode, bars, first, said,
                                                                  tmp_path):
    with pytest.raises(MusicError, match=said):
        edit.choose_bars(opened(tmp_path, [(0, tempo(1.5)), *quarters(16)]), mode, bars, first)


@pytest.mark.parametrize(("name", "value", "said"), [
    ("bars", 0, "bars is 0"), ("strength", float("nan"), "strength is nan; choose 0 to 1"),
    ("sampling_steps", 0, "sampling_steps is 0; choose 1")])
def test_a_parameter_out_of_range_is_one_clear_line(name, value, said):
    with pytest.raises(MusicError, match=said):
        edit.check("infill", **{name: value})


def one_track(events):
    return hostile_midi.midi(hostile_midi.track(events + hostile_midi.NOTE + hostile_midi.END))


@pytest.mark.parametrize(("data", "said"), [
    (one_track(b"\0\xff\x59\x02\x08\0"), "save it again"),  # a key of eight sharps
    (one_track(b"\0\xff\x60\x01\0"), "save it again"),  # mido would forget its time
    (hostile_midi.GOOD.replace(b"\0\x01\0\x01", b"\0\x01\0\0", 1), "save it again"),  # 0 tracks
    (hostile_midi.SMALL["drums_alone"][0], "no notes .drums are left out"),
    (None, "no such file")])
def test_files_that_cannot_be_edited_say_why(data, said, tmp_path):
    path = tmp_path / "odd.mid"
    if data:
        path.write_bytes(data)
    with pytest.raises(MusicError, match=rf"odd\.mid: .*{said}"):
        edit.open_midi(path)


# ---------------------------------------------------------------- new notes


def test_new_notes_stay_on_a_piano_and_specks_far_from_all_others_are_dropped(tmp_path):
    """Fault 7."""
    piece = opened(tmp_path, quarters(16))
    kept = edit.kept_roll(piece, 16, 32)
    notes = np.array([[16, 4, 50, 80], [20, 1, 62, 80], [20, 1, 90, 80], [20, 1, 24, 80],
                      [24, 4, 100, 80], [24, 4, 12, 80], [28, 2, 117, 80], [30, 1, 2, 80]])
    roll = np.maximum(kept, pianoroll.roll_of(notes, 128, kept.shape[1]))
    for given_piece in (piece, None):
        found = edit.new_notes(roll, kept, 16, 32, given_piece)
        assert found[:, 2].tolist() == [50, 62, 90, 100]


def test_velocities_follow_the_eight_bars_before_and_after(tmp_path):
    """Fault 7. Tolerance: rounding to whole numbers."""
    varied = opened(tmp_path, [event for i in range(192) for event in note(
        60, 480 * i, 480 * i + 400, velocity=50 + 2 * (i % 12))])
    kept = edit.kept_roll(varied, 384, 512)
    near = edit.neighbours(varied, 384, 512)
    assert near[:, edit.START].tolist() == [*range(256, 384, 4), *range(512, 640, 4)]
    roll = noise(np.random.default_rng(0), kept, 384, 512)
    new, usual = edit.new_notes(roll, kept, 384, 512, varied)[:, 3], near[:, edit.VELOCITY]
    assert abs(new.mean() - usual.mean()) < 0.5 and abs(new.std() - usual.std()) < 0.5


# ---------------------------------------------------------------- an accompaniment, its chords


@pytest.mark.parametrize("kind", [0, 1])
def test_an_added_track_has_a_channel_of_its_own_and_leaves_all_else(kind, tmp_path):
    busy = [(0, Message("program_change", channel=c, program=c)) for c in range(16) if c != 1]
    piece = opened(tmp_path, quarters(16) + busy, kind=kind)
    result = edit.add_track(piece, np.array([[0, 8, 48, 70]]), program=5)
    assert edit.stays(piece, edit.save(result, tmp_path / "r.mid"))
    assert result.type == 1 and len(result.tracks) == 2
    assert [message.bytes() for message in result.tracks[1]][1:3] == [[0xC1, 5], [0x91, 48, 70]]
    full = edit.open_midi(tmp_path / "r.mid")
    with pytest.raises(MusicError, match=r"r\.mid: all 16 channels are taken"):
        edit.add_track(full, np.array([[0, 8, 48, 70]]))


def test_chords_are_read_from_markers_and_texts(tmp_path):
    piece = opened(tmp_path, quarters(16), [
        (tick, MetaMessage(kind, text=text)) for tick, kind, text in (
            (0, "marker", "C:maj7"), (960, "text", "A:min/5"), (1920, "marker", "Chorus"),
            (1920, "marker", "N"), (2880, "marker", "F#m7b5/C"), (2880, "lyrics", "A"))])
    assert edit.chord_markers(piece) == [
        (0, "C:maj7"), (8, "A:min/5"), (16, "N"), (24, "F#m7b5/C")]
