"""Looking and listening: what is drawn is what the picture holds, and files stay small."""

import base64
import html
import html.parser
import io
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from utils import audio, pianoroll, show
from utils.pianoroll import MusicError, PianoRoll

NOTES = np.array([[0, 8, 60, 127], [8, 8, 64, 20], [16, 112, 67, 80]])


def picture(**facts) -> PianoRoll:
    return PianoRoll(pianoroll.roll_of(NOTES, 128, 128), **facts)


def tone_wav(path, seconds=4.0, rate_hz=44_100, frequency_hz=440.0):
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    wave = 0.3 * np.sin(2 * np.pi * frequency_hz * time_s)
    soundfile.write(path, np.stack([wave, wave], 1), rate_hz)
    return path


def test_colors_grow_brighter_with_level():
    colors = show.COLORS([0, 64, 129, 200, 255])[:, :3].sum(axis=1)
    assert (np.diff(colors) > 0.1).all()
    assert colors[0] < 0.15, "silence is the background"


def test_low_notes_are_at_the_bottom_and_octaves_are_named():
    axis = show.figure_of(picture()).axes[0]
    low, high = axis.get_ylim()
    assert low < 60 and high > 67 and high - low <= 40, "the pitch axis is cut to what sounds"
    labels = {text.get_text(): y for text, y in zip(axis.get_yticklabels(), axis.get_yticks(),
                                                    strict=True)}
    assert labels["C4"] == 60
    extent = axis.get_images()[0].get_extent()
    assert axis.get_images()[0].origin == "lower"
    assert tuple(extent) == (0, 32, -0.5, 127.5), "row 60 at pitch 60; in beats"


def test_time_in_seconds_follows_the_tempo():
    axis = show.figure_of(picture(tempo_bpm=60), seconds=True).axes[0]
    assert axis.get_xlim() == (0, 32)
    assert axis.get_xlabel() == "seconds"


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
def test_figures_are_small(count):
    noise = np.random.default_rng(count).random((count, 128, 128)) < 0.02
    pictures = np.where(noise, 200, 0).astype(np.uint8)
    data = show.png_of(show.figure_of(pictures, titles=["a $ \n title_{"] * count))
    assert len(data) <= 60_000
    assert Image.open(io.BytesIO(data)).width <= 900


def test_a_long_piece_keeps_each_onset_when_it_is_drawn_small():
    levels = np.zeros((128, 5000), dtype=np.uint8)
    levels[60, ::50] = 255
    pooled = show.pool(levels, 700)
    assert pooled.shape[1] <= 700 and (pooled[60] == 255).sum() == 100


def test_an_empty_and_a_silent_picture():
    assert show.png_of(show.figure_of(np.zeros((106, 300), dtype=np.uint8)))
    with pytest.raises(MusicError, match="no piano rolls"):
        show.look([])


@pytest.mark.parametrize("wrong", [np.zeros((128, 128)),
                                   np.zeros((2, 128, 128, 1), dtype=np.uint8)])
def test_other_arrays_are_refused_in_words(wrong):
    with pytest.raises(MusicError, match="uint8 arrays"):
        show.look(wrong)


def test_a_plain_array_of_106_rows_starts_at_pitch_21():
    assert show.as_roll(np.zeros((106, 300), dtype=np.uint8)).lowest_pitch == 21


