"""Notebook 01 on collections that begin with odd files, and its loop on notes that overlap."""

import hostile_midi
import pretty_midi
from notebook_code import executed


def run_01(tmp_path, **files: bytes) -> str:
    """Run the notebook on a folder of files; what it printed."""
    (tmp_path / "midi").mkdir()
    for name, data in files.items():
        (tmp_path / "midi" / f"{name}.mid").write_bytes(data)
    return executed("01", tmp_path, midi_dir=str(tmp_path / "midi"), jobs=1)


def test_an_odd_first_file_with_a_single_note_does_not_stop_it(tmp_path):
    run_01(tmp_path, a=hostile_midi.SMALL["riff"][0],
           b=hostile_midi.GOOD.replace(b"\x3c", b"\x40"))
    assert list((tmp_path / "images" / "diffusion" / "train").glob("*.png"))


def test_after_an_empty_file_its_loop_agrees_with_read_midi_where_notes_overlap(tmp_path):
    overlapping = pretty_midi.PrettyMIDI(resolution=480)  # 960 ticks a second
    for notes in ([(0, 960, 50), (1920, 2400, 90)], [(480, 600, 80)],
                  [(1920, 2040, 100), (2100, 2160, 40)]):  # of a track: start, end, velocity
        overlapping.instruments.append(track := pretty_midi.Instrument(0))
        track.notes = [pretty_midi.Note(velocity, 60, start / 960, end / 960)
                       for start, end, velocity in notes]
    overlapping.write(str(tmp_path / "b.mid"))
    said = run_01(tmp_path, a=b"", b=(tmp_path / "b.mid").read_bytes())
    assert "equal in every pixel: 1\n" in said
