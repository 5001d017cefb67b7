"""How well new bars suit a piece: key, silence, seams, memory. With the trained network.

Run from the repository root:
python tests/benchmarks/bench_complete.py [MODELS] [MIDI] [PIECES] [BARS]
MODELS is a folder with diffusion.safetensors, MIDI one of pieces to complete (else the built-in
corpus' held-out ones), PIECES how many at most, BARS the length of the long one.
"""

import functools
import itertools
import resource
import sys
import time
import unittest.mock
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import corpus, diffusion, edit, inpaint, metrics, unet
from utils.pianoroll import SUSTAIN, PianoRoll, notes_of, roll_of

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "data" / "models"
MIDI = sys.argv[2] if len(sys.argv) > 2 else ""
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 24
BARS = int(sys.argv[4]) if len(sys.argv) > 4 else 256
SCALES = [np.roll(metrics.MAJOR, tonic) for tonic in range(12)]
BLANK = np.zeros((128, 0), np.uint8)
SEAMS = {3: (3, 6, 9, 15, 18, 21), 4: (4, 8, 16, 20)}  # bars to a stretch: lines where one begins


def in_key(pitches, scale):
    """Share of pitches in a scale."""
    return float(np.mean(scale[pitches % 12])) if len(pitches) else float("nan")


def silent_bars(pixels):
    """Share of bars of 4/4 in which nothing sounds."""
    return np.mean([not pixels[:, at : at + 16].any() for at in range(0, pixels.shape[1], 16)])


def held_out(count):
    """Pieces of at least 16 bars. Of a folder the last ones by name: POP909's are held out."""
    if MIDI:
        files = sorted(Path(MIDI).rglob("*.mid"), reverse=True)
    else:
        files = [p.path for p in corpus.choose_pieces("builtin") if p.split == "valid"]
    opened = (edit.open_midi(path) for path in files)
    long_enough = (piece for piece in opened if piece.roll.pixels.shape[1] >= 256)
    return list(itertools.islice(long_enough, count))


def completed(network, piece, mode, seed):
    """Eight bars in the middle or after the end: columns, what is kept, the new notes."""
    begin, end = edit.choose_bars(piece, mode, 8)
    kept = edit.kept_roll(piece, begin, end)
    bar = piece.bar_at(begin)
    roll = inpaint.inpaint(network, kept, begin, end, bar=bar, seed=seed,
                           open_end=mode == "continue",
                           onsets_per_bar=inpaint.usual_density(kept, begin, end, bar))
    return begin, end, kept, edit.new_notes(roll, kept, begin, end, piece)


def suits(network, chosen, control, mode):
    """In-key rates of the new bars, and of what stood before or elsewhere. Returns each piece's
    `completed`."""
    rows, start_s = [], time.perf_counter()
    done = [completed(network, piece, mode, number) for number, piece in enumerate(chosen)]
    each_s = (time.perf_counter() - start_s) / len(done)
    for begin, end, kept, notes in done:
        new, shown = notes[:, 2], roll_of(notes, 128, end)[:, begin:]
        old = notes_of(PianoRoll(kept))[:, 2]
        near = notes_of(PianoRoll(kept[:, max(begin - 128, 0) : begin]))[:, 2]
        scale = max(SCALES, key=lambda scale: in_key(old, scale))
        rows.append([*(in_key(pitches, scale) for pitches in (new, near, old, control)),
                     silent_bars(shown), 16 * len(new) / (end - begin),
                     16 * len(old) / (kept.shape[1] - (end - begin)), abs(new.mean() - old.mean())])
    new, near, old, unasked, silent, density, before, away = np.nanmean(rows, axis=0)
    print(f"{mode:9s}{len(rows)} pieces: in key {new:.3f}, the bars before {near:.3f}, the piece "
          f"{old:.3f}, without it {unasked:.3f}; silent bars {silent:.3f}; notes a bar "
          f"{density:.1f}, the piece {before:.1f}; mean pitch {away:.1f} semitones from the "
          f"piece's; {each_s:.1f} s each", flush=True)
    return done


def written(network, bars, seed=0, longest=inpaint.LONGEST):
    """A piece from nothing, as the notes that would be saved: uint8 [128, 16 bars]."""
    parts = functools.partial(inpaint.segments, longest=longest)
    with unittest.mock.patch.object(inpaint, "segments", parts):
        return heard(inpaint.inpaint(network, BLANK, 0, 16 * bars, open_end=True, seed=seed))


