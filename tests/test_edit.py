"""utils.edit: whatever is generated, all that was to be kept is kept."""

import re
import warnings
from collections import Counter

import hostile_midi
import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mido import Message, MetaMessage

from real_midi import REAL_MIDI, real_files
from utils import edit, pianoroll
from utils.files import MusicError
from utils.pianoroll import SUSTAIN

LIEDER = sorted((REAL_MIDI / "lieder").rglob("*.mid"))[::400]
KEY_ON_OFF = [edit.PITCH, edit.ON, edit.OFF]


def on(pitch, velocity=80, channel=0):
    return Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(pitch, channel=0):
    return Message("note_off", note=pitch, channel=channel)


def quarters(count, pitch=60, channel=0, velocity=80):
    return [event for i in range(count) for event in (
        (480 * i, on(pitch, velocity, channel)), (480 * i + 480, off(pitch, channel)))]


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


def check_kept(piece, mode, rng, folder):
    """Generate noise into some bars. The result's roll, each message, and the notes that
    pretty_midi reads must be what they were outside. Returns the share of new notes that are there.
    """
    begin, end = edit.choose_bars(piece, mode, 8 if mode == "continue" else min(8, piece.bars))
    kept = edit.kept_roll(piece, begin, end)
    notes = edit.new_notes(noise(rng, kept, begin, end), kept, begin, end, piece)
    result = replaced(piece, notes, begin, end, folder)
    assert edit.stays(piece, result.path, begin, end)
    width = max(result.picture.pixels.shape[1], kept.shape[1])
    wanted = kept + pianoroll.roll_of(notes, 128, kept.shape[1])
    before, after, wanted = (np.pad(roll, ((0, 0), (0, width - roll.shape[1])))
                             for roll in (piece.picture.pixels, result.picture.pixels, wanted))
    assert np.array_equal(before[:, :begin], after[:, :begin])
    assert np.array_equal(before[:, end:], after[:, end:])
    assert not after[:, begin:end][wanted[:, begin:end] == 0].any(), "nothing sounds unasked"
    first, last = piece.tick(begin) - piece.tick(1), piece.tick(end) + piece.tick(1)
    changed = heard(piece.path) ^ heard(result.path)
    assert all(start >= first and stop <= last for *_, start, stop in changed)
    placed = edit.new_notes(after[:, : kept.shape[1]], kept, begin, end, piece)
    return len(placed) / max(len(notes), 1)


# ---------------------------------------------------------------- what is kept


@pytest.mark.slow
@pytest.mark.parametrize("path", [*real_files(2), *LIEDER], ids=lambda path: path.name[:40])
def test_real_files_are_kept_outside_the_new_bars(path, tmp_path):
    """A few new notes may lack room beside notes that are off the grid."""
    piece, rng = edit.open_midi(path), np.random.default_rng(path.stat().st_size)
    for mode in ("infill", "continue", "vary"):
        assert check_kept(piece, mode, rng, tmp_path) >= 0.98


messy_note = st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([60, 61, 64]),
                       st.integers(0, 3000), st.integers(1, 900), st.integers(1, 127))


@settings(max_examples=30, deadline=None)
@given(notes=st.lists(messy_note, min_size=1, max_size=30), seed=st.integers(0, 2**32),
       lost=st.integers(0, 5))
def test_restrikes_overlaps_and_lost_note_offs_are_kept(notes, seed, lost, tmp_path_factory):
    folder, tracks = tmp_path_factory.mktemp("messy"), ([], [])
    for number, (track, channel, pitch, start, length, velocity) in enumerate(notes):
        tracks[track].append((start, on(pitch, velocity, channel)))
        if number >= lost:
            tracks[track].append((start + length, off(pitch, channel)))
    check_kept(opened(folder, *tracks), "infill", np.random.default_rng(seed), folder)


def test_an_unbalanced_restrike_is_opened_and_its_stray_note_off_cuts_no_new_note(tmp_path):
    """Fault 4: on, on, off at pitch 60; at 64 a second note-off, which ends nothing."""
    piece = opened(tmp_path, [
        (0, on(60)), (240, on(60)), (480, off(60)), (1920, on(60)), (2400, off(60)),
        (0, on(64)), (480, off(64)), (960, off(64))])
    later = [60, 1920, 2400]
    assert sorted(piece.notes[:, KEY_ON_OFF].tolist()) == [
        [60, 0, 480], [60, 240, 480], later, [64, 0, 480]]
    result = replaced(piece, [[4, 8, 64, 90]], 0, 16, tmp_path)
    assert sorted(result.notes[:, KEY_ON_OFF].tolist()) == [later, [64, 480, 1440]]


