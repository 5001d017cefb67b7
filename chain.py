"""Run the notebooks one after another with papermill: `python chain.py --help`.

The whole chain into one folder, or some notebooks of it, with any of their parameters:

    python chain.py --run-dir runs/mine --midi-dir ~/midi -p 02.train_steps 5000
    python chain.py --run-dir runs/mine --only 04 05 06
"""

import argparse
import ast
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
import papermill
from nbclient import NotebookClient
from papermill.exceptions import PapermillExecutionError

ROOT = Path(__file__).parent.resolve()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NOT_COPIED = (".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis",
              ".ipynb_checkpoints")


def run_chain(run_dir: str | Path, parameters: dict | None = None, only: Iterable[str] = (),
              live: bool = True) -> None:
    """Run the notebooks in order. Each gets those of `parameters` that it knows; one named
    `02.train_steps` goes to notebook 02 alone.

    The executed notebooks are kept in `run_dir/notebooks`. With `live`, their output appears as
    it comes. A run that trains a model also loads models from itself. Raises
    `PapermillExecutionError` where a cell fails.
    """
    chosen = [path for path in NOTEBOOKS if not only or path.name[:2] in set(only)]
    given = {"run_dir": str(run_dir)} | (parameters or {})
    if {"02", "03"} & {path.name[:2] for path in chosen}:
        given = {"model_dir": str(Path(run_dir) / "models")} | given
    for number, path in enumerate(chosen, 1):
        output = ROOT / run_dir / "notebooks" / path.name
        output.parent.mkdir(parents=True, exist_ok=True)
        print(f"\n[{number}/{len(chosen)}] {path.stem}", flush=True)
        start_s = time.perf_counter()
        papermill.execute_notebook(
            path, output, parameters_for(path, given), cwd=ROOT, progress_bar=not live,
            stdout_file=sys.stdout if live else None,
            stderr_file=sys.stderr if live else None)
        print(f"{path.stem} took {time.perf_counter() - start_s:.0f} s", flush=True)


def parameters_for(path: Path, given: dict) -> dict:
    """Those of `given` that the notebook has, without the number before a dot."""
    known = papermill.inspect_notebook(path)
    own = {name.rpartition(".")[2]: value for name, value in given.items()
           if name.rpartition(".")[0] in ("", path.name[:2])}
    return {name: value for name, value in own.items() if name in known}


def say_where(run_dir: Path) -> None:
    """Print what lies where after a run."""
    print()
    for what, pattern in (("pictures", "samples/**/*.png"), ("MIDI", "midi/**/*.mid"),
                          ("WAV", "wav/**/*.wav"), ("figures", "figures/*")):
        found = len(list((ROOT / run_dir).glob(pattern)))
        if found:
            print(f"{found:5d} {what:9} {run_dir}/{pattern.split('/')[0]}")
    if (ROOT / run_dir / "gallery.html").is_file():
        print(f"      look and listen: open {run_dir}/gallery.html in a browser")


def fresh_copy(folder: str | Path) -> Path:
    """Copy the tree, without what runs and tools made, to see it as a newcomer does."""
    copy = Path(folder) / "fresh"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return copy


def refresh(only: Iterable[str] = ()) -> None:
    """Run the notebooks with their defaults in a fresh copy, and keep their outputs here."""
    with tempfile.TemporaryDirectory() as folder:
        copy = fresh_copy(folder)
        for path in sorted((copy / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            start_s = time.perf_counter()
            notebook = nbformat.read(path, as_version=4)
            NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": path.parent}},
                           ).execute()
            if not only or path.name[:2] in set(only):
                nbformat.write(cleaned(notebook), ROOT / "notebooks" / path.name)
            print(f"{path.stem}: {time.perf_counter() - start_s:.0f} s", flush=True)


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without progress bars, timestamps and the machine's versions, so that a diff shows change."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python",
                                        "name": "python3"},
                         "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook


def value_of(text: str) -> object:
    """A parameter from the command line: 5, 0.1 and True as what they are, the rest as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> int:
    """The command line; the exit status is 1 where a notebook failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", default="runs/default", help="where everything goes")
    parser.add_argument("--midi-dir", default="builtin", help="a folder or a collection's name")
    parser.add_argument("--only", nargs="+", default=(), metavar="NN",
                        help="just these, such as 04")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a parameter, or NN.NAME for notebook NN alone")
    parser.add_argument("--refresh", action="store_true",
                        help="renew the outputs of the notebooks in the repository")
    arguments = parser.parse_args()
    if arguments.refresh:
        refresh(arguments.only)
        return 0
    parameters = {"01.midi_dir": arguments.midi_dir}
    parameters |= {name: value_of(value) for name, value in arguments.p}
    try:
        run_chain(arguments.run_dir, parameters, arguments.only)
    except PapermillExecutionError as error:
        print(f"\n{error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    say_where(Path(arguments.run_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
