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
KEY_FREE = [name for name in NAMES if name != "pitch_mean"]


def column(table, name):
    return table[:, NAMES.index(name)]


def value(notes, name, steps=STEPS, **options):
    """One feature of one roll of notes (start, length, pitch[, velocity])."""
    notes = [(*note, 80)[:4] for note in notes]
    roll = roll_of(np.array(notes).reshape(-1, 4), PITCHES, steps, LOWEST)
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
        notes = np.array(notes)
        rolls.append(roll_of(notes, PITCHES + 24, steps, LOWEST))
    return np.stack(rolls)


any_levels = hnp.arrays(np.uint8, st.tuples(*(st.integers(1, top) for top in (3, 14, 40))))
note = st.tuples(
    st.integers(0, STEPS - 1),
    st.integers(1, 20),
    st.integers(LOWEST + 6, LOWEST + PITCHES - 7),
    st.integers(1, 127),
)
roll_sets = st.lists(st.lists(note, max_size=40), min_size=2, max_size=6).map(
    lambda rolls: np.stack(
        [roll_of(np.array(notes).reshape(-1, 4), PITCHES, STEPS, LOWEST) for notes in rolls]
    )
)

# ------------------------------------------------------------------ notes


@given(any_levels, st.integers(0, 60))
def test_notes_are_those_of_the_decoder(levels, lowest):
    got = metrics.notes_of_set(levels, lowest)
    for i, roll in enumerate(levels):
        own = got[got[:, 0] == i, 1:]
        expected = notes_of(PianoRoll(roll, lowest))
        expected = expected[np.lexsort((expected[:, 2], expected[:, 0]))]
        np.testing.assert_array_equal(own, expected)


# ------------------------------------------------------------------ against MusPy and mir_eval


def to_muspy(roll):
    notes = metrics.notes_of_set(roll[None], LOWEST)
    notes = [muspy.Note(int(s), int(p), int(d), int(v)) for _, s, d, p, v in notes]
    return muspy.Music(resolution=4, tracks=[muspy.Track(notes=notes)])


@settings(max_examples=20, deadline=None)
@given(roll_sets)
def test_agrees_with_muspy(rolls):
    rolls[:, :, -1] = 0
    rolls[:, 10, -2] = 128 + 80  # ends one step before the roll does, see groove below
    rolls[:, 10, :-2][rolls[:, 10, :-2] == 64] = 0
    table = metrics.features(rolls, LOWEST)
    for i, roll in enumerate(rolls):
        piece = to_muspy(roll)
        expected = {
            "polyphony": muspy.polyphony(piece),
            "pitch_range": muspy.pitch_range(piece),
            "pitch_class_entropy": muspy.pitch_class_entropy(piece),
            "in_key_rate": muspy.scale_consistency(piece),
            # MusPy counts length // bar + 1 bars, so a piece that ends on a bar line gets an
            # empty bar more than it has. This one ends a step earlier: the same four bars.
            "groove_similarity": muspy.groove_consistency(piece, 16),
        }
        for name, there in expected.items():
            assert column(table, name)[i] == pytest.approx(there, abs=1e-9), name


