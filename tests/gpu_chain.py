"""The whole chain on a GPU, at a real size, against stored figures: `make gpu-test`.

    python tests/gpu_chain.py            compare with tests/gpu_figures.json
    python tests/gpu_chain.py --store    write that file instead, after a change on purpose
    python tests/gpu_chain.py --floor    write it from a short run on this machine's CPU

Notebook 02 trains the base network for a fixed number of steps; 03 trains on the GPU where
TensorFlow sees one, else a minute on the CPU; without TensorFlow it is left out. Where only figures
of a CPU are stored they are a floor: the base network, with a hundred times the images, must be no
worse. Figures that were made by other code than this are refused. A run that fails is kept, with
its traceback.

Exit status: 0 all figures are as stored, 1 some differ, 2 a notebook failed, 3 there is no GPU,
4 no figures of this code are stored.
"""

import argparse
import ast
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import nbformat
import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]
import bench

import chain
from utils import corpus, diffusion, pianoroll, unet

STORED = ROOT / "tests" / "gpu_figures.json"
RUNS = ROOT / "runs"
CPU = "a CPU"
FAILED, NO_GPU, NOTHING_STORED = 2, 3, 4
DIFFUSION = {"02.size": "base", "02.train_steps": 800, "02.batch_size": 256,
             "02.learning_rate": 5e-4, "02.guidance": 1.5, "07.count": 30}
SHORT = {"02.size": "small", "02.train_steps": 150, "02.batch_size": 8, "03.minutes": 0.5,
         "07.count": 30}
# By which factor a figure may differ: chips round differently, and a distance of 30 samples is
# uncertain. The speed is compared on the same kind of GPU alone.
FACTORS = {"held-out loss": 1.05, "frechet": 1.5, "overlap": 1.1, "seconds": 1.5}
SHARE = 0.1  # by how much a share may differ: 3 of 30 samples
CODE = ("diffusion", "unet", "training", "corpus", "pianoroll", "metrics")  # of utils


def recipe(root: Path = ROOT) -> str:
    """A hash of what decides the figures: the parameters, notebooks 02 to 04 and 07, and the
    modules that they train and measure with. Comments, prose and outputs do not count."""
    parts = [json.dumps([DIFFUSION, SHORT])]
    for number in ("02", "03", "04", "07"):
        (path,) = (root / "notebooks").glob(f"{number}_*.ipynb")
        code = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        parts.append(ast.dump(ast.parse("\n".join(code[1:]))))  # the first is the setup
    for path in sorted((root / "utils").glob("*.py")):
        if path.stem in CODE:
            parts.append(ast.dump(ast.parse(path.read_text(encoding="utf-8"))))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- figures of a run


def held_out_loss(run: Path) -> float:
    """Cross-entropy of active and onset on 32 held-out images, in nats a column, on the CPU.

    The noise levels and the noise are the same each time, so two networks can be compared.
    """
    network = unet.load(run / "models" / "diffusion.safetensors", "cpu")
    planes = torch.from_numpy(pianoroll.to_planes(corpus.load_examples(run, "diffusion")[1][:32]))
    generator = torch.Generator().manual_seed(0)
    alpha_bar = network.schedule()
    t = diffusion.stratified_timesteps(len(planes), len(alpha_bar), generator)
    eps = torch.randn(planes.shape, generator=generator)
    x_t = diffusion.q_sample(network.standardise(planes), eps, diffusion.at(alpha_bar, t, eps))
    style = torch.full((len(planes),), network.style_number())
    with torch.no_grad():
        logits = network(x_t, diffusion.log_snr(alpha_bar).float()[t], style=style).logits
    return F.binary_cross_entropy_with_logits(logits, (planes > 0).float()).item() * 256


