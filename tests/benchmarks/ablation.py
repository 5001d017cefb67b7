"""How much each improvement of notebook 02 helps, at equal minutes: writes runs/ablation.md.

    python tests/benchmarks/ablation.py                  the whole table
    python tests/benchmarks/ablation.py --minutes 0.02 --count 4 --sampling-steps 4 \\
        --size tiny --rows 2 --output runs/trial.md      a trial

The first row is the published recipe on the same network: a squared error on the noise, and a
plain cosine schedule. Each further row is notebook 02 with one improvement more, from the same
images. Each is trained with several seeds, and every network generates in three ways. The table
that notebook 02 shows takes an hour and a half.
"""

import argparse
import ast
import copy
import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import papermill
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import notebook_code

from utils import corpus, diffusion, files, metrics, pianoroll, training, unet

RUN = ROOT / "runs" / "ablation"
NOTEBOOK = ROOT / "notebooks" / "02_train_diffusion.ipynb"
PLAIN = {"transpose": 0, "ema_span": 0.0, "self_conditioning": 0.0, "masked": 0.0, "hop": 8}
ROWS = {  # each with what the row above has; what is tried later is the last to be added
    "probabilities, per-pixel posterior, shifted schedule": {},
    "+ transposition": {"transpose": 6},
    "+ EMA of the weights": {"ema_span": 0.02},
    "+ a window at every bar": {"hop": 1},
    "+ masks in 10 %": {"masked": 0.1},
    "+ masks in 35 %": {"masked": 0.35},
    "+ self-conditioning in 50 %": {"self_conditioning": 0.5},
}
DEFAULTS = {name: ast.literal_eval(facts["default"])
            for name, facts in papermill.inspect_notebook(NOTEBOOK).items()}
RATE, BATCH_SIZE = DEFAULTS["learning_rate"], DEFAULTS["batch_size"]  # of every row
WAYS = {  # to generate
    "expected": {"exact": False, "guidance": 1.0},
    "drawn": {"guidance": 1.0},
    "guided": {"guidance": DEFAULTS["guidance"]},
}


def trained(run: Path, parameters: dict) -> unet.UNet:
    """The network that notebook 02 trains in the folder `run`, without what it only shows."""
    process = notebook_code.start(NOTEBOOK, run, "unet.save(", {"run_dir": str(run)} | parameters,
                                  skipped=lambda cell: "demo" in cell.metadata.get("tags", []))
    output, _ = process.communicate()
    if process.returncode:
        raise files.MusicError(output.strip().splitlines()[-1])
    return unet.load(run / "models" / "diffusion.safetensors")


def published(rolls: np.ndarray, minutes: float, size: str, seed: int
              ) -> tuple[unet.UNet, torch.Tensor]:
    """A network that predicts the noise, and its schedule: DDPM's loss, cosine schedule, EMA."""
    torch.manual_seed(seed)
    network = unet.new(rolls, size, seed)
    network.config = dataclasses.replace(network.config, noise_shift=0.0)
    x = network.standardise(torch.from_numpy(pianoroll.to_planes(rolls)))
    alpha_bar = network.schedule()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.99))
    fast = diffusion.fast_bfloat16("cpu")

    def gradients() -> None:
        x_0 = x[torch.randint(len(x), (BATCH_SIZE,))]
        t = diffusion.stratified_timesteps(BATCH_SIZE, len(alpha_bar), None)
        eps = torch.randn(x_0.shape)
        x_t = diffusion.q_sample(x_0, eps, diffusion.at(alpha_bar, t, x_0))
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            prediction = predicted_noise(network, x_t, t, alpha_bar)
        optimizer.zero_grad()
        F.mse_loss(prediction.float(), eps).backward()

    steps = training.steps_within(minutes, gradients)
    ema = copy.deepcopy(network).requires_grad_(False)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, step * 20 / steps, 2 - 2 * step / steps)
        gradients()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        for average, weight in zip(ema.parameters(), network.parameters(), strict=True):
            average.lerp_(weight.detach(), min(0.5, 50 / steps))
    return ema.eval(), alpha_bar


def predicted_noise(network: unet.UNet, x_t: torch.Tensor, t: torch.Tensor, alpha_bar: torch.Tensor
                    ) -> torch.Tensor:
    """The U-Net without the per-pixel posterior: what it puts out is the noise `[B, 2, H, W]`."""
    log_snr = diffusion.log_snr(alpha_bar)[t].float()
    seen = F.pad(x_t, (0, 0, 0, 0, 0, 5))  # its other five planes are empty: [B, 7, H, W]
    return network.context(seen, network.embed(log_snr, None, None))[:, :2]


