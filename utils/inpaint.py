"""New bars for a piece of any length, around what is kept. Explained in notebook 08.

The network sees 128 columns at once. So a long gap is filled from left to right in segments, each
conditioned on what lies before it, kept or new; the last one also on what follows.
"""

from collections.abc import Callable

import numpy as np
import torch

from utils.diffusion import WIDTH, generate, without_stray_sustains
from utils.pianoroll import SUSTAIN, from_planes

BEAT = 4  # columns
LONGEST = WIDTH // 2  # columns of a segment, at most
AHEAD = 16  # columns generated after a segment to see how its last notes go on
ACCOMPANIMENT = 15.0  # onsets in a bar of an accompaniment, as in POP909


def segments(begin: int, end: int, bar: int, longest: int = LONGEST) -> list[tuple[int, int]]:
    """Where each segment of `begin` to `end` begins and ends, in columns.

    Whole bars of `bar` columns, in segments as equal as can be, none longer than `longest`. Bars
    longer than that count in beats.
    """
    unit = bar if bar <= longest else BEAT
    bars = -(-(end - begin) // unit)
    parts = -(-bars // (longest // unit))
    step = -(-bars // parts) * unit
    return [(first, min(first + step, end)) for first in range(begin, end, step)]


def inpaint(network: torch.nn.Module, kept: np.ndarray, begin: int, end: int, *, bar: int = 16,
            known: np.ndarray | None = None, start_from: np.ndarray | None = None,
            open_end: bool = False, longest: int = LONGEST, onsets_per_bar: float = 0.0,
            pitch_weights: np.ndarray | None = None, seed: int = 0,
            callback: Callable[[int, np.ndarray], None] | None = None, **options) -> np.ndarray:
    """The roll `kept`, uint8 `[128, steps]`, with new notes in the columns `begin` to `end`.

    Pixels that are active in `kept` stay, and so do those where `known`, bool `[128, steps]`, is
    True. Windows begin on bar lines, `bar` columns apart counted from `begin`. With `open_end` the
    music goes on after `end`; without it, what lies there, or silence, is a condition too.
    `start_from`, a roll of the same size, is what a `strength` below 1 begins with.
    `onsets_per_bar`, where above 0, is the density aimed at; `pitch_weights`, `[128, steps]`, are
    those of `diffusion.weigh_pitches`. `callback(step, roll)` sees each step's prediction, uint8
    `[128, 128]`. More `options` are those of `diffusion.generate`.
    """
    width = max(end, kept.shape[1])
    kept = _columns(kept, 0, width)
    known = (kept > 0) | (False if known is None else _columns(known, 0, width))
    result = kept.copy() if start_from is None else np.where(
        kept > 0, kept, _columns(start_from, 0, width))
    settled = known.copy()  # known, or how a note that was generated ends

    def watch(step: int, _x_t: torch.Tensor, x_0: torch.Tensor) -> None:
        callback(step, from_planes(network.planes(x_0)[0].cpu().numpy()))

    for number, (first, last) in enumerate(segments(begin, end, bar, longest)):
        until = min(last + AHEAD, end)
        left = _left_edge(first, until, end, width, bar, is_last=last == end and not open_end)
        mask = ~_columns(settled, left)
        mask[:, : first - left] = False
        if not open_end:
            mask[:, end - left :] = False
        weights = None if pitch_weights is None else _columns(pitch_weights, left, fill=1)
        new = generate(network, 1, seed=(seed + 1_000_003 * number) % 2**32,
                       roll=_columns(result, left), mask=mask, pitch_weights=weights,
                       onsets=onsets_per_bar * int(mask.any(axis=0).sum()) / bar,
                       callback=watch if callback else None, **options)[0, :, first - left :]
        inside, ahead = new[:, : last - first], new[:, last - first : until - first]
        old = known[:, first:last]
        before = np.zeros((len(kept), 1), np.uint8)  # a kept note is not prolonged
        if first > begin:
            before = np.where(known, 0, result)[:, first - 1 : first]
        new_notes = without_stray_sustains(np.hstack([before, np.where(old, 0, inside)]))[:, 1:]
        result[:, first:last] = np.where(old, result[:, first:last], new_notes)
        going_on = endings(ahead, (inside[:, -1] > 0) & ~known[:, last - 1])
        going_on &= ~settled[:, last:until]
        result[:, last:until][going_on] = ahead[going_on]
        settled[:, last:until] |= going_on
    return result


def endings(roll: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Where notes that are `active`, bool `[128]`, before the first column of `roll`, uint8
    `[128, W]`, are sustained, and the pixel after, which ends them: bool `[128, W]`."""
    found = np.zeros(roll.shape, bool)
    for step in range(roll.shape[1]):
        found[:, step] = active
        active = active & (roll[:, step] == SUSTAIN)
    return found


def above_melody(roll: np.ndarray, distance: int = 2) -> np.ndarray:
    """Where a line that follows the top voice of `roll`, uint8 `[128, steps]`, and all above it
    lies: bool `[128, steps]`. The line is `distance` semitones below the voice; in a rest it stays.
    """
    active = roll > 0
    sounds = np.flatnonzero(active.any(axis=0))
    if not len(sounds):
        return active
    top = 127 - active[::-1].argmax(axis=0)
    before = np.searchsorted(sounds, np.arange(roll.shape[1]), side="right") - 1
    top = top[sounds[np.maximum(before, 0)]]
    return np.arange(128)[:, None] >= top - distance


def usual_density(roll: np.ndarray, begin: int, end: int, bar: int = 16) -> float:
    """Onsets in a bar of `bar` columns, the median of up to 16 bars that sound on either side of
    the columns `begin` to `end` of `roll`; 0 where there are none."""
    sides = roll[:, max(begin - 16 * bar, 0) : begin], roll[:, end : end + 16 * bar]
    onsets = [(side > SUSTAIN).sum(axis=0) for side in sides]
    bars = np.concatenate([part[: len(part) // bar * bar].reshape(-1, bar).sum(axis=1)
                           for part in onsets])
    return float(np.median(bars[bars > 0])) if bars.any() else 0.0


def _left_edge(first: int, until: int, end: int, width: int, bar: int, is_last: bool) -> int:
    """The column where a segment's window begins: whole bars before it, as many as there is room.

    The last segment of a gap stands in the middle, so that half of the window shows what follows.
    """
    behind = min((WIDTH - (until - first)) // 2, width - end + bar) if is_last else 0
    before = min(first, WIDTH - (until - first) - behind)
    return first - (before // bar * bar or before // BEAT * BEAT)


def _columns(pixels: np.ndarray, left: int, width: int = WIDTH, fill: float = 0) -> np.ndarray:
    """`[128, width]` of `pixels` from column `left` on, filled after the last column."""
    part = pixels[:, left : left + width]
    return np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill)
