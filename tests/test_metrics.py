"""utils.metrics: against MusPy, mir_eval, SciPy and hand-made music, and by properties."""

import warnings

import mir_eval
import muspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import linalg, stats

from utils import metrics
from utils.files import MusicError
from utils.pianoroll import PianoRoll, notes_of, roll_of

PITCHES, STEPS, LOWEST = 48, 64, 36
NAMES = list(metrics.FEATURES)


def column(table, name):
    return table[:, NAMES.index(name)]


def value(notes, name, **options):
    """One feature of one roll of notes (start, length, pitch[, velocity])."""
    notes = np.array([(*note, 80)[:4] for note in notes])
    roll = roll_of(notes, PITCHES, STEPS, LOWEST)
    return column(metrics.features(roll[None], LOWEST, **options), name)[0]


def music(n, seed, steps=STEPS, scale=(0, 2, 4, 5, 7, 9, 11)):
    """Rolls with a key, a metre and a bass: enough like music that a control is not."""
    rng, rolls = np.random.default_rng(seed), []
    for _ in range(n):
        tonic, rhythm = rng.integers(12), np.sort(rng.permutation(8)[: rng.integers(3, 7)]) * 2
        notes, degree = [], 14
        for bar in range(0, steps, 16):
            root = rng.integers(7)
            for at in range(0, 16, 8):
                for third in (0, 2, 4):
                    octave, class_ = divmod(root + third, 7)
                    notes.append((bar + at, 8, 36 + tonic + 12 * octave + scale[class_], 60))
            for at in rhythm:
                degree = int(np.clip(degree + rng.integers(-2, 3), 10, 18))
                octave, class_ = divmod(degree, 7)
                loud = rng.integers(60, 100)
                notes.append((bar + at, 2, 36 + tonic + 12 * octave + scale[class_], loud))
        rolls.append(roll_of(np.array(notes), PITCHES + 24, steps, LOWEST))
    return np.stack(rolls)


any_pixels = hnp.arrays(np.uint8, st.tuples(*(st.integers(1, top) for top in (3, 14, 40))))
note = st.tuples(st.integers(0, STEPS - 1), st.integers(1, 20),
                 st.integers(LOWEST + 6, LOWEST + PITCHES - 7), st.integers(1, 127))
roll_sets = st.lists(st.lists(note, max_size=40).map(
    lambda notes: roll_of(np.array(notes).reshape(-1, 4), PITCHES, STEPS, LOWEST)),
    min_size=2, max_size=6).map(np.stack)


@given(any_pixels, st.integers(0, 60))
def test_notes_are_those_of_the_decoder(pixels, lowest):
    found = metrics.notes_of_set(pixels, lowest)
    for i, roll in enumerate(pixels):
        expected = notes_of(PianoRoll(roll, lowest))
        expected = expected[np.lexsort((expected[:, 2], expected[:, 0]))]
        np.testing.assert_array_equal(found[found[:, 0] == i, 1:], expected)


# ------------------------------------------------------------------ features


@settings(max_examples=20, deadline=None)
@given(roll_sets)
def test_agrees_with_muspy(rolls):
    rolls[:, :, -1] = 0
    rolls[:, 10, -2] = 128 + 80  # ends one step before the roll does, see groove below
    rolls[:, 10, :-2][rolls[:, 10, :-2] == 64] = 0
    table = metrics.features(rolls, LOWEST)
    for i, roll in enumerate(rolls):
        notes = [muspy.Note(*map(int, (start, pitch, length, velocity))) for
                 _, start, length, pitch, velocity in metrics.notes_of_set(roll[None], LOWEST)]
        piece = muspy.Music(resolution=4, tracks=[muspy.Track(notes=notes)])
        expected = {
            "polyphony": muspy.polyphony(piece),
            "pitch_range": muspy.pitch_range(piece),
            "pitch_class_entropy": muspy.pitch_class_entropy(piece),
            "in_key_rate": muspy.scale_consistency(piece),
            # MusPy counts length // bar + 1 bars, so a piece that ends on a bar line gets an
            # empty bar more than it has. This one ends a step earlier: the same four bars.
            "groove_similarity": muspy.groove_consistency(piece, 16)}
        for name, there in expected.items():
            assert column(table, name)[i] == pytest.approx(there, abs=1e-9), name


