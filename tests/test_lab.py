"""Notebooks in JupyterLab, in a browser, used as a person would: run all cells, look at the images,
press a player, move a slider, draw."""

import re
import shutil

import nbformat
import pretty_midi
import pytest
from browser import Roll, browser, jupyterlab, until

from real_midi import ROOT
from utils import unet

pytestmark = pytest.mark.browser
SMALL = {"01": {"max_files": 6, "jobs": 1}, "05": {}, "06": {}, "09": {},
         "04": {"count": 1, "sampling_steps": 2, "sliders": True}}
KERNEL = "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
CELLS = ("return jupyterapp.shell.currentWidget.content.widgets.map(w => w.model.toJSON())"
         ".filter(c => c.cell_type === 'code' && c.source.length)")
IMAGES = ("return [...jupyterapp.shell.currentWidget.node.querySelectorAll('.jp-OutputArea img')]"
          ".map(i => i.complete && i.naturalWidth)")
STAGE = "return document.querySelector('.widget-output img')?.src"


@pytest.fixture(scope="module")
def tree(tmp_path_factory, network):
    """A copy of the repository with small parameters and an untrained small network."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("utils", "docs", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    for number, parameters in SMALL.items():
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            cell.update({"outputs": [], "execution_count": None} if "outputs" in cell else {})
            if "parameters" in cell.metadata.get("tags", ()):
                for name, value in parameters.items():
                    cell.source, count = re.subn(rf"^({name}: \w+ = )[^#]+", rf"\g<1>{value}  ",
                                                 cell.source, flags=re.M)
                    assert count == 1, name
        nbformat.write(notebook, folder / "notebooks" / path.name)
    unet.save(network, folder / "data" / "models" / "diffusion.safetensors")
    return folder


@pytest.fixture(scope="module")
def lab(tree):
    with jupyterlab(tree) as address:
        yield address


@pytest.fixture(scope="module")
def driver(tree):
    with browser(1280, 1000, downloads=tree / "downloads") as opened:
        yield opened


@pytest.fixture
def ran(lab, tree, driver, request):
    """A browser with a notebook that was run to its end; nothing, later either, is an error."""
    address, token = lab
    (path,) = (tree / "notebooks").glob(f"{request.param}_*.ipynb")
    driver.get(f"{address}{path.name}{token}&reset")
    until(lambda: driver.execute_script(KERNEL) == "idle", 120, "the kernel is idle")
    driver.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
    until(lambda: all(cell["execution_count"] for cell in driver.execute_script(CELLS))
          and driver.execute_script(KERNEL) == "idle", 240, "all cells have run")
    outputs = [out for cell in driver.execute_script(CELLS) for out in cell["outputs"]]
    assert not [out for out in outputs if out["output_type"] == "error"]
    yield driver
    driver.execute_script("return jupyterapp.commands.execute('kernelmenu:shutdown')")
    assert Roll(driver).errors() == [], "an error in the console"


@pytest.mark.parametrize("ran", sorted(SMALL), indirect=True)
def test_images_are_seen_and_a_player_plays(ran):
    from selenium.webdriver.common.action_chains import ActionChains

    widths = until(lambda: all(found := ran.execute_script(IMAGES)) and found, 20, "images appear")
    assert len(widths) >= 2 and min(widths) > 100
    player = ran.find_element("css selector", ".jp-OutputArea audio")
    ran.execute_script("arguments[0].scrollIntoView({block: 'center'})", player)
    button = 25 - player.size["width"] // 2  # at its left end
    ActionChains(ran).move_to_element_with_offset(player, button, 0).click().perform()
    until(lambda: ran.execute_script("return arguments[0].currentTime", player) > 0.2, 20,
          "it plays")


@pytest.mark.parametrize("ran", ["04"], indirect=True)
def test_a_slider_changes_the_image(ran):
    from selenium.webdriver.common.keys import Keys

    handles = ran.find_elements("css selector", ".jp-OutputArea .noUi-handle")
    assert len(handles) == 14
    before = ran.execute_script(STAGE)
    ran.execute_script("arguments[0].scrollIntoView({block: 'center'})", handles[0])
    handles[0].send_keys(*[Keys.RIGHT] * 5)
    until(lambda: ran.execute_script(STAGE) not in (None, before), 60, "another image appears")


@pytest.mark.parametrize("ran", ["09"], indirect=True)
def test_one_draws_generates_hears_and_saves(ran, tree):
    roll = Roll(ran)
    until(lambda: ran.execute_script("return document.querySelector('.roll-root')"), 30)
    ran.execute_script("document.querySelector('.roll-root').scrollIntoView({block: 'center'})")
    roll.drag((0, 60), (3, 60))
    roll.drag((8, 64), (11, 64))
    two = [(0, 4, 60, 0, False), (8, 4, 64, 0, False)]
    assert roll.notes() == two
    roll.click("select")
    roll.drag((32, 56), (62, 72))
    roll.click("generate")
    until(lambda: len(roll.notes()) > 2, 60, "new notes")
    until(lambda: roll.status().endswith("keep or reject."), 60, "all of them")
    after = roll.notes()
    new = [note for note in after if note not in two]
    assert set(two) <= set(after) and new
    assert all(n[0] >= 32 and n[0] + n[1] <= 64 and 56 <= n[2] <= 72 and n[3] == 1 for n in new)
    roll.click("play")
    first = until(roll.playhead, 60, "it plays")
    until(lambda: roll.playhead() > first + 4, 20, "the playhead moves")
    roll.click("play")
    roll.click("save")
    until(lambda: roll.status().startswith("Saved"), 30, "it is saved")
    (drawn,) = (tree / "runs/default/midi/drawn").glob("drawn_*.mid")
    notes = pretty_midi.PrettyMIDI(str(drawn)).instruments[0].notes
    assert sorted((round(8 * n.start), round(8 * (n.end - n.start)), n.pitch)
                  for n in notes) == sorted(note[:3] for note in after), "8 steps a second"
    until(lambda: (tree / "downloads" / drawn.name).is_file(), 20, "it is downloaded")
