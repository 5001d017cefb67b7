"""The network: its per-pixel logits, its conditions, its file, and files that are not its own."""

import dataclasses
import json
from pathlib import Path

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


def noised(network, log_snr, seed=0):
    """Rolls under noise: x_t `[3, 2, 128, 128]`, its level `[3]`, x_0."""
    x_0 = network.standardise(torch.from_numpy(to_planes(some_rolls(1))))
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    level = torch.full((len(x_0),), float(log_snr))
    return diffusion.q_sample(x_0, eps, torch.sigmoid(level).view(-1, 1, 1, 1)), level, x_0


def after_steps(count, **inputs):
    """A network after some steps of gradient descent with these inputs, and its losses."""
    network, losses = untrained(), []
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    x_t, level, x_0 = noised(network, -2)
    target = (network.planes(x_0) > 0.25).float()
    for _ in range(count):
        logits = network(x_t, level, **inputs).logits
        loss = F.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network.eval(), losses


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("size", unet.SIZES)
def test_each_size_predicts_every_pixel(size):
    network = unet.new(some_rolls(), size).eval()
    with torch.no_grad():
        prediction = network(torch.randn(1, 2, 128, 128), torch.zeros(1))
    assert prediction.logits.shape == prediction.pixel_logits.shape == (1, 2, 128, 128)
    assert prediction.velocity.shape == (1, 1, 128, 128)
    assert all(part.isfinite().all() for part in prediction)


def test_standardised_planes_have_mean_0_and_variance_1(network):
    planes = torch.from_numpy(to_planes(some_rolls()))
    x_0 = network.standardise(planes)
    assert torch.allclose(x_0.mean((0, 2, 3)), torch.zeros(2), atol=1e-4)
    assert torch.allclose(x_0.var((0, 2, 3)), torch.ones(2), atol=1e-3)
    assert torch.allclose(network.planes(x_0), planes, atol=1e-6)


def test_rows_outside_those_generated_keep_their_evidence(network):
    low, high = network.config.low_row, network.config.low_row + network.config.rows
    assert low == 24 and network.config.rows % 24 == 0 and high >= 87
    x_t, level, _ = noised(network, 0)
    with torch.no_grad():
        logits, _, pixel_logits = network(x_t, level)
    changed = (logits != pixel_logits).any(dim=3).any(dim=1)  # [3, 128]
    assert changed[:, 40:80].all() and not changed[:, :low].any() and not changed[:, high:].any()


def test_the_prior_is_how_often_each_row_is_active(network):
    often = torch.sigmoid(network.prior[0, :, :, 0])  # [2, 128]
    assert abs(often[0].sum() - (some_rolls() > 0).mean((0, 2)).sum()) < 0.01
    assert (often[:, :30] < 2e-5).all() and (often[1, 44:76] > 1e-3).all()


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_depth_to_space_is_the_inverse_of_space_to_depth(seed):
    x = torch.randn(2, 3, 36, 16, generator=torch.Generator().manual_seed(seed))
    deep = unet.space_to_depth(x)
    assert deep.shape == (2, 144, 3, 4)
    assert torch.equal(unet.depth_to_space(deep), x)
    assert torch.equal(deep[0, 48 + 4 * 5 + 3, 2, 1], x[0, 1, 2 * 12 + 5, 4 + 3])


@pytest.mark.parametrize("level", [-6.0, -1.5, 2.0])
def test_the_evidence_is_the_posterior_by_bayes(network, level):
    x_t, log_snr, _ = noised(network, level)
    a = 1 / (1 + np.exp(-level))
    x_t64, mean, std = (x.double() for x in (x_t, network.mean, network.std))
    rate = torch.sigmoid(network.prior.double())
    likelihood = [torch.distributions.Normal(a**0.5 * (value - mean) / std, (1 - a) ** 0.5)
                  .log_prob(x_t64) for value in (network.loud.double(), 0)]
    wanted = (likelihood[0] + rate.log()) - (likelihood[1] + (1 - rate).log())
    found, velocity = network.pixel_logits(x_t, log_snr)
    torch.testing.assert_close(found.double(), wanted.clamp(-30, 30), rtol=1e-3, atol=1e-3)
    # Gaussian prior and noise: the posterior mean weighs both by their precision
    spread = network.config.onset_std
    seen = (x_t64 / a**0.5 * std + mean)[:, 1:]
    noise = (1 - a) / a * std[:, 1:] ** 2
    wanted = (seen / noise + network.config.onset_mean / spread**2) / (1 / noise + 1 / spread**2)
    torch.testing.assert_close(velocity.double(), wanted, rtol=1e-3, atol=1e-4)


