"""Notebook 01 on collections that begin with odd files."""

import hostile_midi
import papermill
import pytest

from real_midi import ROOT


@pytest.mark.parametrize("first", ["riff", "empty"])
def test_an_odd_first_file_does_not_stop_it(tmp_path, first):
    midi = tmp_path / "midi"
    midi.mkdir()
    (midi / "0.mid").write_bytes(hostile_midi.SMALL[first][0])
    (midi / "1.mid").write_bytes(hostile_midi.midi(hostile_midi.track(
        hostile_midi.NOTE.replace(b"\x3c", b"\x40") + hostile_midi.END)))
    papermill.execute_notebook(ROOT / "notebooks" / "01_midi2img.ipynb", tmp_path / "01.ipynb", {
        "midi_dir": str(midi), "run_dir": str(tmp_path / "run"), "jobs": 1}, cwd=ROOT,
        progress_bar=False)
    assert list((tmp_path / "run" / "images" / "diffusion" / "train").glob("*.png"))
