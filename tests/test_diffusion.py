"""The diffusion maths against closed forms and `diffusers`, its samplers, and generation."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import diffusion, pianoroll, unet
from utils.files import MusicError

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


@given(st.integers(1, 64), st.integers(1, 1500), seeds)
@settings(max_examples=60, deadline=None)
def test_stratified_timesteps_take_one_from_each_part(batch, steps, seed):
    t = diffusion.stratified_timesteps(batch, steps, torch.Generator().manual_seed(seed))
    assert t.dtype == torch.int64 and t.shape == (batch,)
    assert t.min() >= 0 and t.max() < steps
    t, part = t.sort().values, torch.arange(batch) * steps / batch
    assert (t >= part.floor()).all() and (t <= (part + steps / batch).ceil()).all()


def test_stratified_timesteps_are_uniform_in_the_end():
    generator = torch.Generator().manual_seed(0)
    t = torch.cat([diffusion.stratified_timesteps(7, 10, generator) for _ in range(5000)])
    assert np.allclose(np.bincount(t, minlength=10) / len(t), 0.1, atol=0.005)
    for place in t.view(-1, 7).T:  # wherever in its batch an image stands
        assert np.allclose(np.bincount(place, minlength=10) / len(place), 0.1, atol=0.02)


# ---------------------------------------------------------------- forward process, conversions


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
        (diffusion.x_0_from_v(x_t, v, a), x_0),
        (diffusion.x_0_from_eps(x_t, eps, a), x_0), (diffusion.eps_from_x_0(x_t, x_0, a), eps),
    ):
        assert torch.allclose(found, wanted, atol=1e-8)


# ---------------------------------------------------------------- samplers against diffusers


def predict_x_0(x_t, t):
    """Stands for a network: depends on all it is given, and is no straight line."""
    return torch.tanh(x_t * 0.7 + t.view(-1, 1, 1, 1) / STEPS) - 0.3 * x_t.roll(1, -1)


def our_steps(sampler, x_t, alpha_bar, sampling_steps, seed=0):
    """Each x_t that our sampler passes."""
    way = []
    last = diffusion.sample(
        predict_x_0, x_t, alpha_bar, sampler, sampling_steps,
        generator=torch.Generator().manual_seed(seed), callback=lambda i, x, x_0: way.append(x))
    return [*way, last]


def assert_same_steps(ours, scheduler, times, **extra):
    """From each of our x_t, diffusers' step lands where our next x_t lies."""
    assert len(ours) == len(times) + 1
    for i, t in enumerate(times):
        x_0 = predict_x_0(ours[i], torch.full((len(ours[i]),), int(t)))
        theirs = scheduler.step(x_0, t, ours[i], **extra).prev_sample
        assert (theirs - ours[i + 1]).abs().max() < 1e-5, f"step {i}"


@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize("sampling_steps", [5, 25, 100])
def test_each_sampler_steps_as_in_diffusers(sampling_steps, shift):
    alpha_bar = diffusion.cosine_schedule(STEPS, shift)
    common = {"num_train_timesteps": STEPS, "trained_betas": betas(alpha_bar),
              "prediction_type": "sample"}
    x_t = normal(0, 2, 2, 8, 8)
    times = diffusion.spaced_timesteps(STEPS, sampling_steps)

    ddpm = diffusers.DDPMScheduler(**common, clip_sample=False, timestep_spacing="trailing")
    ddpm.set_timesteps(sampling_steps)
    assert ddpm.timesteps.tolist() == times
    assert_same_steps(our_steps("ddpm", x_t, alpha_bar, sampling_steps, seed=5), ddpm, times,
                      generator=torch.Generator().manual_seed(5))

    ddim = diffusers.DDIMScheduler(**common, clip_sample=False, timestep_spacing="trailing")
    ddim.set_timesteps(sampling_steps)
    assert_same_steps(our_steps("ddim", x_t, alpha_bar, sampling_steps), ddim, times)

    dpm = diffusers.DPMSolverMultistepScheduler(**common, final_sigmas_type="zero",
                                                solver_order=2)
    dpm.set_timesteps(timesteps=times)
    assert_same_steps(our_steps("dpm", x_t, alpha_bar, sampling_steps), dpm, dpm.timesteps)


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_each_sampler_ends_at_a_perfect_prediction(sampler):
    x_0 = normal(3, 2, 2, 8, 8)
    found = diffusion.sample(lambda x_t, t: x_0, normal(0, 2, 2, 8, 8),
                             diffusion.cosine_schedule(STEPS), sampler, 10)
    assert torch.allclose(found, x_0, atol=1e-6)


