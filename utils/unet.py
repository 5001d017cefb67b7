"""The denoising network, and its file on disk. Explained in notebook 02.

It sees the two planes of `pianoroll.to_planes`, standardised and noised, folded so that a patch of
12 pitches by 4 steps (an octave by a beat) becomes one position with 96 channels. So the width is
where the picture is small, and each channel knows its pitch class and its place in the beat.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.diffusion import cosine_schedule
from utils.files import MusicError, atomic
from utils.pianoroll import DIFFUSION, HELD, ONSET, PLANE_ONSET

FORMAT = "music-through-pictures/unet/1"
OCTAVE, BEAT = 12, 4
LOGIT_LIMIT = 30.0
RARE = 0.001  # share of what sounds that may lie below the rows we paint, and as much above
SIZES = {
    "tiny": {"widths": (32, 64), "blocks": 1},  # tests
    "small": {"widths": (96, 192), "blocks": 1},  # two CPU cores, minutes
    "medium": {"widths": (128, 256), "blocks": 1},  # two CPU cores, hours
    "base": {"widths": (256, 512), "blocks": 3},  # a GPU
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a network's shape and meaning depend on; saved with its weights.

    `mean` and `std` standardise the two planes. `onset_mean` and `onset_std` are those of plane 1
    where a note starts. The network paints `rows` rows from `low_row` up; the others are silent.
    `noise_steps` and `noise_shift` give the `diffusion.cosine_schedule` it was trained on, and
    `guidance` is what suits it, see `UNet.forward`.
    """

    widths: tuple[int, ...] = (96, 192)
    blocks: int = 1
    mean: tuple[float, float] = (0.02, 0.005)
    std: tuple[float, float] = (0.15, 0.07)
    onset_mean: float = 0.8
    onset_std: float = 0.06
    low_row: int = 0
    rows: int = 144
    noise_steps: int = 1000
    noise_shift: float = -3.0
    guidance: float = 1.75

    def __post_init__(self) -> None:
        numbers = [*self.mean, *self.std, self.onset_mean, self.onset_std, self.noise_shift,
                   self.guidance]
        halvings = 2 ** (len(self.widths) - 1)
        good = (
            1 <= len(self.widths) <= 4 and all(w in range(16, 4097, 16) for w in self.widths)
            and self.blocks in range(1, 17) and self.noise_steps in range(1, 100_001)
            and all(math.isfinite(n) and abs(n) < 100 for n in numbers)
            and all(0 < m < 1 for m in (*self.mean, self.onset_mean))
            and all(s > 0 for s in (*self.std, self.onset_std))
            and self.low_row in range(DIFFUSION.pitches)
            and self.rows in range(OCTAVE * halvings, 193, OCTAVE * halvings)
            and DIFFUSION.steps % (BEAT * halvings) == 0)
        if not good:
            raise MusicError(f"a network cannot have the configuration {self}")


def new(levels: np.ndarray, size: str = "small", transpose: int = 6) -> "UNet":
    """An untrained network that knows the statistics of pictures `uint8 [N, 128, 128]`.

    Its shape is one of `SIZES`; its rows are the octaves in which all but `RARE` notes of these
    pictures sound, moved by up to `transpose` semitones; and it knows how often each row sounds.
    """
    network = UNet(config_for(levels, size, transpose))
    often = np.stack([(levels > level).mean(axis=(0, 2)) for level in (0, HELD)])  # [2, 128]
    window = np.ones(2 * transpose + 1) / (2 * transpose + 1)
    often = np.stack([np.convolve(row, window, mode="same") for row in often]).clip(1e-5, 0.5)
    network.prior.copy_(torch.logit(torch.from_numpy(often)).view(1, 2, -1, 1))
    return network


