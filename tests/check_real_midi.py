"""Check every real file once (`test_pianoroll.py` takes 40): python tests/check_real_midi.py

Round trip on the grid for all of them; note for note against pretty_midi for some (`--compare`).
"""

import argparse
import collections
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from tqdm import tqdm

from real_midi import REAL_MIDI, ROOT, SOUND_COLLECTIONS, real_files

sys.path.insert(0, str(ROOT))

from test_pianoroll import count_differing, count_notes_without_length
from utils import pianoroll


def round_trip(path: Path, folder: Path) -> tuple[int, bool]:
    """The number of notes on the grid, and whether all came back."""
    piece = pianoroll.read_midi(path)
    notes = pianoroll.notes_of(piece)
    png = pianoroll.load_png(pianoroll.save_png(piece, folder / "a.png"))
    again = pianoroll.read_midi(pianoroll.save_midi(png, folder / "a.mid"))
    return len(notes), np.array_equal(pianoroll.notes_of(again), notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", type=int, default=50, help="files of each collection")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in SOUND_COLLECTIONS:
            counts = collections.Counter()
            for path in tqdm(sorted((REAL_MIDI / name).rglob("*.mid*")), desc=name):
                try:
                    notes, exact = round_trip(path, Path(folder))
                    counts += collections.Counter(files=1, exact=exact, notes=notes)
                except pianoroll.MusicError as error:
                    counts["refused"] += 1
                    print(error)
            print(name, dict(counts))
    warnings.simplefilter("ignore", RuntimeWarning)
    totals = collections.Counter()
    for path in real_files(arguments.compare):
        notes, differing = count_differing(path)
        totals += collections.Counter(files=1, agree=differing == 0, notes=notes,
                                      differing=differing,
                                      without_length=count_notes_without_length(path))
    print("read_midi and pretty_midi:", dict(totals))


if __name__ == "__main__":
    main()
