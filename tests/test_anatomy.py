"""Every notebook has the same parts in the same order, short cells, and prose in measure."""

import re
import statistics

import nbformat
import pytest

from real_midi import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in PATHS}
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)

# The public interface: what `papermill -p NAME` may be given, whatever else there is.
PARAMETERS = {
    "01": "midi_dir run_dir steps_per_beat max_files jobs seed",
    "02": "run_dir train_steps batch_size resume seed",
    "03": "run_dir train_steps batch_size latent_dim resume seed",
    "04": "run_dir model_dir count sampling_steps seed",
    "05": "run_dir image_dir",
    "06": "run_dir midi_dir sound_font sample_rate",
    "07": "run_dir sample_dir",
    "08": "run_dir model_dir midi_file mode bars seed",
    "09": "run_dir model_dir midi_file seed",
}
PARAMETER_LINE = re.compile(r"\w+: (int|float|str|bool)( \| None)? = .+  # .+")


def cells(name, kind):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == kind]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def prose(name):
    return "\n".join(cell.source for cell in cells(name, "markdown"))


@each_notebook
def test_it_begins_with_title_in_out_time_and_three_things_to_learn(name):
    head = NOTEBOOKS[name].cells[0].source
    assert head.startswith(f"# {name[:2]} · ")
    assert "**In → Out:**" in head and "**Time:**" in head and "GPU" in head
    assert len(re.findall(r"^- ", head, re.M)) == 3


@each_notebook
def test_the_setup_cell_is_the_same_everywhere(name):
    first = next(iter(NOTEBOOKS.values()))
    expected = next(cell for cell in first.cells if cell.cell_type == "code")
    assert cells(name, "code")[0].source == expected.source


@each_notebook
def test_one_parameters_cell_annotated_and_commented(name):
    tagged = [c for c in cells(name, "code") if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in lines(tagged[0]):
        assert PARAMETER_LINE.fullmatch(line), line
    names = {line.partition(":")[0] for line in lines(tagged[0])}
    assert names >= set(PARAMETERS[name[:2]].split())


@each_notebook
def test_cells_are_short(name):
    lengths = sorted(len(lines(cell)) for cell in cells(name, "code"))
    assert statistics.median(lengths) <= 7
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 18
    assert lengths[-1] <= 40


@each_notebook
def test_prose_and_code_are_in_measure(name):
    code = sum(len(lines(cell)) for cell in cells(name, "code"))
    assert 3 <= len(prose(name).split()) / code <= 10


@each_notebook
def test_it_ends_with_checks_what_was_saved_and_where_to_go(name):
    headings = re.findall(r"^## (.+)$", prose(name), re.M)
    assert headings[0] == "Set up" and headings[-1] == "Recap"
    assert "Check" in headings and "Saved" in headings
    asserts = sum(cell.source.count("assert ") for cell in cells(name, "code"))
    assert asserts >= 2
    assert "**Exercises**" in prose(name)
    following = [path.name for path in PATHS if path.name[:2] > name[:2]]
    assert not following or following[0] in NOTEBOOKS[name].cells[-1].source


@each_notebook
def test_it_is_committed_executed_in_order_and_small(name):
    counts = [cell.execution_count for cell in cells(name, "code") if lines(cell)]
    assert counts == list(range(1, len(counts) + 1))
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size <= 900_000
    shown = str([cell.outputs for cell in cells(name, "code")])
    assert not re.search(r"(/home/|/root/|/tmp/|/work/|C:\\)", shown), "a path of one machine"
    assert "Traceback" not in shown


@each_notebook
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose(name)):
        assert (ROOT / "notebooks" / target).exists(), target


def test_the_notebooks_are_all_there():
    assert [path.name[:2] for path in PATHS] == sorted(PARAMETERS)[: len(PATHS)]
    assert len(PATHS) >= 6
