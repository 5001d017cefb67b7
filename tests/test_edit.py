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

from real_midi import REAL_MIDI, real_files
from utils import edit, pianoroll
from utils.files import MusicError
from utils.pianoroll import SUSTAIN, notes_of

LIEDER = sorted((REAL_MIDI / "lieder").rglob("*.mid"))[::400]


def on(pitch, velocity=80, channel=0):
    return mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(pitch, channel=0):
    return mido.Message("note_off", note=pitch, channel=channel)


def control(number, value):
    return mido.Message("control_change", control=number, value=value)


def metre(upper, lower):
    return mido.MetaMessage("time_signature", numerator=upper, denominator=lower)


def tempo(microseconds):
    return mido.MetaMessage("set_tempo", tempo=microseconds)


def write(path, *tracks, ticks_per_beat=480, kind=1):
    """A file of tracks of (tick, message), in any order."""
    midi = mido.MidiFile(ticks_per_beat=ticks_per_beat, type=kind)
    for events in tracks:
        track, before = midi.add_track(), 0
        for tick, message in sorted(events, key=lambda event: event[0]):
            track.append(message.copy(time=tick - before))
            before = tick
    midi.save(path)
    return path


def quarters(count, pitch=60, channel=0, velocity=80):
    return [event for i in range(count) for event in (
        (480 * i, on(pitch, velocity, channel)), (480 * i + 480, off(pitch, channel)))]


def saved(piece, notes, begin, end, folder):
    return edit.save(edit.replace_notes(piece, np.array(notes).reshape(-1, 4), begin, end),
                     folder / "result.mid")


def messages(midi):
    """How often each (track, tick, message) occurs."""
    found = Counter()
    for number, track in enumerate(midi.tracks):
        tick = 0
        for message in track:
            tick += message.time
            found[number, tick, str(message.copy(time=0))] += 1
    return found


def added(piece, result):
    """(tick, message) of what is new but no note, and of what is gone."""
    old, new = messages(piece.midi), messages(result)
    return [sorted((tick, text) for _, tick, text in found if "note=" not in text and
                   "end_of_track" not in text) for found in (new - old, old - new)]


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


def check_kept(piece, mode, rng, folder, bars=8):
    """Generate noise into some bars. The result's roll, each message, and the notes that
    pretty_midi reads must be what they were outside. Returns how many notes are new, and should be.
    """
    begin, end = edit.choose_bars(piece, mode, bars if mode == "continue" else
                                  min(bars, piece.bars))
    kept = edit.kept_roll(piece, begin, end)
    notes = edit.new_notes(noise(rng, kept, begin, end), kept, begin, end, piece)
    path = saved(piece, notes, begin, end, folder)
    assert edit.stays(piece, path, begin, end)
    after = edit.open_midi(path).picture.pixels
    wanted = pianoroll.roll_of(notes, 128, kept.shape[1]) + kept
    width = max(after.shape[1], kept.shape[1])
    was, now, wanted = (np.pad(roll, ((0, 0), (0, width - roll.shape[1])))
                        for roll in (piece.picture.pixels, after, wanted))
    assert np.array_equal(was[:, :begin], now[:, :begin])
    assert np.array_equal(was[:, end:], now[:, end:])
    assert not now[:, begin:end][wanted[:, begin:end] == 0].any(), "nothing sounds unasked"
    first, last = piece.tick(begin) - piece.tick(1), piece.tick(end) + piece.tick(1)
    if piece.midi.ticks_per_beat == mido.MidiFile(piece.path, clip=True).ticks_per_beat:
        changed = heard(piece.path) ^ heard(path)
        assert all(start >= first and stop <= last for *_, start, stop in changed)
    return len(edit.new_notes(now[:, : kept.shape[1]], kept, begin, end, piece)), len(notes)


# ---------------------------------------------------------------- what is kept


