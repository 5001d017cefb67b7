"""Where the bars of a piece begin. Explained in notebook 01.

What a file says may be wrong: a recording turned into MIDI often counts from the moment when the
recorder was started. So the notes are examined too. Music marks the beginning of a bar: the bass
moves, the harmony changes, long notes begin.
"""

import numpy as np
from scipy.ndimage import minimum_filter1d

BAR = 16  # columns of a bar of 4/4, in sixteenth notes
OFFSETS = (-8, -4, -2, -1, 0, 1, 2, 4, 8)  # columns around the one that is scored
WEIGHTS = np.array([  # logistic regression on POP909's songs 001-720: a row a cue
    [0.11, 0.00, 0.20, 0.12, -0.11, -0.30, -0.01, -0.18, 0.27],
    [-0.02, -0.25, -0.59, -0.07, 0.72, 0.21, -0.10, 0.28, -0.21],
    [0.08, -0.18, -0.33, 0.16, 0.32, 0.14, -0.57, 0.06, 0.15],
    [-0.35, -0.33, -0.11, 0.18, 0.63, 0.05, -0.29, -0.08, -0.32]])
JUMPS = {BAR: 0.0, 8: 6.0, 12: 9.0, 4: 9.0, 20: 9.0}  # columns to the next bar line: what it costs
FEW_NOTES = 32  # fewer notes say too little
FREE = 0.18  # a best beat that stands out by less is none: the piece is played freely
MARGIN = 0.6  # by how much the notes must contradict the bars of the file


def bar_lines(notes: np.ndarray, steps: int, signatures: list[tuple[int, int, int]],
              steps_per_beat: int = 4) -> np.ndarray:
    """The columns where bars begin, int64, in order, from the first note's bar to the last one's.

    `notes` is int `[N, 4]` as in `pianoroll.notes_of`, `steps` the length of the piece in columns,
    `signatures` are as in `lines_of`. The file's own bars are kept unless they are single beats or
    the notes contradict them; then they are bars of 4/4, and the first may begin before column 0.
    With few notes, with bars of eighth notes such as 6/8, or where it is played freely, a piece
    keeps the bars of its file.
    """
    own = lines_of(signatures, steps, steps_per_beat)
    fine = steps_per_beat // 4
    in_eighths = any(denominator >= 8 for _, _, denominator in signatures)  # 6/8, 3/8
    if steps_per_beat % 4 or len(notes) < FEW_NOTES or in_eighths:
        return own
    sixteenths = np.asarray(notes) // [fine, fine, 1, 1]
    score = scores(sixteenths, -(-steps // fine))
    beats = np.array([score[phase::4].mean() for phase in range(4)])  # how well each phase fits
    if beats.max() - np.median(beats) < FREE:
        return own
    lines = best_lines(score, int(beats.argmax()))
    single_beats = len(own) < 2 or np.median(np.diff(own)) <= steps_per_beat
    if not single_beats and not _contradict(score, beats, lines, own // fine):
        return own
    if sixteenths[:, 0].min() < lines[0]:
        lines = np.append(lines[0] - BAR, lines)
    return lines * fine


def lines_of(signatures: list[tuple[int, int, int]], steps: int, steps_per_beat: int = 4
             ) -> np.ndarray:
    """Bar lines by time signatures, (column, numerator, denominator) each; 4/4 without any.

    A signature in the middle of a bar begins a new bar. A bar lasts at least one column.
    """
    changes = {0: (4, 4)} | {max(at, 0): (n, d) for at, n, d in sorted(signatures) if n and d}
    starts = sorted(at for at in changes if at < max(steps, 1))
    lines = []
    for at, end in zip(starts, [*starts[1:], max(steps, 1)], strict=True):
        length = max(1, round(4 * steps_per_beat * changes[at][0] / changes[at][1]))
        lines += range(at, end, length)
    return np.array(lines, dtype=np.int64)


def _contradict(score: np.ndarray, beats: np.ndarray, best: np.ndarray, own: np.ndarray) -> bool:
    """Whether the notes contradict the bars `own` and fit the bars `best`, of 4/4."""
    length = np.median(np.diff(own))
    if length == BAR:
        return score[best].mean() - score[own[own < len(score)]].mean() > MARGIN
    return beats.max() - beats[int(np.median(own % 4))] > MARGIN  # 3/4, 2/4: the beat alone


def cues(notes: np.ndarray, steps: int) -> np.ndarray:
    """What marks a bar's beginning, float `[4, steps]`, each row with a standard deviation of 1.

    `notes` is int `[N, 4]` as in `pianoroll.notes_of`, in sixteenths. The rows: how many notes
    begin, how long they are, whether the bass begins, and how much the pitch classes of the next
    eight columns differ from those of the last eight (1 less the cosine similarity).
    """
    start, length, pitch, _ = notes.astype(int).T
    length = np.minimum(length, steps - start)
    beats = np.minimum(length, BAR) / 4
    count = np.bincount(start, minlength=steps)
    duration = np.bincount(start, beats, minlength=steps)
    before = np.cumsum(length) - length  # pixels of the notes before it
    column = np.repeat(start - before, length) + np.arange(length.sum())  # of each note's pixels
    lowest = np.full(steps, 128)
    np.minimum.at(lowest, column, np.repeat(pitch, length))
    is_bass = pitch <= minimum_filter1d(lowest, 9)[start] + 2
    bass = np.zeros(steps)
    np.maximum.at(bass, start[is_bass], beats[is_bass] + 0.5)
    classes = np.bincount(np.repeat(pitch % 12, length) * steps + column, minlength=12 * steps)
    total = np.pad(classes.reshape(12, steps).cumsum(axis=1), ((0, 0), (9, 8)), mode="edge")
    total[:, :9] = 0
    before, after = total[:, 8:-9] - total[:, :-17], total[:, 16:-1] - total[:, 8:-9]
    norm = np.sqrt((before**2).sum(axis=0) * (after**2).sum(axis=0))
    change = np.where(norm > 0, 1 - (before * after).sum(axis=0) / np.maximum(norm, 1), 0)
    found = np.stack([np.sqrt(count), np.sqrt(duration), np.sqrt(bass), change])
    return found / (found.std(axis=1, keepdims=True) + 1e-6)


def scores(notes: np.ndarray, steps: int) -> np.ndarray:
    """Log odds, but for a constant, that a bar begins at each column, float `[steps]`."""
    padded = np.pad(cues(notes, steps), ((0, 0), (BAR, BAR)))
    return sum(weight * padded[row, BAR + offset : BAR + offset + steps]
               for row, weights in enumerate(WEIGHTS)
               for offset, weight in zip(OFFSETS, weights, strict=True))


def best_lines(score: np.ndarray, phase: int) -> np.ndarray:
    """The bar lines with the highest sum of scores, less what their `JUMPS` cost, in order.

    They lie on beats, the columns `phase`, `phase + 4`, … Found by dynamic programming (Viterbi):
    the best lines up to a beat continue the best lines up to one of a few beats before it.
    """
    score = score[phase::4].tolist()
    jumps = [(columns // 4, cost) for columns, cost in JUMPS.items()]
    total, before = score[: BAR // 4], [-1] * len(score)
    for beat in range(BAR // 4, len(score)):
        best, before[beat] = max((total[beat - jump] - cost, beat - jump)
                                 for jump, cost in jumps if jump <= beat)
        total.append(best + score[beat])
    last = max(range(max(len(score) - BAR // 4, 0), len(score)), key=total.__getitem__)
    lines = [last]
    while before[lines[-1]] >= 0:
        lines.append(before[lines[-1]])
    return np.array(lines[::-1]) * 4 + phase
