"""utils.splice: what was to be kept is kept, whatever is painted."""

import functools
import io

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from real_midi import ROOT, real_files
from utils import (
    endings,
    messages,
    pianoroll,
    splice,
)
from utils.files import MusicError
from utils.pianoroll import Picture, notes_of, paint, read_midi

REAL = real_files(8)
SOME = [*real_files(2), *sorted((ROOT / "data" / "midi").glob("*.mid"))[:3]]


@functools.cache
def opened(path):
    """A file, or None for one that says why not."""
    try:
        return splice.open_midi(path)
    except MusicError:
        return None


def write(path, *tracks, ticks_per_beat=480):
    """A file of tracks of (delta, message)."""
    midi = mido.MidiFile(ticks_per_beat=ticks_per_beat)
    for events in tracks:
        midi.tracks.append(mido.MidiTrack([message.copy(time=delta) for delta, message in events]))
    midi.save(path)
    return path


def on(pitch, velocity=80, channel=0):
    return mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(pitch, channel=0):
    return mido.Message("note_off", note=pitch, channel=channel)


def scale(path, bars=4, first=()):
    """A bar is four quarters, a step up each."""
    return write(path, [*((0, m) for m in first)] + [
        event for i in range(4 * bars) for event in ((0, on(60 + i)), (480, off(60 + i)))])


def metre(upper, lower):
    return mido.MetaMessage("time_signature", numerator=upper, denominator=lower)


def fresh(path):
    """A file from the disk: by mido, where it reads all of it, and reads it right."""
    try:
        midi = mido.MidiFile(path, clip=True)
    except Exception:
        return messages.read(path.read_bytes())
    odd = any(message.type == "unknown_meta" for track in midi.tracks for message in track)
    return messages.read(path.read_bytes()) if odd else midi


def strokes(midi, begin, end):
    """Notes outside some steps: (track, channel, pitch, velocity, start tick, end tick)."""
    piece = splice._piece(None, midi, Picture(np.zeros((128, 1), np.uint8)))
    start, stop = piece.notes[:, 6], piece.notes[:, 7]
    outside = piece.notes[(start < begin) | (stop > end)]
    finish = piece.spans[outside[:, 0], 1]
    return sorted(map(tuple, np.column_stack([outside[:, :6], finish])[:, 1:].tolist()))


def others(midi, finer=1):
    """Every message that is no note, with its track and tick, in ticks so much finer."""
    found = []
    for number, track in enumerate(midi.tracks):
        tick = 0
        for message in track:
            tick += message.time
            drum = getattr(message, "channel", -1) == splice.DRUMS
            if (message.type not in ("note_on", "note_off") or drum) and \
                    message.type != "end_of_track":
                found.append((number, tick * finer, bytes(message.bytes()).hex()))
    return found


def wild(rng, begin, end):
    """Any notes at all within these columns."""
    count = rng.integers(0, 300)
    start = rng.integers(begin, end, count)
    length = np.minimum(rng.integers(1, 24, count), end - start)
    pitch, velocity = rng.integers(0, 128, count), rng.integers(1, 128, count)
    return np.stack([start, length, pitch, velocity], axis=1)


def padded(levels, width):
    return np.pad(levels, ((0, 0), (0, width - levels.shape[1])))


