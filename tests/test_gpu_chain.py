"""What `make gpu-test` does around the chain: its figures, its tolerances, its exit status."""

import json
import shutil

import gpu_chain
import nbformat
import pytest
import torch

from real_midi import ROOT
from utils import corpus, unet

FIGURES = {"held-out loss": 4.0, "seconds a step": 256 / 500, "frechet of diffusion": 5.0,
           "overlap of diffusion": 0.9, "memorised share of diffusion": 0.0, "frechet of gan": 20.0,
           "overlap of gan": 0.6, "memorised share of gan": 0.1}
TABLES = {"models/diffusion_log.csv": "step,loss,pictures_per_s\n" + "0,8,500\n" * 8,
          "report/metrics.csv": "set,frechet,overlap,memorised_share\ndiffusion,5,0.9,0.0\n"
                                "gan,20,0.6,0.1\ntrain real,1,0.95,\n"}


def write_tables(folder):
    """The tables of a run that came to `FIGURES`."""
    for name, text in TABLES.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A stand-in for a GPU and for the chain there. Holds the parameters that it was given."""
    given = []
    for name, value in {
            "RUNS": tmp_path / "runs", "STORED": tmp_path / "figures.json",
            "held_out_loss": lambda _: 4.0, "recipe": lambda: "this code",
            "tensorflow_has_gpu": lambda: False}.items():
        monkeypatch.setattr(gpu_chain, name, value)
    monkeypatch.setattr(gpu_chain.bench, "machine", lambda: "a CPU, 8 cores")
    monkeypatch.setattr(gpu_chain.chain, "run_chain", lambda folder, parameters: (
        given.append(parameters), write_tables(folder)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    return given


def test_a_figure_outside_its_tolerance_is_named():
    def said(change, floor=False):
        return gpu_chain.differences(FIGURES | change, FIGURES, floor)

    assert said({"held-out loss": 4.19}) == []
    for name, value in {"held-out loss": 4.21, "frechet of gan": 31.0, "overlap of gan": 0.5,
                        "memorised share of diffusion": 0.11, "seconds a step": 0.8}.items():
        (line,) = said({name: value})
        assert line.startswith(f"{name}: {value:.4g}, stored {FIGURES[name]:.4g}, allowed")
    assert said({"another": 1.0}) == ["another: not stored"]
    better = {"held-out loss": 0.1, "frechet of diffusion": 1.0, "overlap of gan": 0.99,
              "memorised share of gan": -0.1}
    assert said(better, floor=True) == [] and len(said(better)) == 4
    assert said({"overlap of diffusion": 0.5}, floor=True) == [
        "overlap of diffusion: 0.5, stored 0.9, allowed 0.8182 to inf"]


def test_an_untrained_network_has_a_higher_held_out_loss(tmp_path, builtin_midi):
    """Its logits are those of single pixels; the shipped weights know what goes together."""
    corpus.convert(builtin_midi[0].parent, tmp_path, max_files=20, jobs=1)
    (tmp_path / "models").mkdir()
    path = shutil.copy(ROOT / "data/models/diffusion.safetensors", tmp_path / "models")
    network = unet.load(path, "cpu")
    trained = gpu_chain.held_out_loss(tmp_path)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    unet.save(network, path)
    assert gpu_chain.held_out_loss(tmp_path) > 1.05 * trained


def test_without_a_gpu_it_says_so_and_a_floor_is_made_on_the_cpu_by_a_short_run(gpu, monkeypatch,
                                                                                capsys):
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert gpu_chain.main([]) == gpu_chain.NO_GPU and "no GPU" in capsys.readouterr().out
        assert gpu_chain.main(["--floor"]) == 0 and gpu == [gpu_chain.SHORT]
        assert gpu_chain.os.environ["CUDA_VISIBLE_DEVICES"] == ""
    stored = json.loads(gpu_chain.STORED.read_text())
    assert stored["device"] == gpu_chain.CPU
    assert stored["figures"] == FIGURES | {"seconds a step": 8 / 500}
    assert gpu_chain.main([]) == 0, "the GPU is compared with the floor"


def test_on_a_gpu_it_runs_the_chain_and_compares_with_what_the_same_code_gave(gpu, monkeypatch,
                                                                              capsys):
    assert gpu_chain.main([]) == gpu_chain.NOTHING_STORED and not gpu
    assert gpu_chain.main(["--store"]) == 0
    assert gpu[0]["02.size"] == "base" and gpu[0]["03.minutes"] == 1.0
    assert gpu_chain.main([]) == 0
    said = capsys.readouterr().out
    assert "a GPU of a CPU, 8 cores" in said and "the figures of a GPU (a CPU)" in said
    assert not list(gpu_chain.RUNS.iterdir()), "a run that went well is not kept"
    stored = json.loads(gpu_chain.STORED.read_text())
    stored["figures"]["overlap of diffusion"] = 0.7
    stored["figures"]["frechet of gan"] = 9e9  # from the CPU: how far it came depends on the clock
    gpu_chain.STORED.write_text(json.dumps(stored))
    assert gpu_chain.main([]) == 1
    assert "overlap of diffusion: 0.9, stored 0.7" in capsys.readouterr().out
    gpu_chain.STORED.write_text(json.dumps(stored | {"device": "another GPU", "figures": FIGURES | {
        "seconds a step": 9e9}}))
    assert gpu_chain.main([]) == 0, "the speed of another GPU is not compared"
    monkeypatch.setattr(gpu_chain, "recipe", lambda: "other code")
    assert gpu_chain.main([]) == gpu_chain.NOTHING_STORED and len(gpu) == 4


def test_a_run_that_fails_is_kept_with_its_traceback(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu_chain.chain, "run_chain", lambda *_: 1 / 0)
    assert gpu_chain.main(["--store"]) == gpu_chain.FAILED
    (kept,) = gpu_chain.RUNS.iterdir()
    assert str(kept) in capsys.readouterr().out
    assert "ZeroDivisionError" in (kept / "traceback.txt").read_text("utf-8")


def test_the_recipe_changes_with_the_code_and_not_with_comments_or_outputs(tmp_path):
    for folder in ("notebooks", "utils"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    path, module = next((tmp_path / "notebooks").glob("02_*")), tmp_path / "utils" / "diffusion.py"
    before, notebook = gpu_chain.recipe(tmp_path), nbformat.read(path, 4)
    for cell in notebook.cells[-10:]:
        if cell.cell_type == "code":
            cell.source, cell.outputs = cell.source + "  # a remark", []
    nbformat.write(notebook, path)
    module.write_text(module.read_text() + "# a remark\n")
    assert gpu_chain.recipe(tmp_path) == before == gpu_chain.recipe(ROOT)
    for changed, old, new in ((path, "0.2 * 128", "0.3 * 128"),
                              (module, "SAMPLING_STEPS = 50", "SAMPLING_STEPS = 40")):
        changed.write_text(changed.read_text().replace(old, new))
        assert gpu_chain.recipe(tmp_path) != before
        before = gpu_chain.recipe(tmp_path)
