"""Notebook 02: what its images show without noise, and its training, killed and taken up again."""

import ast
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import nbformat
import numpy as np
import pytest
import torch

from conftest import ROOT
from utils import diffusion, pianoroll, show, training, unet
from utils.files import MusicError

NOTEBOOK = ROOT / "notebooks" / "02_train_diffusion.ipynb"


@pytest.fixture(scope="module")
def some_roll():
    random = np.random.default_rng(0)
    notes = np.stack([random.integers(0, 120, 80), random.integers(1, 9, 80),
                      random.integers(48, 72, 80), random.integers(40, 120, 80)], axis=1)
    return pianoroll.roll_of(notes, 128, 128)


def code_cells():
    """The notebook's code cells that plain Python can run."""
    return [cell for cell in nbformat.read(NOTEBOOK, 4).cells
            if cell.cell_type == "code" and "google.colab" not in cell.source]


def definitions(*names, **given):
    """Functions of the notebook by name, with what they need besides each other."""
    trees = [ast.parse(cell.source) for cell in code_cells()]
    functions = [node for tree in trees for node in tree.body
                 if isinstance(node, ast.FunctionDef) and node.name in names]
    assert sorted(node.name for node in functions) == sorted(names)
    exec(compile(ast.Module(functions, []), str(NOTEBOOK), "exec"), given)
    return types.SimpleNamespace(**given)


# ---------------------------------------------------------------- the masks of notebook 02


@pytest.fixture(scope="module")
def masks():
    """The notebook's functions that choose what is given."""
    return definitions("top_voice", "some_columns", "some_rows", "some_rectangle", "known_pixels",
                       torch=torch)


def generator():
    return torch.Generator().manual_seed(0)


def test_some_columns_leave_one_stretch_of_at_least_16(masks):
    known = masks.some_columns(500, generator())
    assert known.shape == (500, 1, 128) and known.dtype == torch.bool
    edges = torch.nn.functional.pad(~known, (1, 1)).int().diff(dim=2)
    assert ((edges == 1).sum(dim=2) == 1).all(), "one stretch"
    length = (~known).sum(dim=2)
    assert length.min() == 16 and length.max() == 128


def test_the_top_voice_is_the_highest_note_and_lasts_through_rests(masks):
    notes = np.array([[4, 8, 60, 80], [6, 2, 72, 80], [20, 4, 50, 80], [20, 100, 40, 80]])
    roll = torch.from_numpy(pianoroll.roll_of(notes, 128, 128))
    wanted = [60] * 6 + [72] * 2 + [60] * 12 + [50] * 4 + [40] * 104
    assert masks.top_voice(torch.stack([roll, roll.flip(1)]))[0].tolist() == wanted
    assert masks.top_voice(torch.zeros(1, 128, 128, dtype=torch.uint8)).shape == (1, 128)


def test_some_rows_lie_above_or_below_a_line_near_the_top_voice(masks, some_roll):
    rolls = torch.from_numpy(some_roll).expand(500, -1, -1)
    known = masks.some_rows(rolls, generator())
    assert known.shape == (500, 128, 128) and known.dtype == torch.bool
    above = known[:, 127]  # [500, 128]
    assert (above == above[:, :1]).all() and 0.6 < above.float().mean() < 0.8
    line = torch.where(above, 128 - known.sum(dim=1), known.sum(dim=1))
    distance = masks.top_voice(rolls) - line
    assert (distance == distance[:, :1]).all() and set(distance.unique().tolist()) == set(range(6))


def test_some_rectangle_is_known_or_masked(masks):
    known = masks.some_rectangle(500, generator())
    assert known.shape == (500, 128, 128) and known.dtype == torch.bool
    all_but = known[:, 0].float().mean(dim=1) + known[:, 127].float().mean(dim=1) > 1
    assert 0.6 < all_but.float().mean() < 0.8
    inside = known ^ all_but[:, None, None]
    assert torch.equal(inside, inside.any(dim=2, keepdim=True) & inside.any(dim=1, keepdim=True))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.06, 0.5])
