"""utils.metrics: against MusPy, SciPy and hand-made music, and by properties."""

import muspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import linalg, stats

from utils import metrics
from utils.files import MusicError
from utils.pianoroll import roll_of

PITCHES, STEPS, LOWEST = 48, 64, 36
NAMES = list(metrics.FEATURES)


def columns(rolls, **options):
    """The features of each roll, by name."""
    return dict(zip(NAMES, metrics.features(rolls, LOWEST, **options).T, strict=True))


def value(notes, name, **options):
    """One feature of one roll of notes (start, length, pitch[, velocity])."""
    notes = np.array([(*note, 80)[:4] for note in notes])
    return columns(roll_of(notes, PITCHES, STEPS, LOWEST)[None], **options)[name][0]


def music(n, seed):
    """Rolls with a key, a metre and a bass: enough like music that a control is not."""
    rng, rolls = np.random.default_rng(seed), []
    major = np.add.outer([0, 12, 24], [0, 2, 4, 5, 7, 9, 11]).ravel()
    for _ in range(n):
        scale, notes, degree = major + 36 + rng.integers(12), [], 14
        rhythm = 2 * np.sort(rng.permutation(8)[: rng.integers(3, 7)])
        for bar in range(0, STEPS, 16):
            chord = rng.integers(7) + np.array([0, 2, 4])
            notes += [(bar + at, 8, scale[third], 60) for at in (0, 8) for third in chord]
            for at in rhythm:
                degree = int(np.clip(degree + rng.integers(-2, 3), 10, 18))
                notes.append((bar + at, 2, scale[degree], rng.integers(60, 100)))
        rolls.append(roll_of(np.array(notes), PITCHES + 24, STEPS, LOWEST))
    return np.stack(rolls)


any_pixels = hnp.arrays(np.uint8, st.tuples(*(st.integers(1, top) for top in (3, 14, 40))))
note = st.tuples(st.integers(0, STEPS - 1), st.integers(1, 20),
                 st.integers(LOWEST + 6, LOWEST + PITCHES - 7), st.integers(1, 127))
roll_sets = st.lists(st.lists(note, max_size=40).map(
    lambda notes: roll_of(np.array(notes).reshape(-1, 4), PITCHES, STEPS, LOWEST)),
    min_size=2, max_size=6).map(np.stack)


@settings(max_examples=20)
@given(roll_sets)
def test_agrees_with_muspy(rolls):
    rolls[:, :, -1] = 0
    rolls[:, 10, -2] = 128 + 80  # ends one step before the roll does, see groove below
    rolls[:, 10, :-2][rolls[:, 10, :-2] == 64] = 0
    ours = columns(rolls)
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
            assert ours[name][i] == pytest.approx(there, abs=1e-9), name


SCALE = [(4 * i, 4, 60 + p) for i, p in enumerate((0, 2, 4, 5, 7, 9, 11, 12))]  # two bars
BARS = [[(16 * bar + (at + 5 * bar * moved) % 16, 1, 60) for bar in range(4)
         for at in (0, 3, 6, 10, 12)] for moved in (False, True)]


@pytest.mark.parametrize(("notes", "options", "expected"), [
    (SCALE, {}, {
        "notes_per_bar": 2, "polyphony": 1, "silent_share": 0.5, "pitch_range": 12,
        "pitch_mean": 66.25, "in_key_rate": 1, "note_length": 1, "note_length_spread": 0,
        "onset_distance": 1, "onset_distance_spread": 0, "melodic_leap": 12 / 7,
        "velocity_spread": 0}),
    ([*SCALE, (40, 1, 61)], {}, {"in_key_rate": 8 / 9}),
    ([(0, 1, 60, 50), (8, 1, 60, 70)], {}, {"velocity_spread": 10}),
    ([(0, 1, 60), (4, 3, 60)], {}, {"note_length_spread": 0.25, "qualified_note_rate": 0.5}),
    ([(0, 1, 60), (4, 1, 60), (12, 1, 60)], {}, {"onset_distance_spread": 0.5}),
    ([(0, 1, 60), (0, 1, 61), (0, 1, 62), (0, 1, 63)], {}, {"pitch_class_entropy": 2}),
    ([(0, 16, 76), (16, 16, 77), *((at, 4, 40) for at in range(0, 32, 4))], {},
     {"melodic_leap": 1}),
    *(([(8, 4, pitch) for pitch in chord], {}, {"consonance": share}) for chord, share in (
        ((60,), 1), ((48, 60, 72), 1), ((60, 64, 67), 1), ((60, 62, 67), 2 / 3), ((60, 61, 62), 0),
        *(((60, 60 + k), float(k % 12 in {0, 3, 4, 5, 7, 8, 9})) for k in range(1, 16)))),
    (BARS[0], {}, {"rhythm_correlation": 1, "groove_similarity": 1}),
    (BARS[1], {"steps_per_bar": STEPS}, {"rhythm_correlation": 1}),  # nothing to compare
    (SCALE, {"steps_per_bar": 8}, {"notes_per_bar": 1}),
    (SCALE, {"steps_per_beat": 8}, {"note_length": 0.5, "onset_distance": 0.5}),
])
def test_hand_made_values(notes, options, expected):
    for name, number in expected.items():
        assert value(notes, name, **options) == pytest.approx(number), name


