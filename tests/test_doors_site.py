"""The static site: a gallery of what the shipped weights generate, and where it leads."""

import sys
from pathlib import Path

import numpy as np

from real_midi import ROOT
from utils import audio, pianoroll

sys.path.insert(0, str(ROOT / "docs"))
import site_page


def test_each_piece_has_image_player_and_midi_in_one_file(tmp_path, monkeypatch):
    """With a stand-in for the chain: three pieces, and a silent one, which is left out."""
    def run_chain(run, parameters, only):
        assert parameters["04.count"] == 2 and list(only) == ["04", "05", "06"]
        levels = pianoroll.roll_of(np.array([[0, 4, 60, 80], [4, 4, 64, 80]]), 128, 128)
        roll = pianoroll.PianoRoll(levels)
        for name in ("diffusion/a", "diffusion/b", "gan/a", "gan/silent"):
            pianoroll.save_png(roll, Path(run, "samples", f"{name}.png"))
            if "silent" not in name:
                midi = pianoroll.save_midi(roll, Path(run, "midi", f"{name}.mid"))
                audio.midi_to_wav(midi, Path(run, "wav", f"{name}.wav"), sample_rate=16000)

    monkeypatch.setattr(site_page.chain, "run_chain", run_chain)
    page = site_page.main(2, tmp_path / "docs" / "index.html")
    text = page.read_text("utf-8")
    for part in ("<audio", "Download the MIDI</a>", "data:image/png", "data:audio/midi"):
        assert text.count(part) == 3
    assert "The diffusion model, piece 2" in text and "The GAN, piece 1" in text
    assert text.count("http") == text.count('<a href="https://github.com/'), "nothing is fetched"
    assert (page.parent / ".nojekyll").is_file()


def test_the_studio_is_linked_where_it_is_there(tmp_path):
    studio = ("Compose in your browser", site_page.STUDIO)
    assert studio not in site_page.links_of(tmp_path)
    (tmp_path / "studio").mkdir()
    (tmp_path / site_page.STUDIO).touch()
    assert site_page.links_of(tmp_path)[0] == studio
