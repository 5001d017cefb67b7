"""Run the chain over a grid of parameters, several runs at a time, and print one table:

    python sweep.py seed=0,1 train_steps=400,1200 02.size=tiny,small

Every combination runs in a folder of its own below `--run-dir`. A run that failed is in the table
with the reason, and does not stop the others.
"""

import argparse
import csv
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from chain import ROOT
from utils.files import write_table

RESULTS = ("seconds", "set", "frechet", "frechet_error", "overlap", "diversity", "memorised_share")


def grid_of(wishes: Iterable[str]) -> list[dict[str, str]]:
    """All combinations of `NAME=VALUE,VALUE…`."""
    names, values = [], []
    for wish in wishes:
        name, equals, text = wish.partition("=")
        if not (name and equals and text):
            sys.exit(f"{wish!r}: give NAME=VALUE,VALUE…, such as seed=0,1")
        names.append(name)
        values.append(text.split(","))
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def run_one(folder: Path, parameters: dict[str, str], notebooks: list[str], threads: int
            ) -> list[dict[str, object]]:
    """Run the chain; a row for each model that notebook 07 judged, or one with the error."""
    wishes = [word for pair in parameters.items() for word in ("-p", *pair)]
    start_s = time.perf_counter()
    command = [sys.executable, ROOT / "chain.py", "--run-dir", folder, "--only", *notebooks]
    done = subprocess.run([*command, *wishes], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    row = parameters | {"seconds": round(time.perf_counter() - start_s)}
    if done.returncode:
        return [row | {"set": (done.stderr.strip().splitlines() or ["failed"])[-1][:100]}]
    with (folder / "report" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        judged = [line for line in csv.DictReader(file) if line["set"] in ("diffusion", "gan")]
    return [row | {name: line[name] for name in RESULTS[1:]} for line in judged]


def table_of(rows: list[dict[str, object]], columns: list[str]) -> str:
    """Rows as aligned text, numbers with three digits."""
    def short(value: object) -> str:
        try:
            return f"{float(str(value)):.3g}" if "." in str(value) else str(value)
        except ValueError:
            return str(value)
    cells = [columns, *([short(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                     for line in cells)


def main() -> int:
    """The command line; the exit status is 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", nargs="+", metavar="NAME=VALUE,VALUE",
                        help="a notebook's parameter, or NN.NAME for notebook NN alone")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--only", nargs="+", default=["01", "02", "07"], metavar="NN",
                        help="02, 03 or both, and 07, which judges them")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    given = parser.parse_args()
    grid = grid_of(given.grid)
    threads = max(1, (os.cpu_count() or 1) // given.jobs)
    rows, run_dir = [], (ROOT / given.run_dir).resolve()
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = [pool.submit(run_one, run_dir / f"{number:02d}", parameters, given.only, threads)
                for number, parameters in enumerate(grid, 1)]
        for run in tqdm(runs, desc="sweep", unit="run"):
            rows += run.result()
    columns = [*grid[0], *RESULTS]
    write_table(run_dir / "sweep.csv", columns, [[row.get(c, "") for c in columns] for row in rows])
    print(table_of(rows, columns))
    print(f"\n{given.run_dir.as_posix()}/sweep.csv; each run in a folder beside it")
    return int(any("frechet" not in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