def test_a_silent_roll_has_defined_values():
    table = metrics.features(np.zeros((2, PITCHES, STEPS), np.uint8), LOWEST)
    ones = {"silent_share", "consonance", "groove_similarity", "rhythm_correlation"}
    np.testing.assert_array_equal(table, [[float(name in ones) for name in NAMES]] * 2)
    assert metrics.features(np.zeros((0, PITCHES, STEPS), np.uint8), 0).shape == (0, len(NAMES))


@given(any_pixels)
def test_any_pixels_give_finite_values_in_range(pixels):
    for name, values in columns(pixels).items():
        unit = metrics.FEATURES[name].unit
        high = 1 if "..1" in unit and "127" not in unit else np.inf
        assert np.isfinite(values).all() and values.max() <= high + 1e-9, name
        assert values.min() >= -1e-9 - (name == "rhythm_correlation"), name
        alone = columns(pixels[-1:])[name]
        assert alone == pytest.approx(values[-1:], abs=1e-9), "no roll depends on its set"


def test_overlap_is_that_of_scipys_kernel_densities():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 80), rng.normal(1.2, 0.7, 80)
    within = np.abs(np.subtract.outer(a, a))[~np.eye(80, dtype=bool)]
    between = np.abs(np.subtract.outer(a, b)).ravel()
    grid = np.linspace(0, max(within.max(), between.max()) * 1.5, 500)
    bandwidth = within.std() * 80**-0.2
    p, q = (2 * stats.gaussian_kde(np.r_[d, -d], bandwidth / np.r_[d, -d].std(ddof=1))(grid)
            for d in (within, between))
    area, kld = metrics.overlap(a[:, None], b[:, None])
    assert area == pytest.approx(np.trapezoid(np.minimum(p, q), grid), abs=0.01)
    assert kld == pytest.approx(stats.entropy(p, q), rel=0.1)


def test_frechet_is_the_textbooks_on_many_rolls():
    rng, size = np.random.default_rng(0), len(NAMES)
    mix = np.eye(size) + rng.normal(0, 0.3, (size, size))
    a, b = rng.normal(0, 50, (20_000, size)), rng.normal(0, 40, (20_000, size)) @ mix + 30
    x, y = metrics.standardise(a, a), metrics.standardise(a, b)
    s, t = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = gap + np.trace(s + t - 2 * np.real(linalg.sqrtm(s @ t)))
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=0.01)


def test_fixed_places_by_hand():
    """Two rolls of three bars share two of three pixels, and one of four at every shift."""
    rolls = np.zeros((2, 4, 12), np.uint8)
    assert metrics.fixed_places(rolls, steps_per_bar=4) == 1
    rolls[0, 0, [0, 4]], rolls[1, 0, [0, 4, 9]] = 200, 200
    assert metrics.fixed_places(rolls, steps_per_bar=4) == pytest.approx((2 / 3) / (1 / 4))


def test_similarity_is_the_f1_of_onsets():
    """Of two rolls of three notes and of two, one has the same onset, whatever its length."""
    one, two = (roll_of(np.array(notes), PITCHES, STEPS, LOWEST)[None] for notes in (
        [(0, 4, 60, 80), (4, 4, 62, 80), (8, 4, 64, 80)], [(0, 4, 60, 80), (4, 2, 63, 80)]))
    similarity, index = metrics.nearest(one, np.concatenate([0 * two, two]), 0, 0)
    assert similarity == pytest.approx(2 * 1 / (3 + 2)) and index == 1


@pytest.mark.parametrize(("semitones", "shift"), [(0, 0), (6, 4), (-5, -1)])
def test_copies_are_told_from_new_music_in_any_key_and_a_bit_later(semitones, shift):
    training, held_out, new = (np.pad(music(40, seed), ((0, 0), (6, 6), (4, 4)))
                               for seed in (10, 11, 12))
    copies = np.roll(training, (semitones, shift), axis=(1, 2))
    similarity, index = metrics.nearest(copies, training, max_shift=4)
    assert similarity == pytest.approx([1] * 40) and index.tolist() == [*range(40)]
    held_out, new, silent = (metrics.nearest(rolls, training, max_shift=4)[0]
                             for rolls in (held_out, new, 0 * new[:2]))
    assert metrics.memorised_share(similarity, held_out) == 1
    assert metrics.memorised_share(new, held_out) < 0.25 and not silent.any()


def test_controls_keep_what_they_say():
    rolls = music(20, 13)
    shuffled = metrics.shuffled_columns(rolls, seed=1)
    for before, after in zip(rolls, shuffled, strict=True):
        assert sorted(map(bytes, before.T.copy())) == sorted(map(bytes, after.T.copy()))
        assert (before != after).any()
    random = metrics.random_notes(rolls, seed=1)
    music_of, control_of = columns(rolls), columns(random)
    ratio = control_of["notes_per_bar"] / music_of["notes_per_bar"]
    assert 0.8 < ratio.min() <= ratio.max() <= 1
    assert (control_of["pitch_range"] <= music_of["pitch_range"]).all()
    np.testing.assert_array_equal(random, metrics.random_notes(rolls, seed=1))
    assert (random != metrics.random_notes(rolls, seed=2)).any()


def test_bad_input_is_one_clear_line():
    rolls = music(3, 14)
    for wrong in (rolls[None], rolls.astype(float)):
        with pytest.raises(MusicError, match="rolls must be uint8"):
            metrics.features(wrong, LOWEST)
    with pytest.raises(MusicError, match="compare images of one preset"):
        metrics.nearest(rolls, rolls[:, :5])
