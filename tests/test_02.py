"""Notebook 02: the masks it draws, and its training, killed and taken up again."""

import functools
import shutil
import time

import notebook_code
import numpy as np
import pytest
import torch
from notebook_code import HEAD, finish

from real_midi import ROOT
from utils import diffusion, pianoroll, show, unet

NOTEBOOK = ROOT / "notebooks" / "02_train_diffusion.ipynb"


def music(seed=0, notes=60):
    """A piano roll of random notes."""
    random = np.random.default_rng(seed)
    return pianoroll.roll_of(np.stack([
        random.integers(0, 120, notes), random.integers(1, 9, notes),
        random.integers(48, 72, notes), random.integers(40, 120, notes)], axis=1), 128, 128)


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, without running its training."""
    return notebook_code.definitions(NOTEBOOK, {})


# ---------------------------------------------------------------- what a batch is made of


def test_the_top_voice_is_the_highest_note_and_lasts_through_rests(lesson):
    notes = np.array([[4, 8, 60, 80], [6, 2, 72, 80], [20, 4, 50, 80], [20, 100, 40, 80]])
    roll = torch.from_numpy(pianoroll.roll_of(notes, 128, 128))
    wanted = [60] * 6 + [72] * 2 + [60] * 12 + [50] * 4 + [40] * 104
    assert lesson["top_voice"](roll[None])[0].tolist() == wanted
    assert lesson["top_voice"](torch.zeros(1, 128, 128)).shape == (1, 128), "silence has one, too"


def test_a_third_of_the_images_have_known_pixels_of_every_shape(lesson):
    rolls = torch.from_numpy(music()).expand(1500, -1, -1)
    known = lesson["known_pixels"](rolls, torch.Generator().manual_seed(0), 0.35)
    assert known.shape == (1500, 1, 128, 128) and known.dtype == torch.bool
    some = known[known.any(dim=3).any(dim=2)[:, 0]][:, 0]
    assert 0.29 < len(some) / 1500 < 0.38
    columns = (some == some[:, :1]).all(dim=2).all(dim=1).float().mean()
    voice = (~some | torch.from_numpy(music() > 0)).all(dim=2).all(dim=1).float().mean()
    assert 0.3 < columns < 0.5 and 0.05 < voice < 0.2


@pytest.mark.parametrize("share", [0.0, 0.03, 0.06, 0.5])
@pytest.mark.parametrize("size", [1, 8])
def test_the_share_of_images_that_are_predicted_twice_is_as_asked(share, size):
    lesson = notebook_code.definitions(NOTEBOOK, {
        "batch_size": size, "self_conditioning": share, "seed": 3, "transpose": 6, "masked": 0.0,
        "alpha_bar": torch.zeros(10), "labels": torch.ones(size).long()})
    rolls = torch.zeros(size, 128, 128, dtype=torch.uint8)
    twice = torch.stack([lesson["batch_of"](rolls, step, "cpu")[4] for step in range(200)])
    assert twice.float().mean() == pytest.approx(share, abs=0.5 / size / 100)
    assert share == 0 or size == 1 or twice.any(dim=0).all(), "wherever an image stands"


@pytest.mark.parametrize(("images", "shares"), [
    (20_000, (0.0, 0.1)), (110_000, (0.25, 0.225)), (9e9, (0.5, 0.35))])
def test_the_shares_left_open_grow_with_the_images_that_a_run_sees(lesson, images, shares):
    assert lesson["open_shares"](images) == pytest.approx(shares)


@pytest.mark.parametrize("widths", [(32, 64), (32, 48, 64)])
def test_the_diagram_gives_the_shapes_that_run(widths):
    network, shapes = unet.UNet(unet.Config(widths=widths, rows=96)), []
    for part in [network.stem, *network.down, *network.middle, *network.up, network.head]:
        part.register_forward_hook(lambda part, given, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        network(torch.zeros(1, 2, 128, 128), torch.zeros(1))
    texts = [text.get_text() for text in show.denoiser_figure(widths, rows=8).axes[0].texts]
    boxes = [text.split("\n")[1] for text in texts if " × " in text]
    assert boxes[2:-1] == [" × ".join(map(str, shape)) for shape in shapes]


# ---------------------------------------------------------------- the training


SMALL = {"train_steps": 24, "batch_size": 7, "checkpoint_every": 4, "sampling_steps": 2,
         "size": "tiny", "learning_rate": 0.001, "self_conditioning": 0.5, "masked": 0.35,
         "resume": False}
TOLERANCE = 1e-3 if diffusion.fast_bfloat16("cpu") else 1e-4  # sums in another order


def start(folder, head=HEAD, demo=False, **parameters):
    """The notebook up to the end of its training; if `demo`, with what it only shows, but for the
    slow strips."""
    return notebook_code.start(
        NOTEBOOK, folder, "notebook_launcher(train",
        SMALL | {"run_dir": str(folder)} | parameters, head=head,
        skipped=lambda cell: "demo" in cell.metadata.get("tags", []) and (
            not demo or "strip(" in cell.source))


def train(folder, **parameters):
    """The checkpoint of a training that went well."""
    status, output = finish(start(folder, **parameters))
    assert status == 0, output
    return checkpoint(folder)


def refusal(folder, **parameters):
    """The last line of a training that was refused."""
    status, output = finish(start(folder, **parameters))
    assert status == 1 and "MusicError: " in output.splitlines()[-1], output
    return output.splitlines()[-1]


def checkpoint(folder):
    return torch.load(folder / "models" / "diffusion_checkpoint.pt", weights_only=True)


def wait_for_checkpoint(process, folder):
    while not (folder / "models" / "diffusion_checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def same(weights, others):
    return all(torch.equal(weights[name], value) for name, value in others.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with five images and a finished small training."""
    folder = tmp_path_factory.mktemp("trained")
    for i in range(5):
        pianoroll.save_png(pianoroll.PianoRoll(music(i)),
                           folder / "images" / "diffusion" / "train" / f"{i}.png")
    train(folder)
    return folder


