"""Checkpoints, logs and time budgets of both trainings."""

import csv
import time
from pathlib import Path

import numpy as np
import pytest

from utils import training
from utils.files import MusicError
from utils.training import Training


class Walk:
    """A training in miniature: a state that depends on its past, and noise that on the step."""

    def __init__(self, folder, about=None, **given):
        self.weights, self.film = np.zeros(3), []
        self.training = Training(folder / "state.npz", folder / "log.csv", save_every=4,
                                 **{"train_steps": 12} | given)
        self.training.begin({"size": (96, 192)} | (about or {}), self.save, self.load)

    def save(self):
        return {"weights": self.weights, "film": self.film}

    def load(self, state):
        self.weights, self.film = state["weights"], state["film"]

    def run(self, stop_at=None, loss=None):
        for step in self.training.steps():
            if step == stop_at:
                raise KeyboardInterrupt
            self.weights = 0.9 * self.weights + np.random.default_rng(step).normal(size=3)
            self.film.append(step)
            self.training.record(loss=(self.weights**2).sum() if loss is None else loss, other=1.5)
        return self


def read_log(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stop_at", [4, 7, 11])
def test_a_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path, stop_at):
    whole = Walk(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        Walk(tmp_path / "ours").run(stop_at)
    ours = Walk(tmp_path / "ours", resume=True)
    assert ours.training.step == stop_at // 4 * 4
    ours.run()
    assert np.array_equal(ours.weights, whole.weights) and ours.film == whole.film == [*range(12)]
    losses = [[row["loss"] for row in read_log(tmp_path / name)] for name in ("ours", "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_the_log_holds_every_step_and_number(tmp_path):
    walk = Walk(tmp_path).run()
    rows = read_log(tmp_path)
    assert list(rows[0]) == ["step", "loss", "other", "pictures_per_s"]
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [float(row["loss"]) for row in rows] == walk.training.column("loss").tolist()
    assert walk.training.column("other").tolist() == [1.5] * 12


def test_the_checkpoint_of_an_earlier_training_is_kept(tmp_path, capsys):
    earlier = Walk(tmp_path).run()
    later = Walk(tmp_path)
    assert later.training.step == 0 and not (tmp_path / "state.npz").exists()
    assert "state.previous.npz" in capsys.readouterr().out
    kept = training.read_arrays(tmp_path / "state.previous.npz")
    assert kept["step"] == 12 and np.array_equal(kept["weights"], earlier.weights)


def test_other_settings_are_refused_by_name_and_touch_nothing(tmp_path):
    Walk(tmp_path, {"seed": 3}).run()
    before = (tmp_path / "state.npz").read_bytes()
    with pytest.raises(MusicError, match=r"state\.npz: .* another size, seed; give the same"):
        Walk(tmp_path, {"size": (1, 2), "seed": 4}, resume=True)
    assert (tmp_path / "state.npz").read_bytes() == before


@pytest.mark.parametrize("content", [b"no checkpoint", b"", "of another program", "lacks a part"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    Walk(tmp_path).run()
    path = tmp_path / "state.npz"
    if content == "of another program":
        np.savez(path, weights=np.zeros(3))
    elif content == "lacks a part":
        np.savez(path, **{name: value for name, value in np.load(path).items() if name != "film"})
    else:
        path.write_bytes(content)
    with pytest.raises(MusicError, match=r"state\.npz: damaged, .*set resume to False"):
        Walk(tmp_path, resume=True)


def test_a_resumed_training_takes_more_steps_and_refuses_fewer(tmp_path):
    Walk(tmp_path).run()
    with pytest.raises(MusicError, match="train_steps of 12 or more"):
        Walk(tmp_path, resume=True, train_steps=8)
    assert Walk(tmp_path, resume=True, train_steps=16).run().film == [*range(16)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_no_number_keeps_the_checkpoint_and_names_the_remedy(tmp_path, bad):
    with pytest.raises(KeyboardInterrupt):
        Walk(tmp_path).run(stop_at=5)
    before = (tmp_path / "state.npz").read_bytes()
    walk = Walk(tmp_path, resume=True, remedy="lower learning_rate")
    with pytest.raises(MusicError, match="lower learning_rate; set resume to True"):
        walk.run(loss=bad)
    assert (tmp_path / "state.npz").read_bytes() == before


def test_weights_that_are_no_numbers_keep_the_checkpoint(tmp_path):
    walk = Walk(tmp_path).run()
    before = (tmp_path / "state.npz").read_bytes()
    walk.weights[1] = np.nan
    with pytest.raises(MusicError, match="a weight is not a number after step 12"):
        walk.training.save()
    assert (tmp_path / "state.npz").read_bytes() == before


def test_minutes_become_the_steps_that_fit():
    calls = []

    def one_step():
        calls.append(1)
        time.sleep(0.2 if len(calls) == 1 else 0.01)  # the first is slow and does not count

    assert 30 < training.steps_within(0.01, one_step) <= 60
    assert training.steps_within(0, one_step) == 4


def test_a_resumed_run_keeps_its_number_of_steps_and_the_settings_left_open(tmp_path):
    walk = Walk(tmp_path, {"share": 0.5}, train_steps=0, minutes=1e-9)
    assert walk.training.plan(lambda: time.sleep(0.001)) == 4
    assert walk.training.kept("share", 0.25) == 0.25
    walk.run()
    again = Training(tmp_path / "state.npz", tmp_path / "log.csv", minutes=9.0, resume=True)
    assert again.plan(pytest.fail) == 4
    assert again.kept("share", 0.25) == 0.5 and again.kept("unknown", 1) == 1


def test_without_a_number_of_steps_the_training_time_ends_it(tmp_path):
    walk = Walk(tmp_path, train_steps=0, minutes=1.2 / 60)
    for _ in walk.training.steps():
        time.sleep(0.1)
        walk.training.record(loss=1.0)
    assert 8 <= walk.training.step <= 12 and walk.training.seconds >= 1.2
    resumed = Walk(tmp_path, train_steps=0, minutes=1.2 / 60, resume=True)
    assert resumed.training.done >= 1 and not list(resumed.training.steps())


def test_pauses_and_saving_are_not_training_time(tmp_path):
    walk = Walk(tmp_path, train_steps=1)
    walk.training._save = lambda: time.sleep(0.3) or {}
    for _ in walk.training.steps():
        with walk.training.paused():
            time.sleep(0.3)
        walk.training.record(loss=1.0)
    walk.training.save()  # does not start the clock again
    seconds = walk.training.seconds
    time.sleep(0.01)
    assert walk.training.seconds == seconds < 0.2


def test_a_long_interval_between_checkpoints_is_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        Walk(tmp_path).run(stop_at=1)
    assert training.read_arrays(tmp_path / "state.npz")["step"] == 1


def test_the_other_processes_save_nothing(tmp_path):
    walk = Walk(tmp_path)
    walk.training.quiet = True
    walk.run()
    assert not list(tmp_path.iterdir())


def test_a_stop_ends_in_one_line_with_the_remedy(tmp_path):
    for stop_at, said in ((2, "stopped; run again"), (6, "stopped; set resume to True")):
        walk = Walk(tmp_path)
        with pytest.raises(MusicError, match=said), walk.training.explained():
            walk.run(stop_at)
    with (pytest.raises(MusicError, match=r"a process stopped \(ZeroDivisionError\); set resume"),
          walk.training.explained(processes=2)):
        raise ZeroDivisionError


def test_styles_share_a_batch(tmp_path):
    assert training.sources_of("", tmp_path, 7) == {"": (tmp_path, 7)}
    assert training.sources_of("one=runs/a:4, two=b:3", tmp_path, 7) == {
        "one": (Path("runs/a/images/diffusion/train"), 4),
        "two": (Path("b/images/diffusion/train"), 3)}


@pytest.mark.parametrize("styles", ["one", "one=RUN", "one=RUN:x", "one=RUN:6", "one=RUN:7, two",
                                    "one=RUN:7, two=RUN:0", "one=RUN:8, two=RUN:-1"])
def test_styles_that_fill_no_batch_are_refused(tmp_path, styles):
    with pytest.raises(MusicError, match=r"write name=run_dir:images.* 7 images in all"):
        training.sources_of(styles, tmp_path, 7)
