"""A grid of parameters becomes runs, and their results one table."""

import csv
import subprocess
import sys

import pytest

from real_midi import ROOT
from sweep import grid_of, table_of


def test_a_grid_is_every_combination():
    assert grid_of(["seed=0,1", "02.size=tiny,small"]) == [
        {"seed": "0", "02.size": "tiny"}, {"seed": "0", "02.size": "small"},
        {"seed": "1", "02.size": "tiny"}, {"seed": "1", "02.size": "small"}]
    for wrong in ("seed", "seed=", "=1"):
        with pytest.raises(SystemExit, match="NAME=VALUE"):
            grid_of([wrong])


def test_a_table_is_aligned_and_shows_three_digits():
    lines = table_of([{"a": "x", "b": 12.3456}, {"a": "longer"}], ["a", "b"]).splitlines()
    assert lines == ["     a     b", "     x  12.3", "longer      "]


def test_a_sweep_runs_each_and_says_which_failed(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "sweep.py", "02.size=tiny,huge", "train_steps=3",
         "count=2", "--run-dir", tmp_path, "--only",
         "02", "07", "--jobs", "2"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = {row["02.size"]: row for row in csv.DictReader(file)}
    assert "size 'huge'; choose one of" in rows["huge"]["set"] and rows["huge"]["frechet"] == ""
    assert rows["tiny"]["set"] == "diffusion" and float(rows["tiny"]["frechet"]) > 0
    assert "tiny" in done.stdout and "sweep.csv" in done.stdout
