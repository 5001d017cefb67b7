"""utils.splice and utils.complete: what was to be kept is kept, whatever is painted."""

import functools
import io
import itertools
import subprocess
import sys

import mido
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from real_midi import ROOT, real_files
from utils import (
    complete,
    corpus,
    diffusion,
    endings,
    messages,
    metrics,
    pianoroll,
    splice,
    unet,
)
from utils.files import MusicError
from utils.pianoroll import HELD, Picture, notes_of, paint, read_midi

REAL = real_files(8)
SOME = [*real_files(2), *sorted((ROOT / "data" / "midi").glob("*.mid"))[:3]]


@functools.cache
def opened(path):
    """A file, or None for one that says why not."""
    try:
        return splice.open_midi(path)
    except MusicError:
        return None


@pytest.fixture(scope="module")
def network():
    """A tiny network that has learned nothing: it paints noise."""
    levels = paint(np.array([[0, 4, 60, 80], [8, 4, 64, 90]]), 128, 128)[None]
    network = unet.new(levels, "tiny").eval()
    network.prior.zero_()  # any pixel is as likely to sound as not
    return network


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
    path = scale(tmp_path / "odd.mid")
    data = path.read_bytes()
    path.write_bytes(data[:14] + b"XFIH\0\0\0\1a" + data[14:])
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


def test_a_piece_shorter_than_a_bar_can_be_continued(tmp_path, network):
    piece = splice.open_midi(write(tmp_path / "s.mid", [(0, on(60)), (240, off(60))]))
    begin, end = splice.choose_bars(piece, "continue", 2)
    assert (begin, end) == (16, 48)
    kept = splice.kept_levels(piece, begin, end)
    painted = complete.paint_bars(network, kept, begin, end, open_end=True, sampling_steps=2)
    assert painted.shape == (128, 48) and np.array_equal(painted[:, :16], kept[:, :16])


# ---------------------------------------------------------------- painting


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_what_is_not_free_is_not_painted(data, network):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = paint(wild(rng, 0, 128), 128, 128)
    free = rng.random(levels.shape) < data.draw(st.sampled_from([0, 0.01, 0.5, 1]))
    painted = complete.paint_masked(network, levels, free, sampling_steps=2)
    assert painted.dtype == np.uint8 and np.array_equal(painted[~free], levels[~free])


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_bars_are_painted_around_what_sounds(data, network):
    hop = data.draw(st.sampled_from([3, 12, 16, 20, 96]))
    before, count, after = (data.draw(st.integers(low, 12)) * hop for low in (0, 1, 0))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kept = paint(wild(rng, 0, before + count + after), 128, before + count + after)
    begin, end = before, before + count
    painted = complete.paint_bars(network, kept, begin, end, hop=hop, sampling_steps=1,
                                  open_end=data.draw(st.booleans()))
    assert np.array_equal(painted[:, :begin], kept[:, :begin])
    assert np.array_equal(painted[:, end:], kept[:, end:])
    assert np.array_equal(painted[kept > 0], kept[kept > 0])


