"""Where bars begin: by the file, or by the notes; windows on bar lines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("first", range(16))
def test_bars_are_found_wherever_the_recording_begins(first):
    notes = song(first=first)
    lines = bars.bar_lines(notes, int(notes[:, 0].max()) + 2, [(0, 1, 4)])
    assert (lines % 16 == first).all()
    assert lines[0] == first


def test_bars_of_the_file_stay_where_the_notes_agree():
    notes = song()
    assert bars.bar_lines(notes, 512, [(0, 4, 4)]).tolist() == list(range(0, 512, 16))


def test_bars_of_three_beats_stay():
    notes = np.array([[12 * bar + beat, 4, 48 + 12 * bool(beat) + bar % 5, 80]
                      for bar in range(32) for beat in (0, 4, 8)])
    assert bars.bar_lines(notes, 384, [(0, 3, 4)]).tolist() == list(range(0, 384, 12))


def test_few_notes_keep_the_bars_of_the_file():
    assert bars.bar_lines(song(1, first=3), 32, []).tolist() == [0, 16]


def test_free_rhythm_keeps_the_bars_of_the_file():
    rng = np.random.default_rng(0)
    notes = np.stack([rng.integers(0, 1000, 900), rng.integers(1, 9, 900),
                      rng.integers(30, 90, 900), np.full(900, 64)], axis=1)
    assert bars.bar_lines(notes, 1010, []).tolist() == list(range(0, 1010, 16))


def test_notes_before_the_first_bar_line_have_a_bar():
    notes = np.concatenate([[[1, 2, 72, 80]], song(first=5)])
    lines = bars.bar_lines(notes, 520, [])
    assert lines[:2].tolist() == [-11, 5]


def test_a_finer_grid_finds_the_same_bars():
    notes = song(first=5)
    lines = bars.bar_lines(notes, 520, [])
    finer = bars.bar_lines(notes * [3, 3, 1, 1], 3 * 520, [], steps_per_beat=12)
    assert finer.tolist() == (3 * lines).tolist()


def test_a_signature_within_a_bar_begins_a_bar():
    lines = bars.lines_of([(0, 4, 4), (24, 3, 4), (48, 0, 4)], 64)
    assert lines.tolist() == [0, 16, 24, 36, 48, 60]


def piece_of(notes, signatures=()):
    """A whole piece as a picture."""
    steps = int((notes[:, 0] + notes[:, 1]).max())
    return PianoRoll(pianoroll.roll_of(notes, 128, steps), signatures=tuple(signatures))


@pytest.mark.parametrize("preset", [DIFFUSION, GAN])
def test_windows_begin_on_bar_lines(preset):
    piece = piece_of(song(40, first=7))
    starts = [window.start_step for window in pianoroll.windows(piece, preset)]
    assert len(starts) > 1 and all(start % 16 == 7 for start in starts)


def test_hop_1_begins_a_window_at_each_bar():
    piece = piece_of(song(20))
    starts = [window.start_step for window in pianoroll.windows(piece, DIFFUSION, hop=1)]
    assert starts == list(range(0, 13 * 16, 16))


def test_windows_side_by_side_are_as_many_as_fit():
    assert len(pianoroll.windows(piece_of(song(20)), DIFFUSION)) == 3


@given(first=st.integers(0, 15), pickup=st.booleans(), hop=st.integers(1, 8))
def test_windows_hold_every_note_where_it_was(first, pickup, hop):
    notes = song(11, first=first)
    if pickup and first:
        notes = np.concatenate([[[first - 1, 1, 90, 33]], notes])
    piece = piece_of(notes)
    whole = {tuple(note) for note in pianoroll.notes_of(piece)[:, [0, 2, 3]].tolist()}
    seen = set()
    for window in pianoroll.windows(piece, DIFFUSION, hop):
        onsets = pianoroll.notes_of(window)
        onsets = onsets[window.pixels[onsets[:, 2], onsets[:, 0]] > pianoroll.SUSTAIN]
        seen |= {(start + window.start_step, pitch, velocity)
                 for start, _, pitch, velocity in onsets.tolist()}
    assert seen == whole
