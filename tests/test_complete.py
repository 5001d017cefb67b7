"""utils.splice and utils.complete: what was to be kept is kept, whatever is painted."""

import functools
import io

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from real_midi import real_files
from utils import complete, pianoroll, splice, unet
from utils.files import MusicError
from utils.pianoroll import Picture, notes_of, paint, read_midi

REAL = real_files(8)


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


def strokes(midi, begin, end):
    """Notes outside some steps: (track, start tick, end tick, channel, pitch, velocity)."""
    piece = splice._piece(None, midi, Picture(np.zeros((128, 1), np.uint8)))
    start, stop = piece.notes[:, 6], piece.notes[:, 7]
    outside = piece.notes[(start < begin) | (stop > end)]
    finish = piece.spans[outside[:, 0], 1]
    return sorted(map(tuple, np.column_stack([outside[:, :6], finish])[:, 1:].tolist()))


def others(midi):
    """Every message that is no note, with its track and tick."""
    found = []
    for number, track in enumerate(midi.tracks):
        tick = 0
        for message in track:
            tick += message.time
            drum = getattr(message, "channel", -1) == splice.DRUMS
            if (message.type not in ("note_on", "note_off") or drum) and \
                    message.type != "end_of_track":
                found.append((number, tick, str(message.copy(time=0))))
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
    """Paint noise into some bars and compare pixels, strokes and messages outside them."""
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
    again = mido.MidiFile(path)
    assert strokes(piece.midi, begin, end) == [
        note for note in strokes(again, begin, end) if note[1] >= 0]
    assert again.ticks_per_beat == piece.midi.ticks_per_beat
    kept_messages = others(again)
    if mode == "continue":  # what is lifted at the end comes on top
        assert set(others(piece.midi)) <= set(kept_messages)
    else:
        assert others(piece.midi) == kept_messages


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name[:40])
def test_real_files_are_kept_outside_the_painted_bars(path, tmp_path):
    piece, rng = opened(path), np.random.default_rng(path.stat().st_size)
    assert piece is not None, "every sound file can be completed"
    for mode in ("infill", "continue", "vary"):
        bars = int(rng.integers(1, min(piece.bars, 12) + 1))
        first = int(rng.integers(1, piece.bars - bars + 2))
        check_kept(piece, mode, bars, first, rng, tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bars_of_the_corpus_are_kept_outside(data, builtin_midi, tmp_path_factory):
    piece = opened(data.draw(st.sampled_from(builtin_midi)))
    mode = data.draw(st.sampled_from(["infill", "vary", "continue"]))
    bars = data.draw(st.integers(1, piece.bars))
    first = data.draw(st.integers(1, piece.bars - bars + 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    check_kept(piece, mode, bars, first, rng, tmp_path_factory.mktemp("kept"))


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


def test_the_old_file_comes_back_when_nothing_is_new(builtin_midi, tmp_path):
    piece = splice.open_midi(builtin_midi[0])
    begin, end = splice.choose_bars(piece, "vary", 1)
    result = splice.replace_notes(piece, notes_of(piece.picture), begin, end)
    splice.save(result, tmp_path / "same.mid")
    again, before = mido.MidiFile(tmp_path / "same.mid"), mido.MidiFile(builtin_midi[0])
    assert [list(map(str, track)) for track in again.tracks] == [
        list(map(str, track)) for track in before.tracks]


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
    assert len(added) == 1 and "control=64 value=0" in added.pop()[2]


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


def test_files_that_cannot_be_completed_say_why(tmp_path):
    odd = scale(tmp_path / "odd.mid", first=[metre(3, 64)])
    long = write(tmp_path / "long.mid", [(0, on(60)), (480 * 2 * 60 * 61, off(60))])
    drums = write(tmp_path / "drums.mid", [(0, on(36, channel=9)), (480, off(36, 9))])
    for path, said in ((odd, "metre is 3/64"), (long, "1.0 hours"), (drums, "no notes"),
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
    width = data.draw(st.integers(128, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = paint(wild(rng, 0, width), 128, width)
    free = rng.random(levels.shape) < data.draw(st.sampled_from([0, 0.01, 0.5, 1]))
    painted = complete.paint_masked(network, levels, free, sampling_steps=2, repeats=2,
                                    hop=data.draw(st.sampled_from([3, 12, 16, 128])))
    assert painted.dtype == np.uint8 and np.array_equal(painted[~free], levels[~free])


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_bars_are_painted_around_what_sounds(data, network):
    hop = data.draw(st.sampled_from([12, 16, 20]))
    before, count, after = (data.draw(st.integers(low, 12)) * hop for low in (0, 1, 0))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kept = paint(wild(rng, 0, before + count + after), 128, before + count + after)
    begin, end = before, before + count
    painted = complete.paint_bars(network, kept, begin, end, hop=hop, sampling_steps=1, repeats=1)
    assert np.array_equal(painted[:, :begin], kept[:, :begin])
    assert np.array_equal(painted[:, end:], kept[:, end:])
    assert np.array_equal(painted[kept > 0], kept[kept > 0])


def test_the_same_seed_paints_the_same_bars(network):
    blank = np.zeros((128, 0), np.uint8)
    one, two, other = (complete.paint_bars(network, blank, 0, 160, sampling_steps=2, repeats=1,
                                           seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_strength_decides_how_much_of_the_old_shows(network, builtin_midi):
    levels = read_midi(builtin_midi[0]).levels[:, :128]
    free = np.ones(levels.shape, bool)
    changed = [np.mean(complete.paint_masked(network, levels, free, sampling_steps=10, repeats=1,
                                             strength=strength) != levels)
               for strength in (0, 0.1, 1)]
    assert changed[0] == 0 and changed[0] < changed[1] < changed[2]


def test_livelier_reaches_the_density(network):
    import torch
    planes = torch.full((1, 2, 128, 128), 0.001)
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[:, 64:] = True
    raised = complete.livelier(planes, mask, 0.05)
    assert abs(raised[0, 0][mask].mean() - 0.05) < 1e-3
    assert torch.equal(raised[0, :, ~mask], planes[0, :, ~mask])
    assert torch.equal(complete.livelier(raised, mask, 0.01), raised)


def test_every_column_is_seen_and_no_border_stays(network):
    import torch
    random, borders = torch.Generator().manual_seed(0), []
    for _ in range(40):
        starts = complete._window_starts(np.ones((128, 512), bool), 16, random)
        covered = np.zeros(512, bool)
        for start in starts:
            covered[start : start + 128] = True
        assert covered.all()
        borders.append(set(starts) - {0, 384})
    assert not set.intersection(*borders)


def test_midi_in_memory_is_what_is_saved(builtin_midi, tmp_path):
    piece = splice.open_midi(builtin_midi[1])
    result = splice.replace_notes(piece, np.zeros((0, 4), int), 0, 16)
    memory = io.BytesIO()
    result.save(file=memory)
    assert splice.save(result, tmp_path / "r.mid").read_bytes() == memory.getvalue()
    assert not list(tmp_path.glob(".*")) and pianoroll.read_midi(tmp_path / "r.mid")
