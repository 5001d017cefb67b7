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


class Notebook:
    """A notebook's cells, its code cells, those from the parameters on, and its prose."""

    def __init__(self, number):
        self.number, self.path = number, NOTEBOOKS[number]
        self.cells = nbformat.read(self.path, 4).cells
        self.code = [cell for cell in self.cells if cell.cell_type == "code"]
        self.prose = "\n".join(c.source for c in self.cells if c.cell_type == "markdown")
        (at,) = [i for i, c in enumerate(self.code) if "parameters" in c.metadata.get("tags", ())]
        self.lesson = self.code[at:]


@pytest.fixture(scope="module", params=PARAMETERS)
def notebook(request):
    return Notebook(request.param)


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def is_figure(cell):
    return any("image/png" in out.get("data", {}) for out in cell.get("outputs", ()))


def test_it_begins_with_title_in_out_time_and_three_things_to_learn(notebook):
    head = notebook.cells[0].source
    assert head.startswith(f"# {notebook.number} · ")
    assert "**In → Out:**" in head and "**Time:**" in head and "GPU" in head
    assert len(re.findall(r"^- ", head, re.M)) == 3


def test_each_parameter_has_its_kind_and_an_explanation(notebook):
    names = set()
    for line in lines(notebook.lesson[0]):
        assert re.fullmatch(r"\w+: (int|float|str|bool)( \| None)? = .+  # .+", line), line
        names.add(line.partition(":")[0])
    assert names >= set(PARAMETERS[notebook.number].split())


def test_cells_are_short_and_no_long_run_of_code_shows_nothing(notebook):
    lengths = sorted(len(lines(cell)) for cell in notebook.code)
    assert statistics.median(lengths) <= 10 and lengths[-1] <= 40
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 20
    unseen = 0
    for cell in notebook.lesson[1:]:
        unseen += len(lines(cell))
        assert unseen <= 45, cell.source
        unseen *= not cell.outputs


def test_every_figure_has_a_sentence_beside_it_and_every_image_a_text_in_its_place(notebook):
    """Directly before or after it, or beyond one cell that has no figure of its own."""
    for i, cell in enumerate(notebook.cells):
        if is_figure(cell):
            sides = notebook.cells[i - 1 : i - 3 : -1], notebook.cells[i + 1 : i + 3]
            beside = [near for side in sides if side for near in side[: 2 - is_figure(side[0])]]
            assert any(re.search(r"^[^#\n].*[.:?!]$", near.source, re.M) for near in beside
                       if near.cell_type == "markdown"), cell.source
        for call in re.findall(r"\b(?:Image|Diagram)\(\"docs/[^)]*", cell.source):
            assert "alt=" in call, call
    assert not re.search(r"!\[\s*\]\(", notebook.prose)


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


def test_numbers_that_it_prints_are_compared(notebook):
    """By `make notebooks-test`; in 07 they are those of a training."""
    compared = [cell for cell in notebook.code
                if "nbval-ignore-output" not in cell.metadata.get("tags", ())]
    with_numbers = [c for c in compared if re.search(r"\d", "".join(
        out.get("text", "") for out in c.outputs))]
    assert len(with_numbers) >= 2 or notebook.number == "07"


def test_links_lead_somewhere(notebook):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", notebook.prose):
        assert (ROOT / "notebooks" / target).exists(), target


def test_the_list_of_modules_in_utils_is_whole_and_each_says_what_it_does():
    listed = re.findall(r"^    (\w+) {2,}\S", utils.__doc__, re.M)
    assert sorted(listed) == sorted({path.stem for path in (ROOT / "utils").glob("*.py")}
                                    - {"__init__"})
