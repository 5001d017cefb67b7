"""Paint a part of a picture so that it suits the rest. Explained in notebook 08.

A network that was trained with a part of each picture known (notebook 02) is shown what is known as
it is; only the rest is noised, and sampled as ever.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from utils import diffusion, pianoroll
from utils.pianoroll import DIFFUSION, HELD
from utils.unet import BEAT

WIDTH = DIFFUSION.steps  # columns that the network sees at once
STRETCH = WIDTH // 2  # columns to a stretch, at most
AHEAD = 16  # columns painted after a stretch to see how its last notes go on
SETTLED = 0.0  # log signal-to-noise ratio from which on a guess is left as it is


@torch.no_grad()
def paint_masked(network: torch.nn.Module, levels: np.ndarray, free: np.ndarray,
                 sampling_steps: int = 25, strength: float = 1.0, seed: int = 0,
                 density: float = 0.0, guidance: float | None = None,
                 callback: Callable[[int, np.ndarray], None] | None = None) -> np.ndarray:
    """Paint the pixels where `free`, bool `[128, 128]`, so that they suit the rest of `levels`,
    uint8 `[128, 128]`.

    `strength` below 1 begins with the free pixels' own levels, partly noised, and takes that share
    of the steps: none at 0, at least one above. Where fewer than `density` of the free pixels are
    expected to sound, they are made likelier while the noise is strong: after an ending a model
    expects silence. `guidance` is that of `diffusion.paint`. `callback(i, levels)` sees the guess
    of each step. Raises `MusicError` for `sampling_steps` below 1.
    """
    device = next(network.parameters()).device
    guidance = network.config.guidance if guidance is None else guidance
    alpha_bar, limits = network.schedule(), network.limits
    noise_levels = diffusion.log_snr(alpha_bar).float().to(device)
    random = torch.Generator().manual_seed(seed)
    times = diffusion.spaced_timesteps(len(alpha_bar), sampling_steps)
    times = times[sampling_steps - math.ceil(strength * sampling_steps) :]
    a = [*alpha_bar[times].tolist(), 1.0]
    planes = torch.from_numpy(pianoroll.to_planes(levels))[None].to(device)  # [1, 2, 128, 128]
    known = ~torch.from_numpy(free).to(device)[None, None]
    x_0 = clean = network.standardise(planes)
    x_t = diffusion.noise_like(clean, random)
    if strength < 1:
        x_t = diffusion.q_sample(clean, x_t, a[0])
    fast = diffusion.fast_bfloat16(device)
    for i, t in enumerate(times):
        x_t = torch.where(known, clean, x_t)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            x_0 = network.x_0(x_t, noise_levels[t, None], guidance, known)
        x_0 = torch.minimum(torch.maximum(x_0, limits[0]), limits[1])
        if density and noise_levels[t] < SETTLED:
            x_0 = network.standardise(livelier(network.planes(x_0), ~known[0, 0], density))
        x_t = diffusion.ddpm_step(x_t, x_0, a[i], a[i + 1], diffusion.noise_like(x_t, random))
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


def stretches(begin: int, end: int, hop: int, longest: int = STRETCH) -> list[tuple[int, int]]:
    """Where each part of `begin` to `end` begins and ends: whole bars, `hop` columns each, as equal
    as can be, and no part longer than `longest`, 4 to 64 columns. Longer bars count in beats."""
    hop = hop if hop <= longest else BEAT
    bars = -(-(end - begin) // hop)
    parts = -(-bars // (longest // hop))
    step = -(-bars // parts) * hop
    return [(first, min(first + step, end)) for first in range(begin, end, step)]


def paint_bars(network: torch.nn.Module, kept: np.ndarray, begin: int, end: int,
               levels: np.ndarray | None = None, hop: int = 16, open_end: bool = False,
               longest: int = STRETCH, seed: int = 0, **options) -> np.ndarray:
    """Paint the columns `begin` to `end` of `kept`, uint8 `[128, steps]`, around what sounds there.

    From left to right, in `stretches`, so that memory does not grow with the length. The network's
    window shows it what lies before a stretch, kept or new; the last stretch of a gap is put in the
    middle of its window, to be led back to what lies behind. Windows begin whole bars, of `hop`
    columns, before a stretch, or whole beats where a bar is too long. Of what is painted after a
    stretch only `endings` stay. `open_end`: the music goes on after `end`; otherwise what lies
    there, or silence, is known. `levels` are what a `strength` below 1 begins with. More `options`
    are those of `paint_masked`. A new tail has a new head: no other would sound.
    """
    kept = np.pad(kept, ((0, 0), (0, max(end - kept.shape[1], 0))))
    result = kept.copy()
    if levels is not None:
        result[:] = 0
        result[:, : levels.shape[1]] = levels[:, : kept.shape[1]]
    settled = kept > 0
    for number, (first, last) in enumerate(stretches(begin, end, hop, longest)):
        until = min(last + AHEAD, end)
        behind = 0
        if last == end and not open_end:  # of silence after the piece, a bar is enough
            behind = min((WIDTH - (last - first)) // 2, kept.shape[1] - end + hop)
        before = min(first, WIDTH - (until - first) - behind)
        left = first - (before // hop * hop or before // BEAT * BEAT)
        free = ~_window(settled, left)
        free[:, : first - left] = False
        if not open_end:
            free[:, end - left :] = False
        noise = (seed + 1_000_003 * number) % 2**32
        painted = paint_masked(network, _window(result, left), free, seed=noise, **options)
        painted = painted[:, first - left : until - left]
        new = np.where(kept[:, first:last] > 0, 0, painted[:, : last - first])
        head = np.zeros((len(kept), 1), np.uint8)  # a tail may go on from the last stretch alone
        if first > begin:
            head = np.where(kept[:, first - 1 : first] > 0, 0, result[:, first - 1 : first])
        new = diffusion.without_lost_tails(np.concatenate([head, new], axis=1))[:, 1:]
        result[:, first:last] = np.where(kept[:, first:last] > 0, kept[:, first:last], new)
        painted = painted[:, last - first :]
        going_on = endings(painted, new[:, -1] > 0) & ~settled[:, last:until]
        result[:, last:until][going_on] = painted[going_on]
        settled[:, last:until] |= going_on
    return result


def _window(pixels: np.ndarray, left: int) -> np.ndarray:
    """`[128, 128]` of `pixels` from column `left` on, with zeros behind the end."""
    part = pixels[:, left : left + WIDTH]
    return np.pad(part, ((0, 0), (0, WIDTH - part.shape[1])))


def endings(levels: np.ndarray, sounding: np.ndarray) -> np.ndarray:
    """Where notes that are `sounding`, bool `[128]`, before the first column of `levels`, uint8
    `[128, W]`, go on, and the pixel after, which ends them: bool `[128, W]`."""
    found = np.zeros(levels.shape, bool)
    for step in range(levels.shape[1]):
        found[:, step] = sounding
        sounding = sounding & (levels[:, step] == HELD)
    return found
