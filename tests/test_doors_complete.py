"""The musician's command: what it refuses, and the page of takes that it leaves."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import chain
import complete
from real_midi import ROOT
from utils import edit, pianoroll


@pytest.mark.parametrize(("arguments", "line"), [
    (["song.mid", "--tkes", "3"], "--tkes: no such option; did you mean --takes?"),
    (["song.mid", "--first_bar=3"], "--first_bar=3: no such option; did you mean --first-bar?"),
    (["song.mid", "--zzz"], "--zzz: no such option; python complete.py --help lists them all"),
    (["-odd.mid"], "-odd.mid: no such option; write a file whose name begins with - as ./-odd.mid"),
    (["my", "song.mid"], "song.mid: one MIDI file at a time; put a text with blanks in quotes"),
    ([], "give a MIDI file: python complete.py song.mid"),
    (["song.mid", "--mode", "long"], "song.mid: --mode long begins from nothing"),
    (["song.mid", "--mode", "infil"], "mode 'infil'; choose one of continue, infill, vary"),
    (["song.mid", "--takes", "0"], "--takes is 0; choose 1 to 99"),
    (["song.mid", "--bars", "x"], "--bars is 'x'; give a whole number"),
    (["nowhere.mid"], "nowhere.mid: no such file"),
])
def test_a_mistake_is_refused_in_one_line_before_anything_runs(arguments, line, monkeypatch,
                                                               tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chain, "run_chain", None)
    assert complete.main(arguments) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_each_parameter_of_08_is_an_option_with_a_help():
    parameters = complete.parameters_of_08()
    options = complete.parser_of(parameters)._option_string_actions
    assert {"--mode", "--bars", "--first-bar", "--chords", "--scale"} <= set(options)
    assert all(options[complete.option_of(name)].help for name in parameters)


@pytest.fixture(scope="module")
def two_takes(tmp_path_factory, builtin_midi) -> tuple[Path, subprocess.CompletedProcess]:
    """Started in a folder of its own, with a song whose name is not plain."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(builtin_midi[7], folder / "<b>it's 音.mid")
    done = subprocess.run(
        [sys.executable, ROOT / "chain.py", "complete", "<b>it's 音.mid", "--takes", "2", "--mode",
         "infill", "--first-bar", "5", "--bars", "2", "--sampling-steps", "2", "--out", "mine"],
        cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_takes_differ_where_they_are_new_and_nowhere_else(two_takes):
    folder, _ = two_takes
    song = edit.open_midi(next(folder.glob("*.mid")))
    begin, end = song.bar_lines[[4, 6]]
    paths = sorted((folder / "mine").glob("*.mid"))
    rolls = [edit.open_midi(path).picture.pixels for path in paths]
    assert len(rolls) == 2 and not np.array_equal(rolls[0][:, begin:end], rolls[1][:, begin:end])
    for roll in rolls:
        assert np.array_equal(roll[:, :begin], song.picture.pixels[:, :begin])
        assert np.array_equal(roll[:, end:], song.picture.pixels[:, end:])


def test_the_page_has_the_song_and_each_take_framed_with_sound_and_midi(two_takes):
    folder, _ = two_takes
    page = (folder / "mine" / "gallery.html").read_text("utf-8")
    assert page.count("<audio") == page.count("Download the MIDI</a>") == 3
    song = edit.open_midi(next(folder.glob("*.mid")))
    columns = song.picture.pixels.shape[1]
    begin, end = song.bar_lines[[4, 6]]
    assert page.count(f"left:{begin / columns:.3%}; width:{(end - begin) / columns:.3%}") == 2
    assert "<b>it" not in page and "&lt;b&gt;it" in page


def test_where_the_results_lie_is_said_and_no_other_file_is_left(two_takes):
    folder, done = two_takes
    out = folder / "mine"
    assert str(out / "gallery.html") in done.stdout
    assert sorted(path.suffix for path in out.iterdir()) == [
        ".html", ".mid", ".mid", ".png", ".png", ".wav", ".wav", ".wav"]


def test_a_take_that_fails_is_named_and_the_others_go_on(monkeypatch, tmp_path, builtin_midi,
                                                         capsys):
    def take(song, _model_dir, values, out):
        if values["seed"] == 1:
            raise pianoroll.MusicError("the model chose silence")
        return song, song, song

    monkeypatch.setattr(complete, "take", take)
    monkeypatch.setattr(complete, "gallery", lambda *_: None)
    arguments = [str(builtin_midi[0]), "--takes", "3", "--out", str(tmp_path)]
    assert complete.main(arguments) == 0
    said = capsys.readouterr()
    assert "seed 1: MusicError: the model chose silence" in said.err and "2 takes" in said.out


def test_a_python_without_the_packages_is_told_what_to_do(tmp_path):
    done = subprocess.run([sys.executable, "-S", ROOT / "complete.py", "song.mid"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "make setup" in done.stderr and done.stderr.count("\n") == 1
