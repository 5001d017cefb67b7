"""Diffusion: noise a piano roll step by step, and step back. Explained in notebooks 02 and 08.

Notation of Ho et al. 2020 (arXiv:2006.11239): `x_0` is data, `x_t` noised data, `eps` the noise,

    x_t = sqrt(alpha_bar[t]) x_0 + sqrt(1 - alpha_bar[t]) eps,    t = 0 … T - 1, noisier as t grows.

A schedule is the tensor `alpha_bar`, float64 `[T]`. A network predicts `x_0`, `eps` or `v`; the
conversions below turn one into another, and the samplers all work from a prediction of `x_0`.
"""

import contextlib
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from utils.files import MusicError
from utils.pianoroll import DIFFUSION, ONSET, SILENCE, SUSTAIN, from_planes, to_planes

with contextlib.suppress(ImportError):  # part of PyTorch's build for CUDA: loaded after TensorFlow,
    import triton._C.libtriton  # noqa: F401 - its LLVM would end the process

# ---------------------------------------------------------------- noise schedule


def cosine_schedule(steps: int = 1000, shift: float = 0.0) -> Tensor:
    """alpha_bar, float64 `[steps]`, falling from near 1 to near 0.

    Cosine (Nichol & Dhariwal 2021, eq. 17, each beta at most 0.999). `shift` is added to the log
    signal-to-noise ratio (Hoogeboom et al. 2023): below 0 there is more noise at every step.
    """
    if steps < 1:
        raise MusicError(f"a schedule of {steps} steps; it needs 1 or more")
    def f(t: Tensor) -> Tensor:
        return torch.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    t = torch.arange(steps, dtype=torch.float64)
    alpha_bar = (1 - (1 - f(t + 1) / f(t)).clamp(max=0.999)).cumprod(0)
    return torch.sigmoid(torch.logit(alpha_bar) + shift)


def log_snr(alpha_bar: Tensor) -> Tensor:
    """log(alpha_bar / (1 - alpha_bar)): 0 where signal and noise are equally strong."""
    return torch.logit(alpha_bar)


def stratified_timesteps(batch: int, steps: int, generator: torch.Generator | None) -> Tensor:
    """One random t from each of `batch` equal parts of 0 … steps - 1, int64 `[batch]`, shuffled.

    Each t is as likely as if drawn alone, and the loss of a batch varies less (Kingma et al. 2021).
    The order is random: a batch lists its styles one after another, and each must see every t.
    """
    part = torch.randperm(batch, generator=generator)
    where = (part + torch.rand(batch, generator=generator)) / batch
    return (where * steps).long().clamp(max=steps - 1)


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """values[t] as `[B, 1, 1, 1]`, of the type and on the device of `like`."""
    return values[t.to(values.device)].to(like.dtype).to(like.device).view(-1, 1, 1, 1)


# ---------------------------------------------------------------- forward process, conversions
# In all of these `a` is alpha_bar at the samples' t, a number or a tensor that broadcasts.


