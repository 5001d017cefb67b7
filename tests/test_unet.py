"""The network: shapes, its pixelwise evidence, its file, and files that are not its own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import diffusion, unet
from utils.files import MusicError
from utils.pianoroll import HELD, to_planes


def some_levels(seed=0, count=3):
    """Random notes between rows 40 and 80."""
    random = np.random.default_rng(seed)
    levels = np.zeros((count, 128, 128), np.uint8)
    for picture in levels:
        for _ in range(60):
            row, start, length = random.integers((40, 0, 1), (80, 120, 8))
            picture[row, start : start + length] = HELD
            picture[row, start] = random.integers(160, 255)
    return levels


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = unet.new(some_levels(), "tiny")
    for parameter in network.parameters():  # a trained one has no zeros left
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def noised(network, log_snr, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_0 = network.standardise(torch.from_numpy(to_planes(some_levels(1))))
    log_snr = torch.full((len(x_0),), float(log_snr))
    eps = torch.randn(x_0.shape, generator=generator)
    return diffusion.q_sample(x_0, eps, torch.sigmoid(log_snr).view(-1, 1, 1, 1)), log_snr, x_0


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("size", unet.SIZES)
def test_each_size_takes_and_gives_pictures(size):
    network = unet.new(some_levels(), size).eval()
    with torch.no_grad():
        logits, loudness = network(torch.randn(1, 2, 128, 128), torch.zeros(1))
    assert logits.shape == (1, 2, 128, 128) and loudness.shape == (1, 1, 128, 128)
    assert logits.isfinite().all() and loudness.isfinite().all()


def test_standardised_pictures_have_mean_0_and_variance_1(network):
    planes = torch.from_numpy(to_planes(some_levels()))
    x_0 = network.standardise(planes)
    assert torch.allclose(x_0.mean((0, 2, 3)), torch.zeros(2), atol=1e-4)
    assert torch.allclose(x_0.var((0, 2, 3)), torch.ones(2), atol=1e-3)
    assert torch.allclose(network.planes(x_0), planes, atol=1e-6)
    low, high = network.limits
    assert (x_0 >= low - 1e-5).all() and (x_0 <= high + 1e-5).all()


def test_rows_outside_the_band_keep_their_own_evidence(network):
    config = network.config
    assert config.low_row == 24 and config.rows % 24 == 0 and config.low_row + config.rows >= 87
    x_t, log_snr, _ = noised(network, 0)
    with torch.no_grad():
        change = network.context(torch.cat([x_t, x_t], 1), log_snr)
    assert change.shape == (3, 3, 128, 128)
    assert (change[:, :, : config.low_row] == 0).all()
    assert (change[:, :, config.low_row + config.rows :] == 0).all()
    assert (change[:, :, 40:80] != 0).any()


def test_it_knows_from_the_start_how_often_each_row_sounds(network):
    levels = some_levels()
    often = torch.sigmoid(network.prior[0, :, :, 0])  # [2, 128]
    assert abs(often[0].sum() - (levels > 0).mean((0, 2)).sum()) < 0.01
    assert (often[:, :30] < 2e-5).all() and (often[1, 44:76] > 1e-3).all()


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_unfold_undoes_fold(seed):
    x = torch.randn(2, 3, 36, 16, generator=torch.Generator().manual_seed(seed))
    assert unet.fold(x).shape == (2, 144, 3, 4)
    assert torch.equal(unet.unfold(unet.fold(x)), x)
    assert torch.equal(unet.fold(x)[0, 48 + 4 * 5 + 3, 2, 1], x[0, 1, 2 * 12 + 5, 4 + 3])


def test_evidence_is_the_posterior_of_a_lone_pixel(network):
    """Against a simulation: of all the pixels that look so, the share that is an onset."""
    generator, a = torch.Generator().manual_seed(0), torch.tensor(0.2)
    high = torch.rand(256, 2, 128, 128, generator=generator) < torch.sigmoid(network.prior)
    x_0 = network.standardise(high * network.loud)
    x_t = diffusion.q_sample(x_0, torch.randn(x_0.shape, generator=generator), a)
    logits, _ = network.evidence(x_t, torch.logit(a).expand(256))
    guess = torch.sigmoid(logits)
    for low, up in ((0.05, 0.2), (0.2, 0.5), (0.5, 0.8)):
        chosen = (guess > low) & (guess < up)
        assert abs(high[chosen].float().mean() - guess[chosen].mean()) < 0.03


def test_a_new_network_says_what_the_pixels_say():
    network = unet.new(some_levels(), "tiny")
    x_t, log_snr, x_0 = noised(network, 6)
    with torch.no_grad():
        assert torch.equal(network(x_t, log_snr)[0], network.evidence(x_t, log_snr)[0])
        assert (network.x_0(x_t, log_snr) - x_0).abs().mean() < 0.05


def test_guidance_multiplies_what_the_others_say_and_keeps_how_much_sounds(network):
    x_t, log_snr, _ = noised(network, -2)
    with torch.no_grad():
        alone = network.evidence(x_t, log_snr)[0]
        plain, more = (network(x_t, log_snr, w)[0] for w in (1.0, 2.0))
    moved = more - (alone + 2 * (plain - alone))
    assert (plain - alone).std() > 0.01
    assert moved.std(dim=(2, 3)).max() < 1e-4, "one number for each plane"
    often, before = (torch.sigmoid(x).mean(dim=(2, 3)) for x in (more, plain))
    torch.testing.assert_close(often, before, rtol=2e-3, atol=1e-6)


@given(st.integers(0, 2**31), st.floats(-12, 6), st.sampled_from([1.0, 2.0]))
@settings(max_examples=10, deadline=None)
def test_what_is_known_is_certain(network, seed, level, guidance):
    """Any pixels may be known: they come back as they are, and cost no loss."""
    x_t, log_snr, x_0 = noised(network, level)
    known = torch.rand(3, 1, 128, 128, generator=torch.Generator().manual_seed(seed)) < 0.5
    with torch.no_grad():
        x_t = torch.where(known, x_0, x_t)
        guess = network.x_0(x_t, log_snr, guidance, known)
        logits, _ = network(x_t, log_snr, guidance, known)
    same = known.expand_as(guess)
    torch.testing.assert_close(guess[same], x_0[same], rtol=0, atol=1e-4)
    assert not torch.equal(guess[~same], x_0[~same])
    target = (network.planes(x_0) > 0.25).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert loss[same].max() < 1e-6


def test_a_guess_lies_within_the_limits(network):
    low, high = network.limits
    for level in (-12, -3, 0, 8):
        with torch.no_grad():
            x_0 = network.x_0(*noised(network, level)[:2])
        assert x_0.isfinite().all()
        assert (x_0 >= low - 1e-4).all() and (x_0 <= high + 1e-4).all()


def test_it_learns_a_picture_by_heart():
    torch.manual_seed(0)
    network = unet.new(some_levels(1, 1), "tiny")
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    x_t, log_snr, x_0 = noised(network, -2)
    losses = []
    for _ in range(30):
        loss = (network.x_0(x_t, log_snr) - x_0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("change", [
    {"widths": ()}, {"widths": (20,)}, {"widths": (32,) * 5}, {"widths": (10**9,)}, {"blocks": 0},
    {"std": (0.1, 0.0)}, {"mean": (float("nan"), 0.1)}, {"rows": 13}, {"low_row": -1},
    {"onset_mean": 2.0}, {"noise_steps": 0}])
def test_an_impossible_configuration_is_refused(change):
    with pytest.raises(MusicError, match="configuration"):
        unet.Config(**change)


def test_pictures_without_a_note_and_unknown_sizes_are_refused():
    with pytest.raises(MusicError, match="no note"):
        unet.config_for(np.zeros((2, 128, 128), np.uint8))
    with pytest.raises(MusicError, match="tiny, small, medium, base"):
        unet.config_for(some_levels(), "huge")


# ---------------------------------------------------------------- painting


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_painting_gives_pictures_and_a_seed_the_same_ones(network, sampler):
    seen = []
    paint = [diffusion.paint(network, 3, sampler, 4, seed, 2, lambda i, x_t, x_0: seen.append(i))
             for seed in (0, 0, 1)]
    assert paint[0].shape == (3, 128, 128) and paint[0].dtype == np.uint8
    assert set(np.unique(paint[0])) <= {0, HELD, *range(129, 256)}
    assert (paint[0] == paint[1]).all() and (paint[0] != paint[2]).any()
    assert seen == [0, 1, 2, 3] * 6
    assert diffusion.paint(network, 0, sampler, 4).shape == (0, 128, 128)


# ---------------------------------------------------------------- the file


def test_saving_and_loading_gives_the_same_network(network, tmp_path):
    path = unet.save(network, tmp_path / "models" / "net.safetensors", steps=7, corpus="built-in")
    again = unet.load(path)
    assert again.config == network.config and not again.training
    assert unet.facts_of(path) == {"steps": 7, "corpus": "built-in"}
    x_t, log_snr, _ = noised(network, -1)
    with torch.no_grad():
        assert torch.allclose(again.x_0(x_t, log_snr), network.x_0(x_t, log_snr), atol=1e-5)
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
    ("missing", "no such file"), ("empty", "damaged"), ("text", "damaged"), ("cut", "damaged"),
    ("pickle", "damaged"), ("foreign", "not a network"), ("without metadata", "not a network"),
    ("other format", "not a network"), ("config is no JSON", "damaged"),
    ("config of another kind", "damaged"), ("unknown field", "damaged"),
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
        "text": lambda: path.write_text("these are not weights, this is text" * 10),
        "cut": lambda: path.write_bytes(good.read_bytes()[:-1000]),
        "pickle": lambda: torch.save(network.state_dict(), path),
        "foreign": lambda: safetensors.torch.save_file({"a": torch.zeros(2)}, path, {"x": "y"}),
        "without metadata": lambda: safetensors.torch.save_file(network.state_dict(), path),
        "other format": lambda: rewritten(path, network, {"format": "another/2"}),
        "config is no JSON": lambda: rewritten(path, network, {"config": "{"}),
        "config of another kind": lambda: rewritten(path, network, {"config": "[1, 2]"}),
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
    bytes_ = bytearray(good.read_bytes())
    where = data.draw(st.integers(0, 4000) | st.integers(0, len(bytes_) - 1))
    bytes_[where] ^= data.draw(st.integers(1, 255))
    (folder / "flip-bad.safetensors").write_bytes(bytes_)
    try:
        assert isinstance(unet.load(folder / "flip-bad.safetensors"), unet.UNet)
    except MusicError as error:
        assert "\n" not in str(error)
