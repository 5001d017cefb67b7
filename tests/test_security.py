"""What comes from strangers does no harm: file and track names, facts of images, weights.

Archives that want to write outside their folder are in test_sources.
"""

import pickle
import re
import sys
from pathlib import Path

import keras
import mido
import numpy as np
import pytest
from notebook_code import definitions

import chain
from real_midi import ROOT
from utils import audio, corpus, pianoroll, show, unet
from utils.files import MusicError

SCRIPT = "<script>alert(1)</script>"
NAMES = ["-rf.mid", "two\nlines.mid", "it's \"quoted\".mid", "音楽 музыка.mid", "%s{0}.mid",
         "$(touch harm);`touch harm`.mid", "<script>alert(1)<script>.mid",
         "<img src=x onerror=alert(1)>.mid"]


def write_midi(path, name="Piano"):
    """Two notes on a track of that name."""
    track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
    for pitch in (60, 64):
        track += [mido.Message("note_on", note=pitch, velocity=80),
                  mido.Message("note_off", note=pitch, time=480)]
    mido.MidiFile(tracks=[track]).save(path)
    return path


def gallery_of(path, folder):
    """The page of one MIDI file, titled by its name."""
    audio.midi_to_wav(path, folder / "sound.wav", sample_rate=16_000)
    piece = (path.stem, pianoroll.read_midi(path), folder / "sound.wav", path)
    return show.gallery([piece], folder / "page.html", path.name).read_text("utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_converted_played_and_shown(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    write_midi(tmp_path / "mine" / name)
    summary = corpus.convert(tmp_path / "mine", tmp_path / "run", jobs=1)
    assert summary.pieces == 1 and not summary.skipped
    page = gallery_of(tmp_path / "mine" / name, tmp_path)
    assert "<script>alert" not in page and "<img src=x" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine", "page.html", "run", "sound.wav"], "a name is no command"
    assert re.fullmatch(r"\w[\w.-]*\.mid", show.download_name(name.removesuffix(".mid")))


def test_a_script_in_a_track_name_a_title_or_a_fact_shows_as_text(tmp_path):
    assert "<script>alert" not in gallery_of(write_midi(tmp_path / "song.mid", SCRIPT), tmp_path)
    pixels = pianoroll.roll_of(np.array([[0, 4, 60, 80]]), 128, 128)
    path = pianoroll.save_png(pianoroll.PianoRoll(pixels, source=SCRIPT), tmp_path / "a.png")
    picture = pianoroll.load_png(path)
    assert "<script>alert" not in show.listen(picture, title=picture.source).data
    assert show.figure_of(picture, SCRIPT).axes[0].get_title() == SCRIPT


def test_the_canvas_writes_no_html_from_text():
    """What a name or a message brings goes into textContent."""
    source = (ROOT / "utils" / "canvas.js").read_text("utf-8")
    assert "insertAdjacentHTML" not in source and "document.write" not in source
    written = re.findall(r"(?:innerHTML|outerHTML)\s*\+?=\s*([^;]+)", source)
    assert all(re.fullmatch(r"[`'\"][^$]*[`'\"]", value.strip()) for value in written), written


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_weights_that_are_a_pickle_are_refused_and_not_opened_as_one(tmp_path):
    (tmp_path / "diffusion.safetensors").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(MusicError, match="damaged"):
        unet.load(tmp_path / "diffusion.safetensors", "cpu")
    assert not (tmp_path / "harm").exists()


def test_a_generator_with_code_in_it_is_refused(tmp_path):
    harm = str(tmp_path / "harm")
    layer = keras.layers.Lambda(lambda x: (Path(harm).touch(), x)[1], output_shape=(14,))
    keras.Sequential([keras.Input((14,)), layer]).save(tmp_path / "gan_generator.keras")
    Path(harm).unlink(missing_ok=True)
    notebook = definitions(chain.NOTEBOOKS["04"], {"keras": keras})
    with pytest.raises(ValueError, match=r"does not load it .*holds code"):
        notebook["load_generator"](tmp_path / "gan_generator.keras")
    assert not Path(harm).exists()
