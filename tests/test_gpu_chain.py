"""What `make gpu-test` does around the chain: its figures, its tolerances, its exit status."""

import csv
import json

import gpu_chain
import pytest
import torch


@pytest.fixture
def run(tmp_path):
    """A run's two tables."""
    tables = {"models/diffusion_log.csv": [["step", "loss", "pictures_per_s"],
                                           *[[i, 8 - i, 500] for i in range(8)]],
              "report/metrics.csv": [["set", "frechet", "overlap"], ["diffusion", 5, 0.9],
                                     ["gan", 20, 0.6], ["train real", 1, 0.95]]}
    for name, rows in tables.items():
        (tmp_path / name).parent.mkdir()
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return tmp_path


def test_figures_are_those_of_the_run(run):
    assert gpu_chain.figures_of(run) == {
        "loss, quarter 1": 7.5, "loss, quarter 2": 5.5, "loss, quarter 3": 3.5,
        "loss, quarter 4": 1.5, "seconds for a thousand pictures": 2.0,
        "frechet of diffusion": 5.0, "overlap of diffusion": 0.9, "frechet of gan": 20.0,
        "overlap of gan": 0.6}


def test_a_figure_outside_its_tolerance_is_named(run):
    stored = gpu_chain.figures_of(run)
    assert gpu_chain.differences(stored | {"loss, quarter 4": 1.57}, stored, False) == []
    (line,) = gpu_chain.differences(stored | {"loss, quarter 4": 1.6}, stored, False)
    assert line.startswith("loss, quarter 4: 1.6, stored 1.5")
    (line,) = gpu_chain.differences(stored | {"frechet of gan": 31}, stored, False)
    assert line.startswith("frechet of gan")
    del stored["overlap of gan"]
    found = gpu_chain.figures_of(run)
    assert gpu_chain.differences(found, stored, False) == ["overlap of gan: not stored"]


def test_figures_of_a_cpu_are_a_floor(run):
    floor = gpu_chain.figures_of(run)
    better = floor | {"loss, quarter 4": 0.1, "frechet of diffusion": 1.0, "overlap of gan": 0.99}
    assert gpu_chain.differences(better, floor, True) == []
    assert len(gpu_chain.differences(better, floor, False)) == 3
    (line,) = gpu_chain.differences(floor | {"overlap of diffusion": 0.5}, floor, True)
    assert line == "overlap of diffusion: 0.5, stored 0.9, may be worse by a factor of 1.1"


def test_a_run_on_a_cpu_becomes_the_floor(run, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_chain, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_chain, "STORED", tmp_path / "figures.json")
    assert gpu_chain.main(["--floor", str(run)]) == 0
    stored = json.loads(gpu_chain.STORED.read_text())
    assert stored["device"] == gpu_chain.CPU and stored["figures"] == gpu_chain.figures_of(run)


def test_speed_and_gan_are_compared_on_like_hardware_alone(run):
    found = gpu_chain.figures_of(run)
    assert gpu_chain.comparable(found, True, True) == found
    lacking = set(found) - set(gpu_chain.comparable(found, False, False))
    assert lacking == {"seconds for a thousand pictures", "frechet of gan", "overlap of gan"}


def test_without_a_gpu_it_says_so_with_a_status_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_chain.main([]) == gpu_chain.NO_GPU
    assert "no GPU" in capsys.readouterr().out


def test_on_a_gpu_it_runs_the_chain_and_compares(run, monkeypatch, tmp_path, capsys):
    def chain_of(folder, parameters):
        assert parameters["02.size"] == "base" and parameters["03.minutes"] == 1.0
        for path in run.glob("*/*.csv"):
            copy = gpu_chain.Path(folder) / path.relative_to(run)
            copy.parent.mkdir()
            copy.write_bytes(path.read_bytes())

    monkeypatch.setattr(gpu_chain.chain, "run_chain", chain_of)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu_chain, "tensorflow_has_gpu", lambda: False)
    monkeypatch.setattr(gpu_chain, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_chain, "STORED", tmp_path / "figures.json")
    assert gpu_chain.main([]) == gpu_chain.NOTHING_STORED
    assert gpu_chain.main(["--store"]) == 0
    assert gpu_chain.main([]) == 0
    assert "nothing differs from the figures of a GPU" in capsys.readouterr().out
    stored = json.loads(gpu_chain.STORED.read_text())
    stored["figures"]["overlap of diffusion"] = 0.7
    stored["figures"]["frechet of gan"] = 9e9  # from the CPU: how far it came depends on the clock
    gpu_chain.STORED.write_text(json.dumps(stored))
    assert gpu_chain.main([]) == 1
    assert "overlap of diffusion: 0.9, stored 0.7" in capsys.readouterr().out