def test_an_untrained_network_predicts_the_evidence():
    network = untrained()
    x_t, level, _ = noised(network, -1)
    with torch.no_grad():
        logits, velocity, pixel_logits = network(x_t, level)
        alone = network.pixel_logits(x_t, level)
    assert torch.equal(logits, pixel_logits)
    assert torch.equal(logits, alone[0]) and torch.equal(velocity, alone[1])


@given(st.integers(0, 2**31), st.floats(-12, 6))
@settings(max_examples=8, deadline=None)
def test_known_pixels_are_certain_and_unchanged(network, seed, level):
    x_t, log_snr, x_0 = noised(network, level)
    known = torch.rand(3, 1, 128, 128, generator=torch.Generator().manual_seed(seed)) < 0.5
    with torch.no_grad():
        logits, velocity, _ = network(torch.where(known, x_0, x_t), log_snr, known=known)
    planes, same = network.planes(x_0), known.expand_as(x_0)
    target = (planes > 0.25).float()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert loss[same].max() < 1e-6, "they cost no loss"
    found = diffusion.expect_notes(logits, velocity)
    torch.testing.assert_close(found[same], planes[same], rtol=0, atol=1e-5)
    assert not torch.equal(found[~same], planes[~same])


def test_labels_have_no_effect_before_training_and_are_learned():
    labels = {"style": torch.tensor([0, 1, 2]), "shift": torch.tensor([-6, 0, 6])}
    for count, learned in ((0, False), (4, True)):
        network, _ = after_steps(count, **labels)
        x_t, level, _ = noised(network, -2)
        with torch.no_grad():
            plain = network(x_t[:1], level[:1]).logits
            for name, values in labels.items():
                other = network(x_t[:1], level[:1], **{name: values[2:]}).logits
                assert torch.equal(plain, other) is not learned, name


def test_a_style_has_a_number_and_an_unknown_one_is_refused(network):
    assert [network.style_number(name) for name in ("", "song", "dance")] == [1, 1, 2]
    assert unet.new(some_rolls(), "tiny").style_number() == 0
    with pytest.raises(MusicError, match=r"'waltz' is unknown.*song, dance") as error:
        network.style_number("waltz")
    assert "\n" not in str(error.value)


def test_the_network_sees_its_earlier_prediction_after_training():
    x_0_hat = torch.rand(3, 2, 128, 128, generator=torch.Generator().manual_seed(0))
    for count, sees in ((0, False), (2, True)):
        network, _ = after_steps(count, x_0_hat=x_0_hat)
        x_t, level, _ = noised(network, -2)
        with torch.no_grad():
            with_it, without = network(x_t, level, x_0_hat).logits, network(x_t, level).logits
        assert torch.equal(with_it, without) is not sees


def test_it_learns_rolls_by_heart():
    _, losses = after_steps(20)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("change", [
    {"widths": ()}, {"widths": (20,)}, {"widths": (32,) * 5}, {"widths": (10**9,)}, {"blocks": 0},
    {"std": (0.1, 0.0)}, {"mean": (float("nan"), 0.1)}, {"rows": 13}, {"low_row": -1},
    {"onset_mean": 2.0}, {"noise_steps": 0}, {"transpose": -1}, {"transpose": 64},
    {"styles": (1,)}, {"styles": ("",)}, {"styles": ("a",) * 1000}, {"guidance": float("inf")},
    {"active_counts": (3,)}, {"active_counts": (3,), "onset_counts": (4,)},
    {"active_counts": (3,), "onset_counts": (3,), "velocity_spreads": (-1.0,)}])
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
        unet.config_for(np.zeros((2, 128, 128), np.uint8))
    with pytest.raises(MusicError, match="tiny, mini, small, medium, base"):
        unet.config_for(some_rolls(), "huge")


