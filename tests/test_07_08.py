"""Notebooks 07 and 08 from end to end, at a small size, and what 07 measures."""

import csv
import re
import shutil

import mido
import numpy as np
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from real_midi import ROOT
from utils import corpus, files, harmony, metrics, pianoroll, unet

# What 07 measures in the small run below. Tolerance: a thousandth of each figure; newer SciPy and
# NumPy may move the last digits, a changed definition moves more.
STORED = {
    ("held-out real", "frechet"): 7.604081, ("held-out real", "overlap"): 0.916977,
    ("train real", "kld"): 0.0331434, ("shuffled columns", "frechet"): 139.451643,
    ("random notes", "value_overlap"): 0.527134, ("equally-loud", "frechet"): 59.517725,
    ("equally-loud", "frechet_error"): 2.191624, ("copied", "diversity"): 4.267744,
    ("shuffled", "memorised_share"): 0.0, ("copied", "memorised_share"): 1.0,
    ("copied", "similarity"): 1.0,
}
PIECES = 24


def run(name, folder, **parameters):
    """Execute a notebook; returns it."""
    path = next((ROOT / "notebooks").glob(f"{name}_*.ipynb"))
    return papermill.execute_notebook(path, folder / f"{name}.ipynb", parameters,
                                      cwd=str(ROOT), kernel_name="python3", progress_bar=False)


def said(notebook):
    """All that a notebook printed."""
    return "".join(out.text for cell in notebook.cells if cell.cell_type == "code"
                   for out in cell.outputs if out.get("name") == "stdout")


def refused(name, folder, **parameters):
    """The message of the error that a notebook ends with."""
    with pytest.raises(PapermillExecutionError) as caught:
        run(name, folder, **parameters)
    assert caught.value.ename == "MusicError"
    return caught.value.evalue


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run with the images of a few pieces."""
    folder = tmp_path_factory.mktemp("run")
    corpus.convert("builtin", folder, max_files=PIECES, jobs=1)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An untrained network that generates more than silence."""
    folder = tmp_path_factory.mktemp("models")
    roll = pianoroll.roll_of(np.array([[0, 4, 60, 80], [8, 4, 64, 90]]), 128, 128)
    network = unet.new(roll[None], "tiny")
    network.prior.zero_()
    unet.save(network, folder / "diffusion.safetensors")
    return folder