@pytest.mark.parametrize("size", [1, 8])
def test_the_share_of_images_that_are_predicted_twice_is_as_asked(share, size):
    here = {"batch_size": size, "self_conditioning": share, "seed": 3, "transpose": 6,
            "masked": 0.0, "alpha_bar": torch.zeros(10), "labels": torch.ones(size).long()}
    notebook = definitions("batch_of", "transposed", torch=torch, diffusion=diffusion,
                           known_pixels=lambda *_: None, **here)
    rolls = torch.zeros(size, 128, 128, dtype=torch.uint8)
    twice = torch.stack([notebook.batch_of(rolls, step, "cpu")[4] for step in range(200)])
    assert twice.float().mean() == pytest.approx(share, abs=0.5 / size / 100)
    assert share == 0 or size == 1 or twice.any(dim=0).all(), "wherever an image stands"


def test_a_third_of_the_images_have_known_pixels_of_every_shape(masks, some_roll):
    rolls = torch.from_numpy(some_roll).expand(1500, -1, -1)
    known = masks.known_pixels(rolls, generator(), 0.35)
    assert known.shape == (1500, 1, 128, 128) and known.dtype == torch.bool
    some = known[known.any(dim=3).any(dim=2)[:, 0]][:, 0]
    assert 0.29 < len(some) / 1500 < 0.38
    assert not masks.known_pixels(rolls[:50], generator(), 0.0).any()
    columns = (some == some[:, :1]).all(dim=2).all(dim=1).float().mean()
    voice = (~some | torch.from_numpy(some_roll > 0)).all(dim=2).all(dim=1).float().mean()
    assert 0.3 < columns < 0.5 and 0.05 < voice < 0.2


# ---------------------------------------------------------------- the denoiser that it shows