@pytest.mark.slow
@pytest.mark.parametrize("path", [*real_files(2), *LIEDER], ids=lambda path: path.name[:40])
def test_real_files_are_kept_outside_the_new_bars(path, tmp_path):
    piece, rng = edit.open_midi(path), np.random.default_rng(path.stat().st_size)
    for mode in ("infill", "continue", "vary"):
        placed, wanted = check_kept(piece, mode, rng, tmp_path)
        assert placed >= 0.98 * wanted, "a note may lack room beside one that is off the grid"


messy_note = st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([60, 61, 64]),
                       st.integers(0, 3000), st.integers(1, 900), st.integers(1, 127))


@settings(max_examples=30, deadline=None)
@given(notes=st.lists(messy_note, min_size=1, max_size=30), seed=st.integers(0, 2**32),
       ticks_per_beat=st.sampled_from([1, 7, 96, 480]), lost=st.integers(0, 5))
def test_restrikes_overlaps_and_lost_note_offs_are_kept(notes, seed, ticks_per_beat, lost,
                                                        tmp_path_factory):
    folder, tracks = tmp_path_factory.mktemp("messy"), ([], [])
    for number, (track, channel, pitch, start, length, velocity) in enumerate(notes):
        tracks[track].append((start * ticks_per_beat // 480, on(pitch, velocity, channel)))
        if number >= lost:
            end = (start + length) * ticks_per_beat // 480
            tracks[track].append((end, off(pitch, channel)))
    try:
        piece = edit.open_midi(write(folder / "m.mid", *tracks, ticks_per_beat=ticks_per_beat))
    except MusicError as error:
        assert "no notes" in str(error)
        return
    check_kept(piece, "infill", np.random.default_rng(seed), folder, bars=1)


def test_an_unbalanced_restrike_is_opened_and_its_stray_note_off_cuts_no_new_note(tmp_path):
    """Fault 4: on, on, off at pitch 60; at 64 a second note-off, which ends nothing."""
    track = [(0, on(60)), (240, on(60)), (480, off(60)), (1920, on(60)), (2400, off(60)),
             (3840, on(60)), (4320, off(60)), (0, on(64)), (480, off(64)), (960, off(64))]
    piece = edit.open_midi(write(tmp_path / "m.mid", track))
    columns = [edit.PITCH, edit.ON, edit.OFF]
    later = [[60, 1920, 2400], [60, 3840, 4320]]
    assert sorted(piece.notes[:, columns].tolist()) == [
        [60, 0, 480], [60, 240, 480], *later, [64, 0, 480]]
    result = edit.open_midi(saved(piece, [[4, 8, 64, 90]], 0, 16, tmp_path))
    assert sorted(result.notes[:, columns].tolist()) == [*later, [64, 480, 1440]]


def test_a_note_that_reaches_over_the_edge_stays_whole(tmp_path):
    track = [(1440, on(60)), (2400, off(60)), (2400, on(62)), (2880, off(62)), (7600, on(64)),
             (7680, off(64))]
    piece = edit.open_midi(write(tmp_path / "m.mid", track))
    result = edit.open_midi(saved(piece, [[16, 4, 70, 80], [22, 2, 60, 80]], 16, 32, tmp_path))
    assert result.notes[:, [edit.PITCH, edit.ON, edit.OFF]].tolist() == [
        [60, 1440, 2400], [70, 1920, 2400], [60, 2640, 2880], [64, 7600, 7680]]


def test_old_notes_that_are_generated_again_keep_every_message(builtin_midi):
    piece = edit.open_midi(builtin_midi[1])
    begin, end = edit.choose_bars(piece, "vary", 1)
    kept = edit.kept_roll(piece, begin, end)
    notes = edit.new_notes(piece.picture.pixels, kept, begin, end, piece)
    assert messages(edit.replace_notes(piece, notes, begin, end)) == messages(piece.midi)


def test_a_new_note_joins_the_track_and_channel_of_the_nearest(tmp_path):
    high, low = quarters(16, 80, 0), quarters(16, 40, 1)
    piece = edit.open_midi(write(tmp_path / "two.mid", high, low))
    result = edit.open_midi(saved(piece, [[16, 4, 78, 90], [20, 4, 43, 70]], 16, 32, tmp_path))
    new = result.notes[(result.notes[:, edit.START] >= 16) & (result.notes[:, edit.START] < 32)]
    assert new[:, [edit.TRACK, edit.CHANNEL, edit.PITCH]].tolist() == [[0, 0, 78], [1, 1, 43]]


def test_drums_tempo_pedals_and_programs_stay(tmp_path):
    extra = [(0, tempo(400_000)), (0, control(64, 127)), (960, mido.Message(
        "program_change", program=40)), (1000, mido.MetaMessage("lyrics", text="la"))]
    path = write(tmp_path / "m.mid", quarters(16) + extra, quarters(16, 36, 9))
    piece = edit.open_midi(path)
    result = edit.replace_notes(piece, np.zeros((0, 4), int), 0, 16)
    gone = messages(piece.midi) - messages(result)
    assert not messages(result) - messages(piece.midi)
    assert len(gone) == 8 and all("note=60" in text for *_, text in gone)


def odd_file(path, event):
    """A note of 192 ticks, and the event in its middle."""
    path.write_bytes(hostile_midi.midi(hostile_midi.track(
        b"\0\x90\x3c\x50\x60" + event + b"\x60\x80\x3c\0" + hostile_midi.END), division=96))
    return path


@pytest.mark.parametrize("event", [b"\xff\x60\x02ab", b"\xff\x08\x03\xff\x00c"])
def test_a_meta_event_that_mido_does_not_know_stays_and_shifts_nothing(event, tmp_path):
    piece = edit.open_midi(odd_file(tmp_path / "odd.mid", event))
    result = saved(piece, [[4, 4, 70, 90]], 0, 16, tmp_path)
    assert piece.notes[0, edit.OFF] == 192 and event in result.read_bytes()


def test_a_file_that_mido_cannot_read_in_full_is_refused(tmp_path):
    eight_sharps = b"\xff\x59\x02\x08\x00"
    with pytest.raises(MusicError, match=r"odd\.mid: .* save it anew with a music program"):
        edit.open_midi(odd_file(tmp_path / "odd.mid", eight_sharps))


# ---------------------------------------------------------------- bars that follow


def test_new_bars_follow_the_last_bar_in_which_something_begins(tmp_path):
    """Fault 7: a chord that rings a little into a bar leaves that bar empty. Drums sound, too."""
    ringing = [(0, on(60)), (1920, off(60)), (1920, on(64)), (4200, off(64))]
    piece = edit.open_midi(write(tmp_path / "a.mid", ringing))
    assert piece.bars == 2 and edit.choose_bars(piece, "continue", 2) == (32, 64)
    assert edit.kept_roll(piece, 32, 64)[64, 32:36].tolist() == [SUSTAIN, SUSTAIN, SUSTAIN, 0]
    piece = edit.open_midi(write(tmp_path / "b.mid", ringing, quarters(64, 36, 9)))
    assert edit.choose_bars(piece, "continue", 2) == (256, 288)


def test_pedals_are_lifted_and_the_usual_tempo_returns_before_bars_that_follow(tmp_path):
    path = write(tmp_path / "m.mid", quarters(32), [
        (0, tempo(500_000)), (0, control(64, 127)), (13_440, tempo(2_000_000))])
    piece = edit.open_midi(path)
    assert edit.tempo_after(piece) == 120
    result = edit.replace_notes(piece, np.array([[128, 4, 60, 80]]), 128, 160)
    new, gone = added(piece, result)
    assert [(tick, re.search("(tempo|value)=\\d+", text)[0]) for tick, text in new] == [
        (15_360, "tempo=500000"), (15_360, "value=0")] and not gone
    inner = edit.replace_notes(piece, np.array([[16, 4, 61, 80]]), 16, 32)
    assert added(piece, inner) == [[], []]


# ---------------------------------------------------------------- bars


def test_bars_of_one_beat_are_grouped(tmp_path):
    """Fault 6: with and without enough notes to estimate the bars."""
    piece = edit.open_midi(write(tmp_path / "m.mid", [(0, metre(1, 4)), *quarters(24)]))
    assert piece.bar_lines.tolist() == list(range(0, 112, 16))


@pytest.mark.parametrize("name", ["014.mid", "023.mid", "025.mid"])
def test_eight_bars_of_pop909_are_eight_bars(name, real_midi):
    """Fault 6: these files know bars of one beat alone."""
    piece = edit.open_midi(next((real_midi / "pop909").rglob(name)))
    assert {sign[1:] for sign in piece.picture.signatures} == {(1, 4)}
    begin, end = edit.choose_bars(piece, "continue", 8)
    assert end - begin == 128


@pytest.mark.parametrize(("signature", "steps"), [((3, 4), 12), ((6, 8), 12), ((5, 4), 20),
                                                  ((7, 8), 14), ((3, 16), 3), ((5, 32), 2)])
def test_the_time_signature_decides_how_long_a_bar_is(signature, steps, tmp_path):
    piece = edit.open_midi(write(tmp_path / "m.mid", [(0, metre(*signature)), *quarters(16)]))
    begin, end = edit.choose_bars(piece, "continue", 3)
    assert piece.bar_at(0) == steps and end - begin == 3 * steps
    assert edit.choose_bars(piece, "infill", 1, 2) == (steps, 2 * steps)


def test_a_first_bar_that_begins_before_the_file_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(pianoroll, "bar_lines_of", lambda _: np.array([-6, 10, 26, 42]))
    piece = edit.open_midi(write(tmp_path / "m.mid", quarters(14)))
    assert piece.bars == 4 and edit.choose_bars(piece, "infill", 2, 1) == (0, 26)


@pytest.mark.parametrize(("mode", "bars", "first", "said"), [
    ("infill", 2, 4, "has 4 bars; infill cannot replace bars 4 to 5"),
    ("infill", 5, 0, "has 4 bars"), ("infill", 1, -3, "bars -3"), ("vary", 9, 1, "has 4 bars"),
    ("continue", 0, 0, "bars is 0"), ("fill", 1, 0, "choose one of continue, infill, vary, long")])
def test_a_range_outside_the_piece_is_one_clear_line(mode, bars, first, said, tmp_path):
    piece = edit.open_midi(write(tmp_path / "m.mid", quarters(16)))
    with pytest.raises(MusicError, match=said):
        edit.choose_bars(piece, mode, bars, first)


@pytest.mark.parametrize(("name", "value"), [
    ("bars", "4"), ("bars", 2.5), ("first_bar", -1), ("strength", float("nan")), ("seed", -1)])
def test_a_parameter_out_of_range_is_one_clear_line(name, value):
    with pytest.raises(MusicError, match=f"{name} is {value}; choose "):
        edit.check("vary", **{name: value})


def test_files_that_cannot_be_edited_say_why(tmp_path):
    cut = write(tmp_path / "cut.mid", quarters(16))
    cut.write_bytes(cut.read_bytes()[:-20])
    for path, said in (
            (write(tmp_path / "wide.mid", [(0, metre(48, 4)), *quarters(4)]), "over 128"),
            (write(tmp_path / "long.mid", [(0, on(60)), (480 * 2 * 60 * 121, off(60))]), "minutes"),
            (write(tmp_path / "drums.mid", quarters(4, 36, 9)), "no notes .drums are left out"),
            (cut, "damaged"), (tmp_path, "is a folder"), (tmp_path / "none.mid", "no such file")):
        with pytest.raises(MusicError, match=said) as caught:
            edit.open_midi(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_more_than_can_be_rendered_is_refused_before_generating(tmp_path):
    piece = edit.open_midi(write(tmp_path / "m.mid", [(0, tempo(1_500_000)), *quarters(16)]))
    with pytest.raises(MusicError, match="with 2000 more bars it would last 200 minutes"):
        edit.choose_bars(piece, "continue", 2000)


# ---------------------------------------------------------------- new notes


def test_new_notes_stay_on_a_piano_and_specks_far_from_all_others_are_dropped(tmp_path):
    """Fault 7."""
    piece = edit.open_midi(write(tmp_path / "m.mid", quarters(16)))
    kept = edit.kept_roll(piece, 16, 32)
    notes = np.array([[16, 4, 50, 80], [20, 1, 62, 80], [20, 1, 90, 80], [20, 1, 24, 80],
                      [24, 4, 100, 80], [24, 4, 12, 80], [28, 2, 117, 80], [30, 1, 2, 80]])
    roll = np.maximum(kept, pianoroll.roll_of(notes, 128, kept.shape[1]))
    for given_piece in (piece, None):
        found = edit.new_notes(roll, kept, 16, 32, given_piece)
        assert found[:, 2].tolist() == [50, 62, 90, 100]


def test_velocities_follow_the_neighbouring_bars(tmp_path):
    """Fault 7. Tolerance: rounding to whole numbers."""
    loud = [(480 * i, on(60, 50 + 2 * (i % 12))) for i in range(192)]
    ends = [(480 * i + 400, off(60)) for i in range(192)]
    varied = edit.open_midi(write(tmp_path / "a.mid", loud + ends))
    constant = edit.open_midi(write(tmp_path / "b.mid", quarters(192, velocity=82)))
    kept = edit.kept_roll(varied, 384, 512)
    roll = noise(np.random.default_rng(0), kept, 384, 512)
    new = edit.new_notes(roll, kept, 384, 512, varied)[:, 3]
    near = edit.neighbours(varied, 384, 512)[:, edit.VELOCITY]
    assert abs(new.mean() - near.mean()) < 0.5 and abs(new.std() - near.std()) < 0.5
    assert set(edit.new_notes(roll, kept, 384, 512, constant)[:, 3]) == {82}


def test_the_neighbours_are_the_eight_bars_before_and_after(tmp_path):
    """Fault 7: what lies further away is another key, another loudness."""
    piece = edit.open_midi(write(tmp_path / "m.mid", quarters(160)))
    start = edit.neighbours(piece, 320, 352)[:, edit.START]
    assert start.tolist() == [*range(192, 320, 4), *range(352, 480, 4)]
    assert len(edit.neighbours(piece, 0, 640)) == 160


# ---------------------------------------------------------------- an accompaniment, its chords


@pytest.mark.parametrize("kind", [0, 1])
def test_an_added_track_has_a_channel_of_its_own_and_leaves_all_else(kind, tmp_path):
    busy = [(0, mido.Message("program_change", channel=c, program=c)) for c in range(12) if c != 1]
    piece = edit.open_midi(write(tmp_path / "m.mid", quarters(16) + busy, kind=kind))
    result = edit.add_track(piece, np.array([[0, 8, 48, 70]]), program=5)
    path = edit.save(result, tmp_path / "r.mid")
    assert edit.stays(piece, path) and result.type == 1 and len(result.tracks) == 2
    assert [message.bytes() for message in result.tracks[1]][1:3] == [[0xC1, 5], [0x91, 48, 70]]


def test_no_free_channel_is_one_clear_line(tmp_path):
    busy = [(0, mido.Message("program_change", channel=c)) for c in range(16)]
    piece = edit.open_midi(write(tmp_path / "m.mid", quarters(4) + busy))
    with pytest.raises(MusicError, match=r"m\.mid: all 16 channels are taken"):
        edit.add_track(piece, np.array([[0, 8, 48, 70]]))


def test_chords_are_read_from_markers_and_texts(tmp_path):
    marks = [(0, "marker", "C:maj7"), (960, "text", "A:min/5"), (1920, "marker", "Chorus"),
             (1920, "marker", "N"), (2880, "marker", "F#m7b5/C"), (2880, "lyrics", "A")]
    events = [(tick, mido.MetaMessage(kind, text=text)) for tick, kind, text in marks]
    piece = edit.open_midi(write(tmp_path / "m.mid", quarters(16), events))
    assert edit.chord_markers(piece) == [(0, "C:maj7"), (8, "A:min/5"), (16, "N"),
                                         (24, "F#m7b5/C")]


def test_no_piece_is_read_differently_from_what_the_images_show(builtin_midi):
    piece = edit.open_midi(builtin_midi[0])
    assert np.array_equal(notes_of(piece.picture), notes_of(pianoroll.read_midi(builtin_midi[0])))
