"""Every notebook has the same parts in the same order, and explains what it shows."""

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
# Words that this project once used for what has a name in the field.
HOME_MADE = re.compile(
    r"\b(paint(s|ed|er|ers|ing|ings)?|brush(es)?|(the|a) judge|timid|dear|doubts?|yardsticks?"
    r"|nonsense|likeness|seams?|stretch(es|ed)?|mend(s|ed)?|apart means|is to be seen|tells? of"
    r"|specks?|crumbs|machine guns?)\b", re.IGNORECASE)
MOST_UNSEEN = 45  # lines of code in a row, those of the cell that shows something included
FIGURE = re.compile(r"^ *(look|show_figure|show\.show_figure|Image|Diagram|plt\.show)\(", re.M)
SHOWS = re.compile(r"\b(print|look|listen|show_figure|Image|Diagram|Code|display|show|player)\b")
PARAMETER_LINE = re.compile(r"\w+: (int|float|str|bool)( \| None)? = .+  # .+")


def cells(name, kind):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == kind]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def prose(name):
    return "\n".join(cell.source for cell in cells(name, "markdown"))


def shows(cell):
    """Whether a code cell has something to see; before it was run, whether it seems to."""
    return bool(cell.outputs if cell.execution_count else SHOWS.search(cell.source))


def is_figure(cell):
    return cell.cell_type == "code" and (FIGURE.search(cell.source) or "image/png" in str(
        [list(output.get("data", {})) for output in cell.outputs]))


def has_sentence(cell):
    return cell.cell_type == "markdown" and any(
        re.search(r"[.:?!]$", line) for line in cell.source.splitlines() if line[:1] != "#")


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
    assert statistics.median(lengths) <= 10
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 20
    assert lengths[-1] <= 40


@each_notebook
def test_no_long_stretch_of_code_shows_nothing(name):
    """Setup, imports and parameters do not count."""
    found = NOTEBOOKS[name].cells
    first = next(i for i, cell in enumerate(found) if "parameters" in cell.metadata.get("tags", []))
    unseen = 0
    for cell in found[first + 1:]:
        if cell.cell_type == "code":
            unseen += len(lines(cell))
            assert unseen <= MOST_UNSEEN, cell.source
            unseen *= not shows(cell)


@each_notebook
def test_every_figure_has_a_sentence_beside_it(name):
    """Directly before or after it, or beyond one cell that has no figure of its own."""
    found = NOTEBOOKS[name].cells
    for i, cell in enumerate(found):
        if not is_figure(cell):
            continue
        beside = [found[i - 1], *found[i + 1 : i + 2]]
        if not is_figure(found[i - 1]):
            beside.append(found[i - 2])
        if i + 2 < len(found) and not is_figure(found[i + 1]):
            beside.append(found[i + 2])
        assert any(map(has_sentence, beside)), cell.source


@each_notebook
def test_every_image_has_a_text_in_its_place(name):
    assert not re.search(r"!\[\s*\]\(", prose(name))
    for cell in cells(name, "code"):
        for call in re.findall(r"\b(?:Image|Diagram)\(\"docs/[^)]*", cell.source):
            assert "alt=" in call, call


@each_notebook
def test_it_speaks_the_words_of_the_field(name):
    helps = [line.partition("  # ")[2] for cell in cells(name, "code")
             if "parameters" in cell.metadata.get("tags", []) for line in lines(cell)]
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", prose(name), flags=re.S)
    found = HOME_MADE.search("\n".join([text, *helps]))
    assert not found, found[0]


@each_notebook
def test_it_ends_with_checks_what_was_saved_and_where_to_go(name):
    headings = re.findall(r"^## (.+)$", prose(name), re.M)
    assert headings[0] == "Set up" and "Recap" in headings[-3:]
    assert "Check" in headings and "Saved" in headings
    asserts = sum(cell.source.count("assert ") for cell in cells(name, "code"))
    assert asserts >= 2
    end = prose(name).rpartition("## Recap")[2]
    assert re.search(r"\bLimits\b", end) and re.search(r"\bWhat to try next\b", end)
    following = [path.name for path in PATHS if path.name[:2] > name[:2]]
    assert not following or following[0] in NOTEBOOKS[name].cells[-1].source


@each_notebook
def test_it_is_committed_executed_in_order_and_small(name):
    counts = [cell.execution_count for cell in cells(name, "code") if lines(cell)]
    assert counts == list(range(1, len(counts) + 1))
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size <= 900_000
    shown = str([cell.outputs for cell in cells(name, "code")])
    assert not re.search(r"(/home/|/root/|/tmp/|/work/|C:\\)", shown), "a path of one machine"
    assert "'output_type': 'error'" not in shown


@each_notebook
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose(name)):
        assert (ROOT / "notebooks" / target).exists(), target
    for target in re.findall(r"\]\((https?:[^)]*)", prose(name)):
        assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(/[^\s<>\"]*)?", target), target
    assert not re.search(r"\]\s*\(\s*\)|\]\s+\(https?:", prose(name)), "a link without an address"


def test_the_notebooks_are_all_there():
    assert [path.name[:2] for path in PATHS] == sorted(PARAMETERS)[: len(PATHS)]
    assert len(PATHS) >= 6


def test_the_list_of_modules_in_utils_is_whole_and_each_says_what_it_does():
    import utils

    listed = re.findall(r"^    (\w+) {2,}\S", utils.__doc__, re.M)
    assert sorted(listed) == sorted({path.stem for path in (ROOT / "utils").glob("*.py")}
                                    - {"__init__"})
