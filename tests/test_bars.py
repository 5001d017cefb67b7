"""Where bars begin: by the file, or by the notes; windows on bar lines."""

import numpy as np
import pytest

from utils import bars, pianoroll
from utils.pianoroll import DIFFUSION, GAN, PianoRoll

CHORDS = [(48, 64, 67, 72), (45, 60, 64, 69), (41, 60, 65, 69), (43, 59, 62, 67)]


def song(bar_count=32, first=0):
    """A pop accompaniment, notes `[N, 4]`: a chord a bar, a bass on one and three, a tune."""
    notes = []
    for bar in range(bar_count):
        at, (bass, *chord) = first + 16 * bar, CHORDS[bar % 4]
        notes += [[at, 8, bass, 90], [at + 8, 8, bass, 80]]
        notes += [[at, 16, pitch, 70] for pitch in chord]
        notes += [[at + step, 2, chord[step // 2 % 3] + 12, 80] for step in (0, 4, 6, 8, 12, 14)]
    return np.array(notes)


@pytest.mark.parametrize("first", range(0, 16, 3))
@pytest.mark.parametrize("fine", [1, 3])
def test_bars_are_found_wherever_the_recording_begins(first, fine):
    notes = song(first=first) * [fine, fine, 1, 1]
    lines = bars.bar_lines(notes, int(notes[:, 0].max()) + 2, [(0, 1, 4)], 4 * fine)
    assert lines[0] == first * fine and (np.diff(lines) == 16 * fine).all()


WALTZ = [[12 * bar + beat, 4, 48 + 12 * bool(beat) + bar % 5, 80]
         for bar in range(32) for beat in (0, 4, 8)]
FREELY = np.random.default_rng(0).integers([0, 1, 30, 64], [1000, 9, 90, 65], (900, 4))


@pytest.mark.parametrize(("notes", "signatures", "bar"), [
    (song(), [(0, 4, 4)], 16), (WALTZ, [(0, 3, 4)], 12), (song(1, first=3), [], 16),
    (FREELY, [], 16), (song(first=3), [(0, 6, 8)], 12)],
    ids=["in agreement", "a waltz", "few notes", "played freely", "bars of eighths"])
def test_bars_of_the_file_stay_unless_the_notes_contradict_them(notes, signatures, bar):
    notes = np.array(notes)
    steps = int((notes[:, 0] + notes[:, 1]).max())
    assert bars.bar_lines(notes, steps, signatures).tolist() == list(range(0, steps, bar))


def test_notes_before_the_first_bar_line_and_a_signature_within_a_bar_begin_a_bar():
    notes = np.concatenate([[[1, 2, 72, 80]], song(first=5)])
    assert bars.bar_lines(notes, 520, [])[:2].tolist() == [-11, 5]
    lines = bars.lines_of([(0, 4, 4), (24, 3, 4), (48, 0, 4)], 64)
    assert lines.tolist() == [0, 16, 24, 36, 48, 60]


@pytest.mark.parametrize(("preset", "hop", "starts"), [
    (DIFFUSION, 8, [-9, 119, 247]), (DIFFUSION, 1, list(range(-9, 216, 16))),
    (GAN, 8, [-9, 279])])
def test_windows_begin_on_bar_lines_and_hold_every_note_where_it_was(preset, hop, starts):
    notes = np.concatenate([[[6, 1, 90, 33]], song(20, first=7)])
    piece, seen = PianoRoll(pianoroll.roll_of(notes, 128, 328)), set()
    windows = pianoroll.windows(piece, preset, hop)
    assert [window.start_step for window in windows] == starts
    for window in windows:
        assert window.pixels.shape == (preset.pitches, preset.steps)
        seen |= set(map(tuple, (pianoroll.notes_of(window)[:, [0, 2]] + [window.start_step, 0])))
    assert seen >= {tuple(note) for note in notes[:, [0, 2]]}


def test_windows_hold_the_tempo_and_leave_silence_out():
    notes = [[5, 3, 60, 80], [127, 4, 64, 90], [900, 10, 20, 70]]  # pitch 20 lies below the GAN's
    piece = PianoRoll(pianoroll.roll_of(np.array(notes), 128, 910), tempo_bpm=100,
                      tempo_changes=((600, 50.0),))
    cut = pianoroll.windows(piece, DIFFUSION)  # a sustain alone keeps no window
    assert [(window.start_step, window.tempo_bpm) for window in cut] == [(0, 100), (896, 50)]
    assert cut[1].pixels[20, 4] == pianoroll.ONSET + 70
    assert [window.start_step for window in pianoroll.windows(piece, GAN)] == [0]
