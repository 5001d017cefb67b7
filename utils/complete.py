"""Paint a part of a picture so that it suits the rest. Explained in notebook 08.

Masked sampling by RePaint (Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1), on pictures of any
width, with windows that overlap by half and begin elsewhere at each step.
"""

from collections.abc import Callable

import numpy as np
import torch

from utils import diffusion, pianoroll
from utils.files import at_least
from utils.pianoroll import DIFFUSION, HELD

WIDTH = DIFFUSION.steps  # columns that the network sees at once
STRETCH = WIDTH // 2  # columns painted at once: half of what is seen is then known
SETTLED = 0.0  # log signal-to-noise ratio from which on a guess is left as it is


@torch.no_grad()
def paint_masked(network: torch.nn.Module, levels: np.ndarray, free: np.ndarray,
                 sampling_steps: int = 25, repeats: int = 4, strength: float = 1.0, seed: int = 0,
                 hop: int = 16, density: float = 0.0, guidance: float | None = None,
                 batch_size: int = 16,
                 callback: Callable[[int, np.ndarray], None] | None = None) -> np.ndarray:
    """Paint the pixels where `free`, bool `[128, W]`, so that they suit the rest of `levels`.

    `levels` is uint8 `[128, W]` with W at least 128. In a step the network guesses the whole from
    windows that overlap by half and weigh little at their borders; all but the first and the last
    begin elsewhere each time, by multiples of `hop` columns. What is known is put back, noised,
    before each step, and each step is taken `repeats` times, so that both parts grow together.
    `strength` below 1 begins with the free pixels' own levels, partly noised, and takes that share
    of the steps: none at 0, at least one above. Where fewer than `density` of the free pixels are
    expected to sound, they are made likelier while the noise is strong: after an ending a model
    expects silence. `guidance` is that of `diffusion.paint`. `callback(i, levels)` sees the guess
    of each step. Raises `MusicError` for `repeats` or `sampling_steps` below 1.
    """
    at_least(1, repeats=repeats)
    device = next(network.parameters()).device
    guidance = network.config.guidance if guidance is None else guidance
    alpha_bar, limits = network.schedule(), network.limits
    noise_levels = diffusion.log_snr(alpha_bar).float().to(device)
    random = torch.Generator().manual_seed(seed)
    times = diffusion.spaced_timesteps(len(alpha_bar), sampling_steps)
    taken = max(round(strength * sampling_steps), 1) if strength > 0 else 0
    times = times[sampling_steps - taken:]
    a = [*alpha_bar[times].tolist(), 1.0]
    known = torch.from_numpy(pianoroll.to_planes(levels))[None].to(device)  # [1, 2, 128, W]
    known = network.standardise(known)
    mask = torch.from_numpy(free).to(device)
    x_0 = known
    for i, t in enumerate(times):
        for repeat in range(repeats):
            noise = diffusion.noise_like(known, random)
            if i == repeat == 0:
                x_t = diffusion.q_sample(known, noise, a[0]) if strength < 1 else noise
            x_t = torch.where(mask, x_t, diffusion.q_sample(known, noise, a[i]))
            starts = _window_starts(free, hop, random)
            x_0 = _guess(network, x_t, noise_levels[t], starts, guidance, batch_size)
            x_0 = torch.minimum(torch.maximum(x_0, limits[0]), limits[1])
            if density and noise_levels[t] < SETTLED:
                x_0 = network.standardise(livelier(network.planes(x_0), mask, density))
            x_0 = torch.where(mask, x_0, known)
            x_s = diffusion.ddpm_step(x_t, x_0, a[i], a[i + 1], diffusion.noise_like(x_t, random))
            if repeat < repeats - 1:  # the step forward again (Ho et al., eq. 2)
                kept = a[i] / a[i + 1]
                x_t = kept**0.5 * x_s + (1 - kept) ** 0.5 * diffusion.noise_like(x_t, random)
        x_t = x_s
        if callback is not None:
            callback(i, pianoroll.from_planes(network.planes(x_0)[0].cpu().numpy()))
    painted = pianoroll.from_planes(network.planes(x_0)[0].cpu().numpy())
    return np.where(free, painted, levels)


def livelier(planes: torch.Tensor, mask: torch.Tensor, density: float) -> torch.Tensor:
    """Expected planes `[1, 2, 128, W]` with the log odds of each free pixel raised by one number,
    so that a share of at least `density` of them is expected to sound."""
    p = planes[0, 0][mask].double().clamp(1e-9, 1 - 1e-9)
    low, high = 0.0, 20.0
    if not len(p) or p.mean() >= density:
        return planes
    for _ in range(20):  # bisection
        middle = (low + high) / 2
        enough = torch.sigmoid(torch.logit(p) + middle).mean() >= density
        low, high = (low, middle) if enough else (middle, high)
    raised = torch.sigmoid(torch.logit(p) + high)
    result = planes.clone()
    result[0, :, mask] *= (raised / p).to(planes.dtype)
    result[0, 0][mask] = raised.to(planes.dtype)
    return result.clamp(0, 1)


