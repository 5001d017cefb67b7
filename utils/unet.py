"""The denoiser, and its file on disk. Explained in notebook 02.

It sees the two planes of `pianoroll.to_planes`, standardised and noised. Space-to-depth turns each
patch of 12 pitches by 4 steps (an octave by a beat) into one position, so that the channels are
many where the image is small, and each channel knows its pitch class and its place in the beat.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.diffusion import LOGIT_LIMIT, cosine_schedule
from utils.files import MusicError, atomic
from utils.pianoroll import DIFFUSION, PLANE_ONSET, SUSTAIN

FORMAT = "music-through-pictures/unet/2"
OCTAVE, BEAT = 12, 4
HEADS = 4  # of each attention layer
RARE = 0.001  # share of the active pixels that may lie below the rows we generate, or above
SIZES = {
    "tiny": {"widths": (32, 64), "blocks": 1},  # tests
    "mini": {"widths": (48, 96), "blocks": 1},  # two CPU cores, minutes
    "small": {"widths": (96, 192), "blocks": 1},  # half an hour
    "medium": {"widths": (128, 256), "blocks": 1},  # two CPU cores, hours
    "base": {"widths": (256, 512), "blocks": 3},  # a GPU
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a network's shape and meaning depend on; saved with its weights."""

    widths: tuple[int, ...] = (96, 192)  # channels at each size of the U-Net
    blocks: int = 1  # residual blocks at each size
    mean: tuple[float, float] = (0.02, 0.005)  # of the two planes, for `standardise`
    std: tuple[float, float] = (0.15, 0.07)
    onset_mean: float = 0.8  # of plane 1 at an onset
    onset_std: float = 0.06
    low_row: int = 0  # it generates `rows` rows from this one up; the others are silent
    rows: int = 144
    noise_steps: int = 1000  # with `noise_shift`, of the `diffusion.cosine_schedule` it learned
    noise_shift: float = -3.0
    transpose: int = 6  # semitones by which its training images were shifted at most
    styles: tuple[str, ...] = ()  # names of the kinds of music it learned, the usual one first
    guidance: float = 1.2  # of `diffusion.guided`
    self_conditioning: bool = True  # False: an earlier prediction is ignored
    # Of each of some training images; a new piece aims at the numbers of one of them.
    active_counts: tuple[int, ...] = ()  # active pixels
    onset_counts: tuple[int, ...] = ()
    velocity_spreads: tuple[float, ...] = ()  # standard deviation of the velocities

    def __post_init__(self) -> None:
        unit = OCTAVE * 2 ** (len(self.widths) - 1)  # rows of one position at the coarsest size
        good = (1 <= len(self.widths) <= 4 and all(w in range(16, 4097, 16) for w in self.widths)
                and self.blocks in range(1, 17) and self.rows in range(unit, 193, unit)
                and self.low_row in range(DIFFUSION.pitches) and self.transpose in range(64)
                and self.noise_steps in range(1, 100_001)
                and all(isinstance(number, (int, float)) and abs(number) < 100 for number in (
                    *self.mean, *self.std, self.onset_mean, self.onset_std, self.noise_shift,
                    self.guidance))
                and min(*self.std, self.onset_std) > 0
                and len(self.active_counts) == len(self.onset_counts)
                and len(self.velocity_spreads) in (0, len(self.onset_counts)))
        if not good:
            raise MusicError(f"a network cannot have the configuration {self}")


