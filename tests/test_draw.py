"""The kernel's side of the canvas, and notebook 09 in JupyterLab, used as a person would."""

import dataclasses
import shutil
import threading

import nbformat
import numpy as np
import papermill
import pretty_midi
import pytest
from browser import Roll, browser, jupyterlab, until

from real_midi import ROOT
from utils import canvas, pianoroll, unet
from utils.canvas import MODEL, YOU
from utils.files import MusicError

DRAWN = [[0, 4, 60, 80, YOU], [40, 8, 64, 90, YOU], [44, 30, 72, 70, MODEL]]
BOX = {"begin": 32, "end": 64, "low": 58, "high": 76}
NOTEBOOK = ROOT / "notebooks" / "09_draw.ipynb"


@pytest.fixture(scope="module")
def network():
    """An untrained network that generates more than silence."""
    levels = pianoroll.roll_of(np.array([[0, 4, 60, 80], [8, 4, 64, 90]]), 128, 128)[None]
    new = unet.new(levels, "tiny")
    new.prior.zero_()
    new.config = dataclasses.replace(new.config, active_counts=(900,), onset_counts=(600,))
    return new


def request(**changed):
    """A request as the browser sends it."""
    return {"keep": DRAWN, "vary": [], "selection": BOX, "strength": 1.0, "seed": 1, "chords": "",
            "scale": "", "density": 0, "left": 0, "lines": list(range(0, 128, 16))} | changed


# ---------------------------------------------------------------- what may be generated


def test_the_mask_is_the_selection_without_the_notes_in_it():
    keep = canvas.window_of(DRAWN)
    mask = canvas.masked_region(keep, BOX)
    assert not mask[:58].any() and not mask[77:].any()
    assert not mask[:, :32].any() and not mask[:, 64:].any()
    assert not mask[64, 40:48].any() and mask[64, 48:64].all() and mask[64, 32:40].all()
    assert mask.sum() == 19 * 32 - 8 - 20


def test_without_a_selection_all_that_is_empty_is_masked():
    keep = canvas.window_of(DRAWN)
    assert np.array_equal(canvas.masked_region(keep, None), keep == 0)


def test_new_notes_lie_in_the_selection_and_never_on_a_drawn_one(network):
    new = canvas.fill(network, request(), sampling_steps=4)
    assert len(new) > 3
    keep = canvas.window_of(DRAWN)
    for start, length, pitch, velocity in new:
        assert start >= 32 and start + length <= 64 and 58 <= pitch <= 76 and 1 <= velocity <= 127
        assert not keep[pitch, start : start + length].any()


def test_a_sustain_behind_a_drawn_note_does_not_lengthen_it():
    keep = canvas.window_of([[32, 4, 60, 80]])
    mask = canvas.masked_region(keep, None)
    roll = np.where(mask, 0, keep)
    roll[60, 36:40] = pianoroll.SUSTAIN  # what a network may predict there
    roll[62, 50], roll[62, 51] = 200, pianoroll.SUSTAIN
    assert canvas.new_notes(roll, mask) == [[50, 2, 62, 72]]


def test_the_same_seed_gives_the_same_notes(network):
    first, again = (canvas.fill(network, request(), sampling_steps=3) for _ in range(2))
    other = canvas.fill(network, request(seed=2), sampling_steps=3)
    assert first == again != other