def test_the_second_order_step_is_nearer_the_truth():
    """Data N(0, 0.5²): the best prediction is known, and so is where each start should end."""
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


def test_the_prediction_is_clamped_to_the_limits():
    low, high = (torch.tensor(v).view(1, 2, 1, 1) for v in ([-0.5, -0.5], [0.25, 0.5]))
    found = diffusion.sample(lambda x_t, t: 10 * x_t, normal(0, 2, 2, 8, 8),
                             diffusion.cosine_schedule(STEPS), "ddim", 5, limits=(low, high))
    assert found.min() == -0.5 and found[:, 0].max() == 0.25 and found[:, 1].max() == 0.5


@given(st.integers(1, 1500), st.data())
@settings(max_examples=60, deadline=None)
def test_spaced_timesteps_fall_from_the_last(steps, data):
    count = data.draw(st.integers(1, steps))
    times = diffusion.spaced_timesteps(steps, count)
    assert len(times) == count and times[0] == steps - 1 and times[-1] >= 0
    assert (np.diff(times) < 0).all()


def test_a_sustain_needs_an_onset_or_the_left_edge():
    h, n = pianoroll.SUSTAIN, 200
    rolls = np.array([[h, h, 0, h, h, n, h, 0, h, n], [0, h, n, n, h, h, 0, 0, n, 0]], np.uint8)
    kept = diffusion.without_stray_sustains(rolls)
    assert kept.tolist() == [[h, h, 0, 0, 0, n, h, 0, 0, n], [0, 0, n, n, h, h, 0, 0, n, 0]]
    assert rolls[0, 3] == h, "the argument is left as it was"
    masked = diffusion.without_stray_sustains(rolls, np.arange(10) < 8)
    assert masked[0, 8] == h and not masked[0, 3:5].any(), "only the mask is changed"
    music = pianoroll.roll_of(np.array([[0, 4, 60, 50], [4, 4, 60, 80]]), 128, 20)
    assert (diffusion.without_stray_sustains(music) == music).all()


def test_a_gap_of_one_pixel_in_a_note_is_filled_where_the_mask_allows_it():
    h, n = pianoroll.SUSTAIN, 200
    rolls = np.array([[[n, 0, h, 0, h, h, 0, 0, h, 0], [n, 0, n, 0, 0, h, n, h, 0, h]]], np.uint8)
    mask = np.ones((2, 10), bool)
    assert diffusion.without_gaps(rolls, mask)[0].tolist() == [
        [n, h, h, h, h, h, 0, 0, h, 0], [n, 0, n, 0, 0, h, n, h, h, h]]
    assert rolls[0, 0, 1] == 0, "the argument is left as it was"
    mask[:, 8] = mask[0, 1] = False
    assert diffusion.without_gaps(rolls, mask)[0, :, [1, 3, 8]].tolist() == [[0, 0], [h, 0], [h, 0]]


@pytest.mark.parametrize(("sampler", "count", "said"), [
    ("euler", 5, "ddpm, ddim, dpm"), ("ddim", 0, "choose 1 to 10"), ("ddim", 11, "choose 1 to 10")])
