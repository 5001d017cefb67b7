"""What a notebook's code cells define, for tests and benchmarks that run no training."""

import ast
from pathlib import Path

import nbformat


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