def test_a_note_that_reaches_over_the_edge_stays_whole(tmp_path):
    piece = opened(tmp_path, [(1440, on(60)), (2400, off(60)), (2400, on(62)), (2880, off(62)),
                              (7600, on(64)), (7680, off(64))])
    result = replaced(piece, [[16, 4, 70, 80], [22, 2, 60, 80]], 16, 32, tmp_path)
    assert result.notes[:, KEY_ON_OFF].tolist() == [
        [60, 1440, 2400], [70, 1920, 2400], [60, 2640, 2880], [64, 7600, 7680]]


def test_old_notes_that_are_generated_again_keep_every_message(builtin_midi, tmp_path):
    piece = edit.open_midi(builtin_midi[1])
    assert np.array_equal(piece.picture.pixels, pianoroll.read_midi(builtin_midi[1]).pixels)
    begin, end = edit.choose_bars(piece, "vary", 1)
    kept = edit.kept_roll(piece, begin, end)
    notes = edit.new_notes(piece.picture.pixels, kept, begin, end, piece)
    assert messages(replaced(piece, notes, begin, end, tmp_path)) == messages(piece)


def test_a_new_note_joins_the_track_and_channel_of_the_nearest(tmp_path):
    piece = opened(tmp_path, quarters(16, 80, 0), quarters(16, 40, 1))
    result = replaced(piece, [[16, 4, 78, 90], [20, 4, 43, 70]], 16, 32, tmp_path)
    new = result.notes[(result.notes[:, edit.START] >= 16) & (result.notes[:, edit.START] < 32)]
    assert new[:, [edit.TRACK, edit.CHANNEL, edit.PITCH]].tolist() == [[0, 0, 78], [1, 1, 43]]


def test_drums_tempo_pedals_and_programs_stay(tmp_path):
    others = [(0, MetaMessage("set_tempo", tempo=400_000)), (960, Message("program_change")),
              (0, Message("control_change", control=edit.PEDAL, value=127))]
    piece = opened(tmp_path, quarters(16) + others, quarters(16, 36, edit.DRUMS))
    result = replaced(piece, [], 0, 16, tmp_path)
    gone = messages(piece) - messages(result)
    assert not messages(result) - messages(piece)
    assert len(gone) == 8 and all("note=60" in text for _, text in gone)


# ---------------------------------------------------------------- bars


def test_new_bars_follow_the_last_bar_in_which_something_begins(tmp_path):
    """Fault 7: a chord that rings a little into a bar leaves that bar empty. Drums sound, too."""
    ringing = [(0, on(60)), (1920, off(60)), (1920, on(64)), (4200, off(64))]
    piece = opened(tmp_path, ringing)
    assert piece.bars == 2 and edit.choose_bars(piece, "continue", 2) == (32, 64)
    assert edit.kept_roll(piece, 32, 64)[64, 32:36].tolist() == [SUSTAIN, SUSTAIN, SUSTAIN, 0]
    with_drums = opened(tmp_path, ringing, quarters(64, 36, edit.DRUMS))
    assert edit.choose_bars(with_drums, "continue", 2) == (256, 288)


def test_pedals_are_lifted_and_the_usual_tempo_returns_before_bars_that_follow(tmp_path):
    piece = opened(tmp_path, quarters(32), [
        (0, MetaMessage("set_tempo", tempo=500_000)),
        (0, Message("control_change", control=edit.PEDAL, value=127)),
        (13_440, MetaMessage("set_tempo", tempo=2_000_000))])
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


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("mode", "bars", "first", "said"), [
    ("infill", 2, 4, "has 4 bars; infill cannot replace bars 4 to 5"),
    ("infill", 5, 0, "has 4 bars"), ("infill", 1, -3, "bars -3"), ("vary", 9, 1, "has 4 bars"),
    ("continue", 0, 0, "bars is 0"), ("continue", 2000, 0, "would last 200 minutes"),
    ("fill", 1, 0, "choose one of continue, infill, vary, long")])
def test_bars_that_cannot_be_generated_are_one_clear_line(mode, bars, first, said, tmp_path):
    slow = (0, MetaMessage("set_tempo", tempo=1_500_000))
    with pytest.raises(MusicError, match=said):
        edit.choose_bars(opened(tmp_path, [slow, *quarters(16)]), mode, bars, first)


def test_a_parameter_out_of_range_is_one_clear_line():
    for name, value in (("first_bar", -1), ("strength", float("nan")), ("sampling_steps", 0)):
        with pytest.raises(MusicError, match=f"{name} is {value}; choose "):
            edit.check("vary", **{name: value})