def q_sample(x_0: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    """x_t, noised in one go (Ho et al., eq. 4)."""
    return a**0.5 * x_0 + (1 - a) ** 0.5 * eps


def v_from(x_0: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    """v = sqrt(a) eps - sqrt(1 - a) x_0 (Salimans & Ho 2022, appendix D)."""
    return a**0.5 * eps - (1 - a) ** 0.5 * x_0


def x_0_from_v(x_t: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """The x_0 that a prediction of v means."""
    return a**0.5 * x_t - (1 - a) ** 0.5 * v


def x_0_from_eps(x_t: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    """The x_0 that a prediction of the noise means. Errors grow as 1 / sqrt(a): needs a > 0."""
    return (x_t - (1 - a) ** 0.5 * eps) / a**0.5


def eps_from_x_0(x_t: Tensor, x_0: Tensor, a: Tensor) -> Tensor:
    """The noise that a prediction of x_0 means. Needs a < 1."""
    return (x_t - a**0.5 * x_0) / (1 - a) ** 0.5


# ---------------------------------------------------------------- one step back, t → s
# `a_t` and `a_s` are alpha_bar (numbers) before and after the step, a_s > a_t; the last a_s is 1.


def ddpm_step(x_t: Tensor, x_0: Tensor, a_t: float, a_s: float, noise: Tensor) -> Tensor:
    """A draw from q(x_s | x_t, x_0) (Ho et al., eq. 6 and 7): ancestral sampling, adds noise."""
    kept = a_t / a_s  # alpha of the step; 1 - kept is its beta
    mean = (a_s**0.5 * (1 - kept) * x_0 + kept**0.5 * (1 - a_s) * x_t) / (1 - a_t)
    return mean + ((1 - a_s) / (1 - a_t) * (1 - kept)) ** 0.5 * noise


def ddim_step(x_t: Tensor, x_0: Tensor, a_t: float, a_s: float) -> Tensor:
    """The same noise, less of it (Song et al. 2021, eq. 12 with sigma = 0)."""
    return a_s**0.5 * x_0 + ((1 - a_s) / (1 - a_t)) ** 0.5 * (x_t - a_t**0.5 * x_0)


def dpm_solver_step(x_t: Tensor, x_0: Tensor, a_t: float, a_s: float,
                    x_0_before: Tensor | None = None, a_before: float = 0.0) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): DDIM on x_0 carried forward in a line.

    `x_0_before` and `a_before` are those of the step before, None at the first.
    The step to a_s = 1 is of first order, and lands on x_0.
    """
    if x_0_before is None or a_s == 1:
        return ddim_step(x_t, x_0, a_t, a_s)
    lambda_before, lambda_t, lambda_s = (0.5 * math.log(a / (1 - a)) for a in (a_before, a_t, a_s))
    share = (lambda_s - lambda_t) / (lambda_t - lambda_before) / 2
    return ddim_step(x_t, x_0 + share * (x_0 - x_0_before), a_t, a_s)


# ---------------------------------------------------------------- from noise to x_0

SAMPLERS = ("ddpm", "ddim", "dpm")
SAMPLING_STEPS = 50
SETTLED = -1.0  # log signal-to-noise ratio from which on the number of notes is decided
LEAST, BAR = 0.5, 16  # of the density aimed at, in each bar; columns of a bar
GUIDED = -4.0  # log signal-to-noise ratio from which on guidance and self-conditioning apply
RAREST = 5e-5  # a row where an onset is less probable, before anything is seen, stays silent
LOGIT_LIMIT = 30.0  # a pixel whose log odds lie beyond is certain
WIDTH = DIFFUSION.steps  # columns that the network sees at once


def spaced_timesteps(steps: int, sampling_steps: int) -> list[int]:
    """`sampling_steps` of 0 … steps - 1, evenly spaced from the last down ("trailing" spacing)."""
    if not 1 <= sampling_steps <= steps:
        raise MusicError(f"sampling_steps is {sampling_steps}; choose 1 to {steps}")
    return [round(steps - i * steps / sampling_steps) - 1 for i in range(sampling_steps)]


@torch.no_grad()
def sample(predict_x_0: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, alpha_bar: Tensor,
           sampler: str = "ddpm", sampling_steps: int = SAMPLING_STEPS,
           limits: tuple[Tensor, Tensor] | None = None, generator: torch.Generator | None = None,
           callback: Callable[[int, Tensor, Tensor], None] | None = None, skip: int = 0) -> Tensor:
    """From noise `x_t` `[B, C, H, W]` to a prediction of x_0 of the same shape.

    `predict_x_0(x_t, t)` is the network, t int64 `[B]`. `limits` are the lowest and highest values
    that data take, tensors that broadcast; the prediction is clamped to them. "ddpm" draws its
    noise on the CPU from `generator`, so a seed gives one result on a device. `callback(i, x_t,
    x_0)` sees each step. The first `skip` steps are left out, for an `x_t` with less noise. Raises
    `MusicError` for an unknown sampler or an impossible number of steps.
    """
    if sampler not in SAMPLERS:
        raise MusicError(f"sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    times = spaced_timesteps(len(alpha_bar), sampling_steps)[skip:]
    a = [*alpha_bar[times].tolist(), 1.0]
    before, a_before = None, 0.0
    for i, t in enumerate(times):
        x_0 = predict_x_0(x_t, torch.full((len(x_t),), t, device=x_t.device))
        if limits is not None:
            x_0 = torch.minimum(torch.maximum(x_0, limits[0]), limits[1])
        if callback is not None:
            callback(i, x_t, x_0)
        if sampler == "ddpm":
            x_t = ddpm_step(x_t, x_0, a[i], a[i + 1], noise_like(x_t, generator))
        elif sampler == "ddim":
            x_t = ddim_step(x_t, x_0, a[i], a[i + 1])
        else:
            x_t = dpm_solver_step(x_t, x_0, a[i], a[i + 1], before, a_before)
        before, a_before = x_0, a[i]
    return x_t


# ---------------------------------------------------------------- x_0 of notes: drawn or expected


def draw_notes(logits: Tensor, velocity: Tensor, uniform: Tensor | float) -> Tensor:
    """Planes `[B, 2, H, W]` of notes drawn from their probabilities: a pixel is active or not.

    `uniform` are random numbers in 0…1, `[B, 1, H, W]`; both planes share them, so an onset is
    always active. With the number 0.5 the likelier value is taken. Velocity is the predicted one.
    """
    active, onset = torch.sigmoid(logits).chunk(2, dim=1)
    is_active, is_onset = uniform < torch.maximum(active, onset), uniform < onset
    return torch.cat([is_active.to(velocity.dtype), is_onset * velocity], dim=1)


def expect_notes(logits: Tensor, velocity: Tensor) -> Tensor:
    """The expected planes `[B, 2, H, W]`: probabilities, and onset probability times velocity."""
    active, onset = torch.sigmoid(logits).chunk(2, dim=1)
    return torch.cat([active, onset * velocity], dim=1)


# ---------------------------------------------------------------- conditions on the log odds


def guided(logits: Tensor, pixel_logits: Tensor, guidance: float) -> Tensor:
    """Logits `[B, 2, H, W]` moved further from `pixel_logits` than the network's prediction is.

    Autoguidance (Karras et al. 2024, arXiv:2406.02507): a pixel read alone is the worse predictor
    that we lead away from. Above 1 the notes agree better. It decides which pixels are active, not
    how many: the mean probability of each plane is kept. `generate` guides only where the log
    signal-to-noise ratio is above `GUIDED` (Kynkäänniemi et al. 2024, arXiv:2404.07724): where
    nearly all is noise, guidance would make all pieces alike.
    """
    if guidance == 1:
        return logits
    mean = torch.sigmoid(logits).mean(dim=(2, 3), keepdim=True)
    return with_mean(pixel_logits + guidance * (logits - pixel_logits), mean)


def weigh_pitches(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits with the odds of each pixel multiplied by its weight; a weight of 0 forbids a note.

    `weights` broadcast to the logits, `[B, 2, H, W]`. A table of chords or a scale guides a network
    that never learned either (FGG, Zhu et al. 2025, arXiv:2410.08435).
    """
    return logits + torch.log(weights.clamp(min=1e-30)).to(logits.dtype)


def aim_at_onsets(logits: Tensor, onsets: Tensor | float, where: Tensor) -> Tensor:
    """Logits `[B, 2, H, W]`, moved by one number within `where`, bool `[B, 1, H, W]`.

    Both planes are moved alike, so that `onsets` onsets are expected there in each roll. Nothing
    is moved where so many are expected already, to within half an onset.
    """
    onset, size = logits[:, 1:], where.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    aim = (onsets / size).clamp(max=0.5).to(logits.dtype)
    wrong = (expected_onsets(logits, where) - aim * size).abs() > 0.5
    moved = with_mean(onset, aim, where)
    return torch.where(where & wrong, logits + (moved - onset), logits)


def fill_silent_bars(logits: Tensor, onsets: float, where: Tensor) -> Tensor:
    """Logits `[B, 2, H, W]`, moved in those parts of `BAR` columns that would fall silent.

    Where less than `LEAST` of a part's share of the `onsets` is expected, it is moved to that.
    """
    share, parts = onsets / where.sum().clamp(min=1), []
    for part, inside in zip(logits.split(BAR, dim=3), where.split(BAR, dim=3), strict=True):
        least = LEAST * share * inside.sum()
        silent = expected_onsets(part, inside) < least
        parts.append(torch.where(silent, aim_at_onsets(part, least, inside), part))
    return torch.cat(parts, dim=3)


def expected_onsets(logits: Tensor, where: Tensor) -> Tensor:
    """How many onsets the logits `[B, 2, H, W]` expect within `where`: `[B, 1, 1, 1]`."""
    return torch.sigmoid(logits[:, 1:]).mul(where).sum(dim=(2, 3), keepdim=True)


def with_mean(logits: Tensor, mean: Tensor, where: Tensor | None = None) -> Tensor:
    """Logits `[B, C, H, W]`, those of a plane moved by one number, so that the mean of their
    probabilities (`where`, bool that broadcasts) is `mean`, `[B, C, 1, 1]`: found by bisection."""
    low, high = torch.full_like(mean, -LOGIT_LIMIT), torch.full_like(mean, LOGIT_LIMIT)
    weight = torch.ones_like(logits) if where is None else where.to(logits.dtype)
    weight = weight / weight.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    for _ in range(16):
        middle = (low + high) / 2
        found = (torch.sigmoid(logits + middle) * weight).sum(dim=(2, 3), keepdim=True)
        low, high = torch.where(found > mean, low, middle), torch.where(found > mean, middle, high)
    return logits + (low + high) / 2


def with_spread(velocity: Tensor, onset: Tensor, spread: Tensor) -> Tensor:
    """Velocities `[B, 1, H, W]`, stretched about their mean to the standard deviation `spread`,
    `[B, 1, 1, 1]`, each weighted by its probability `onset` of being a note's; at most fourfold.

    A network predicts the mean of the velocities that are possible, and so varies them too little.
    """
    def mean(x: Tensor) -> Tensor:
        return (onset * x).sum((2, 3), keepdim=True) / onset.sum((2, 3), keepdim=True)
    middle = mean(velocity)
    found = mean((velocity - middle) ** 2).sqrt()
    return middle + (velocity - middle) * (spread / found.clamp(min=1e-6)).clamp(max=4)


# ---------------------------------------------------------------- new piano rolls


@torch.no_grad()
def generate(network: torch.nn.Module, count: int = 1, sampling_steps: int = SAMPLING_STEPS,
             seed: int = 0, *, style: str = "", guidance: float | None = None,
             roll: np.ndarray | None = None, mask: np.ndarray | None = None, strength: float = 1.0,
             pitch_weights: np.ndarray | None = None, onsets: float = 0.0, exact: bool = True,
             sampler: str = "ddpm", batch_size: int = 32,
             callback: Callable[[int, Tensor, Tensor], None] | None = None) -> np.ndarray:
    """New piano rolls from a `unet.UNet`, uint8 `[count, 128, 128]`.

    Inpainting: where `mask`, bool `[128, 128]`, is False, `roll`, uint8 `[128, 128]`, stays as it
    is. `strength` below 1 begins with the masked pixels of `roll`, partly noised, and takes that
    share of the steps: none at 0, at least one above. `pitch_weights`, `[128, 128]`, are those of
    `weigh_pitches`; `onsets`, where above 0, is how many to aim at in the mask of each roll.
    `style` is one that the network learned, its usual one if empty; `guidance` is that of `guided`,
    the network's own if None. `exact` draws x_0's notes at each step of "ddpm" (`draw_notes`);
    without it, and with the other samplers, the expected ones are taken. `sampler`,
    `sampling_steps` and `callback` are those of `sample`. Where nothing is known and no number of
    onsets is asked for, each roll aims at as many notes as one of the training images had.
    The same seed on the same device gives the same rolls. Raises `MusicError` for an unknown style
    or sampler, or an impossible strength or number of steps.
    """
    random = torch.Generator().manual_seed(seed)
    if not 0 <= strength <= 1:
        raise MusicError(f"strength is {strength}; choose 0 to 1")
    times = spaced_timesteps(network.config.noise_steps, sampling_steps)
    skip = sampling_steps - math.ceil(strength * sampling_steps)
    rolls = [np.zeros((0, DIFFUSION.pitches, WIDTH), np.uint8)]
    roll = np.zeros((DIFFUSION.pitches, WIDTH), np.uint8) if roll is None else roll
    mask = np.ones(roll.shape, bool) if mask is None else mask
    if skip == sampling_steps:
        return np.repeat(roll[None], count, axis=0)
    for start in range(0, count, batch_size):
        predict = NotePredictor(network, roll, mask, style=style, guidance=guidance,
                                exact=exact and sampler == "ddpm", pitch_weights=pitch_weights,
                                onsets=onsets, last=times[-1], generator=random)
        size = (min(batch_size, count - start), 2, DIFFUSION.pitches, WIDTH)
        if mask.all() and not onsets and not skip:
            predict.aim_at_training_images(size[0])
        x_t = torch.randn(size, generator=random).to(predict.clean.device)
        if skip:
            x_t = q_sample(predict.clean, x_t, predict.alpha_bar[times[skip]].item())
        x_0 = sample(predict, x_t, predict.alpha_bar, sampler, sampling_steps, generator=random,
                     callback=callback, skip=skip)
        found = from_planes(network.planes(x_0).cpu().numpy())
        found = without_gaps(np.where(mask, found, roll), mask)
        rolls.append(without_stray_sustains(found, mask))
    return np.concatenate(rolls)


class NotePredictor:
    """The `predict_x_0` of `sample` for one batch of piano rolls, with its conditions: `generate`.

    It remembers its last prediction, for self-conditioning (Chen et al. 2022, arXiv:2208.04202),
    and shows it to the network from log SNR `GUIDED` on. Before that, the last prediction is too
    uncertain: fed back at each step, its errors would grow.
    """

    def __init__(self, network: torch.nn.Module, roll: np.ndarray, mask: np.ndarray, *, style: str,
                 guidance: float | None, exact: bool, pitch_weights: np.ndarray | None,
                 onsets: float, last: int, generator: torch.Generator):
        self.network, self.exact, self.onsets, self.last = network, exact, onsets, last
        self.device = next(network.parameters()).device
        self.alpha_bar = network.schedule()
        self.log_snrs = log_snr(self.alpha_bar).float().to(self.device)
        self.guidance = network.config.guidance if guidance is None else guidance
        self.style, self.generator = network.style_number(style), generator
        self.clean = network.standardise(torch.from_numpy(to_planes(roll))[None].to(self.device))
        self.mask = torch.from_numpy(mask)[None, None].to(self.device)  # [1, 1, 128, 128]
        self.known = None if mask.all() else ~self.mask
        self.weights = None if pitch_weights is None else torch.from_numpy(
            np.asarray(pitch_weights, np.float32)).to(self.device)
        self.silent = silent_rows(network) & self.mask  # [1, 1, 128, 128]
        self.x_0_hat = None  # the last prediction, probabilities [B, 2, 128, 128]
        self.mean = None  # the share of active pixels and of onsets aimed at, [B, 2, 1, 1]
        self.spread = None  # the standard deviation of the velocities aimed at, [B, 1, 1, 1]

    def aim_at_training_images(self, batch: int) -> None:
        """From now on each of `batch` rolls aims at the number of notes of a training image, and
        at the spread of its velocities."""
        config = self.network.config
        counts = torch.tensor([config.active_counts, config.onset_counts]).T
        if len(counts):
            chosen = torch.randint(len(counts), (batch,), generator=self.generator)
            mean = counts[chosen] / self.mask.numel()
            self.mean = mean.view(batch, 2, 1, 1).to(self.device)
            if config.velocity_spreads:
                spread = torch.tensor(config.velocity_spreads)[chosen] / 255
                self.spread = spread.view(batch, 1, 1, 1).to(self.device)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.known is not None:
            x_t = torch.where(self.known, self.clean, x_t)
        style, log_snr = torch.full_like(t, self.style), self.log_snrs[t[0]].item()
        x_0_hat = self.x_0_hat if log_snr > GUIDED else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            prediction = self.network(x_t, self.log_snrs[t], x_0_hat, self.known, style)
        logits = self.conditioned(prediction, log_snr)
        self.x_0_hat = torch.sigmoid(logits)
        velocity = prediction.velocity
        if self.spread is not None:
            velocity = with_spread(velocity, self.x_0_hat[:, 1:], self.spread)
        velocity = velocity.clamp((ONSET + 1) / 255, 1)
        if not self.exact:
            return self.network.standardise(expect_notes(logits, velocity))
        uniform = 0.5  # at the last step the likelier value
        if t[0] > self.last:
            uniform = torch.rand(velocity.shape, generator=self.generator).to(self.device)
        return self.network.standardise(draw_notes(logits, velocity, uniform))

    def conditioned(self, prediction: tuple[Tensor, Tensor, Tensor], log_snr: float) -> Tensor:
        """The network's logits, moved by guidance, by pitch weights, and to the onsets aimed at."""
        logits = prediction.logits
        if log_snr > GUIDED:
            logits = guided(logits, prediction.pixel_logits, self.guidance)
        logits = logits.masked_fill(self.silent, -LOGIT_LIMIT)
        if self.weights is not None:
            logits = torch.where(self.mask, weigh_pitches(logits, self.weights), logits)
        if self.onsets and log_snr < SETTLED:
            logits = aim_at_onsets(logits, self.onsets, self.mask)
            logits = fill_silent_bars(logits, self.onsets, self.mask)
        elif self.mean is not None and log_snr < SETTLED:
            logits = with_mean(logits, self.mean)
        return logits


def silent_rows(network: torch.nn.Module) -> Tensor:
    """Rows in which the training images had hardly a note, bool `[1, 1, 128, 1]`.

    A draw in so many pixels would now and then put a note there that no music has.
    """
    return network.prior[:, 1:] < math.log(RAREST)


def without_gaps(rolls: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Rolls `uint8 [..., steps]` whose notes have no gap of one pixel: it becomes a sustain.

    In music a sustained pixel follows an active one. Where a network puts one silent pixel between,
    this one is more likely wrong than all that follow it. Only pixels where `mask`, bool
    `[pitches, steps]`, is True are changed.
    """
    rolls = rolls.copy()
    before, pixel, after = rolls[..., :-2], rolls[..., 1:-1], rolls[..., 2:]
    pixel[(before > 0) & (pixel == SILENCE) & (after == SUSTAIN) & mask[:, 1:-1]] = SUSTAIN
    return rolls


def without_stray_sustains(rolls: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Rolls `uint8 [..., steps]` without sustained pixels that no onset leads to.

    In music a sustained pixel follows an onset, or the left edge; a network's stray pixels do not.
    Only pixels where `mask`, bool `[pitches, steps]`, is True are removed.
    """
    rolls = rolls.copy()
    for step in range(1, rolls.shape[-1]):
        column = rolls[..., step]
        stray = (column == SUSTAIN) & (rolls[..., step - 1] == SILENCE)
        column[stray if mask is None else stray & mask[..., step]] = SILENCE
    return rolls


def fast_bfloat16(device: str | torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32."""
    kind = torch.device(device).type
    if kind == "cpu":
        features = getattr(torch.cpu, "get_capabilities", dict)()  # since PyTorch 2.10 or 2.11
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return kind == "cuda" and torch.cuda.get_device_capability()[0] >= 8


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise, drawn on the CPU whatever the device of `x`."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
