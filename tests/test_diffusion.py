"""The diffusion maths against closed forms and `diffusers`; the loop of notebook 02, killed."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import diffusers
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from utils import diffusion, pianoroll, unet
from utils.files import MusicError

NOTEBOOK = ROOT / "notebooks" / "02_train_diffusion.ipynb"
STEPS = 1000
alpha_bars = st.floats(1e-4, 1 - 1e-4)
seeds = st.integers(0, 2**31)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def betas(alpha_bar):
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return (1 - alpha_bar / before).numpy()


# ---------------------------------------------------------------- schedule


@given(st.integers(1, 2000), st.floats(-6, 6))
@settings(max_examples=40, deadline=None)
def test_a_schedule_falls_within_0_and_1(steps, shift):
    alpha_bar = diffusion.cosine_schedule(steps, shift)
    assert alpha_bar.dtype == torch.float64 and alpha_bar.shape == (steps,)
    assert (alpha_bar > 0).all() and (alpha_bar < 1).all()
    assert (alpha_bar.diff() < 0).all()


def test_the_cosine_schedule_is_that_of_diffusers():
    theirs = diffusers.DDPMScheduler(STEPS, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert torch.allclose(diffusion.cosine_schedule(STEPS), theirs.double(), atol=1e-5)


def test_a_shift_moves_the_log_snr_by_itself():
    plain, shifted = diffusion.cosine_schedule(STEPS), diffusion.cosine_schedule(STEPS, -3)
    difference = diffusion.log_snr(shifted) - diffusion.log_snr(plain)
    assert torch.allclose(difference, torch.tensor(-3.0, dtype=torch.float64), atol=1e-4)


def test_a_schedule_needs_a_step():
    with pytest.raises(MusicError, match="0 steps"):
        diffusion.cosine_schedule(0)


@given(st.integers(1, 64), st.integers(1, 1500), seeds)
@settings(max_examples=60, deadline=None)
def test_stratified_timesteps_take_one_from_each_part(batch, steps, seed):
    t = diffusion.stratified_timesteps(batch, steps, torch.Generator().manual_seed(seed))
    assert t.dtype == torch.int64 and t.shape == (batch,)
    assert t.min() >= 0 and t.max() < steps
    part = torch.arange(batch) * steps / batch
    assert (t >= part.floor()).all() and (t <= (part + steps / batch).ceil()).all()


def test_stratified_timesteps_are_uniform_in_the_end():
    generator = torch.Generator().manual_seed(0)
    t = torch.cat([diffusion.stratified_timesteps(7, 10, generator) for _ in range(5000)])
    assert np.allclose(np.bincount(t, minlength=10) / len(t), 0.1, atol=0.005)


# ---------------------------------------------------------------- forward process, conversions


def test_noising_keeps_unit_variance():
    x_t = diffusion.q_sample(normal(0, 100_000), normal(1, 100_000), torch.tensor(0.3))
    assert abs(x_t.var().item() - 1) < 0.02


def test_noising_is_that_of_diffusers():
    alpha_bar = diffusion.cosine_schedule(STEPS)
    scheduler = diffusers.DDPMScheduler(STEPS, trained_betas=betas(alpha_bar))
    x_0, eps, t = normal(0, 4, 2, 8, 8), normal(1, 4, 2, 8, 8), torch.tensor([0, 10, 500, 998])
    ours = diffusion.q_sample(x_0, eps, diffusion.at(alpha_bar, t, x_0))
    assert torch.allclose(ours, scheduler.add_noise(x_0, eps, t), atol=1e-5)
    v = diffusion.v_from(x_0, eps, diffusion.at(alpha_bar, t, x_0))
    assert torch.allclose(v, scheduler.get_velocity(x_0, eps, t), atol=1e-5)


@given(alpha_bars, seeds)
@settings(max_examples=60, deadline=None)
def test_conversions_undo_each_other(a, seed):
    x_0, eps = normal(seed, 50), normal(seed + 1, 50)
    x_t, v = diffusion.q_sample(x_0, eps, a), diffusion.v_from(x_0, eps, a)
    for found, wanted in (
        (diffusion.x_0_from_v(x_t, v, a), x_0), (diffusion.eps_from_v(x_t, v, a), eps),
        (diffusion.x_0_from_eps(x_t, eps, a), x_0), (diffusion.eps_from_x_0(x_t, x_0, a), eps),
    ):
        assert torch.allclose(found, wanted, atol=1e-8)


@given(alpha_bars, seeds, st.sampled_from(["v", "eps"]))
@settings(max_examples=60, deadline=None)
def test_min_snr_weighs_the_same_error_the_same(a, seed, predicts):
    """A guess is weighed alike, whether its error is taken in x_0, v or eps."""
    x_0, eps, guess = normal(seed, 50), normal(seed + 1, 50), normal(seed + 2, 50)
    x_t, a = diffusion.q_sample(x_0, eps, a), torch.tensor(a, dtype=torch.float64)
    guess_eps = diffusion.eps_from_x_0(x_t, guess, a)
    error = {"x_0": guess - x_0, "eps": guess_eps - eps,
             "v": diffusion.v_from(guess, guess_eps, a) - diffusion.v_from(x_0, eps, a)}
    weighed = {name: diffusion.min_snr_weight(a, name) * e.square().mean()
               for name, e in error.items()}
    assert torch.allclose(weighed[predicts], weighed["x_0"], rtol=1e-6)


# ---------------------------------------------------------------- samplers against diffusers


def guess_of_x_0(x_t, t):
    """Stands for a network: depends on all it is given, and is no straight line."""
    return torch.tanh(x_t * 0.7 + t.view(-1, 1, 1, 1) / STEPS) - 0.3 * x_t.roll(1, -1)


def our_walk(sampler, x_t, alpha_bar, sampling_steps, seed=0):
    """Each x_t on our way."""
    way = []
    last = diffusion.sample(
        guess_of_x_0, x_t, alpha_bar, sampler, sampling_steps,
        generator=torch.Generator().manual_seed(seed), callback=lambda i, x, x_0: way.append(x))
    return [*way, last]


def assert_same_steps(ours, scheduler, times, **extra):
    """From each of our x_t, diffusers' step lands where our next x_t lies."""
    assert len(ours) == len(times) + 1
    for i, t in enumerate(times):
        x_0 = guess_of_x_0(ours[i], torch.full((len(ours[i]),), int(t)))
        theirs = scheduler.step(x_0, t, ours[i], **extra).prev_sample
        assert (theirs - ours[i + 1]).abs().max() < 1e-5, f"step {i}"