def new(rolls: np.ndarray, size: str = "small", transpose: int = 6, styles: Sequence[str] = ()
        ) -> "UNet":
    """An untrained network of one of `SIZES`, for rolls like these, uint8 `[N, 128, 128]`.

    Its rows are the octaves that hold all but `RARE` of the active pixels, shifted by up to
    `transpose` semitones; its prior is how often each row is active. Raises `MusicError` for an
    unknown size, and for rolls without notes.
    """
    if size not in SIZES:
        raise MusicError(f"size {size!r}; choose one of {', '.join(SIZES)}")
    onset = rolls[rolls > SUSTAIN] / 255
    if not len(onset):
        raise MusicError("the training images hold no note; choose other MIDI in notebook 01")
    plane_mean = np.array([(rolls > 0).mean(), onset.sum() / rolls.size])
    plane_square = np.array([plane_mean[0], (onset**2).sum() / rolls.size])
    plane_std = np.sqrt(plane_square - plane_mean**2).clip(1e-3)
    share = (rolls > 0).sum(axis=(0, 2)).cumsum() / (rolls > 0).sum()  # of the active pixels
    low, high = np.searchsorted(share, (RARE, 1 - RARE)).tolist()
    low, high = max(low - transpose, 0) // OCTAVE * OCTAVE, min(high + transpose + 1, 128)
    unit = OCTAVE * 2 ** (len(SIZES[size]["widths"]) - 1)
    active, onsets, spreads = note_counts(rolls)
    network = UNet(Config(
        **SIZES[size], mean=tuple(plane_mean.tolist()), std=tuple(plane_std.tolist()),
        onset_mean=float(onset.mean()), onset_std=float(max(onset.std(), 0.01)), low_row=low,
        rows=-(-(high - low) // unit) * unit, transpose=transpose, styles=tuple(styles),
        active_counts=active, onset_counts=onsets, velocity_spreads=spreads))
    often = np.stack([(rolls > value).mean(axis=(0, 2)) for value in (0, SUSTAIN)])  # [2, 128]
    window = np.ones(2 * transpose + 1) / (2 * transpose + 1)
    often = np.stack([np.convolve(row, window, mode="same") for row in often]).clip(1e-5, 0.5)
    network.prior.copy_(torch.logit(torch.from_numpy(often)).view(1, 2, -1, 1))
    return network


def note_counts(rolls: np.ndarray, most: int = 256
                ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """`Config`'s active pixels, onsets and velocity spreads of up to `most` rolls, uint8
    `[N, 128, 128]`, spread evenly over those that sound in their first and last two bars, if any.
    """
    rolls = rolls[(rolls > SUSTAIN).any(axis=(1, 2))]
    active = (rolls > 0).any(axis=1)  # [N, 128]
    whole = rolls[active[:, :32].any(axis=1) & active[:, -32:].any(axis=1)]
    whole = whole if len(whole) else rolls
    some = whole[np.linspace(0, len(whole) - 1, min(len(whole), most)).astype(int)]
    spreads = tuple(round(float(roll[roll > SUSTAIN].std()), 2) for roll in some)
    return (tuple((some > 0).sum(axis=(1, 2)).tolist()),
            tuple((some > SUSTAIN).sum(axis=(1, 2)).tolist()), spreads)


# ---------------------------------------------------------------- the parts


class ResidualBlock(nn.Module):
    """x + convolutions of x, 3×3, at one size; `c` (noise level, labels) scales and shifts."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(16, channels), nn.GroupNorm(16, channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.modulation = nn.Linear(embedding, 2 * channels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))  # [B, C, H, W]
        scale, shift = self.modulation(c)[:, :, None, None].chunk(2, dim=1)  # [B, C, 1, 1]
        return x + self.conv_2(F.silu(self.norm_2(h) * (1 + scale) + shift))


class Attention(nn.Module):
    """x + what each position gathers from all others, so that a bar can repeat another."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(16, channels), nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        b, channels, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, H W, C]
        q, k, v = self.qkv(tokens).view(b, h * w, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, channels)
        return x + self.out(mixed).transpose(1, 2).view(b, channels, h, w)


class Down(nn.Conv2d):
    """Half the size, by a convolution with stride 2; takes `c` to be called like the others."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return super().forward(x)


class Up(nn.ConvTranspose2d):
    """Double the size: each position becomes 2 × 2, without overlap, so without checkerboards."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return super().forward(x)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with weights 0: a block that ends in it begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# ---------------------------------------------------------------- the network


class Prediction(NamedTuple):
    """What the network predicts of x_0, and the posterior of each noised pixel alone.

    `logits` and `pixel_logits` are `[B, 2, 128, W]`, log odds of *active* and of *onset*;
    `velocity` is `[B, 1, 128, W]`, the value of plane 1 if there is an onset.
    """

    logits: Tensor
    velocity: Tensor
    pixel_logits: Tensor


class UNet(nn.Module):
    """Predicts the notes under the noise: for each pixel two probabilities and a velocity."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, widths, patch = config, config.widths, OCTAVE * BEAT
        embedding = 2 * widths[0]
        self.level = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(),
                                   nn.Linear(embedding, embedding))
        self.style = zeroed(nn.Embedding(len(config.styles) + 1, embedding))  # 0: not told
        self.shift = zeroed(nn.Embedding(2 * config.transpose + 1, embedding))
        self.stem = nn.Conv2d(7 * patch, widths[0], 1)
        place = (1, widths[0], config.rows // OCTAVE, DIFFUSION.steps // BEAT)
        self.place = nn.Parameter(torch.zeros(place))  # which octave, which beat
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            if i:
                self.down.append(Down(widths[i - 1], width, 2, stride=2))
            self.down += [ResidualBlock(width, embedding) for _ in range(config.blocks)]
        for _ in range(config.blocks):
            self.middle += [ResidualBlock(widths[-1], embedding), Attention(widths[-1])]
        for i, width in reversed(list(enumerate(widths))):
            self.up += [ResidualBlock(width, embedding) for _ in range(config.blocks)]
            if i:
                self.up.append(Up(width, widths[i - 1], 2, stride=2))
        self.up.append(Attention(widths[0]))
        self.norm = nn.GroupNorm(16, widths[0])
        self.head = zeroed(nn.Conv2d(widths[0], 3 * patch, 1))
        for name, values in (("mean", config.mean), ("std", config.std),
                             ("loud", (1.0, config.onset_mean))):
            self.register_buffer(name, torch.tensor(values).view(1, 2, 1, 1), persistent=False)
        prior = torch.logit((self.mean / self.loud).clamp(max=0.5))  # log odds, in each row alike
        self.register_buffer("prior", prior.expand(1, 2, DIFFUSION.pitches, 1).clone())

    def standardise(self, planes: Tensor) -> Tensor:
        """Planes in 0…1, `[B, 2, 128, W]`, with mean 0 and variance 1 over the training data."""
        return (planes - self.mean) / self.std

    def planes(self, x_0: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return x_0 * self.std + self.mean

    def forward(self, x_t: Tensor, log_snr: Tensor, x_0_hat: Tensor | None = None,
                known: Tensor | None = None, style: Tensor | None = None,
                shift: Tensor | None = None) -> Prediction:
        """Predict x_0 from `x_t`, `[B, 2, 128, 128]`, at noise level `log_snr`, `[B]`.

        `x_0_hat` is an earlier prediction, probabilities `[B, 2, 128, 128]`, or None
        (self-conditioning, Chen et al. 2022, arXiv:2208.04202). Where `known`, bool
        `[B, 1, 128, 128]`, `x_t` is x_0 itself, and the prediction is certain. `style` and `shift`
        are labels, int64 `[B]`: the number of the style from 1 on (0: not told), and the semitones
        by which the music was transposed, -transpose…transpose (None: 0).
        """
        pixel_logits, velocity = self.pixel_logits(x_t, log_snr)
        mask = torch.zeros_like(x_t[:, :1])
        if known is not None:
            planes = self.planes(x_t)
            certain = torch.where(planes > PLANE_ONSET, LOGIT_LIMIT, -LOGIT_LIMIT)
            pixel_logits = torch.where(known, certain, pixel_logits)
            velocity = torch.where(known, planes[:, 1:], velocity)
            mask = known.to(x_t.dtype).expand_as(mask)
        if x_0_hat is None or not self.config.self_conditioning:
            x_0_hat = torch.zeros_like(x_t)
        pixel_probability = torch.sigmoid(pixel_logits)
        seen = torch.cat([x_t, 2 * pixel_probability, 2 * x_0_hat, mask], dim=1)  # of like sizes
        change = self.context(seen, self.embed(log_snr, style, shift)).float()
        if known is not None:
            change = change.masked_fill(known, 0)
        velocity = velocity + self.config.onset_std * change[:, 2:]
        return Prediction(pixel_logits + change[:, :2], velocity, pixel_logits)

    def pixel_logits(self, x_t: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Per-pixel posterior: logits `[B, 2, H, W]` and velocity `[B, 1, H, W]` from x_t alone.

        A pixel is low or high. By Bayes its log odds are the prior's plus how much better "high"
        explains x_t = sqrt(a) x_0 + sqrt(1 - a) eps: sqrt(a) (high - low) (x_t - middle) / (1 - a).
        Velocity, nearly Gaussian, is drawn from x_t / sqrt(a) toward its mean (Wiener filter).
        """
        a = torch.sigmoid(log_snr.float()).view(-1, 1, 1, 1)
        low, high = self.standardise(torch.zeros_like(self.loud)), self.standardise(self.loud)
        middle = a.sqrt() * (high + low) / 2
        logits = self.prior + a.sqrt() * (high - low) * (x_t - middle) / (1 - a)
        seen = x_t[:, 1:] / a.sqrt() * self.std[:, 1:] + self.mean[:, 1:]
        trust = self.config.onset_std**2
        trust = trust / (trust + (1 - a) / a * self.std[:, 1:] ** 2)
        velocity = self.config.onset_mean + trust * (seen - self.config.onset_mean)
        return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), velocity

    def embed(self, log_snr: Tensor, style: Tensor | None, shift: Tensor | None) -> Tensor:
        """Noise level and labels as one vector, `[B, 2 C]`."""
        zero = torch.zeros(len(log_snr), dtype=torch.long, device=log_snr.device)
        labels = self.style(zero if style is None else style)
        labels = labels + self.shift((zero if shift is None else shift) + self.config.transpose)
        return F.silu(self.level(waves(log_snr.float())) + labels)

    def context(self, seen: Tensor, c: Tensor) -> Tensor:
        """The U-Net proper: `[B, 7, 128, 128]` -> what it adds to `pixel_logits`, `[B, 3, …]`."""
        low, rows = self.config.low_row, self.config.rows
        band = F.pad(seen[:, :, low : low + rows], (0, 0, 0, max(0, low + rows - seen.shape[2])))
        h = space_to_depth(band).contiguous(memory_format=torch.channels_last)
        h = self.stem(h) + self.place  # [B, C, octaves, beats]
        skips = []
        for part in self.down:
            h = part(h, c)
            if isinstance(part, ResidualBlock):
                skips.append(h)
        for part in self.middle:
            h = part(h, c)
        for part in self.up:
            h = part(h + skips.pop() if isinstance(part, ResidualBlock) else h, c)
        out = depth_to_space(self.head(F.silu(self.norm(h))))[:, :, : seen.shape[2] - low]
        return F.pad(out, (0, 0, low, seen.shape[2] - low - out.shape[2]))

    def schedule(self) -> Tensor:
        """alpha_bar, float64 `[noise_steps]`."""
        return cosine_schedule(self.config.noise_steps, self.config.noise_shift)

    def style_number(self, style: str = "") -> int:
        """The label of a style: by its name, or the usual one; 0 where the network knows none.

        Raises `MusicError` for a name that it did not learn.
        """
        if style and style not in self.config.styles:
            known = ", ".join(self.config.styles) or "none: train with styles in notebook 02"
            raise MusicError(f"style {style!r} is unknown to this network; it knows {known}")
        return self.config.styles.index(style) + 1 if style else min(1, len(self.config.styles))


def space_to_depth(x: Tensor) -> Tensor:
    """`[B, C, H, W]` -> `[B, C · 48, H / 12, W / 4]`: pixel unshuffle by an octave and a beat."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // OCTAVE, OCTAVE, w // BEAT, BEAT).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, c * OCTAVE * BEAT, h // OCTAVE, w // BEAT)


def depth_to_space(x: Tensor) -> Tensor:
    """The inverse of `space_to_depth`."""
    b, c, h, w = x.shape
    x = x.reshape(b, c // (OCTAVE * BEAT), OCTAVE, BEAT, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(b, -1, h * OCTAVE, w * BEAT)


def waves(log_snr: Tensor, count: int = 32) -> Tensor:
    """The noise level as sines and cosines of 32 wavelengths, `[B, 64]`."""
    angle = log_snr[:, None] * torch.logspace(-1, 1, count, device=log_snr.device)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


# ---------------------------------------------------------------- the file


def save(network: UNet, path: str | Path, **facts: str | int | float) -> Path:
    """Write weights, configuration and `facts` as safetensors, whole or not at all."""
    weights = {name: value.detach().float().cpu().contiguous()
               for name, value in network.state_dict().items()}
    about = {"format": FORMAT, "config": json.dumps(dataclasses.asdict(network.config)),
             "facts": json.dumps(facts)}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(weights, metadata=about))
    return Path(path)


def load(path: str | Path, device: str | torch.device = "cpu") -> UNet:
    """The network in a file that `save` wrote, ready to sample. Runs no code from the file.

    Raises `MusicError` for a file that is missing, damaged, or not one of ours.
    """
    if not Path(path).is_file():
        raise MusicError(f"{path}: no such file; train it with notebook 02_train_diffusion first")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        config = Config(**{name: tuple(value) if isinstance(value, list) else value
                           for name, value in json.loads(about["config"]).items()})
        weights = safetensors.torch.load_file(path)
        with torch.device("meta"):  # takes no memory: weights that do not fit are refused first
            UNet(config).load_state_dict(weights, assign=True)
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError("weights that are no numbers")
        network = UNet(config)
        network.load_state_dict(weights)
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise MusicError(f"{path}: damaged, or not made by this version of notebook "
                         f"02_train_diffusion ({reason}); train it there again") from None
    return network.to(device, memory_format=torch.channels_last).eval()


def facts_of(path: str | Path) -> dict:
    """What `save` was told besides, such as steps and seed."""
    with safetensors.safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("facts", "{}"))
