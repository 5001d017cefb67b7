"""The network: its per-pixel posterior, its conditions, its file, and damaged files."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from utils import diffusion, unet
from utils.files import MusicError
from utils.pianoroll import SUSTAIN, to_planes


def some_rolls(seed=0, count=3):
    """Random notes between rows 40 and 80."""
    random = np.random.default_rng(seed)
    rolls = np.zeros((count, 128, 128), np.uint8)
    for roll in rolls:
        for _ in range(60):
            row, start, length = random.integers((40, 0, 1), (80, 120, 8))
            roll[row, start : start + length] = SUSTAIN
            roll[row, start] = random.integers(160, 255)
    return rolls


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


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("size", unet.SIZES)
def test_each_size_predicts_every_pixel(size):
    prediction = predict(unet.new(some_rolls(), size), torch.randn(1, 2, 128, 128), torch.zeros(1))
    assert prediction.logits.shape == prediction.pixel_logits.shape == (1, 2, 128, 128)
    assert prediction.velocity.shape == (1, 1, 128, 128)
    assert all(part.isfinite().all() for part in prediction)


def test_rows_outside_those_generated_keep_their_pixel_logits(network):
    low, high = network.config.low_row, network.config.low_row + network.config.rows
    assert low == 24 and network.config.rows % 24 == 0 and high >= 87
    logits, _, pixel_logits = predict(network, *noised(network, 0)[:2])
    changed = (logits != pixel_logits).any(dim=3).any(dim=1)  # [3, 128]
    assert changed[:, 40:80].all() and not changed[:, :low].any() and not changed[:, high:].any()


def test_the_prior_is_how_often_each_row_is_active(network):
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


@pytest.mark.parametrize("level", [-12, -2, 6])
def test_known_pixels_are_certain_and_unchanged(network, level):
    x_t, log_snr, x_0 = noised(network, level)
    known = torch.rand(3, 1, 128, 128, generator=torch.Generator().manual_seed(1)) < 0.5
    logits, velocity, _ = predict(network, torch.where(known, x_0, x_t), log_snr, known=known)
    planes, same = network.planes(x_0), known.expand_as(x_0)
    target = (planes > 0.25).float()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert loss[same].max() < 1e-6, "they cost no loss"
    found = diffusion.expect_notes(logits, velocity)
    torch.testing.assert_close(found[same], planes[same], rtol=0, atol=1e-5)
    assert not torch.equal(found[~same], planes[~same])


INPUTS = {"x_0_hat": (torch.ones(3, 2, 128, 128), None), "style": (1, 2), "shift": (6, 0)}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_has_no_effect_before_training_and_is_learned(name):
    network = untrained()
    one, other = (torch.full((3,), x) if isinstance(x, int) else x for x in INPUTS[name])
    x_t, level, x_0 = noised(network, -2)
    target, losses = (network.planes(x_0) > 0.25).float(), []
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(8):
        logits = network(x_t, level, **{name: one}).logits
        if step in (0, 7):
            unlike = predict(network, x_t, level, **{name: other}).logits
            assert torch.equal(logits, unlike) is (step == 0)
        loss = F.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_a_style_has_a_number_and_an_unknown_one_is_refused(network):
    assert [network.style_number(name) for name in ("", "song", "dance")] == [1, 1, 2]
    assert unet.new(some_rolls(), "tiny").style_number() == 0
    with pytest.raises(MusicError, match=r"'waltz' is unknown.*song, dance"):
        network.style_number("waltz")


@pytest.mark.parametrize("change", [
    {"widths": ()}, {"widths": (20,)}, {"widths": (10**9,)}, {"blocks": 0}, {"blocks": 10**9},
    {"rows": 13}, {"low_row": -1}, {"noise_steps": 0}, {"transpose": -1}, {"transpose": 64},
    {"guidance": float("inf")}])
def test_an_impossible_configuration_is_refused(change):
    with pytest.raises(MusicError, match="configuration"):
        unet.Config(**change)


def test_notes_are_counted_in_rolls_that_sound_to_their_end():
    rolls = some_rolls()
    rolls[1, :, 90:] = 0  # falls silent
    active, onsets, spreads = unet.note_counts(rolls)
    assert spreads == pytest.approx([np.std(roll[roll > SUSTAIN]) for roll in rolls[[0, 2]]],
                                    abs=0.005)
    assert active == tuple((roll > 0).sum() for roll in rolls[[0, 2]])
    assert onsets == tuple((roll > SUSTAIN).sum() for roll in rolls[[0, 2]])


def test_rolls_without_a_note_and_unknown_sizes_are_refused():
    with pytest.raises(MusicError, match="no note"):
        unet.new(np.zeros((2, 128, 128), np.uint8))
    with pytest.raises(MusicError, match="tiny, mini, small, medium, base"):
        unet.new(some_rolls(), "huge")


# ---------------------------------------------------------------- the file


def test_saving_and_loading_gives_the_same_network(network, tmp_path):
    path = unet.save(network, tmp_path / "models" / "net.safetensors", steps=7, corpus="built-in")
    again = unet.load(path)
    assert again.config == network.config and not again.training
    assert unet.facts_of(path) == {"steps": 7, "corpus": "built-in"}
    x_t, log_snr, _ = noised(network, -1)
    for one, two in zip(predict(again, x_t, log_snr), predict(network, x_t, log_snr), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize(("about", "weights", "said"), [
    ({"format": "music-through-pictures/unet/1"}, {}, "its format is not"),
    ({"config": "{"}, {}, "damaged"), ({"colour": 1}, {}, "damaged"),
    ({"widths": [10**9]}, {}, "configuration"), ({"widths": [48, 64]}, {}, "size mismatch"),
    ({}, {"place": None}, "Missing key"), ({}, {"more": torch.zeros(1)}, "Unexpected key"),
    ({}, {"norm.bias": torch.full((32,), torch.nan)}, "no numbers")])
def test_a_file_of_another_network_is_refused_in_one_line(network, tmp_path, about, weights, said):
    config = dataclasses.asdict(network.config) | about
    about = {"format": unet.FORMAT, "config": json.dumps(config)} | {
        name: text for name, text in about.items() if name in ("format", "config")}
    weights = {name: value.clone() for name, value in network.state_dict().items()} | weights
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file({n: v for n, v in weights.items() if v is not None}, path, about)
    with pytest.raises(MusicError, match=said) as error:
        unet.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04pickle", "cut", "without metadata"])
def test_a_missing_or_damaged_file_is_refused_in_one_line(network, tmp_path, content):
    path = tmp_path / "net.safetensors"
    if content == "without metadata":
        safetensors.torch.save_file(network.state_dict(), path)
    elif content == "cut":
        path.write_bytes(unet.save(network, path).read_bytes()[:-1000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(MusicError, match="no such file" if content is None else "damaged") as error:
        unet.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_no_flipped_byte_does_worse_than_one_line(network, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    content = bytearray(unet.save(network, path).read_bytes())
    where = data.draw(st.integers(0, 4000) | st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert isinstance(unet.load(path), unet.UNet)
    except MusicError as error:
        assert "\n" not in str(error)
