"""Headless Chromium and JupyterLab for the tests."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FLAGS = ("--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
         "--disable-background-networking --disable-component-update --disable-sync")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
SETTINGS = {"notebook-extension/tracker": '{"windowingMode": "none"}',
            "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}'}


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900, downloads: Path | None = None) -> Iterator:
    """A browser with a fresh profile; the test is skipped where there is none."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not CHROMIUM or not DRIVER:
        pytest.skip("Chromium or chromedriver is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--window-size={width},{height}"):
        options.add_argument(flag)
    if downloads:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER)) as driver:
        yield driver


def until(what: Callable[[], object], seconds: float = 10, name: str = "") -> object:
    """The first true value of `what()`; fails after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {name or what}")


@contextlib.contextmanager
def jupyterlab(tree: Path) -> Iterator[tuple[str, str]]:
    """A JupyterLab that serves a copy of the tree, with settings of its own: the address of its
    notebooks, and what follows a notebook's name there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(16), tree / "jupyter"
    for name, text in SETTINGS.items():
        settings = own / "lab/user-settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(text)
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
               "--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={tree}",
               f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    with (tree / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=tree, stdout=log, stderr=log,
                                  env=os.environ | {"JUPYTER_CONFIG_DIR": str(own)})

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2).status == 200

    try:
        until(answers, 120, "JupyterLab starts")
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks/", f"?token={token}"
    finally:
        server.terminate()
        server.wait(20)


class Roll:
    """The canvas in a browser, drawn on with the mouse."""

    def __init__(self, driver: object):
        self.driver = driver

    def js(self, script: str, *given: object) -> object:
        """What a script returns; `canvas` is the canvas in it, `given` are its arguments."""
        return self.driver.execute_script(
            "const canvas = document.querySelector('.roll-root').canvas;" + script, *given)

    def notes(self) -> list[tuple]:
        """All notes: start, length, pitch, by, pending; in order."""
        return sorted(tuple(row) for row in self.js(
            "return canvas.notes.map(n => [n.start, n.length, n.pitch, n.by, n.pending])"))

    def place(self, cell: tuple[float, float]) -> tuple[int, int]:
        """Where a cell, (column, pitch), lies in the window."""
        x, y = self.js("const p = canvas.place(...arguments); return [p.x, p.y]", *cell)
        return round(x), round(y)

    def drag(self, *cells: tuple[float, float]) -> None:
        """Press at the first (column, pitch), move over the others, release."""
        from selenium.webdriver.common.action_chains import ActionChains

        self.js("canvas.grid.scrollIntoView({block: 'nearest'})")
        first, *others = map(self.place, cells)
        chain = ActionChains(self.driver, duration=5)
        pointer = chain.w3c_actions.pointer_action
        pointer.move_to_location(*first).pointer_down()
        for place in others:
            pointer.move_to_location(*place)
        pointer.pointer_up()
        chain.perform()

    def playhead(self) -> float:
        """How many pixels the playhead has moved."""
        return self.js(
            "return +document.querySelector('.roll-playhead').style.transform.slice(11, -3)")

    def click(self, name: str) -> None:
        """Press a button, as `.roll-NAME`."""
        self.driver.find_element("css selector", f".roll-{name}").click()

    def status(self) -> str:
        """The line under the roll."""
        return self.js("return document.querySelector('.roll-status').textContent")

    def errors(self) -> list[str]:
        """What the browser's console holds that is an error."""
        return [entry["message"] for entry in self.driver.get_log("browser")
                if entry["level"] == "SEVERE"]
