"""A notebook run by papermill; its definitions alone; or its training as a plain program."""

import ast
import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import pytest

from chain import NOTEBOOKS, ROOT

HEAD = """
import os, signal, sys
from pathlib import Path
import matplotlib
matplotlib.use("Agg")
signal.signal(signal.SIGINT, signal.default_int_handler)  # however the program is started
"""


def executed(number: str, run_dir: Path, cwd: Path = ROOT, **parameters: object) -> str:
    """Run a notebook into a run folder; what it printed."""
    made = papermill.execute_notebook(
        NOTEBOOKS[number], run_dir / f"{number}.ipynb", {"run_dir": str(run_dir)} | parameters,
        cwd=cwd, progress_bar=False)
    return "".join(output.get("text", "") for cell in made.cells
                   for output in cell.get("outputs", []) if output.get("name") == "stdout")


def refused(number: str, run_dir: Path, **parameters: object) -> str:
    """The one line of the error that a notebook ends with."""
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        executed(number, run_dir, **parameters)
    assert caught.value.ename == "MusicError" and "\n" not in caught.value.evalue
    return caught.value.evalue


def rows_of(table: Path) -> list[dict]:
    """The rows of a CSV file."""
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def code_cells(path: Path) -> list:
    """The code cells of a notebook, without its set-up on Colab."""
    cells = nbformat.read(path, 4).cells
    return [c for c in cells if c.cell_type == "code" and "google.colab" not in c.source]


def definitions(path: Path, names: dict) -> dict:
    """Run a notebook's imports, functions and constants (names in capitals), and nothing else.

    `names` holds the parameters that they need; it is returned with what they define.
    """
    for cell in code_cells(path):
        nodes = [node for node in ast.parse(cell.source).body if _is_definition(node)]
        exec(compile(ast.Module(nodes, []), cell.id, "exec"), names)
    return names


def _is_definition(node):
    stored = [name.id for name in ast.walk(node)
              if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
    constant = isinstance(node, ast.Assign) and stored and all(name.isupper() for name in stored)
    return constant or isinstance(node, (ast.FunctionDef, ast.Import, ast.ImportFrom))


def start(path: Path, folder: Path, until: str, parameters: dict, *, head: str = HEAD,
          after: dict[str, str] | None = None, skipped: Callable = lambda cell: False
          ) -> subprocess.Popen:
    """Run a notebook as a program, up to the cell with the text `until`, without `skipped` cells.

    `after` maps a text to code that runs after the cell with this text.
    """
    code = [head]
    for cell in code_cells(path):
        if not skipped(cell):
            code.append(cell.source)
        if "parameters" in cell.metadata.get("tags", []):
            code += [f"{name} = {value!r}" for name, value in parameters.items()]
        code += [more for text, more in (after or {}).items() if text in cell.source]
        if until in cell.source:
            break
    program = folder / "program.py"
    program.write_text("\n\n".join(code), encoding="utf-8")
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(ROOT),
                                                           "PYTHONUTF8": "1"}
    return subprocess.Popen([sys.executable, program], cwd=ROOT, env=environment, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and output of a program."""
    output = process.communicate(timeout=300)[0]
    return process.returncode, output