@pytest.mark.parametrize("widths", [(32, 64), (32, 48, 64)])
def test_the_diagram_gives_the_shapes_that_run(widths):
    network, shapes = unet.UNet(unet.Config(widths=widths, rows=96)), []
    for part in [network.stem, *network.down, *network.middle, *network.up, network.head]:
        part.register_forward_hook(lambda part, given, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        network(torch.zeros(1, 2, 128, 128), torch.zeros(1))
    figure = show.denoiser_figure(widths, rows=8)
    boxes = [text.get_text().split("\n")[1] for text in figure.axes[0].texts if " × " in
             text.get_text()]
    assert boxes[2:-1] == [" × ".join(map(str, shape)) for shape in shapes]


def test_the_source_shown_is_whole_and_stands_at_the_margin():
    shown = show.source(unet.UNet.embed, unet.waves).data
    assert [node.name for node in ast.parse(shown).body] == ["embed", "waves"]


@pytest.mark.parametrize("learned", [True, False])
def test_a_network_uses_an_earlier_prediction_only_if_it_learned_to(learned):
    torch.manual_seed(0)
    network = unet.UNet(unet.Config(widths=(32, 64), rows=96, self_conditioning=learned))
    torch.nn.init.normal_(network.head.weight)
    x_t, log_snr = torch.randn(1, 2, 128, 128), torch.zeros(1)
    with torch.no_grad():
        without = network(x_t, log_snr).logits
        given = network(x_t, log_snr, torch.ones_like(x_t)).logits
    assert torch.equal(without, given) is not learned


# ---------------------------------------------------------------- the loop of notebook 02


SMALL = {"train_steps": 24, "batch_size": 7, "checkpoint_every": 4, "sampling_steps": 2,
         "size": "tiny", "learning_rate": 0.001, "self_conditioning": 0.5, "masked": 0.35,
         "resume": False}


HEAD = """
import signal, time
from pathlib import Path
import matplotlib
matplotlib.use("Agg")
signal.signal(signal.SIGINT, signal.default_int_handler)  # however the program is started
"""
TOLERANCE = 1e-3 if diffusion.fast_bfloat16("cpu") else 1e-4  # sums in another order


def program(folder, head=HEAD, demo=False, **parameters):
    """Notebook 02 up to the end of its training as a plain program; if `demo`, with what it only
    shows, but for the slow strips."""
    code = [head]
    for cell in code_cells():
        tags = cell.metadata.get("tags", [])
        if "demo" not in tags or (demo and "strip(" not in cell.source):
            code.append(cell.source)
        if "parameters" in tags:
            given = SMALL | {"run_dir": str(folder)} | parameters
            code += [f"{name} = {value!r}" for name, value in given.items()]
        if "notebook_launcher(train" in cell.source:
            break
    path = folder / "program.py"
    path.write_text("\n\n".join(code), encoding="utf-8")
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
    """A run folder with five images and a finished small training."""
    folder = tmp_path_factory.mktemp("trained")
    random = np.random.default_rng(0)
    for i in range(5):
        notes = np.stack([random.integers(0, 120, 40), random.integers(1, 9, 40),
                          random.integers(48, 72, 40), random.integers(40, 120, 40)], axis=1)
        picture = pianoroll.PianoRoll(pianoroll.roll_of(notes, 128, 128))
        pianoroll.save_png(picture, folder / "images" / "diffusion" / "train" / f"{i}.png")
    status, last = finish(start(folder))
    assert status == 0, last
    return folder


@pytest.fixture
def fresh_run(trained, tmp_path):
    """The same images, nothing trained."""
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


@pytest.mark.parametrize("ema_span", [0.0, 0.5])
def test_the_average_of_no_span_is_the_last_weights(fresh_run, ema_span):
    status, last = finish(start(fresh_run, train_steps=4, ema_span=ema_span))
    assert status == 0, last
    saved = checkpoint(fresh_run)
    same = all(torch.equal(saved["ema"][name], value) for name, value in saved["network"].items())
    assert same is (ema_span == 0)


BACKWARD_IN_THE_CHILDREN_ALONE = HEAD + """
import os, torch
def backward(*arguments, parent=os.getpid(), backward=torch.autograd.backward, **named):
    assert os.getpid() != parent, "gradients before the processes were started"
    return backward(*arguments, **named)
torch.autograd.backward = backward
"""


def test_processes_start_before_anything_computes_gradients(fresh_run):
    """With CUDA, gradients in the parent would end each child."""
    status, last = finish(start(fresh_run, head=BACKWARD_IN_THE_CHILDREN_ALONE, demo=True,
                                batch_size=8, processes=2, train_steps=4))
    assert status == 0, last
    assert checkpoint(fresh_run)["step"] == 4


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
    assert status == 1 and "a loss or a weight is not a number" in last and "learning_rate" in last
    earlier = fresh_run / "models" / "diffusion_checkpoint.previous.pt"  # a new run keeps it
    assert torch.load(earlier, weights_only=True)["step"] == before["step"]


def test_without_a_number_of_steps_the_time_decides(fresh_run):
    status, last = finish(start(fresh_run, train_steps=0, minutes=0.02))
    assert status == 0, last
    saved = checkpoint(fresh_run)
    assert saved["step"] == saved["train_steps"] == len(saved["log"]) >= 4
    status, last = finish(start(fresh_run, train_steps=0, minutes=9.0, resume=True))
    assert status == 0, last
    assert checkpoint(fresh_run)["step"] == saved["step"], "a resumed run keeps its number"


@pytest.mark.parametrize(("images", "shares"), [
    (20_000, (0.0, 0.1)), (110_000, (0.25, 0.225)), (200_000, (0.5, 0.35)), (9e9, (0.5, 0.35))])
def test_the_shares_left_open_grow_with_the_images_that_a_run_sees(images, shares):
    assert definitions("open_shares", np=np).open_shares(images) == pytest.approx(shares)


def test_a_short_run_learns_no_self_conditioning_and_says_so_to_its_network(fresh_run):
    status, last = finish(start(fresh_run, self_conditioning=-1, masked=-1, train_steps=4))
    assert status == 0, last
    about = checkpoint(fresh_run)["about"]
    assert (about["self_conditioning"], about["masked"]) == (0.0, 0.1)
    status, last = finish(start(fresh_run, self_conditioning=0.5, masked=-1, resume=True,
                                train_steps=8))
    assert status == 1 and "trained with another self_conditioning;" in last


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


def test_styles_are_learned_together(trained, fresh_run):
    """The trained run's images are one style, a copy of them the other."""
    status, last = finish(start(fresh_run, styles=f"one={trained}:4, two={fresh_run}:3"))
    assert status == 0, last
    saved = checkpoint(fresh_run)
    not_told, one, two = saved["network"]["style.weight"].abs().amax(dim=1)
    assert min(not_told, one, two) > 0 and saved["step"] == SMALL["train_steps"]
    assert saved["about"]["pictures"] == 10


@pytest.mark.parametrize("styles", ["one", "one=RUN", "one=RUN:x", "one=RUN:6",
                                    "one=RUN:7, two=RUN:0", "one=RUN:8, two=RUN:-1"])
def test_styles_that_fill_no_batch_are_refused_in_one_line(fresh_run, styles):
    with pytest.raises(MusicError, match=r"write name=run_dir:images.* 7 images in all") as error:
        training.sources_of(styles.replace("RUN", str(fresh_run)), fresh_run, 7)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "said"), [
    ({"styles": "one=none:7"}, "none"), ({"styles": "one=RUN:7"}, "knows other styles"),
    ({"transpose": 7}, "knows no transpose above 6")])
