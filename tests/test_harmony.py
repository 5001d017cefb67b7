"""Chord symbols and scales as tables of pitch weights."""

import numpy as np
import pytest

from utils import harmony
from utils.files import MusicError


@pytest.mark.parametrize(("read", "name", "tones"), [
    *((harmony.chord_tones, *case) for case in [
        ("C", {0, 4, 7}), ("Am7", {9, 0, 4, 7}), ("F#dim", {6, 9, 0}), ("Bbmaj7", {10, 2, 5, 9}),
        ("G7sus4", {7, 0, 2, 5}), ("Dmin", {2, 5, 9}), ("C/D", {0, 2, 4, 7}),
        ("A:min7", {9, 0, 4, 7}), ("C:maj", {0, 4, 7}), ("Eb:maj/3", {3, 7, 10}),
        ("B:hdim7", {11, 2, 5, 9}), ("G:sus4(b7)", {7, 0, 2, 5}), ("D:min7/b7", {2, 5, 9, 0}),
        ("F:minmaj7", {5, 8, 0, 4}), ("N", set(range(12)))]),
    *((harmony.scale_tones, *case) for case in [
        ("D dorian", {2, 4, 5, 7, 9, 11, 0}), ("A minor", {9, 11, 0, 2, 4, 5, 7}),
        ("F# Major", {6, 8, 10, 11, 1, 3, 5}), ("c harmonic minor", {0, 2, 3, 5, 7, 8, 11}),
        ("E minor pentatonic", {4, 7, 9, 11, 2}), ("Bb", {10, 0, 2, 3, 5, 7, 9})])])
def test_a_chord_or_a_scale_is_its_pitch_classes(read, name, tones):
    assert set(np.flatnonzero(read(name)).tolist()) == tones


@pytest.mark.parametrize(("read", "names", "said"), [
    (harmony.chord_tones, ["H7", "Cfoo", "", "A:foo", "7", "Am7-"], "cannot be read; write it as"),
    (harmony.scale_tones, ["D foo", "", "H major"], "is unknown; write a note and one of"),
    (lambda text: harmony.chords_by_bar(text, np.array([0, 16])), ["", " ", "C ,", "C,,F"],
     "one chord a bar")])
def test_what_cannot_be_read_is_one_clear_line(read, names, said):
    for name in names:
        with pytest.raises(MusicError, match=said) as error:
            read(name)
        assert "\n" not in str(error.value)


def test_chords_are_one_a_bar_share_a_bar_and_repeat():
    lines = np.array([0, 16, 32, 48, 64])
    assert harmony.chords_by_bar("C F , G Am", lines) == [
        (0, "C"), (16, "F"), (24, "G"), (32, "Am"), (48, "C")]


def test_weights_hold_from_chord_to_chord_and_nothing_outside_a_scale_is_possible():
    weights = harmony.pitch_weights(32, [(8, "C"), (16, "N")], outside=0.1)
    assert weights.shape == (128, 32)
    assert (weights[:, :8] == 1).all() and (weights[:, 16:] == 1).all()
    assert weights[60, 8] == 1 and weights[61, 15] == np.float32(0.1)
    weights = harmony.pitch_weights(4, [(0, "F#")], scale="C major")
    outside = ~harmony.scale_tones("C major")[np.arange(128) % 12]
    assert (weights[outside] == 0).all() and (weights[~outside] > 0).all()
