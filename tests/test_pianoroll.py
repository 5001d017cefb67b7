"""The piano roll: exact on the grid, compared with pretty_midi on real files."""

import hostile_midi
import numpy as np
import pretty_midi
import pytest
import symusic
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from real_midi import real_files
from utils import pianoroll
from utils.pianoroll import GAN, ONSET, SUSTAIN, MusicError, PianoRoll


@st.composite
def note_lists(draw, least=0):
    """Unordered notes of a few pitches, with overlaps and doubles: int [N, 4]."""
    pitches = draw(st.lists(st.integers(0, 127), min_size=1, max_size=4))
    note = st.tuples(st.integers(0, 199), st.integers(1, 40), st.sampled_from(pitches),
                     st.integers(1, 127))
    notes = draw(st.lists(note, min_size=least, max_size=60))
    return np.array(notes, dtype=np.int64).reshape(-1, 4)


@given(note_lists())
@example(np.array([[3, 4, 60, 50], [3, 2, 60, 90], [3, 9, 60, 90], [5, 1, 60, 20]]))
def test_notes_become_the_roll_that_a_loop_paints_and_come_back(notes):
    expected = np.zeros((128, 256), np.uint8)
    for start, velocity, length, pitch in sorted(map(tuple, notes[:, [0, 3, 1, 2]])):
        expected[pitch, start:] = 0  # a new onset ends the note before; the louder one stays
        expected[pitch, start : start + length] = SUSTAIN
        expected[pitch, start] = ONSET + velocity
    assert np.array_equal(pianoroll.roll_of(notes, 128, 256), expected)
    clean = pianoroll.without_overlaps(notes)
    assert np.array_equal(pianoroll.notes_of(PianoRoll(expected)), clean)
    part = pianoroll.roll_of(notes, GAN.pitches, 120, GAN.lowest_pitch)
    assert np.array_equal(part, expected[21:127, :120])  # what lies outside is left out


@settings(max_examples=25)
@given(note_lists(least=1), st.sampled_from([1, 2, 3, 4, 7, 12, 24]), st.floats(20, 300))
def test_roll_to_midi_file_to_roll_is_exact(tmp_path_factory, notes, steps_per_beat, tempo):
    roll = PianoRoll(pianoroll.roll_of(notes, 128, 256), 0, steps_per_beat, tempo)
    path = pianoroll.save_midi(roll, tmp_path_factory.mktemp("midi") / "a.mid")
    again = pianoroll.read_midi(path, steps_per_beat)
    assert np.array_equal(pianoroll.notes_of(again), pianoroll.notes_of(roll))
    assert again.tempo_bpm == pytest.approx(tempo, rel=1e-4)


def test_a_silent_roll_and_a_file_that_is_not_there_are_named(tmp_path):
    with pytest.raises(MusicError, match=r"a\.mid: the piano roll is silent"):
        pianoroll.save_midi(PianoRoll(np.zeros((128, 16), np.uint8)), tmp_path / "a.mid")
    assert not list(tmp_path.iterdir())
    with pytest.raises(MusicError, match=r"nowhere\.mid: no such file.*; check the path"):
        pianoroll.read_midi(tmp_path / "nowhere.mid")


@given(note_lists())
def test_planes_are_an_exact_inverse(notes):
    pixels = pianoroll.roll_of(notes, 128, 256)
    planes = pianoroll.to_planes(pixels)
    assert planes.shape == (2, 128, 256) and planes.dtype == np.float32
    assert np.array_equal(pianoroll.from_planes(planes), pixels)
    nudged = planes + np.random.default_rng(0).uniform(-0.001, 0.001, planes.shape)
    assert np.array_equal(pianoroll.from_planes(nudged) > SUSTAIN, pixels > SUSTAIN)


