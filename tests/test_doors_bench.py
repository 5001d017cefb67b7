"""`make bench` writes one table, whatever becomes of its parts."""

import subprocess
import sys

import pytest

from real_midi import ROOT

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
import bench


@pytest.mark.parametrize("reason", ["KeyError: 'GAN'", "more than 240 s"])
def test_a_part_that_fails_is_named_and_what_it_measured_is_kept(reason, tmp_path, monkeypatch):
    def run(command, **_):
        row = bench.line_of(f"{command[-1]} is fast", "s", 2.0, "a peer", 10.0)
        if command[-1] == "gan" and "240" in reason:
            raise subprocess.TimeoutExpired(command, 240, row.encode())
        return subprocess.CompletedProcess(command, command[-1] == "gan", row, reason)

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.main(str(tmp_path / "bench" / "bench.md")) == 1
    text = (tmp_path / "bench" / "bench.md").read_text("utf-8")
    assert text.count("is fast | s | 2 | 10 | 5.0 | a peer |") == len(bench.PARTS)
    assert bench.machine() in text
    assert f"Not measured: gan, in part or all of it: {reason}" in text
