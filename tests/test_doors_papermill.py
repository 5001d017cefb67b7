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


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """05 started twice at a time: in a folder elsewhere with -p, in the notebooks' own with -f."""
    folder = tmp_path_factory.mktemp("anywhere")
    processes = []
    for i, cwd in enumerate((folder, ROOT / "notebooks")):
        images = folder / f"images {i}"
        for k in range(i + 1):
            levels = pianoroll.roll_of(np.array([[4 * k, 4, 60 + i, 90]]), 128, 128)
            pianoroll.save_png(pianoroll.PianoRoll(levels), images / f"{k}.png")
        values = {"run_dir": str(folder / f"run {i}"), "image_dir": str(images)}
        if i:
            (folder / "values.yaml").write_text(
                "".join(f'{name}: "{value}"\n' for name, value in values.items()))
            given = ["-f", str(folder / "values.yaml")]
        else:
            given = [word for name, value in values.items() for word in ("-p", name, value)]
        command = [sys.executable, "-m", "papermill", str(chain.NOTEBOOKS["05"]),
                   str(folder / f"out {i}.ipynb"), *given]
        processes.append(subprocess.Popen(
            command, cwd=cwd, env=os.environ | {"MUSIC_ROOT": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in processes:
        said, _ = process.communicate()
        assert process.returncode == 0, said[-2000:]
    return folder


@pytest.mark.parametrize("i", [0, 1])
def test_two_runs_at_a_time_from_any_folder_keep_apart(two_runs, i):
    made = sorted((two_runs / f"run {i}" / "midi").rglob("*.mid"))
    assert [path.name for path in made] == ["0.mid", "1.mid"][: i + 1]
    assert {int(n[2]) for path in made
            for n in pianoroll.notes_of(pianoroll.read_midi(path))} == {60 + i}
    out = nbformat.read(two_runs / f"out {i}.ipynb", 4)
    assert out.metadata.papermill.exception is None


# ---------------------------------------------------------------- nbval


def compared(folder, change=str):
    """nbval's verdict on a small notebook whose stored outputs `change` has been at."""
    cells = ["from IPython.display import HTML\nimport sys",
             "print('notes', 412, 'in 3.5 s on cpu')",
             "HTML('<audio src=\"1\">')", "print('a bar of progress', file=sys.stderr)"]
    outputs = [[], [nbformat.v4.new_output("stream", text="notes 412 in 9.1 s on cuda\n")],
               [nbformat.v4.new_output("execute_result", execution_count=3, data={
                   "text/html": '<audio src="another machine\'s">',
                   "text/plain": "<IPython.core.display.HTML object>"})],
               [nbformat.v4.new_output("stream", name="stderr", text="100%\n")]]
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell(source, outputs=out, execution_count=i)
        for i, (source, out) in enumerate(zip(cells, outputs, strict=True), 1)])
    path = folder / "small.ipynb"
    path.write_text(change(nbformat.writes(notebook)))
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p",
               "no:cacheprovider", "--nbval-sanitize-with",
               str(ROOT / "tests" / "nbval_sanitize.cfg"), "--rootdir", str(folder), str(path)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_another_machines_time_device_player_and_progress_are_not_compared(tmp_path):
    done = compared(tmp_path)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_wrong_number_that_is_planted_fails(tmp_path):
    done = compared(tmp_path, lambda text: text.replace("notes 412 in", "notes 413 in"))
    assert done.returncode == 1 and "413" in done.stdout


@pytest.mark.parametrize("number", sorted(set(chain.NOTEBOOKS) - {"07"}))  # it measures trainings
def test_numbers_are_compared_in_every_notebook(number):
    """Cells that print numbers and are not left out of the comparison."""
    cells = [cell for cell in nbformat.read(chain.NOTEBOOKS[number], 4).cells
             if cell.cell_type == "code"
             and "nbval-ignore-output" not in cell.metadata.get("tags", ())]
    printing = [cell for cell in cells if any(
        any(c.isdigit() for c in out.get("text", "")) for out in cell.outputs)]
    assert len(printing) >= 2
