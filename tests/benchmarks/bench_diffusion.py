"""Training images a second and seconds a sample: the network of size `small` and its peers.

    python tests/benchmarks/bench_diffusion.py

The original project's network is rebuilt with `diffusers`: these settings give 34.2 million
parameters and 182.6 GFLOP an image, as its own has, in float32, with 1,500 ancestral steps. All
rows are measured in one run on this machine. All of a sampler's steps are timed where they are few;
else a few network calls are timed, and multiplied by the number of steps (marked ~). "Tuned" is
channels last, bfloat16 where the hardware is good at it, and 25 steps of DDIM.

For the rows of denoising-diffusion-pytorch: pip install --no-deps denoising-diffusion-pytorch
einops ema-pytorch. Its trainer, not measured here, wants torchvision; an empty module stands in.
"""

import argparse
import importlib
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import diffusion, pianoroll, unet

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DOWN, UP = "DownBlock2D", "UpBlock2D"


class Row(NamedTuple):
    name: str
    parameters: float
    gflop: float
    images_per_s: float
    sample_s: float
    how: str


def original() -> diffusers.UNet2DModel:
    """Diffusion Music Maker's network, by its cost."""
    return diffusers.UNet2DModel(
        sample_size=128, in_channels=1, out_channels=1, block_out_channels=(128, 256, 256, 256),
        layers_per_block=2, down_block_types=(DOWN,) * 4, up_block_types=(UP,) * 4,
        add_attention=False)


def example() -> diffusers.UNet2DModel:
    """The network of diffusers' own training tutorial, for one gray channel."""
    return diffusers.UNet2DModel(
        sample_size=128, in_channels=1, out_channels=1, layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=(DOWN, DOWN, DOWN, DOWN, "AttnDownBlock2D", DOWN),
        up_block_types=(UP, "AttnUpBlock2D", UP, UP, UP, UP))


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The median time of a call, after one to warm up."""
    took = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return float(np.median(took[1:]))


def gflop(call: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


class Readme(torch.nn.Module):
    """The network of denoising-diffusion-pytorch's README, for one gray channel."""

    def __init__(self):
        super().__init__()
        whole, *parts = (types.ModuleType(f"torchvision{part}")
                         for part in ("", ".transforms", ".utils"))
        whole.transforms, whole.utils = parts
        sys.modules.update({module.__name__: module for module in (whole, *parts)})
        peer = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
        flash = DEVICE.type == "cuda"
        self.unet = peer.Unet(dim=64, dim_mults=(1, 2, 4, 8), channels=1, flash_attn=flash)

    def forward(self, x, t):
        return types.SimpleNamespace(sample=self.unet(x, t))


def theirs(name: str, make: Callable, tuned: bool, steps: int, batch: int, repeats: int) -> Row:
    """A peer's network; `tuned` as said above."""
    network = make().to(DEVICE)
    if tuned:
        network = network.to(memory_format=torch.channels_last)
    fast = tuned and diffusion.fast_bfloat16(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    x, t = torch.randn(batch, 1, 128, 128, device=DEVICE), torch.zeros(batch, device=DEVICE)

    def forward():
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=fast):
            return network(x, t).sample

    def train():
        F.mse_loss(forward().float(), x).backward()
        optimizer.step()
        optimizer.zero_grad()

    cost = gflop(lambda: network(x[:1], t[:1]))
    train_s = seconds(train, repeats)
    with torch.no_grad():
        call_s = seconds(forward, repeats) / batch
    precision = ("bfloat16" if fast else "float32") + (", channels last" if tuned else "")
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return Row(name, millions, cost, batch / train_s, call_s * steps,
               f"{precision}; ~{steps} steps")


def ours(size: str, steps: int, batch: int, repeats: int) -> Row:
    """Our network: a step of notebook 02's loop in all that costs time, and its sampling."""
    random = np.random.default_rng(0)
    notes = [np.stack([random.integers(0, 120, 80), random.integers(1, 9, 80),
                       random.integers(40, 90, 80), random.integers(40, 120, 80)], 1)
             for _ in range(batch)]
    rolls = np.stack([pianoroll.roll_of(one, 128, 128) for one in notes])
    network = unet.new(rolls, size).to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    planes = torch.from_numpy(pianoroll.to_planes(rolls)).to(DEVICE)
    alpha_bar = network.schedule()
    fast = diffusion.fast_bfloat16(DEVICE)

    def train():
        t = diffusion.stratified_timesteps(batch, len(alpha_bar), None)
        eps = torch.randn(planes.shape).to(DEVICE)
        a = diffusion.at(alpha_bar, t, eps)
        x_t = diffusion.q_sample(network.standardise(planes), eps, a)
        again = (torch.rand(batch, 1, 1, 1) < 0.5).to(DEVICE)  # predicted twice
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=fast):
            with torch.no_grad():
                x_0_hat = again * torch.sigmoid(network(x_t, torch.logit(a).flatten()).logits)
            logits, velocity, _ = network(x_t, torch.logit(a).flatten(), x_0_hat)
        onset = (planes[:, 1:] > 0).float()
        target = torch.cat([planes[:, :1], onset], dim=1)
        loss = F.binary_cross_entropy_with_logits(logits, target) * 256
        (loss + (onset * (velocity - planes[:, 1:]) ** 2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    x = torch.randn(1, 2, 128, 128, device=DEVICE)
    cost = gflop(lambda: network(x, torch.zeros(1, device=DEVICE)))
    train_s = seconds(train, repeats)
    network.eval()
    sample_s = seconds(lambda: diffusion.generate(network, batch, steps), 1) / batch
    precision = "bfloat16" if fast else "float32"
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return Row(f"this project, {size}", millions, cost, batch / train_s, sample_s,
               f"{precision}, channels last; {steps} steps")


def line_of(row: Row, ours: Row) -> str:
    """A line of the table, with how many times ours is faster."""
    return (f"{row.name:28s} {row.parameters:6.1f} {row.gflop:6.1f} {row.images_per_s:8.2f}/s "
            f"{ours.images_per_s / row.images_per_s:6.0f}x {row.sample_s:8.2f} s "
            f"{row.sample_s / ours.sample_s:6.0f}x  {row.how}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=diffusion.SAMPLING_STEPS,
                        help="our sampling steps")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    batch, own = (4, 16) if DEVICE.type == "cpu" else (32, 256)
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}; batches of "
          f"{batch}; a sample is one image of a batch")
    print(f"{'network':28s} {'M':>6s} {'GFLOP':>6s} {'train':>10s} {'ours is':>7s} "
          f"{'sample':>10s} {'ours is':>7s}")
    small = ours("small", arguments.steps, batch, 5 * arguments.repeats)
    print(line_of(small, small), flush=True)
    print(line_of(ours("small", arguments.steps, own, 3 * arguments.repeats), small),
          f"in batches of {own}", flush=True)
    peers = [("the original", original, False, 1499),
             ("diffusers' example", example, False, 1000),
             ("diffusers' example, tuned", example, True, 25)]
    try:
        Readme()
        peers += [("denoising-diffusion-pytorch", Readme, False, 250),
                  ("the same, tuned", Readme, True, 25)]
    except Exception as error:
        print(f"denoising-diffusion-pytorch: does not load here ({error})")
    for name, make, tuned, steps in peers:
        row = theirs(name, make, tuned, steps, batch, arguments.repeats)
        print(line_of(row, small), flush=True)


if __name__ == "__main__":
    main()