def test_look_shows_once(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    assert show.look([picture(), picture()]) is None
    assert len(shown) == 1 and shown[0].data.startswith(b"\x89PNG")


def audio_of(player) -> tuple[np.ndarray, int]:
    data = re.search(r"data:audio/mpeg;base64,([^\"]+)", player.data).group(1)
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("level", [0, pianoroll.ONSET + 1])
def test_silence_gets_a_line_in_place_of_a_player(level):
    levels = np.zeros((128, 128), np.uint8)
    levels[60, :2] = level
    shown = show.listen(levels, title="quiet").data
    assert "Silence" in shown and "<audio" not in shown


@pytest.mark.parametrize("kind", ["picture", "midi", "wav"])
def test_listen_holds_its_sound(kind, tmp_path):
    one = picture()
    thing = {"picture": lambda: one, "wav": lambda: tone_wav(tmp_path / "a.wav", 16),
             "midi": lambda: pianoroll.save_midi(one, tmp_path / "a b\u00e9.mid")}[kind]()
    player = show.listen(thing, title='<b>"x"</b>')
    assert len(player.data) < 90_000, "16 seconds"
    assert "<b>" not in player.data and "&lt;b&gt;" in player.data
    sound, rate_hz = audio_of(player)
    assert rate_hz == show.PLAYER_RATE_HZ and sound.ndim == 1
    assert 15.9 <= len(sound) / rate_hz <= 20
    assert np.sqrt(np.mean(sound**2)) > 0.01


def test_a_long_sound_is_faded_out(tmp_path):
    sound, rate_hz = soundfile.read(io.BytesIO(show.mp3_of(tone_wav(tmp_path / "a.wav", 7), 5)))
    assert 4.9 <= len(sound) / rate_hz <= 5.2
    assert np.abs(sound[: 2 * rate_hz]).max() > 0.25 > 0.02 > np.abs(sound[-rate_hz // 10 :]).max()


def test_resampling_keeps_the_pitch_and_drops_what_cannot_be_held():
    time_s = np.arange(44_100 * 2 + 77) / 44_100
    low, high = (np.sin(2 * np.pi * f * time_s).astype(np.float32) for f in (441.0, 15_000.0))
    there = audio.resample(low + high, 44_100, 22_050)
    assert len(there) == -(-len(low) // 2)
    assert np.allclose(there[200:-200], low[::2][: len(there)][200:-200], atol=0.02)


# ---------------------------------------------------------------- gallery


class Tags(html.parser.HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_gallery_is_one_page_that_needs_no_other_file(tmp_path):
    wav = tone_wav(tmp_path / "a.wav", 16)
    nasty = '"><script>alert(1)</script><img src=x onerror=alert(2)> \' $pieces'
    midi = pianoroll.save_midi(picture(), tmp_path / "a.mid")
    page = show.gallery([(nasty, picture(), wav, midi), ("plain", picture(), wav, midi)],
                        tmp_path / "g.html", title=nasty)
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert len(tags.named("article")) == 2 and len(tags.named("script")) == 1
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    sources = [a["src"] for tag in ("img", "audio") for a in tags.named(tag)]
    assert len(sources) == 4 and all(source.startswith("data:") for source in sources)
    assert all(a["href"].startswith("data:audio/midi") for a in tags.named("a"))
    assert not re.search(r"https?://|<link|@import", text), "nothing is fetched"
    rolls = [a for a in tags.named("div") if a.get("role") == "slider"]
    assert [roll["data-times"] for roll in rolls] == ["[[0.0, 0], [16.0, 128]]"] * 2
    assert all(roll["tabindex"] == "0" for roll in rolls)


def test_gallery_offers_each_midi_for_download(tmp_path):
    wav, midi = tone_wav(tmp_path / "a.wav"), pianoroll.save_midi(picture(), tmp_path / "a.mid")
    names = ["gan/sample_0001", "../-\u00e9t\u00e9 <b>\"'\n", "...", "x" * 300]
    page = show.gallery([(name, picture(), wav, midi) for name in names], tmp_path / "g.html")
    links = Tags(page.read_text(encoding="utf-8")).named("a")
    assert [link["download"] for link in links] == [
        "gan_sample_0001.mid", "\u00e9t\u00e9_b.mid", "piece.mid", "x" * 80 + ".mid"]
    for link in links:
        assert base64.b64decode(link["href"].partition(",")[2]) == midi.read_bytes()


@pytest.mark.parametrize("name", [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
    "</title></script><svg onload=alert(1)>", "$pieces ${title}", "a\nb\udcff\u202e"])
def test_a_name_is_shown_as_text_wherever_it_stands(name, tmp_path):
    wav, midi = tone_wav(tmp_path / "a.wav"), pianoroll.save_midi(picture(), tmp_path / "a.mid")
    page = show.gallery([(name, picture(source=name), wav, midi)], tmp_path / "g.html", title=name)
    text, player = page.read_text(encoding="utf-8"), show.listen(wav, title=name).data
    for tags, scripts in ((Tags(text), 1), (Tags(player), 0)):
        assert len(tags.named("script")) == scripts and not tags.named("svg")
        assert not [key for _, attributes in tags.tags for key in attributes
                    if key.startswith("on")]
    shown, tags = show.one_line(name, 120), Tags(text)
    assert tags.named("img")[0]["alt"] == f"Piano roll of {shown}"
    assert tags.named("audio")[0]["aria-label"] == f"Player for {shown}"
    assert [a["aria-label"] for a in tags.named("div") if a.get("role") == "slider"] == [
        f"Position in {shown}"]
    assert Tags(player).named("audio")[0]["aria-label"] == show.one_line(name, 80)
    assert text.count(html.escape(shown)) >= 7, "two titles, a heading and four labels"


def test_a_figure_shows_a_script_as_text(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    name = "<script>$x_{</script>"
    assert show.figure_of(picture(source="a"), titles=name).axes[0].get_title() == name
    show.look(picture(source=name), titles=name)
    assert "<" not in shown[0].alt


def test_gallery_leaves_the_old_page_when_it_fails(tmp_path):
    old = tmp_path / "g.html"
    old.write_text("old")
    with pytest.raises(Exception, match="missing"):
        show.gallery([("x", picture(), tmp_path / "missing.wav", "a.mid")], old)
    assert [path.name for path in tmp_path.iterdir()] == ["g.html"] and old.read_text() == "old"


def test_gallery_pictures_have_a_pixel_for_a_step_and_low_notes_at_the_bottom():
    image = np.asarray(Image.open(io.BytesIO(show.pixels_of(picture()))).convert("RGB")).astype(int)
    assert image.shape[1] == 128
    bright = image.sum(axis=2)
    lowest, highest = (np.flatnonzero(bright[:, c] > 250).max() for c in (0, 16))
    assert lowest - highest == 7, "pitch 60 lies seven rows below pitch 67"


def test_seconds_follow_tempo_changes():
    one = picture(tempo_bpm=60, tempo_changes=((64, 120.0), (500, 30.0)))
    assert show.seconds_and_steps(one) == [(0.0, 0), (16.0, 64), (24.0, 128)]
