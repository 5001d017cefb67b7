"""How musical a set of piano rolls is, and how far from another set. Explained in notebook 07.

`features` turns piano rolls, uint8 `[N, pitches, steps]`, into one row of numbers each. `compare`
and what it calls compare two such tables; the other functions look at the rolls themselves.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.fft import dct, idct
from scipy.signal import fftconvolve
from scipy.spatial.distance import pdist

from utils.files import MusicError
from utils.pianoroll import SILENCE, PianoRoll, notes_of, roll_of, snap

MAJOR = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1])
GRID = 4096  # cells of the grid on which densities of distances are estimated


class Feature(NamedTuple):
    """What a column of `features` measures."""

    unit: str
    least_spread: float  # a smaller standard deviation counts as this: nobody hears the difference
    meaning: str


FEATURES = {
    "notes_per_bar": Feature("notes", 0.1, "how many notes start in a bar"),
    "polyphony": Feature("pitches", 0.05, "pitches that sound at once, where any does"),
    "silent_share": Feature("0..1", 0.01, "share of steps in which nothing sounds"),
    "pitch_range": Feature("semitones", 0.5, "highest pitch less lowest"),
    "pitch_mean": Feature("MIDI pitch", 0.5, "mean pitch of the notes"),
    "pitch_class_entropy": Feature("bits, 0..3.58", 0.05, "how evenly the 12 classes are used"),
    "in_key_rate": Feature("0..1", 0.01, "share of notes inside the best of the 24 keys"),
    "note_length": Feature("beats", 0.05, "mean length of a note"),
    "note_length_spread": Feature("beats", 0.05, "standard deviation of the lengths"),
    "onset_distance": Feature("beats", 0.05, "mean time from one onset to the next"),
    "onset_distance_spread": Feature("beats", 0.05, "standard deviation of these times"),
    "melodic_leap": Feature("semitones", 0.1, "mean interval between notes of the top line"),
    "consonance": Feature("0..1", 0.01, "share of consonant pairs among notes that start together"),
    "qualified_note_rate": Feature("0..1", 0.01, "share of notes of two steps or longer"),
    "groove_similarity": Feature("0..1", 0.01, "how alike the onsets of neighbouring bars are"),
    "rhythm_correlation": Feature("-1..1", 0.02, "the same, beyond what the density alone gives"),
    "velocity_spread": Feature("1..127", 0.5, "standard deviation of the velocities"),
}


def notes_of_set(rolls: np.ndarray, lowest_pitch: int) -> np.ndarray:
    """All notes of all rolls, int64 `[M, 5]`: roll, start, length (steps), MIDI pitch, velocity;
    in order of roll, start, pitch."""
    if rolls.ndim != 3 or rolls.dtype != np.uint8:
        raise MusicError(f"rolls must be uint8 [N, pitches, steps], not {rolls.dtype} "
                         f"{list(rolls.shape)}; stack the pixels of images")
    n, pitches, steps = rolls.shape
    start, length, row, velocity = notes_of(PianoRoll(rolls.reshape(n * pitches, steps))).T
    roll, row = np.divmod(row.astype(int), pitches)
    order = np.argsort(roll * steps + start, kind="stable")
    return np.stack([roll, start, length, row + lowest_pitch, velocity], 1)[order]


def features(rolls: np.ndarray, lowest_pitch: int, steps_per_beat: int = 4,
             steps_per_bar: int = 16) -> np.ndarray:
    """Features of each roll, float64 `[N, F]`, one column for each name in FEATURES.

    Of a silent roll all are 0, but silent_share, consonance, groove_similarity and
    rhythm_correlation are 1. No feature is ever NaN.

    polyphony, pitch_range, pitch_class_entropy: as in MusPy (Dong et al., ISMIR 2020).
    in_key_rate: scale consistency (Mogren 2016). Each natural minor scale has the notes of a major.
    melodic_leap: along the skyline (Uitdenbogerd & Zobel 1998), the notes above which nothing
      sounds when they start.
    consonance: unison, thirds, fourth, fifth, sixths and octave, in any octave.
    qualified_note_rate: after MuseGAN (Dong et al., AAAI 2018), here two steps or longer.
    groove_similarity: 1 - mean Hamming distance between the onset columns of neighbouring bars
      (Wu & Yang, ISMIR 2020). Sparse rolls are alike by default, hence the next one.
    rhythm_correlation: autocorrelation, one bar apart, of the number of notes that start in a
      column: about 0 for onsets at random.
    """
    roll, start, length, pitch, velocity = notes_of_set(rolls, lowest_pitch).T
    n, pitches, steps = rolls.shape
    active = snap(rolls) != SILENCE
    at_once = active.sum(1)  # [n, steps]
    active_steps = (at_once > 0).sum(1)
    used = active.any(2)  # [n, pitches]
    count = np.bincount(roll, minlength=n)
    some = np.maximum(count, 1)
    column = roll * steps + start
    classes = np.bincount(roll * 12 + pitch % 12, minlength=n * 12).reshape(n, 12)
    p = classes / some[:, None]
    keys = np.stack([np.roll(MAJOR, tonic) for tonic in range(12)], 1)  # [class, key]
    length_mean, length_spread = _mean_and_spread(roll, length / steps_per_beat, n)
    distance_mean, distance_spread = _mean_and_spread(
        *_steps_between(*np.divmod(np.unique(column), steps)), n)
    top = pitches - 1 - active[:, ::-1].argmax(1)  # [n, steps], highest active row
    skyline = pitch - lowest_pitch == top[roll, start]
    onsets = np.bincount(column, minlength=n * steps).reshape(n, steps)
    whole_bars = onsets[:, : steps // steps_per_bar * steps_per_bar] > 0
    changes = whole_bars[:, steps_per_bar:] != whole_bars[:, :-steps_per_bar]  # after one bar
    result = {
        "notes_per_bar": count * steps_per_bar / steps,
        "polyphony": at_once.sum(1) / np.maximum(active_steps, 1),
        "silent_share": 1 - active_steps / steps,
        "pitch_range": np.where(count > 0, pitches - 1 - used[:, ::-1].argmax(1) - used.argmax(1),
                                0),
        "pitch_mean": _mean_and_spread(roll, pitch, n)[0],
        "pitch_class_entropy": -(p * np.log2(np.where(p > 0, p, 1))).sum(1),
        "in_key_rate": (classes @ keys).max(1) / some,
        "note_length": length_mean,
        "note_length_spread": length_spread,
        "onset_distance": distance_mean / steps_per_beat,
        "onset_distance_spread": distance_spread / steps_per_beat,
        "melodic_leap": _mean_and_spread(*_steps_between(roll[skyline], pitch[skyline]), n)[0],
        "consonance": _consonance(column, pitch, steps, n),
        "qualified_note_rate": np.bincount(roll, length >= 2, minlength=n) / some,
        "groove_similarity": 1 - changes.sum(1) / max(changes.shape[1], 1),
        "rhythm_correlation": _rhythm_correlation(onsets, steps_per_bar),
        "velocity_spread": _mean_and_spread(roll, velocity, n)[1]}
    return np.stack([result[name] for name in FEATURES], 1).astype(float)


def _mean_and_spread(group, values, n):
    """Mean and standard deviation of the values in each of n groups; 0 for an empty group."""
    count = np.maximum(np.bincount(group, minlength=n), 1)
    mean = np.bincount(group, values, n) / count
    return mean, np.sqrt(np.bincount(group, (values - mean[group]) ** 2, n) / count)


def _steps_between(group, values):
    """How far each value is from the one before it in its group: the groups, the distances."""
    same = group[1:] == group[:-1]
    return group[1:][same], np.abs(np.diff(values))[same]


def _consonance(column, pitch, steps, n):
    """Consonant pairs / pairs among notes with the same onset, per roll; 1 without a pair."""
    onset, index = np.unique(column, return_inverse=True)
    chroma = np.bincount(index * 12 + pitch % 12, minlength=len(onset) * 12).reshape(-1, 12)
    size = chroma.sum(1)
    same = (chroma * (chroma - 1)).sum(1) / 2
    consonant = same + sum((chroma * np.roll(chroma, k, 1)).sum(1) for k in (3, 4, 5))
    agree = np.bincount(onset // steps, consonant, n)
    pairs = np.bincount(onset // steps, size * (size - 1) / 2, n)
    return np.where(pairs > 0, agree / np.maximum(pairs, 1), 1.0)


def _rhythm_correlation(onsets, steps_per_bar):
    """Correlation of the onsets [n, steps] with those a bar later; 1 where nothing varies."""
    onsets = onsets - onsets.mean(1, keepdims=True)
    now, later = onsets[:, :-steps_per_bar], onsets[:, steps_per_bar:]
    power = np.sqrt((now**2).sum(1) * (later**2).sum(1))
    return np.where(power > 0, (now * later).sum(1) / np.where(power > 0, power, 1), 1.0)


def overlap(reference: np.ndarray, generated: np.ndarray, of: str = "distances"
            ) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping area (0..1, 1 is best) and KLD (nats, 0 is best), two float64 `[F]`.

    Yang & Lerch, "On the evaluation of generative models in music" (2020): per feature, the
    distances |a - b| within the reference against those between reference and generated, as
    densities by kernel estimation. OA is the integral of the smaller density, KLD is
    KL(within || between). Unlike the authors' code both densities have one bandwidth (Scott's rule
    for the smaller set) and are mirrored at the ends, since no distance is negative.
    `of="values"` compares the features themselves: stricter.
    """
    pairs = zip(reference.T, generated.T, strict=True)
    return tuple(np.array([_overlap_1d(a, b, of == "distances") for a, b in pairs]).T)