@pytest.fixture
def fresh_run(trained, tmp_path):
    """The same images, nothing trained."""
    shutil.copytree(trained / "images", tmp_path / "images")
    return tmp_path


@pytest.mark.parametrize("wait_s", [0.0, 0.4])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(trained, fresh_run, wait_s):
    process = start(fresh_run)
    wait_for_checkpoint(process, fresh_run)
    time.sleep(wait_s)
    process.kill()
    process.communicate()
    assert checkpoint(fresh_run)["step"] in range(4, 25, 4)
    ours, whole = train(fresh_run, resume=True), checkpoint(trained)
    assert [row[:2] for row in ours["log"]] == [row[:2] for row in whole["log"]]
    assert len(ours["log"]) == SMALL["train_steps"]
    assert same(ours["network"], whole["network"]) and same(ours["ema"], whole["ema"])
    assert ours["schedule"] == whole["schedule"]


@pytest.mark.parametrize("ema_span", [0.0, 0.5])
def test_the_average_of_no_span_is_the_last_weights(fresh_run, ema_span):
    saved = train(fresh_run, train_steps=4, ema_span=ema_span)
    assert same(saved["ema"], saved["network"]) is (ema_span == 0)


BACKWARD_IN_THE_CHILDREN_ALONE = HEAD + """
import torch
def backward(*arguments, parent=os.getpid(), backward=torch.autograd.backward, **named):
    assert os.getpid() != parent, "gradients before the processes were started"
    return backward(*arguments, **named)
torch.autograd.backward = backward
"""


def test_processes_start_before_anything_computes_gradients(fresh_run):
    """With CUDA, gradients in the parent would end each child."""
    assert train(fresh_run, head=BACKWARD_IN_THE_CHILDREN_ALONE, demo=True, batch_size=8,
                 processes=2, train_steps=4)["step"] == 4


