"""The diffusion maths against closed forms and `diffusers`, its samplers, and generation."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch

from utils import diffusion, pianoroll, unet
from utils.files import MusicError

STEPS = 1000


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def betas(alpha_bar):
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return (1 - alpha_bar / before).numpy()


def test_the_schedule_is_that_of_diffusers_and_a_shift_moves_its_log_snr():
    plain, shifted = diffusion.cosine_schedule(STEPS), diffusion.cosine_schedule(STEPS, -3)
    theirs = diffusers.DDPMScheduler(STEPS, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(plain, theirs.double(), rtol=0, atol=1e-5)
    difference = diffusion.log_snr(shifted) - diffusion.log_snr(plain)
    torch.testing.assert_close(difference, torch.full_like(plain, -3), rtol=0, atol=1e-4)


def test_stratified_timesteps_take_one_from_each_part_wherever_an_image_stands():
    generator = torch.Generator().manual_seed(0)
    t = torch.stack([diffusion.stratified_timesteps(5, 10, generator) for _ in range(5000)])
    assert t.dtype == torch.int64 and (t.sort(dim=1).values // 2 == torch.arange(5)).all()
    for place in t.T:
        assert np.allclose(np.bincount(place, minlength=10) / len(place), 0.1, atol=0.02)


def test_noising_is_that_of_diffusers_and_conversions_undo_it():
    alpha_bar = diffusion.cosine_schedule(STEPS)
    scheduler = diffusers.DDPMScheduler(STEPS, trained_betas=betas(alpha_bar))
    x_0, eps, t = normal(0, 4, 2, 8, 8), normal(1, 4, 2, 8, 8), torch.tensor([0, 10, 500, 998])
    a = diffusion.at(alpha_bar, t, x_0)
    x_t, v = diffusion.q_sample(x_0, eps, a), diffusion.v_from(x_0, eps, a)
    for found, wanted, tolerance in (
            (x_t, scheduler.add_noise(x_0, eps, t), 1e-5),
            (v, scheduler.get_velocity(x_0, eps, t), 1e-5),
            (diffusion.x_0_from_v(x_t, v, a), x_0, 1e-8),
            (diffusion.x_0_from_eps(x_t, eps, a), x_0, 1e-8),
            (diffusion.eps_from_x_0(x_t, x_0, a), eps, 1e-8)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def predict_x_0(x_t, t):
    """Stands for a network: depends on all it is given, and is no straight line."""
    return torch.tanh(x_t * 0.7 + t.view(-1, 1, 1, 1) / STEPS) - 0.3 * x_t.roll(1, -1)


@pytest.mark.parametrize(("sampling_steps", "shift"), [(5, 0.0), (25, 0.0), (100, -3.0)])
@pytest.mark.parametrize(("sampler", "theirs", "options"), [
    ("ddpm", "DDPMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("ddim", "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("dpm", "DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"})])
def test_each_sampler_steps_as_in_diffusers(sampler, theirs, options, sampling_steps, shift):
    """From each of our x_t, diffusers' step lands where our next x_t lies."""
    alpha_bar = diffusion.cosine_schedule(STEPS, shift)
    times = diffusion.spaced_timesteps(STEPS, sampling_steps)
    scheduler = getattr(diffusers, theirs)(
        STEPS, trained_betas=betas(alpha_bar), prediction_type="sample", **options)
    scheduler.set_timesteps(**{"timesteps": times} if sampler == "dpm" else {
        "num_inference_steps": sampling_steps})
    assert scheduler.timesteps.tolist() == times
    ours, random = [], torch.Generator().manual_seed(5)
    last = diffusion.sample(predict_x_0, normal(0, 2, 2, 8, 8), alpha_bar, sampler, sampling_steps,
                            generator=random, callback=lambda i, x_t, x_0: ours.append((x_t, x_0)))
    noise = {"generator": random.manual_seed(5)} if sampler == "ddpm" else {}
    wanted = [*(x_t for x_t, _ in ours[1:]), last]
    for t, (x_t, x_0), x_s in zip(scheduler.timesteps, ours, wanted, strict=True):
        assert (scheduler.step(x_0, t, x_t, **noise).prev_sample - x_s).abs().max() < 1e-5, t


def test_the_prediction_is_clamped_to_the_limits():
    low, high = (torch.tensor(v).view(1, 2, 1, 1) for v in ([-0.5, -0.5], [0.25, 0.5]))
    found = diffusion.sample(lambda x_t, t: 10 * x_t, normal(0, 2, 2, 8, 8),
                             diffusion.cosine_schedule(STEPS), "ddim", 5, limits=(low, high))
    assert found.min() == -0.5 and found[:, 0].max() == 0.25 and found[:, 1].max() == 0.5


