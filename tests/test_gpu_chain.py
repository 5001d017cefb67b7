"""What `make gpu-test` does around the chain: its figures, its tolerances, its exit status."""

import csv
import json
import shutil

import gpu_chain
import nbformat
import pytest
import torch

from real_midi import ROOT
from utils import corpus, unet


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's two tables, with a stand-in for the loss of its network."""
    tables = {"models/diffusion_log.csv": [["step", "loss", "pictures_per_s"],
                                           *[[i, 8 - i, 500] for i in range(8)]],
              "report/metrics.csv": [["set", "frechet", "overlap", "memorised_share"],
                                     ["diffusion", 5, 0.9, 0.0], ["gan", 20, 0.6, 0.1],
                                     ["train real", 1, 0.95, ""]]}
    folder = tmp_path / "a run"
    for name, rows in tables.items():
        (folder / name).parent.mkdir(parents=True)
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    monkeypatch.setattr(gpu_chain, "held_out_loss", lambda _: 4.0)
    monkeypatch.setattr(gpu_chain, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_chain, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(gpu_chain, "STORED", tmp_path / "figures.json")
    monkeypatch.setattr(gpu_chain, "recipe", lambda: "this code")
    return folder


@pytest.fixture
def gpu(run, monkeypatch):
    """A stand-in for a GPU, on which the chain gives `run`. Holds the parameters it was given."""
    given = []

    def chain_of(folder, parameters):
        given.append(parameters)
        shutil.copytree(run, folder, dirs_exist_ok=True)

    monkeypatch.setattr(gpu_chain.chain, "run_chain", chain_of)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu_chain, "tensorflow_has_gpu", lambda: False)
    monkeypatch.setattr(gpu_chain, "cpu_name", lambda: "its CPU")
    return given


def test_figures_are_those_of_the_run(run):
    assert gpu_chain.figures_of(run, 256) == {
        "held-out loss": 4.0, "seconds a step": 256 / 500, "frechet of diffusion": 5.0,
        "overlap of diffusion": 0.9, "memorised share of diffusion": 0.0, "frechet of gan": 20.0,
        "overlap of gan": 0.6, "memorised share of gan": 0.1}


def test_a_figure_outside_its_tolerance_is_named(run):
    stored = gpu_chain.figures_of(run, 256)
    assert gpu_chain.differences(stored | {"held-out loss": 4.19}, stored, False) == []
    for name, value in {"held-out loss": 4.21, "frechet of gan": 31.0, "overlap of gan": 0.5,
                        "memorised share of diffusion": 0.11, "seconds a step": 0.8}.items():
        (line,) = gpu_chain.differences(stored | {name: value}, stored, False)
        assert line.startswith(f"{name}: {value:.4g}, stored {stored[name]:.4g}, allowed")
    found = gpu_chain.figures_of(run, 256)
    del stored["overlap of gan"]
    assert gpu_chain.differences(found, stored, False) == ["overlap of gan: not stored"]


def test_figures_of_a_cpu_are_a_floor(run):
    floor = gpu_chain.figures_of(run, 256) | {"memorised share of gan": 0.5}
    better = floor | {"held-out loss": 0.1, "frechet of diffusion": 1.0, "overlap of gan": 0.99,
                      "memorised share of gan": 0.0}
    assert gpu_chain.differences(better, floor, True) == []
    assert len(gpu_chain.differences(better, floor, False)) == 4
    (line,) = gpu_chain.differences(floor | {"overlap of diffusion": 0.5}, floor, True)
    assert line == "overlap of diffusion: 0.5, stored 0.9, allowed 0.8182 to inf"


def test_an_untrained_network_has_a_higher_held_out_loss(tmp_path, builtin_midi):
    """Its logits are those of single pixels; the shipped weights know what goes together."""
    corpus.convert(builtin_midi[0].parent, tmp_path, max_files=20, jobs=1)
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(ROOT / "data/models/diffusion.safetensors", models)
    network = unet.load(models / "diffusion.safetensors", "cpu")
    trained = gpu_chain.held_out_loss(tmp_path)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    unet.save(network, models / "diffusion.safetensors")
    untrained = gpu_chain.held_out_loss(tmp_path)
    assert gpu_chain.differences({"held-out loss": untrained}, {"held-out loss": trained}, True)