@pytest.mark.parametrize(("events", "said"), [
    (b"\0\xff\x59\x02\x08\0" + hostile_midi.NOTE, "save it anew"),  # a key of eight sharps
    (b"\0\xff\x60\x01\0" + hostile_midi.NOTE, "save it anew"),  # mido would forget its time
    (b"\0\x99\x3c\x40\x60\x89\x3c\x40", "no notes .drums are left out"),
    (None, "no such file")])
def test_files_that_cannot_be_edited_say_why(events, said, tmp_path):
    path = tmp_path / "odd.mid"
    if events:
        path.write_bytes(hostile_midi.midi(hostile_midi.track(events + hostile_midi.END)))
    with pytest.raises(MusicError, match=rf"odd\.mid: .*{said}"):
        edit.open_midi(path)
    with pytest.raises(MusicError, match="is a folder"):
        edit.open_midi(tmp_path)


@pytest.mark.parametrize("change", [
    lambda data: b"RIFF\0\0\0\0RMIDdata\0\0\0\0" + data,
    lambda data: data.replace(b"\x01\xe0", b"\0\x04", 1)])  # ticks too coarse for sixteenths
def test_files_of_other_kinds_are_edited(change, tmp_path):
    path = tmp_path / "odd.mid"
    path.write_bytes(change(hostile_midi.GOOD))
    piece = edit.open_midi(path)
    edit.save(edit.replace_notes(piece, np.array([[4000, 4, 60, 80]]), 4000, 4016), path)
    assert edit.stays(piece, path, 4000, 4016) and len(edit.open_midi(path).notes) == 2


def test_a_header_that_counts_too_few_tracks_is_one_clear_line(tmp_path):
    path = tmp_path / "odd.mid"
    path.write_bytes(hostile_midi.GOOD.replace(b"\0\x01\0\x01", b"\0\x01\0\0", 1))
    with pytest.raises(MusicError, match=r"odd\.mid: .*save it anew"):
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
    loud = [(480 * i, on(60, 50 + 2 * (i % 12))) for i in range(192)]
    varied = opened(tmp_path, loud + [(480 * i + 400, off(60)) for i in range(192)])
    constant = opened(tmp_path, quarters(192, velocity=82))
    kept = edit.kept_roll(varied, 384, 512)
    roll = noise(np.random.default_rng(0), kept, 384, 512)
    near = edit.neighbours(varied, 384, 512)
    assert near[:, edit.START].tolist() == [*range(256, 384, 4), *range(512, 640, 4)]
    new, usual = edit.new_notes(roll, kept, 384, 512, varied)[:, 3], near[:, edit.VELOCITY]
    assert abs(new.mean() - usual.mean()) < 0.5 and abs(new.std() - usual.std()) < 0.5
    assert set(edit.new_notes(roll, kept, 384, 512, constant)[:, 3]) == {82}


# ---------------------------------------------------------------- an accompaniment, its chords


@pytest.mark.parametrize("kind", [0, 1])
def test_an_added_track_has_a_channel_of_its_own_and_leaves_all_else(kind, tmp_path):
    busy = [(0, Message("program_change", channel=c, program=c)) for c in range(12) if c != 1]
    piece = opened(tmp_path, quarters(16) + busy, kind=kind)
    result = edit.add_track(piece, np.array([[0, 8, 48, 70]]), program=5)
    assert edit.stays(piece, edit.save(result, tmp_path / "r.mid"))
    assert result.type == 1 and len(result.tracks) == 2
    assert [message.bytes() for message in result.tracks[1]][1:3] == [[0xC1, 5], [0x91, 48, 70]]


def test_no_free_channel_is_one_clear_line(tmp_path):
    busy = [(0, Message("program_change", channel=c)) for c in range(16)]
    with pytest.raises(MusicError, match=r"m\.mid: all 16 channels are taken"):
        edit.add_track(opened(tmp_path, quarters(4) + busy), np.array([[0, 8, 48, 70]]))


def test_chords_are_read_from_markers_and_texts(tmp_path):
    marks = [(0, "marker", "C:maj7"), (960, "text", "A:min/5"), (1920, "marker", "Chorus"),
             (1920, "marker", "N"), (2880, "marker", "F#m7b5/C"), (2880, "lyrics", "A")]
    piece = opened(tmp_path, quarters(16), [(tick, MetaMessage(kind, text=text))
                                            for tick, kind, text in marks])
    assert edit.chord_markers(piece) == [(0, "C:maj7"), (8, "A:min/5"), (16, "N"),
                                         (24, "F#m7b5/C")]
