"""Notebook 01 on collections that begin with odd files, and its loop on notes that overlap."""

import hostile_midi
import mido
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


def track(*notes):
    """A track of notes of one pitch, (start, end, velocity) each, in ticks."""
    events = sorted([(start, 1, velocity) for start, _, velocity in notes]
                    + [(end, 0, 0) for _, end, _ in notes])
    times = [0, *(tick for tick, *_ in events)]
    return mido.MidiTrack(mido.Message("note_on", note=60, velocity=velocity, time=tick - before)
                          for before, (tick, _, velocity) in zip(times, events, strict=False))


def test_its_loop_agrees_with_read_midi_where_notes_of_one_pitch_overlap(tmp_path):
    midi = tmp_path / "midi"
    midi.mkdir()
    overlapping = mido.MidiFile(ticks_per_beat=480, type=1)
    overlapping.tracks += [track((0, 960, 50), (1920, 2400, 90)), track((480, 600, 80)),
                           track((1920, 2040, 100), (2100, 2160, 40))]
    overlapping.save(midi / "0.mid")
    notebook = ROOT / "notebooks" / "01_midi2img.ipynb"
    out = papermill.execute_notebook(notebook, tmp_path / "01.ipynb", {
        "midi_dir": str(midi), "run_dir": str(tmp_path / "run"), "jobs": 1}, cwd=ROOT,
        progress_bar=False)
    printed = "".join(output.get("text", "") for cell in out.cells
                      for output in cell.get("outputs", []))
    assert "equal in every pixel: 1\n" in printed
