"""Fixtures that several tests share."""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from real_midi import REAL_MIDI, ROOT

sys.path.insert(0, str(ROOT))
with contextlib.suppress(ImportError):  # before TensorFlow, as in utils/diffusion.py
    import triton._C.libtriton  # noqa: F401
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: a thread each, not a core each
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")
hypothesis.settings.register_profile("usual", deadline=None)  # a machine may be busy
hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)
hypothesis.settings.load_profile("usual")
RUN_NOTEBOOKS = {"test_01", "test_02", "test_05_06", "test_07_08", "test_chain", "test_gan",
                 "test_gpu_chain"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run whole notebooks are slow."""
    for item in items:
        if item.path.stem in RUN_NOTEBOOKS:
            item.add_marker(pytest.mark.slow)


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


@pytest.fixture(scope="session")
def network():
    """A tiny network that has learned nothing, and generates more than silence."""
    from utils import pianoroll, unet

    new = unet.new(pianoroll.roll_of(np.array([[0, 4, 60, 80]]), 128, 128)[None], "tiny")
    new.prior.zero_()  # any pixel is as likely to be active as not
    new.config = dataclasses.replace(new.config, active_counts=(900,), onset_counts=(600,))
    return new.eval()