def test_drawn_notes_have_their_probabilities_and_an_onset_is_active():
    logits = torch.tensor([[[[-2.0, 0.0, 1.0]], [[-3.0, -1.0, 2.0]]]])
    velocity = torch.full((20_000, 1, 1, 3), 0.8)
    uniform = torch.rand(velocity.shape, generator=torch.Generator().manual_seed(0))
    notes = diffusion.draw_notes(logits.expand(20_000, -1, -1, -1), velocity, uniform)
    active, onset = notes.chunk(2, dim=1)
    assert active.unique().tolist() == [0, 1] and (active[onset > 0] == 1).all()
    torch.testing.assert_close(onset.unique(), torch.tensor([0, 0.8]))
    probability = torch.sigmoid(logits[0])
    probability[0] = probability.amax(dim=0)
    assert ((notes > 0).float().mean(dim=0) - probability).abs().max() < 0.015
    likelier = diffusion.draw_notes(logits, velocity[:1], 0.5)
    torch.testing.assert_close(likelier, torch.tensor([[[[0, 0, 1]], [[0, 0, 0.8]]]]))


def test_a_sustain_needs_an_onset_or_the_left_edge_and_a_gap_of_one_pixel_is_filled():
    h, n = pianoroll.SUSTAIN, 200
    rolls = np.array([[h, h, 0, h, h, n, h, 0, h, n], [0, h, n, n, h, h, 0, 0, n, 0]], np.uint8)
    mask = np.tile(np.arange(10) < 8, (2, 1))  # nothing is changed elsewhere
    assert diffusion.without_stray_sustains(rolls, mask).tolist() == [
        [h, h, 0, 0, 0, n, h, 0, h, n], [0, 0, n, n, h, h, 0, 0, n, 0]]
    assert diffusion.without_stray_sustains(rolls)[0, 8] == 0
    rolls = np.array([[n, 0, h, 0, h, h, 0, 0, h, 0], [n, 0, n, 0, 0, h, n, h, 0, h]], np.uint8)
    assert diffusion.without_gaps(rolls[None], mask)[0].tolist() == [
        [n, h, h, h, h, h, 0, 0, h, 0], [n, 0, n, 0, 0, h, n, h, 0, h]]
    assert diffusion.without_gaps(rolls[None], mask | True)[0, 1, 8] == h


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


def test_pitch_weights_multiply_the_odds():
    weights = torch.ones(128)
    weights[60], weights[61] = 2.0, 0.0
    weighed = torch.exp(diffusion.weigh_pitches(logits_of(0), weights[:, None]))
    torch.testing.assert_close(weighed, torch.exp(logits_of(0)) * weights[:, None])


def test_a_bar_that_would_fall_silent_is_moved_and_the_others_stay():
    logits, mask = logits_of(0), torch.ones(1, 1, 128, 128, dtype=torch.bool)
    logits[..., 32:48] -= 9
    moved = diffusion.fill_silent_bars(logits, 80.0, mask)
    expected = torch.sigmoid(moved[:, 1, :, 32:48]).sum(dim=(1, 2))
    torch.testing.assert_close(expected, torch.full((3,), 5.0), rtol=5e-3, atol=0)  # half of ten
    moved[..., 32:48] = logits[..., 32:48]
    assert torch.equal(moved, logits)


@pytest.fixture(scope="module")
def untrained():
    """A tiny network that predicts the pixel_logits, from a roll of 40 onsets."""
    notes = np.array([[3 * i, 2, 50 + i % 20, 80] for i in range(40)])
    return unet.new(pianoroll.roll_of(notes, 128, 128)[None], "tiny", styles=["song"]).eval()


