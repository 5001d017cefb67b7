"""Speed of utils.metrics on one core, beside MusPy where both measure the same.

Run from the repository root: OMP_NUM_THREADS=1 python tests/benchmarks/bench_metrics.py
"""

import sys
import time
from pathlib import Path

import muspy
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import metrics
from utils.pianoroll import roll_of

ROLLS, NOTES = 1000, 160


def rolls(seed):
    """Notes at random, as many as a dense pop song has in eight bars."""
    rng, result = np.random.default_rng(seed), []
    for _ in range(ROLLS):
        start, length = rng.integers(0, 128, NOTES), rng.integers(1, 12, NOTES)
        pitch, velocity = rng.integers(36, 84, NOTES), rng.integers(1, 128, NOTES)
        result.append(roll_of(np.stack([start, length, pitch, velocity], 1), 128, 128))
    return np.stack(result)


def timed(what, call):
    before = time.process_time()
    result = call()
    print(f"{what:58s}{time.process_time() - before:8.2f} s")
    return result


def with_muspy(rolls):
    """Five of our features, by MusPy; building its objects counts, as it would for a user."""
    for i in range(len(rolls)):
        notes = metrics.notes_of_set(rolls[i : i + 1], 0)
        notes = [muspy.Note(int(s), int(p), int(d), int(v)) for _, s, d, p, v in notes]
        piece = muspy.Music(resolution=4, tracks=[muspy.Track(notes=notes)])
        muspy.polyphony(piece)
        muspy.pitch_range(piece)
        muspy.pitch_class_entropy(piece)
        muspy.scale_consistency(piece)
        muspy.groove_consistency(piece, 16)


if __name__ == "__main__":
    a, b = rolls(0), rolls(1)
    print(f"{ROLLS:,} rolls of 128 x 128, {NOTES} notes each")
    table = timed(f"features, all {len(metrics.FEATURES)}", lambda: metrics.features(a, 0))
    other = metrics.features(b, 0)
    timed("the same, 5 of them, MusPy", lambda: with_muspy(a))
    timed("compare, set against set", lambda: metrics.compare(table, other))
    timed("nearest, 50 rolls among 1,000 (429 moves of each)", lambda: metrics.nearest(b[:50], a))
    timed("shuffled_columns", lambda: metrics.shuffled_columns(a))
    timed("random_notes", lambda: metrics.random_notes(a))
