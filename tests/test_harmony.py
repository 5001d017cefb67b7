"""Chord symbols and scales as tables of pitch weights."""

import numpy as np
import pytest

from utils import harmony
from utils.files import MusicError


def classes(tones):
    """Pitch classes as a set of numbers, C is 0."""
    return set(np.flatnonzero(tones).tolist())


@pytest.mark.parametrize(("symbol", "tones"), [
    ("C", {0, 4, 7}), ("Am7", {9, 0, 4, 7}), ("F#dim", {6, 9, 0}), ("Bbmaj7", {10, 2, 5, 9}),
    ("G7sus4", {7, 0, 2, 5}), ("Dmin", {2, 5, 9}), ("C/D", {0, 2, 4, 7}), ("A:min7", {9, 0, 4, 7}),
    ("C:maj", {0, 4, 7}), ("Eb:maj/3", {3, 7, 10}), ("B:hdim7", {11, 2, 5, 9}),
    ("G:sus4(b7)", {7, 0, 2, 5}), ("D:min7/b7", {2, 5, 9, 0}), ("F:minmaj7", {5, 8, 0, 4}),
    ("N", set(range(12)))])
def test_a_chord_is_its_tones(symbol, tones):
    assert classes(harmony.chord_tones(symbol)) == tones


@pytest.mark.parametrize("symbol", ["H7", "Cfoo", "", "A:foo", "7", "Am7-"])
def test_a_chord_that_cannot_be_read_is_one_clear_line(symbol):
    with pytest.raises(MusicError, match="cannot be read; write it as") as error:
        harmony.chord_tones(symbol)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "tones"), [
    ("D dorian", {2, 4, 5, 7, 9, 11, 0}), ("A minor", {9, 11, 0, 2, 4, 5, 7}),
    ("F# Major", {6, 8, 10, 11, 1, 3, 5}), ("c harmonic minor", {0, 2, 3, 5, 7, 8, 11}),
    ("E minor pentatonic", {4, 7, 9, 11, 2}), ("Bb", {10, 0, 2, 3, 5, 7, 9})])
def test_a_scale_is_its_tones(name, tones):
    assert classes(harmony.scale_tones(name)) == tones


@pytest.mark.parametrize("name", ["D foo", "", "H major"])
def test_an_unknown_scale_is_one_clear_line(name):
    with pytest.raises(MusicError, match="is unknown; write a note and one of"):
        harmony.scale_tones(name)


def test_chords_are_one_a_bar_share_a_bar_and_repeat():
    lines = np.array([0, 16, 32, 48, 64])
    assert harmony.chords_by_bar("C F , G Am", lines) == [
        (0, "C"), (16, "F"), (24, "G"), (32, "Am"), (48, "C")]


@pytest.mark.parametrize("chords", ["", " ", "C ,", "C,,F"])
def test_bars_without_a_chord_are_refused(chords):
    with pytest.raises(MusicError, match="one chord a bar"):
        harmony.chords_by_bar(chords, np.array([0, 16, 32]))


def test_weights_hold_from_chord_to_chord():
    weights = harmony.pitch_weights(32, [(8, "C"), (16, "N")], outside=0.1)
    assert weights.shape == (128, 32)
    assert (weights[:, :8] == 1).all() and (weights[:, 16:] == 1).all()
    assert weights[60, 8] == 1 and weights[61, 15] == np.float32(0.1)


def test_nothing_outside_a_scale_is_possible():
    weights = harmony.pitch_weights(4, [(0, "F#")], scale="C major")
    outside = ~harmony.scale_tones("C major")[np.arange(128) % 12]
    assert (weights[outside] == 0).all() and (weights[~outside] > 0).all()
