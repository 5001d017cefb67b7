"""The whole chain through papermill at a small size; its command line, its grids, and what it
refuses."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from notebook_code import rows_of

import chain
from real_midi import ROOT
from utils import pianoroll
from utils.files import MusicError

COUNT = 2
SIZES = {"diffusion": (128, 128), "gan": (106, 300)}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, builtin_midi) -> Path:
    """One small run of the whole chain, from a folder of MIDI of every kind."""
    folder = tmp_path_factory.mktemp("chain")
    midi = folder / "my midi" / "deep" / "er"
    midi.mkdir(parents=True)
    for path in builtin_midi[3::20]:  # one is held out, one of its two long images is full
        shutil.copy(path, midi)
    (midi / "text.mid").write_text("this is not MIDI")
    chain.run_chain(folder / "run", {
        "train_steps": 6, "mapping_pieces": 8, "batch_size": 4, "count": COUNT, "sampling_steps": 4,
        "01.max_files": 0, "01.midi_dir": str(folder / "my midi")}, live=False)
    return folder / "run"


def test_02_and_03_write_models_logs_and_figures_and_nothing_half_written_is_left(run_dir):
    for name in ("models/diffusion.safetensors", "models/gan_generator.keras",
                 "figures/denoising.gif", "figures/diffusion_loss.png",
                 "figures/gan_progress.gif", "figures/gan_probabilities.png"):
        assert (run_dir / name).stat().st_size > 300, name
    for name in ("diffusion", "gan"):
        log = rows_of(run_dir / f"models/{name}_log.csv")
        numbers = [float(value) for row in log for value in row.values() if value]
        assert numbers and np.isfinite(numbers).all()
    assert not [path for path in run_dir.rglob(".*") if path.is_file()]


def test_each_image_of_04_that_is_not_silent_becomes_midi_and_sound(run_dir):
    def names(folder, suffix):
        return {path.relative_to(run_dir / folder).with_suffix("").as_posix()
                for path in (run_dir / folder).rglob(f"*{suffix}")}

    made = names("samples", ".png")
    for name, size in SIZES.items():
        rolls = [pianoroll.load_png(path) for path in (run_dir / "samples" / name).glob("*.png")]
        assert [roll.pixels.shape for roll in rolls] == [size] * COUNT
    silent = {Path(row["file"]).with_suffix("").as_posix() for folder in ("midi", "wav")
              for row in rows_of(run_dir / folder / "skipped.csv")}
    assert names("midi", ".mid") >= names("wav", ".wav") == made - silent
    page = (run_dir / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<audio") == len(made - silent)


# ---------------------------------------------------------------- parameters


def test_parameters_go_where_they_are_known():
    given = {"01.midi_dir": "a", "6.midi_dir": "b", "02.seed": "3", "seed": "1"}
    assert chain.parameters_of(given, chain.chosen(["6", "1", "02"])) == {
        "01": {"midi_dir": "a", "seed": 1}, "02": {"seed": 3}, "06": {"midi_dir": "b"}}


@pytest.mark.parametrize(("arguments", "line"), [
    ("-p midifile x.mid", "midifile: no such parameter; did you mean midi_file?"),
    ("-p 12.seed 1", "there is no notebook 12; choose from 01 02"),
    ("-p 05.seed 1", "05.seed: no such parameter"),
    ("-p run_dir x", "run_dir: give it as --run-dir"),
    ("--only 99", "there is no notebook 99; choose from 01 02"),
    ("--only 4 -p train_steps 5", "train_steps: a parameter of 02 03, and --only leaves that out"),
    ("-p seed abc", "seed is 'abc'; give a whole number"),
    ("-p resume perhaps", "resume is 'perhaps'; give True or False"),
    ("--grid seed", "give NAME=VALUE,VALUE"),
    ("--grid seed=0,x", "seed is 'x'; give a whole number"),
])
def test_a_mistake_is_refused_before_anything_runs(arguments, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chain.py", *arguments.split()])
    monkeypatch.setattr(chain.papermill, "execute_notebook", None)
    assert chain.main() == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


@pytest.mark.parametrize("number", chain.NOTEBOOKS)
def test_each_notebook_checks_the_kinds_of_its_parameters_first(number):
    code = [cell for cell in nbformat.read(chain.NOTEBOOKS[number], 4).cells
            if cell.cell_type == "code"]
    tagged = ["parameters" in cell.metadata.get("tags", ()) for cell in code]
    assert code[tagged.index(True) + 1].source.startswith(
        "globals().update(files.as_declared(globals()))")


# ---------------------------------------------------------------- where it is started


def notebook_of(path: Path, *cells: str) -> Path:
    """Write a notebook of code cells; the first holds its parameters."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.cells[0].metadata.tags = ["parameters"]
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": ""}
    nbformat.write(notebook, path)
    return path


