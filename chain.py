"""Run the notebooks one after another with papermill: `python chain.py --help`.

The whole chain into one folder, or some notebooks of it, with any of their parameters, or with
every combination of a few values, in a folder for each and with one table at the end:

    python chain.py --run-dir runs/mine --midi-dir ~/midi -p 02.train_steps 5000
    python chain.py --run-dir runs/mine --only 04 05 06
    python chain.py --run-dir runs/grid --only 01 02 07 --grid seed=0,1 02.size=mini,small

Relative paths are taken from the repository root. `python chain.py complete song.mid` is
`complete.py`: new bars for a song, in several takes.
"""

import argparse
import csv
import difflib
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import joblib
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from utils.files import MusicError, as_kind, write_table

ROOT = Path(__file__).parent.resolve()
NOTEBOOKS = {path.name[:2]: path for path in
             sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
CELL_MINUTES = 120  # the most that a cell may take, beyond the minutes that a training is given
RESULTS = ("frechet", "frechet_error", "overlap", "diversity", "memorised_share")  # of 07


def chosen(only: Iterable[str] = ()) -> list[str]:
    """The numbers of the notebooks to run, in order; all where `only` is empty. 4 means 04."""
    numbers = sorted({number.zfill(2) for number in only} or NOTEBOOKS)
    for number in numbers:
        if number not in NOTEBOOKS:
            raise MusicError(f"there is no notebook {number}; choose from {' '.join(NOTEBOOKS)}")
    return numbers


def declared(number: str) -> dict[str, str]:
    """A notebook's parameters and the kind of each: bool, int, float or str."""
    return {name: facts["inferred_type_name"]
            for name, facts in papermill.inspect_notebook(NOTEBOOKS[number]).items()}


def parameters_of(given: dict[str, object], numbers: list[str]) -> dict[str, dict[str, object]]:
    """For each notebook those of `given` that it has, with values as the notebook declares them.

    A name such as `02.seed` is for notebook 02 alone, and comes before `seed`. Raises `MusicError`
    for a name that none of these notebooks has and for a value of another kind.
    """
    known = {number: declared(number) for number in NOTEBOOKS}
    result = {number: {} for number in numbers}
    for full_name, value in sorted(given.items(), key=lambda item: "." in item[0]):
        number, _, name = full_name.rpartition(".")
        asked = chosen([number] if number else ())
        owners = [one for one in asked if name in known[one]]
        if name == "run_dir":
            raise MusicError("run_dir: give it as --run-dir")
        if not owners:
            meant = difflib.get_close_matches(name, {n for one in asked for n in known[one]}, 1)
            raise MusicError(f"{full_name}: no such parameter; " + (
                f"did you mean {meant[0]}?" if meant else "notebooks list theirs near their top"))
        if not set(owners) & set(numbers):
            raise MusicError(
                f"{full_name}: a parameter of {' '.join(owners)}, and --only leaves that out")
        for one in set(owners) & set(numbers):
            result[one][name] = as_kind(full_name, value, known[one][name])
    return result


def runnable(numbers: list[str]) -> list[str]:
    """Those of the notebooks that can run here: without 03 where TensorFlow is missing."""
    if "03" not in numbers or importlib.util.find_spec("tensorflow"):
        return numbers
    if numbers == ["03"]:
        raise MusicError("03 needs TensorFlow: pip install -r requirements.txt, or on a machine "
                         "with a GPU requirements-gpu-tf.txt")
    print("TensorFlow is not installed: 03 and the GAN's part of 04 and 07 are skipped", flush=True)
    return [number for number in numbers if number != "03"]


def grid_of(wishes: Iterable[str]) -> list[dict[str, str]]:
    """All combinations of `NAME=VALUE,VALUE…`."""
    values = {}
    for wish in wishes:
        name, _, text = wish.partition("=")
        if not (name and text):
            raise MusicError(f"--grid {wish!r}: give NAME=VALUE,VALUE, such as seed=0,1")
        values[name] = text.split(",")
    choices = itertools.product(*values.values())
    return [dict(zip(values, choice, strict=True)) for choice in choices]


def run_chain(run_dir: str | Path, parameters: dict | None = None, only: Iterable[str] = (),
              live: bool = True) -> None:
    """Run the notebooks in order, each with its own of `parameters` (see `parameters_of`).

    The executed notebooks are kept in `run_dir/notebooks`. With `live`, their output appears as
    it comes. A run that trains a model also loads models from itself. Raises
    `PapermillExecutionError` where a cell fails, `MusicError` where it takes too long or the kernel
    dies, or for parameters that are not the notebooks' own.
    """
    numbers, run_dir = chosen(only), Path(run_dir).expanduser()
    own = parameters_of(parameters or {}, numbers)
    numbers = runnable(numbers)
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leave some to torch
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # "failed call to cuInit": there is no GPU
    usual = {"run_dir": str(run_dir)}
    if {"02", "03"} & set(numbers):
        usual["model_dir"] = str(run_dir / "models")
    streams = {"stdout_file": sys.stdout, "stderr_file": sys.stderr} if live else {}
    for place, number in enumerate(numbers, 1):
        path = NOTEBOOKS[number]
        output = ROOT / run_dir / "notebooks" / path.name
        output.parent.mkdir(parents=True, exist_ok=True)
        values = {name: usual[name] for name in usual if name in declared(number)} | own[number]
        minutes = CELL_MINUTES + values.get("minutes", 0)
        limit_s = None if values.get("train_steps") else int(60 * minutes)
        if live:
            print(f"\n[{place}/{len(numbers)}] {path.stem}", flush=True)
        start_s = time.perf_counter()
        try:
            papermill.execute_notebook(
                path, output, values, cwd=ROOT, progress_bar=False, execution_timeout=limit_s,
                iopub_timeout=60, **streams,
                extra_arguments=["--IPKernelApp.log_level=40"])  # no warning on its transport
        except CellTimeoutError:
            raise MusicError(f"{path.stem}: a cell took longer than {minutes:g} minutes; run it "
                             "again, or in JupyterLab, where no time is set") from None
        except DeadKernelError:
            raise MusicError(f"{path.stem}: its process ended, most likely because memory ran out; "
                             "free some, or choose smaller parameters") from None
        if live:
            print(f"{path.stem} took {time.perf_counter() - start_s:.0f} s", flush=True)


def one_line(error: Exception) -> str:
    """What went wrong, without the call stack."""
    if isinstance(error, PapermillExecutionError):
        return f"{error.ename}: {error.evalue}"
    return f"{type(error).__name__}: {error}"


def run_grid(run_dir: Path, grid: list[dict], parameters: dict, only: Iterable[str],
             jobs: int) -> bool:
    """Run each combination in `run_dir/01`, `run_dir/02`…, `jobs` at a time, each in its own
    process. Prints one table and writes it to `run_dir/grid.csv`; whether all runs went well."""
    runs = joblib.Parallel(n_jobs=jobs, return_as="generator")(
        joblib.delayed(run_one)(run_dir / f"{number:02d}", settings, parameters, only)
        for number, settings in enumerate(grid, 1))
    rows = [row for run in tqdm(runs, "grid", len(grid), unit="run") for row in run]
    columns = [name for name in ("run", *grid[0], "seconds", "set", *RESULTS, "error")
               if any(name in row for row in rows)]
    cells = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    write_table(run_dir / "grid.csv", columns, cells[1:])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(map(str.rjust, line, widths)))
    print(f"\n{run_dir / 'grid.csv'}; each run in its folder beside it")
    return "error" not in columns