def _overlap_1d(reference, generated, of_distances):
    low = min(reference.min(), generated.min())
    span = max(reference.max(), generated.max()) - low
    if span == 0:
        return 1.0, 0.0  # everything is the same
    cells = [np.rint((x - low) / span * (GRID - 1)).astype(int) for x in (reference, generated)]
    p, q = (np.bincount(c, minlength=GRID).astype(float) for c in cells)
    if of_distances:
        p, q = _distances(p, p), _distances(p, q)
        p[0] -= len(reference)  # a roll's distance to itself says nothing
    p, q, place = p / p.sum(), q / q.sum(), np.arange(GRID)
    spread = np.sqrt(max(p @ place**2 - (p @ place) ** 2, 0))
    bandwidth = max(spread * min(len(reference), len(generated)) ** -0.2, 1.0)
    blur = np.exp(-((np.pi * bandwidth * place / GRID) ** 2) / 2)  # a cosine series mirrors
    p, q = np.maximum(idct(dct([p, q]) * blur), 0)
    tiny = 1e-12
    return np.minimum(p, q).sum(), max(np.sum(p * np.log((p + tiny) / (q + tiny))), 0.0)


def _distances(a, b):
    """Histogram of |x - y| over all pairs, from the histograms of x and of y."""
    lags = np.rint(fftconvolve(a, b[::-1]))  # lag 0 stands in the middle
    return np.concatenate([lags[GRID - 1 : GRID], lags[GRID:] + lags[GRID - 2 :: -1]])