def _window_starts(free: np.ndarray, hop: int, random: torch.Generator) -> list[int]:
    """Where windows begin: half a window apart, moved by a random number of hops (of parts of one
    that is longer than a quarter of a window), and only those that hold something to paint."""
    last = free.shape[1] - WIDTH
    hop = next(part for part in range(min(hop, WIDTH // 4), 0, -1) if hop % part == 0)
    shift = int(torch.randint(WIDTH // 2 // hop, (), generator=random)) * hop
    starts = {min(max(start, 0), last) for start in range(-shift, last + WIDTH // 2, WIDTH // 2)}
    return sorted(start for start in starts if free[:, start : start + WIDTH].any())


def _guess(network: torch.nn.Module, x_t: torch.Tensor, noise_level: torch.Tensor,
           starts: list[int], guidance: float, batch_size: int) -> torch.Tensor:
    """x_0 `[1, 2, 128, W]` from windows; where they overlap the one nearer its middle weighs more.

    A few windows are in memory at once, however wide the picture is.
    """
    total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1, :1])
    tent = torch.minimum(torch.arange(1, WIDTH + 1), torch.arange(WIDTH, 0, -1)).to(x_t)
    fast, kind = diffusion.fast_bfloat16(x_t.device), x_t.device.type
    for at in range(0, len(starts), batch_size):
        some = starts[at : at + batch_size]
        batch = torch.cat([x_t[..., start : start + WIDTH] for start in some])
        with torch.autocast(kind, torch.bfloat16, enabled=fast):
            guess = network.x_0(batch, noise_level.expand(len(some)), guidance)
        for start, one in zip(some, guess.float(), strict=True):
            total[0, ..., start : start + WIDTH] += one * tent
            weight[..., start : start + WIDTH] += tent
    return total / weight.clamp(min=1e-9)


def paint_bars(network: torch.nn.Module, kept: np.ndarray, begin: int, end: int,
               levels: np.ndarray | None = None, hop: int = 16, open_end: bool = False,
               chunk: int = STRETCH, seed: int = 0, **options) -> np.ndarray:
    """Paint the columns `begin` to `end` of `kept`, uint8 `[128, steps]`, around what sounds there.

    From left to right, `chunk` columns at a time, each with up to a window of what lies before it:
    memory for painting does not grow with the length. A longer stretch would hardly listen to what
    is known: where a whole window is free, noise alone decides on a key. A stretch is painted with
    a bar more, of which only `endings` stay: how the notes that it leaves sounding go on. Only the
    last one sees what lies after `end`. `hop` is the length of a bar. `open_end`: the music goes on
    after `end`; otherwise what lies there, or silence, is known. `levels` are what a `strength`
    below 1 begins with. More `options` are those of `paint_masked`. A new tail has a new head: no
    other would sound.
    """
    kept = np.pad(kept, ((0, 0), (0, max(end - kept.shape[1], 0))))
    result = kept.copy()
    if levels is not None:
        result[:] = 0
        result[:, : levels.shape[1]] = levels[:, : kept.shape[1]]
    chunk = max(chunk // hop, 1) * hop
    settled = kept > 0
    for number, first in enumerate(range(begin, end, chunk)):
        last = min(first + chunk, end)
        left = first - (min(first, WIDTH) // hop * hop or first)
        until = min(last + hop, end)
        right = until if last < end or open_end else last + WIDTH
        canvas = np.zeros((len(kept), max(right - left, WIDTH)), np.uint8)
        there = result[:, left : min(right, left + canvas.shape[1])]
        canvas[:, : there.shape[1]] = there
        free = np.zeros(canvas.shape, bool)
        free[:, first - left : until - left] = ~settled[:, first:until]
        free[:, right - left :] = True
        noise = (seed + 1_000_003 * number) % 2**32
        painted = paint_masked(network, canvas, free, seed=noise, hop=hop, **options)
        painted = painted[:, first - left : until - left]
        new = np.where(kept[:, first:last] > 0, 0, painted[:, : last - first])
        before = np.zeros((len(kept), 1), np.uint8)  # a tail may go on from the last stretch alone
        if first > begin:
            before = np.where(kept[:, first - 1 : first] > 0, 0, result[:, first - 1 : first])
        new = diffusion.without_lost_tails(np.concatenate([before, new], axis=1))[:, 1:]
        result[:, first:last] = np.where(kept[:, first:last] > 0, kept[:, first:last], new)
        going_on = endings(painted[:, last - first :], new[:, -1] > 0) & ~settled[:, last:until]
        result[:, last:until][going_on] = painted[:, last - first :][going_on]
        settled[:, last:until] |= going_on
    return result


def endings(levels: np.ndarray, sounding: np.ndarray) -> np.ndarray:
    """Where notes that are `sounding`, bool `[128]`, before the first column of `levels`, uint8
    `[128, W]`, go on, and the pixel after, which ends them: bool `[128, W]`."""
    found = np.zeros(levels.shape, bool)
    for step in range(levels.shape[1]):
        found[:, step] = sounding
        sounding = sounding & (levels[:, step] == HELD)
    return found
