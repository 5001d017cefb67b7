"""Feed the MIDI reader damaged files: `python tests/benchmarks/fuzz_midi.py FOLDER [COUNT] [SEED]`.

Each input is a real file of FOLDER with bytes flipped, lost, added, swapped or overwritten, or cut
short. The reader runs in a child process with the limits of a conversion (`corpus.guarded`). It
must give an image or a `MusicError` for each; a crash, another exception or a timeout is a
finding: its bytes are kept under `runs/fuzz/`. The exit status is the number of findings.
"""

import collections
import random
import re
import sys
import time
from pathlib import Path

from pebble import ProcessPool

sys.path.insert(0, str(Path(__file__).parents[2]))

from utils import corpus, pianoroll
from utils.files import MusicError

INTERESTING = [0, 1, 0x7F, 0x80, 0x8F, 0x90, 0xB0, 0xC0, 0xF0, 0xF1, 0xF7, 0xFE, 0xFF]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to eight random injuries."""
    data = bytearray(data or b"M")
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at = rng.randrange(rng.choice([40, len(data) + 1, len(data) + 1])) % max(1, len(data))
        size = min(rng.choice([1, 1, 2, 4, 64, 1024]), len(data))
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.choice(INTERESTING)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = rng.randbytes(size)
        elif kind == 4:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 5:
            data[at : at + size] = data[: size]
        elif kind == 6:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def main(folder: str, pool: ProcessPool, count: int = 20_000, seed: int = 0) -> int:
    """Print what became of the inputs; return the number of findings."""
    rng = random.Random(seed)
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".mid", ".midi"))
    small = [p.read_bytes() for p in rng.sample(paths, min(400, len(paths)))
             if p.stat().st_size < 60_000]
    target = Path("runs/fuzz/input.mid")
    target.parent.mkdir(parents=True, exist_ok=True)
    seen, slowest, findings = collections.Counter(), 0.0, 0
    for number in range(count):
        data = mutate(rng.choice(small), rng)
        target.write_bytes(data)
        begin = time.perf_counter()
        try:
            corpus.guarded(pool, pianoroll.read_midi, str(target))
            what = "image"
        except MusicError as error:
            what = re.sub(r"[\d,]+", "N", str(error).removeprefix(f"{target}: "))
        if "the reader" in what:  # fails, crashes or takes too much
            findings += 1
            (target.parent / f"finding-{seed}-{number}.mid").write_bytes(data)
        slowest = max(slowest, time.perf_counter() - begin)
        seen[what] += 1
    for what, times in seen.most_common():
        print(f"{times:7d}  {what}")
    print(f"{count:,} inputs, slowest {slowest:.2f} s, {findings} findings")
    return findings


if __name__ == "__main__":
    with corpus.child_processes(1) as only_child:
        found = main(sys.argv[1], only_child, *map(int, sys.argv[2:]))
    sys.exit(min(100, found))