def rows_of(run_dir, table="metrics"):
    """A table of 07's report."""
    with (run_dir / "report" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def samples_in(folder, images, count):
    """Images in the place of a model's: held-out ones, all equally loud, and shuffled ones."""
    valid = corpus.load_rolls(images / "images" / "diffusion" / "valid")[:count]
    loud = np.where(valid > pianoroll.SUSTAIN, 228, valid).astype(np.uint8)
    gan = corpus.load_rolls(images / "images" / "gan" / "train")[:count]
    for name, rolls, low in (("equally-loud", loud, 0),
                             ("shuffled", metrics.shuffled_columns(valid), 0), ("copied", gan, 21)):
        for i, roll in enumerate(rolls):
            pianoroll.save_png(pianoroll.PianoRoll(roll, low), folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def report(images, tmp_path_factory):
    """What 07 printed, and the rows of its table."""
    folder = tmp_path_factory.mktemp("evaluated")
    samples_in(folder / "samples", images, 8)
    notebook = run("07", folder, run_dir=str(images), sample_dir=str(folder / "samples"))
    return said(notebook), {row["set"]: row for row in rows_of(images)}


def test_07_writes_a_table_with_the_controls_and_a_figure(report, images):
    _, rows = report
    assert {"held-out real", "train real", "shuffled columns", "random notes"} < set(rows)
    assert len(rows) == 7 and len({row["pictures"] for row in rows.values()}) == 1
    assert all(np.isfinite(float(value)) for row in rows.values()
               for name, value in row.items() if name != "set" and value)
    assert set(metrics.FEATURES) < set(rows["copied"])
    assert (images / "figures" / "metrics.png").stat().st_size > 10_000
    features = rows_of(images, "features")
    assert [row["set"] for row in features] == [name for name in rows for _ in metrics.FEATURES]
    loud = {row["feature"]: row for row in features if row["set"] == "equally-loud"}
    assert float(loud["velocity_spread"]["overlap"]) < 0.2 < float(loud["pitch_mean"]["overlap"])


def test_07_measures_what_it_measured_before_and_finds_the_copies(report):
    _, rows = report
    for (name, column), expected in STORED.items():
        assert float(rows[name][column]) == pytest.approx(expected, rel=1e-3), (name, column)


def test_07_says_who_is_closest_and_where_the_others_fall_short(report):
    text, rows = report
    assert re.search(r"equally-loud:\n  velocity spread too low: [01]\.", text)
    assert re.search(r"copied: .*\n  But 100% of its images", text)
    nearest = min(("equally-loud", "shuffled", "copied"), key=lambda n: float(rows[n]["frechet"]))
    assert f"Closest to real music: {nearest}" in text
    assert not re.search(r"\nshuffled: nearer to real music than [^.]*shuffled columns", text)


@pytest.mark.parametrize("held_out", [True, False])
def test_07_works_with_two_images_and_finds_copies_with_nothing_held_out(held_out, tmp_path):
    corpus.convert("builtin", tmp_path, max_files=3, jobs=1)
    samples = samples_in(tmp_path / "mine", tmp_path, 2)
    shutil.rmtree(samples / "shuffled")
    for folder in () if held_out else (tmp_path / "images").glob("*/valid"):
        shutil.rmtree(folder)
    text = said(run("07", tmp_path, run_dir=str(tmp_path), sample_dir=str(samples)))
    assert "with caution" in text and "equally-loud: nothing clear." in text
    assert ("stand in for new music" in text) != held_out
    assert re.search(r"copied: similarity 1.00, .*; 100% copied", text)


def test_07_leaves_out_samples_of_another_model_and_says_what_it_learned(models, tmp_path):
    corpus.convert("builtin", tmp_path, max_files=3, jobs=1)
    unet.save(unet.load(models / "diffusion.safetensors"), tmp_path / "diffusion.safetensors",
              pictures=999)
    blank = pianoroll.PianoRoll(np.zeros((128, 128), np.uint8))
    pianoroll.save_png(blank, tmp_path / "samples" / "diffusion" / "0.png")  # by another model
    files.write_json(tmp_path / "samples" / "generated_by.json", {"diffusion": "other.safetensors"})
    text = said(run("07", tmp_path, run_dir=str(tmp_path), model_dir=str(tmp_path), count=2,
                    max_pictures=5))
    assert f"the 1 images in {tmp_path.as_posix()}/samples are by other.safetensors: they" in text
    assert "diffusion: 0 images from notebook 04, 2 generated now" in text
    assert re.search(r"learned from 999 images, \S+ holds (\d+): copies of other", text)
    assert re.search(r": 5 of \d+ training images", text)


def test_07_says_how_long_a_model_was_trained_and_compares_the_shipped_one(models, tmp_path):
    corpus.convert("builtin", tmp_path, max_files=12, jobs=1)
    unet.save(unet.load(models / "diffusion.safetensors"), tmp_path / "models" /
              "diffusion.safetensors", steps=1234)
    text = said(run("07", tmp_path, run_dir=str(tmp_path), count=2, sampling_steps=2))
    assert "/models/diffusion.safetensors, trained for 1,234 steps" in text
    assert "diffusion, shipped: data/models/diffusion.safetensors, trained for " in text
    assert {"diffusion", "diffusion, shipped"} < {row["set"] for row in rows_of(tmp_path)}


def test_07_compares_no_shipped_gan_with_music_that_it_did_not_learn(tmp_path):
    corpus.convert("builtin", tmp_path, max_files=12, jobs=1)
    text = said(run("07", tmp_path, run_dir=str(tmp_path), count=2, sampling_steps=2))
    assert "gan: the shipped one learned MAESTRO" in text and "data/models/README.md" in text
    assert "diffusion: data/models/diffusion.safetensors" in text
    assert "gan: 0 images" not in text


def test_07_refuses_in_one_line(images, tmp_path):
    few = tmp_path / "images" / "diffusion" / "train"
    few.mkdir(parents=True)
    one = sorted((images / "images" / "diffusion" / "train").glob("*.png"))[0]
    shutil.copy(one, few)
    for parameters, expected in (
            ({"sample_dir": str(one.parent)}, "in subfolders"),
            ({"model_dir": str(tmp_path / "none")}, "04_load_model"),
            ({"run_dir": str(tmp_path)}, "too few to compare; make more with notebook 01")):
        message = refused("07", tmp_path, **{"run_dir": str(images)} | parameters)
        assert expected in message and "\n" not in message


# ---------------------------------------------------------------- 08

PIECE = ROOT / "data" / "midi" / "002_nocturne_e-flat-major.mid"  # what 08 takes by itself
QUICK = {"sampling_steps": 2, "bars": 2}


@pytest.mark.parametrize("mode", ["continue", "infill", "vary", "long", "accompany"])
def test_08_writes_midi_image_and_sound(mode, models, tmp_path):
    notebook = run("08", tmp_path, run_dir=str(tmp_path), model_dir=str(models), mode=mode, **QUICK)
    folder = tmp_path / "midi" / "complete"
    made = sorted(path.suffix for path in folder.iterdir())
    assert made == [".mid", ".png", ".wav"] + [".wav"] * (mode != "long")
    assert re.search(r"\d new notes in \d+ bars", said(notebook))
    after = pianoroll.read_midi(next(folder.glob("*.mid"))).pixels
    if mode in ("continue", "infill"):  # most of the piece is as it was
        before = pianoroll.read_midi(PIECE).pixels
        width = before.shape[1]
        assert (before != after[:, :width]).any(axis=0).sum() <= 32 and after.shape[1] >= width


def test_08_shows_its_examples_only_where_no_file_is_given(models, tmp_path):
    lesson, own = (
        said(run("08", tmp_path, run_dir=str(tmp_path), model_dir=str(models), midi_file=midi,
                 **QUICK)) for midi in ("", str(PIECE)))
    rows = re.findall(r"^ +(\d\.\d\d) +(\d\.\d\d) +\d", lesson, re.M)
    assert [weight for weight, _ in rows] == ["1.00", "0.30", f"{harmony.OUTSIDE:.2f}", "0.00"]
    assert rows[-1][1] == "1.00", "with weight 0 there are chord tones alone"
    assert "weight" not in own and "the examples are skipped" in own


def test_08_changes_nothing_at_strength_0_and_no_result_replaces_another(models, tmp_path):
    same, other = (
        run("08", tmp_path, run_dir=str(tmp_path), model_dir=str(models), mode="vary",
            midi_file=str(PIECE), strength=strength, first_bar=3, **QUICK)
        for strength in (0.0, 1.0))
    made = sorted((tmp_path / "midi" / "complete").glob("*.mid"))
    assert [("strength-0_" in path.name, "bars-3-4" in path.name) for path in made] == [
        (True, True), (False, True)]
    zero, one, piece = (mido.MidiFile(path).tracks for path in (*made, PIECE))
    assert zero == piece != one
    assert "is replaced" not in said(same) + said(other)


@pytest.mark.parametrize(("parameters", "expected"), [
    ({"mode": "prolong"}, "choose one of continue"), ({"midi_file": "none.mid"}, "no such file"),
    ({"mode": "infill", "bars": 999}, "infill cannot replace bars 1 to 999"),
    ({"model_dir": "nowhere"}, "02_train_diffusion")])
def test_08_refuses_in_one_line(parameters, expected, models, tmp_path):
    parameters = {"model_dir": str(models)} | parameters
    message = refused("08", tmp_path, run_dir=str(tmp_path), **parameters)
    assert expected in message and "\n" not in message