def figures_of(run: Path, batch_size: int) -> dict[str, float]:
    """What a run came to: the loss on held-out music, the speed, and 07's measures."""
    with (run / "models" / "diffusion_log.csv").open(encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    with (run / "report" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        report = {row["set"]: row for row in csv.DictReader(file)}
    speed = np.median([float(row["pictures_per_s"]) for row in log[len(log) // 2 :]])
    found = {"held-out loss": held_out_loss(run), "seconds a step": float(batch_size / speed)}
    return found | {f"{figure.replace('_', ' ')} of {name}": float(report[name][figure])
                    for name in ("diffusion", "gan") if name in report
                    for figure in ("frechet", "overlap", "memorised_share")}


def differences(found: dict[str, float], stored: dict[str, float], floor: bool) -> list[str]:
    """What is not as stored, a line each; a figure that one of them lacks is a difference. Of a
    `floor`, only the worse side counts."""
    lines = [f"{name}: {'not stored' if name in found else 'not found'}"
             for name in sorted(found.keys() ^ stored.keys())]
    for name in sorted(found.keys() & stored.keys()):
        if name.startswith("memorised"):
            low, high = stored[name] - SHARE, stored[name] + SHARE
        else:
            factor = next(value for kind, value in FACTORS.items() if name.startswith(kind))
            low, high = stored[name] / factor, stored[name] * factor
        if floor and name.startswith("overlap"):
            high = np.inf
        elif floor:
            low = -np.inf
        if not low <= found[name] <= high:
            lines.append(f"{name}: {found[name]:.4g}, stored {stored[name]:.4g}, allowed "
                         f"{low:.4g} to {high:.4g}")
    return lines


def comparable(figures: dict[str, float], device: bool, gan: bool) -> dict[str, float]:
    """Those that hold here: the speed on the same `device`, the GAN's if both ran on a GPU."""
    return {name: value for name, value in figures.items()
            if (device or not name.startswith("seconds")) and (gan or not name.endswith("gan"))}


def tensorflow_has_gpu() -> bool:
    """Asked in a process of its own, for TensorFlow takes all the memory that it sees."""
    code = "import sys, tensorflow as tf; sys.exit(not tf.config.list_physical_devices('GPU'))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def run_and_measure(parameters: dict) -> dict[str, float] | None:
    """The figures of a new run of the chain. Where it fails, it is kept and None is returned."""
    RUNS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="gpu-test-", dir=RUNS))
    try:
        chain.run_chain(folder, parameters)
        found = figures_of(folder, parameters["02.batch_size"])
    except Exception as error:  # whatever it is, the run is kept to be looked into
        (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        print(f"gpu-test: {chain.one_line(error)}\ngpu-test: the run is kept, with traceback.txt: "
              f"{folder}")
        return None
    shutil.rmtree(folder)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="write the figures, compare nothing")
    parser.add_argument("--floor", action="store_true", help="write them from a short run on a CPU")
    given = parser.parse_args(arguments)
    storing = given.store or given.floor
    if given.floor:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the kernels
    elif not torch.cuda.is_available():
        print("gpu-test: torch sees no GPU here; nothing was tested")
        return NO_GPU
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
    if not storing and stored.get("recipe") != recipe():
        print("gpu-test: no figures of this code are stored; make them on a GPU: "
              "python tests/gpu_chain.py --store, or on a CPU: --floor")
        return NOTHING_STORED
    if given.floor:
        device, gan_on_gpu, parameters = CPU, False, SHORT
    else:
        device, gan_on_gpu = torch.cuda.get_device_name(), tensorflow_has_gpu()
        parameters = DIFFUSION | ({"03.train_steps": 3000, "03.batch_size": 64} if gan_on_gpu
                                  else {"03.minutes": 1.0})
    print(f"{device} of {bench.machine()}; TensorFlow "
          f"{'runs on the GPU' if gan_on_gpu else 'sees no GPU'}")
    found = run_and_measure(parameters)
    if found is None:
        return FAILED
    print("\n".join(f"{name}: {value:.4g}" for name, value in found.items()))
    if storing:
        cpu = bench.machine().partition(",")[0]
        facts = {"device": device, "cpu": cpu, "torch": torch.__version__, "recipe": recipe(),
                 "gan_on_gpu": gan_on_gpu, "figures": found}
        STORED.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        print(f"stored {len(found)} figures in tests/{STORED.name}")
        return 0
    alike = stored["device"] == device, stored["gan_on_gpu"] and gan_on_gpu
    lines = differences(comparable(found, *alike), comparable(stored["figures"], *alike),
                        floor=stored["device"] == CPU)
    print("\n".join(lines) or "gpu-test: nothing differs from the figures of "
          f"{stored['device']} ({stored['cpu']})")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