SCALE = [(4 * i, 4, 60 + p) for i, p in enumerate((0, 2, 4, 5, 7, 9, 11, 12))]  # two bars
BARS = [[(16 * bar + (at + 5 * bar * moved) % 16, 1, 60) for bar in range(4)
         for at in (0, 3, 6, 10, 12)] for moved in (False, True)]


@pytest.mark.parametrize(("notes", "expected"), [
    (SCALE, {"notes_per_bar": 2, "polyphony": 1, "silent_share": 0.5, "pitch_range": 12,
             "pitch_mean": 66.25, "in_key_rate": 1, "note_length": 1, "onset_distance": 1,
             "note_length_spread": 0, "onset_distance_spread": 0, "melodic_leap": 12 / 7,
             "velocity_spread": 0}),
    ([*SCALE, (40, 1, 61)], {"in_key_rate": 8 / 9}),
    ([(0, 1, 60, 50), (8, 1, 60, 70)], {"velocity_spread": 10}),
    ([(0, 1, 60), (4, 3, 60)], {"note_length_spread": 0.25, "qualified_note_rate": 0.5}),
    ([(0, 1, 60), (0, 1, 61), (0, 1, 62), (0, 1, 63)], {"pitch_class_entropy": 2}),
    ([(0, 16, 76), (16, 16, 77), *((at, 4, 40) for at in range(0, 32, 4))], {"melodic_leap": 1}),
    (BARS[0], {"rhythm_correlation": 1, "groove_similarity": 1}),
])
def test_hand_made_values(notes, expected):
    for name, number in expected.items():
        assert value(notes, name) == pytest.approx(number), name


def test_the_grid_can_be_another_and_rhythm_correlation_sees_bars():
    assert value(SCALE, "notes_per_bar", steps_per_bar=8) == 1
    assert value(SCALE, "note_length", steps_per_beat=8) == 0.5
    assert value(SCALE, "onset_distance", steps_per_beat=8) == 0.5
    assert value(BARS[1], "rhythm_correlation") < 0.3
    assert value(BARS[1], "rhythm_correlation", steps_per_bar=STEPS) == 1  # nothing to compare


@pytest.mark.parametrize(("pitches", "share"), [
    ((60,), 1), ((60, 61), 0), ((60, 66), 0), ((60, 70), 0), ((60, 71), 0), ((48, 60, 72), 1),
    *(((60, 60 + interval), 1) for interval in (3, 4, 5, 7, 8, 9, 12, 15)),
    ((60, 64, 67), 1), ((60, 62, 67), 2 / 3), ((59, 62, 65), 2 / 3), ((60, 61, 62), 0)])
def test_consonance_of_a_chord(pitches, share):
    assert value([(8, 4, pitch) for pitch in pitches], "consonance") == pytest.approx(share)


def test_a_silent_roll_has_defined_values():
    table = metrics.features(np.zeros((2, PITCHES, STEPS), np.uint8), LOWEST)
    ones = {"silent_share", "consonance", "groove_similarity", "rhythm_correlation"}
    np.testing.assert_array_equal(table, [[float(name in ones) for name in NAMES]] * 2)
    assert metrics.features(np.zeros((0, PITCHES, STEPS), np.uint8), 0).shape == (0, len(NAMES))


@given(any_pixels)
def test_any_pixels_give_finite_values_in_range(pixels):
    table = metrics.features(pixels, 0)
    assert np.isfinite(table).all()
    for name, feature in metrics.FEATURES.items():
        low = -1 if name == "rhythm_correlation" else 0
        high = 1 if "..1" in feature.unit and "127" not in feature.unit else np.inf
        assert low - 1e-9 <= column(table, name).min(), name
        assert column(table, name).max() <= high + 1e-9, name