def run_one(folder: Path, settings: dict, parameters: dict,
            only: Iterable[str]) -> list[dict[str, object]]:
    """One run of a grid: a row for each model that notebook 07 measured, or one with the error."""
    start_s, row = time.perf_counter(), {"run": folder.name} | settings
    try:
        run_chain(folder, parameters | settings, only, live=False)
    except Exception as error:  # whatever it is, the other runs go on
        return [row | {"error": one_line(error)[:300]}]
    row["seconds"] = round(time.perf_counter() - start_s)
    if "07" not in chosen(only):
        return [row]
    with (folder / "report" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [row | {"set": line["set"]} | {name: round(float(line[name]), 4) for name in RESULTS}
                for line in csv.DictReader(file) if line["set"] in ("diffusion", "gan")]


def main() -> int:
    """The exit status: 1 where a run failed, 2 where what was asked for cannot be run."""
    if sys.argv[1:2] == ["complete"]:
        import complete  # late: it imports this module

        return complete.main(sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", default="runs/default", help="where everything goes")
    parser.add_argument("--midi-dir", help="a folder or a collection's name, for notebook 01")
    parser.add_argument("--only", nargs="+", default=(), metavar="NN",
                        help="just these, such as 04")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a parameter, or NN.NAME for notebook NN alone")
    parser.add_argument("--grid", nargs="+", action="extend", metavar="NAME=VALUE,VALUE",
                        help="run every combination, each in a folder of its own below run-dir")
    parser.add_argument("--jobs", type=int, default=2, help="runs of a grid at a time")
    asked = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows cannot take every character
        stream.reconfigure(errors="replace")
    parameters = dict(asked.p) | ({"01.midi_dir": asked.midi_dir} if asked.midi_dir else {})
    run_dir = ROOT / Path(asked.run_dir).expanduser()
    try:
        grid = grid_of(asked.grid or ())
        for settings in grid:  # refused before anything runs
            parameters_of(parameters | settings, chosen(asked.only))
    except MusicError as error:
        print(error, file=sys.stderr)
        return 2
    if Path.cwd() != ROOT:
        print(f"relative paths are taken from {ROOT}")
    if asked.grid:
        return 1 - run_grid(run_dir, grid, parameters, asked.only, asked.jobs)
    try:
        run_chain(asked.run_dir, parameters, asked.only)
    except (PapermillExecutionError, MusicError) as error:
        print(f"\n{one_line(error)}", file=sys.stderr)
        return 1
    print(f"\neverything is in {run_dir}")
    if (run_dir / "gallery.html").is_file():
        print(f"look and listen: open {run_dir / 'gallery.html'} in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
