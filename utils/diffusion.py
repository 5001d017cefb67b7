"""Diffusion: noise a picture step by step, and walk back. Explained in notebook 02.

Notation of Ho et al. 2020 (arXiv:2006.11239): `x_0` is data, `x_t` noised data, `eps` the noise,

    x_t = sqrt(alpha_bar[t]) x_0 + sqrt(1 - alpha_bar[t]) eps,    t = 0 … T - 1, noisier as t grows.

A schedule is the tensor `alpha_bar`, float64 `[T]`. A network guesses `x_0`, `eps` or `v`; the
conversions below turn one into another, and the samplers all work from a guess of `x_0`.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from utils.files import MusicError
from utils.pianoroll import DIFFUSION, HELD, SILENCE, from_planes

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


def stratified_timesteps(batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """One random t from each of `batch` equal parts of 0 … steps - 1, int64 `[batch]`.

    Each t is as likely as if drawn alone, and the loss of a batch varies less (Kingma et al. 2021).
    """
    where = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
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
    """The x_0 that a guess of v means."""
    return a**0.5 * x_t - (1 - a) ** 0.5 * v


def eps_from_v(x_t: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """The noise that a guess of v means."""
    return (1 - a) ** 0.5 * x_t + a**0.5 * v


def x_0_from_eps(x_t: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    """The x_0 that a guess of the noise means. Errors grow as 1 / sqrt(a): needs a > 0."""
    return (x_t - (1 - a) ** 0.5 * eps) / a**0.5


def eps_from_x_0(x_t: Tensor, x_0: Tensor, a: Tensor) -> Tensor:
    """The noise that a guess of x_0 means. Needs a < 1."""
    return (x_t - a**0.5 * x_0) / (1 - a) ** 0.5


def min_snr_weight(alpha_bar: Tensor, predicts: str = "v", gamma: float = 5.0) -> Tensor:
    """Weight of the squared error at each t (Hang et al. 2023): min(SNR, gamma) on x_0's error.

    The error in v is (SNR + 1) times that in x_0, the error in eps SNR times; so those divide.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / {"x_0": 1.0, "v": snr + 1, "eps": snr}[predicts]


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

    `x_0_before` and `a_before` are the guess and alpha_bar of the step before, None at the first.
    The step to a_s = 1 is of first order, and lands on x_0.
    """
    if x_0_before is None or a_s == 1:
        return ddim_step(x_t, x_0, a_t, a_s)
    lambda_before, lambda_t, lambda_s = (0.5 * math.log(a / (1 - a)) for a in (a_before, a_t, a_s))
    share = (lambda_s - lambda_t) / (lambda_t - lambda_before) / 2
    return ddim_step(x_t, x_0 + share * (x_0 - x_0_before), a_t, a_s)


# ---------------------------------------------------------------- the whole walk

SAMPLERS = ("ddpm", "ddim", "dpm")


def spaced_timesteps(steps: int, sampling_steps: int) -> list[int]:
    """`sampling_steps` of 0 … steps - 1, evenly spaced from the last down ("trailing" spacing)."""
    if not 1 <= sampling_steps <= steps:
        raise MusicError(f"sampling_steps is {sampling_steps}; choose 1 to {steps}")
    return [round(steps - i * steps / sampling_steps) - 1 for i in range(sampling_steps)]


@torch.no_grad()
def sample(predict_x_0: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, alpha_bar: Tensor,
           sampler: str = "ddpm", sampling_steps: int = 25,
           limits: tuple[Tensor, Tensor] | None = None, generator: torch.Generator | None = None,
           callback: Callable[[int, Tensor, Tensor], None] | None = None) -> Tensor:
    """From noise `x_t` `[B, C, H, W]` to a guess of x_0 of the same shape.

    `predict_x_0(x_t, t)` is the network, t int64 `[B]`. `limits` are the lowest and highest values
    that data take, tensors that broadcast; the guess is clamped to them. "ddpm" draws its noise on
    the CPU from `generator`, so a seed gives one result on a device. `callback(i, x_t, x_0)` sees
    each step. Raises `MusicError` for an unknown sampler or an impossible number of steps.
    """
    if sampler not in SAMPLERS:
        raise MusicError(f"sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    times = spaced_timesteps(len(alpha_bar), sampling_steps)
    levels = [*alpha_bar[times].tolist(), 1.0]
    before, a_before = None, 0.0
    for i, t in enumerate(times):
        x_0 = predict_x_0(x_t, torch.full((len(x_t),), t, device=x_t.device))
        if limits is not None:
            x_0 = torch.minimum(torch.maximum(x_0, limits[0]), limits[1])
        if callback is not None:
            callback(i, x_t, x_0)
        a_t, a_s = levels[i], levels[i + 1]
        if sampler == "ddpm":
            x_t = ddpm_step(x_t, x_0, a_t, a_s, noise_like(x_t, generator))
        elif sampler == "ddim":
            x_t = ddim_step(x_t, x_0, a_t, a_s)
        else:
            x_t = dpm_solver_step(x_t, x_0, a_t, a_s, before, a_before)
        before, a_before = x_0, a_t
    return x_t


@torch.no_grad()
def paint(network: torch.nn.Module, count: int, sampler: str = "ddpm", sampling_steps: int = 25,
          seed: int = 0, batch_size: int = 32,
          callback: Callable[[int, Tensor, Tensor], None] | None = None,
          guidance: float | None = None) -> np.ndarray:
    """New pictures from a `unet.UNet`, levels `uint8 [count, 128, 128]`.

    `guidance` is that of `unet.UNet.forward`, the network's own if None. The same seed on the same
    device gives the same pictures. Computes in bfloat16 where `fast_bfloat16` says so. `callback`
    is that of `sample`, called for each batch.
    """
    device = next(network.parameters()).device
    alpha_bar, limits = network.schedule(), network.limits
    noise_levels = log_snr(alpha_bar).float().to(device)
    generator = torch.Generator().manual_seed(seed)
    strength = network.config.guidance if guidance is None else guidance

    def predict_x_0(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
            return network.x_0(x_t, noise_levels[t], strength)

    painted = [np.zeros((0, DIFFUSION.pitches, DIFFUSION.steps), np.uint8)]
    for start in range(0, count, batch_size):
        size = (min(batch_size, count - start), 2, DIFFUSION.pitches, DIFFUSION.steps)
        x_t = torch.randn(size, generator=generator).to(device)
        x_0 = sample(predict_x_0, x_t, alpha_bar, sampler, sampling_steps, limits, generator,
                     callback)
        painted.append(without_lost_tails(from_planes(network.planes(x_0).cpu().numpy())))
    return np.concatenate(painted)


def without_lost_tails(levels: np.ndarray) -> np.ndarray:
    """Pictures `uint8 [..., steps]` without held pixels that no onset leads to.

    In music a tail begins with its head, or at the left edge; a network's stray pixels do not.
    """
    levels = levels.copy()
    for step in range(1, levels.shape[-1]):
        column = levels[..., step]
        column[(column == HELD) & (levels[..., step - 1] == SILENCE)] = SILENCE
    return levels


def fast_bfloat16(device: str | torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32."""
    kind = torch.device(device).type
    if kind == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return kind == "cuda" and torch.cuda.get_device_capability()[0] >= 8


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise, drawn on the CPU whatever the device of `x`."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
