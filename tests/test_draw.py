"""The kernel's side of the canvas: what may be generated, files, and messages."""

import re

import numpy as np
import pytest
from browser import until

from utils import canvas, pianoroll
from utils.canvas import MODEL, YOU

DRAWN = [[0, 4, 60, 80, YOU], [40, 8, 64, 90, YOU], [44, 30, 72, 70, MODEL]]
BOX = {"begin": 32, "end": 64, "low": 58, "high": 76}


def request(**changed):
    """A request as the browser sends it."""
    return {"keep": DRAWN, "vary": [], "selection": BOX, "strength": 1.0, "seed": 1, "chords": "",
            "scale": "", "density": 0, "left": 0, "lines": list(range(0, 128, 16))} | changed


# ---------------------------------------------------------------- what is generated


def test_new_notes_lie_in_the_selection_never_on_a_drawn_one_and_are_those_of_the_seed(network):
    new, again, other = (canvas.fill(network, request(seed=seed), sampling_steps=4)
                         for seed in (1, 1, 2))
    assert new == again != other and len(new) > 3
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


def test_an_empty_canvas_becomes_a_whole_piece_in_its_scale(network):
    new = np.array(canvas.fill(network, request(keep=[], selection=None, scale="C major"),
                               sampling_steps=4))
    assert (np.bincount(new[:, 0] // 16, minlength=8) > 0).all(), "notes in each bar"
    assert set((new[:, 2] % 12).tolist()) <= {0, 2, 4, 5, 7, 9, 11}


def test_notes_before_the_window_are_sustained_into_it():
    roll = canvas.window_of([[-20, 24, 60, 80], [120, 40, 62, 80], [3, 1, 200, 80]])
    assert (roll[60, :4] == pianoroll.SUSTAIN).all() and not roll[60, 4:].any()
    assert roll[62, 120] > pianoroll.SUSTAIN and (roll[62, 121:] == pianoroll.SUSTAIN).all()
    assert np.count_nonzero(roll) == 4 + 8, "a pitch outside the range is left out"


# ---------------------------------------------------------------- files


def test_what_is_saved_loads_as_it_was(tmp_path):
    roll = canvas.piano_roll_of(DRAWN, 96)
    path = canvas.save(roll, tmp_path, "../my <tune>")
    assert path == tmp_path / "my_tune_1.mid"
    assert canvas.save(roll, tmp_path, "my <tune>").name == "my_tune_2.mid"
    song = canvas.load_bytes("x/../tune.mid", path.read_bytes())
    assert sorted(row[:4] for row in song["notes"]) == sorted(row[:4] for row in DRAWN)
    assert song["tempo"] == pytest.approx(96) and song["steps"] == 128 and song["name"] == "tune"


def test_the_first_column_of_a_song_is_a_bar_line(builtin_midi):
    song = canvas.load_song(builtin_midi[1])
    assert song["lines"][0] == 0 and len(song["lines"]) == song["steps"] // 16
    assert len(song["notes"]) == len(pianoroll.notes_of(pianoroll.read_midi(builtin_midi[1])))


# ---------------------------------------------------------------- messages


@pytest.fixture
def board(network, tmp_path, monkeypatch):
    """A canvas whose answers are kept in `sent`; `stop_at` is the kind at which Stop is pressed."""
    made = canvas.Canvas(network, tmp_path)
    made.sent, made.stop_at = [], None

    def send(content, buffers=None):
        made.sent.append(content | {"buffers": buffers})
        if content["kind"] == made.stop_at:
            made._receive(made, {"what": "stop"}, [])

    monkeypatch.setattr(made, "send", send)
    return made


def asked(board, buffers=(), **message):
    """The answer to a message."""
    board.sent.clear()
    board._receive(board, {"id": "1"} | message, buffers)
    until(lambda: board.sent[-1]["kind"] in ("done", "error"), 60)
    return board.sent[-1]


def test_generate_answers_in_a_thread_and_shows_steps(board):
    answer = asked(board, what="generate", request=request())
    assert answer["kind"] == "done" and answer["id"] == "1" and answer["notes"]
    kinds = [one["kind"] for one in board.sent]
    assert kinds[0] == "started" and kinds.count("progress") == -(-canvas.SAMPLING_STEPS // 3)


def test_stop_ends_it(board):
    board.stop_at = "progress"
    board._receive(board, {"id": "1", "what": "generate", "request": request()}, [])
    until(lambda: len(board.sent) > 1 and not board.turn.locked(), 30)
    assert [one["kind"] for one in board.sent] == ["started", "progress"]


FULL = {"keep": [[0, 128, 60, 80]], "selection": {"begin": 0, "end": 8, "low": 60, "high": 60}}


@pytest.mark.parametrize(("message", "words"), [
    ({"what": "generate", "request": request(chords="H7")}, "chord 'H7' cannot be read"),
    ({"what": "generate", "request": request(**FULL)}, "the selection is full of notes"),
    ({"what": "generate", "request": {}}, "KeyError"),
    ({"what": "save", "notes": [], "tempo": 120, "name": "x"}, "silent"),
    *(({"what": "load", "name": "a/x.mid", "buffers": [data]}, "^x.mid: ")
      for data in (b"no", b"", b"MThd\x00\x00\x00\x06\x00\x01")),
    ({"what": "play", "notes": [], "tempo": 120}, "nothing to hear")])
def test_an_error_comes_back_as_one_line(board, message, words):
    answer = asked(board, **message)
    assert answer["kind"] == "error" and "\n" not in answer["text"]
    assert re.search(words, answer["text"])


def test_save_sends_the_file_that_it_writes_and_play_a_sound(board, tmp_path):
    saved = asked(board, what="save", notes=DRAWN, tempo=100, name="drawn")
    path = tmp_path / "midi" / "drawn" / "drawn_1.mid"
    assert saved["buffers"] == [path.read_bytes()] and saved["name"] == path.name
    played = asked(board, what="play", notes=DRAWN, tempo=120)
    assert played["url"].startswith("data:audio/mpeg;base64,") and len(played["url"]) > 9000
