"""The static site: a gallery of what the shipped weights generate, and where it leads."""

import sys

import numpy as np
import pytest

from real_midi import ROOT
from utils import audio, pianoroll

sys.path.insert(0, str(ROOT / "docs"))
import site_page


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page of a stand-in for the chain: two pieces by one model, two by the other, one of them
    silent."""
    def chain_of(folder, parameters, only):
        assert parameters["04.count"] == 2 and list(only) == ["04", "05", "06"]
        for name in ("diffusion/a", "diffusion/b", "gan/a", "gan/silent"):
            levels = pianoroll.roll_of(np.array([[0, 4, 60, 80], [4, 4, 64, 80]]), 128, 128)
            picture = pianoroll.PianoRoll(levels)
            run = site_page.Path(folder)
            pianoroll.save_png(picture, run / "samples" / f"{name}.png")
            if "silent" not in name:
                midi = pianoroll.save_midi(picture, run / "midi" / f"{name}.mid")
                audio.midi_to_wav(midi, run / "wav" / f"{name}.wav", sample_rate=16_000)

    monkeypatch.setattr(site_page.chain, "run_chain", chain_of)
    return site_page.main(2, tmp_path / "docs" / "index.html")


def test_each_piece_has_image_player_and_midi(page):
    text = page.read_text("utf-8")
    for part in ("<audio", "Download the MIDI</a>", "data:image/png", "data:audio/midi"):
        assert text.count(part) == 3
    assert "The diffusion model, piece 2" in text and "The GAN, piece 1" in text


def test_nothing_is_fetched_from_elsewhere(page):
    text = page.read_text("utf-8")
    assert text.count("http") == text.count('<a href="https://github.com/')
    assert (page.parent / ".nojekyll").is_file()


def test_the_studio_is_linked_where_it_is_there(page):
    assert "studio/" not in page.read_text("utf-8")
    (page.parent / "studio").mkdir()
    (page.parent / site_page.STUDIO).touch()
    assert site_page.links_of(page.parent)[0] == ("Compose in your browser", site_page.STUDIO)