@settings(max_examples=20, deadline=None)
@given(roll_sets, st.integers(-6, 6))
def test_transposition_moves_the_mean_pitch_alone_and_no_roll_depends_on_its_set(rolls, semitones):
    before = metrics.features(rolls, LOWEST)
    after = metrics.features(np.roll(rolls, semitones, axis=1)[::-1], LOWEST)[::-1]
    before[:, NAMES.index("pitch_mean")] += semitones * (column(before, "notes_per_bar") > 0)
    np.testing.assert_allclose(after, before, atol=1e-9)


# ------------------------------------------------------------------ between sets


@settings(max_examples=20, deadline=None)
@given(roll_sets, roll_sets)
def test_order_changes_no_distance_and_a_set_is_at_none_from_itself(rolls, others):
    a, b = metrics.features(rolls, LOWEST), metrics.features(others, LOWEST)
    found = metrics.compare(a, b)
    assert metrics.compare(a[::-1], b[::-1]) == pytest.approx(found, rel=1e-6, abs=1e-6)
    assert all(np.isfinite(list(found.values())))
    assert 0 <= found["overlap"] <= 1 + 1e-9
    assert min(found["kld"], found["frechet"], found["diversity"]) >= 0
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6)
    area, kld = metrics.overlap(a, a, of="values")
    np.testing.assert_allclose(area, 1, atol=1e-9)
    np.testing.assert_allclose(kld, 0, atol=1e-9)


def test_overlap_is_that_of_scipys_kernel_densities():
    rng = np.random.default_rng(0)
    a, b = (np.tile(rng.normal(m, s, (80, 1)), len(NAMES)) for m, s in ((0, 1), (1.2, 0.7)))
    a, b = a.round(2), b.round(2)
    within = np.abs(a[:, None, 0] - a[None, :, 0])[~np.eye(len(a), dtype=bool)]
    between = np.abs(a[:, None, 0] - b[None, :, 0]).ravel()
    grid = np.linspace(0, max(within.max(), between.max()) * 1.5, 4000)
    bandwidth = within.std() * 80**-0.2
    p, q = (2 * stats.gaussian_kde(np.r_[d, -d], bandwidth / np.r_[d, -d].std(ddof=1))(grid)
            for d in (within, between))
    area, kld = metrics.overlap(a, b)
    np.testing.assert_allclose(area, np.trapezoid(np.minimum(p, q), grid), atol=0.01)
    np.testing.assert_allclose(kld, stats.entropy(p, q), rtol=0.1)


def test_distances_of_what_never_changes():
    a = np.ones((5, len(NAMES)))
    np.testing.assert_array_equal(metrics.overlap(a, a)[0], 1)
    assert metrics.overlap(a, a + 1)[0].max() < 0.01
    assert metrics.frechet(a, a) == 0


def test_frechet_is_the_textbooks_on_many_rolls():
    rng, size = np.random.default_rng(0), len(NAMES)
    mix = np.eye(size) + rng.normal(0, 0.3, (size, size))
    a, b = rng.normal(0, 50, (20_000, size)), rng.normal(0, 40, (20_000, size)) @ mix + 30
    x, y = metrics.standardise(a, a), metrics.standardise(a, b)
    s, t = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = gap + np.trace(s + t - 2 * np.real(linalg.sqrtm(s @ t)))
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=0.01)


def test_frechet_is_stable_for_small_sets():
    table = metrics.features(music(400, 2), LOWEST)
    control = metrics.features(metrics.random_notes(music(400, 3)), LOWEST)
    full = metrics.frechet(table, control)
    small, close = ([metrics.frechet(table, rolls[at : at + 10]) for at in range(0, 100, 10)]
                    for rolls in (control, table))
    assert np.allclose(small, full, rtol=0.5) and max(close) < min(small) / 3


def test_diversity_is_the_mean_distance_of_two_rolls():
    table = metrics.features(music(50, 4), LOWEST)
    x = metrics.standardise(table, table)
    loop = [np.linalg.norm(x[i] - x[j]) for i in range(50) for j in range(i)]
    assert metrics.diversity(table, table) == pytest.approx(np.mean(loop))
    assert metrics.diversity(table, np.repeat(table[:1], 9, axis=0)) == 0  # collapsed
    assert metrics.diversity(table, table[:1]) == 0


