"""How much each improvement of notebook 02 helps, at equal minutes: writes runs/ablation.md.

    python tests/ablation.py --minutes 2                 the whole table
    python tests/ablation.py --minutes 0.02 --count 4 --sampling-steps 4 --size tiny --rows 2 \\
        --output runs/trial.md                           a trial

The first row is the published recipe on the same network: a squared error on the noise, and a
plain cosine schedule. Each further row is notebook 02 with one improvement more, from the same
images. Every network generates in three ways. A training takes its minutes, and each 48 images
about half a minute on two cores.
"""

import argparse
import copy
import dataclasses
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import papermill
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from utils import corpus, diffusion, files, metrics, pianoroll, training, unet

NOTEBOOK = ROOT / "notebooks" / "02_train_diffusion.ipynb"
PUBLISHED = "published recipe: squared error on the noise"
PLAIN = {"transpose": 0, "ema_span": 0.0, "self_conditioning": 0.0, "masked": 0.0}
ROWS = {  # each with what the row above has; what is tried later is the last to be added
    "probabilities, per-pixel posterior, shifted schedule": {},
    "+ transposition": {"transpose": 6},
    "+ EMA of the weights": {"ema_span": 0.02},
    "+ a window at every bar": {"hop": 1},
    "+ masks in 10 %": {"masked": 0.1},
    "+ masks in 35 %": {"masked": 0.35},
    "+ self-conditioning in 50 %": {"self_conditioning": 0.5},
}
WAYS = {  # to generate
    "expected": {"exact": False, "guidance": 1.0},
    "drawn": {"guidance": 1.0},
    "guided": {"guidance": 2.2},
}
RATE = 0.003  # the learning rate of every row
PARTS = 3  # sets of samples, each with a seed of its own: their differences give the error


def training_cells() -> nbformat.NotebookNode:
    """Notebook 02 as far as it trains and saves, without what it only demonstrates."""
    notebook = nbformat.read(NOTEBOOK, 4)
    cells = [cell for cell in notebook.cells
             if cell.cell_type == "code" and "demo" not in cell.metadata.get("tags", [])]
    last = next(i for i, cell in enumerate(cells) if "unet.save(" in cell.source)
    notebook.cells = cells[: last + 1]
    return notebook


def trained(run: Path, parameters: dict) -> unet.UNet:
    """The network that notebook 02 trains in the folder `run`, with these parameters."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.ipynb")
        nbformat.write(training_cells(), source)
        papermill.execute_notebook(source, Path(folder, "out.ipynb"), cwd=ROOT, progress_bar=False,
                                   parameters={"run_dir": str(run)} | parameters)
    return unet.load(run / "models" / "diffusion.safetensors")


def published(rolls: np.ndarray, minutes: float, size: str, batch_size: int, seed: int
              ) -> tuple[unet.UNet, torch.Tensor]:
    """A network that predicts the noise, and its schedule: DDPM's loss, cosine schedule, EMA."""
    torch.manual_seed(seed)
    network = unet.UNet(dataclasses.replace(unet.config_for(rolls, size, 0), noise_shift=0.0))
    x = network.standardise(torch.from_numpy(pianoroll.to_planes(rolls)))
    alpha_bar = network.schedule()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.99))
    fast = diffusion.fast_bfloat16("cpu")

    def gradients() -> None:
        x_0 = x[torch.randint(len(x), (batch_size,))]
        t = diffusion.stratified_timesteps(batch_size, len(alpha_bar), None)
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


def measured(sets: list[np.ndarray], valid: np.ndarray) -> tuple[float, float, dict[str, float]]:
    """Mean Fréchet distance of some sets, its standard error, and other figures of all."""
    real = metrics.features(valid, 0)
    tables = [metrics.features(rolls, 0) for rolls in sets]
    distances = [metrics.frechet(real, table) for table in tables]
    error = np.std(distances, ddof=1) / len(sets) ** 0.5
    return float(np.mean(distances)), float(error), metrics.compare(real, np.concatenate(tables))


def table(asked: argparse.Namespace) -> list[str]:
    """The rows of the table, in Markdown; each is printed as it is done."""
    run, count, seed, steps, rows = (asked.run_dir, asked.count, asked.seed, asked.sampling_steps,
                                     [])

    def add(name: str, distances: list[str], other: dict[str, float], training_rolls: np.ndarray,
            rolls: np.ndarray) -> None:
        copied = metrics.memorised_share(metrics.nearest(rolls, training_rolls)[0],
                                         metrics.nearest(valid, training_rolls)[0])
        figures = [f"{other['overlap']:.2f}", f"{other['diversity']:.1f}", f"{copied:.2f}"]
        rows.append(" | ".join(["", name, *distances, *figures, ""]).strip())
        print(rows[-1], flush=True)

    settings = PLAIN | {"hop": 8}
    for hop in (8, 1):
        corpus.convert("builtin", run / f"hop{hop}", hop=hop)
    images, valid = corpus.load_examples(run / "hop8", "diffusion")
    seeds = range(seed, seed + PARTS)
    some = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    for name, rolls in (("*training music*", images[some]),
                        ("*shuffled columns*", metrics.shuffled_columns(valid[:count]))):
        distance, _, other = measured([rolls, rolls], valid)
        add(name, ["", "", f"{distance:.1f}"], other, images, rolls)
    network, alpha_bar = published(images, asked.minutes, asked.size, asked.batch_size, seed)
    sets = [sample_published(network, alpha_bar, count, 4 * steps, seed) for seed in seeds]
    distance, error, other = measured(sets, valid)
    add(PUBLISHED, [f"{distance:.1f} ± {error:.1f}", "", ""], other, images, np.concatenate(sets))
    for name, change in list(ROWS.items())[: asked.rows]:
        settings |= change
        network = trained(run / f"hop{settings['hop']}", {
            **{key: value for key, value in settings.items() if key != "hop"},
            "minutes": asked.minutes, "learning_rate": RATE, "size": asked.size,
            "batch_size": asked.batch_size, "seed": seed})
        distances = []
        for way in WAYS.values():
            sets = [diffusion.generate(network, count, steps, seed, **way) for seed in seeds]
            distance, error, other = measured(sets, valid)
            distances.append(f"{distance:.1f} ± {error:.1f}")
        add(name, distances, other, images, np.concatenate(sets))
    return rows


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training")
    parser.add_argument("--count", type=int, default=48, help=f"images of each of {PARTS} sets")
    parser.add_argument("--size", default="small", help="of the network")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, help="of notebook 02's: only so many")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "ablation.md")
    asked = parser.parse_args()
    rows = table(asked)
    text = ["# How much each improvement helps", "",
            f"Each network (`{asked.size}`) was trained for {asked.minutes:g} minutes on "
            f"{torch.get_num_threads()} CPU threads, on the built-in corpus, and generated "
            f"{PARTS} × {asked.count} images in {asked.sampling_steps} steps, the published recipe "
            "in four times as many. The first three columns are Fréchet distances to held-out "
            "music (0 is best) with their standard errors: with the expected $x_0$, with a drawn "
            "one, and drawn with guidance. The others describe the last of these.", "",
            "| | expected $x_0$ | drawn | drawn, guided | overlap | diversity | memorised |",
            "|---|---|---|---|---|---|---|", *rows, ""]
    with files.atomic(asked.output) as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