def test_the_same_seed_paints_the_same_bars(network):
    blank = np.zeros((128, 0), np.uint8)
    one, two, other = (complete.paint_bars(network, blank, 0, 160, sampling_steps=2,
                                           seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_strength_decides_how_much_of_the_old_shows(network, builtin_midi):
    levels = read_midi(builtin_midi[0]).levels[:, :128]
    free = np.ones(levels.shape, bool)
    changed = [np.mean(complete.paint_masked(network, levels, free, sampling_steps=10,
                                             strength=strength) != levels)
               for strength in (0, 0.001, 0.3, 1)]
    assert changed[0] == 0 and changed[0] < changed[1] < changed[2] < changed[3]


def test_fewer_than_one_step_is_refused(network):
    with pytest.raises(MusicError, match="sampling_steps is 0; choose 1 to 1000"):
        complete.paint_bars(network, np.zeros((128, 0), np.uint8), 0, 16, sampling_steps=0)


def test_a_piece_that_ends_within_a_bar_can_be_varied(tmp_path, network):
    piece = splice.open_midi(write(tmp_path / "s.mid", [(0, on(60)), (2400, off(60))]))
    begin, end = splice.choose_bars(piece, "vary", 1)
    painted = complete.paint_bars(network, splice.kept_levels(piece, begin, end), begin, end,
                                  levels=piece.picture.levels, strength=0)
    assert np.array_equal(painted, padded(piece.picture.levels, 32))


def test_livelier_reaches_the_density(network):
    planes = torch.full((1, 2, 128, 128), 0.001)
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[:, 64:] = True
    raised = complete.livelier(planes, mask, 0.05)
    assert abs(raised[0, 0][mask].mean() - 0.05) < 1e-3
    assert torch.equal(raised[0, :, ~mask], planes[0, :, ~mask])
    assert torch.equal(complete.livelier(raised, mask, 0.01), raised)


def test_the_network_is_shown_what_is_known_as_it_is(network, monkeypatch):
    """In each step, whatever the shape of what is free."""
    rng, seen, x_0 = np.random.default_rng(0), [], network.x_0
    levels, free = paint(wild(rng, 0, 128), 128, 128), rng.random((128, 128)) < 0.5
    monkeypatch.setattr(network, "x_0", lambda x_t, level, guidance, known: (
        seen.append((x_t, known)) or x_0(x_t, level, guidance, known)))
    complete.paint_masked(network, levels, free, sampling_steps=3, strength=0.9)
    clean = network.standardise(torch.from_numpy(pianoroll.to_planes(levels)))
    assert len(seen) == 3
    for x_t, known in seen:
        assert np.array_equal(known[0, 0].numpy(), ~free)
        assert torch.equal(x_t[0][:, known[0, 0]], clean[0][:, known[0, 0]])
        assert (x_t[0] - clean[0])[:, ~known[0, 0]].std() > 0.05


def test_a_density_is_asked_of_what_is_free_while_the_noise_is_strong(network, monkeypatch):
    asked, free = [], np.random.default_rng(0).random((128, 128)) < 0.5
    monkeypatch.setattr(complete, "livelier", lambda planes, mask, density: (
        asked.append((mask.numpy(), density)) or planes))
    complete.paint_masked(network, np.zeros((128, 128), np.uint8), free, sampling_steps=10,
                          density=0.2)
    times = diffusion.spaced_timesteps(1000, 10)
    strong = diffusion.log_snr(network.schedule())[times] < complete.SETTLED
    assert 0 < len(asked) == strong.sum() < 10
    assert all(density == 0.2 and np.array_equal(mask, free) for mask, density in asked)


def windows_of(monkeypatch, width, begin, end, **options):
    """What the painter is shown for each stretch, (window, free, seed), of a piece of long notes;
    row 60 sounds within the new bars, too."""
    seen = []
    monkeypatch.setattr(complete, "paint_masked", lambda network, window, free, seed: (
        seen.append((window, free, seed)) or np.where(free, 0, window)))
    kept = np.full((128, width), HELD, np.uint8)
    kept[:60, begin:end] = kept[61:, begin:end] = 0
    complete.paint_bars(None, kept, begin, end, **options)
    assert len({seed for *_, seed in seen}) == len(seen), "each stretch has noise of its own"
    return [(window, free) for window, free, _ in seen]


@pytest.mark.parametrize("hop", [3, 12, 16, 20, 48, 52, 66, 144])
@pytest.mark.parametrize("open_end", [True, False])
def test_a_stretch_is_painted_beside_what_comes_before_it(monkeypatch, hop, open_end):
    begin = -(-128 // hop) * hop
    end = begin + 12 * hop
    width = begin if open_end else end + 128
    windows = windows_of(monkeypatch, width, begin, end, hop=hop, open_end=open_end)
    for number, (window, free) in enumerate(windows, 1):
        assert window.shape == free.shape == (128, 128)
        first, in_the_middle = free[0].argmax(), number == len(windows) and not open_end
        assert first % hop == 0 or (first % 4 == 0 and (hop > 64 or first < hop))
        assert first >= (16 if in_the_middle else 48 - min(hop, 32)) and not free[:, :first].any()
        assert not free[0, -32:].any() if in_the_middle else free[0, first:].all()
        assert np.array_equal(~free[60, first:], window[60, first:] == HELD), "kept notes stay"


def test_stretches_are_whole_bars_and_as_equal_as_can_be():
    assert complete.stretches(16, 16 + 9 * 16, 16) == [(16, 64), (64, 112), (112, 160)]
    assert complete.stretches(0, 130, 16) == [(0, 48), (48, 96), (96, 130)]
    assert complete.stretches(5, 65, 60) == [(5, 65)]
    assert complete.stretches(0, 144, 144) == [(0, 48), (48, 96), (96, 144)]


@given(begin=st.integers(0, 99), length=st.integers(1, 999), hop=st.integers(1, 200),
       longest=st.integers(4, 64))
def test_stretches_cover_all_once(begin, length, hop, longest):
    parts = complete.stretches(begin, begin + length, hop, longest)
    assert parts[0][0] == begin and parts[-1][1] == begin + length
    assert all(one[1] == two[0] for one, two in itertools.pairwise(parts))
    assert all(0 < last - first <= longest for first, last in parts)


def test_the_last_stretch_of_a_gap_sees_what_comes_after(monkeypatch):
    seen = windows_of(monkeypatch, 480, 128, 256)
    assert [free[0].sum() for _, free in seen] == [64 + complete.AHEAD, 64]
    window, free = seen[-1]
    assert free[0].argmax() == 32 and (window[:, 96:] == HELD).all()


def test_the_end_of_a_piece_is_a_bar_of_silence_that_is_known(monkeypatch):
    (window, free), = windows_of(monkeypatch, 128, 80, 128)
    assert free[0].sum() == 48 and not free[:, -16:].any() and not window[:, -16:].any()
    assert free[0, -17] and free[0].argmax() == 64


def test_midi_in_memory_is_what_is_saved(builtin_midi, tmp_path):
    piece = splice.open_midi(builtin_midi[1])
    result = splice.replace_notes(piece, np.zeros((0, 4), int), 0, 16)
    memory = io.BytesIO()
    result.save(file=memory)
    assert splice.save(result, tmp_path / "r.mid").read_bytes() == memory.getvalue()
    assert not list(tmp_path.glob(".*")) and pianoroll.read_midi(tmp_path / "r.mid")


# ---------------------------------------------------------------- with the trained network

BARS, STEPS = 4, 25


@pytest.fixture(scope="module")
def trained():
    return unet.load(ROOT / "data" / "models" / "diffusion.safetensors", "cpu")


@functools.cache
def completed(trained, mode):
    """Held-out pieces with new bars: (piece, kept and painted levels, begin, end, new notes)."""
    result = []
    held_out = [p.path for p in corpus.choose_pieces("builtin") if p.split == "valid"]
    for number, path in enumerate(held_out):
        piece = splice.open_midi(path)
        begin, end = splice.choose_bars(piece, mode, BARS)
        kept = splice.kept_levels(piece, begin, end)
        painted = complete.paint_bars(
            trained, kept, begin, end, hop=piece.steps_per_bar, open_end=mode == "continue",
            seed=number, sampling_steps=STEPS,
            density=splice.density(kept, begin, end))
        new = splice.new_notes(painted, kept, begin, end)
        result.append((piece, kept, painted, begin, end, new))
    return result


def in_key(pitches, key):
    return np.mean(key[pitches % 12])


@pytest.mark.parametrize("mode", ["continue", "infill"])
def test_new_bars_are_in_key_more_often_than_what_is_painted_without_the_piece(trained, mode):
    """Averages over the pieces. Tolerance: 0.05 more at the least."""
    control = metrics.notes_of_set(diffusion.paint(trained, 8, sampling_steps=STEPS), 0)[:, 3]
    scales = [np.roll(metrics.MAJOR, tonic) for tonic in range(12)]
    rates = []
    for _, kept, _, _, _, new in completed(trained, mode):
        key = max(scales, key=lambda scale: in_key(notes_of(Picture(kept))[:, 2], scale))
        rates.append([in_key(new[:, 2], key), in_key(control, key)])
    new_rate, control_rate = np.mean(rates, axis=0)
    assert new_rate > control_rate + 0.05


@pytest.mark.parametrize("mode", ["continue", "infill"])
def test_new_bars_sound(trained, mode):
    """Tolerance: in a quarter of all bars no new note sounds, and a piece has two a bar."""
    done = completed(trained, mode)
    silent = [not ((new[:, 0] < at + piece.steps_per_bar) & (new[:, :2].sum(axis=1) > at)).any()
              for piece, _, _, begin, end, new in done
              for at in range(begin, end, piece.steps_per_bar)]
    assert np.mean(silent) <= 0.25
    assert all(len(new) >= 2 * BARS for *_, new in done)


def test_the_join_leaps_no_further_than_bars_elsewhere(trained):
    """From one bar's mean pitch to the next one's. Tolerance: half an octave more on average."""
    at_join, elsewhere = [], []
    for piece, _, painted, begin, end, _ in completed(trained, "continue"):
        bars = [np.nonzero(painted[:, at : at + piece.steps_per_bar] > 0)[0]
                for at in range(0, end, piece.steps_per_bar)]
        join = begin // piece.steps_per_bar
        for number, (one, two) in enumerate(itertools.pairwise(bars), 1):
            if len(one) and len(two):
                (at_join if number == join else elsewhere).append(abs(one.mean() - two.mean()))
    assert len(at_join) and np.mean(at_join) <= np.mean(elsewhere) + 6


PEAK = """
import resource, sys
import numpy as np
from utils import complete, pianoroll, unet
levels = pianoroll.paint(np.array([[0, 4, 60, 80], [8, 4, 64, 90]]), 128, 128)[None]
complete.paint_bars(unet.new(levels, "tiny").eval(), np.zeros((128, 0), np.uint8), 0,
                    16 * int(sys.argv[1]), open_end=True, sampling_steps=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_256_bars_take_no_more_memory_than_32():
    """Each in a process of its own. Tolerance: 64 MiB."""
    small, large = (int(subprocess.run([sys.executable, "-c", PEAK, str(bars)], cwd=ROOT, text=True,
                                       capture_output=True, check=True).stdout)
                    for bars in (32, 256))
    assert (large - small) / (2**20 if sys.platform == "darwin" else 2**10) < 64


def test_a_note_is_held_from_stretch_to_stretch_and_no_tail_is_left_alone(monkeypatch):
    """Row 60 has a head and tails for ever, row 61 tails alone."""
    def endless(network, canvas, free, **options):
        painted = canvas.copy()
        painted[60:62][free[60:62]] = HELD
        if not canvas[60].any():
            painted[60, 0] = 200
        return painted

    monkeypatch.setattr(complete, "paint_masked", endless)
    levels = complete.paint_bars(None, np.zeros((128, 0), np.uint8), 0, 512, open_end=True)
    assert notes_of(Picture(levels)).tolist() == [[0, 512, 60, 72]]


def test_a_stretch_decides_how_the_notes_that_it_leaves_sounding_go_on(monkeypatch):
    """The first paints a note over its end, up to column 70; the second would never end it."""
    def painter(network, window, free, **options):
        painted = window.copy()
        if window.any():
            painted[60][free[60]] = HELD
        else:
            painted[60, 60], painted[60, 61:70] = 200, HELD
        return painted

    monkeypatch.setattr(complete, "paint_masked", painter)
    levels = complete.paint_bars(None, np.zeros((128, 0), np.uint8), 0, 128, open_end=True)
    assert notes_of(Picture(levels)).tolist() == [[60, 10, 60, 72]]


def test_an_ending_is_the_tails_and_the_pixel_after():
    levels = np.array([[HELD, HELD, 0, HELD], [0, HELD, 0, 0], [200, HELD, 0, 0], [HELD] * 4])
    found = complete.endings(levels.astype(np.uint8), np.array([True, True, True, False]))
    assert found.tolist() == [[True, True, True, False], [True] + 3 * [False],
                              [True] + 3 * [False], 4 * [False]]