def check_kept(piece, mode, bars, first_bar, rng, folder):
    """Paint noise into some bars and compare the file on the disk with the new one outside them:
    pixels, strokes and messages. Returns how many notes are in the bars, and should be."""
    begin, end = splice.choose_bars(piece, mode, bars, first_bar)
    kept = splice.kept_levels(piece, begin, end)
    painted = np.where(kept > 0, kept, paint(wild(rng, begin, end), 128, kept.shape[1]))
    new = splice.new_notes(painted, kept, begin, end)
    if not (kept.any() or len(new)):
        return  # nothing is left that sounds, and the reader says so
    result = splice.replace_notes(piece, new, begin, end)
    path = splice.save(result, folder / "result.mid")
    after = read_midi(path)
    width = max(kept.shape[1], after.levels.shape[1], piece.picture.levels.shape[1])
    old, now = padded(piece.picture.levels, width), padded(after.levels, width)
    assert np.array_equal(old[:, :begin], now[:, :begin])
    assert np.array_equal(old[:, end:], now[:, end:])
    wanted = padded(kept, width) + padded(paint(new, 128, width), width)
    assert not now[:, begin:end][wanted[:, begin:end] == 0].any(), "nothing sounds unasked"
    if piece.damaged:  # the file on the disk cannot be compared, and 08 says so
        return
    before, again = fresh(piece.path), fresh(path)
    assert strokes(before, begin, end) == strokes(again, begin, end)
    finer = again.ticks_per_beat // before.ticks_per_beat
    assert finer * before.ticks_per_beat == again.ticks_per_beat
    if mode == "continue":  # what is set back at the end comes on top
        assert set(others(before, finer)) <= set(others(again))
    else:
        assert others(before, finer) == others(again)
    placed = now[:, begin:end][wanted[:, begin:end] > splice.HELD] > splice.HELD
    return placed.sum(), len(placed)  # heads that are there, and heads that were asked for


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name[:40])
def test_real_files_are_kept_outside_the_painted_bars(path, tmp_path):
    piece, rng = opened(path), np.random.default_rng(path.stat().st_size)
    assert piece is not None, "every sound file can be completed"
    for mode in ("infill", "continue", "vary"):
        bars = int(rng.integers(1, min(piece.bars, 12) + 1))
        first = int(rng.integers(1, piece.bars - bars + 2))
        placed, wanted = check_kept(piece, mode, bars, first, rng, tmp_path)
        assert placed >= 0.98 * wanted, "a note may lack room beside one that is off the grid"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bars_of_the_corpus_are_kept_outside(data, builtin_midi, tmp_path_factory):
    piece = opened(data.draw(st.sampled_from(builtin_midi)))  # on the grid: every note has room
    mode = data.draw(st.sampled_from(["infill", "vary", "continue"]))
    bars = data.draw(st.integers(1, piece.bars))
    first = data.draw(st.integers(1, piece.bars - bars + 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    placed, wanted = check_kept(piece, mode, bars, first, rng, tmp_path_factory.mktemp("kept"))
    assert placed == wanted


messy_note = st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([60, 61, 64]),
                       st.integers(0, 3000), st.integers(0, 900), st.integers(1, 127))


@settings(max_examples=150, deadline=None)
@given(notes=st.lists(messy_note, min_size=1, max_size=30), seed=st.integers(0, 2**32),
       ticks_per_beat=st.sampled_from([1, 7, 24, 96, 480]), first=st.integers(1, 3))
def test_notes_that_overlap_on_one_pitch(notes, seed, ticks_per_beat, first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("messy")
    tracks = []
    for track in (0, 1):
        events = [(tick * ticks_per_beat // 480, order, message)
                  for own, channel, pitch, start, length, velocity in notes if own == track
                  for tick, order, message in ((start, 1, on(pitch, velocity, channel)),
                                               (start + length, 0, off(pitch, channel)))]
        events.sort(key=lambda event: event[:2])
        deltas = np.diff([0, *(event[0] for event in events)]).tolist()
        tracks.append([(delta, event[2]) for delta, event in zip(deltas, events, strict=True)])
    path = write(folder / "messy.mid", *tracks, ticks_per_beat=ticks_per_beat)
    try:
        piece = splice.open_midi(path)
    except MusicError as error:
        assert "no notes" in str(error) or "cannot be changed" in str(error)
        return
    first = min(first, piece.bars)
    check_kept(piece, "infill", 1, first, np.random.default_rng(seed), folder)


def bytes_of(midi):
    """Every message of every track, with its delta."""
    return [[(message.time, bytes(message.bytes())) for message in track] for track in midi.tracks]


@pytest.mark.parametrize("path", SOME, ids=lambda path: path.name[:40])
def test_the_old_file_comes_back_when_its_own_picture_is_painted(path, tmp_path):
    piece = opened(path)
    result = splice.replace_notes(piece, notes_of(piece.picture), *splice.choose_bars(
        piece, "vary", 1))
    saved = splice.save(result, tmp_path / "same.mid")
    assert bytes_of(fresh(saved)) == bytes_of(fresh(path))


def test_twins_in_two_tracks_stay_or_go_together(tmp_path):
    """The picture shows one note where two tracks share it, or one lies across the other."""
    one = [(0, on(60)), (480, off(60)), (1440, on(64)), (960, off(64))]
    two = [(0, on(60, 50, 1)), (240, off(60, 1)), (2160, on(64, 50, 1)), (240, off(64, 1))]
    piece = splice.open_midi(write(tmp_path / "twins.mid", one, two))
    own = notes_of(piece.picture)
    assert bytes_of(splice.replace_notes(piece, own, 0, 32)) == bytes_of(fresh(piece.path))
    less = splice.replace_notes(piece, own[own[:, 2] != 60], 0, 32)
    assert not any(m.type == "note_on" and m.note == 60 for t in less.tracks for m in t)
    assert sum(m.type == "note_on" and m.velocity > 0 for t in less.tracks for m in t) == 2


ODD = {"eight sharps": b"\xff\x59\x02\x08\x00", "no such mode": b"\xff\x59\x02\x00\x02",
       "short key": b"\xff\x59\x01\x00", "short tempo": b"\xff\x51\x02\x07\xa1",
       "short time code": b"\xff\x54\x01\x21", "short metre": b"\xff\x58\x01\x03",
       "no channel": b"\xff\x20\x00", "unknown": b"\xff\x60\x02ab", "escape": b"\xf7\x02\xf3\x01",
       "system exclusive": b"\xf0\x03\x7e\x09\xf7", "long number": b"\xff\x00\x03abc"}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_message_costs_nothing_else(odd, tmp_path):
    track = (b"\x00\xff\x58\x04\x03\x02\x18\x08" b"\x00\xc0\x28" b"\x00\xff\x03\x02Hi"
             b"\x00\xb0\x07\x14" b"\x03" + odd + b"\x00\x90\x3c\x50" b"\x60" + odd +
             b"\x60\x80\x3c\x00" b"\x00\xff\x2f\x00")
    data = b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk" + len(track).to_bytes(4, "big") + track
    path = tmp_path / "odd.mid"
    path.write_bytes(data)
    piece = splice.open_midi(path)
    assert not piece.damaged and piece.steps_per_bar == 12
    result = splice.replace_notes(piece, np.array([[12, 2, 70, 90]]), 12, 24)
    saved = splice.save(result, tmp_path / "result.mid").read_bytes()
    for event in (b"\xff\x58\x04\x03\x02\x18\x08", b"\xc0\x28", b"\xff\x03\x02Hi", b"\xb0\x07\x14"):
        assert event in saved
    assert saved.count(odd) == 2


def test_what_was_repaired_is_said(tmp_path):
    path = scale(tmp_path / "cut.mid")
    path.write_bytes(path.read_bytes()[:-20])
    assert splice.open_midi(path).damaged


def test_a_file_that_cannot_be_repaired_is_named(tmp_path):
    path = tmp_path / "junk.mid"
    path.write_bytes(scale(tmp_path / "m.mid").read_bytes().replace(b"MTrk", b"MTrx"))
    with pytest.raises(MusicError, match=r"junk\.mid: "):
        splice.open_midi(path)


def test_two_tracks_in_a_file_of_type_0_are_saved_as_type_1(tmp_path):
    path = write(tmp_path / "m.mid", [(0, on(60)), (480, off(60))], [(0, on(72)), (480, off(72))])
    path.write_bytes(path.read_bytes().replace(b"\6\0\1", b"\6\0\0", 1))
    piece = splice.open_midi(path)
    saved = splice.save(splice.replace_notes(piece, np.array([[4, 4, 65, 80]]), 4, 16),
                        tmp_path / "r.mid")
    assert mido.MidiFile(saved).type == 1 and len(notes_of(read_midi(saved))) == 3


def test_a_new_note_joins_the_nearest_hand(tmp_path):
    high = [(0, mido.Message("program_change", program=40))] + [
        event for _ in range(16) for event in ((0, on(80)), (480, off(80)))]
    low = [(0, mido.Message("program_change", program=32, channel=1))] + [
        event for _ in range(16) for event in ((0, on(40, channel=1)), (480, off(40, channel=1)))]
    piece = splice.open_midi(write(tmp_path / "two.mid", high, low))
    new = np.array([[16, 4, 78, 90], [20, 4, 43, 70]])
    result = splice.replace_notes(piece, new, 16, 32)
    assert any(m.type == "note_on" and m.note == 78 for m in result.tracks[0])
    assert any(m.type == "note_on" and m.note == 43 and m.channel == 1 for m in result.tracks[1])


def test_drums_tempo_and_pedal_stay_and_a_pedal_left_down_is_lifted_before_more(tmp_path):
    drums = [event for _ in range(16) for event in ((0, on(36, channel=9)), (480, off(36, 9)))]
    keys = [(0, mido.MetaMessage("set_tempo", tempo=400_000)),
            (0, mido.Message("control_change", control=64, value=127)), (0, on(60)),
            (7680, off(60))]
    piece = splice.open_midi(write(tmp_path / "d.mid", keys, drums))
    begin, end = splice.choose_bars(piece, "infill", 1, 2)
    assert others(splice.replace_notes(piece, np.zeros((0, 4), int), begin, end)) == others(
        piece.midi)
    begin, end = splice.choose_bars(piece, "continue", 2)
    more = splice.replace_notes(piece, np.array([[begin, 4, 60, 90]]), begin, end)
    added = set(others(more)) - set(others(piece.midi))
    assert len(added) == 1 and added.pop()[2] == "b04000"


def test_bars_that_follow_begin_after_the_drums(tmp_path):
    drums = [event for _ in range(64) for event in ((0, on(36, channel=9)), (480, off(36, 9)))]
    piece = splice.open_midi(write(tmp_path / "d.mid", [(0, on(60)), (1920, off(60))], drums))
    assert piece.bars == 16 and splice.choose_bars(piece, "continue", 2) == (256, 288)


def added(piece):
    """What is set back before two more bars: (bar counted from their begin, message)."""
    begin, end = splice.choose_bars(piece, "continue", 2)
    more = splice.replace_notes(piece, np.array([[begin, 4, 60, 90]]), begin, end)
    old, now = (sorted(each[1:] for each in others(midi)) for midi in (piece.midi, more))
    per_bar = piece.midi.ticks_per_beat * 4
    return [((tick - begin * per_bar // 16) / per_bar, data) for tick, data in now
            if (tick, data) not in old]


def control(number, value):
    return mido.Message("control_change", control=number, value=value)


def test_what_was_usual_comes_back_and_nothing_else(tmp_path):
    level = control(endings.VOLUME, 20)
    assert added(splice.open_midi(scale(tmp_path / "mix.mid", 8, first=[level]))) == []
    fade = [(6 * 1920, control(7, 60)), (480, control(7, 30)), (480, control(7, 0))]
    notes = [event for i in range(32) for event in ((0, on(60)), (480, off(60)))]
    piece = splice.open_midi(write(tmp_path / "fade.mid", [(0, control(7, 90)), *fade], notes))
    assert added(piece) == [(0, "b0075a")]
    bend = mido.Message("pitchwheel", pitch=-2000)
    piece = splice.open_midi(write(tmp_path / "bend.mid", [(7 * 1920, bend)], notes))
    assert added(piece) == [(0, "e00040")]


def test_a_pedal_after_the_last_note_is_lifted_too(tmp_path):
    late = [(4 * 1920 + 960, control(64, 127)), (960, mido.Message("pitchwheel", pitch=0))]
    notes = [event for i in range(16) for event in ((0, on(60)), (480, off(60)))]
    piece = splice.open_midi(write(tmp_path / "late.mid", late, notes))
    assert added(piece) == [(0.5, "b04000")]


def test_a_slow_ending_does_not_slow_what_follows(tmp_path):
    slow = [(0, mido.MetaMessage("set_tempo", tempo=500_000)),
            (3 * 1920, mido.MetaMessage("set_tempo", tempo=2_000_000))]
    notes = [event for i in range(16) for event in ((0, on(60)), (480, off(60)))]
    piece = splice.open_midi(write(tmp_path / "slow.mid", slow, notes))
    assert splice.tempo_after(piece) == 120
    assert added(piece) == [(0, "ff510307a120")]
    assert added(splice.open_midi(scale(tmp_path / "even.mid"))) == []


def test_note_offs_that_end_nothing_take_no_room(tmp_path):
    """Some programs write a note-off for all 128 keys at the end."""
    notes = [event for i in range(16) for event in ((0, on(60 + i % 3)), (480, off(60 + i % 3)))]
    sweep = [(0, off(pitch)) for pitch in range(128)]
    piece = splice.open_midi(write(tmp_path / "sweep.mid", notes + sweep))
    new = np.array([[48, 4, 61, 90], [52, 4, 62, 90], [56, 4, 70, 90], [60, 4, 60, 90]])
    saved = splice.save(splice.replace_notes(piece, new, 48, 64), tmp_path / "r.mid")
    there = notes_of(read_midi(saved))
    assert {tuple(note[:3]) for note in new.tolist()} == {
        tuple(note[:3]) for note in there.tolist() if note[0] >= 48}


@pytest.mark.parametrize(("signature", "steps"), [((3, 4), 12), ((6, 8), 12), ((5, 4), 20),
                                                  ((7, 8), 14), ((2, 2), 16), ((3, 16), 3)])
def test_the_metre_decides_how_long_a_bar_is(signature, steps, tmp_path):
    piece = splice.open_midi(scale(tmp_path / "m.mid", first=[metre(*signature)]))
    assert piece.steps_per_bar == steps
    assert splice.choose_bars(piece, "continue", 3)[1] == piece.bar_lines[-1] + 3 * steps
    assert splice.choose_bars(piece, "infill", 1, 2) == (steps, 2 * steps)


def test_a_change_of_metre_begins_a_bar(tmp_path):
    first = [(0, metre(3, 4)), (1440, metre(4, 4))]
    notes = [event for i in range(11) for event in ((0, on(60 + i)), (480, off(60 + i)))]
    piece = splice.open_midi(write(tmp_path / "m.mid", first, notes))
    assert piece.bar_lines.tolist() == [0, 12, 28, 44]
    assert [piece.bar_at(step) for step in (0, 11, 12, 30, 44)] == [12, 12, 16, 16, 16]
    assert piece.steps_per_bar == 16


@pytest.mark.parametrize(("mode", "bars", "first", "said"), [
    ("infill", 2, 4, "has 4 bars; infill cannot paint bars 4 to 5"),
    ("infill", 5, 0, "has 4 bars"), ("infill", 1, -3, "bars -3"), ("vary", 9, 1, "has 4 bars"),
    ("continue", 0, 0, "bars is 0"), ("continue", 10**9, 0, "bars is"),
    ("fill", 1, 0, "choose one of continue, infill, vary, long")])
def test_a_range_outside_the_piece_is_one_clear_line(mode, bars, first, said, tmp_path):
    piece = splice.open_midi(scale(tmp_path / "m.mid"))
    with pytest.raises(MusicError, match=said) as caught:
        splice.choose_bars(piece, mode, bars, first)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [
    ("bars", 0), ("bars", "4"), ("bars", 2.5), ("first_bar", -1), ("strength", float("nan")),
    ("strength", 1.1), ("sampling_steps", 0), ("sampling_steps", -3), ("seed", -1)])
def test_a_parameter_out_of_range_is_one_clear_line(name, value):
    splice.check("vary", strength=0, bars=2, seed=0, first_bar=0)
    with pytest.raises(MusicError, match=f"{name} is {value}; choose "):
        splice.check("vary", **{name: value})


def test_more_than_can_be_heard_is_refused_before_painting(tmp_path):
    slow = mido.MetaMessage("set_tempo", tempo=1_500_000)
    piece = splice.open_midi(scale(tmp_path / "slow.mid", first=[slow]))
    with pytest.raises(MusicError, match="with 2000 more bars it would last 3"):
        splice.choose_bars(piece, "continue", 2000)


def test_files_that_cannot_be_completed_say_why(tmp_path):
    odd = scale(tmp_path / "odd.mid", first=[metre(3, 64)])
    long = write(tmp_path / "long.mid", [(0, on(60)), (480 * 2 * 60 * 61, off(60))])
    drums = write(tmp_path / "drums.mid", [(0, on(36, channel=9)), (480, off(36, 9))])
    for path, said in ((odd, "metre is 3/64"), (long, "61 minutes"), (drums, "no notes"),
                       (tmp_path / "none.mid", "no such file")):
        with pytest.raises(MusicError, match=said) as caught:
            splice.open_midi(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_hostile_files_are_completed_or_refused_in_one_line(real_midi, tmp_path):
    for path in sorted(p for p in (real_midi / "hostile").rglob("*") if p.is_file()):
        try:
            piece = splice.open_midi(path)
        except MusicError as error:
            assert "\n" not in str(error)
            continue
        check_kept(piece, "continue", 2, 0, np.random.default_rng(0), tmp_path)


def test_midi_in_memory_is_what_is_saved(builtin_midi, tmp_path):
    piece = splice.open_midi(builtin_midi[1])
    result = splice.replace_notes(piece, np.zeros((0, 4), int), 0, 16)
    memory = io.BytesIO()
    result.save(file=memory)
    assert splice.save(result, tmp_path / "r.mid").read_bytes() == memory.getvalue()
    assert not list(tmp_path.glob(".*")) and pianoroll.read_midi(tmp_path / "r.mid")
