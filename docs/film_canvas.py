"""Make the film of the canvas, docs/canvas.gif: python docs/film_canvas.py

Headless Chromium opens tests/canvas_page.html and uses it with a mouse: a phrase is drawn, bars are
selected, notes generated and kept. What the model answers is computed here, by the weights in
data/models.
"""

import functools
import http.server
import io
import json
import sys
import threading
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import Roll, browser, until

from utils import canvas, unet

PHRASE = [(0, 4, 64), (4, 4, 67), (8, 6, 72), (14, 2, 71), (16, 4, 69), (20, 4, 67), (24, 8, 64)]
BOX = {"begin": 0, "end": 64, "low": 45, "high": 62}
WIDTH, HEIGHT, COLORS = 860, 560, 64
CHORDS, DENSITY, SEED = "C Am F G", 10, 4
TOP = 76  # the highest pitch that is seen


class Film:
    """Frames of the canvas, with a dot where the mouse is."""

    def __init__(self, roll: Roll):
        self.roll, self.frames, self.times = roll, [], []

    def shoot(self, cell: tuple[float, float] | None = None, pressed: bool = True,
              milliseconds: int = 110) -> None:
        """One frame; `cell` is the column and pitch where the mouse is."""
        png = self.roll.driver.find_element("css selector", ".roll-root").screenshot_as_png
        frame = Image.open(io.BytesIO(png)).convert("RGB")
        if cell:
            x, y = self.roll.js("const p = canvas.place(...arguments), b = canvas.grid.closest("
                                "'.roll-root').getBoundingClientRect();"
                                "return [p.x - b.left, p.y - b.top]", *cell)
            size = 6 if pressed else 8
            ImageDraw.Draw(frame).ellipse((x - size, y - size, x + size, y + size), outline="black",
                                          fill="black" if pressed else "white", width=2)
        self.frames.append(frame)
        self.times.append(milliseconds)

    def drag(self, first: tuple[int, int], last: tuple[int, int], parts: int) -> None:
        """Press at a cell, move to another one, release; a frame for each part of the way."""
        self.shoot(first, pressed=False)
        for part in range(1, parts + 1):
            cell = [a + (b - a) * part / parts for a, b in zip(first, last, strict=True)]
            self.roll.drag(first, tuple(map(round, cell)))
            self.shoot(tuple(map(round, cell)))
            if part < parts:
                self.roll.js("document.activeElement.blur()")
                if self.roll.js("return canvas.grid.dataset.tool") == "draw":
                    self.roll.click("undo")

    def save(self, path: Path) -> None:
        """Write an animated GIF; all frames share the colours of the last ones."""
        palette = self.frames[-1].quantize(COLORS)
        images = [frame.quantize(palette=palette, dither=Image.Dither.NONE)
                  for frame in self.frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=self.times, loop=0,
                       optimize=True)


def answer_of(notes: list[list[int]]) -> dict:
    """What the network predicts step by step for the notes that are drawn, and its last word."""
    network, seen = unet.load(ROOT / "data/models/diffusion.safetensors"), []
    request = {"keep": notes, "vary": [], "selection": BOX, "strength": 1.0, "seed": SEED,
               "chords": CHORDS, "scale": "", "density": DENSITY, "left": 0,
               "lines": list(range(0, 128, 16))}
    last = canvas.fill(network, request, lambda notes, share: notes is None or seen.append(
        {"notes": notes, "share": share}))
    return {"seen": seen, "notes": last}


def main() -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=ROOT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, \
            browser(WIDTH + 32, HEIGHT + 200) as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver.get(f"http://127.0.0.1:{server.server_port}/tests/canvas_page.html")
        roll = Roll(driver)
        until(lambda: roll.js("return document.querySelector('.roll-grid').width > 500"), 30)
        roll.js("canvas.grid.closest('.roll-view').scrollTop = arguments[0]", (127 - TOP) * 12)
        film = Film(roll)
        film.shoot(milliseconds=600)
        for start, length, pitch in PHRASE:
            film.drag((start, pitch), (start + length - 1, pitch), 2)
        roll.click("select")
        for name, value in (("maxlength='400'", CHORDS), ("max='32'", DENSITY),
                            ("max='2147483647'", SEED)):
            driver.execute_script("const [name, value] = arguments, field = document.querySelector("
                                  "`input[${name}]`); field.value = value;"
                                  "field.dispatchEvent(new Event('input'))", name, value)
        film.drag((BOX["begin"], BOX["high"]), (BOX["end"] - 2, BOX["low"]), 5)
        notes = roll.js("return canvas.notes.map(n => [n.start, n.length, n.pitch, n.velocity, 0])")
        driver.execute_script("window.canned = JSON.parse(arguments[0])",
                              json.dumps(answer_of(notes)))
        roll.click("generate")
        for _ in range(driver.execute_script("return canned.seen.length")):
            driver.execute_script("return window.step()")
            film.shoot(milliseconds=200)
        driver.execute_script("return window.step()")
        until(lambda: roll.status().endswith("keep or reject."), 10)
        film.shoot(milliseconds=1600)
        roll.click("keep")
        roll.click("draw")
        film.shoot(milliseconds=1600)
        server.shutdown()
    path = ROOT / "docs" / "canvas.gif"
    film.save(path)
    print(f"{path.relative_to(ROOT)}: {len(film.frames)} frames, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