def test_impossible_samplers_and_steps_are_refused_in_one_line(sampler, count, said):
    with pytest.raises(MusicError, match=said) as error:
        diffusion.sample(predict_x_0, normal(0, 1, 2, 8, 8), diffusion.cosine_schedule(10),
                         sampler, count)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- x_0 of notes: drawn or expected


def test_drawn_notes_have_their_probabilities_and_an_onset_is_active():
    logits = torch.tensor([[[[-2.0, 0.0, 1.0]], [[-3.0, -1.0, 2.0]]]]).expand(20_000, -1, -1, -1)
    velocity = torch.full((20_000, 1, 1, 3), 0.8)
    uniform = torch.rand(velocity.shape, generator=torch.Generator().manual_seed(0))
    active, onset = diffusion.draw_notes(logits, velocity, uniform).chunk(2, dim=1)
    assert torch.equal(active.unique(), torch.tensor([0.0, 1.0]))
    assert torch.equal(onset.unique(), torch.tensor([0.0, 0.8]))
    assert (active[onset > 0] == 1).all()
    probability = torch.sigmoid(logits[:1])
    probability[:, :1] = probability.amax(dim=1, keepdim=True)
    found = torch.cat([active, (onset > 0).float()], dim=1).mean(dim=0, keepdim=True)
    assert (found - probability).abs().max() < 0.015
    likelier = diffusion.draw_notes(logits[:1], velocity[:1], 0.5)
    torch.testing.assert_close(likelier, torch.tensor([[[[0, 0, 1]], [[0, 0, 0.8]]]]))


ROLLS = torch.tensor([[0, 0, 0], [2, 1, 1], [2, 1, 0], [2, 0, 2], [0, 2, 1], [2, 2, 2]])
OFTEN = torch.tensor([0.3, 0.25, 0.1, 0.15, 0.15, 0.05], dtype=torch.float64)


def distance_of_toy(draw, steps, count=20_000):
    """Three pixels in a row, each silent (0), sustained (1) or an onset (2), of which only six
    combinations exist. How far `count` samples are from that: total variation, 0 to 1.

    The prediction is each pixel's exact marginal given x_t, by enumeration; all that is not exact
    is that pixels are predicted apart from each other, as a network does.
    """
    x_0 = torch.stack([ROLLS > 0, ROLLS == 2], dim=1).double()[:, :, None] * 2 - 1  # [6, 2, 1, 3]
    alpha_bar, generator = diffusion.cosine_schedule(STEPS), torch.Generator().manual_seed(0)
    last = diffusion.spaced_timesteps(STEPS, steps)[-1]

    def predict(x_t, t):
        a = alpha_bar[t[0]]
        apart = (x_t[:, None] - a**0.5 * x_0).square().sum((2, 3, 4))  # [count, 6]
        weight = torch.softmax(OFTEN.log() - apart / (2 * (1 - a)), dim=1)
        logits = torch.logit(torch.einsum("bn,nchw->bchw", weight, (x_0 + 1) / 2), eps=1e-12)
        velocity = torch.ones_like(logits[:, 1:])
        if not draw:
            return diffusion.expect_notes(logits, velocity) * 2 - 1
        uniform = torch.rand(velocity.shape, generator=generator, dtype=torch.float64)
        return diffusion.draw_notes(logits, velocity, uniform if t[0] > last else 0.5) * 2 - 1

    x_t = torch.randn(count, 2, 1, 3, generator=generator, dtype=torch.float64)
    found = diffusion.sample(predict, x_t, alpha_bar, "ddpm", steps, generator=generator)
    kinds = (found[:, :, 0] > 0).sum(dim=1)  # [count, 3]
    share = (kinds[:, None] == ROLLS).all(dim=2).double().mean(dim=0)  # of each existing one
    return ((share - OFTEN).abs().sum() + 1 - share.sum()).item() / 2


