"""The picture of music: exact on the grid, held against pretty_midi on real files."""

import errno
import io
from pathlib import Path

import hostile_midi
import numpy as np
import pretty_midi
import pytest
import symusic
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from real_midi import real_files
from utils import pianoroll
from utils.files import atomic
from utils.pianoroll import DIFFUSION, GAN, ONSET, SUSTAIN, MusicError, PianoRoll

REAL = real_files(6)  # 24 files; check_real_midi.py takes all


@st.composite
def note_lists(draw, steps=200):
    """Unordered notes of a few pitches, with overlaps and doubles: int [N, 4]."""
    pitches = draw(st.lists(st.integers(0, 127), min_size=1, max_size=4))
    note = st.tuples(st.integers(0, steps - 1), st.integers(1, 40), st.sampled_from(pitches),
                     st.integers(1, 127))
    return np.array(draw(st.lists(note, max_size=60)), dtype=np.int64).reshape(-1, 4)


def without_overlaps_by_hand(notes):
    """What DESIGN says of notes, in the plainest Python: the reference of `without_overlaps`."""
    louder = {}
    for start, length, pitch, velocity in sorted(map(tuple, notes), key=lambda n: (n[3], n[1])):
        louder[pitch, start] = (length, velocity)
    keys = sorted(louder)
    result = []
    for (pitch, start), following in zip(keys, [*keys[1:], (-1, 0)], strict=False):
        length, velocity = louder[pitch, start]
        if following[0] == pitch:
            length = min(length, following[1] - start)
        result.append((start, length, pitch, velocity))
    return np.array(result, dtype=np.int32).reshape(-1, 4)


@given(note_lists())
@example(np.array([[3, 4, 60, 50], [3, 2, 60, 90], [3, 9, 60, 90], [5, 1, 60, 20]]))
def test_the_louder_note_stays_and_ends_at_the_next(notes):
    expected = without_overlaps_by_hand(notes.tolist())
    assert np.array_equal(pianoroll.without_overlaps(notes), expected)


@given(note_lists())
def test_notes_to_picture_to_notes_is_exact(notes):
    picture = PianoRoll(pianoroll.roll_of(notes, 128, 256))
    assert np.array_equal(pianoroll.notes_of(picture), without_overlaps_by_hand(notes.tolist()))


@given(note_lists())
def test_what_lies_outside_the_rows_is_left_out(notes):
    levels = pianoroll.roll_of(notes, GAN.pitches, 120, GAN.lowest_pitch)
    whole = pianoroll.roll_of(notes, 128, 256)
    assert np.array_equal(levels, whole[21:127, :120])


@settings(max_examples=25, deadline=None)
@given(note_lists(), st.sampled_from([1, 2, 3, 4, 7, 12, 24]),
       st.floats(20, 300, allow_nan=False))
def test_picture_to_midi_file_to_picture_is_exact(tmp_path_factory, notes, steps_per_beat, tempo):
    if not len(notes):
        return
    picture = PianoRoll(pianoroll.roll_of(notes, 128, 256), 0, steps_per_beat, tempo, "made up")
    path = tmp_path_factory.mktemp("midi") / "a.mid"
    pianoroll.save_midi(picture, path)
    again = pianoroll.read_midi(path, steps_per_beat)
    assert np.array_equal(pianoroll.notes_of(again), pianoroll.notes_of(picture))
    assert again.tempo_bpm == pytest.approx(tempo, rel=1e-4)


@given(note_lists())
def test_planes_are_an_exact_inverse(notes):
    levels = pianoroll.roll_of(notes, 128, 256)
    planes = pianoroll.to_planes(levels)
    assert planes.shape == (2, 128, 256) and planes.dtype == np.float32
    assert np.array_equal(pianoroll.from_planes(planes), levels)
    nudged = planes + np.random.default_rng(0).uniform(-0.001, 0.001, planes.shape)
    assert np.array_equal(pianoroll.from_planes(nudged) > SUSTAIN, levels > SUSTAIN)


@given(note_lists())
def test_png_keeps_pixels_and_facts(tmp_path_factory, notes):
    picture = PianoRoll(pianoroll.roll_of(notes, 128, 128), 0, 12, 93.25, "naïve\nname 音.mid", 384)
    path = pianoroll.save_png(picture, tmp_path_factory.mktemp("png") / "a.png")
    again = pianoroll.load_png(path)
    assert np.array_equal(again.pixels, picture.pixels)
    assert (again.lowest_pitch, again.steps_per_beat, again.tempo_bpm, again.source,
            again.start_step) == (0, 12, 93.25, "naïve\nname 音.mid", 384)
    with Image.open(path) as image:
        assert image.mode == "L" and image.size == (128, 128)