@pytest.mark.parametrize("divided", [{"processes": 2}, {"processes": 2, "accumulate": 2}])
def test_a_batch_teaches_the_same_however_it_is_divided(fresh_run, divided):
    losses = [[row[1] for row in train(fresh_run, batch_size=8, **how)["log"]]
              for how in ({}, divided)]
    assert np.ptp(losses[0]) > 0.1
    np.testing.assert_allclose(*losses, rtol=TOLERANCE)


def test_a_short_run_learns_no_self_conditioning_and_says_so_to_its_network(fresh_run):
    about = train(fresh_run, self_conditioning=-1, masked=-1, train_steps=4)["about"]
    assert (about["self_conditioning"], about["masked"]) == (0.0, 0.1)
    assert "trained with another self_conditioning;" in refusal(
        fresh_run, self_conditioning=0.5, masked=-1, resume=True, train_steps=8)


@pytest.mark.parametrize("learned", [True, False])
def test_a_network_uses_an_earlier_prediction_only_if_it_learned_to(learned):
    network = unet.UNet(unet.Config(widths=(32, 64), rows=96, self_conditioning=learned))
    torch.nn.init.normal_(network.head.weight)
    x_t, log_snr = torch.randn(1, 2, 128, 128), torch.zeros(1)
    with torch.no_grad():
        without = network(x_t, log_snr).logits
        given = network(x_t, log_snr, torch.ones_like(x_t)).logits
    assert torch.equal(without, given) is not learned


def test_a_training_can_start_from_trained_weights_and_refuses_what_they_never_learned(fresh_run):
    network = unet.new(music()[None], "tiny")
    weights = str(unet.save(network, fresh_run / "trained.safetensors"))
    refused = functools.partial(refusal, fresh_run, start_from=weights)
    assert "none.safetensors: no such file" in refusal(fresh_run, start_from="none.safetensors")
    assert "knows other styles" in refused(styles=f"one={fresh_run}:7")
    assert "knows no transpose above 6" in refused(transpose=7)
    saved = train(fresh_run, start_from=weights, size="base", learning_rate=0.0)
    assert same(saved["network"], network.state_dict())


def test_styles_are_learned_together(trained, fresh_run):
    """The trained run's images are one style, a copy of them the other."""
    saved = train(fresh_run, styles=f"one={trained}:4, two={fresh_run}:3")
    not_told, one, two = saved["network"]["style.weight"].abs().amax(dim=1)
    assert min(not_told, one, two) > 0 and saved["about"]["pictures"] == 10


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_network_learns_the_same(trained, fresh_run):
    losses = [saved["log"][0][1] for saved in (
        checkpoint(trained), train(fresh_run, compiled=1, train_steps=3))]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize(("given", "said"), [
    ({"batch_size": 3, "transpose": 3}, "trained with another batch_size, transpose;"),
    ({"masked": 1.5}, "masked is 1.5; choose 0 to 1"), ({"guidance": 1e9}, "configuration"),
    ({"accumulate": 2}, "choose a multiple"), ({"train_steps": 12}, "train_steps of 24 or more"),
    ({"resume": False, "learning_rate": 1e30}, "a loss is not a number after step")])
def test_parameters_that_do_not_fit_are_refused_in_one_line(trained, fresh_run, given, said):
    shutil.copytree(trained / "models", fresh_run / "models")
    assert said in refusal(fresh_run, **{"resume": True} | given)


def test_files_that_do_not_fit_are_refused_in_one_line(trained, fresh_run):
    shutil.copytree(trained / "models", fresh_run / "models")
    images = fresh_run / "images" / "diffusion" / "train"
    (images / "4.png").unlink()
    assert "another mean, pictures, std" in refusal(fresh_run, resume=True)
    path = fresh_run / "models" / "diffusion_checkpoint.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "diffusion_checkpoint.pt: damaged" in refusal(fresh_run, resume=True)
    pianoroll.save_png(pianoroll.PianoRoll(np.zeros((106, 300), np.uint8), 21), images / "a.png")
    assert "run notebook 01_midi2img again" in refusal(fresh_run)
