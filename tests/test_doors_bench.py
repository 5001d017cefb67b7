"""`make bench` writes one table, whatever becomes of its parts."""

import subprocess
import sys

import pytest

from real_midi import ROOT

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
import bench


def test_a_row_has_the_ratio():
    assert bench.line_of("this", "s", 2.0, "a peer", 10.0) == "| this | s | 2 | 10 | 5.0 | a peer |"
    assert bench.line_of("this", "s", 2.0, "", None).count("|") == 7


@pytest.mark.parametrize("end", ["fails", "hangs"])
def test_a_part_that_fails_is_named_and_what_it_measured_is_kept(end, tmp_path, monkeypatch):
    def run(command, **_):
        row = bench.line_of(f"{command[-1]} is fast", "s", 1, "a peer", 2)
        if command[-1] != "gan":
            return subprocess.CompletedProcess(command, 0, row, "")
        if end == "hangs":
            raise subprocess.TimeoutExpired(command, 240, row.encode())
        return subprocess.CompletedProcess(command, 1, row, "Traceback\nKeyError: 'GAN'")

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.main(str(tmp_path / "bench" / "bench.md")) == 1
    text = (tmp_path / "bench" / "bench.md").read_text("utf-8")
    assert text.count("is fast |") == len(bench.PARTS) and bench.machine() in text
    reason = "more than 240 s" if end == "hangs" else "KeyError: 'GAN'"
    assert f"Not measured: gan, in part or all of it: {reason}" in text
