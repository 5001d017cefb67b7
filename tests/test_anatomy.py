"""Every notebook has the same parts in the same order, and explains what it shows."""

import re
import statistics

import nbformat
import pytest

import utils
from chain import NOTEBOOKS
from real_midi import ROOT

# The public interface: what `papermill -p NAME` may be given, whatever else there is.
PARAMETERS = {
    "01": "midi_dir run_dir steps_per_beat max_files jobs seed",
    "02": "run_dir train_steps batch_size resume seed",
    "03": "run_dir train_steps batch_size latent_dim resume seed",
    "04": "run_dir model_dir count sampling_steps seed",
    "05": "run_dir image_dir",
    "06": "run_dir midi_dir sound_font sample_rate",
    "07": "run_dir sample_dir",
    "08": "run_dir model_dir midi_file mode bars first_bar chords scale density seed",
    "09": "run_dir model_dir midi_file seed",
}
MOST_UNSEEN = 45  # lines of code in a row, those of the cell that shows something included
PARAMETER_LINE = re.compile(r"\w+: (int|float|str|bool)( \| None)? = .+  # .+")


class Notebook:
    """A notebook's cells, its code cells with their lines, and its prose."""

    def __init__(self, number):
        self.number, self.path = number, NOTEBOOKS[number]
        self.cells = nbformat.read(self.path, 4).cells
        self.code = [cell for cell in self.cells if cell.cell_type == "code"]
        self.prose = "\n".join(c.source for c in self.cells if c.cell_type == "markdown")
        (self.parameters,) = [c for c in self.code if "parameters" in c.metadata.get("tags", ())]


@pytest.fixture(scope="module", params=PARAMETERS)
def notebook(request):
    return Notebook(request.param)


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def is_figure(cell):
    return "image/png" in str([list(out.get("data", {})) for out in cell.get("outputs", ())])


def has_sentence(cell):
    return cell.cell_type == "markdown" and any(
        re.search(r"[.:?!]$", line) for line in cell.source.splitlines() if line[:1] != "#")


def test_it_begins_with_title_in_out_time_and_three_things_to_learn(notebook):
    head = notebook.cells[0].source
    assert head.startswith(f"# {notebook.number} · ")
    assert "**In → Out:**" in head and "**Time:**" in head and "GPU" in head
    assert len(re.findall(r"^- ", head, re.M)) == 3


def test_each_parameter_has_its_kind_and_an_explanation(notebook):
    for line in lines(notebook.parameters):
        assert PARAMETER_LINE.fullmatch(line), line
    names = {line.partition(":")[0] for line in lines(notebook.parameters)}
    assert names >= set(PARAMETERS[notebook.number].split())


def test_cells_are_short(notebook):
    lengths = sorted(len(lines(cell)) for cell in notebook.code)
    assert statistics.median(lengths) <= 10
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 20
    assert lengths[-1] <= 40


def test_no_long_run_of_code_shows_nothing(notebook):
    """Setup, imports and parameters do not count."""
    unseen = 0
    for cell in notebook.code[notebook.code.index(notebook.parameters) + 1:]:
        unseen += len(lines(cell))
        assert unseen <= MOST_UNSEEN, cell.source
        unseen *= not cell.outputs


def test_every_figure_has_a_sentence_beside_it(notebook):
    """Directly before or after it, or beyond one cell that has no figure of its own."""
    for i, cell in enumerate(notebook.cells):
        if is_figure(cell):
            sides = notebook.cells[i - 1 : i - 3 : -1], notebook.cells[i + 1 : i + 3]
            beside = [side[: 1 if is_figure(side[0]) else 2] for side in sides if side]
            assert any(has_sentence(near) for side in beside for near in side), cell.source


def test_every_image_has_a_text_in_its_place(notebook):
    assert not re.search(r"!\[\s*\]\(", notebook.prose)
    for cell in notebook.code:
        for call in re.findall(r"\b(?:Image|Diagram)\(\"docs/[^)]*", cell.source):
            assert "alt=" in call, call


def test_it_ends_with_checks_what_was_saved_and_where_to_go(notebook):
    headings = re.findall(r"^## (.+)$", notebook.prose, re.M)
    assert headings[0] == "Set up" and "Recap" in headings[-3:]
    assert "Check" in headings and "Saved" in headings
    assert sum(cell.source.count("assert ") for cell in notebook.code) >= 2
    end = notebook.prose.rpartition("## Recap")[2]
    assert re.search(r"\bLimits\b", end) and re.search(r"\bWhat to try next\b", end)
    following = [path.name for number, path in NOTEBOOKS.items() if number > notebook.number]
    assert not following or following[0] in notebook.cells[-1].source


def test_it_is_committed_executed_in_order_and_small(notebook):
    counts = [cell.execution_count for cell in notebook.code if lines(cell)]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.path.stat().st_size <= 900_000
    shown = str([cell.outputs for cell in notebook.code])
    assert not re.search(r"(/home/|/root/|/tmp/|/work/|C:\\)", shown), "a path of one machine"
    assert "'output_type': 'error'" not in shown


def test_links_lead_somewhere(notebook):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", notebook.prose):
        assert (ROOT / "notebooks" / target).exists(), target
    for target in re.findall(r"\]\((https?:[^)]*)", notebook.prose):
        assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(/[^\s<>\"]*)?", target), target


def test_the_list_of_modules_in_utils_is_whole_and_each_says_what_it_does():
    listed = re.findall(r"^    (\w+) {2,}\S", utils.__doc__, re.M)
    assert sorted(listed) == sorted({path.stem for path in (ROOT / "utils").glob("*.py")}
                                    - {"__init__"})