def heard(pixels):
    """The piano roll of the notes that would be saved."""
    notes = edit.new_notes(pixels, np.zeros_like(pixels), 0, pixels.shape[1])
    return roll_of(notes, 128, pixels.shape[1])


def lines_of(pixels):
    """For each bar line: how much sounded before it, is held over it, starts at it; whether the bar
    after is silent; the leap between the mean pitches of both bars. float [lines, 5]."""
    rows = []
    for at in range(16, pixels.shape[1], 16):
        before = pixels[:, at - 1] > 0
        one, two = (np.nonzero(pixels[:, a : a + 16] > SUSTAIN)[0] for a in (at - 16, at))
        leap = abs(one.mean() - two.mean()) if len(one) and len(two) else np.nan
        rows.append([before.sum(), (before & (pixels[:, at] == SUSTAIN)).sum(),
                     (pixels[:, at] > SUSTAIN).sum(), not len(two), leap])
    return np.array(rows, float)


def facts(rows):
    """Held over, onsets, silent bars and leap of lines [..., 5]."""
    sounding, held, onsets, silent, leap = rows.reshape(-1, 5).T
    return np.array([held.sum() / max(sounding.sum(), 1), onsets.mean(), silent.mean(),
                     np.nanmean(leap)])


def compare(name, at, elsewhere):
    """Lines [pieces, lines, 5] beside others; 95% of the difference, drawn by whole corpus."""
    rng, count, other = np.random.default_rng(0), len(at), len(elsewhere)
    drawn = [facts(at[rng.integers(count, size=count)])
             - facts(elsewhere[rng.integers(other, size=other)]) for _ in range(1000)]
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    for what, one, two, a, b in zip(("held over", "onsets", "silent after", "leap"), facts(at),
                                    facts(elsewhere), low, high, strict=True):
        print(f"{name:12s}{what:14s}{one:.3f}, elsewhere {two:.3f}, difference {a:+.3f} to "
              f"{b:+.3f}", flush=True)


def seams(network, count):
    """Bar lines where a stretch begins, beside the same bar lines where none does: painted in
    stretches of 3 and of 4 bars. Control: piano rolls painted alone, put side by side."""
    found = {bars: np.stack([lines_of(written(network, 24, 1000 * number, 16 * bars))
                             for number in range(count)]) for bars in SEAMS}
    pick = {bars: np.array(lines) - 1 for bars, lines in SEAMS.items()}
    compare("painted", np.concatenate([found[b][:, pick[b]] for b in SEAMS], 1),
            np.concatenate([found[7 - b][:, pick[b]] for b in SEAMS], 1))
    alone = diffusion.generate(network, 3 * count).reshape(count, 3, 128, 128)
    hard = np.stack([lines_of(heard(np.concatenate(list(three), 1))) for three in alone])
    compare("hard joins", hard[:, [7, 15]], found[3][:, [7, 15]])


def joins(chosen, filled_in):
    """Bar lines where eight new bars begin and end in the middle of pieces, beside those between
    the new bars, and beside the same lines in the pieces as they were."""
    found = []
    for piece, (begin, end, kept, notes) in zip(chosen, filled_in, strict=True):
        if set(np.diff(piece.bar_lines)) <= {4, 16}:
            new = np.maximum(kept, roll_of(notes, 128, kept.shape[1]))
            found.append([lines_of(pixels[:, begin - 16 : end + 16])
                          for pixels in (new, piece.roll.pixels)])
    new, old = np.array(found).swapaxes(0, 1)  # [pieces, 9 lines, 5]
    compare("infill", new[:, [0, 8]], new[:, 1:8])
    compare("as it was", old[:, [0, 8]], old[:, 1:8])


def memory_mib():
    """The most that this process has used so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = unet.load(MODEL / "diffusion.safetensors", device)
    written(network, 16)
    before, start_s = memory_mib(), time.perf_counter()
    pixels = written(network, BARS)
    print(f"{BARS} bars: {time.perf_counter() - start_s:.0f} s, memory grew by "
          f"{memory_mib() - before:.0f} MiB; silent bars {silent_bars(pixels):.3f}")
    chosen = held_out(COUNT)
    control = metrics.notes_of_set(diffusion.generate(network, 16), 0)[:, 3]
    suits(network, chosen, control, "continue")
    joins(chosen, suits(network, chosen, control, "infill"))
    seams(network, COUNT)