@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize("sampling_steps", [5, 25, 100])
def test_each_sampler_walks_as_in_diffusers(sampling_steps, shift):
    alpha_bar = diffusion.cosine_schedule(STEPS, shift)
    common = {"num_train_timesteps": STEPS, "trained_betas": betas(alpha_bar),
              "prediction_type": "sample"}
    x_t = normal(0, 2, 2, 8, 8)
    times = diffusion.spaced_timesteps(STEPS, sampling_steps)

    ddpm = diffusers.DDPMScheduler(**common, clip_sample=False, timestep_spacing="trailing")
    ddpm.set_timesteps(sampling_steps)
    assert ddpm.timesteps.tolist() == times
    assert_same_steps(our_walk("ddpm", x_t, alpha_bar, sampling_steps, seed=5), ddpm, times,
                      generator=torch.Generator().manual_seed(5))

    ddim = diffusers.DDIMScheduler(**common, clip_sample=False, timestep_spacing="trailing")
    ddim.set_timesteps(sampling_steps)
    assert_same_steps(our_walk("ddim", x_t, alpha_bar, sampling_steps), ddim, times)

    dpm = diffusers.DPMSolverMultistepScheduler(**common, final_sigmas_type="zero",
                                                solver_order=2)
    dpm.set_timesteps(timesteps=times)
    assert_same_steps(our_walk("dpm", x_t, alpha_bar, sampling_steps), dpm, dpm.timesteps)


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_a_perfect_guess_is_where_each_sampler_ends(sampler):
    x_0 = normal(3, 2, 2, 8, 8)
    found = diffusion.sample(lambda x_t, t: x_0, normal(0, 2, 2, 8, 8),
                             diffusion.cosine_schedule(STEPS), sampler, 10)
    assert torch.allclose(found, x_0, atol=1e-6)