def test_drawn_notes_come_closer_to_the_joint_distribution_than_expected_ones():
    """20,000 samples of the true distribution have a total variation of about 0.006 themselves."""
    drawn, expected = ([distance_of_toy(draw, steps) for steps in (5, 10, 100)]
                       for draw in (True, False))
    assert drawn[0] < 0.75 * expected[0] and drawn[1] < 0.75 * expected[1], "at equal steps"
    for way in (drawn, expected):
        assert way[0] > way[1] > way[2] and way[2] < 0.015, "both approach it as the steps grow"


# ---------------------------------------------------------------- conditions on the log odds


def logits_of(seed):
    return normal(seed, 3, 2, 128, 128).float() - 3


def test_guidance_moves_away_from_the_evidence_and_keeps_the_mean():
    logits, pixel_logits = logits_of(0), logits_of(1)
    assert torch.equal(diffusion.guided(logits, pixel_logits, 1.0), logits)
    more = diffusion.guided(logits, pixel_logits, 2.0)
    moved = more - (pixel_logits + 2 * (logits - pixel_logits))
    assert moved.std(dim=(2, 3)).max() < 1e-4 < moved.abs().min(), "by one number for each plane"
    before, after = (torch.sigmoid(x).mean(dim=(2, 3)) for x in (logits, more))
    torch.testing.assert_close(after, before, rtol=2e-3, atol=1e-6)


def test_guidance_begins_above_a_noise_level(network):
    calls, guided = [], diffusion.guided
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "guided", lambda *given: calls.append(1) or guided(*given))
        diffusion.generate(network, 1, 20)
    times = diffusion.spaced_timesteps(network.config.noise_steps, 20)
    levels = diffusion.log_snr(network.schedule())[times]
    assert len(calls) == (levels > -4).sum() < 20


def test_velocities_are_stretched_to_a_spread_about_their_mean():
    velocity = 0.8 + 0.05 * normal(0, 3, 1, 128, 128)
    onset = torch.sigmoid(normal(1, 3, 1, 128, 128))
    wanted = torch.tensor([0.02, 0.1, 9.0]).view(3, 1, 1, 1)
    new = diffusion.with_spread(velocity, onset, wanted)
    mean, before = ((onset * x).sum((1, 2, 3)) / onset.sum((1, 2, 3)) for x in (new, velocity))
    spread = ((onset * (new - mean.view(3, 1, 1, 1)) ** 2).sum((1, 2, 3))
              / onset.sum((1, 2, 3))).sqrt()
    torch.testing.assert_close(mean, before)
    torch.testing.assert_close(spread[:2], wanted[:2, 0, 0, 0].double())
    assert spread[2] < 4.1 * 0.05, "at most fourfold"


def test_pitch_weights_multiply_the_odds():
    weights = torch.ones(128, 128)
    weights[60], weights[61] = 2.0, 0.0
    odds = torch.exp(diffusion.weigh_pitches(logits_of(0), weights))
    torch.testing.assert_close(odds[:, :, 60], 2 * torch.exp(logits_of(0))[:, :, 60])
    torch.testing.assert_close(odds[:, :, 62:], torch.exp(logits_of(0))[:, :, 62:])
    assert odds[:, :, 61].max() < 1e-20


@pytest.mark.parametrize("onsets", [3.0, 300.0])
def test_the_onsets_aimed_at_are_expected_in_the_mask(onsets):
    mask = (normal(2, 1, 1, 128, 128) > 0).expand(3, -1, -1, -1)
    moved = diffusion.aim_at_onsets(logits_of(0), onsets, mask)
    expected = (torch.sigmoid(moved[:, 1:]) * mask).sum(dim=(1, 2, 3))
    torch.testing.assert_close(expected, torch.full((3,), onsets), rtol=5e-3, atol=0)
    outside = ~mask.expand_as(moved)
    assert torch.equal(moved[outside], logits_of(0)[outside])
    assert torch.equal(diffusion.aim_at_onsets(moved, onsets + 0.3, mask), moved), "near enough"