def sample_published(network: unet.UNet, alpha_bar: torch.Tensor, count: int, steps: int, seed: int
                     ) -> np.ndarray:
    """Rolls, uint8 `[count, 128, 128]`, by Algorithm 2 on evenly spaced times."""
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(count, 2, 128, 128, generator=generator)
    limits = network.standardise(torch.zeros(1, 2, 1, 1)), network.standardise(torch.ones(1))

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=diffusion.fast_bfloat16("cpu")):
            eps = predicted_noise(network, x_t, t, alpha_bar).float()
        x_0 = diffusion.x_0_from_eps(x_t, eps, diffusion.at(alpha_bar, t, x_t))
        inside = torch.zeros(1, 1, 128, 1, dtype=torch.bool)
        inside[:, :, network.config.low_row :][:, :, : network.config.rows] = True
        return torch.where(inside, x_0, limits[0])  # other rows are silent

    x_0 = diffusion.sample(predict, x_t, alpha_bar, "ddpm", steps, limits, generator)
    rolls = pianoroll.from_planes(network.planes(x_0).numpy())
    rolls = diffusion.without_gaps(rolls, np.ones((128, 128), bool))
    return diffusion.without_stray_sustains(rolls)


def row(name: str, sets: list[list[np.ndarray]], valid: np.ndarray, learned: np.ndarray) -> str:
    """A row of the table: the mean Fréchet distance of the sets of each way to generate, with its
    standard error; overlap, diversity and memorised share of all pieces of the last sets."""
    real, cells = metrics.features(valid, 0), ["", name]
    for some in sets:
        distances = [metrics.frechet(real, metrics.features(rolls, 0)) for rolls in some]
        cells.append(f"{np.mean(distances):.1f}" if some else "")
        if len(some) > 1:
            cells[-1] += f" ± {np.std(distances, ddof=1) / len(some) ** 0.5:.1f}"
    rolls = np.concatenate(next(some for some in reversed(sets) if some))
    other = metrics.compare(real, metrics.features(rolls, 0))
    copied = metrics.memorised_share(metrics.nearest(rolls, learned)[0],
                                     metrics.nearest(valid, learned)[0])
    cells += [f"{other['overlap']:.2f}", f"{other['diversity']:.1f}", f"{copied:.2f}", ""]
    line = " | ".join(cells).strip()
    print(line, flush=True)
    return line


def table(asked: argparse.Namespace) -> list[str]:
    """The rows of the table, in Markdown; each is printed as it is done."""
    count, steps, settings = asked.count, asked.sampling_steps, dict(PLAIN)
    seeds = range(asked.seeds)
    for hop in (8, 1):
        corpus.convert("builtin", RUN / f"hop{hop}", hop=hop)
    learned, valid = corpus.load_examples(RUN / "hop8", "diffusion")
    some = np.linspace(0, len(learned) - 1, min(count, len(learned))).astype(int)
    noise = [sample_published(*published(learned, asked.minutes, asked.size, seed),
                              count, 4 * steps, seed) for seed in seeds]
    rows = [row(name, sets, valid, learned) for name, sets in (
        ("*training music*", [[], [], [learned[some]]]),
        ("*shuffled columns*", [[], [], [metrics.shuffled_columns(valid[:count])]]),
        ("published recipe: squared error on the noise", [noise, [], []]))]
    for name, change in list(ROWS.items())[: asked.rows]:
        settings |= change
        given = {"minutes": asked.minutes, "size": asked.size} | settings
        run = RUN / f"hop{given.pop('hop')}"
        networks = [trained(run, given | {"seed": seed}) for seed in seeds]
        sets = [[diffusion.generate(network, count, steps, seed, **way)
                 for seed, network in enumerate(networks)] for way in WAYS.values()]
        rows.append(row(name, sets, valid, learned))
    return rows


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=DEFAULTS["minutes"],
                        help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each row")
    parser.add_argument("--count", type=int, default=48, help="images of each network")
    parser.add_argument("--size", default=DEFAULTS["size"], help="of the network")
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--rows", type=int, help="of notebook 02's: only so many")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "ablation.md")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # for notebook 02, too
    rows = table(asked)
    text = ["# How much each improvement helps", "",
            f"Networks (`{asked.size}`) of {asked.minutes:g} minutes on {torch.get_num_threads()} "
            f"CPU threads, built-in corpus, {asked.seeds} a row, {asked.count} images of each in "
            f"{asked.sampling_steps} steps (the published recipe: four times as many). Fréchet "
            "distances to held-out music with their standard errors; the other columns describe "
            "the last of these.", "",
            "| | expected $x_0$ | drawn | drawn, guided | overlap | diversity | memorised |",
            "|---|---|---|---|---|---|---|", *rows, ""]
    with files.atomic(asked.output) as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
