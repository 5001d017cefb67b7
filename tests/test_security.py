"""What comes from strangers does no harm: file names, and a model with code in it.

Archives that want to write outside their folder are in test_sources, names in pages in test_show,
damaged weights in test_unet.
"""

import re
import sys
from pathlib import Path

import hostile_midi
import keras
import pytest
from notebook_code import definitions

import chain
from utils import audio, corpus, pianoroll, show

NAMES = ["-rf.mid", "two\nlines.mid", "it's \"quoted\".mid", "音楽 музыка.mid", "%s{0}.mid",
         "$(touch harm);`touch harm`.mid", "<script>alert(1)<script>.mid",
         "<img src=x onerror=alert(1)>.mid"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_converted_played_and_shown(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine" / name
    path.parent.mkdir()
    path.write_bytes(hostile_midi.GOOD)
    assert not corpus.convert(path.parent, tmp_path / "run", jobs=1).skipped
    audio.midi_to_wav(path, tmp_path / "sound.wav", sample_rate=16_000)
    piece = (path.stem, pianoroll.read_midi(path), tmp_path / "sound.wav", path)
    page = show.gallery([piece], tmp_path / "page.html", path.name).read_text("utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine", "page.html", "run", "sound.wav"], "a name is no command"
    assert re.fullmatch(r"\w[\w.-]*\.mid", show.download_name(path.stem))


def test_a_generator_with_code_in_it_is_refused(tmp_path):
    harm = str(tmp_path / "harm")
    layer = keras.layers.Lambda(lambda x: (Path(harm).touch(), x)[1], output_shape=(14,))
    keras.Sequential([keras.Input((14,)), layer]).save(tmp_path / "gan_generator.keras")
    Path(harm).unlink(missing_ok=True)
    notebook = definitions(chain.NOTEBOOKS["04"], {"keras": keras})
    with pytest.raises(ValueError, match=r"does not load it .*holds code"):
        notebook["load_generator"](tmp_path / "gan_generator.keras")
    assert not Path(harm).exists()