def standardise(reference: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The table in standard deviations from the reference's mean, feature by feature."""
    least = np.array([feature.least_spread for feature in FEATURES.values()])
    return (table - reference.mean(0)) / np.maximum(reference.std(0), least)


def frechet(reference: np.ndarray, generated: np.ndarray) -> float:
    """Frechet distance of two sets of feature vectors (0 is best; squared standard deviations).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) with means m and covariances S of the features,
    standardised by the reference (Heusel et al., 2017, on features that one can name). Small sets
    read too far: give every set in a table the same number of rolls.
    """
    if len(reference) < 2 or not len(generated):
        raise MusicError("a distance needs a reference of two rolls or more, and one to compare")
    a, b = standardise(reference, reference), standardise(reference, generated)
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    s1, s2 = _covariance(a), _covariance(b)
    root = square_root(s1)
    return max(float(gap + np.trace(s1 + s2 - 2 * square_root(root @ s2 @ root))), 0.0)


def square_root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a symmetric, positive semi-definite matrix, `[F, F]`."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _covariance(x):
    """Covariance `[F, F]` of standardised rows, shrunk towards a multiple of the identity (Ledoit &
    Wolf 2004), so that a handful of rolls gives a stable value."""
    n, size = x.shape
    x = x - x.mean(0)
    sample = x.T @ x / n
    target = np.trace(sample) / size * np.eye(size)
    away = ((sample - target) ** 2).sum()
    noise = (((x**2).sum(1) ** 2).mean() - (sample**2).sum()) / n  # of the sample covariance
    weight = min(max(noise / away, 0), 1) if away > 0 else 0.0
    return weight * target + (1 - weight) * sample


def diversity(reference: np.ndarray, table: np.ndarray) -> float:
    """Mean distance between two rolls of the set, in the reference's standard deviations. Low: the
    rolls are all alike (a collapsed model). Compare it with the reference's own."""
    return float(pdist(standardise(reference, table)).mean()) if len(table) > 1 else 0.0


def compare(reference: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """A row of a report: overlap and KLD (means over features), Frechet distance, diversity."""
    area, kld = overlap(reference, generated)
    value_area, _ = overlap(reference, generated, of="values")
    return {"overlap": float(area.mean()), "value_overlap": float(value_area.mean()),
            "kld": float(kld.mean()), "frechet": frechet(reference, generated),
            "diversity": diversity(reference, generated)}


def fixed_places(rolls: np.ndarray, steps_per_bar: int = 16) -> float:
    """How much more two rolls of a set overlap as they are than shifted in time; music scores 1,
    where each roll is of another piece.

    The overlap of two rolls is the number of pixels active in both, divided by the number active in
    either; the shifts are circular, by all numbers of whole bars. A generator that puts the same
    figure at the same place of many samples scores above 1, and `diversity` does not show it.
    Raises `MusicError` for fewer than two rolls or two bars.
    """
    if len(rolls) < 2 or rolls.shape[2] < 2 * steps_per_bar:
        raise MusicError("fixed places need two rolls of two bars or more; make more samples")
    active = snap(rolls) != SILENCE
    shifts = range(steps_per_bar, rolls.shape[2] - steps_per_bar + 1, steps_per_bar)
    shifted = np.mean([_pair_overlap(active, np.roll(active, shift, 2)) for shift in shifts])
    return float(_pair_overlap(active, active) / shifted) if shifted else 1.0


def _pair_overlap(a, b):
    """Mean of |a_i and b_j| / |a_i or b_j| over i != j, for rolls of equal sizes |a_i| = |b_i|."""
    size = a.sum((1, 2))
    a, b = (sparse.csr_matrix(x.reshape(len(x), -1).astype(np.float32)) for x in (a, b))
    both = (a @ b.T).toarray()
    share = both / np.maximum(size[:, None] + size - both, 1)
    return share[~np.eye(len(size), dtype=bool)].mean()


def nearest(rolls: np.ndarray, training: np.ndarray, max_transpose: int = 6, max_shift: int = 16
            ) -> tuple[np.ndarray, np.ndarray]:
    """The most similar training roll of each roll: similarity float64 `[N]`, its index int `[N]`.

    Similarity is the F1 of onsets, 2 |A and B| / (|A| + |B|), over (pitch, step) pairs: 1 for a
    copy. The best of all transpositions up to +-max_transpose semitones and of all shifts up to
    +-max_shift steps counts. One core compares about 40,000 pairs of rolls a second.
    """
    if rolls.shape[1:] != training.shape[1:] or not len(training):
        raise MusicError(f"rolls {rolls.shape} and training rolls {training.shape} must share "
                         "rows and columns; compare images of one preset")
    ours, known = _onsets(rolls), _onsets(training)
    total = (ours.sum((1, 2))[:, None] + known.sum((1, 2))).clip(1)
    known = sparse.csc_matrix(known.reshape(len(known), -1).T.astype(np.float32))
    size = (len(ours), known.shape[0])
    similarity = np.zeros((len(rolls), len(training)), np.float32)
    roll, row, step = np.nonzero(ours)
    for semitones in range(-max_transpose, max_transpose + 1):
        for shift in range(-max_shift, max_shift + 1):
            r, s = row + semitones, step + shift
            inside = (r >= 0) & (r < ours.shape[1]) & (s >= 0) & (s < ours.shape[2])
            place = (roll[inside], (r * ours.shape[2] + s)[inside])
            moved = sparse.csr_matrix((np.ones(inside.sum(), np.float32), place), size)
            np.maximum(similarity, (moved @ known).toarray(), out=similarity)
    similarity *= 2 / total
    return similarity.max(1).astype(float), similarity.argmax(1)


def memorised_share(generated: np.ndarray, held_out: np.ndarray) -> float:
    """Share (0..1) of generated rolls that lie nearer to the training set than new music does.

    Both are similarities from `nearest`. A roll counts when it is more similar than 95 % of
    held-out real music, so new music scores about 0.05, and copies score 1.
    """
    return float(np.mean(np.asarray(generated) > np.quantile(held_out, 0.95)))


def shuffled_columns(rolls: np.ndarray, seed: int = 0) -> np.ndarray:
    """Control: the columns of each roll in random order. Sustains cut off become notes."""
    order = np.random.default_rng(seed).random((len(rolls), rolls.shape[2])).argsort(1)
    return np.take_along_axis(rolls, order[:, None], axis=2)


def random_notes(rolls: np.ndarray, seed: int = 0) -> np.ndarray:
    """Control: each roll's notes at random places within its own pitch range.

    Their number (but for collisions), lengths and velocities stay; pitch and start are uniform.
    """
    rng, result = np.random.default_rng(seed), np.zeros_like(rolls)
    n, pitches, steps = result.shape
    notes = notes_of_set(rolls, 0)
    for at, own in enumerate(np.split(notes[:, 1:], np.searchsorted(notes[:, 0], range(1, n)))):
        if len(own):
            low, high = own[:, 2].min(), own[:, 2].max()
            own[:, 0] = rng.integers(steps, size=len(own))
            own[:, 2] = rng.integers(low, high + 1, size=len(own))
            result[at] = roll_of(own, pitches, steps)
    return result


def _onsets(rolls):
    """Where notes start, bool [N, pitches, steps]."""
    onsets = np.zeros(rolls.shape, bool)
    roll, start, _, row, _ = notes_of_set(rolls, 0).T
    onsets[roll, row, start] = True
    return onsets
