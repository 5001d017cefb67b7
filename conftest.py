"""What `pytest --nbval` does not compare: players (text/html) and progress bars (stderr)."""


def pytest_collectstart(collector):
    """Called for each notebook; nbval leaves PNGs out by itself."""
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += ("text/html", "stderr")
