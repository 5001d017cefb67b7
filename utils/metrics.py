"""How musical a set of piano rolls is, and how far it stands from another set.

`features` turns rolls (uint8 levels [N, pitches, steps], see `utils.pianoroll`) into one row of
numbers each. `overlap`, `frechet` and `diversity` compare two such tables; `nearest` and
`memorised_share` look at the rolls themselves. `shuffled_columns` and `random_notes` make the
controls without which none of these numbers means anything. Explained in notebook 07_evaluate.

A control to remember: a roll without notes is 0 in every feature, but for silent_share,
consonance and rhythm_similarity, which are 1 (all of it is silent, nothing clashes, all bars
are equal). No feature is ever NaN.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter1d
from scipy.signal import fftconvolve
from scipy.spatial.distance import pdist

HELD, ONSET = 64, 128
MAJOR = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1])
GRID = 4096  # cells of the grid on which densities of distances are estimated


class Feature(NamedTuple):
    """What a column of `features` measures."""

    unit: str
    least_spread: float  # a standard deviation below this is taken for this: differences too small to hear
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
    "rhythm_similarity": Feature("0..1", 0.01, "how alike the onsets of neighbouring bars are"),
    "velocity_spread": Feature("1..127", 0.5, "standard deviation of the velocities"),
}


def notes_of_set(levels, lowest_pitch):
    """All notes of all rolls -> int64 [M, 5]: roll, start, length (steps), MIDI pitch, velocity.

    In order of roll, start, pitch. A run without a head is a note of velocity 64, as in
    `utils.pianoroll.notes_of`.
    """
    levels = _checked(levels)
    sounding, head = levels > 0, levels > ONSET
    head[..., 0] |= sounding[..., 0]
    head[..., 1:] |= sounding[..., 1:] & ~sounding[..., :-1]
    last = sounding.copy()  # the last column of each note: silence or another head comes next
    last[..., :-1] &= head[..., 1:] | ~sounding[..., 1:]
    roll, row, start = np.nonzero(head)  # heads and last columns pair up: both in row order
    length = np.nonzero(last)[2] - start + 1
    level = levels[roll, row, start].astype(int)
    velocity = np.where(level > ONSET, level - ONSET, HELD)
    order = np.argsort(roll * levels.shape[2] + start, kind="stable")
    return np.stack([roll, start, length, row + lowest_pitch, velocity], 1)[order]


def features(levels, lowest_pitch, steps_per_beat=4, steps_per_bar=16):
    """Features of each roll -> float64 [N, F], one column for each name in FEATURES, in its order.

    polyphony, pitch_range, pitch_class_entropy: as in MusPy (Dong et al., ISMIR 2020).
    pitch_class_entropy: -sum p log2 p over the notes' pitch classes (Wu & Yang, ISMIR 2020).
    in_key_rate: the largest share of notes in a major or natural minor scale (scale consistency;
      Mogren 2016). A natural minor scale has the notes of its relative major, so the 24 keys are
      12 sets of pitch classes.
    onset_distance: between columns in which at least one note starts.
    melodic_leap: mean absolute interval along the skyline (Uitdenbogerd & Zobel 1998): the notes
      above which nothing sounds when they start.
    consonance: pairs of notes that start in one column, folded into an octave; unison, thirds,
      fourth, fifth, sixths and octave are consonant, seconds, tritone and sevenths are not.
    qualified_note_rate: after MuseGAN (Dong et al., AAAI 2018), here two steps or longer.
    rhythm_similarity: 1 - mean Hamming distance between the onset columns of neighbouring bars
      (grooving similarity; Wu & Yang 2020). Sparse music is alike by default: read it beside
      notes_per_bar. 1 where there are fewer than two whole bars.
    """
    levels, blocks = _checked(levels), []
    for at in range(0, len(levels), 256):  # bounded memory
        blocks.append(_features(levels[at : at + 256], lowest_pitch, steps_per_beat, steps_per_bar))
    return np.concatenate(blocks) if blocks else np.zeros((0, len(FEATURES)))


def _features(levels, lowest_pitch, steps_per_beat, steps_per_bar):
    n, pitches, steps = levels.shape
    notes = notes_of_set(levels, lowest_pitch)
    roll, start, length, pitch, velocity = notes.T
    count = np.bincount(roll, minlength=n)
    some = np.maximum(count, 1)
    result = {"notes_per_bar": count * steps_per_bar / steps}

    sounding = levels > 0
    at_once = sounding.sum(1)  # [n, steps]
    lit_steps = (at_once > 0).sum(1)
    result["polyphony"] = at_once.sum(1) / np.maximum(lit_steps, 1)
    result["silent_share"] = 1 - lit_steps / steps

    used = sounding.any(2)  # [n, pitches]
    highest, lowest = pitches - 1 - used[:, ::-1].argmax(1), used.argmax(1)
    result["pitch_range"] = np.where(count > 0, highest - lowest, 0)
    result["pitch_mean"], _ = _mean_and_spread(roll, pitch, n)

    classes = np.bincount(roll * 12 + pitch % 12, minlength=n * 12).reshape(n, 12)
    p = classes / some[:, None]
    result["pitch_class_entropy"] = -(p * np.log2(np.where(p > 0, p, 1))).sum(1)
    keys = np.stack([np.roll(MAJOR, tonic) for tonic in range(12)], 1)  # [class, key]
    result["in_key_rate"] = (classes @ keys).max(1) / some

    mean, spread = _mean_and_spread(roll, length / steps_per_beat, n)
    result["note_length"], result["note_length_spread"] = mean, spread
    column = np.unique(roll * steps + start)  # columns with an onset, over all rolls
    same_roll = column[1:] // steps == column[:-1] // steps
    mean, spread = _mean_and_spread(
        (column[1:] // steps)[same_roll], np.diff(column)[same_roll] / steps_per_beat, n
    )
    result["onset_distance"], result["onset_distance_spread"] = mean, spread

    top = pitches - 1 - sounding[:, ::-1].argmax(1)  # [n, steps], highest sounding row
    skyline = notes[pitch - lowest_pitch == top[roll, start]]
    same_roll = skyline[1:, 0] == skyline[:-1, 0]
    leaps = np.abs(np.diff(skyline[:, 3]))[same_roll]
    result["melodic_leap"], _ = _mean_and_spread(skyline[1:, 0][same_roll], leaps, n)

    result["consonance"] = _consonance(roll * steps + start, pitch, steps, n)
    result["qualified_note_rate"] = np.bincount(roll, length >= 2, minlength=n) / some
    onsets = np.zeros(n * steps, bool)
    onsets[column] = True
    bars = steps // steps_per_bar
    bar = onsets.reshape(n, steps)[:, : bars * steps_per_bar].reshape(n, bars, steps_per_bar)
    different = (bar[:, 1:] != bar[:, :-1]).sum((1, 2))
    result["rhythm_similarity"] = 1 - different / max((bars - 1) * steps_per_bar, 1)
    _, result["velocity_spread"] = _mean_and_spread(roll, velocity, n)
    return np.stack([result[name] for name in FEATURES], 1).astype(float)


def _mean_and_spread(group, values, n):
    """Mean and standard deviation of the values in each of n groups; 0 for an empty group."""
    count = np.maximum(np.bincount(group, minlength=n), 1)
    mean = np.bincount(group, values, n) / count
    return mean, np.sqrt(np.bincount(group, (values - mean[group]) ** 2, n) / count)


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


def overlap(reference, generated):
    """Overlapping area (0..1, 1 is best) and KLD (nats, 0 is best) -> two float64 [F].

    Yang & Lerch, "On the evaluation of generative models in music" (2020): per feature, the
    distances |a - b| within the reference against those between reference and generated, as
    densities by kernel estimation. OA is the integral of the smaller density, KLD is
    KL(within || between). Unlike the authors' code both densities are taken on one grid, with one
    bandwidth (Scott's rule) and mirrored at 0, since no distance is negative.
    """
    reference, generated = _tables(reference, generated)
    spans = zip(reference.T, generated.T, strict=True)
    return tuple(np.array([_overlap_1d(a, b) for a, b in spans]).T)


def _overlap_1d(reference, generated):
    low = min(reference.min(), generated.min())
    span = max(reference.max(), generated.max()) - low
    if span == 0:
        return 1.0, 0.0  # everything is the same
    cells = [np.rint((x - low) / span * (GRID - 1)).astype(int) for x in (reference, generated)]
    histograms = [np.bincount(c, minlength=GRID).astype(float) for c in cells]
    within, between = (_distances(histograms[0], h) for h in histograms)
    within[0] -= len(reference)  # a roll's distance to itself says nothing
    within, between = within / within.sum(), between / between.sum()
    distance = np.arange(GRID)
    spread = np.sqrt(within @ distance**2 - (within @ distance) ** 2)
    bandwidth = max(spread * min(len(reference), len(generated)) ** -0.2, 1.0)
    p, q = (gaussian_filter1d(d, bandwidth, mode="reflect") for d in (within, between))
    tiny = 1e-12
    return np.minimum(p, q).sum(), max(np.sum(p * np.log((p + tiny) / (q + tiny))), 0.0)


def _distances(a, b):
    """Histogram of |x - y| over all pairs, from the histograms of x and of y."""
    lags = np.rint(fftconvolve(a, b[::-1]))  # lag 0 stands in the middle
    return np.concatenate([lags[GRID - 1 : GRID], lags[GRID:] + lags[GRID - 2 :: -1]])


def standardise(reference, table):
    """The table in standard deviations from the reference's mean, feature by feature."""
    least = np.array([feature.least_spread for feature in FEATURES.values()])
    return (table - reference.mean(0)) / np.maximum(reference.std(0), least)


def frechet(reference, generated):
    """Frechet distance of two sets of feature vectors (0 is best; squared standard deviations).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) with means m and covariances S of the features,
    standardised by the reference (Heusel et al., 2017, on features that one can name). Covariances
    are shrunk as in Ledoit & Wolf (2004), so that it is defined for a handful of rolls.
    """
    reference, generated = _tables(reference, generated)
    a, b = standardise(reference, reference), standardise(reference, generated)
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    s1, s2 = _covariance(a), _covariance(b)
    root = _root(s1)
    return max(float(gap + np.trace(s1 + s2 - 2 * _root(root @ s2 @ root))), 0.0)


def _root(matrix):
    """Square root of a symmetric, positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