def test_the_second_order_step_is_nearer_the_truth():
    """Data N(0, 0.5²): the best guess is known, and so is where each start should end."""
    alpha_bar, sigma = diffusion.cosine_schedule(STEPS), 0.5

    def best(x_t, t):
        a = diffusion.at(alpha_bar, t, x_t)
        return a**0.5 * sigma**2 / (a * sigma**2 + 1 - a) * x_t

    x_t = normal(0, 4, 1, 8, 8)
    error = {sampler: (diffusion.sample(best, x_t, alpha_bar, sampler, 20) - sigma * x_t
                       ).abs().mean() for sampler in ("ddim", "dpm")}
    assert error["dpm"] < 0.4 * error["ddim"]


def test_ancestral_sampling_draws_the_right_spread():
    alpha_bar = diffusion.cosine_schedule(STEPS)
    spreads = []
    diffusion.sample(lambda x_t, t: x_t * 0, normal(0, 64, 1, 16, 16), alpha_bar, "ddpm", STEPS,
                     generator=torch.Generator().manual_seed(1),
                     callback=lambda i, x, _: spreads.append(x.var().item()))
    wanted = (1 - alpha_bar.flip(0)).numpy()  # x_0 = 0: x_t is noise of variance 1 - alpha_bar
    assert np.abs(np.array(spreads) - wanted).max() < 0.06


def test_the_guess_is_clamped_to_the_limits():
    low, high = (torch.tensor(v).view(1, 2, 1, 1) for v in ([-0.5, -0.5], [0.25, 0.5]))
    found = diffusion.sample(lambda x_t, t: 10 * x_t, normal(0, 2, 2, 8, 8),
                             diffusion.cosine_schedule(STEPS), "ddim", 5, limits=(low, high))
    assert found.min() == -0.5 and found[:, 0].max() == 0.25 and found[:, 1].max() == 0.5


def test_a_seed_gives_one_result():
    ways = [our_walk("ddpm", normal(0, 2, 2, 8, 8), diffusion.cosine_schedule(STEPS), 10, seed)
            for seed in (1, 1, 2)]
    assert torch.equal(ways[0][-1], ways[1][-1])
    assert not torch.equal(ways[0][-1], ways[2][-1])


@given(st.integers(1, 1500), st.data())
@settings(max_examples=60, deadline=None)
def test_spaced_timesteps_fall_from_the_last(steps, data):
    count = data.draw(st.integers(1, steps))
    times = diffusion.spaced_timesteps(steps, count)
    assert len(times) == count and times[0] == steps - 1 and times[-1] >= 0
    assert (np.diff(times) < 0).all()


def test_a_tail_needs_a_head_or_the_left_edge():
    h, n = pianoroll.HELD, 200
    levels = np.array([[h, h, 0, h, h, n, h, 0, h, n], [0, h, n, n, h, h, 0, 0, n, 0]], np.uint8)
    kept = diffusion.without_lost_tails(levels)
    assert kept.tolist() == [[h, h, 0, 0, 0, n, h, 0, 0, n], [0, 0, n, n, h, h, 0, 0, n, 0]]
    assert levels[0, 3] == h, "the argument is left as it was"
    music = pianoroll.paint(np.array([[0, 4, 60, 50], [4, 4, 60, 80]]), 128, 20)
    assert (diffusion.without_lost_tails(music) == music).all()


@pytest.mark.parametrize(("sampler", "count", "said"), [
    ("euler", 5, "ddpm, ddim, dpm"), ("ddim", 0, "choose 1 to 10"), ("ddim", 11, "choose 1 to 10")])
def test_impossible_wishes_are_one_line(sampler, count, said):
    with pytest.raises(MusicError, match=said) as error:
        diffusion.sample(guess_of_x_0, normal(0, 1, 2, 8, 8), diffusion.cosine_schedule(10),
                         sampler, count)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- the loop of notebook 02