@pytest.fixture
def network(untrained):
    """The same with random weights, so that it depends on all its input. It notes what it sees."""
    torch.manual_seed(0)
    network = unet.UNet(untrained.config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    network.seen, forward = [], network.forward

    def noting(x_t, log_snr, x_0_hat, known, style):
        network.seen.append((x_t, log_snr[0].item(), x_0_hat, known))
        return forward(x_t, log_snr, x_0_hat, known, style)

    network.forward = noting
    return network.eval()


@pytest.fixture
def some_roll():
    random = np.random.default_rng(0)
    notes = random.integers((0, 1, 48, 40), (120, 9, 72, 120), (80, 4))
    return pianoroll.roll_of(notes, 128, 128)


@pytest.mark.parametrize(("sampler", "exact"), [("ddpm", True), ("ddpm", False), ("dpm", False)])
def test_a_seed_generates_the_same_rolls(network, sampler, exact):
    predictions = []
    first, again, other = (
        diffusion.generate(network, 3, 4, seed, sampler=sampler, exact=exact, batch_size=2,
                           callback=lambda i, x_t, x_0: predictions.append(x_0))
        for seed in (0, 0, 1))
    assert first.shape == (3, 128, 128) and first.dtype == np.uint8
    assert set(np.unique(first)) <= {0, pianoroll.SUSTAIN, *range(129, 256)}
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    active = network.planes(predictions[0])[:, 0]
    assert torch.allclose(active, active.round(), atol=1e-5) is exact, "drawn, or expected"
    assert diffusion.generate(network, 0, 4).shape == (0, 128, 128)


@pytest.mark.parametrize(("strength", "calls"), [(1.0, 10), (0.3, 3), (0.001, 1), (0.0, 0)])
def test_the_network_is_called_once_a_step_and_the_callback_sees_each(
        network, some_roll, strength, calls):
    shapes = []
    diffusion.generate(network, 1, 10, roll=some_roll, strength=strength,
                       callback=lambda i, x_t, x_0: shapes.append((i, x_t.shape, x_0.shape)))
    assert shapes == [(i, (1, 2, 128, 128), (1, 2, 128, 128)) for i in range(calls)]
    times = diffusion.spaced_timesteps(1000, 10)[10 - calls :]
    levels = [level for _, level, _, _ in network.seen]
    assert levels == pytest.approx(diffusion.log_snr(network.schedule())[times].tolist())


def test_known_pixels_are_shown_without_noise_and_stay(network, some_roll):
    mask = np.random.default_rng(1).random((128, 128)) < 0.5
    rolls = diffusion.generate(network, 2, 3, roll=some_roll, mask=mask)
    assert (rolls[:, ~mask] == some_roll[~mask]).all() and (rolls[:, mask] != some_roll[mask]).any()
    clean = network.standardise(torch.from_numpy(pianoroll.to_planes(some_roll)))[0]
    assert len(network.seen) == 3
    for x_t, _, _, known in network.seen:
        assert np.array_equal(known[0, 0].numpy(), ~mask)
        assert torch.equal(x_t[1][:, ~mask], clean[:, ~mask])
        assert (x_t[1] - clean)[:, mask].std() > 0.05


def test_guidance_and_the_last_prediction_count_once_noise_is_weaker(network, monkeypatch):
    guided, original = [], diffusion.guided
    monkeypatch.setattr(diffusion, "guided", lambda *given: guided.append(1) or original(*given))
    diffusion.generate(network, 2, 8, batch_size=1)
    weaker = 2 * ([False] * 3 + [True] * 5)
    assert [level > -4 for _, level, _, _ in network.seen] == weaker
    assert [x is not None for _, _, x, _ in network.seen] == weaker
    assert all(x.min() >= 0 and x.max() <= 1 for _, _, x, _ in network.seen if x is not None)
    assert len(guided) == 10, "not before"


@pytest.mark.parametrize("count", [20, 60])
def test_as_many_notes_are_made_as_a_training_image_has_or_as_are_asked_for(untrained, count):
    config = dataclasses.replace(untrained.config, active_counts=(3 * count,),
                                 onset_counts=(count,), velocity_spreads=(3.0,))
    network, mask = unet.UNet(config).eval(), np.tile(np.arange(128) >= 64, (128, 1))
    network.load_state_dict(untrained.state_dict())
    rolls = diffusion.generate(network, 8, 20)
    assert (rolls > pianoroll.SUSTAIN).sum() / 8 == pytest.approx(count, rel=0.25)
    assert rolls[rolls > pianoroll.SUSTAIN].std() == pytest.approx(3, rel=0.25)
    rolls = diffusion.generate(network, 8, 20, roll=0 * rolls[0], mask=mask, onsets=2.0 * count)
    assert (rolls > pianoroll.SUSTAIN).sum() / 8 == pytest.approx(2 * count, rel=0.15)


def test_a_row_without_training_notes_stays_silent_and_a_given_one_stays(untrained):
    silent = diffusion.silent_rows(untrained)[0, 0, :, 0].numpy()
    assert silent.any() and not silent.all()
    given = np.zeros((128, 128), np.uint8)
    given[silent.argmax(), 4] = 200
    rolls = diffusion.generate(untrained, 4, 8, roll=given, mask=given == 0)
    assert (rolls[:, silent] == given[silent]).all() and rolls[:, ~silent].any()


@pytest.mark.parametrize(("options", "said"), [
    ({"style": "waltz"}, "it knows song"), ({"sampler": "euler"}, "ddpm, ddim, dpm"),
    ({"sampling_steps": 0}, "choose 1 to 1000"), ({"sampling_steps": 1001}, "choose 1 to 1000"),
    ({"strength": -0.1}, "choose 0 to 1"), ({"strength": 1.1}, "choose 0 to 1")])
def test_impossible_options_are_refused_in_one_line(untrained, options, said):
    with pytest.raises(MusicError, match=said) as error:
        diffusion.generate(untrained, 1, **options)
    assert "\n" not in str(error.value)