def config_for(levels: np.ndarray, size: str = "small", transpose: int = 6) -> Config:
    """The configuration of `new`. Raises `MusicError` for an unknown size, or without notes."""
    if size not in SIZES:
        raise MusicError(f"size {size!r}; choose one of {', '.join(SIZES)}")
    onset = levels[levels > HELD] / 255
    if not len(onset):
        raise MusicError("the training pictures hold no note; choose other MIDI in notebook 01")
    plane_mean = np.array([(levels > 0).mean(), onset.sum() / levels.size])
    plane_square = np.array([plane_mean[0], (onset**2).sum() / levels.size])
    plane_std = np.sqrt(plane_square - plane_mean**2).clip(1e-3)
    share = (levels > 0).sum(axis=(0, 2)).cumsum() / (levels > 0).sum()  # of what sounds
    low, high = np.searchsorted(share, (RARE, 1 - RARE)).tolist()
    low, high = max(low - transpose, 0) // OCTAVE * OCTAVE, min(high + transpose + 1, 128)
    unit = OCTAVE * 2 ** (len(SIZES[size]["widths"]) - 1)
    return Config(**SIZES[size], mean=tuple(plane_mean.tolist()), std=tuple(plane_std.tolist()),
                  onset_mean=float(onset.mean()), onset_std=float(max(onset.std(), 0.01)),
                  low_row=low, rows=-(-(high - low) // unit) * unit)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a short cut; the noise level scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(16, inputs), nn.GroupNorm(16, outputs)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.short_cut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.modulation(level)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_2(F.silu(self.norm_2(h) * (1 + scale) + shift))
        return self.short_cut(x) + h


class Attention(nn.Module):
    """Each position looks at all others. Only where there are few: the cost is their square."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(16, channels), nn.Linear(channels, 3 * channels)
        self.out, self.heads = zeroed(nn.Linear(channels, channels)), max(1, channels // 64)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, H W, C]
        q, k, v = self.qkv(tokens).view(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(mixed).transpose(1, 2).view(b, c, h, w)


class Resize(nn.Sequential):
    """Half or double the size; takes the noise level only to be called like the other parts."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return super().forward(x)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with weights 0: a block that ends in it begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class UNet(nn.Module):
    """Guesses the music under the noise: for each pixel two logits and a loudness."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, widths, patch = config, config.widths, OCTAVE * BEAT
        embedding = 2 * widths[0]
        self.level = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(),
                                   nn.Linear(embedding, embedding), nn.SiLU())
        self.stem = nn.Conv2d(4 * patch, widths[0], 3, padding=1)
        place = (1, widths[0], config.rows // OCTAVE, DIFFUSION.steps // BEAT)
        self.place = nn.Parameter(torch.zeros(place))  # which octave, which beat
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, skips = widths[0], [widths[0]]
        for i, width in enumerate(widths):
            if i:
                self.down.append(Resize(nn.Conv2d(channels, width, 2, stride=2)))
                skips.append(channels := width)
            for _ in range(config.blocks):
                self.down.append(ResidualBlock(channels, width, embedding))
                skips.append(channels := width)
        for _ in range(config.blocks):
            self.middle += [ResidualBlock(channels, channels, embedding), Attention(channels)]
        for i in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(ResidualBlock(channels + skips.pop(), widths[i], embedding))
                channels = widths[i]
            if i:
                self.up.append(Resize(nn.ConvTranspose2d(channels, widths[i - 1], 2, stride=2)))
                channels = widths[i - 1]
        self.norm, self.head = nn.GroupNorm(16, channels), zeroed(nn.Conv2d(channels, 3 * patch, 1))
        for name, values in (("mean", config.mean), ("std", config.std),
                             ("loud", (1.0, config.onset_mean))):
            self.register_buffer(name, torch.tensor(values).view(1, 2, 1, 1), persistent=False)
        prior = torch.logit((self.mean / self.loud).clamp(max=0.5))  # log odds, in each row alike
        self.register_buffer("prior", prior.expand(1, 2, DIFFUSION.pitches, 1).clone())

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest standardised value of each plane, `[1, 2, 1, 1]` each."""
        return -self.mean / self.std, (1 - self.mean) / self.std

    def standardise(self, planes: Tensor) -> Tensor:
        """Planes in 0…1, `[B, 2, 128, 128]`, with mean 0 and variance 1 over the training data."""
        return (planes - self.mean) / self.std

    def planes(self, x_0: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return x_0 * self.std + self.mean

    def evidence(self, x_t: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """What each noised pixel says by itself: logits `[B, 2, H, W]`, loudness `[B, 1, H, W]`.

        A pixel is low or high. By Bayes its log odds are the prior's plus how much better "high"
        explains x_t = sqrt(a) x_0 + sqrt(1 - a) eps: sqrt(a) (high - low) (x_t - middle) / (1 - a).
        Loudness, as good as Gaussian, is drawn from x_t / sqrt(a) toward its mean (Wiener).
        """
        a = torch.sigmoid(log_snr.float()).view(-1, 1, 1, 1)
        low, high = self.standardise(torch.zeros_like(self.loud)), self.standardise(self.loud)
        middle = a.sqrt() * (high + low) / 2
        logits = self.prior + a.sqrt() * (high - low) * (x_t - middle) / (1 - a)
        seen = x_t[:, 1:] / a.sqrt() * self.std[:, 1:] + self.mean[:, 1:]
        trust = self.config.onset_std**2
        trust = trust / (trust + (1 - a) / a * self.std[:, 1:] ** 2)
        loudness = self.config.onset_mean + trust * (seen - self.config.onset_mean)
        return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), loudness

    def forward(self, x_t: Tensor, log_snr: Tensor, guidance: float = 1.0,
                known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t `[B, 2, 128, 128]`, log_snr `[B]` -> logits `[B, 2, …]`, loudness `[B, 1, …]`.

        Where `known`, bool that broadcasts to them, x_t is x_0 itself: the logits are certain. They
        say "a note sounds" and "a note starts"; loudness is plane 1 if one does. The
        network adds to the pixel's own evidence what it makes of all the other pixels, `guidance`
        times: above 1, samples agree better and vary less. It is autoguidance (Karras et al. 2024,
        arXiv:2406.02507), the pixel alone being the worse version of the network to lead away from.
        It decides which notes sound, not how many: the mean probability of each plane is kept.
        """
        logits, loudness = self.evidence(x_t, log_snr)
        if known is not None:
            planes = self.planes(x_t)
            certain = torch.where(planes > PLANE_ONSET, LOGIT_LIMIT, -LOGIT_LIMIT)
            logits = torch.where(known, certain, logits)
            loudness = torch.where(known, planes[:, 1:], loudness)
        change = self.context(torch.cat([x_t, 2 * torch.sigmoid(logits)], dim=1), log_snr).float()
        if known is not None:
            change = change.masked_fill(known, 0)
        fair = logits + change[:, :2]
        if guidance != 1:
            mean = torch.sigmoid(fair).mean(dim=(2, 3), keepdim=True)
            fair = with_mean(logits + guidance * change[:, :2], mean)
        return fair, loudness + self.config.onset_std * change[:, 2:]

    def context(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """The U-Net proper: `[B, 4, 128, 128]` -> `[B, 3, 128, 128]`."""
        low, rows = self.config.low_row, self.config.rows
        band = F.pad(x[:, :, low : low + rows], (0, 0, 0, max(0, low + rows - x.shape[2])))
        h = fold(band).contiguous(memory_format=torch.channels_last)  # [B, 4 · 48, octaves, beats]
        level = self.level(waves(log_snr.float()))
        h = self.stem(h) + self.place
        skips = [h]
        for part in self.down:
            h = part(h, level)
            skips.append(h)
        for part in self.middle:
            h = part(h, level)
        for part in self.up:
            h = part(h if isinstance(part, Resize) else torch.cat([h, skips.pop()], 1), level)
        out = unfold(self.head(F.silu(self.norm(h))))[:, :, : x.shape[2] - low]
        return F.pad(out, (0, 0, low, x.shape[2] - low - out.shape[2]))

    def x_0(self, x_t: Tensor, log_snr: Tensor, guidance: float = 1.0,
            known: Tensor | None = None) -> Tensor:
        """The expected x_0, standardised: the best guess in the sense of least squares."""
        logits, loudness = self(x_t, log_snr, guidance, known)
        sounding, onset = torch.sigmoid(logits).chunk(2, dim=1)
        loudness = loudness.clamp((ONSET + 1) / 255, 1)
        return self.standardise(torch.cat([sounding, onset * loudness], dim=1))

    def schedule(self) -> Tensor:
        """alpha_bar, float64 `[noise_steps]`."""
        return cosine_schedule(self.config.noise_steps, self.config.noise_shift)


def with_mean(logits: Tensor, mean: Tensor) -> Tensor:
    """Logits `[B, C, H, W]`, those of a plane moved by one number, so that the mean of their
    probabilities is `mean`, `[B, C, 1, 1]`: found by bisection, to a thousandth in log odds."""
    low, high = torch.full_like(mean, -LOGIT_LIMIT), torch.full_like(mean, LOGIT_LIMIT)
    for _ in range(16):
        middle = (low + high) / 2
        many = torch.sigmoid(logits + middle).mean(dim=(2, 3), keepdim=True) > mean
        low, high = torch.where(many, low, middle), torch.where(many, middle, high)
    return logits + (low + high) / 2


def fold(x: Tensor) -> Tensor:
    """`[B, C, H, W]` -> `[B, C · 48, H / 12, W / 4]`: pixel-unshuffle by an octave and a beat."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // OCTAVE, OCTAVE, w // BEAT, BEAT).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, c * OCTAVE * BEAT, h // OCTAVE, w // BEAT)


def unfold(x: Tensor) -> Tensor:
    """The inverse of `fold`."""
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
    path = Path(path)
    if not path.is_file():
        raise MusicError(f"{path}: no such file; train it with notebook 02_train_diffusion first")
    try:
        with safetensors.safe_open(os.fspath(path), "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise MusicError(f"{path}: not a network of notebook 02_train_diffusion; give its "
                                 "models/diffusion.safetensors")
            values = json.loads(about["config"])
            with torch.device("meta"):
                network = UNet(Config(**{name: tuple(value) if isinstance(value, Sequence) else
                                         value for name, value in values.items()}))
            shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if shapes != found:
                raise ValueError("its tensors do not fit its configuration")
        network = UNet(network.config)
        network.load_state_dict(safetensors.torch.load_file(path))
    except MusicError as error:
        raise error if str(path) in str(error) else MusicError(f"{path}: {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise MusicError(f"{path}: damaged ({reason}); train it again with notebook "
                         "02_train_diffusion") from None
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise MusicError(f"{path}: holds weights that are no numbers; train it again")
    return network.to(device, memory_format=torch.channels_last).eval()


def facts_of(path: str | Path) -> dict:
    """What `save` was told besides, such as steps and seed."""
    with safetensors.safe_open(os.fspath(path), "pt") as file:
        return json.loads((file.metadata() or {}).get("facts", "{}"))