SMALL = {"train_steps": 24, "batch_size": 7, "checkpoint_every": 4, "sampling_steps": 2,
         "size": "tiny", "learning_rate": 0.001, "resume": False}


HEAD = """
import signal, time
from pathlib import Path
import matplotlib
matplotlib.use("Agg")
signal.signal(signal.SIGINT, signal.default_int_handler)  # however the program is started
"""
TOLERANCE = 1e-3 if diffusion.fast_bfloat16("cpu") else 1e-4  # sums in another order


def program(folder, **parameters):
    """Notebook 02 up to the end of its training, without the toy, as a plain program."""
    code, lesson = [], False
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "markdown":
            text = cell.source
            lesson = "## Noise a score" in text or (lesson and "## Improve" not in text)
        elif not lesson and not any(x in cell.source for x in ("google.colab", "draw_gray(")):
            code.append(cell.source)
        if "parameters" in cell.metadata.get("tags", []):
            given = SMALL | {"run_dir": str(folder)} | parameters
            code += [f"{name} = {value!r}" for name, value in given.items()]
        if "notebook_launcher(train" in cell.source:
            break
    path = folder / "program.py"
    path.write_text(HEAD + "\n\n".join(code), encoding="utf-8")
    return path


def start(folder, **parameters):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, program(folder, **parameters)], cwd=ROOT,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def finish(process):
    """Exit status and last line of output."""
    output = process.communicate(timeout=300)[0].strip().splitlines()
    return process.returncode, output[-1] if output else ""


def checkpoint(folder):
    return torch.load(folder / "models" / "diffusion_checkpoint.pt", weights_only=True)


