"""Notebook 02: the masks it draws, and its training, killed and taken up again."""

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


def music(seed=0):
    """A piano roll of random notes."""
    notes = np.random.default_rng(seed).integers((0, 1, 48, 40), (120, 9, 72, 120), (60, 4))
    return pianoroll.roll_of(notes, 128, 128)


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, without running its training."""
    return notebook_code.definitions(NOTEBOOK, {})


def test_a_third_of_the_images_have_known_pixels_of_every_shape(lesson):
    rolls = torch.from_numpy(music()).expand(1500, -1, -1)
    known = lesson["known_pixels"](rolls, torch.Generator().manual_seed(0), 0.35)
    assert known.shape == (1500, 1, 128, 128) and known.dtype == torch.bool
    some = known[known.any(dim=3).any(dim=2)[:, 0]][:, 0]
    assert 0.29 < len(some) / 1500 < 0.38
    columns = (some == some[:, :1]).all(dim=2).all(dim=1).float().mean()
    voice = (~some | torch.from_numpy(music() > 0)).all(dim=2).all(dim=1).float().mean()
    assert 0.3 < columns < 0.5 and 0.05 < voice < 0.2


@pytest.mark.parametrize(("size", "share"), [(1, 0.5), (8, 0.0), (8, 0.06)])
def test_the_share_of_images_that_are_predicted_twice_is_as_asked(size, share):
    lesson = notebook_code.definitions(NOTEBOOK, {
        "batch_size": size, "self_conditioning": share, "seed": 3, "transpose": 6, "masked": 0.0,
        "alpha_bar": torch.zeros(10), "labels": torch.ones(size).long()})
    rolls = torch.zeros(size, 128, 128, dtype=torch.uint8)
    twice = torch.stack([lesson["batch_of"](rolls, step, "cpu")[4] for step in range(100)])
    assert twice.float().mean() == pytest.approx(share, abs=1 / size / 100)
    assert share == 0 or twice.any(dim=0).all(), "wherever an image stands"


def test_the_diagram_gives_the_shapes_that_run():
    network, shapes = unet.UNet(unet.Config(widths=(32, 64), rows=96)), []
    for part in [network.stem, *network.down, *network.middle, *network.up, network.head]:
        part.register_forward_hook(lambda part, given, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        network(torch.zeros(1, 2, 128, 128), torch.zeros(1))
    texts = [text.get_text() for text in show.denoiser_figure((32, 64), rows=8).axes[0].texts]
    boxes = [text.rpartition("\n")[2] for text in texts if "\n" in text and "×" in text]
    assert boxes[2:-1] == ["×".join(map(str, shape)) for shape in shapes]


SMALL = {"train_steps": 24, "batch_size": 8, "checkpoint_every": 4, "sampling_steps": 2,
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


def losses(saved):
    return [row[1] for row in saved["log"]]


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


@pytest.fixture
def trained_run(trained, fresh_run):
    """A copy of the trained run."""
    shutil.copytree(trained / "models", fresh_run / "models")
    return fresh_run


def test_a_killed_training_goes_on_as_if_nothing_had_happened(trained, fresh_run):
    process = start(fresh_run)
    while not (fresh_run / "models" / "diffusion_checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert checkpoint(fresh_run)["step"] in range(4, 25, 4)
    ours, whole = train(fresh_run, resume=True), checkpoint(trained)
    assert losses(ours) == losses(whole) and len(ours["log"]) == SMALL["train_steps"]
    assert same(ours["network"], whole["network"]) and same(ours["ema"], whole["ema"])
    assert ours["schedule"] == whole["schedule"]


BACKWARD_IN_THE_CHILDREN_ALONE = HEAD + """
import torch
def backward(*arguments, parent=os.getpid(), backward=torch.autograd.backward, **named):
    assert os.getpid() != parent, "gradients before the processes were started"
    return backward(*arguments, **named)
torch.autograd.backward = backward
"""


def test_processes_start_before_anything_computes_gradients(fresh_run):
    """With CUDA, gradients in the parent would end each child."""
    assert train(fresh_run, head=BACKWARD_IN_THE_CHILDREN_ALONE, demo=True, processes=2,
                 train_steps=4)["step"] == 4


def test_a_batch_teaches_the_same_however_it_is_divided(trained, fresh_run):
    divided = losses(train(fresh_run, processes=2, accumulate=2))
    assert np.ptp(divided) > 0.1
    np.testing.assert_allclose(divided, losses(checkpoint(trained)), rtol=TOLERANCE)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_network_learns_the_same(trained, fresh_run):
    compiled = train(fresh_run, compiled=1, train_steps=3)
    assert losses(compiled)[0] == pytest.approx(losses(checkpoint(trained))[0], rel=1e-3)


def test_a_short_run_learns_no_self_conditioning_and_a_long_one_does(trained, fresh_run, lesson):
    saved = train(fresh_run, self_conditioning=-1, masked=-1, ema_span=0.0, train_steps=4)
    assert (saved["about"]["self_conditioning"], saved["about"]["masked"]) == (0.0, 0.1)
    assert lesson["open_shares"](9e9) == (0.5, 0.35)
    assert same(saved["ema"], saved["network"]), "an average of no span is the last weights"
    saved = checkpoint(trained)
    assert not same(saved["ema"], saved["network"])


def test_a_training_can_start_from_trained_weights_and_refuses_what_they_never_learned(fresh_run):
    network = unet.new(music()[None], "tiny")
    weights = str(unet.save(network, fresh_run / "trained.safetensors"))
    for given, said in ({"styles": f"one={fresh_run}:8"}, "knows other styles"), (
            {"transpose": 7}, "knows no transpose above 6"):
        assert said in refusal(fresh_run, start_from=weights, **given)
    saved = train(fresh_run, start_from=weights, size="base", learning_rate=0.0, train_steps=4)
    assert same(saved["network"], network.state_dict())


def test_styles_are_learned_together(trained, fresh_run):
    """The trained run's images are one style, a copy of them the other."""
    saved = train(fresh_run, styles=f"one={trained}:4, two={fresh_run}:4")
    not_told, one, two = saved["network"]["style.weight"].abs().amax(dim=1)
    assert min(not_told, one, two) > 0 and saved["about"]["images"] == 10


@pytest.mark.parametrize(("given", "said"), [
    ({"batch_size": 3, "transpose": 3, "self_conditioning": 0.1},
     "trained with another batch_size, transpose, self_conditioning;"),
    ({"accumulate": 3}, "choose a multiple")])
def test_parameters_that_do_not_fit_are_refused_in_one_line(trained_run, given, said):
    assert said in refusal(trained_run, resume=True, **given)


def test_other_images_are_refused_in_one_line(trained_run):
    images = trained_run / "images" / "diffusion" / "train"
    (images / "4.png").unlink()
    assert "another mean, images, std" in refusal(trained_run, resume=True)
    pianoroll.save_png(pianoroll.PianoRoll(np.zeros((106, 300), np.uint8), 21), images / "a.png")
    assert "a.png: 106×300 pixels, not 128×128" in refusal(trained_run)