def test_a_bar_that_would_fall_silent_is_moved_and_the_others_stay():
    logits, mask = logits_of(0), torch.ones(1, 1, 128, 128, dtype=torch.bool)
    logits[..., 32:48] -= 9
    moved = diffusion.fill_silent_bars(logits, 80.0, mask)
    expected = torch.sigmoid(moved[:, 1, :, 32:48]).sum(dim=(1, 2))
    torch.testing.assert_close(expected, torch.full((3,), 5.0), rtol=5e-3, atol=0)  # half of ten
    moved[..., 32:48] = logits[..., 32:48]
    assert torch.equal(moved, logits)


# ---------------------------------------------------------------- new piano rolls


@pytest.fixture(scope="module")
def untrained():
    """A tiny network that predicts the pixel_logits, from a roll of 40 onsets."""
    notes = np.array([[3 * i, 2, 50 + i % 20, 80] for i in range(40)])
    return unet.new(pianoroll.roll_of(notes, 128, 128)[None], "tiny", styles=["song"]).eval()


@pytest.fixture(scope="module")
def network(untrained):
    """The same with random weights, so that it depends on all its input."""
    torch.manual_seed(0)
    network = unet.UNet(untrained.config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


@pytest.fixture
def some_roll():
    random = np.random.default_rng(0)
    notes = np.stack([random.integers(0, 120, 80), random.integers(1, 9, 80),
                      random.integers(48, 72, 80), random.integers(40, 120, 80)], axis=1)
    return pianoroll.roll_of(notes, 128, 128)


@pytest.mark.parametrize(("sampler", "exact"), [("ddpm", True), ("ddpm", False), ("dpm", False)])
def test_a_seed_generates_the_same_rolls(network, sampler, exact):
    first, again, other = (
        diffusion.generate(network, 3, 4, seed, sampler=sampler, exact=exact, batch_size=2)
        for seed in (0, 0, 1))
    assert first.shape == (3, 128, 128) and first.dtype == np.uint8
    assert set(np.unique(first)) <= {0, pianoroll.SUSTAIN, *range(129, 256)}
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert diffusion.generate(network, 0, 4).shape == (0, 128, 128)


@pytest.mark.parametrize(("strength", "calls"), [(1.0, 10), (0.3, 3), (0.001, 1), (0.0, 0)])
def test_the_network_is_called_once_a_step_and_the_callback_sees_each(
        network, some_roll, monkeypatch, strength, calls):
    levels, seen, forward = [], [], network.forward
    monkeypatch.setattr(network, "forward", lambda x_t, level, *rest: (
        levels.append(level[0].item()) or forward(x_t, level, *rest)))
    diffusion.generate(network, 1, 10, roll=some_roll, strength=strength,
                       callback=lambda i, x_t, x_0: seen.append((i, x_t.shape, x_0.shape)))
    assert seen == [(i, (1, 2, 128, 128), (1, 2, 128, 128)) for i in range(calls)]
    times = diffusion.spaced_timesteps(1000, 10)[10 - calls :]
    assert levels == pytest.approx(diffusion.log_snr(network.schedule())[times].tolist())


def test_pixels_outside_the_mask_stay_as_they_are(network, some_roll):
    mask = np.random.default_rng(1).random((128, 128)) < 0.5
    rolls = diffusion.generate(network, 2, 3, roll=some_roll, mask=mask)
    assert np.array_equal(rolls[:, ~mask], np.stack([some_roll[~mask]] * 2))
    assert (rolls[:, mask] != some_roll[mask]).any()


def test_the_network_is_shown_the_known_pixels_without_noise(network, some_roll, monkeypatch):
    mask, seen, forward = np.random.default_rng(1).random((128, 128)) < 0.5, [], network.forward
    monkeypatch.setattr(network, "forward", lambda x_t, level, x_0_hat, known, style: (
        seen.append((x_t, known)) or forward(x_t, level, x_0_hat, known, style)))
    diffusion.generate(network, 1, 3, roll=some_roll, mask=mask)
    clean = network.standardise(torch.from_numpy(pianoroll.to_planes(some_roll)))[0]
    assert len(seen) == 3
    for x_t, known in seen:
        assert np.array_equal(known[0, 0].numpy(), ~mask)
        assert torch.equal(x_t[0][:, known[0, 0]], clean[:, known[0, 0]])
        assert (x_t[0] - clean)[:, ~known[0, 0]].std() > 0.05


def test_each_call_sees_the_last_prediction_of_its_batch_once_noise_is_weaker(network, monkeypatch):
    seen, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda x_t, level, x_0_hat, *rest: (
        seen.append((level[0].item(), x_0_hat)) or forward(x_t, level, x_0_hat, *rest)))
    diffusion.generate(network, 2, 8, batch_size=1)
    assert [x is None for _, x in seen] == [level <= diffusion.GUIDED for level, _ in seen]
    assert [x is None for _, x in seen] == [True, True, True, *[False] * 5] * 2
    assert all(x.min() >= 0 and x.max() <= 1 for _, x in seen if x is not None)