@given(hnp.arrays(np.uint8, (3, 12)))
def test_any_gray_image_decodes_as_a_loop_does(gray):
    """A sustain without an onset has velocity 64; a note at the right edge ends there."""
    expected = []
    for pitch, row in enumerate(pianoroll.snap(gray).tolist()):
        for step, pixel in enumerate(row):
            if pixel > SUSTAIN or (pixel and (step == 0 or not row[step - 1])):
                expected.append([step, 1, pitch, pixel - ONSET if pixel > SUSTAIN else 64])
            elif pixel:
                expected[-1][1] += 1
    assert pianoroll.notes_of(PianoRoll(gray)).tolist() == expected


# ---------------------------------------------------------------- what a file says


def read(tmp_path, *events: tuple[int, bytes]) -> PianoRoll:
    """A file of one track of (ticks to wait, message), 480 ticks a beat, as it is read."""
    body = b"".join(bytes([wait >> 7 | 0x80, wait & 127]) + message for wait, message in events)
    path = tmp_path / "made.mid"
    path.write_bytes(hostile_midi.midi(hostile_midi.track(body + hostile_midi.END)))
    return pianoroll.read_midi(path)


ON, OFF, DRUM = b"\x90\x3c\x40", b"\x80\x3c\x40", b"\x99\x28\x40"


@pytest.mark.parametrize(("events", "expected"), [
    ([(0, ON), (480, ON), (480, OFF), (480, ON), (480, OFF)], [[0, 4], [4, 4], [12, 4]]),
    ([(0, ON), (480, OFF), (480, ON), (960, b"\xb0\x01\x01")], [[0, 4], [8, 8]]),
    ([(0, ON), (240, ON), (240, OFF)] * 3, [[start, 2] for start in range(0, 12, 2)]),
    ([(0, DRUM), (0, ON), (480, OFF)], [[0, 4]])],
    ids=["struck again before its note-off", "never released", "one note-off for two, three times",
         "drums are left out"])
def test_no_note_is_lost(tmp_path, events, expected):
    assert pianoroll.notes_of(read(tmp_path, *events))[:, :2].tolist() == expected


def test_of_two_tempos_in_a_step_the_later_counts(tmp_path):
    tempos = [b"\xff\x51\x03" + (60_000_000 // bpm).to_bytes(3, "big")
              for bpm in (120, 89, 150, 75)]
    piece = read(tmp_path, (0, tempos[0]), (1, tempos[1]), (0, ON), (480, OFF), (480, tempos[2]),
                 (1, tempos[3]), (0, ON), (480, OFF))
    assert round(piece.tempo_bpm) == 89
    assert [(step, round(bpm)) for step, bpm in piece.tempo_changes] == [(8, 75)]


# ---------------------------------------------------------------- real files


def notes_by_pretty_midi(path) -> np.ndarray:
    """The file's notes on the grid of sixteenths, read by pretty_midi alone."""
    midi = pretty_midi.PrettyMIDI(str(path))
    start, end, pitch, velocity = np.array([
        (midi.time_to_tick(note.start), midi.time_to_tick(note.end), note.pitch, note.velocity)
        for instrument in midi.instruments if not instrument.is_drum
        for note in instrument.notes]).T
    start, end = (np.floor(tick / (midi.resolution / 4) + 0.5).astype(int) for tick in (start, end))
    return pianoroll.without_overlaps(
        np.stack([start, np.maximum(end - start, 1), pitch, velocity], axis=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("path", real_files(6), ids=lambda path: path.stem[-24:])
def test_a_real_file_is_read_as_by_pretty_midi_and_its_round_trip_is_exact(tmp_path, path):
    piece = pianoroll.read_midi(path)
    notes = pianoroll.notes_of(piece)
    again = pianoroll.load_png(pianoroll.save_png(piece, tmp_path / "a.png"))
    read = pianoroll.read_midi(pianoroll.save_midi(again, tmp_path / "a.mid"))
    assert len(notes) and np.array_equal(pianoroll.notes_of(read), notes)
    differ = set(map(tuple, notes)) ^ set(map(tuple, notes_by_pretty_midi(path)))
    # pretty_midi loses notes that are released where they are struck; each may cut another short
    without_length = sum(note.duration == 0 for track in symusic.Score(path).tracks
                         if not track.is_drum for note in track.notes)
    assert len(differ) <= 3 * without_length