def test_windows_cover_the_piece_and_leave_silence_out():
    notes = [[5, 3, 60, 80], [127, 4, 64, 90], [900, 10, 20, 70]]  # pitch 20 lies below the GAN's
    piece = PianoRoll(pianoroll.roll_of(np.array(notes), 128, 910), tempo_bpm=100,
                    tempo_changes=((600, 50.0),))
    cut = pianoroll.windows(piece, DIFFUSION)
    assert [w.start_step for w in cut] == [0, 896]
    assert [w.tempo_bpm for w in cut] == [100, 50]
    assert all(w.pixels.shape == (128, 128) and w.pixels.dtype == np.uint8 for w in cut)
    assert cut[1].pixels[20, 4] == ONSET + 70
    assert [w.start_step for w in pianoroll.windows(piece, GAN)] == [0]
    # the note of pitch 64 goes on in the second window: a tail, which alone keeps no window
    assert piece.pixels[64, 128] == SUSTAIN


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


@pytest.mark.parametrize(("rows", "lowest"), [(128, 0), (106, 21)])
def test_black_and_white_pictures_decode(tmp_path, rows, lowest):
    pixels = np.zeros((rows, 300), np.uint8)
    pixels[10, 3:7] = pixels[10, 9:10] = pixels[50, 296:] = 255
    for mode in ("L", "1", "RGB"):
        Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
        picture = pianoroll.load_png(tmp_path / "a.png")
        assert pianoroll.notes_of(picture).tolist() == [
            [3, 4, 10 + lowest, 100], [9, 1, 10 + lowest, 100], [296, 4, 50 + lowest, 100]]


@pytest.mark.parametrize("kind", ["photo", "size", "text", "cut", "facts", "bomb"])
def test_a_png_that_is_no_music_is_named_in_one_line(tmp_path, kind):
    path, rng = tmp_path / "bad.png", np.random.default_rng(0)
    if kind == "photo":
        Image.fromarray(rng.integers(0, 256, (128, 128), dtype=np.uint8)).save(path)
    elif kind == "size":
        Image.fromarray(np.zeros((90, 128), np.uint8)).save(path)
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "cut":
        pianoroll.save_png(PianoRoll(np.zeros((128, 128), np.uint8)), path)
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "facts":
        pianoroll.save_png(PianoRoll(np.zeros((128, 128), np.uint8), tempo_bpm=float("nan")), path)
    else:
        Image.new("L", (6_000, 20_000)).save(path)
    with pytest.raises(MusicError) as error:
        pianoroll.load_png(path)
    assert "bad.png" in str(error.value) and "\n" not in str(error.value)


def bytes_of(midi: pretty_midi.PrettyMIDI) -> bytes:
    file = io.BytesIO()
    midi.write(file)
    return file.getvalue()


@pytest.mark.parametrize(("content", "words"), [
    (b"hello", "not a MIDI file"), (b"", "not a MIDI file"),
    (b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\0\xffabc", "bad.mid"),
    (bytes_of(pretty_midi.PrettyMIDI()), "no notes"), (None, "no such file")])
def test_a_bad_midi_file_is_named_in_one_line(tmp_path, content, words):
    path = tmp_path / "bad.mid"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MusicError, match=words) as error:
        pianoroll.read_midi(path)
    assert "bad.mid" in str(error.value) and "\n" not in str(error.value)


def test_drums_are_left_out_and_the_pedal_is_off_unless_asked_for(tmp_path):
    midi = pretty_midi.PrettyMIDI(initial_tempo=120)
    piano, drums = pretty_midi.Instrument(0), pretty_midi.Instrument(0, is_drum=True)
    piano.notes = [pretty_midi.Note(80, 60, 0, 0.25), pretty_midi.Note(80, 60, 2, 2.25)]
    piano.control_changes = [pretty_midi.ControlChange(64, 127, 0.1),
                             pretty_midi.ControlChange(64, 0, 1.0)]
    drums.notes = [pretty_midi.Note(80, 40, 0, 0.25)]
    midi.instruments = [piano, drums]
    midi.write(str(tmp_path / "a.mid"))
    dry = pianoroll.notes_of(pianoroll.read_midi(tmp_path / "a.mid"))
    wet = pianoroll.notes_of(pianoroll.read_midi(tmp_path / "a.mid", pedal=True))
    assert dry.tolist() == [[0, 2, 60, 80], [16, 2, 60, 80]]
    assert wet.tolist() == [[0, 8, 60, 80], [16, 2, 60, 80]]


