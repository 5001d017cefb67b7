"""How often `utils.bars` finds the beat and the bar, against the beats that POP909 gives.

    python tests/benchmarks/bench_bars.py POP909 [--fit]

POP909 holds NNN.mid and beats/NNN.txt (second, beat, downbeat). With --fit the weights of
`utils.bars` are fitted again on songs 001 to 720 and printed; all figures are of songs 721 on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import symusic
from scipy.optimize import minimize
from scipy.special import expit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from utils import bars, pianoroll

STEPS_PER_BEAT, LAST_TO_FIT = 4, 720


def annotated(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The columns of a song's beats and of its downbeats, by its annotation."""
    score = symusic.Score(str(path))
    tempo = score.tempos.numpy()
    tick, microseconds = tempo["time"].astype(float), tempo["mspq"].astype(float)
    second = np.append(0, np.cumsum(np.diff(tick) * microseconds[:-1]))
    second = second / score.ticks_per_quarter / 1e6  # where each tempo begins
    beat = np.loadtxt(path.parent / "beats" / f"{path.stem}.txt")
    at = np.maximum(np.searchsorted(second, beat[:, 0], side="right") - 1, 0)
    beats = (beat[:, 0] - second[at]) * 1e6 / microseconds[at]
    column = np.rint((tick[at] / score.ticks_per_quarter + beats) * STEPS_PER_BEAT).astype(int)
    return column, column[beat[:, 2] == 1]


def usual(columns: np.ndarray, period: int) -> tuple[int, float]:
    """The most frequent phase of some columns, and the share of them that have it."""
    count = np.bincount(columns % period, minlength=period)
    return int(count.argmax()), count.max() / max(count.sum(), 1)


def fitted(paths: list[Path]) -> np.ndarray:
    """Weights `[4, 9]` by logistic regression, from songs whose downbeats keep their phase."""
    inputs, targets = [], []
    for path in paths:
        piece, (_, downbeats) = pianoroll.read_midi(path), annotated(path)
        if usual(downbeats, bars.BAR)[1] < 0.8:
            continue
        steps = piece.pixels.shape[1]
        padded = np.pad(bars.cues(pianoroll.notes_of(piece), steps), ((0, 0), (bars.BAR, bars.BAR)))
        x = np.stack([padded[row, bars.BAR + offset :][:steps]
                      for row in range(4) for offset in bars.OFFSETS], axis=1)
        y = np.isin(np.arange(steps), downbeats)
        inputs.append(x[downbeats.min() : downbeats.max() + 1])
        targets.append(y[downbeats.min() : downbeats.max() + 1])
    x, y = np.concatenate(inputs), np.concatenate(targets)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        odds = x @ w[:-1] + w[-1]
        wrong = expit(odds) - y
        penalty = 1e-3 * np.append(w[:-1], 0)
        return (np.mean(np.logaddexp(0, odds) - y * odds) + penalty @ w,
                np.append(x.T @ wrong, wrong.sum()) / len(y) + 2 * penalty)
    return minimize(loss, np.zeros(x.shape[1] + 1), jac=True).x[:-1].reshape(4, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fit", action="store_true")
    given = parser.parse_args()
    songs = sorted(given.folder.glob("[0-9]*.mid"))
    if given.fit:
        bars.WEIGHTS = fitted([path for path in songs if int(path.stem) <= LAST_TO_FIT])
        print(np.array2string(bars.WEIGHTS, precision=2, separator=", "))
    rows = []
    for path in songs:
        lines = pianoroll.bar_lines_of(pianoroll.read_midi(path))
        beats, downbeats = annotated(path)
        bar, agree = usual(downbeats, bars.BAR)
        rows.append((int(path.stem) > LAST_TO_FIT, usual(lines, 4)[0] == usual(beats, 4)[0],
                     usual(lines, bars.BAR)[0] == bar, np.isin(downbeats, lines).mean(), agree))
    for name, chosen in (("held-out songs", lambda row: row[0]), ("all songs", lambda row: True),
                         ("all whose downbeats agree", lambda row: row[4] >= 0.9)):
        table = np.array([row for row in rows if chosen(row)], dtype=float)
        _, beat, bar, downbeats, _ = table.mean(axis=0)
        print(f"{name:26s} {len(table):4d}  beat {beat:.3f}  bar {bar:.3f}  downbeats on a bar "
              f"line {downbeats:.3f}  songs with most of them {np.mean(table[:, 3] > 0.5):.3f}")


if __name__ == "__main__":
    main()
