"""Check every real file once (`test_pianoroll.py` takes 40): python tests/check_real_midi.py

Round trip on the grid for all of them; note for note against pretty_midi for some (`--compare`).
"""

import argparse
import collections
import tempfile
import warnings
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conftest import REAL_MIDI, SOUND_COLLECTIONS, real_files
from test_pianoroll import ticks_by_pretty_midi, ticks_by_symusic
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
    files, agree, notes, differ, zero = 0, 0, 0, 0, 0
    for path in real_files(arguments.compare):
        ours, theirs = ticks_by_symusic(path), ticks_by_pretty_midi(path)
        files, notes = files + 1, notes + sum(ours.values())
        agree += ours == theirs
        differ += sum((ours - theirs).values())
        zero += sum(count for note, count in ours.items() if note[0] == note[1])
    print(f"symusic and pretty_midi: {agree} of {files} files agree note for note; "
          f"of {notes} notes {differ} differ, {zero} have no length")


if __name__ == "__main__":
    main()