def test_speed_and_gan_are_compared_on_like_hardware_alone(run):
    found = gpu_chain.figures_of(run, 256)
    assert gpu_chain.comparable(found, True, True) == found
    assert set(found) - set(gpu_chain.comparable(found, False, False)) == {
        "seconds a step", "frechet of gan", "overlap of gan", "memorised share of gan"}


def test_without_a_gpu_it_says_so_with_a_status_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_chain.main([]) == gpu_chain.NO_GPU
    assert "no GPU" in capsys.readouterr().out


def test_a_floor_is_made_on_the_cpu_by_a_short_run(gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpu_chain.main(["--floor"]) == 0
    assert gpu_chain.os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert gpu == [gpu_chain.SHORT]
    assert json.loads(gpu_chain.STORED.read_text())["device"] == gpu_chain.CPU


def test_on_a_gpu_it_runs_the_chain_and_compares(gpu, capsys):
    assert gpu_chain.main([]) == gpu_chain.NOTHING_STORED and not gpu
    assert gpu_chain.main(["--store"]) == 0
    assert gpu[0]["02.size"] == "base" and gpu[0]["03.minutes"] == 1.0
    assert gpu_chain.main([]) == 0
    said = capsys.readouterr().out
    assert "a GPU beside its CPU" in said and "the figures of a GPU (its CPU)" in said
    assert not list(gpu_chain.RUNS.iterdir()), "a run that went well is not kept"
    stored = json.loads(gpu_chain.STORED.read_text())
    stored["figures"]["overlap of diffusion"] = 0.7
    stored["figures"]["frechet of gan"] = 9e9  # from the CPU: how far it came depends on the clock
    gpu_chain.STORED.write_text(json.dumps(stored))
    assert gpu_chain.main([]) == 1
    assert "overlap of diffusion: 0.9, stored 0.7" in capsys.readouterr().out


def test_figures_of_other_code_are_refused_before_anything_runs(gpu, monkeypatch, capsys):
    assert gpu_chain.main(["--store"]) == 0
    monkeypatch.setattr(gpu_chain, "recipe", lambda: "other code")
    assert gpu_chain.main([]) == gpu_chain.NOTHING_STORED and len(gpu) == 1
    assert "made by other code" in capsys.readouterr().out


def test_a_run_that_fails_is_kept_with_its_traceback(gpu, monkeypatch, capsys):
    def fail(folder, _):
        (folder / "half.txt").write_text("made")
        assert folder is None, "an odd failure"

    monkeypatch.setattr(gpu_chain.chain, "run_chain", fail)
    assert gpu_chain.main(["--store"]) == gpu_chain.FAILED
    (kept,) = gpu_chain.RUNS.iterdir()
    assert (kept / "half.txt").is_file() and str(kept) in capsys.readouterr().out
    text = (kept / "traceback.txt").read_text("utf-8")
    assert "Traceback" in text and "an odd failure" in text


@pytest.fixture
def code(tmp_path):
    """A copy of what decides the figures."""
    for folder in ("notebooks", "utils"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def rewritten(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_recipe_changes_with_the_loss_and_not_with_comments_or_outputs(code):
    before = gpu_chain.recipe(code)
    assert before == gpu_chain.recipe(ROOT)
    path = next((code / "notebooks").glob("02_*.ipynb"))
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "def loss_of" in cell.source:
            cell.source, cell.outputs = cell.source + "  # a remark", []
    nbformat.write(notebook, path)
    with (code / "utils" / "unet.py").open("a") as file:
        file.write("# a remark\n")
    assert gpu_chain.recipe(code) == before
    rewritten(path, "0.2 * 128", "0.3 * 128")
    after = gpu_chain.recipe(code)
    assert after != before
    rewritten(code / "utils" / "diffusion.py", "SAMPLING_STEPS = 50", "SAMPLING_STEPS = 40")
    assert gpu_chain.recipe(code) != after
