"""Fixtures that several tests share."""

import os
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Real collections are too large, and not ours, to lie in the repository: tests that read them are
# skipped where they are absent. They are looked for beside the repository, or where REAL_MIDI says.
REAL_MIDI = Path(os.environ.get("REAL_MIDI", ROOT.parent / "shared" / "midi"))
SOUND_COLLECTIONS = ("maestro-v2.0.0", "pop909", "lakh-excerpts", "freedoom")


def real_files(per_collection: int) -> list[Path]:
    """The same random choice of real files every time; none where they are absent."""
    chosen: list[Path] = []
    for name in SOUND_COLLECTIONS:
        files = sorted(p for p in (REAL_MIDI / name).rglob("*.mid*") if p.is_file())
        chosen += random.Random(name).sample(files, min(per_collection, len(files)))
    return chosen


@pytest.fixture(scope="session")
def real_midi() -> Path:
    """The folder of real collections; the test is skipped where there is none."""
    if not REAL_MIDI.is_dir():
        pytest.skip(f"no real MIDI at {REAL_MIDI}; set REAL_MIDI to a folder that has some")
    return REAL_MIDI


@pytest.fixture(scope="session")
def builtin_midi() -> list[Path]:
    """The built-in corpus."""
    return sorted((ROOT / "data" / "midi").glob("*.mid"))
