"""Memory of the loader on a collection of a million windows: `bench_memory.py [COUNT]`.

Makes shards of synthetic music in a temporary folder, then draws a whole epoch of batches, as
notebooks 02 and 03 do, and prints how far the process has grown above its libraries (making the
shards included).
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import datasets  # noqa: F401  a library too
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import corpus, pianoroll

DIFFERENT, A_SHARD, BATCH = 20_000, 2_560, 256


def peak_mib() -> float:
    """The most memory that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows_of_music(count: int) -> list[dict]:
    """Random notes as rows of a shard."""
    random, rows = np.random.default_rng(0), []
    for number in range(count):
        notes = np.stack([random.integers(0, 124, 90), random.integers(1, 9, 90),
                          random.integers(40, 90, 90), random.integers(40, 120, 90)], axis=1)
        roll = pianoroll.PianoRoll(pianoroll.roll_of(notes, 128, 128))
        rows.append({"file_name": f"{number:07d}.png", "source": "synthetic", "start_step": 0,
                     "tempo": 120.0, "png": pianoroll.png_bytes(roll)})
    return rows


def main(count: int) -> None:
    """Print the figures."""
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of_music(min(DIFFERENT, count))
        for start in range(0, count, A_SHARD):
            chosen = [rows[i % len(rows)] for i in range(start, min(start + A_SHARD, count))]
            corpus.write_shard(Path(folder) / f"{start:07d}.parquet", chosen)
        size_mib = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        print(f"{corpus.count_images(folder):,} windows in shards of {size_mib:.0f} MiB")
        del rows
        begin = time.perf_counter()
        examples = corpus.load_rolls(folder, "diffusion", 2_048)
        print(f"{len(examples):,} examples after {time.perf_counter() - begin:.1f} s")
        stream = corpus.stream_rolls(folder, BATCH, "diffusion")
        for _ in range(count // BATCH):
            next(stream)
        seconds = time.perf_counter() - begin
        print(f"an epoch: {count / seconds:,.0f} windows a second; memory grew by "
              f"{peak_mib() - before:.0f} MiB (aim: 2,048)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
