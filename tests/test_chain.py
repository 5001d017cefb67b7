"""The whole chain through papermill at a small size; its command line, its grids, and what it
refuses."""

import ast
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ipywidgets
import nbformat
import numpy as np
import papermill
import pytest
import soundfile
from PIL import Image

import chain
from chain import grid_of, parameters_of, run_chain, table_of
from nbval_fresh import fresh_copy
from real_midi import REAL_MIDI, ROOT
from utils import pianoroll
from utils.files import MusicError

SMALL = {"train_steps": 6, "batch_size": 4, "count": 2, "sampling_steps": 4, "01.max_files": 6}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, builtin_midi) -> Path:
    """One small run of the whole chain, from a folder of MIDI of every kind."""
    folder = tmp_path_factory.mktemp("chain")
    midi = folder / "my midi" / "deep" / "er"
    midi.mkdir(parents=True)
    for path in builtin_midi[::20]:
        shutil.copy(path, midi)
    (midi / "text.mid").write_text("this is not MIDI")
    (midi / "cut.mid").write_bytes(builtin_midi[0].read_bytes()[:40])
    small = SMALL | {"01.max_files": 0, "01.midi_dir": str(folder / "my midi")}
    run_chain(folder / "run", small, live=False)
    return folder / "run"


def rows_of(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("preset", "size"), [("diffusion", (128, 128)), ("gan", (106, 300))])
def test_01_writes_pictures_and_their_tables(run_dir, preset, size):
    sources = []
    for split in ("train", "valid"):
        folder = run_dir / "images" / preset / split
        rows = rows_of(folder / "metadata.csv")
        assert list(rows[0]) == ["file_name", "source", "start_step", "tempo"]
        assert {row["file_name"] for row in rows} == {path.name for path in folder.glob("*.png")}
        sources.append({row["source"] for row in rows})
        with Image.open(folder / rows[0]["file_name"]) as image:
            assert image.mode == "L" and image.size == size[::-1]
    assert not sources[0] & sources[1], "a piece is in both splits"


def test_01_names_what_it_skipped_and_why(run_dir):
    skipped = {Path(row["file"]).name: row["reason"]
               for row in rows_of(run_dir / "images" / "skipped.csv")}
    assert set(skipped) == {"text.mid", "cut.mid"}
    assert all(skipped.values())


def test_02_and_03_write_models_logs_and_figures(run_dir):
    for name in ("models/diffusion.safetensors", "models/gan_generator.keras",
                 "figures/denoising.gif", "figures/diffusion_loss.png",
                 "figures/gan_progress.gif", "figures/gan_probabilities.png"):
        assert (run_dir / name).stat().st_size > 300, name
    for name in ("diffusion", "gan"):
        log = rows_of(run_dir / f"models/{name}_log.csv")
        assert log
        numbers = [float(value) for row in log for value in row.values() if value]
        assert np.isfinite(numbers).all()
    for name in ("denoising", "gan_progress"):
        with Image.open(run_dir / f"figures/{name}.gif") as film:
            assert film.n_frames >= (2 if name == "denoising" else 1)  # six steps: all silent


def test_04_loads_them_in_a_fresh_process_and_paints(run_dir):
    for name, size in (("diffusion", (128, 128)), ("gan", (106, 300))):
        paths = sorted((run_dir / "samples" / name).glob("*.png"))
        assert len(paths) == SMALL["count"]
        for path in paths:
            levels = pianoroll.load_png(path).pixels
            assert levels.shape == size
            assert set(np.unique(levels)) <= {0, 64, *range(129, 256)}


def test_05_and_06_give_a_sound_for_each_picture_that_is_not_silent(run_dir):
    silent = {Path(row["file"]).with_suffix(".png").as_posix() for folder in ("midi", "wav")
              for row in rows_of(run_dir / folder / "skipped.csv")}
    pictures = sorted((run_dir / "samples").rglob("*.png"))
    for path in pictures:
        below = path.relative_to(run_dir / "samples")
        if below.as_posix() in silent:  # six steps of training may come to nothing
            assert (pianoroll.load_png(path).pixels <= 160).all()
            continue
        midi = (run_dir / "midi" / below).with_suffix(".mid")
        notes = pianoroll.notes_of(pianoroll.load_png(path))
        assert len(pianoroll.notes_of(pianoroll.read_midi(midi))) == len(notes)
        sound, rate = soundfile.read((run_dir / "wav" / below).with_suffix(".wav"))
        assert np.sqrt(np.mean(sound**2)) > 1e-4 and np.abs(sound).max() < 1
        assert len(sound) / rate >= 1
    assert (run_dir / "gallery.html").read_text(encoding="utf-8").count("<audio") \
        == len(list((run_dir / "wav").rglob("*.wav")))


