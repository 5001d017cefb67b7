"""Checkpoints, logs and time budgets of both trainings."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture
def stopped(tmp_path):
    """The folder of a training that was stopped at step 7, saved at step 4."""
    with pytest.raises(KeyboardInterrupt):
        Walk(tmp_path, {"seed": 3}).run(stop_at=7)
    return tmp_path


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(stopped, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    whole, ours = Walk(folder).run(), Walk(stopped, resume=True)
    assert ours.training.step == 4
    ours.run()
    assert np.array_equal(ours.weights, whole.weights) and ours.film == whole.film == [*range(12)]
    log = np.genfromtxt(stopped / "log.csv", delimiter=",", names=True)
    assert log.dtype.names == ("step", "loss", "other", "pictures_per_s")
    for name in ("step", "loss", "other"):
        assert np.array_equal(log[name], whole.training.column(name))
    assert whole.training.column("step").tolist() == [*range(1, 13)]


def test_the_checkpoint_of_an_earlier_training_is_kept(stopped, capsys):
    before = (stopped / "state.npz").read_bytes()
    assert Walk(stopped).training.step == 0 and not (stopped / "state.npz").exists()
    assert "state.previous.npz" in capsys.readouterr().out
    assert (stopped / "state.previous.npz").read_bytes() == before


def bad_weight(walk):
    walk.weights[1] = np.nan
    walk.training.save()


@pytest.mark.parametrize(("about", "given", "act", "said"), [
    ({"size": (1, 2), "seed": 4}, {}, Walk.run,
     r"state\.npz: trained with another size, seed; give the same parameters"),
    ({}, {"train_steps": 3}, Walk.run, "train_steps of 4 or more"),
    ({}, {}, lambda walk: walk.run(loss=np.nan), "lower learning_rate; set resume to True"),
    ({}, {}, lambda walk: walk.run(loss=np.inf), "lower learning_rate; set resume to True"),
    ({}, {}, bad_weight, "a weight is not a number after step 4: lower learning_rate")])
def test_what_is_refused_keeps_the_checkpoint(stopped, about, given, act, said):
    before = (stopped / "state.npz").read_bytes()
    with pytest.raises(MusicError, match=said):
        act(Walk(stopped, about, resume=True, remedy="lower learning_rate", **given))
    assert (stopped / "state.npz").read_bytes() == before


@pytest.mark.parametrize("content", [b"no checkpoint", b"", {"weights": np.zeros(3)}, "cut"])
def test_a_damaged_checkpoint_is_refused(stopped, content):
    path = stopped / "state.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(path.read_bytes()[:-100] if content == "cut" else content)
    with pytest.raises(MusicError, match=r"state\.npz: damaged, .*set resume to False"):
        Walk(stopped, resume=True)


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


@pytest.fixture
def clock(monkeypatch):
    """Time stands still, but for what is added to `clock.s`."""
    clock = SimpleNamespace(s=0)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock.s)
    return clock


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
    assert Walk(tmp_path, resume=True, train_steps=6).run().film == [*range(6)]


def test_training_time_ends_it_and_pauses_and_saving_are_none(tmp_path, clock):
    class SlowToSave(Walk):
        def save(self):
            clock.s += 100
            return super().save()

    walk = SlowToSave(tmp_path, train_steps=0, minutes=2)
    for _ in itertools.islice(walk.training.steps(), 100):
        clock.s += 10
        with walk.training.paused():
            clock.s += 100
        walk.training.record(loss=1.0)
    walk.training.save()  # does not start the clock again
    clock.s += 100
    assert walk.training.step == 12 and walk.training.seconds == 120
    resumed = Walk(tmp_path, train_steps=0, minutes=2, resume=True).training
    assert resumed.done == 1 and not list(resumed.steps())


def test_styles_share_a_batch(tmp_path):
    assert training.sources_of("", tmp_path, 7) == {"": (tmp_path, 7)}
    assert training.sources_of("one=runs/a:4, two=b:3", tmp_path, 7) == {
        "one": (Path("runs/a/images/diffusion/train"), 4),
        "two": (Path("b/images/diffusion/train"), 3)}


@pytest.mark.parametrize("styles", ["one", "one=RUN:x", "one=RUN:6", "one=RUN:7, two=RUN:0"])
def test_styles_that_fill_no_batch_and_shares_above_1_are_refused(tmp_path, styles):
    with pytest.raises(MusicError, match=r"write name=run_dir:images.* 7 images in all"):
        training.sources_of(styles, tmp_path, 7)
    training.shares_of_one(masked=0.0, ema_span=1.0, self_conditioning=-1)
    with pytest.raises(MusicError, match=r"masked is 1.5; choose 0 to 1"):
        training.shares_of_one(masked=1.5)
