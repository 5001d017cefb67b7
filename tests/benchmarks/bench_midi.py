"""MIDI to images against pretty_midi, on the same files: `bench_midi.py [FOLDER] [--all]`.

FOLDER holds collections of real MIDI, one a folder; fifty files of each are drawn by seed. Times
are the best of three. `--all` also converts the whole of `maestro-v2.0.0` on two processes.
"""

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pretty_midi

os.environ["TQDM_DISABLE"] = "1"
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
from bench import seconds

from real_midi import REAL_MIDI
from utils import corpus, pianoroll

LAKH_FILES = 178_561


def gathered(paths: list[Path], folder: Path) -> Path:
    """A new folder with copies of some files."""
    folder.mkdir()
    for number, path in enumerate(paths):
        shutil.copy(path, folder / f"{number:03d}_{path.name}")
    return folder


def convert(midi_dir: Path, jobs: int, storage: str = "png", place: Path | None = None) -> float:
    """Seconds to convert into a fresh folder, both image sizes, tables and all."""
    with tempfile.TemporaryDirectory(dir=place) as run_dir:
        begin = time.perf_counter()
        made = corpus.convert(midi_dir, run_dir, jobs=jobs, storage=storage)
        took_s = time.perf_counter() - begin
    print(f"    {storage}, {jobs} at a time: {made.pieces} files, {sum(made.images.values()):,} "
          f"images, {len(made.skipped)} skipped, {took_s:.2f} s")
    return took_s


def main(folder: Path, everything: bool, copies: Path) -> None:
    """Print the figures. `copies` is an empty folder."""
    warnings.simplefilter("ignore")
    chosen = []
    print(f"{'files':24s} {'ours, ms':>9s} {'pretty_midi, ms':>16s} {'ratio':>7s}")
    total_ours = total_peer = 0.0
    for name in ("maestro-v2.0.0", "pop909", "lakh-excerpts", "freedoom"):
        paths = random.Random(0).sample(corpus.find_midi(folder / name), 50)
        ours = seconds(lambda paths=paths: [pianoroll.read_midi(path) for path in paths])
        peer = seconds(lambda paths=paths: [pretty_midi.PrettyMIDI(str(path)).get_piano_roll()
                                            for path in paths], repeats=1)
        print(f"{'50 of ' + name:24s} {ours * 20:9.3f} {peer * 20:16.2f} {peer / ours:6.0f}×")
        chosen += paths
        total_ours, total_peer = total_ours + ours, total_peer + peer
    print(f"{'all 200, one core':24s} {total_ours * 5:9.3f} {total_peer * 5:16.2f} "
          f"{total_peer / total_ours:6.0f}×   (in memory; aim: 50×)")
    some = gathered(chosen, copies / "some")
    one = min(convert(some, 1) for _ in range(3))
    print(f"PNGs on disk, against pretty_midi in memory: {total_peer / one:.1f}× (aim: 10×)")
    more = gathered(corpus.find_midi(folder / "maestro-v2.0.0")[:400], copies / "more")
    memory = Path("/dev/shm")
    for where in (memory, None) if memory.is_dir() else (None,):
        pairs = [(convert(more, 1, place=where), convert(more, 2, place=where)) for _ in range(3)]
        ratio = statistics.median(one / two for one, two in pairs)
        print(f"two processes {ratio:.2f}× faster than one, files on {where or 'disk'}, median of "
              "three pairs (aim: 1.8×)")
    convert(some, 2, "parquet")
    if everything:
        took_s = convert(folder / "maestro-v2.0.0", 2)
        files = len(corpus.find_midi(folder / "maestro-v2.0.0"))
        raw = convert(folder / "freedoom", 2) / len(corpus.find_midi(folder / "freedoom"))
        print(f"all of MAESTRO on two processes: {took_s:.1f} s (aim: 60 s). {LAKH_FILES:,} files "
              f"would take {LAKH_FILES * raw / 60:.0f} min at Freedoom's {raw * 1000:.1f} ms a file"
              f", {LAKH_FILES * took_s / files / 60:.0f} min at MAESTRO's "
              f"{took_s / files * 1000:.1f} ms")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--all"]
    with tempfile.TemporaryDirectory() as folder:
        main(Path(arguments[0]) if arguments else REAL_MIDI, "--all" in sys.argv, Path(folder))