def test_what_the_given_weights_never_learned_is_refused_in_one_line(fresh_run, given, said):
    rolls = np.random.default_rng(1).choice(np.uint8([0, 64, 200, 230]), (2, 128, 128))
    weights = unet.save(unet.new(rolls, "tiny"), fresh_run / "trained.safetensors")
    given = {name: value.replace("RUN", str(fresh_run)) if isinstance(value, str) else value
             for name, value in given.items()}
    status, last = finish(start(fresh_run, start_from=str(weights), **given))
    assert status == 1 and "MusicError: " in last and said in last


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_network_learns_the_same(trained, fresh_run):
    status, last = finish(start(fresh_run, compiled=1, train_steps=3))
    assert status == 0, last
    losses = [[row[1] for row in checkpoint(run)["log"][:1]] for run in (trained, fresh_run)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize(("name", "said"), [
    ("another size", "another size"), ("another batch size", "another batch_size"),
    ("another transpose", "another transpose"), ("another share", "another masked"),
    ("no share of one", "masked is 1.5; choose 0 to 1"),
    ("enormous guidance", "configuration"), ("no share", "choose a multiple"),
    ("other pictures", "another mean, pictures, std"), ("fewer steps", "train_steps of 24 or more"),
    ("half a file", "damaged"), ("text", "damaged"),
    ("a picture of another size", "run notebook 01_midi2img again")])
def test_what_does_not_fit_is_refused_in_one_line(trained, fresh_run, name, said):
    shutil.copytree(trained / "models", fresh_run / "models")
    path, given = fresh_run / "models" / "diffusion_checkpoint.pt", {"resume": True}
    given |= {
        "another size": {"size": "small"}, "another batch size": {"batch_size": 3},
        "another transpose": {"transpose": 3}, "another share": {"masked": 0.1},
        "no share of one": {"masked": 1.5}, "enormous guidance": {"guidance": 1e9},
        "no share": {"accumulate": 2}, "fewer steps": {"train_steps": 12}}.get(name, {})
    if name == "other pictures":
        (fresh_run / "images" / "diffusion" / "train" / "4.png").unlink()
    elif name == "half a file":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "text":
        path.write_text("not a checkpoint")
    elif name == "a picture of another size":
        gan = pianoroll.PianoRoll(np.zeros((106, 300), np.uint8), 21)
        pianoroll.save_png(gan, fresh_run / "images" / "diffusion" / "train" / "a.png")
    before = path.read_bytes()
    status, last = finish(start(fresh_run, **given))
    assert status == 1 and "MusicError: " in last and said in last
    assert path.read_bytes() == before