def test_controls_stand_further_off_than_new_music():
    new = music(100, 6)
    reference = metrics.features(music(150, 5), LOWEST)
    held_out, *controls = (
        metrics.compare(reference, metrics.features(rolls, LOWEST))
        for rolls in (new, metrics.shuffled_columns(new), metrics.random_notes(new)))
    for control in controls:
        assert control["frechet"] > 10 * held_out["frechet"]
        assert control["overlap"] < held_out["overlap"] - 0.1
        assert control["value_overlap"] < held_out["value_overlap"] - 0.2
        assert control["kld"] > 10 * held_out["kld"]


def test_fixed_places_by_hand():
    """Two rolls of three bars share two of three pixels, and one of four at every shift."""
    rolls = np.zeros((2, 4, 12), np.uint8)
    assert metrics.fixed_places(rolls, steps_per_bar=4) == 1
    rolls[0, 0, [0, 4]], rolls[1, 0, [0, 4, 9]] = 200, 200
    assert metrics.fixed_places(rolls, steps_per_bar=4) == pytest.approx((2 / 3) / (1 / 4))


# ------------------------------------------------------------------ memorisation and controls


@settings(max_examples=20, deadline=None)
@given(roll_sets)
def test_similarity_is_mir_evals_onset_f1(rolls):
    found, _ = metrics.nearest(rolls[:1], rolls[1:2], max_transpose=0, max_shift=0)
    sides = []
    for roll in rolls[:2]:
        notes = metrics.notes_of_set(roll[None], LOWEST)
        intervals = np.stack([notes[:, 1], notes[:, 1] + notes[:, 2]], 1).astype(float)
        sides += [intervals, mir_eval.util.midi_to_hz(notes[:, 3])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mir_eval warns of empty references
        _, _, f1, _ = mir_eval.transcription.precision_recall_f1_overlap(
            *sides, onset_tolerance=0.1, pitch_tolerance=10, offset_ratio=None)
    assert found[0] == pytest.approx(f1, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.integers(-6, 6), st.integers(-4, 4))
def test_a_copy_is_found_in_any_key_and_a_bit_later(which, semitones, shift):
    training = np.pad(music(10, 7), ((0, 0), (6, 6), (4, 4)))
    copy = np.roll(training[which], (semitones, shift), axis=(0, 1))[None]
    similarity, index = metrics.nearest(copy, training, max_shift=4)
    assert similarity[0] == pytest.approx(1) and index[0] == which


def test_memorised_share_tells_copies_from_new_music():
    training, held_out, new = music(40, 10), music(40, 11), music(40, 12)
    held_out, new, copies, silent = (
        metrics.nearest(rolls, training, max_shift=2)[0]
        for rolls in (held_out, new, training, np.zeros_like(training[:2])))
    assert metrics.memorised_share(copies, held_out) == 1
    assert metrics.memorised_share(new, held_out) < 0.25
    assert not silent.any()


def test_controls_keep_what_they_say():
    rolls = music(20, 13)
    shuffled = metrics.shuffled_columns(rolls, seed=1)
    for before, after in zip(rolls, shuffled, strict=True):
        assert sorted(map(bytes, before.T.copy())) == sorted(map(bytes, after.T.copy()))
    assert (shuffled != rolls).any((1, 2)).all()
    random = metrics.random_notes(rolls, seed=1)
    a, b = (metrics.features(x, LOWEST) for x in (rolls, random))
    ratio = column(b, "notes_per_bar") / column(a, "notes_per_bar")
    assert 0.8 < ratio.min() <= ratio.max() <= 1
    assert (column(b, "pitch_range") <= column(a, "pitch_range")).all()
    np.testing.assert_array_equal(random, metrics.random_notes(rolls, seed=1))
    assert (random != metrics.random_notes(rolls, seed=2)).any()


def test_bad_input_is_one_clear_line():
    rolls = music(3, 14)
    with pytest.raises(MusicError, match="rolls must be uint8"):
        metrics.features(rolls[None], LOWEST)
    with pytest.raises(MusicError, match="rolls must be uint8"):
        metrics.features(rolls.astype(float), LOWEST)
    with pytest.raises(MusicError, match="compare images of one preset"):
        metrics.nearest(rolls, rolls[:, :5])
