"""How well new bars suit a piece: key, silence, seams, memory. With the trained network.

Run from the repository root: python tests/benchmarks/bench_complete.py [MODEL] [PIECES] [BARS]
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import complete, diffusion, metrics, pieces, splice, unet
from utils.pianoroll import HELD, Picture, notes_of

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "data" / "models"
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else 6
BARS = int(sys.argv[3]) if len(sys.argv) > 3 else 256
SCALES = [np.roll(metrics.MAJOR, tonic) for tonic in range(12)]


def in_key(pitches, scale):
    """Share of pitches in a scale."""
    return float(np.mean(scale[pitches % 12])) if len(pitches) else float("nan")


def silent_bars(levels, bar):
    """Share of bars in which nothing sounds."""
    return np.mean([not levels[:, at : at + bar].any() for at in range(0, levels.shape[1], bar)])


def suits(network, files, control, repeats):
    """For both modes: in-key rates of the new bars, and what stood there or elsewhere before."""
    for mode in ("continue", "infill"):
        rows, start_s = [], time.perf_counter()
        for number, path in enumerate(files):
            piece = splice.open_midi(path)
            begin, end = splice.choose_bars(piece, mode, 8)
            kept = splice.kept_levels(piece, begin, end)
            density = float((kept[:, :begin] > 0).mean()) / 2 if mode == "continue" else 0.0
            painted = complete.paint_bars(network, kept, begin, end, hop=piece.steps_per_bar,
                                          open_end=mode == "continue", repeats=repeats, seed=number,
                                          density=density)
            new = splice.new_notes(painted, kept, begin, end)[:, 2]
            old = notes_of(Picture(kept))[:, 2]
            scale = max(SCALES, key=lambda scale: in_key(old, scale))
            bar = piece.steps_per_bar
            rows.append([in_key(new, scale), in_key(old, scale), in_key(control, scale),
                         silent_bars(painted[:, begin:end], bar), len(new) / 8,
                         len(old) / piece.bars])
        new, old, unasked, silent, density, before = np.nanmean(rows, axis=0)
        print(f"{mode:9s} repeats {repeats}: in key {new:.3f}, the piece {old:.3f}, without it "
              f"{unasked:.3f}; silent bars {silent:.3f}; notes a bar {density:.1f}, the piece "
              f"{before:.1f}; {(time.perf_counter() - start_s) / len(files):.1f} s each",
              flush=True)


def across(levels, columns):
    """At these columns: share of what sounded before that is held over, and onsets a column."""
    held = (levels[:, columns] == HELD) & (levels[:, columns - 1] > 0)
    return held.sum() / max((levels[:, columns - 1] > 0).sum(), 1), (
        levels[:, columns] > HELD).sum() / len(columns)


def seams(name, levels):
    """Bar lines where a painted stretch begins (every eighth) beside the other bar lines."""
    lines = np.arange(16, levels.shape[1], 16)
    at, elsewhere = lines[lines % 128 == 0], lines[lines % 128 != 0]
    (held, onsets), (held_else, onsets_else) = across(levels, at), across(levels, elsewhere)
    print(f"{name:24s}held over {held:.3f}, elsewhere {held_else:.3f}; onsets {onsets:.2f}, "
          f"elsewhere {onsets_else:.2f}", flush=True)


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = unet.load(MODEL / "diffusion.safetensors", device)
    files = [Path(p.path) for p in pieces.choose_pieces("builtin") if p.split == "valid"][:COUNT]
    control = metrics.notes_of_set(diffusion.paint(network, 16), 0)[:, 3]
    for repeats in (1, 4):
        suits(network, files, control, repeats)
    real = [splice.open_midi(path) for path in sorted((ROOT / "data" / "midi").glob("*.mid"))]
    real = [p.picture.levels for p in real if p.steps_per_bar == 16]
    seams("real pieces in 4/4", np.concatenate([r[:, : r.shape[1] // 128 * 128] for r in real], 1))
    before, start_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    blank = np.zeros((128, 0), np.uint8)
    levels = complete.paint_bars(network, blank, 0, 16 * BARS, open_end=True, repeats=2,
                                 density=network.config.mean[0] / 2)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{BARS} bars: {time.perf_counter() - start_s:.0f} s, memory grew by {grown / 1024:.0f} "
          f"MiB; silent bars {silent_bars(levels, 16):.3f}")
    seams("painted", levels)