@settings(max_examples=20, deadline=None)
@given(roll_sets)
def test_similarity_is_mir_evals_onset_f1(rolls):
    got, _ = metrics.nearest(rolls[:1], rolls[1:2], max_transpose=0, max_shift=0)
    sides = []
    for roll in rolls[:2]:
        notes = metrics.notes_of_set(roll[None], LOWEST)
        intervals = np.stack([notes[:, 1], notes[:, 1] + notes[:, 2]], 1).astype(float)
        sides += [intervals, mir_eval.util.midi_to_hz(notes[:, 3])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mir_eval warns of empty references
        _, _, f1, _ = mir_eval.transcription.precision_recall_f1_overlap(
            *sides, onset_tolerance=0.1, pitch_tolerance=10, offset_ratio=None
        )
    assert got[0] == pytest.approx(f1, abs=1e-6)


# ------------------------------------------------------------------ hand-made music


def test_hand_made_values():
    scale = [(4 * i, 4, 60 + p) for i, p in enumerate((0, 2, 4, 5, 7, 9, 11, 12))]  # two bars
    assert value(scale, "notes_per_bar") == 2
    assert value(scale, "notes_per_bar", steps_per_bar=8) == 1
    assert value(scale, "polyphony") == 1
    assert value(scale, "silent_share") == 0.5
    assert value(scale, "pitch_range") == 12
    assert value(scale, "pitch_mean") == 66.25
    assert value(scale, "in_key_rate") == 1
    assert value([*scale, (40, 1, 61)], "in_key_rate") == pytest.approx(8 / 9)
    assert value(scale, "note_length") == value(scale, "onset_distance") == 1  # beats
    assert value(scale, "note_length", steps_per_beat=8) == 0.5
    assert value(scale, "onset_distance", steps_per_beat=8) == 0.5
    assert value(scale, "note_length_spread") == value(scale, "onset_distance_spread") == 0
    assert value(scale, "melodic_leap") == pytest.approx(12 / 7)
    assert value(scale, "velocity_spread") == 0
    assert value([(0, 1, 60, 50), (8, 1, 60, 70)], "velocity_spread") == 10
    assert value([(0, 1, 60), (4, 3, 60)], "note_length_spread") == 0.25
    four_on = [(0, 1, 60), (4, 1, 60), (8, 2, 60), (16, 3, 60)]
    assert value(four_on, "qualified_note_rate") == 0.5
    assert value([(0, 1, 60), (0, 1, 61), (0, 1, 62), (0, 1, 63)], "pitch_class_entropy") == 2


@pytest.mark.parametrize(
    ("pitches", "share"),
    [((60,), 1), ((60, 61), 0), ((60, 66), 0), ((60, 70), 0), ((60, 71), 0), ((48, 60, 72), 1)]
    + [((60, 60 + k), 1) for k in (3, 4, 5, 7, 8, 9, 12, 15)]
    + [((60, 64, 67), 1), ((60, 62, 67), 2 / 3), ((59, 62, 65), 2 / 3), ((60, 61, 62), 0)],
)
def test_consonance_of_a_chord(pitches, share):
    assert value([(8, 4, p) for p in pitches], "consonance") == pytest.approx(share)


def test_skyline_leaves_the_accompaniment_out():
    melody = [(0, 16, 76), (16, 16, 77)]
    bass = [(at, 4, 40) for at in range(0, 32, 4)]
    assert value(melody + bass, "melodic_leap") == 1


def test_rhythm_correlation_sees_bars():
    bar = (0, 3, 6, 10, 12)
    same = [(16 * b + at, 1, 60) for b in range(4) for at in bar]
    moved = [(16 * b + (at + 5 * b) % 16, 1, 60) for b in range(4) for at in bar]
    assert value(same, "rhythm_correlation") == pytest.approx(1)
    assert value(same, "groove_similarity") == 1
    assert value(moved, "rhythm_correlation") < 0.3
    assert value(same, "rhythm_correlation", steps_per_bar=STEPS) == 1  # nothing to compare


def test_a_silent_roll_has_defined_values():
    table = metrics.features(np.zeros((2, PITCHES, STEPS), np.uint8), LOWEST)
    ones = {"silent_share", "consonance", "groove_similarity", "rhythm_correlation"}
    expected = [float(name in ones) for name in NAMES]
    np.testing.assert_array_equal(table, [expected, expected])


# ------------------------------------------------------------------ properties of the features


@given(any_levels)
def test_any_levels_give_finite_values_in_range(levels):
    table = metrics.features(levels, 0)
    assert np.isfinite(table).all()
    for name, feature in metrics.FEATURES.items():
        low, high = -1 if name == "rhythm_correlation" else 0, np.inf
        if "0..1" in feature.unit or "-1..1" in feature.unit:
            high = 1
        assert column(table, name).min() >= low - 1e-9, name
        assert column(table, name).max() <= high + 1e-9, name


@settings(max_examples=20, deadline=None)
@given(roll_sets, st.integers(-6, 6))
def test_transposition_moves_the_mean_pitch_alone(rolls, semitones):
    before = metrics.features(rolls, LOWEST)
    after = metrics.features(np.roll(rolls, semitones, axis=1), LOWEST)
    heard = column(before, "notes_per_bar") > 0
    for name in KEY_FREE:
        np.testing.assert_allclose(column(after, name), column(before, name), atol=1e-9)
    shift = column(after, "pitch_mean") - column(before, "pitch_mean")
    np.testing.assert_allclose(shift, semitones * heard, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(roll_sets, st.randoms(use_true_random=False))
def test_a_rolls_features_do_not_depend_on_its_set(rolls, random):
    order = random.sample(range(len(rolls)), len(rolls))
    table = metrics.features(rolls, LOWEST)
    np.testing.assert_allclose(metrics.features(rolls[order], LOWEST), table[order], atol=1e-9)
    np.testing.assert_allclose(metrics.features(rolls[:1], LOWEST), table[:1], atol=1e-9)


def test_more_rolls_than_a_block():
    rolls = music(300, 0)
    one_by_one = [metrics.features(roll[None], LOWEST)[0] for roll in rolls[::50]]
    np.testing.assert_allclose(metrics.features(rolls, LOWEST)[::50], one_by_one, atol=1e-9)
    assert metrics.features(rolls[:0], LOWEST).shape == (0, len(NAMES))


# ------------------------------------------------------------------ between sets


@settings(max_examples=20, deadline=None)
@given(roll_sets, roll_sets, st.randoms(use_true_random=False))
def test_order_changes_no_distance(rolls, others, random):
    a, b = metrics.features(rolls, LOWEST), metrics.features(others, LOWEST)
    before = metrics.compare(a, b)
    mixed = [random.sample(list(table), len(table)) for table in (a, b)]
    after = metrics.compare(*(np.array(table) for table in mixed))
    assert after == pytest.approx(before, rel=1e-6, abs=1e-6)
    assert all(np.isfinite(list(before.values())))
    assert 0 <= before["overlap"] <= 1 + 1e-9
    assert min(before["kld"], before["frechet"], before["diversity"]) >= 0


@settings(max_examples=20, deadline=None)
@given(roll_sets)
def test_a_set_is_at_no_distance_from_itself(rolls):
    table = metrics.features(rolls, LOWEST)
    assert metrics.frechet(table, table) == pytest.approx(0, abs=1e-6)
    area, kld = metrics.overlap(table, table, of="values")
    np.testing.assert_allclose(area, 1, atol=1e-9)
    np.testing.assert_allclose(kld, 0, atol=1e-9)


def test_overlap_of_a_large_set_with_itself_is_near_one():
    table = metrics.features(music(200, 1), LOWEST)
    area, kld = metrics.overlap(table, table)  # its own rolls are pairs at distance 0
    assert area.min() > 0.97
    assert kld.max() < 0.01


def test_overlap_is_that_of_scipys_kernel_densities():
    rng = np.random.default_rng(0)
    a, b = (np.tile(rng.normal(m, s, (80, 1)), len(NAMES)) for m, s in ((0, 1), (1.2, 0.7)))
    a, b = a.round(2), b.round(2)
    within = np.abs(a[:, None, 0] - a[None, :, 0])[~np.eye(len(a), dtype=bool)]
    between = np.abs(a[:, None, 0] - b[None, :, 0]).ravel()
    grid = np.linspace(0, max(within.max(), between.max()) * 1.5, 4000)
    bandwidth = within.std() * 80**-0.2
    p, q = (
        2 * stats.gaussian_kde(np.r_[d, -d], bandwidth / np.r_[d, -d].std(ddof=1))(grid)
        for d in (within, between)
    )
    area, kld = metrics.overlap(a, b)
    np.testing.assert_allclose(area, np.trapezoid(np.minimum(p, q), grid), atol=0.01)
    np.testing.assert_allclose(kld, stats.entropy(p, q), rtol=0.1)


def test_overlap_of_what_never_changes():
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
    small = [metrics.frechet(table, control[at : at + 10]) for at in range(0, 100, 10)]
    assert np.allclose(small, full, rtol=0.5)
    close = [metrics.frechet(table, table[at : at + 10]) for at in range(0, 100, 10)]
    assert max(close) < min(small) / 3


def test_shrinkage_brings_a_small_set_nearer_its_own_source(monkeypatch):
    table = metrics.features(music(400, 2), LOWEST)

    def mean_distance():
        return np.mean([metrics.frechet(table, table[at : at + 10]) for at in range(0, 100, 10)])

    shrunk = mean_distance()
    monkeypatch.setattr(metrics, "_covariance", lambda x: np.cov(x.T, bias=True))
    assert shrunk < 0.9 * mean_distance()


def test_diversity():
    table = metrics.features(music(100, 4), LOWEST)
    own = metrics.diversity(table, table)
    x = metrics.standardise(table, table)
    loop = [np.linalg.norm(x[i] - x[j]) for i in range(100) for j in range(i)]
    assert own == pytest.approx(np.mean(loop))
    assert metrics.diversity(table, np.repeat(table[:1], 9, axis=0)) == 0  # collapsed
    assert metrics.diversity(table, table[:1]) == 0
    assert metrics.diversity(table, table[:10]) == pytest.approx(own, rel=0.25)


def test_controls_stand_further_off_than_new_music():
    train, new = music(150, 5), music(100, 6)
    reference = metrics.features(train, LOWEST)

    def row(rolls):
        return metrics.compare(reference, metrics.features(rolls, LOWEST))

    held_out = row(new)
    for control in (metrics.shuffled_columns(new), metrics.random_notes(new)):
        control = row(control)
        assert control["frechet"] > 10 * held_out["frechet"]
        assert control["overlap"] < held_out["overlap"] - 0.1
        assert control["value_overlap"] < held_out["value_overlap"] - 0.2
        assert control["kld"] > 10 * held_out["kld"]


# ------------------------------------------------------------------ fixed places


def with_figure(starts, seed=0):
    """Rolls of random notes, each with the same figure, four bars long, that starts at its step."""
    rng, rolls = np.random.default_rng(seed), []
    for start in starts:
        notes = np.stack([rng.integers(0, 128, 20), rng.integers(1, 8, 20),
                          rng.integers(40, 80, 20), np.full(20, 80)], 1)
        figure = [((start + at) % 128, 4, 50 + at % 11, 80) for at in range(0, 64, 4)]
        rolls.append(roll_of(np.concatenate([notes, figure]), PITCHES, 128, LOWEST))
    return np.stack(rolls)


def test_a_figure_at_the_same_place_of_all_rolls_shows_and_elsewhere_does_not():
    anywhere = np.random.default_rng(1).integers(0, 128, 60)
    assert metrics.fixed_places(with_figure(np.full(60, 37))) > 3
    assert metrics.fixed_places(with_figure(anywhere)) == pytest.approx(1, abs=0.15)


def test_fixed_places_by_hand():
    """Two rolls of three bars share two of three pixels, and one of four at every shift."""
    rolls = np.zeros((2, 4, 12), np.uint8)
    rolls[0, 0, [0, 4]], rolls[1, 0, [0, 4, 9]] = 200, 200
    assert metrics.fixed_places(rolls, steps_per_bar=4) == pytest.approx((2 / 3) / (1 / 4))
    assert metrics.fixed_places(np.zeros((2, 4, 12), np.uint8), steps_per_bar=4) == 1


# ------------------------------------------------------------------ memorisation and controls


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.integers(-6, 6), st.integers(-4, 4))
def test_a_copy_is_found_in_any_key_and_a_bit_later(which, semitones, shift):
    training = np.pad(music(10, 7), ((0, 0), (6, 6), (4, 4)))
    copy = np.roll(training[which], (semitones, shift), axis=(0, 1))[None]
    similarity, index = metrics.nearest(copy, training, max_shift=4)
    assert similarity[0] == pytest.approx(1)
    assert index[0] == which


def test_nearest_is_that_of_a_loop():
    ours, known = music(3, 8, steps=32), music(4, 9, steps=32)
    got, index = metrics.nearest(ours, known, max_transpose=2, max_shift=3)
    best = np.zeros((3, 4))
    a, b = (np.pad(x > 64, ((0, 0), (2, 2), (3, 3))) for x in (ours, known))
    for semitones in range(-2, 3):
        for shift in range(-3, 4):
            moved = np.roll(a, (semitones, shift), axis=(1, 2))
            shared = np.einsum("aps,bps->ab", moved.astype(int), b.astype(int))
            total = a.sum((1, 2))[:, None] + b.sum((1, 2))
            best = np.maximum(best, 2 * shared / total)
    np.testing.assert_allclose(got, best.max(1), rtol=1e-6)
    np.testing.assert_allclose(best[range(3), index], best.max(1))


def test_memorised_share_tells_a_photocopier_from_a_composer():
    training, held_out, new = music(40, 10), music(40, 11), music(40, 12)
    score = {
        name: metrics.nearest(rolls, training, max_shift=2)[0]
        for name, rolls in (("held_out", held_out), ("new", new), ("copies", training))
    }
    assert metrics.memorised_share(score["copies"], score["held_out"]) == 1
    assert metrics.memorised_share(score["new"], score["held_out"]) < 0.25
    silent = metrics.nearest(np.zeros_like(training[:2]), training, max_shift=0)[0]
    np.testing.assert_array_equal(silent, 0)


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
    assert not metrics.random_notes(np.zeros_like(rolls)).any()


# ------------------------------------------------------------------ bad input, speed


def test_bad_input_is_one_clear_line():
    rolls, table = music(3, 14), metrics.features(music(3, 14), LOWEST)
    for call in (
        lambda: metrics.features(rolls[0], LOWEST),
        lambda: metrics.features(rolls.astype(float), LOWEST),
        lambda: metrics.nearest(rolls, rolls[:, :5]),
        lambda: metrics.nearest(rolls, rolls[:0]),
        lambda: metrics.frechet(table[:1], table),
        lambda: metrics.compare(table, table[:0]),
        lambda: metrics.overlap(table, table[:, :3]),
        lambda: metrics.overlap(table, table, of="heights"),
        lambda: metrics.fixed_places(rolls[:1]),
        lambda: metrics.fixed_places(rolls[..., :31]),
    ):
        with pytest.raises(MusicError) as caught:
            call()
        assert "\n" not in str(caught.value)
