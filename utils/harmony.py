"""Chords and scales as tables of pitch weights. Explained in notebook 08.

Chord symbols are read by `pychord`, a small library for nothing else. The form of chord datasets
(Harte et al. 2005), such as `A:min7` or `C:maj/3`, is translated first.
"""

import itertools
import re

import numpy as np
from pychord import Chord

from utils.files import MusicError

CLASSES = {name: number for number, names in enumerate(
    ("C B#", "C# Db", "D", "D# Eb", "E Fb", "F E#", "F# Gb", "G", "G# Ab", "A", "A# Bb", "B Cb"))
    for name in names.split()}
HARTE = {"maj": "", "min": "m", "min7": "m7", "maj6": "6", "min6": "m6", "hdim7": "m7-5",
         "minmaj7": "mmaj7", "sus4(b7)": "7sus4", "min9": "m9", "5": "5"}  # others are the same
DEGREES = {"1": 0, "b2": 1, "2": 2, "b3": 3, "3": 4, "4": 5, "b5": 6, "5": 7, "#5": 8, "b6": 8,
           "6": 9, "b7": 10, "7": 11}
SCALES = {"major": "024579e", "ionian": "024579e", "dorian": "023579t", "phrygian": "013578t",
         "lydian": "024679e", "mixolydian": "024579t", "minor": "023578t", "aeolian": "023578t",
         "locrian": "013568t", "harmonic minor": "023578e", "melodic minor": "023579e",
         "pentatonic": "02479", "minor pentatonic": "0357t", "blues": "03567t",
         "whole tone": "02468t", "chromatic": "0123456789te"}
OUTSIDE = 0.04  # weight of the pitches outside a chord: passing notes stay possible


def chord_tones(symbol: str) -> np.ndarray:
    """The pitch classes of a chord, bool `[12]`; all of them for `N`, which leaves it free.

    Raises `MusicError` for one that it cannot read.
    """
    if symbol in ("N", "N.C.", "NC", "X"):
        return np.ones(12, bool)
    text, bass = symbol.replace("♭", "b").replace("♯", "#"), ""
    if ":" in text:
        root, _, quality = text.partition(":")
        quality, _, bass = quality.partition("/")
        text = root + HARTE.get(quality, quality)
    else:
        text = re.sub(r"^([A-G][#b]?)min", r"\1m", text)
    try:
        chord = Chord(text)
        root = CLASSES[chord.root]
        tones = {root, *(pitch % 12 for pitch in chord.components(visible=False))}
        if bass in DEGREES:
            tones.add((root + DEGREES[bass]) % 12)
    except (ValueError, KeyError, IndexError):
        raise MusicError(f"chord {symbol!r} cannot be read; write it as Am7, F#dim, Bbmaj7, C/E or "
                         "A:min7, and N for a bar without a chord") from None
    return np.isin(np.arange(12), list(tones))


def scale_tones(name: str) -> np.ndarray:
    """The pitch classes of a scale such as `D dorian` or `A minor`, bool `[12]`.

    Raises `MusicError` for an unknown one.
    """
    tonic, _, mode = " ".join(name.split()).partition(" ")
    tonic, mode = tonic[:1].upper() + tonic[1:], mode.lower() or "major"
    if tonic not in CLASSES or mode not in SCALES:
        raise MusicError(f"scale {name!r} is unknown; write a note and one of {', '.join(SCALES)}, "
                         "such as 'D dorian'")
    steps = [int(step, 12) if step not in "te" else 10 + "te".index(step) for step in SCALES[mode]]
    return np.isin(np.arange(12), [(CLASSES[tonic] + step) % 12 for step in steps])


def chords_by_bar(chords: str, lines: np.ndarray) -> list[tuple[int, str]]:
    """(column, symbol) of chords written as one chord a bar, `"C Am F,G C"`.

    Several in a bar are joined by commas and share it equally; the list repeats until the last of
    `lines`, the columns where bars begin and where the last one ends. Raises `MusicError` where
    nothing is written.
    """
    bars = [bar.split(",") for bar in re.sub(r"\s*,\s*", ",", chords).split()]
    if not bars or not all(all(bar) for bar in bars):
        raise MusicError(f"chords {chords!r}: write one chord a bar, such as 'C Am F,G C'")
    return [(round(begin + (end - begin) * i / len(bar)), symbol)
            for (begin, end), bar in zip(itertools.pairwise(lines), itertools.cycle(bars))
            for i, symbol in enumerate(bar)]


def pitch_weights(steps: int, chords: list[tuple[int, str]] = (), scale: str = "",
                  outside: float = OUTSIDE) -> np.ndarray:
    """What the odds of each pixel are multiplied by, float32 `[128, steps]`.

    Inside the chord that holds in a column 1, outside it `outside`; 0 outside the scale. `chords`
    are (column, symbol), each until the next; before the first one all pitches are free.
    """
    weights = np.ones((12, steps), np.float32)
    for (begin, symbol), (end, _) in itertools.pairwise([*sorted(chords), (steps, "")]):
        weights[~chord_tones(symbol), max(begin, 0) : max(end, 0)] = outside
    if scale:
        weights[~scale_tones(scale)] = 0
    return np.tile(weights, (11, 1))[:128]
