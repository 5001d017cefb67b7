"""The network: its per-pixel posterior, its conditions, its file, and damaged files."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from utils import diffusion, unet
from utils.files import MusicError
from utils.pianoroll import SUSTAIN, roll_of, to_planes


def some_rolls(seed=0):
    """Three rolls of random notes between rows 40 and 80."""
    notes = np.random.default_rng(seed).integers((0, 1, 40, 30), (120, 8, 80, 127), (3, 60, 4))
    return np.stack([roll_of(some, 128, 128) for some in notes])


def untrained():
    torch.manual_seed(0)
    return unet.new(some_rolls(), "tiny", styles=["song", "dance"])


@pytest.fixture(scope="module")
def network():
    """Random weights everywhere: a trained network has no zeros left."""
    network = untrained()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def noised(network, log_snr):
    """Rolls under noise: x_t `[3, 2, 128, 128]`, its level `[3]`, x_0."""
    x_0 = network.standardise(torch.from_numpy(to_planes(some_rolls(1))))
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    level = torch.full((len(x_0),), float(log_snr))
    return diffusion.q_sample(x_0, eps, torch.sigmoid(level).view(-1, 1, 1, 1)), level, x_0


def predict(network, *inputs, **named):
    with torch.no_grad():
        return network(*inputs, **named)


@pytest.mark.parametrize("size", unet.SIZES)
def test_each_size_predicts_every_pixel(size):
    prediction = predict(unet.new(some_rolls(), size), torch.randn(1, 2, 128, 128), torch.zeros(1))
    assert prediction.logits.shape == prediction.pixel_logits.shape == (1, 2, 128, 128)
    assert prediction.velocity.shape == (1, 1, 128, 128)
    assert all(part.isfinite().all() for part in prediction)


def test_rows_and_prior_are_those_of_the_rolls(network):
    low, high = network.config.low_row, network.config.low_row + network.config.rows
    assert low == 24 and network.config.rows % 24 == 0 and high >= 87
    logits, _, pixel_logits = predict(network, *noised(network, 0)[:2])
    changed = (logits != pixel_logits).any(dim=3).any(dim=1)  # [3, 128]
    assert changed[:, 40:80].all() and not changed[:, :low].any() and not changed[:, high:].any()
    often = torch.sigmoid(network.prior[0, :, :, 0])  # [2, 128]
    assert abs(often[0].sum() - (some_rolls() > 0).mean((0, 2)).sum()) < 0.01
    assert (often[:, :30] < 2e-5).all() and (often[1, 44:76] > 1e-3).all()


@pytest.mark.parametrize("level", [-6.0, -1.5, 2.0])
def test_an_untrained_network_predicts_the_posterior_by_bayes(level):
    network = untrained()
    x_t, log_snr, _ = noised(network, level)
    logits, velocity, _ = predict(network, x_t, log_snr)
    a = 1 / (1 + np.exp(-level))
    x_t, mean, std = (x.double() for x in (x_t, network.mean, network.std))
    rate = torch.sigmoid(network.prior.double())
    likelihood = [torch.distributions.Normal(a**0.5 * (value - mean) / std, (1 - a) ** 0.5)
                  .log_prob(x_t) for value in (network.loud.double(), 0)]
    wanted = (likelihood[0] + rate.log()) - (likelihood[1] + (1 - rate).log())
    torch.testing.assert_close(logits.double(), wanted.clamp(-30, 30), rtol=1e-3, atol=1e-3)
    # Gaussian prior and noise: the posterior mean weighs both by their precision
    spread, noise = network.config.onset_std, (1 - a) / a * std[:, 1:] ** 2
    seen = (x_t / a**0.5 * std + mean)[:, 1:]
    wanted = (seen / noise + network.config.onset_mean / spread**2) / (1 / noise + 1 / spread**2)
    torch.testing.assert_close(velocity.double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("level", [-12, 6])
def test_known_pixels_are_certain_and_unchanged(network, level):
    x_t, log_snr, x_0 = noised(network, level)
    known = torch.rand(3, 1, 128, 128, generator=torch.Generator().manual_seed(1)) < 0.5
    logits, velocity, _ = predict(network, torch.where(known, x_0, x_t), log_snr, known=known)
    planes, same = network.planes(x_0), known.expand_as(x_0)
    loss = F.binary_cross_entropy_with_logits(logits, (planes > 0.25).float(), reduction="none")
    assert loss[same].max() < 1e-6, "they cost no loss"
    found = diffusion.expect_notes(logits, velocity)
    torch.testing.assert_close(found[same], planes[same], rtol=0, atol=1e-5)
    assert not torch.equal(found[~same], planes[~same])


@pytest.mark.parametrize(("name", "one", "other"), [
    ("x_0_hat", torch.ones(3, 2, 128, 128), None), ("shift", torch.full((3,), 6), None),
    ("style", torch.full((3,), 1), torch.full((3,), 2))])
def test_an_input_counts_once_it_is_learned(network, name, one, other):
    ignoring = unet.UNet(dataclasses.replace(network.config, self_conditioning=False))
    ignoring.load_state_dict(network.state_dict())
    for net, counts in (untrained(), False), (network, True), (ignoring, name != "x_0_hat"):
        inputs = noised(net, -2)[:2]
        found, unlike = (predict(net, *inputs, **{name: value}).logits for value in (one, other))
        assert torch.equal(found, unlike) is not counts


def test_a_style_has_a_number(network):
    assert [network.style_number(name) for name in ("", "song", "dance")] == [1, 1, 2]
    assert unet.new(some_rolls(), "tiny").style_number() == 0


def test_notes_are_counted_in_rolls_that_sound_to_their_end():
    rolls = some_rolls()
    rolls[1, :, 90:] = 0  # falls silent
    active, onsets, spreads = unet.note_counts(rolls)
    rolls = rolls[[0, 2]]
    assert active == tuple((rolls > 0).sum((1, 2)))
    assert onsets == tuple((rolls > SUSTAIN).sum((1, 2)))
    assert spreads == pytest.approx([np.std(roll[roll > SUSTAIN]) for roll in rolls], abs=0.005)


@pytest.mark.parametrize(("call", "said"), [
    (lambda: untrained().style_number("waltz"), r"'waltz' is unknown.*song, dance"),
    (lambda: unet.new(np.zeros((2, 128, 128), np.uint8)), "no note"),
    (lambda: unet.new(some_rolls(), "huge"), "tiny, mini, small, medium, base"),
    *((lambda change=change: unet.Config(**change), "configuration") for change in (
        {"widths": ()}, {"widths": (20,)}, {"widths": (10**9,)}, {"blocks": 10**9}, {"rows": 13},
        {"low_row": -1}, {"noise_steps": 0}, {"transpose": 64}, {"guidance": float("inf")}))])
def test_what_is_impossible_is_refused(call, said):
    with pytest.raises(MusicError, match=said):
        call()


def test_saving_and_loading_gives_the_same_network(network, tmp_path):
    path = unet.save(network, tmp_path / "models" / "net.safetensors", steps=7, corpus="built-in")
    again = unet.load(path)
    assert again.config == network.config and not again.training
    assert unet.facts_of(path) == {"steps": 7, "corpus": "built-in"}
    x_t, log_snr, _ = noised(network, -1)
    for one, two in zip(predict(again, x_t, log_snr), predict(network, x_t, log_snr), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def refused(path, said):
    with pytest.raises(MusicError, match=said) as error:
        unet.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(("about", "weights", "said"), [
    ({"format": "music-through-pictures/unet/1"}, {}, "its format is not"),
    ({"config": "{"}, {}, "damaged"), ({"colour": 1}, {}, "damaged"),
    ({"widths": [10**9]}, {}, "configuration"), ({"widths": [48, 64]}, {}, "size mismatch"),
    ({}, {"place": torch.zeros(0)}, "size mismatch"), ({}, {"more": torch.zeros(1)}, "Unexpected"),
    ({}, {"norm.bias": torch.full((32,), torch.nan)}, "no numbers")])
def test_a_file_of_another_network_is_refused_in_one_line(network, tmp_path, about, weights, said):
    config = dataclasses.asdict(network.config) | about
    about = {"format": unet.FORMAT, "config": json.dumps(config)} | {
        name: text for name, text in about.items() if name in ("format", "config")}
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(network.state_dict() | weights, path, about)
    refused(path, said)


def test_a_missing_or_damaged_file_is_refused_in_one_line(network, tmp_path):
    path = tmp_path / "net.safetensors"
    refused(path, "no such file")
    whole = unet.save(network, path).read_bytes()
    for content in (b"", b"\x80\x04pickle", whole[:-1000],
                    safetensors.torch.save(network.state_dict())):  # the last without metadata
        path.write_bytes(content)
        refused(path, "damaged")
