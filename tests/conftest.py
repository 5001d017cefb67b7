"""Fixtures that several tests share."""

import sys
from pathlib import Path

import pytest

from real_midi import REAL_MIDI, ROOT

sys.path.insert(0, str(ROOT))


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
