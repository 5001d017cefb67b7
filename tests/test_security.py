"""What comes from strangers does no harm: file and track names, weights, archives (test_sources has
those that want to write outside their folder)."""

import html.parser
import pickle
import re
import sys
from pathlib import Path

import keras
import mido
import nbformat
import numpy as np
import pytest

import chain
from real_midi import ROOT
from utils import audio, corpus, pianoroll, show, unet
from utils.files import MusicError

SCRIPT = "<script>alert(1)</script>"
NAMES = ["-rf.mid", "--help.mid", "two\nlines.mid", "it's \"quoted\".mid", "音楽 музыка.mid",
         f"{SCRIPT.replace('/', '')}.mid", "$(touch harm);`touch harm`.mid", "%s{0}.mid",
         "<img src=x onerror=alert(1)>.mid"]
unix_names = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")


class Tags(html.parser.HTMLParser):
    """The names of a page's elements, and of the attributes that run code."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.handlers = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


def write_midi(path, name="Piano"):
    """Eight bars of a scale, on a track of that name."""
    track = mido.MidiTrack([mido.MetaMessage("track_name", name=name),
                            mido.MetaMessage("text", text=name)])
    for i in range(64):
        pitch = 60 + [0, 2, 4, 5, 7, 9, 11, 12][i % 8]
        track += [mido.Message("note_on", note=pitch, velocity=80, time=0),
                  mido.Message("note_off", note=pitch, time=240)]
    midi = mido.MidiFile()
    midi.tracks.append(track)
    midi.save(path)
    return path


def gallery_of(path, folder):
    """The page of one MIDI file, titled by its name."""
    audio.midi_to_wav(path, folder / "sound.wav", sample_rate=16_000)
    picture = pianoroll.read_midi(path)
    page = show.gallery([(path.stem, picture, folder / "sound.wav", path)], folder / "page.html",
                        path.name)
    return page.read_text("utf-8")


@unix_names
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_converted_played_and_shown(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    write_midi(tmp_path / "mine" / name)
    summary = corpus.convert(tmp_path / "mine", tmp_path / "run", jobs=1)
    assert summary.pieces == 1 and not summary.skipped
    (image, *_) = corpus.load_images(tmp_path / "run/images/diffusion/train", 9) or \
        corpus.load_images(tmp_path / "run/images/diffusion/valid", 9)
    assert image.pixels.any()
    text = gallery_of(tmp_path / "mine" / name, tmp_path)
    page = Tags(text)
    assert page.elements.count("script") == 1 and not page.handlers, "the gallery's own alone"
    assert "<script>alert" not in text and "img src=x onerror=alert(1)>" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine", "page.html", "run", "sound.wav"], "a name is no command"


def test_a_name_for_the_download_is_plain():
    for name in NAMES:
        assert re.fullmatch(r"\w[\w.-]*\.mid", show.download_name(name.removesuffix(".mid")))


def test_a_track_named_as_a_script_shows_as_text(tmp_path):
    path = write_midi(tmp_path / "song.mid", SCRIPT)
    picture = pianoroll.read_midi(path)
    for text in (gallery_of(path, tmp_path), show.listen(picture, title=SCRIPT).data):
        assert "<script>alert" not in text
    look = show.figure_of(picture, SCRIPT)
    assert look.axes[0].get_title() == SCRIPT


def test_the_canvas_writes_no_html_from_text():
    """What a name or a message brings goes into textContent."""
    source = (ROOT / "utils" / "canvas.js").read_text("utf-8")
    written = re.findall(r"(?:innerHTML|outerHTML)\s*\+?=\s*([^;]+)|insertAdjacentHTML|"
                         r"document\.write", source)
    assert all(re.fullmatch(r"[`'\"][^$]*[`'\"]", value.strip()) for value in written), written


@pytest.mark.parametrize("number", chain.NOTEBOOKS)
def test_notebooks_make_no_html_of_their_own(number):
    for cell in nbformat.read(chain.NOTEBOOKS[number], 4).cells:
        if cell.cell_type == "code":
            assert not re.search(r"\b(HTML|Markdown|SVG|Javascript)\(", cell.source), cell.id


# ---------------------------------------------------------------- weights


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_weights_that_are_a_pickle_are_refused_and_not_opened_as_one(tmp_path):
    harm = tmp_path / "harm"
    (tmp_path / "diffusion.safetensors").write_bytes(pickle.dumps(Harm(harm)))
    with pytest.raises(MusicError, match="damaged"):
        unet.load(tmp_path / "diffusion.safetensors", "cpu")
    assert not harm.exists()


def test_a_generator_with_code_in_it_is_refused(tmp_path):
    harm = tmp_path / "harm"
    path = str(harm)
    layer = keras.layers.Lambda(lambda x: (Path(path).touch(), x)[1], output_shape=(14,))
    keras.Sequential([keras.Input((14,)), layer]).save(tmp_path / "gan_generator.keras")
    harm.unlink(missing_ok=True)
    source = next(cell.source for cell in nbformat.read(chain.NOTEBOOKS["04"], 4).cells
                  if "def load_generator" in cell.source)
    place = {"keras": keras, "pianoroll": pianoroll, "files": sys.modules["utils.files"]}
    exec(source[source.index("def load_generator"):].split("\n\n\n")[0], place)
    with pytest.raises(ValueError, match=r"Lambda|safe"):
        place["load_generator"](tmp_path / "gan_generator.keras")
    assert not harm.exists()


@pytest.mark.parametrize("what", ["utils", "notebooks"])
def test_nothing_is_unpickled_without_a_guard(what):
    sources = [path.read_text("utf-8") for path in (ROOT / what).glob("*.py")]
    for path in (ROOT / what).glob("*.ipynb"):
        sources += [cell.source for cell in nbformat.read(path, 4).cells]
    text = "\n".join(sources)
    assert not re.search(r"\bpickle\.load|allow_pickle=True|safe_mode=False|weights_only=False",
                         text)
    loads = re.findall(r"(?<!safetensors\.)torch\.load\(([^)]*)\)", text)
    assert all("weights_only=True" in arguments for arguments in loads)
    models = re.findall(r"load_model\(([^)]*)\)", text)
    assert all("safe_mode=True" in arguments for arguments in models)


def test_an_image_with_a_script_in_its_facts_shows_it_as_text(tmp_path):
    levels = pianoroll.roll_of(np.array([[0, 4, 60, 80]]), 128, 128)
    path = pianoroll.save_png(pianoroll.PianoRoll(levels, source=SCRIPT), tmp_path / "a.png")
    picture = pianoroll.load_png(path)
    assert "<script>alert" not in show.listen(picture, title=picture.source).data
