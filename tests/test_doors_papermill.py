"""papermill's own command from any folder, twice at a time, and what `pytest --nbval` compares."""

import os
import subprocess
import sys

import nbformat
import numpy as np
import pytest

import chain
from real_midi import ROOT
from utils import pianoroll


def test_two_runs_of_papermill_at_a_time_from_any_folder_keep_apart(tmp_path):
    """05 in a folder elsewhere with -p, and in the notebooks' own with -f."""
    processes = []
    for i, cwd in enumerate((tmp_path, ROOT / "notebooks")):
        roll = pianoroll.PianoRoll(pianoroll.roll_of(np.array([[0, 4, 60 + i, 90]]), 128, 128))
        pianoroll.save_png(roll, tmp_path / f"images {i}" / f"{i}.png")
        values = {"run_dir": f"{tmp_path}/run {i}", "image_dir": f"{tmp_path}/images {i}"}
        yaml = tmp_path / "values.yaml"
        yaml.write_text("".join(f'{name}: "{value}"\n' for name, value in values.items()))
        given = ["-f", yaml] if i else [w for pair in values.items() for w in ("-p", *pair)]
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "papermill", chain.NOTEBOOKS["05"], tmp_path / f"{i}.ipynb",
             *given], cwd=cwd, env=os.environ | {"MUSIC_ROOT": str(ROOT)}))
    for i, process in enumerate(processes):
        assert process.wait(300) == 0
        (path,) = (tmp_path / f"run {i}" / "midi").rglob("*.mid")
        assert pianoroll.notes_of(pianoroll.read_midi(path))[:, 2].tolist() == [60 + i]


@pytest.mark.parametrize(("notes", "status"), [(412, 0), (413, 1)])
def test_nbval_compares_numbers_but_no_time_device_player_and_progress(tmp_path, notes, status):
    """A small notebook, whose stored outputs are another machine's."""
    new = nbformat.v4
    cells = [new.new_code_cell("from IPython.display import HTML\nimport sys", execution_count=1),
             new.new_code_cell(
                 "print('notes', 412, 'in 3.5 s on cpu')", execution_count=2, outputs=[
                     new.new_output("stream", text=f"notes {notes} in 9.1 s on cuda\n")]),
             new.new_code_cell(
                 "HTML('<audio src=\"1\">')", execution_count=3, outputs=[
                     new.new_output("execute_result", execution_count=3, data={
                         "text/html": "<audio>", "text/plain": "<IPython.core.display.HTML object>"
                     })]),
             new.new_code_cell("print('half', file=sys.stderr)", execution_count=4, outputs=[
                 new.new_output("stream", name="stderr", text="100%\n")])]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "small.ipynb")
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider",
         "--nbval-sanitize-with", ROOT / "tests" / "nbval_sanitize.cfg", "--rootdir", tmp_path,
         tmp_path / "small.ipynb"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout[-2000:]
    assert ("413" in done.stdout) == (notes == 413)


@pytest.mark.parametrize("number", sorted(set(chain.NOTEBOOKS) - {"07"}))  # it measures trainings
def test_numbers_are_compared_in_every_notebook(number):
    """Cells that print numbers and are not left out of the comparison."""
    printed = ["".join(out.get("text", "") for out in cell.get("outputs", ()))
               for cell in nbformat.read(chain.NOTEBOOKS[number], 4).cells
               if "nbval-ignore-output" not in cell.metadata.get("tags", ())]
    assert sum(any(map(str.isdigit, text)) for text in printed) >= 2
