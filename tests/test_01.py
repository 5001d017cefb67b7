"""Notebook 01 on collections that begin with odd files, and its loop on notes that overlap."""

import hostile_midi
import papermill
import pretty_midi
import pytest

from real_midi import ROOT


def run_01(tmp_path) -> str:
    """Run the notebook on the folder `midi`; what it printed."""
    made = papermill.execute_notebook(
        ROOT / "notebooks" / "01_midi2img.ipynb", tmp_path / "01.ipynb", {
            "midi_dir": str(tmp_path / "midi"), "run_dir": str(tmp_path / "run"), "jobs": 1},
        cwd=ROOT, progress_bar=False)
    return "".join(output.get("text", "") for cell in made.cells
                   for output in cell.get("outputs", []))


@pytest.mark.parametrize("first", ["riff", "empty"])
def test_an_odd_first_file_does_not_stop_it(tmp_path, first):
    (tmp_path / "midi").mkdir()
    (tmp_path / "midi" / "0.mid").write_bytes(hostile_midi.SMALL[first][0])
    (tmp_path / "midi" / "1.mid").write_bytes(hostile_midi.GOOD.replace(b"\x3c", b"\x40"))
    run_01(tmp_path)
    assert list((tmp_path / "run" / "images" / "diffusion" / "train").glob("*.png"))


def test_its_loop_agrees_with_read_midi_where_notes_of_one_pitch_overlap(tmp_path):
    (tmp_path / "midi").mkdir()
    overlapping = pretty_midi.PrettyMIDI(resolution=480)  # 960 ticks a second
    for notes in ([(0, 960, 50), (1920, 2400, 90)], [(480, 600, 80)],
                  [(1920, 2040, 100), (2100, 2160, 40)]):  # of a track: start, end, velocity
        overlapping.instruments.append(track := pretty_midi.Instrument(0))
        track.notes = [pretty_midi.Note(velocity, 60, start / 960, end / 960)
                       for start, end, velocity in notes]
    overlapping.write(str(tmp_path / "midi" / "0.mid"))
    assert "equal in every pixel: 1\n" in run_01(tmp_path)