# ---------------------------------------------------------------- the file


def test_saving_and_loading_gives_the_same_network(network, tmp_path):
    path = unet.save(network, tmp_path / "models" / "net.safetensors", steps=7, corpus="built-in")
    again = unet.load(path)
    assert again.config == network.config and not again.training
    assert unet.facts_of(path) == {"steps": 7, "corpus": "built-in"}
    x_t, log_snr, _ = noised(network, -1)
    with torch.no_grad():
        for one, two in zip(again(x_t, log_snr), network(x_t, log_snr), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def test_a_failed_save_leaves_the_old_file(network, tmp_path, monkeypatch):
    path = unet.save(network, tmp_path / "net.safetensors")
    before = path.read_bytes()

    def full_disk(path, data):
        path.open("wb").write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(MusicError, match="No space left"):
        unet.save(network, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def rewritten(path, network, change_about=None, change_weights=None):
    """A file of ours with something changed."""
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    about = {"format": unet.FORMAT, "config": json.dumps(dataclasses.asdict(network.config))}
    about |= change_about or {}
    weights |= change_weights or {}
    safetensors.torch.save_file({n: v for n, v in weights.items() if v is not None}, path, about)


def config_text(network, **change):
    return {"config": json.dumps(dataclasses.asdict(network.config) | change)}


@pytest.mark.parametrize(("name", "said"), [
    ("missing", "no such file"), ("empty", "damaged"), ("cut", "damaged"), ("pickle", "damaged"),
    ("without metadata", "not a network"),
    ("other format", "not a network"), ("an earlier format", "made by an earlier version"),
    ("config is no JSON", "damaged"), ("unknown field", "damaged"),
    ("enormous", "configuration"), ("another width", "do not fit"),
    ("a tensor too few", "do not fit"), ("a tensor too many", "do not fit"),
    ("not numbers", "no numbers")])
def test_a_file_that_is_not_ours_is_refused_in_one_line(network, tmp_path, name, said):
    path, good = tmp_path / "net.safetensors", tmp_path / "good.safetensors"
    first = next(iter(network.state_dict()))
    unet.save(network, good)
    make = {
        "missing": lambda: None,
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(good.read_bytes()[:-1000]),
        "pickle": lambda: torch.save(network.state_dict(), path),
        "without metadata": lambda: safetensors.torch.save_file(network.state_dict(), path),
        "other format": lambda: rewritten(path, network, {"format": "another/2"}),
        "an earlier format": lambda: rewritten(
            path, network, {"format": "music-through-pictures/unet/1"}),
        "config is no JSON": lambda: rewritten(path, network, {"config": "{"}),
        "unknown field": lambda: rewritten(path, network, config_text(network, colour=1)),
        "enormous": lambda: rewritten(path, network, config_text(network, widths=[10**9])),
        "another width": lambda: rewritten(path, network, config_text(network, widths=[48, 64])),
        "a tensor too few": lambda: rewritten(path, network, None, {first: None}),
        "a tensor too many": lambda: rewritten(path, network, None, {"more": torch.zeros(1)}),
        "not numbers": lambda: rewritten(
            path, network, None, {first: network.state_dict()[first] * float("nan")}),
    }
    make[name]()
    with pytest.raises(MusicError, match=said) as error:
        unet.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_no_flipped_byte_does_worse_than_one_line(network, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    good = folder / "flip-good.safetensors"
    if not good.exists():
        unet.save(network, good)
    content = bytearray(good.read_bytes())
    where = data.draw(st.integers(0, 4000) | st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    (folder / "flip-bad.safetensors").write_bytes(content)
    try:
        assert isinstance(unet.load(folder / "flip-bad.safetensors"), unet.UNet)
    except MusicError as error:
        assert "\n" not in str(error)