def test_started_elsewhere_with_tilde_into_a_pipe_of_few_characters(tmp_path):
    """As on Windows; where the results are is said in full."""
    roll = pianoroll.roll_of(np.array([[0, 4, 60, 90], [4, 4, 64, 90]]), 128, 128)
    pianoroll.save_png(pianoroll.PianoRoll(roll), tmp_path / "mine" / "good.png")
    (tmp_path / "mine" / "\u2192\u97f3.png").write_text("no image")
    environment = os.environ | {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path),
                                "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, ROOT / "chain.py", "--only", "5", "--run-dir", "~/run", "-p", "image_dir",
         "~/mine"], cwd=tmp_path, env=environment, capture_output=True, encoding="cp1252",
        check=False)
    assert done.returncode == 0, done.stderr
    assert "??.png" in done.stdout
    assert f"relative paths are taken from {ROOT}" in done.stdout
    assert f"everything is in {tmp_path / 'run'}" in done.stdout
    for name in ("midi/good.mid", "notebooks/05_img2midi.ipynb"):
        assert (tmp_path / "run" / name).is_file()


def test_outside_the_repository_a_notebook_says_how_to_find_it(tmp_path, monkeypatch):
    setup = next(cell.source for cell in nbformat.read(chain.NOTEBOOKS["05"], 4).cells
                 if cell.cell_type == "code")
    path = notebook_of(tmp_path / "in.ipynb", setup, f"assert os.getcwd() == {str(ROOT)!r}")
    with pytest.raises(papermill.PapermillExecutionError, match="inside the repository, or set MU"):
        papermill.execute_notebook(path, tmp_path / "1.ipynb", cwd=tmp_path, progress_bar=False)
    monkeypatch.setenv("MUSIC_ROOT", str(ROOT))
    papermill.execute_notebook(path, tmp_path / "2.ipynb", cwd=tmp_path, progress_bar=False)


# ---------------------------------------------------------------- what hangs or dies


@pytest.mark.parametrize(("source", "line"), [
    ("import time; time.sleep(600)", "01_odd: a cell took longer than 0.02 minutes"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "01_odd: its process ended")])
def test_a_cell_that_hangs_or_a_kernel_that_dies_is_named(tmp_path, monkeypatch, source, line):
    path = notebook_of(tmp_path / "01_odd.ipynb", "run_dir: str = ''  # a", source)
    monkeypatch.setattr(chain, "NOTEBOOKS", {"01": path})
    monkeypatch.setattr(chain, "CELL_MINUTES", 0.02 if "sleep" in source else 2)
    with pytest.raises(MusicError, match=line):
        chain.run_chain(tmp_path / "run", live=False)


@pytest.mark.parametrize(("parameters", "limit_s"), [
    ({"train_steps": 0}, 7200 + 60), ({"minutes": 600}, 7200 + 36_000), ({"train_steps": 9}, None)])
def test_a_cell_may_take_as_long_as_a_training(parameters, limit_s, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(chain.papermill, "execute_notebook",
                        lambda *_, execution_timeout, **__: seen.append(execution_timeout))
    chain.run_chain(tmp_path, {"minutes": 1} | parameters, only=["02"], live=False)
    assert seen == [limit_s]


# ---------------------------------------------------------------- a grid


def test_a_grid_runs_each_in_its_folder_and_says_which_failed(tmp_path):
    rolls = pianoroll.roll_of(np.array([[0, 4, 60, 90]]), 128, 128)
    pianoroll.save_png(pianoroll.PianoRoll(rolls), tmp_path / "mine" / "good.png")
    done = subprocess.run(
        [sys.executable, "chain.py", "--run-dir", tmp_path, "--only", "05", "--grid",
         f"image_dir={tmp_path / 'mine'},{tmp_path / 'nowhere'}"], cwd=ROOT, capture_output=True,
        text=True, check=False)
    assert done.returncode == 1, done.stderr
    good, bad = rows_of(tmp_path / "grid.csv")
    assert (tmp_path / good["run"] / "midi" / "good.mid").is_file() and not good["error"]
    assert bad["image_dir"].endswith("nowhere") and "no such folder" in bad["error"]
    assert "no such folder" in done.stdout and str(tmp_path / "grid.csv") in done.stdout


def test_a_grid_has_a_row_for_each_model_that_07_measured(run_dir, monkeypatch):
    monkeypatch.setattr(chain, "run_chain", lambda *_, **__: None)  # as if it had just run
    rows = chain.run_one(run_dir, {"seed": "1"}, {}, ())
    assert [row["set"] for row in rows] == ["diffusion", "gan"]
    assert all(row["frechet"] >= 0 and row["seed"] == "1" for row in rows)
