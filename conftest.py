"""What `pytest --nbval` does not compare: players (text/html) and progress bars (stderr).

All tests run on the CPU, so that their numbers are the same everywhere; CUDA_VISIBLE_DEVICES=0 in
the environment asks for a GPU. `make gpu-test` is for that.
"""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_collectstart(collector):
    """Called for each notebook; nbval leaves PNGs out by itself."""
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += ("text/html", "stderr")