def midi_of(tmp_path, *events: tuple[int, bytes]) -> Path:
    """A file of one track of (ticks to wait, message), 480 ticks a beat."""
    body = b"".join(bytes([wait >> 7 | 0x80, wait & 127]) + message for wait, message in events)
    path = tmp_path / "made.mid"
    path.write_bytes(hostile_midi.midi(hostile_midi.track(body + hostile_midi.END)))
    return path


ON, OFF = b"\x90\x3c\x40", b"\x80\x3c\x40"


def test_a_note_struck_again_before_its_note_off_loses_no_later_note(tmp_path):
    path = midi_of(tmp_path, (0, ON), (480, ON), (480, OFF), (480, ON), (480, OFF), (480, ON),
                   (480, OFF))
    notes = pianoroll.notes_of(pianoroll.read_midi(path))
    assert notes[:, :2].tolist() == [[0, 4], [4, 4], [12, 4], [20, 4]]
    assert len(pretty_midi.PrettyMIDI(str(path)).instruments[0].notes) == len(notes)


def test_a_note_that_is_never_released_lasts_to_its_tracks_end(tmp_path):
    path = midi_of(tmp_path, (0, ON), (480, OFF), (480, ON), (960, b"\xb0\x01\x01"))
    assert pianoroll.notes_of(pianoroll.read_midi(path))[:, :2].tolist() == [[0, 4], [8, 8]]


def test_of_two_tempos_in_a_step_the_later_counts(tmp_path):
    tempos = [b"\xff\x51\x03" + (60_000_000 // bpm).to_bytes(3, "big")
              for bpm in (120, 89, 150, 75)]
    path = midi_of(tmp_path, (0, tempos[0]), (1, tempos[1]), (0, ON), (480, OFF), (480, tempos[2]),
                   (1, tempos[3]), (0, ON), (480, OFF))
    piece = pianoroll.read_midi(path)
    assert round(piece.tempo_bpm) == 89
    assert [(step, round(bpm)) for step, bpm in piece.tempo_changes] == [(8, 75)]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept.png"
    path.write_text("before")
    with pytest.raises(MusicError, match="No space left"), atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.png"]


# ---------------------------------------------------------------- real files


@pytest.mark.slow
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem[-24:])
def test_the_round_trip_of_a_real_file_is_exact(tmp_path, path):
    piece = pianoroll.read_midi(path)
    notes = pianoroll.notes_of(piece)
    again = pianoroll.load_png(pianoroll.save_png(piece, tmp_path / "a.png"))
    read = pianoroll.read_midi(pianoroll.save_midi(again, tmp_path / "a.mid"))
    assert len(notes) and np.array_equal(pianoroll.notes_of(read), notes)


def notes_by_pretty_midi(path) -> np.ndarray:
    """The file's notes on the grid of sixteenths, read by pretty_midi alone."""
    midi = pretty_midi.PrettyMIDI(str(path))
    ticks = np.array([(midi.time_to_tick(note.start), midi.time_to_tick(note.end), note.pitch,
                       note.velocity) for instrument in midi.instruments
                      if not instrument.is_drum for note in instrument.notes])
    start, end = np.floor(ticks[:, :2].T / (midi.resolution / 4) + 0.5).astype(int)
    return pianoroll.without_overlaps(np.stack([start, np.maximum(end - start, 1), ticks[:, 2],
                                      ticks[:, 3]], axis=1))


def count_notes_without_length(path) -> int:
    """Notes released in the tick where they are struck. pretty_midi has none of them."""
    score = symusic.Score.from_midi(path.read_bytes())
    return sum(note.duration == 0 for track in score.tracks if not track.is_drum
               for note in track.notes)


def count_differing(path) -> tuple[int, int]:
    """Notes on the grid, and those that read_midi and pretty_midi do not share."""
    ours = set(map(tuple, pianoroll.notes_of(pianoroll.read_midi(path)).tolist()))
    theirs = set(map(tuple, notes_by_pretty_midi(path).tolist()))
    return len(ours | theirs), len(ours ^ theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem[-24:])
def test_read_midi_agrees_with_pretty_midi_note_for_note(path):
    _, differing = count_differing(path)
    # one note of no length shows here, and may cut one that sounds before it
    assert differing <= 3 * count_notes_without_length(path)