def wait_for_checkpoint(process, folder):
    while not (folder / "models" / "diffusion_checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with five pictures and a finished small training."""
    folder = tmp_path_factory.mktemp("trained")
    random = np.random.default_rng(0)
    for i in range(5):
        notes = np.stack([random.integers(0, 120, 40), random.integers(1, 9, 40),
                          random.integers(48, 72, 40), random.integers(40, 120, 40)], axis=1)
        picture = pianoroll.Picture(pianoroll.paint(notes, 128, 128))
        pianoroll.save_png(picture, folder / "images" / "diffusion" / "train" / f"{i}.png")
    status, last = finish(start(folder))
    assert status == 0, last
    return folder


@pytest.fixture
def fresh_run(trained, tmp_path):
    """The same pictures, nothing trained."""
    shutil.copytree(trained / "images", tmp_path / "images")
    return tmp_path


def test_the_loop_logs_each_step(trained):
    with (trained / "models" / "diffusion_log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, SMALL["train_steps"] + 1))
    assert all(float(row["loss"]) > 0 and float(row["pictures_per_s"]) > 0 for row in rows)


@pytest.mark.parametrize("wait_s", [0.0, 0.07, 0.4])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(trained, fresh_run, wait_s):
    process = start(fresh_run)
    wait_for_checkpoint(process, fresh_run)
    time.sleep(wait_s)
    process.kill()
    process.communicate()
    step = checkpoint(fresh_run)["step"]
    assert 0 < step <= SMALL["train_steps"] and step % SMALL["checkpoint_every"] == 0
    status, last = finish(start(fresh_run, resume=True))
    assert status == 0, last
    ours, whole = checkpoint(fresh_run), checkpoint(trained)
    assert [row[:2] for row in ours["log"]] == [row[:2] for row in whole["log"]]
    for part in ("network", "ema"):
        assert all(torch.equal(ours[part][name], value) for name, value in whole[part].items())
    assert ours["schedule"] == whole["schedule"]


@pytest.mark.parametrize("divided", [{"processes": 2}, {"accumulate": 2},
                                     {"processes": 2, "accumulate": 2}])
def test_a_batch_teaches_the_same_however_it_is_divided(fresh_run, divided):
    losses = []
    for how in ({}, divided):
        status, last = finish(start(fresh_run, batch_size=8, **how))
        assert status == 0, last
        losses.append([row[1] for row in checkpoint(fresh_run)["log"]])
    assert len(losses[0]) == len(losses[1]) == SMALL["train_steps"]
    assert np.ptp(losses[0]) > 0.1
    np.testing.assert_allclose(*losses, rtol=TOLERANCE)


def test_ctrl_c_ends_in_one_line_and_keeps_the_checkpoint(fresh_run):
    process = start(fresh_run, train_steps=5000)
    wait_for_checkpoint(process, fresh_run)
    process.send_signal(signal.SIGINT)
    status, last = finish(process)
    assert status == 1 and "MusicError: stopped; set resume to True" in last
    assert checkpoint(fresh_run)["step"] >= SMALL["checkpoint_every"]


def test_a_loss_that_is_no_number_ends_in_one_line_and_keeps_the_checkpoint(trained, fresh_run):
    shutil.copytree(trained / "models", fresh_run / "models")
    before = checkpoint(fresh_run)
    status, last = finish(start(fresh_run, learning_rate=1e30))
    assert status == 1 and "loss is not a number" in last and "learning_rate" in last
    assert checkpoint(fresh_run)["step"] == before["step"]


def test_without_a_number_of_steps_the_time_decides(fresh_run):
    status, last = finish(start(fresh_run, train_steps=0, minutes=0.02))
    assert status == 0, last
    saved = checkpoint(fresh_run)
    assert saved["step"] == saved["train_steps"] == len(saved["log"]) >= 4
    status, last = finish(start(fresh_run, train_steps=0, minutes=9.0, resume=True))
    assert status == 0, last
    assert checkpoint(fresh_run)["step"] == saved["step"], "a resumed run keeps its number"


def test_a_training_can_start_from_trained_weights(fresh_run):
    status, last = finish(start(fresh_run, start_from="none.safetensors"))
    assert status == 1 and "MusicError: none.safetensors: no such file" in last
    levels = np.random.default_rng(1).choice(np.uint8([0, 64, 200, 230]), (2, 128, 128))
    network = unet.new(levels, "tiny")
    weights = unet.save(network, fresh_run / "trained.safetensors")
    status, last = finish(start(fresh_run, start_from=str(weights), size="base", learning_rate=0.0))
    assert status == 0, last
    ours = checkpoint(fresh_run)["network"]
    assert all(torch.equal(ours[name], value) for name, value in network.state_dict().items())


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_network_learns_the_same(trained, fresh_run):
    status, last = finish(start(fresh_run, compiled=True, train_steps=3))
    assert status == 0, last
    losses = [[row[1] for row in checkpoint(run)["log"][:1]] for run in (trained, fresh_run)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize(("name", "said"), [
    ("another size", "another size"), ("another batch size", "another batch_size"),
    ("no share", "choose a multiple"),
    ("other pictures", "another pictures"), ("fewer steps", "train_steps of 24 or more"),
    ("half a file", "damaged"), ("text", "damaged"),
    ("a picture of another size", "run notebook 01_midi2img again")])
def test_what_does_not_fit_is_refused_in_one_line(trained, fresh_run, name, said):
    shutil.copytree(trained / "models", fresh_run / "models")
    path, given = fresh_run / "models" / "diffusion_checkpoint.pt", {"resume": True}
    if name == "another size":
        given["size"] = "small"
    elif name == "another batch size":
        given["batch_size"] = 3
    elif name == "no share":
        given["accumulate"] = 2
    elif name == "fewer steps":
        given["train_steps"] = 12
    elif name == "other pictures":
        (fresh_run / "images" / "diffusion" / "train" / "4.png").unlink()
    elif name == "half a file":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "text":
        path.write_text("not a checkpoint")
    else:
        gan = pianoroll.Picture(np.zeros((106, 300), np.uint8), 21)
        pianoroll.save_png(gan, fresh_run / "images" / "diffusion" / "train" / "a.png")
    before = path.read_bytes()
    status, last = finish(start(fresh_run, **given))
    assert status == 1 and "MusicError: " in last and said in last
    assert path.read_bytes() == before
