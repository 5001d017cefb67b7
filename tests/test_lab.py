"""Notebooks 01, 04, 05 and 06 in JupyterLab, in a browser, used as a person would: run all cells,
look at the images, press a player, move a slider. 09's canvas has a test of its own."""

import re
import shutil

import nbformat
import numpy as np
import pytest
from browser import browser, jupyterlab, until

from real_midi import ROOT
from utils import pianoroll, unet

pytestmark = pytest.mark.browser
SMALL = {"01": {"max_files": 6, "jobs": 1}, "05": {}, "06": {},
         "04": {"count": 1, "sampling_steps": 2, "sliders": True}}
KERNEL = "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
CELLS = ("return jupyterapp.shell.currentWidget.content.widgets.map(w => w.model.toJSON())"
         ".filter(c => c.cell_type === 'code' && c.source.length)")
IMAGES = ("return [...jupyterapp.shell.currentWidget.node.querySelectorAll('.jp-OutputArea img')]"
          ".map(i => i.complete && i.naturalWidth)")
STAGE = "return document.querySelector('.widget-output img')?.src"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
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
    levels = pianoroll.roll_of(np.array([[0, 4, 60, 80], [8, 4, 64, 90]]), 128, 128)[None]
    network = unet.new(levels, "tiny")
    network.prior.zero_()  # it generates more than silence
    unet.save(network, folder / "data" / "models" / "diffusion.safetensors")
    return folder


@pytest.fixture(scope="module")
def lab(tree):
    with jupyterlab(tree) as address:
        yield address


@pytest.fixture(scope="module")
def driver():
    with browser(1280, 1000) as opened:
        yield opened


@pytest.fixture
def ran(lab, tree, driver, request):
    """A notebook that was opened and run to its end without an error; its screenshot is kept where
    the test fails."""
    address, token = lab
    (path,) = (tree / "notebooks").glob(f"{request.param}_*.ipynb")
    failed = request.session.testsfailed
    try:
        driver.get(f"{address}{path.name}{token}&reset")
        until(lambda: driver.execute_script(KERNEL) == "idle", 120, "the kernel is idle")
        driver.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
        until(lambda: all(cell["execution_count"] for cell in driver.execute_script(CELLS))
              and driver.execute_script(KERNEL) == "idle", 240, "all cells have run")
        yield driver
        severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe, "an error in the console"
    except BaseException:
        failed = -1
        raise
    finally:
        if failed != request.session.testsfailed:
            (ROOT / "runs").mkdir(exist_ok=True)
            driver.save_screenshot(str(ROOT / "runs" / f"test_lab_{request.param}_failed.png"))
        driver.execute_script("return jupyterapp.commands.execute('kernelmenu:shutdown')")


def press(driver, player):
    """Click on the button at the left end of a player, as a person does."""
    from selenium.webdriver.common.action_chains import ActionChains

    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", player)
    width = player.size["width"]
    ActionChains(driver).move_to_element_with_offset(player, 25 - width // 2, 0).click().perform()


@pytest.mark.parametrize("ran", sorted(SMALL), indirect=True)
def test_all_cells_run_images_are_seen_and_a_player_plays(ran):
    outputs = [out for cell in ran.execute_script(CELLS) for out in cell["outputs"]]
    assert not [out for out in outputs if out["output_type"] == "error"]
    widths = until(lambda: all(found := ran.execute_script(IMAGES)) and found, 20, "images appear")
    assert len(widths) >= 2 and min(widths) > 100
    players = ran.find_elements("css selector", ".jp-OutputArea audio")
    assert players
    press(ran, players[0])
    until(lambda: ran.execute_script("return arguments[0].currentTime", players[0]) > 0.2, 20,
          "it plays")
    handles = ran.find_elements("css selector", ".jp-OutputArea .noUi-handle")
    assert len(handles) == (14 if "04_" in ran.current_url else 0)
    if handles:
        before = ran.execute_script(STAGE)
        ran.execute_script("arguments[0].scrollIntoView({block: 'center'})", handles[0])
        handles[0].send_keys(*["\ue014"] * 5)  # the right arrow key
        until(lambda: ran.execute_script(STAGE) not in (None, before), 60, "another image appears")
