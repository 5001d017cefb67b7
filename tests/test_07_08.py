"""Notebooks 07 and 08 from end to end, at a small size, and what 07 measures."""

import re
import shutil
from pathlib import Path

import mido
import numpy as np
import pytest
from notebook_code import definitions, executed, refused, rows_of

from chain import NOTEBOOKS
from real_midi import ROOT
from utils import corpus, files, harmony, metrics, pianoroll, unet

# What 07 measures in the small run below. Tolerance: a thousandth of each figure; newer SciPy and
# NumPy may move the last digits, a changed definition moves more.
STORED = {
    ("held-out real", "frechet"): 7.724949, ("held-out real", "overlap"): 0.925952,
    ("train real", "kld"): 0.026016, ("shuffled columns", "frechet"): 90.518918,
    ("random notes", "value_overlap"): 0.529492, ("equally-loud", "frechet"): 53.858298,
    ("equally-loud", "frechet_error"): 2.188695, ("copied", "diversity"): 3.959779,
    ("shuffled", "memorised_share"): 0.0, ("copied", "memorised_share"): 1.0,
    ("copied", "similarity"): 1.0,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run with the images of a few pieces."""
    folder = tmp_path_factory.mktemp("run")
    corpus.convert("builtin", folder, max_files=24, jobs=1)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, network):
    """The folder of an untrained network."""
    return unet.save(network, tmp_path_factory.mktemp("m") / "diffusion.safetensors").parent


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
    text = executed("07", images, sample_dir=str(folder / "samples"))
    return text, {row["set"]: row for row in rows_of(images / "report" / "metrics.csv")}


def test_07_measures_what_it_measured_before_and_says_what_that_means(report, images):
    text, rows = report
    for (name, column), expected in STORED.items():
        assert float(rows[name][column]) == pytest.approx(expected, rel=1e-3), (name, column)
    assert len(rows) == 7 and len({row["images"] for row in rows.values()}) == 1
    assert all(np.isfinite(float(value)) for row in rows.values()
               for name, value in row.items() if name != "set" and value)
    features = rows_of(images / "report" / "features.csv")
    assert [row["set"] for row in features] == [name for name in rows for _ in metrics.FEATURES]
    assert (images / "figures" / "metrics.png").stat().st_size > 10_000
    assert re.search(r"equally-loud:\n  velocity spread too low: [01]\.", text)
    assert re.search(r"copied: .*\n  But 100% of its images", text)
    nearest = min(("equally-loud", "shuffled", "copied"), key=lambda n: float(rows[n]["frechet"]))
    assert f"Closest to real music: {nearest}" in text
    assert not re.search(r"\nshuffled: nearer to real music than [^.]*shuffled columns", text)


def test_07_works_with_two_images_and_finds_copies_with_nothing_held_out(tmp_path):
    corpus.convert("builtin", tmp_path, max_files=3, jobs=1)
    samples = samples_in(tmp_path / "mine", tmp_path, 2)
    for folder in (samples / "shuffled", *(tmp_path / "images").glob("*/valid")):
        shutil.rmtree(folder)
    text = executed("07", tmp_path, sample_dir=str(samples))
    assert "with caution" in text and "equally-loud: nothing clear." in text
    assert "stand in for new music" in text
    assert re.search(r"copied: similarity 1.00, .*; 100% copied", text)


def test_07_compares_this_runs_model_with_the_shipped_one_and_says_what_each_learned(models,
                                                                                     tmp_path):
    """Samples in the run's folder that another model made are left out."""
    corpus.convert("builtin", tmp_path, max_files=12, jobs=1)
    unet.save(unet.load(models / "diffusion.safetensors"),
              tmp_path / "models" / "diffusion.safetensors", steps=1234, pictures=999)
    blank = pianoroll.PianoRoll(np.zeros((128, 128), np.uint8))
    pianoroll.save_png(blank, tmp_path / "samples" / "diffusion" / "0.png")
    files.write_json(tmp_path / "samples" / "generated_by.json", {"diffusion": "other.safetensors"})
    text = executed("07", tmp_path, count=2, sampling_steps=2, max_images=5)
    assert "/models/diffusion.safetensors, trained for 1,234 steps" in text
    assert "diffusion, shipped: data/models/diffusion.safetensors, trained for " in text
    assert f"the 1 images in {tmp_path.as_posix()}/samples are by other.safetensors: they" in text
    assert "diffusion: 0 images from notebook 04, 2 generated now" in text
    assert re.search(r"learned from 999 images, \S+ holds (\d+): copies of other", text)
    assert re.search(r": 5 of \d+ training images", text)
    assert {"diffusion", "diffusion, shipped"} < {
        row["set"] for row in rows_of(tmp_path / "report" / "metrics.csv")}


def test_07_compares_no_shipped_gan_with_music_that_it_did_not_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lesson = definitions(NOTEBOOKS["07"], {"Path": Path, "run": tmp_path, "model_dir": "",
                                           "builtin": False})
    assert set(lesson["models_to_evaluate"]()) == {"diffusion", "gan"}
    lesson["builtin"] = True
    assert set(lesson["models_to_evaluate"]()) == {"diffusion"}
    assert "gan: the shipped one learned MAESTRO" in capsys.readouterr().out


def test_07_refuses_in_one_line(images, tmp_path):
    one = next((images / "images" / "diffusion" / "train").glob("*.png"))
    (tmp_path / "images" / "diffusion" / "train").mkdir(parents=True)
    shutil.copy(one, tmp_path / "images" / "diffusion" / "train")
    for run_dir, parameters, expected in (
            (images, {"sample_dir": str(one.parent)}, "in subfolders"),
            (images, {"model_dir": str(tmp_path / "none")}, "04_load_model"),
            (tmp_path, {}, "too few to compare; make more with notebook 01")):
        assert expected in refused("07", run_dir, **parameters)


# ---------------------------------------------------------------- 08

PIECE = ROOT / "data" / "midi" / "002_nocturne_e-flat-major.mid"  # what 08 takes by itself
QUICK = {"sampling_steps": 2, "bars": 2}


@pytest.mark.parametrize("mode", ["continue", "infill", "long", "accompany"])
def test_08_writes_midi_image_and_sound_and_shows_its_examples(mode, models, tmp_path):
    text = executed("08", tmp_path, model_dir=str(models), mode=mode, **QUICK)
    folder = tmp_path / "midi" / "complete"
    made = sorted(path.suffix for path in folder.iterdir())
    assert made == [".mid", ".png", ".wav"] + [".wav"] * (mode != "long")
    assert re.search(r"\d new notes in \d+ bars", text)
    rows = re.findall(r"^ +(\d\.\d\d) +(\d\.\d\d) +\d", text, re.M)
    assert [weight for weight, _ in rows] == ["1.00", "0.30", f"{harmony.OUTSIDE:.2f}", "0.00"]
    assert rows[-1][1] == "1.00", "with weight 0 there are chord tones alone"


def test_08_changes_nothing_at_strength_0_and_no_result_replaces_another(models, tmp_path):
    for strength in (0.0, 1.0):
        text = executed("08", tmp_path, model_dir=str(models), mode="vary", midi_file=str(PIECE),
                        strength=strength, first_bar=3, **QUICK)
        assert "is replaced" not in text and "the examples are skipped" in text
    made = sorted((tmp_path / "midi" / "complete").glob("*.mid"))
    assert [("strength-0_" in path.name, "bars-3-4" in path.name) for path in made] == [
        (True, True), (False, True)]
    zero, one, piece = (mido.MidiFile(path).tracks for path in (*made, PIECE))
    assert zero == piece != one


@pytest.mark.parametrize(("parameters", "expected"), [
    ({"mode": "prolong"}, "choose one of continue"),
    ({"model_dir": "nowhere"}, "02_train_diffusion")])
def test_08_refuses_in_one_line(parameters, expected, models, tmp_path):
    assert expected in refused("08", tmp_path, **{"model_dir": str(models)} | parameters)
