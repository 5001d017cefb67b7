"""The whole chain through papermill at a small size, on the GPU where there is one."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from PIL import Image

from chain import fresh_copy, parameters_for, run_chain, value_of
from real_midi import REAL_MIDI, ROOT
from utils import pianoroll

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
            levels = pianoroll.load_png(path).levels
            assert levels.shape == size
            assert set(np.unique(levels)) <= {0, 64, *range(129, 256)}


def test_05_and_06_give_a_sound_for_each_picture_that_is_not_silent(run_dir):
    silent = {Path(row["file"]).with_suffix(".png").as_posix() for folder in ("midi", "wav")
              for row in rows_of(run_dir / folder / "skipped.csv")}
    pictures = sorted((run_dir / "samples").rglob("*.png"))
    for path in pictures:
        below = path.relative_to(run_dir / "samples")
        if below.as_posix() in silent:  # six steps of training may come to nothing
            assert (pianoroll.load_png(path).levels <= 160).all()
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


def test_parameters_go_where_they_are_known():
    path = ROOT / "notebooks" / "01_midi2img.ipynb"
    given = {"run_dir": "runs/x", "01.midi_dir": "a", "06.midi_dir": "b", "latent_dim": 14}
    assert parameters_for(path, given) == {"run_dir": "runs/x", "midi_dir": "a"}
    assert [value_of(text) for text in ("5", "0.1", "True", "a b", "runs/x")] == \
        [5, 0.1, True, "a b", "runs/x"]
