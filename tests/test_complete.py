"""utils.complete: what was to be kept is kept, whatever is painted."""

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from real_midi import ROOT
from utils import complete, diffusion, edit, metrics, pianoroll, pieces, unet
from utils.files import MusicError
from utils.pianoroll import HELD, Picture, notes_of, paint, read_midi


@pytest.fixture(scope="module")
def network():
    """A tiny network that has learned nothing: it paints noise."""
    levels = paint(np.array([[0, 4, 60, 80], [8, 4, 64, 90]]), 128, 128)[None]
    network = unet.new(levels, "tiny").eval()
    network.prior.zero_()  # any pixel is as likely to sound as not
    return network


def wild(rng, begin, end):
    """Any notes at all within these columns."""
    count = rng.integers(0, 300)
    start = rng.integers(begin, end, count)
    length = np.minimum(rng.integers(1, 24, count), end - start)
    pitch, velocity = rng.integers(0, 128, count), rng.integers(1, 128, count)
    return np.stack([start, length, pitch, velocity], axis=1)


def one_note(path, columns):
    """A file of one note."""
    levels = paint(np.array([[0, columns, 60, 80]]), 128, columns)
    return pianoroll.save_midi(Picture(levels), path)


def test_a_piece_shorter_than_a_bar_can_be_continued(tmp_path, network):
    piece = edit.open_midi(one_note(tmp_path / "s.mid", 2))
    begin, end = edit.choose_bars(piece, "continue", 2)
    assert (begin, end) == (16, 48)
    kept = edit.kept_roll(piece, begin, end)
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
    piece = edit.open_midi(one_note(tmp_path / "s.mid", 25))
    begin, end = edit.choose_bars(piece, "vary", 1)
    painted = complete.paint_bars(network, edit.kept_roll(piece, begin, end), begin, end,
                                  levels=piece.picture.levels, strength=0)
    assert np.array_equal(painted[:, :25], piece.picture.levels) and not painted[:, 25:].any()


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


# ---------------------------------------------------------------- with the trained network

BARS, STEPS = 4, 25


@pytest.fixture(scope="module")
def trained():
    return unet.load(ROOT / "data" / "models" / "diffusion.safetensors", "cpu")


@functools.cache
def completed(trained, mode):
    """Held-out pieces with new bars: (piece, kept and painted levels, begin, end, new notes)."""
    result = []
    held_out = [p.path for p in pieces.choose_pieces("builtin") if p.split == "valid"]
    for number, path in enumerate(held_out):
        piece = edit.open_midi(path)
        begin, end = edit.choose_bars(piece, mode, BARS)
        kept = edit.kept_roll(piece, begin, end)
        painted = complete.paint_bars(
            trained, kept, begin, end, hop=piece.bar_at(begin), open_end=mode == "continue",
            seed=number, sampling_steps=STEPS,
            density=edit.density(kept, begin, end))
        new = edit.new_notes(painted, kept, begin, end)
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
    silent = [not ((new[:, 0] < at + piece.bar_at(0)) & (new[:, :2].sum(axis=1) > at)).any()
              for piece, _, _, begin, end, new in done
              for at in range(begin, end, piece.bar_at(0))]
    assert np.mean(silent) <= 0.25
    assert all(len(new) >= 2 * BARS for *_, new in done)


def test_the_join_leaps_no_further_than_bars_elsewhere(trained):
    """From one bar's mean pitch to the next one's. Tolerance: half an octave more on average."""
    at_join, elsewhere = [], []
    for piece, _, painted, begin, end, _ in completed(trained, "continue"):
        bars = [np.nonzero(painted[:, at : at + piece.bar_at(0)] > 0)[0]
                for at in range(0, end, piece.bar_at(0))]
        join = begin // piece.bar_at(0)
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
