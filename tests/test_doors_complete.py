"""The musician's command: what it refuses, and the page of takes that it leaves."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import chain
import complete
from real_midi import ROOT
from utils import edit
from utils.files import MusicError


@pytest.mark.parametrize(("arguments", "line"), [
    (["song.mid", "--tkes", "3"], "--tkes: no such option, did you mean --takes"),
    (["my", "song.mid"], "song.mid: one MIDI file at a time"),
    ([], "give a MIDI file: python complete.py song.mid"),
    (["song.mid", "--mode", "long"], "song.mid: --mode long begins from nothing"),
    (["song.mid", "--mode", "infil"], "mode 'infil'; choose one of continue, infill, vary"),
    (["song.mid", "--takes", "0"], "--takes is 0; choose 1 to 99"),
    (["song.mid", "--bars", "x"], "argument --bars: invalid int value: 'x'"),
    (["nowhere.mid"], "nowhere.mid: no such file"),
])
def test_a_mistake_is_refused_in_one_line_before_anything_runs(arguments, line, monkeypatch,
                                                               tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chain, "run_chain", None)
    assert complete.main(arguments) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_takes_differ_where_they_are_new_and_the_page_frames_them(tmp_path, builtin_midi):
    """Started in a folder of its own, with a song whose name is not plain."""
    path = shutil.copy(builtin_midi[7], tmp_path / "<b>it's 音.mid")
    done = subprocess.run(
        [sys.executable, ROOT / "chain.py", "complete", path.name, "--takes", "2", "--mode",
         "infill", "--first-bar", "5", "--bars", "2", "--sampling-steps", "2", "--out", "mine"],
        cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "mine"
    assert str(out / "gallery.html") in done.stdout
    assert sorted(path.suffix for path in out.iterdir()) == [
        ".html", ".mid", ".mid", ".png", ".png", ".wav", ".wav", ".wav"]

    song = edit.open_midi(path)
    old, (begin, end) = song.picture.pixels, song.bar_lines[[4, 6]]
    one, two = (edit.open_midi(take).picture.pixels for take in out.glob("*.mid"))
    assert not np.array_equal(one[:, begin:end], two[:, begin:end])
    for roll in (one, two):
        assert np.array_equal(roll[:, :begin], old[:, :begin])
        assert np.array_equal(roll[:, end:], old[:, end:])

    page, width = (out / "gallery.html").read_text("utf-8"), old.shape[1]
    assert page.count("<audio") == page.count("Download the MIDI</a>") == 3
    assert page.count(f"left:{begin / width:.3%}; width:{(end - begin) / width:.3%}") == 2
    assert "<b>it" not in page and "&lt;b&gt;it" in page


def test_a_take_that_fails_is_named_and_the_others_go_on(monkeypatch, tmp_path, builtin_midi,
                                                         capsys):
    def take(values, _out):
        if values["seed"] == 1:
            raise MusicError("the model chose silence")
        return builtin_midi[0], None

    monkeypatch.setattr(complete, "take", take)
    monkeypatch.setattr(complete, "gallery", lambda *_: None)
    assert complete.main([str(builtin_midi[0]), "--takes", "3", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "seed 1: MusicError: the model chose silence" in said.err and "2 takes" in said.out


def test_a_python_without_the_packages_is_told_what_to_do():
    done = subprocess.run([sys.executable, "-S", ROOT / "complete.py", "song.mid"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "make setup" in done.stderr and done.stderr.count("\n") == 1
