"""The canvas's script alone, in a plain page with a stub in the place of the model."""

import functools
import http.server
import threading

import pytest
from browser import Roll, browser, until

from real_midi import ROOT

pytestmark = pytest.mark.browser
THREE = [(0, 4, 60, 0, False), (8, 4, 64, 0, False), (16, 8, 67, 0, False)]
ROWS = [[start, length, pitch, 84, 0] for start, length, pitch, *_ in THREE]


@pytest.fixture(scope="module")
def driver():
    """One browser, and one load of the page, for all tests."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=ROOT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, browser() as opened:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened.get(f"http://127.0.0.1:{server.server_port}/tests/canvas_page.html")
        until(lambda: opened.execute_script("return Boolean(window.begin)"))
        yield opened
        server.shutdown()


def begin(roll, song=None, draft=False):
    """A fresh canvas with the notes of a song."""
    roll.driver.execute_script("begin(arguments[0], arguments[1])", song or {}, draft)
    until(lambda: roll.js("return document.querySelector('.roll-grid').width > 500"))


@pytest.fixture
def roll(driver):
    """A fresh, empty canvas; afterwards the console must hold no error."""
    fresh = Roll(driver)
    begin(fresh)
    yield fresh
    assert fresh.errors() == []


@pytest.fixture
def drawn(roll):
    """A canvas with three notes."""
    begin(roll, {"notes": ROWS})
    return roll


def proposed(roll, button="generate"):
    """Press Generate or Vary; returns the notes that are proposed."""
    roll.click(button)
    until(lambda: roll.status().endswith("keep or reject."))
    return [note for note in roll.notes() if note[4]]


# ---------------------------------------------------------------- drawing


def test_a_click_draws_a_note_of_the_last_length_and_undo_gives_back_each_state(roll):
    roll.drag((4, 60))
    roll.drag((12, 62), (13, 62))
    roll.drag((20, 64))
    three = [(4, 4, 60, 0, False), (12, 2, 62, 0, False), (20, 2, 64, 0, False)]
    states = [roll.notes()]
    for button in ("undo", "undo", "redo", "redo", "clear", "undo"):
        roll.click(button)
        states.append(roll.notes())
    assert states == [three, three[:2], three[:1], three[:2], three, [], three]


def test_notes_move_stretch_end_others_and_are_erased(drawn):
    drawn.drag((1, 60), (5, 62))
    assert drawn.notes()[0] == (4, 4, 62, 0, False), "moved"
    drawn.drag((7, 62), (9, 62))
    assert drawn.notes()[0] == (4, 6, 62, 0, False), "stretched"
    drawn.click("erase")
    drawn.drag((9, 64))
    assert [note[2] for note in drawn.notes()] == [62, 67], "erased"
    drawn.click("draw")
    drawn.drag((5, 62), (19, 67))
    assert drawn.notes() == [(16, 2, 67, 0, False), (18, 6, 67, 0, False)], "one ends another"


def test_the_keyboard_draws_stretches_moves_and_erases(roll):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys, held=Keys.NULL):
        ActionChains(roll.driver, duration=5).key_down(held).send_keys(*keys).key_up(held).perform()

    roll.js("canvas.grid.focus()")
    press(Keys.RIGHT, Keys.UP, Keys.ENTER)
    assert roll.notes() == [(1, 4, 61, 0, False)]
    press(Keys.RIGHT, held=Keys.SHIFT)
    press(Keys.RIGHT, Keys.UP, held=Keys.ALT)
    assert roll.notes() == [(2, 5, 62, 0, False)]
    assert roll.status() == "D4, bar 1, beat 1.5: your note of 5 sixteenths."
    press(Keys.DELETE)
    assert roll.notes() == []
    press("z", held=Keys.CONTROL)
    assert len(roll.notes()) == 1


def touch(roll, *fingers):
    """Fingers touch the grid one after another and move together; (column, pitch) each."""
    def send(kind, places):
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        roll.driver.execute_cdp_cmd("Input.dispatchTouchEvent",
                                    {"type": kind, "touchPoints": points})

    moments = list(zip(*([roll.place(cell) for cell in cells] for cells in fingers), strict=True))
    for count in range(1, len(fingers) + 1):
        send("touchStart", moments[0][:count])
    for places in moments[1:]:
        send("touchMove", places)
    send("touchEnd", [])


def test_one_finger_draws_and_selects_and_two_move_the_roll(roll):
    touch(roll, [(4, 60), (6, 60), (9, 60)])
    drawn = [(4, 6, 60, 0, False)]
    assert roll.notes() == drawn
    top = "return document.querySelector('.roll-view').scrollTop"
    before = roll.js(top)
    touch(roll, [(40, 62), (40, 66), (40, 70)], [(60, 62), (60, 66), (60, 70)])
    assert roll.js(top) == pytest.approx(before + 96, abs=3), "eight rows of 12 pixels"
    assert roll.notes() == drawn
    roll.click("select")
    touch(roll, [(32, 60), (62, 66)])
    assert roll.js("return canvas.selection") == {"begin": 32, "end": 64, "low": 60, "high": 66}


# ---------------------------------------------------------------- what the model proposes


def test_generate_fills_the_selection_alone_and_can_be_kept_or_rejected(drawn):
    drawn.click("select")
    drawn.drag((0, 60), (30, 67))
    new = proposed(drawn)
    assert new and {note[3] for note in new} == {1}
    assert all(n[0] + n[1] <= 32 and 60 <= n[2] <= 67 for n in new)
    assert [note for note in drawn.notes() if not note[4]] == THREE
    assert drawn.js("return asked[0].keep") == ROWS
    drawn.click("reject")
    assert drawn.notes() == THREE
    drawn.click("undo")
    drawn.click("keep")
    assert drawn.notes() == sorted([*THREE, *((*note[:4], False) for note in new)])


def test_vary_replaces_notes_reject_brings_them_back_and_save_gets_them(drawn):
    assert proposed(drawn, "vary")
    assert not set(THREE) & set(drawn.notes())
    assert drawn.js("return [asked[0].strength, asked[0].vary.length]") == [0.5, 3]
    drawn.click("reject")
    assert drawn.notes() == THREE
    drawn.click("save")
    until(lambda: drawn.status().startswith("Saved 3 notes"))
    assert drawn.js("return saved.notes") == ROWS


def test_without_a_kernel_one_line_says_so_and_drawing_goes_on(roll):
    roll.driver.execute_async_script("""
        const done = arguments[arguments.length - 1];
        const lost = () => { throw new Error("Cannot send"); };
        const values = { song: { name: "drawn" }, notes: [[0, 4, 60, 80, 0]], seed: 1 };
        const model = { get: (name) => values[name], set() {}, on() {}, send: lost,
                        save_changes: lost };
        import("/utils/canvas.js").then(({ default: widget }) => {
            const el = document.getElementById("place");
            el.replaceChildren();
            widget.render({ model, el });
            requestAnimationFrame(() => requestAnimationFrame(done));
        });""")
    until(lambda: roll.js("return document.querySelector('.roll-grid').width > 500"))
    roll.click("generate")
    until(lambda: roll.status().startswith("The kernel does not answer"))
    roll.drag((8, 64), (11, 64))
    assert roll.notes() == [(0, 4, 60, 0, False), (8, 4, 64, 0, False)]


# ---------------------------------------------------------------- songs and the page


def test_a_long_song_has_a_strip_and_its_name_stays_text(roll):
    begin(roll, {"notes": [[at, 4, 60, 80, 0] for at in range(0, 400, 8)], "steps": 400,
                 "tempo": 90, "lines": list(range(0, 400, 16)),
                 "name": "<img src=x onerror=alert(1)>"})
    roll.js("document.querySelector('.roll-strip').dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'PageDown', bubbles: true}))")
    until(lambda: roll.js("return document.querySelector('.roll-strip').ariaValueText")
          == "bars 9 to 16")
    roll.drag((130, 72), (133, 72))
    assert (130, 4, 72, 0, False) in roll.notes()
    proposed(roll)
    assert roll.js("return asked[0].left") == 128
    assert roll.js("return document.querySelectorAll('.roll-root img').length") == 0


def test_a_draft_can_be_brought_back_after_a_reload(roll):
    roll.drag((4, 60))
    begin(roll, draft=True)
    assert roll.notes() == []
    roll.click("draft")
    assert roll.notes() == [(4, 4, 60, 0, False)]


def test_every_control_has_a_name_and_it_fits_a_narrow_page_in_the_dark(driver, roll):
    assert roll.js(
        "return [...document.querySelectorAll('button, input, canvas[tabindex]')]"
        ".filter(n => !n.hidden && !n.ariaLabel && !n.labels?.[0]?.textContent"
        " && !n.textContent.trim()).map(n => n.outerHTML)") == []
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    driver.set_window_size(700, 900)
    try:
        until(lambda: roll.js(
            "const view = document.querySelector('.roll-view');"
            "return view.clientWidth < 700 && view.scrollWidth <= view.clientWidth"
            " && document.querySelector('.roll-dark') !== null"), name="eight bars in 700 pixels")
    finally:
        driver.set_window_size(1280, 900)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