@pytest.mark.parametrize("count", [20, 60])
def test_a_new_piece_aims_at_as_many_notes_as_a_training_image_has(untrained, count):
    network = unet.UNet(dataclasses.replace(untrained.config, active_counts=(3 * count,),
                                            onset_counts=(count,))).eval()
    network.load_state_dict(untrained.state_dict())
    rolls = diffusion.generate(network, 8, 20)
    assert (rolls > pianoroll.SUSTAIN).sum() / 8 == pytest.approx(count, rel=0.25)


def test_a_row_without_training_notes_stays_silent_and_a_given_one_stays(untrained):
    silent = diffusion.silent_rows(untrained)[0, 0, :, 0].numpy()
    assert silent.any() and not silent.all()
    given = np.zeros((128, 128), np.uint8)
    given[silent.argmax(), 4] = 200
    rolls = diffusion.generate(untrained, 4, 8, roll=given, mask=given == 0)
    assert (rolls[:, silent] == given[silent]).all() and rolls[:, ~silent].any()


def test_a_weight_of_0_forbids_a_pitch_in_every_sample(network):
    weights = np.ones((128, 128), np.float32)
    weights[48:72:2] = 0
    rolls = diffusion.generate(network, 4, 4, pitch_weights=weights)
    assert not rolls[:, 48:72:2].any() and rolls[:, 49:72:2].any()


@pytest.mark.parametrize("onsets", [30.0, 120.0])
def test_the_number_of_onsets_is_near_what_is_aimed_at(untrained, onsets):
    """Tolerance: 15% of the mean of eight rolls."""
    mask = np.zeros((128, 128), bool)
    mask[:, 64:] = True
    rolls = diffusion.generate(untrained, 8, 20, roll=np.zeros_like(mask, np.uint8), mask=mask,
                               onsets=onsets)
    assert (rolls > pianoroll.SUSTAIN).sum() / 8 == pytest.approx(onsets, rel=0.15)


@pytest.mark.parametrize(("options", "said"), [
    ({"style": "waltz"}, "it knows song"), ({"sampler": "euler"}, "ddpm, ddim, dpm"),
    ({"sampling_steps": 0}, "choose 1 to 1000"), ({"sampling_steps": 1001}, "choose 1 to 1000"),
    ({"strength": -0.1}, "choose 0 to 1"), ({"strength": 1.1}, "choose 0 to 1")])
def test_impossible_options_are_refused_in_one_line(network, options, said):
    with pytest.raises(MusicError, match=said) as error:
        diffusion.generate(network, 1, **options)
    assert "\n" not in str(error.value)