def test_an_empty_canvas_becomes_a_whole_piece(network):
    new = np.array(canvas.fill(network, request(keep=[], selection=None), sampling_steps=4))
    assert (np.bincount(new[:, 0] // 16, minlength=8) > 0).all(), "notes in each bar"


def test_a_slight_variation_begins_with_the_notes_and_takes_fewer_steps(network):
    shares = []
    canvas.fill(network, request(keep=[], vary=DRAWN, strength=0.25), sampling_steps=8,
                watch=lambda notes, share: shares.append(share))
    assert shares == [0.5, 1.0]


def test_a_scale_and_chords_hold_in_the_bars_shown(network):
    new = np.array(canvas.fill(network, request(keep=[], selection=None, scale="C major"),
                               sampling_steps=4))
    assert set((new[:, 2] % 12).tolist()) <= {0, 2, 4, 5, 7, 9, 11}


def test_notes_before_the_window_are_sustained_into_it():
    roll = canvas.window_of([[-20, 24, 60, 80], [120, 40, 62, 80], [3, 1, 200, 80]])
    assert (roll[60, :4] == pianoroll.SUSTAIN).all() and not roll[60, 4:].any()
    assert roll[62, 120] > pianoroll.SUSTAIN and (roll[62, 121:] == pianoroll.SUSTAIN).all()
    assert np.count_nonzero(roll) == 4 + 8, "a pitch outside the range is left out"


@pytest.mark.parametrize(("changed", "message"), [
    ({"chords": "H7"}, "chord 'H7' cannot be read"), ({"scale": "X"}, "scale 'X' is unknown"),
    ({"keep": [[0, 128, 60, 80]], "selection": {"begin": 0, "end": 8, "low": 60, "high": 60}},
     "the selection is full of notes")])
def test_what_cannot_be_done_is_one_line(network, changed, message):
    with pytest.raises(MusicError, match=message) as error:
        canvas.fill(network, request(**changed), sampling_steps=1)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- files


def test_what_is_saved_loads_as_it_was(tmp_path):
    picture = canvas.piano_roll_of(DRAWN, 96)
    path = canvas.save(picture, tmp_path, "my <tune>")
    assert path.name == "my__tune__1.mid"
    assert canvas.save(picture, tmp_path, "my <tune>").name == "my__tune__2.mid"
    song = canvas.load_bytes("x/../tune.mid", path.read_bytes())
    assert sorted(row[:4] for row in song["notes"]) == sorted(row[:4] for row in DRAWN)
    assert song["tempo"] == pytest.approx(96) and song["steps"] == 128 and song["name"] == "tune"


@pytest.mark.parametrize("data", [
    b"no MIDI", b"", b"MThd\x00\x00\x00\x06\x00\x01"])
def test_a_file_that_is_no_midi_is_one_line_that_names_it(data):
    with pytest.raises(MusicError, match=r"tune\.mid: ") as error:
        canvas.load_bytes("tune.mid", data)
    assert "\n" not in str(error.value) and "/" not in str(error.value).partition(":")[0]


def test_a_midi_of_hours_is_one_line(tmp_path):
    notes = np.array([[at, 2, 60, 80] for at in range(0, 40_000, 8)])
    path = pianoroll.save_midi(pianoroll.PianoRoll(pianoroll.roll_of(notes, 128, 40_000)),
                               tmp_path / "long.mid")
    with pytest.raises(MusicError, match=r"long.mid: 2,500 bars, more than the 512"):
        canvas.load_song(path)


def test_the_first_column_of_a_song_is_a_bar_line(builtin_midi):
    song = canvas.load_song(builtin_midi[1])
    assert song["lines"][0] == 0 and len(song["lines"]) == song["steps"] // 16
    assert len(song["notes"]) == len(pianoroll.notes_of(pianoroll.read_midi(builtin_midi[1])))


# ---------------------------------------------------------------- messages


@pytest.fixture
def board(network, tmp_path, monkeypatch):
    """A canvas whose answers are kept in `sent`; each message is answered before it goes on."""
    made = canvas.Canvas(network, tmp_path)
    made.sent = []
    monkeypatch.setattr(made, "send", lambda content, buffers=None: made.sent.append(
        content | {"buffers": buffers}))
    return made


def asked(board, **message):
    """The last answer to a message."""
    board._receive(board, {"id": "1"} | message, message.pop("buffers", []))
    until(lambda: board.sent[-1]["kind"] in ("done", "error"), 60)
    return board.sent[-1]


def test_generate_answers_in_a_thread_and_shows_steps(board):
    answer = asked(board, what="generate", request=request())
    assert answer["kind"] == "done" and answer["id"] == "1" and answer["notes"]
    kinds = [one["kind"] for one in board.sent]
    assert kinds[0] == "started" and kinds.count("progress") == -(-canvas.SAMPLING_STEPS // 3)


def test_stop_ends_it_within_a_step(board, monkeypatch):
    seen = threading.Event()
    monkeypatch.setattr(board, "send", lambda content, buffers=None: (
        board.sent.append(content), content["kind"] == "progress" and seen.set()))
    board._receive(board, {"id": "1", "what": "generate", "request": request()}, [])
    assert seen.wait(30)
    board._receive(board, {"what": "stop"}, [])
    until(lambda: not board.turn.locked(), 30)
    assert [one["kind"] for one in board.sent].count("done") == 0


@pytest.mark.parametrize("message", [
    {"what": "generate", "request": request(chords="H7")}, {"what": "generate", "request": {}},
    {"what": "save", "notes": [], "tempo": 120, "name": "x"},
    {"what": "load", "name": "x.mid", "buffers": [b"no"]},
    {"what": "play", "notes": [], "tempo": 120}])
def test_an_error_comes_back_as_one_line(board, message):
    answer = asked(board, **message)
    assert answer["kind"] == "error" and answer["text"] and "\n" not in answer["text"]


def test_save_writes_a_file_and_sends_it(board, tmp_path):
    answer = asked(board, what="save", notes=DRAWN, tempo=100, name="drawn")
    path = tmp_path / "midi" / "drawn" / "drawn_1.mid"
    assert answer["buffers"] == [path.read_bytes()] and answer["name"] == path.name


def test_play_answers_with_a_sound(board):
    answer = asked(board, what="play", notes=DRAWN, tempo=120)
    assert answer["url"].startswith("data:audio/mpeg;base64,") and len(answer["url"]) > 9000


# ---------------------------------------------------------------- the notebook


@pytest.fixture(scope="module")
def tree(network, tmp_path_factory):
    """A copy of what 09 needs, with the small network in the place of the trained one."""
    folder = tmp_path_factory.mktemp("draw")
    for name in ("utils", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # what is found there later was made by this test
        cell.update({"outputs": [], "execution_count": None} if "outputs" in cell else {})
    nbformat.write(notebook, folder / "notebooks" / NOTEBOOK.name)
    unet.save(network, folder / "data" / "models" / "diffusion.safetensors")
    return folder


def test_without_a_browser_the_notebook_finishes_its_phrase(tree, tmp_path, builtin_midi):
    papermill.execute_notebook(NOTEBOOK, tmp_path / "out.ipynb", {
        "run_dir": str(tmp_path / "run"), "model_dir": str(tree / "data" / "models"), "seed": 4,
        "midi_file": str(builtin_midi[2])}, cwd=str(ROOT), kernel_name="python3",
        progress_bar=False)
    motif = pianoroll.read_midi(tmp_path / "run" / "midi" / "drawn" / "motif_seed-4.mid")
    notes = pianoroll.notes_of(motif)
    assert len(notes[notes[:, 0] < 32]) == 8 and len(notes) > 12


@pytest.fixture(scope="module")
def lab(tree):
    with jupyterlab(tree) as (address, token):
        yield f"{address}09_draw.ipynb{token}"


@pytest.mark.browser
def test_in_jupyterlab_one_draws_generates_hears_and_saves(lab, tree):
    with browser(1280, 1000, downloads=tree / "downloads") as driver:
        try:
            draw_in_jupyterlab(driver, lab, tree)
        except BaseException:
            (ROOT / "runs").mkdir(exist_ok=True)
            driver.save_screenshot(str(ROOT / "runs" / "test_draw_failed.png"))
            raise


def draw_in_jupyterlab(driver, lab, tree):
    """Open 09, run it, and use its canvas."""
    driver.get(lab)
    roll = Roll(driver)
    kernel = ("return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
              "?.status")
    until(lambda: driver.execute_script(kernel) == "idle", 90, "the kernel is idle")
    driver.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = ("return jupyterapp.shell.currentWidget.content.widgets.map(w => w.model.toJSON())"
             ".filter(c => c.cell_type === 'code')")
    until(lambda: all(cell["execution_count"] for cell in driver.execute_script(cells))
          and driver.execute_script(kernel) == "idle", 240, "all cells have run")
    outputs = [out for cell in driver.execute_script(cells) for out in cell["outputs"]]
    assert not [out for out in outputs if out["output_type"] == "error"]
    until(lambda: driver.execute_script("return document.querySelector('.roll-root')"), 30)
    driver.execute_script("document.querySelector('.roll-root').scrollIntoView({block: 'center'})")

    roll.drag((0, 60), (3, 60))
    roll.drag((8, 64), (11, 64))
    roll.drag((16, 67), (23, 67))
    three = [(0, 4, 60, 0, False), (8, 4, 64, 0, False), (16, 8, 67, 0, False)]
    assert roll.notes() == three
    roll.click("select")
    roll.drag((32, 56), (62, 72))
    roll.click("generate")
    until(lambda: len(roll.notes()) > 3, 60, "new notes")
    after = roll.notes()
    new = [note for note in after if note not in three]
    assert set(three) <= set(after) and new
    assert all(n[0] >= 32 and n[0] + n[1] <= 64 and 56 <= n[2] <= 72 and n[3] == 1 for n in new)

    roll.click("undo")
    assert roll.notes() == three
    roll.click("redo")
    assert roll.notes() == after
    roll.click("play")
    at = "return +document.querySelector('.roll-playhead').style.transform.slice(11, -3)"
    first = until(lambda: driver.execute_script(at), 60, "it plays")
    until(lambda: driver.execute_script(at) > first + 4, 20, "the playhead moves")
    roll.click("play")
    roll.click("save")
    until(lambda: roll.status().startswith("Saved"), 30, "it is saved")
    midi = pretty_midi.PrettyMIDI(str(tree / "runs/default/midi/drawn/drawn_1.mid"))
    step_s = 60 / 120 / 4
    saved = sorted((round(n.start / step_s), round((n.end - n.start) / step_s), n.pitch)
                   for n in midi.instruments[0].notes)
    assert saved == sorted(note[:3] for note in after)
    until(lambda: (tree / "downloads" / "drawn_1.mid").is_file(), 20, "it is downloaded")
    assert roll.errors() == []
