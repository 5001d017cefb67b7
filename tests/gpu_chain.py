"""The whole chain on a GPU, at a real size, against stored figures: `make gpu-test`.

    python tests/gpu_chain.py                compare with tests/gpu_figures.json
    python tests/gpu_chain.py --store        write that file instead, after a change on purpose
    python tests/gpu_chain.py --floor RUN    write it from a run with 02's defaults on a CPU

Notebook 02 trains the base network; 03 trains on the GPU where TensorFlow sees one, else a minute
on the CPU, and says so. Where only figures of a CPU are stored, they are a floor: the base network,
with eighty times the pictures, must be no worse. Exit status: 0 all figures are as stored, 1 some
differ, 2 a notebook failed, 3 there is no GPU, 4 no figures are stored yet.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from papermill.exceptions import PapermillExecutionError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import chain

STORED = ROOT / "tests" / "gpu_figures.json"
CPU = "a CPU"
FAILED, NO_GPU, NOTHING_STORED = 2, 3, 4
# By which factor a figure may differ: chips round differently, and a distance of 30 samples is
# uncertain. The speed is compared on the same kind of GPU alone.
FACTORS = {"loss": 1.05, "frechet": 1.5, "overlap": 1.1, "seconds": 1.5}
DIFFUSION = {"02.size": "base", "02.train_steps": 1500, "02.batch_size": 256,
             "02.learning_rate": 5e-4, "07.count": 30}


def figures_of(run: Path) -> dict[str, float]:
    """What a run came to: losses of the four quarters, speed, and 07's distances."""
    with (run / "models" / "diffusion_log.csv").open(encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    with (run / "report" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        report = {row["set"]: row for row in csv.DictReader(file)}
    loss = np.array([float(row["loss"]) for row in log])
    speed = np.median([float(row["pictures_per_s"]) for row in log[len(log) // 2 :]])
    found = {f"loss, quarter {i}": float(part.mean())
             for i, part in enumerate(np.array_split(loss, 4), 1)}
    found["seconds for a thousand pictures"] = float(1000 / speed)
    return found | {f"{figure} of {name}": float(report[name][figure])
                    for name in ("diffusion", "gan") for figure in ("frechet", "overlap")}


def differences(found: dict[str, float], stored: dict[str, float], floor: bool) -> list[str]:
    """What is not as stored, a line each; a figure that one of them lacks is a difference.

    Where the stored figures are a `floor`, better ones are no difference.
    """
    lines = [f"{name}: {'not stored' if name in found else 'not found'}"
             for name in sorted(found.keys() ^ stored.keys())]
    for name in sorted(found.keys() & stored.keys()):
        factor = next(value for kind, value in FACTORS.items() if name.startswith(kind))
        low, high = stored[name] / factor, stored[name] * factor
        if floor and name.startswith("overlap"):
            high = float("inf")
        elif floor:
            low = 0
        if not low <= found[name] <= high:
            lines.append(f"{name}: {found[name]:.4g}, stored {stored[name]:.4g}, may "
                         f"{'be worse' if floor else 'differ'} by a factor of {factor}")
    return lines


def comparable(figures: dict[str, float], device: bool, gan: bool) -> dict[str, float]:
    """Those that hold here: the speed on the same `device`, the GAN's if both ran on a GPU."""
    return {name: value for name, value in figures.items()
            if (device or not name.startswith("seconds")) and (gan or not name.endswith("gan"))}


def store(figures: dict[str, float], device: str, gan_on_gpu: bool) -> int:
    """Write the figures to compare with; the exit status."""
    facts = {"device": device, "gan_on_gpu": gan_on_gpu, "figures": figures}
    STORED.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"stored {len(figures)} figures in {STORED.relative_to(ROOT).as_posix()}")
    return 0


def tensorflow_has_gpu() -> bool:
    """Asked in a process of its own, for TensorFlow takes all the memory that it sees."""
    code = "import sys, tensorflow as tf; sys.exit(not tf.config.list_physical_devices('GPU'))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="write the figures, compare nothing")
    parser.add_argument("--floor", metavar="RUN", help="write them from this run, made on a CPU")
    given = parser.parse_args(arguments)
    if given.floor:
        return store(figures_of(Path(given.floor)), CPU, False)
    if not torch.cuda.is_available():
        print("gpu-test: torch sees no GPU here; nothing was tested")
        return NO_GPU
    if not (given.store or STORED.is_file()):
        print("gpu-test: nothing to compare with; make it: python tests/gpu_chain.py --store")
        return NOTHING_STORED
    device, gan_on_gpu = torch.cuda.get_device_name(), tensorflow_has_gpu()
    gan = {"03.train_steps": 3000, "03.batch_size": 64} if gan_on_gpu else {"03.minutes": 1.0}
    print(f"{device}; TensorFlow runs on the {'GPU' if gan_on_gpu else 'CPU: it sees no GPU'}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            chain.run_chain(folder, DIFFUSION | gan)
        except PapermillExecutionError as error:
            print(f"gpu-test: {error.ename}: {error.evalue}")
            return FAILED
        found = figures_of(Path(folder))
    if given.store:
        return store(found, device, gan_on_gpu)
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    alike = stored["device"] == device, stored["gan_on_gpu"] and gan_on_gpu
    lines = differences(comparable(found, *alike), comparable(stored["figures"], *alike),
                        floor=stored["device"] == CPU)
    print("\n".join(f"{name}: {value:.4g}" for name, value in found.items()))
    print("\n".join(lines) or f"gpu-test: nothing differs from the figures of {stored['device']}")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