def test_nothing_half_written_is_left(run_dir):
    assert not [path for path in run_dir.rglob(".*") if path.is_file()]


def test_the_chain_from_a_real_collection(tmp_path):
    if not (REAL_MIDI / "pop909").is_dir():
        pytest.skip("no real MIDI here")
    run_chain(tmp_path, {"01.midi_dir": str(REAL_MIDI / "pop909"), "01.max_files": 20},
              only=["01"], live=False)
    rows = rows_of(tmp_path / "images" / "diffusion" / "valid" / "metadata.csv")
    assert all(int(Path(row["source"]).stem) > 720 for row in rows)


@pytest.mark.parametrize("content", [None, "empty", "no MIDI", "only bad"])
def test_a_folder_without_music_ends_in_one_line(tmp_path, content):
    folder = tmp_path / "mine"
    if content:
        folder.mkdir()
    if content == "no MIDI":
        (folder / "readme.txt").write_text("nothing")
    if content == "only bad":
        (folder / "bad.mid").write_text("nothing")
    done = subprocess.run(
        [sys.executable, "chain.py", "--only", "01", "--run-dir", str(tmp_path / "run"), "-p",
         "midi_dir", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("MusicError: ") and "mine" in last and "midi_dir" in last


@pytest.mark.parametrize("cwd", [".", "notebooks"])
def test_a_notebook_runs_alone_from_a_fresh_clone(tmp_path, cwd):
    """05 needs pictures; with no run before it, it takes what the repository brings."""
    copy = fresh_copy(tmp_path)
    notebook = "05_img2midi.ipynb" if cwd == "notebooks" else "notebooks/05_img2midi.ipynb"
    command = [sys.executable, "-m", "papermill", notebook, str(tmp_path / "out.ipynb")]
    done = subprocess.run(command, cwd=copy / cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((copy / "runs" / "default" / "midi").rglob("*.mid"))
    assert nbformat.read(tmp_path / "out.ipynb", 4).metadata.papermill.exception is None


# ---------------------------------------------------------------- parameters


def test_parameters_go_where_they_are_known():
    given = {"01.midi_dir": "a", "6.midi_dir": "b", "02.seed": "3", "seed": "1"}
    assert parameters_of(given, ["01", "02", "06"]) == {
        "01": {"midi_dir": "a", "seed": 1}, "02": {"seed": 3}, "06": {"midi_dir": "b"}}


def test_values_are_what_the_notebook_declares():
    given = {"resume": "false", "train_steps": "1e4", "batch_size": "1_000", "minutes": "2"}
    values = parameters_of(given, ["02"])["02"]
    assert values == {"resume": False, "train_steps": 10_000, "batch_size": 1000, "minutes": 2.0}
    assert [type(value) for value in values.values()] == [bool, int, int, float]


@pytest.mark.parametrize(("arguments", "line"), [
    ("-p midifile x.mid", "midifile: no such parameter; did you mean midi_file?"),
    ("-p 08.midifile x.mid", "08.midifile: no such parameter; did you mean midi_file?"),
    ("-p 12.seed 1", "there is no notebook 12; choose from 01 02"),
    ("-p 05.seed 1", "05.seed: no such parameter"),
    ("-p run_dir x", "run_dir: give it as --run-dir"),
    ("--only 99", "there is no notebook 99; choose from 01 02"),
    ("--only 4 -p train_steps 5", "train_steps: a parameter of 02 03, and --only leaves that out"),
    ("--only 4 --midi-dir x", "01.midi_dir: a parameter of 01, and --only leaves that out"),
    ("-p seed abc", "seed is 'abc'; give a whole number"),
    ("-p seed 1.5", "seed is '1.5'; give a whole number"),
    ("-p resume perhaps", "resume is 'perhaps'; give True or False"),
    ("-p minutes nan", "minutes is 'nan'; give a number"),
    ("--grid seed", "give NAME=VALUE,VALUE"),
    ("--grid seed=0,x", "seed is 'x'; give a whole number"),
])
def test_a_mistake_is_refused_before_anything_runs(arguments, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chain.py", *arguments.split()])
    monkeypatch.setattr(chain.papermill, "execute_notebook", None)
    assert chain.main() == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_only_takes_a_number_without_its_zero():
    assert chain.chosen(["8", "04"]) == ["04", "08"]
    assert chain.chosen() == list(chain.NOTEBOOKS)


@pytest.mark.parametrize("number", chain.NOTEBOOKS)
def test_each_notebook_checks_the_kinds_of_its_parameters_first(number):
    notebook = nbformat.read(chain.NOTEBOOKS[number], 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = [cell.metadata.get("tags", ()) for cell in code]
    after = 1 + next(i for i, names in enumerate(tags) if "parameters" in names)
    assert code[after].source.startswith("globals().update(files.as_declared(globals()))")


def notebook_of(*cells: str) -> nbformat.NotebookNode:
    """A notebook of code cells; the first holds its parameters."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.cells[0].metadata.tags = ["parameters"]
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": ""}
    return notebook


def run_papermill(folder: Path, *cells: str, cwd: Path = ROOT, **parameters) -> str:
    """Run code cells with papermill; what they printed."""
    nbformat.write(notebook_of(*cells), folder / "in.ipynb")
    done = papermill.execute_notebook(folder / "in.ipynb", folder / "out.ipynb", parameters,
                                      cwd=cwd, progress_bar=False)
    return "".join(out.get("text", "") for cell in done.cells for out in cell.get("outputs", ()))


CHECK = "from utils import files\nglobals().update(files.as_declared(globals()))"


def test_papermills_own_command_line_gives_what_the_notebook_declares(tmp_path):
    printed = run_papermill(tmp_path, "resume: bool = True  # a\nsteps: int = 1  # b", CHECK,
                            "print(resume is False, repr(steps))", resume="false", steps=1e4)
    assert printed == "True 10000\n"


def test_papermills_own_command_line_is_refused_in_one_line(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        run_papermill(tmp_path, "count: int = 1  # a", CHECK, count="two")
    assert (caught.value.ename, caught.value.evalue) == (
        "MusicError", "count is 'two'; give a whole number")


# ---------------------------------------------------------------- where it is started


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """`chain.py` from another folder, with ~ in its paths, into a pipe as on Windows."""
    home = tmp_path_factory.mktemp("home")
    notes = np.array([[0, 4, 60, 90], [4, 4, 64, 90]])
    levels = pianoroll.roll_of(notes, 128, 128)
    pianoroll.save_png(pianoroll.PianoRoll(levels), home / "mine" / "good.png")
    (home / "mine" / "\u2192\u97f3.png").write_text("no image")
    environment = os.environ | {"HOME": str(home), "USERPROFILE": str(home),
                                "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, ROOT / "chain.py", "--only", "5", "--run-dir", "~/run", "-p", "image_dir",
         "~/mine"], cwd=home, env=environment, capture_output=True, encoding="cp1252", check=False)
    return home, done


def test_a_pipe_of_few_characters_takes_what_notebooks_print(elsewhere):
    _, done = elsewhere
    assert done.returncode == 0, done.stderr
    assert "??.png" in done.stdout


def test_a_tilde_is_the_home_folder(elsewhere):
    home, _ = elsewhere
    assert (home / "run" / "midi" / "good.mid").is_file()
    assert (home / "run" / "notebooks" / "05_img2midi.ipynb").is_file()


def test_where_the_results_lie_is_said_in_full(elsewhere):
    home, done = elsewhere
    assert f"1 MIDI      {home / 'run' / 'midi'}" in done.stdout
    assert f"relative paths are taken from {ROOT}" in done.stdout


def setup_cell(number: str) -> str:
    notebook = nbformat.read(chain.NOTEBOOKS[number], 4)
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_outside_the_repository_one_line_says_where_to_start(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        run_papermill(tmp_path, setup_cell("05"), cwd=tmp_path)
    assert caught.value.evalue == \
        "Start this notebook inside the repository, or set MUSIC_ROOT to its folder."


def test_outside_the_repository_music_root_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSIC_ROOT", str(ROOT))
    printed = run_papermill(tmp_path, setup_cell("05"), "print(os.getcwd())", cwd=tmp_path)
    assert Path(printed.strip()) == ROOT


# ---------------------------------------------------------------- what hangs or dies


@pytest.fixture
def one_notebook(tmp_path, monkeypatch):
    """Makes a chain of a single small notebook."""
    def make(source: str) -> None:
        nbformat.write(notebook_of("run_dir: str = ''  # a", source), tmp_path / "01_odd.ipynb")
        monkeypatch.setattr(chain, "NOTEBOOKS", {"01": tmp_path / "01_odd.ipynb"})
    return make


def test_a_cell_that_does_not_end_is_stopped(one_notebook, tmp_path):
    one_notebook("import time; time.sleep(600)")
    with pytest.raises(MusicError, match=r"01_odd: a cell took longer .* --cell-minutes"):
        run_chain(tmp_path / "run", live=False, cell_minutes=0.02)


def test_a_kernel_that_dies_is_named(one_notebook, tmp_path):
    one_notebook("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(MusicError, match="01_odd: its process ended"):
        run_chain(tmp_path / "run", live=False)


@pytest.mark.parametrize(("values", "minutes", "limit_s"), [
    ({}, None, 7200), ({"minutes": 600.0}, None, 43_200), ({"train_steps": 8000}, None, None),
    ({"train_steps": 0, "minutes": 1.0}, None, 7260), ({"minutes": 600.0}, 5, 300), ({}, 0, None)])
def test_a_cell_may_take_as_long_as_a_training_was_given(values, minutes, limit_s):
    assert chain.cell_limit_s(values, minutes) == limit_s


def test_04_makes_no_widget_where_nobody_can_move_it(run_dir):
    notebook = nbformat.read(run_dir / "notebooks" / "04_load_model.ipynb", 4)
    assert "widgets" not in notebook.metadata
    assert "jupyter.widget" not in str([cell.get("outputs") for cell in notebook.cells])


def test_04_generates_anew_when_a_slider_is_moved():
    source = "\n".join(cell.source for cell in nbformat.read(chain.NOTEBOOKS["04"], 4).cells
                       if "def slider_panel" in cell.source)
    asked = []

    def generate(z):
        asked.append(z)
        return [pianoroll.PianoRoll(np.zeros((106, 300), np.uint8))]

    place = {"ipywidgets": ipywidgets, "np": np, "z": np.zeros((1, 14)), "generate_gan": generate,
             "look": lambda *_, **__: None}
    exec(compile(ast.parse(source), "04", "exec"), place)
    sliders = place["slider_panel"]().children[0].children
    sliders[3].value = 2.0
    assert len(sliders) == 14 and len(asked) == 2
    assert asked[1].shape == (1, 14) and asked[1][0, 3] == 2 and asked[1].sum() == 2


# ---------------------------------------------------------------- a grid


def test_a_grid_is_every_combination():
    assert grid_of(["seed=0,1", "02.size=tiny,small"]) == [
        {"seed": "0", "02.size": "tiny"}, {"seed": "0", "02.size": "small"},
        {"seed": "1", "02.size": "tiny"}, {"seed": "1", "02.size": "small"}]
    for wrong in ("seed", "seed=", "=1"):
        with pytest.raises(MusicError, match="NAME=VALUE"):
            grid_of([wrong])


def test_a_table_is_aligned_and_shows_three_digits():
    lines = table_of([{"a": "x", "b": 12.3456}, {"a": "longer"}], ["a", "b"]).splitlines()
    assert lines == ["     a     b", "     x  12.3", "longer      "]


def test_a_grid_runs_each_in_its_folder_and_says_which_failed(elsewhere, tmp_path):
    home, _ = elsewhere
    done = subprocess.run(
        [sys.executable, "chain.py", "--run-dir", tmp_path, "--only", "05", "--grid",
         f"image_dir={home / 'mine'},{tmp_path / 'nowhere'}"], cwd=ROOT, capture_output=True,
        text=True, check=False)
    assert done.returncode == 1, done.stderr
    good, bad = rows_of(tmp_path / "grid.csv")
    assert (tmp_path / good["run"] / "midi" / "good.mid").is_file() and not good["error"]
    assert bad["image_dir"].endswith("nowhere") and "no such folder" in bad["error"]
    assert "no such folder" in done.stdout and str(tmp_path / "grid.csv") in done.stdout


def test_a_grid_has_a_row_for_each_model_that_07_measured(run_dir, monkeypatch):
    monkeypatch.setattr(chain, "run_chain", lambda *_: None)  # as if it had just run
    rows = chain.run_one(run_dir, {"seed": "1"}, {}, (), None)
    assert [row["set"] for row in rows] == ["diffusion", "gan"]
    assert all(float(row["frechet"]) >= 0 and row["seed"] == "1" for row in rows)
