"""Real collections to test on.

They are too large, and not ours, to lie in the repository: tests that read them are skipped where
they are absent. They are looked for beside the repository, or where REAL_MIDI says.
"""

import os
import random
from pathlib import Path

ROOT = Path(__file__).parent.parent
REAL_MIDI = Path(os.environ.get("REAL_MIDI", ROOT.parent / "shared" / "midi"))
SOUND_COLLECTIONS = ("maestro-v2.0.0", "pop909", "lakh-excerpts", "freedoom")


def real_files(per_collection: int) -> list[Path]:
    """The same random choice of real files every time; none where they are absent."""
    chosen: list[Path] = []
    for name in SOUND_COLLECTIONS:
        files = sorted(p for p in (REAL_MIDI / name).rglob("*.mid*") if p.is_file())
        chosen += random.Random(name).sample(files, min(per_collection, len(files)))
    return chosen
