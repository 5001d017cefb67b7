"""utils.inpaint: what is kept stays, segments see what is around them, notes cross boundaries."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import inpaint, unet
from utils.pianoroll import SUSTAIN, PianoRoll, notes_of, roll_of

BLANK = np.zeros((128, 0), np.uint8)


@pytest.fixture
def generated_by(monkeypatch):
    """Put a function of (roll, mask, onsets) in the network's place; what it was given, a list."""
    def replace(function):
        seen = []

        def generate(network, count, *, roll, mask, onsets, seed, **options):
            seen.append((roll, mask, onsets, seed))
            return function(roll, mask)[None]

        monkeypatch.setattr(inpaint, "generate", generate)
        return seen

    return replace


@settings(max_examples=8)
@given(data=st.data())
def test_what_is_kept_or_known_stays(data, network):
    bar = data.draw(st.sampled_from([3, 12, 16, 20, 96]))
    before, count, after = (data.draw(st.integers(low, 9)) * bar for low in (0, 1, 0))
    begin, end, width = before, before + count, before + count + after
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kept = roll_of(rng.integers([0, 1, 0, 1], [width, 24, 128, 128], (200, 4)), 128, width)
    known = rng.random(kept.shape) < data.draw(st.sampled_from([0, 0.5]))
    roll = inpaint.inpaint(network, kept, begin, end, bar=bar, known=known, sampling_steps=1,
                           open_end=data.draw(st.booleans()))
    new = np.arange(width) // bar * bar
    stays = known | (kept > 0) | (new < begin) | (new >= end)
    assert roll.dtype == np.uint8 and np.array_equal(roll[stays], kept[stays])
    assert roll[~stays].any(), "the rest is generated"


def test_a_seed_gives_the_same_bars_and_the_callback_sees_each_prediction_as_a_roll(network):
    seen = []
    one, two, other = (inpaint.inpaint(network, BLANK, 0, 128, sampling_steps=2, seed=seed,
                                       callback=lambda *prediction: seen.append(prediction))
                       for seed in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert [step for step, _ in seen] == [0, 1] * 6  # two segments each
    assert all(roll.shape == (128, 128) and roll.dtype == np.uint8 for _, roll in seen)


def test_a_weight_of_0_forbids_a_pitch_in_its_columns_alone(network):
    weights = np.ones((128, 96), np.float32)
    weights[:, 40:] = 0
    roll = inpaint.inpaint(network, BLANK, 0, 96, pitch_weights=weights, sampling_steps=2)
    assert (roll[24:48, :40] > 0).any() and not roll[:, 40:].any()


@given(begin=st.integers(0, 99), length=st.integers(1, 999), bar=st.integers(1, 200),
       longest=st.integers(4, 64))
def test_segments_cover_everything_once_in_whole_bars(begin, length, bar, longest):
    parts = inpaint.segments(begin, begin + length, bar, longest)
    assert parts[0][0] == begin and parts[-1][1] == begin + length
    assert all(one[1] == two[0] for one, two in itertools.pairwise(parts))
    assert all(0 < last - first <= longest for first, last in parts)
    unit = bar if bar <= longest else unet.BEAT
    assert all((first - begin) % unit == 0 for first, _ in parts)


@pytest.fixture
def windows_of(generated_by):
    """What the network is shown for each segment, (roll, mask, onsets), of a piece of long notes;
    row 60 is active within the new bars, too."""
    def windows(width, begin, end, **options):
        seen = generated_by(lambda roll, mask: np.where(mask, 0, roll))
        kept = np.full((128, width), SUSTAIN, np.uint8)
        kept[:60, begin:end] = kept[61:, begin:end] = 0
        inpaint.inpaint(None, kept, begin, end, **options)
        assert len({seed for *_, seed in seen}) == len(seen), "each segment has its own noise"
        return [window[:3] for window in seen]

    return windows


@pytest.mark.parametrize("bar", [3, 16, 20, 66, 144])
@pytest.mark.parametrize("open_end", [True, False])
def test_a_segment_sees_what_comes_before_it(windows_of, bar, open_end):
    begin = -(-128 // bar) * bar
    end = begin + 12 * bar
    windows = windows_of(begin if open_end else end + 128, begin, end, bar=bar, open_end=open_end)
    for number, (roll, mask, _) in enumerate(windows, 1):
        first, in_the_middle = mask[0].argmax(), number == len(windows) and not open_end
        assert first % bar == 0 or (first % 4 == 0 and (bar > 64 or first < bar))
        assert first >= (16 if in_the_middle else 48 - min(bar, 32)) and not mask[:, :first].any()
        assert not mask[0, -32:].any() if in_the_middle else mask[0, first:].all()
        assert np.array_equal(~mask[60, first:], roll[60, first:] == SUSTAIN), "kept notes stay"


def test_the_last_segment_sees_what_follows_or_a_known_bar_of_silence(windows_of):
    seen = windows_of(480, 128, 256, onsets_per_bar=7.0)
    assert [mask[0].sum() for _, mask, _ in seen] == [64 + inpaint.AHEAD, 64]
    assert [onsets for *_, onsets in seen] == [7.0 * 5, 7.0 * 4], "the density of 80 and 64 columns"
    roll, mask, _ = seen[-1]
    assert mask[0].argmax() == 32 and (roll[:, 96:] == SUSTAIN).all()
    (roll, mask, _), = windows_of(128, 80, 128)
    assert mask[0].sum() == 48 and not mask[:, -16:].any() and not roll[:, -16:].any()


def test_the_usual_density_is_the_median_bar_of_both_sides():
    roll = np.zeros((128, 10 * 16), np.uint8)
    for bar, count in enumerate([3, 5, 0, 99, 99, 99, 4, 8, 0, 6]):
        roll[:count, 16 * bar + 2] = 200
    assert inpaint.usual_density(roll, 48, 96) == 5
    assert inpaint.usual_density(roll * 0, 48, 96) == 0 == inpaint.usual_density(BLANK, 0, 16)


def test_a_note_is_held_over_boundaries_and_no_sustain_is_left_alone(generated_by):
    """Row 60 has an onset and is sustained for ever, row 61 is sustained without an onset."""
    def endless(roll, mask):
        new = roll.copy()
        new[60:62][mask[60:62]] = SUSTAIN
        new[60, 0] = roll[60, 0] or (SUSTAIN if roll[60].any() else 200)
        return new

    generated_by(endless)
    roll = inpaint.inpaint(None, BLANK, 0, 512, open_end=True)
    assert notes_of(PianoRoll(roll)).tolist() == [[0, 512, 60, 72]]


def test_a_segment_decides_how_its_last_notes_end(generated_by):
    """The first writes a note over its end, up to column 70; the second would never end it."""
    def two_notes(roll, mask):
        new = roll.copy()
        if roll.any():
            new[60][mask[60]] = SUSTAIN
        else:
            new[60, 60], new[60, 61:70] = 200, SUSTAIN
        return new

    generated_by(two_notes)
    roll = inpaint.inpaint(None, BLANK, 0, 128, open_end=True)
    assert notes_of(PianoRoll(roll)).tolist() == [[60, 10, 60, 72]]
