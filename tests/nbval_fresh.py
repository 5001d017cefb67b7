"""Run every notebook in a fresh copy of the tree, as a newcomer's clone is.

    python tests/nbval_fresh.py [NOTEBOOK...]   compare their outputs: pytest --nbval, strict
    python tests/nbval_fresh.py --refresh       keep the new outputs instead, before a commit

In the working tree an earlier run's images would change what 05 and 06 find.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
NOT_COPIED = (".git", ".venv", ".venv-tf", "runs", "__pycache__", ".*_cache", ".hypothesis",
              ".ipynb_checkpoints")


def refresh(path: Path) -> None:
    """Run a notebook of the copy with its defaults, and keep its outputs here: without progress
    bars, timestamps and the machine's versions, so that a diff shows what changed."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": path.parent}}).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python",
                                        "name": "python3"},
                         "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    nbformat.write(notebook, ROOT / "notebooks" / path.name)


def main() -> int:
    """The exit status is pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fresh"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        if sys.argv[1:] == ["--refresh"]:
            for path in tqdm(sorted((copy / "notebooks").glob("[0-9][0-9]_*.ipynb"))):
                refresh(path)
            return 0
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env",
                   "--nbval-sanitize-with", "tests/nbval_sanitize.cfg", "--nbval-cell-timeout",
                   "1200", "-p", "no:cacheprovider", *(sys.argv[1:] or ["notebooks"])]
        return subprocess.run(command, cwd=copy, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
