"""Looking and listening: what is drawn is what the piano roll holds, and files stay small."""

import base64
import html
import io
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from utils import pianoroll, show
from utils.files import MusicError
from utils.pianoroll import PianoRoll

NOTES = np.array([[0, 8, 60, 127], [8, 8, 64, 20], [16, 112, 67, 80]])


def piano_roll(**facts) -> PianoRoll:
    return PianoRoll(pianoroll.roll_of(NOTES, 128, 128), **facts)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    """Sixteen seconds of a tone."""
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16 * 44_100) / 44_100)
    soundfile.write(path, np.stack([wave, wave], 1), 44_100)
    return path


@pytest.fixture(scope="module")
def midi(tmp_path_factory):
    return pianoroll.save_midi(piano_roll(), tmp_path_factory.mktemp("midi") / "a b\u00e9.mid")


# ---------------------------------------------------------------- look


def test_low_notes_are_at_the_bottom_and_octaves_are_named():
    axis = show.figure_of(piano_roll()).axes[0]
    low, high = axis.get_ylim()
    assert low < 60 and high > 67 and high - low <= 40, "the pitch axis is cut to what sounds"
    labels = [text.get_text() for text in axis.get_yticklabels()]
    assert axis.get_yticks()[labels.index("C4")] == 60
    (image,) = axis.get_images()
    colors = image.cmap([0, 64, 129, 200, 255])[:, :3].sum(axis=1)
    assert (np.diff(colors) > 0.1).all() and colors[0] < 0.15, "silence is the background"
    assert image.origin == "lower"
    assert tuple(image.get_extent()) == (0, 32, -0.5, 127.5), "row 60 at pitch 60; in beats"


def test_a_figure_of_many_rolls_is_small_whatever_their_titles():
    noise = np.random.default_rng(8).random((8, 128, 128)) < 0.02
    rolls = np.where(noise, 200, 0).astype(np.uint8)
    data = show.png_of(show.figure_of(rolls, titles=["a $ \n title_{"] * 8))
    assert len(data) <= 60_000 and Image.open(io.BytesIO(data)).width <= 900


def test_a_long_piece_keeps_each_onset_when_it_is_drawn_small():
    roll = np.zeros((128, 5000), dtype=np.uint8)
    roll[60, ::50] = 255
    drawn = show.figure_of(roll).axes[0].get_images()[0].get_array()
    assert drawn.shape[1] < 2000 and (drawn[60] == 255).sum() == 100


@pytest.mark.parametrize(("wrong", "words"), [
    ([], "no piano rolls"), (np.zeros((128, 128)), "uint8 arrays"),
    (np.zeros((2, 128, 128, 1), dtype=np.uint8), "uint8 arrays")])
def test_what_is_no_piano_roll_is_refused_in_words(wrong, words):
    with pytest.raises(MusicError, match=words):
        show.look(wrong)


def test_look_shows_once_and_describes_it(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    assert show.look([piano_roll(), piano_roll()]) is None
    (image,) = shown
    assert image.data.startswith(b"\x89PNG") and image.alt == "Piano rolls with 3, 3 notes"


# ---------------------------------------------------------------- listen


def test_silence_gets_a_line_in_place_of_a_player():
    shown = show.listen(np.zeros((128, 128), np.uint8), title="quiet").data
    assert "Silence" in shown and "<audio" not in shown


@pytest.mark.parametrize("kind", ["piano roll", "midi", "wav"])
def test_a_player_holds_its_sound(kind, request):
    thing = piano_roll() if kind == "piano roll" else request.getfixturevalue(kind)
    player = show.listen(thing, title="a tune").data
    assert len(player) < 90_000 and "a tune" in player
    data = re.search(r"data:audio/mpeg;base64,([^\"]+)", player)[1]
    sound, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert rate_hz == show.PLAYER_RATE_HZ and sound.ndim == 1
    assert 15.9 <= len(sound) / rate_hz <= 20 and sound.std() > 0.01


def test_a_long_sound_is_faded_out(wav):
    sound, rate_hz = soundfile.read(io.BytesIO(show.mp3_of(wav, 5)))
    assert 4.9 <= len(sound) / rate_hz <= 5.2
    assert np.abs(sound[: 2 * rate_hz]).max() > 0.25 > 0.02 > np.abs(sound[-rate_hz // 10 :]).max()


# ---------------------------------------------------------------- gallery


def test_gallery_is_one_page_that_needs_no_other_file_and_offers_each_midi(tmp_path, wav, midi):
    names = ["gan/sample_0001", "../-\u00e9t\u00e9 <b>\"'\n", "...", "x" * 300]
    page = show.gallery([(name, piano_roll(), wav, midi) for name in names], tmp_path / "g.html")
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r' src="([^"]+)"', text)
    assert len(sources) == 8 and all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|<link|@import", text), "nothing is fetched"
    rolls = re.findall(r'<div class="roll"[^>]+>', text)
    assert len(rolls) == text.count("<article>") == 4
    for roll in rolls:
        assert 'tabindex="0"' in roll, "the keyboard reaches it"
        assert 'data-times="[[0.0, 0], [16.0, 128]]"' in roll
    links = re.findall(r'download="([^"]+)".+href="data:audio/midi;base64,([^"]+)"', text)
    assert [name for name, _ in links] == [
        "gan_sample_0001.mid", "\u00e9t\u00e9_b.mid", "piece.mid", "x" * 80 + ".mid"]
    assert all(base64.b64decode(data) == midi.read_bytes() for _, data in links)


@pytest.mark.parametrize("name", [
    "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1) $pieces ${title} {label}",
    "</title></script><svg onload=alert(1)>", "a\nb\udcff\u202e"])
def test_a_name_is_shown_as_text_wherever_it_stands(name, tmp_path, wav, midi):
    page = show.gallery([(name, piano_roll(source=name), wav, midi)], tmp_path / "g.html", name)
    shown = html.escape(show.one_line(name, 120))
    for text in (page.read_text(encoding="utf-8"), show.listen(wav, title=name).data):
        assert shown in text and ("<" not in name or name not in text)
        assert not re.search(r"<svg|<img src=x|<[^>]* onmouseover='", text)


def test_gallery_pictures_have_a_pixel_for_a_step_and_low_notes_at_the_bottom():
    png = Image.open(io.BytesIO(show.pixels_of(piano_roll())))
    image = np.asarray(png.convert("RGB")).astype(int)
    bright = image.sum(axis=2)
    assert bright.shape[1] == 128
    lowest, highest = (np.flatnonzero(bright[:, c] > 250).max() for c in (0, 16))
    assert lowest - highest == 7, "pitch 60 lies seven rows below pitch 67"


def test_the_playhead_follows_tempo_changes():
    one = piano_roll(tempo_bpm=60, tempo_changes=((64, 120.0), (500, 30.0)))
    assert show.seconds_and_steps(one) == [(0.0, 0), (16.0, 64), (24.0, 128)]
