"""Compose the built-in corpus: piano pieces made by rule from a seed, the same bytes everywhere.

    python data/compose.py            # write data/midi/*.mid and print the counts
    python data/compose.py --check    # are the committed files what the rules make? (exit 1 if not)

The lesson in one breath: a *key* and a *style* are dealt to each piece; a *period* is harmonised
(half cadence in the middle, authentic cadence at the end); one-bar *motifs* are laid over the
chords, moved up and down the scale until they fit; the inner voices are *led* by the shortest way;
a *texture* says which of them sounds on which sixteenth; *dynamics* follow phrase and metre.

Two notations are used throughout. Roman numerals with figured bass name the chords ("V65/V").
A string with one sign per sixteenth writes rhythm: a letter strikes, "-" holds, "." is a rest.

Everything lies on the sixteenth grid. The only source of chance is `random.Random(seed).random()`,
the one stream that Python promises never to change, and no step uses a platform's own mathematics.
"""

import argparse
import io
import re
import sys
from itertools import combinations, pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

import mido

STEPS_PER_BEAT, TICKS_PER_STEP = 4, 120  # the sixteenth grid, at 480 ticks a quarter note
RIGHT, LEFT = 0, 1

# ------------------------------------------------------------------------------- tables: keys

MAJOR_KEYS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MINOR_KEYS = ("Cm", "C#m", "Dm", "Ebm", "Em", "Fm", "F#m", "Gm", "G#m", "Am", "Bbm", "Bm")
MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)  # semitones above the tonic of the degrees 0..6
MINOR_SCALE = (0, 2, 3, 5, 7, 8, 10)  # natural; the dominant chord raises its leading note itself

# ---------------------------------------------------------------------------- tables: harmony
# Four bars each; "|" is the bar line. A period is an opening (ends on V) and a close (ends on I);
# the middle section is a sequence that wanders and a return that waits on the dominant.

MAJOR_HARMONY = {
    "opening": (
        "I | V43 I6 | IV ii6 | V", "I | vi | ii6 | V", "I IV64 | I V65 | I ii6 | V",
        "I V6 | vi iii | IV I6 | V", "I | IV | I6 ii65 | V", "I V65 | I | V65/V | V",
        "I I6 | IV | ii V65/V | V", "I | iii | IV | I64 V", "I viio6 | I6 | IV V7/V | V",
        "I V42/IV | IV6 iv6 | I64 V7/V | V",
    ),
    "close": (
        "I | IV | I64 V7 | I", "I | vi ii65 | I64 V7 | I", "I V43 | I6 IV | ii65 V7 | I",
        "I V7/IV | IV iv | I64 V7 | I", "I V6 | vi V7/ii | ii65 V7 | I", "I I6 | IV ii65 | V7 | I",
        "I | V7 vi | ii65 V7 | I", "I6 IV | V7/V | I64 V7 | I",
    ),
    "sequence": (
        "V65/vi | vi | V65/V | V", "V65/ii | ii | V65 | I", "IV V | iii vi | ii V7 | I",
        "I V6 | vi iii6 | IV I6 | ii6 V", "vi iii | IV I | ii vi | V65/V V",
        "IV | iv6 | I6 | V7/ii", "vi ii6 | V I6 | IV viio6 | iii6 vi",
        "vi | V6/vi | vi V42/IV | IV6",
    ),
    "return": (
        "ii6 | I64 V | V7/V | V7", "IV | I64 | V7/V | V7", "ii65 | V | I64 | V7",
        "IV iv | I6 V65/V | V | V7",
    ),
    "vamp": ("I | I", "I | V7", "I IV64 | I V7"),
    "coda": ("I V7/IV | IV iv | V7 | I", "IV | I6 | ii65 V7 | I", "I | IV64 | viio6 V7 | I"),
}
MINOR_HARMONY = {
    "opening": (
        "i | V43 i6 | iv iio6 | V", "i | VI | iv | V", "i V6 | i | iv6 | V", "i | v6 | iv6 | V",
        "i viio6 | i6 | iio6 | V", "i III | VI | iiø65 | V", "i | iv64 i | bII6 | V",
        "i V65/iv | iv | i64 V65/V | V", "i VII6 | III | iv iiø65 | V",
    ),
    "close": (
        "i | iv | i64 V7 | i", "i | VI iiø65 | i64 V7 | i", "i V43 | i6 iv | iiø65 V7 | i",
        "i V7/iv | iv bII6 | i64 V7 | i", "i | VI iv | V7 | i", "i V7/VI | VI iio6 | V7 | i",
        "i v6 | iv6 iiø65 | i64 V7 | i",
    ),
    "sequence": (
        "V65/III | III | V65/iv | iv", "iv V7/III | III VI | iio6 V7 | i", "VI | III6 | iv | i6",
        "III VII6 | i v6 | VI III6 | iv V", "i | VII | VI | V",
        "III V65/III | III | VI V65/VI | VI",
    ),
    "return": (
        "iv | i64 | V7/V | V7", "iiø65 | V | i64 | V7", "VI | iv6 | V65/V | V7",
        "iv bII6 | V42 i6 | viio7/V | V7",
    ),
    "vamp": ("i | i", "i | V7", "i iv64 | i V7"),
    "coda": ("i V7/iv | iv | i64 V7 | i", "VI | iv6 | i64 V7 | I", "i | bII6 | V7 | i"),
}

# ----------------------------------------------------------------------------- tables: rhythm
# Melodic rhythm: cells of half a bar (8 signs) or of a bar (12 signs), joined until a bar is full.

RHYTHMS = {
    "hymn": ("x---x---", "x---x---", "x-------", "x---x-x-", "x-----x-"),
    "song": ("x---x---", "x-----x-", "x---x-x-", "x-x-x---", "x-------", "..x-x-x-"),
    "brisk": ("x-x-x-x-", "x---x-x-", "x-x-x---", "x--xx-x-", "x-x.x-x.", "x-xxx---", "x---x---"),
    "ragged": ("x-xx-x--", ".xx-x-x-", "xx-xx---", "x-x---x-", "x--x--x-", "x-x-x-x-"),
    "cool": ("..x-x-x-", "x-x---x-", "x---..x-", "x--x--x-", "x-x-x---", "..x---x-"),
    "waltz": ("x-------x---", "x---x---x---", "x-----x-x---", "x---x-x-x-x-", "x-x-x-x-x---",
              "x-------x-x-", "....x---x---"),
    "minuet": ("x---x-x-x-x-", "x-x-x-x-x---", "x---x---x-x-", "x-x-x---x---", "x-x-x.x.x.x.",
               "x--xx-x-x---"),
    "rocking": ("x---x-x---x-", "x-----x---x-", "x---x-x-----", "x-x-x-x-----", "x--xx-x---x-",
                "x-----x-x-x-"),
}
HALF_CADENCE = {
    16: ("x---x-------....", "x-------x---....", "x---x---........", "x-----x-x---...."),
    12: ("x---x---....", "x-------....", "x-----x-....", "x---x-......"),
}
FULL_CADENCE = {
    16: ("x-----------....", "x---x---........", "x-------........", "x-x-x---........"),
    12: ("x-------....", "x---x---....", "x-x-x---....", "x-----......"),
}

# ---------------------------------------------------------------------------- tables: texture
# One string for each layer of a bar. b bass, f and t the chord's fifth and third beside it, w a
# step that leads into the next bass; 1 2 3 the inner voices, low to high, c all, u the upper two.


class Style(NamedTuple):
    name: str
    metre: tuple[int, int]
    tempo_bpm: tuple[int, int]  # quarter notes a minute: slowest, fastest
    rhythm: str
    textures: tuple[tuple[str, ...], ...]  # main section, middle section, cadence bars
    bass: tuple[int, int] = (36, 50)  # MIDI pitches: lowest, highest
    inner: tuple[int, int] = (52, 65)
    centre: int = 74  # of the melody
    sevenths: bool = False  # colour the plain chords
    full_right_hand: bool = False  # a chord note below the long notes of the melody
    suspensions: bool = False  # in the inner voices


STYLES = (
    Style("chorale", (4, 4), (66, 88), "hymn",
          (("b-------b---w---", "c-------c-------"), ("b---w---b---w---", "c-------c-------"),
           ("b-----------....", "c-----------....")),
          bass=(40, 53), inner=(55, 68), centre=75, suspensions=True),
    Style("sonatina", (4, 4), (108, 144), "brisk",
          (("b-3-2-3-1-3-2-3-",), ("b---....b---....", "..c.c.c...c.c.c."),
           ("b---f---b---....", "c---u---........")),
          bass=(43, 55), inner=(55, 68), centre=78),
    Style("nocturne", (4, 4), (60, 80), "song",
          (("b---------------", "..1-2-3-2-1-2-3-"), ("b-------f-------", "..1-3-2-..1-3-2-"),
           ("b---------------", "..1-2-3---------")),
          bass=(33, 47), inner=(52, 66), centre=77),
    Style("waltz", (3, 4), (132, 160), "waltz",
          (("b-----------", "....c-..c-.."), ("b---f---w---", "....u---u-.."),
           ("b---f---....", "....c---....")),
          bass=(36, 50), centre=76),
    Style("ragtime", (4, 4), (84, 112), "ragged",
          (("b-..f-..b-..f-..", "..c-..c-..c-..c-"), ("b-..b-..b-..w-..", "..c-..c-..c-..c-"),
           ("b-..c-..b---....",)),
          bass=(33, 46), inner=(53, 65), centre=76, full_right_hand=True),
    Style("ballad", (4, 4), (64, 88), "song",
          (("b-----f-b-----w-", "....c-----..c---"), ("b-------f-------", "..1-2-3---1-2-3-"),
           ("b---------------", "....c-----------")),
          bass=(33, 47), inner=(52, 64), centre=75, sevenths=True, full_right_hand=True),
    Style("walking", (4, 4), (112, 152), "cool",
          (("b---f---b---w---", "......c-......c-"), ("b---f---b---w---", "..c-......c---.."),
           ("b---f---b---....", "......c---......")),
          bass=(33, 48), inner=(53, 65), centre=75, sevenths=True),
    Style("barcarolle", (6, 8), (90, 120), "rocking",
          (("b-----------", "..1-2-3-2-1-"), ("b-----f-----", "..2-u-..2-u-"),
           ("b-------....", "..1-2-3-....")),
          bass=(36, 48), inner=(52, 65), centre=76),
    Style("minuet", (3, 4), (104, 132), "minuet",
          (("b---t---w---",), ("b-------....", "..1-2-3-2-.."), ("b---f---b---",)),
          bass=(47, 58), inner=(59, 70), centre=76),
    Style("march", (4, 4), (108, 126), "brisk",
          (("b-..f-..b-..f-..", "....c-......c.c."), ("b---b---b---w---", "..c...c...c...c."),
           ("b-..c-..b---....",)),
          bass=(36, 49), inner=(53, 65), centre=76, full_right_hand=True),
    Style("habanera", (4, 4), (76, 104), "song",
          (("b-----f-b---f---", "...c--..c---c---"), ("b-----b-f-----w-", "....c---....c---"),
           ("b-----f-b-------", "....c-----......")),
          bass=(36, 49), inner=(53, 65), centre=75),
    Style("prelude", (4, 4), (66, 88), "hymn",
          (("b-------b-------", ".123212312321232"), ("b1232123b1232123",),
           ("b---------------", ".123212321------")),
          bass=(36, 48), inner=(52, 67), centre=77),
)

PLANS = {  # eight bars: a and b motifs, i motif a upside down, h half cadence, c full cadence
    "A": ("aabhaabc", "abahabbc", "abihabac", "aabhabic"),
    "B": ("iibhiabh", "bbahbbih", "ibihabbh"),
    "coda": ("aabc", "abic"),
}
FORMS = {16: (("", "AABA", "coda"), ("", "AABA", ""), ("vamp", "ABAA", "")),
         12: (("vamp", "AABABA", ""), ("", "AABABA", ""), ("vamp", "AABA", "coda"))}
PHRASE_ARC = (0, 3, 5, 1, 2, 6, 9, 0, -4)  # loudness at the nine bar lines of eight bars
SECTION_LEVEL = {"A": 68, "B": 80, "coda": 62, "vamp": 62}
PART_LEVEL = {"melody": 16, "bass": 3, "inner": -7, "filler": 2}


class Dice:
    """All chance in one place, drawn from the one stream that is the same on every machine."""

    def __init__(self, seed: int):
        self.random = Random(seed).random

    def between(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))

    def pick(self, options):
        return options[self.between(0, len(options) - 1)]

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def shuffled(self, items) -> list:
        items = list(items)
        return [items.pop(self.between(0, len(items) - 1)) for _ in range(len(items))]


# ------------------------------------------------------------------------------------ harmony


class Chord(NamedTuple):
    degrees: tuple[int, ...]  # 0..6 of root, third, fifth (and seventh)
    tones: tuple[int, ...]  # the same in semitones above the tonic, 0..11
    bass: int  # semitones above the tonic
    scale: tuple[int, ...]  # the seven degrees in semitones, bent to hold the chord's own notes


class Span(NamedTuple):
    start: int  # steps
    end: int
    chord: Chord


NUMERAL = re.compile(r"(b?)([iIvV]+)([oø]?)(7|65|64|6|43|42)?(?:/(\w+))?")
INVERSION = {None: 0, "7": 0, "6": 1, "65": 1, "64": 2, "43": 2, "42": 3}


def read_chord(symbol: str, minor: bool) -> Chord:
    """A chord from its numeral: "V65/V" is the dominant seventh of the dominant on its third."""
    flat, numeral, diminished, figure, target = NUMERAL.fullmatch(symbol).groups()
    scale = MINOR_SCALE if minor else MAJOR_SCALE
    root_degree = ("I", "II", "III", "IV", "V", "VI", "VII").index(numeral.upper())
    major_third = numeral.isupper()
    root = scale[root_degree] - bool(flat)
    if diminished and root_degree == 6:
        root = 11  # built on the leading note, in minor too
    intervals = [0, 4 if major_third else 3, 6 if diminished else 7]
    if figure in ("7", "65", "43", "42"):
        major_seventh = major_third and root_degree != 4
        intervals.append(9 if diminished == "o" else 11 if major_seventh else 10)
    if target:
        goal = read_chord(target, minor)
        root_degree, root = root_degree + goal.degrees[0], root + goal.tones[0]
    degrees = tuple((root_degree + 2 * n) % 7 for n in range(len(intervals)))
    tones = tuple((root + interval) % 12 for interval in intervals)
    bent = list(scale)
    for degree, tone in zip(degrees, tones, strict=True):
        bent[degree] = tone
    return Chord(degrees, tones, tones[INVERSION[figure]], tuple(bent))


def read_harmony(text: str, style: Style, minor: bool) -> list[Span]:
    """Spans of "I | IV V7"; two chords share a bar as its metre does (2 + 1 beats in 3/4)."""
    bar = bar_steps(style)
    half = 8 if style.metre != (6, 8) else 6
    spans = []
    for number, symbols in enumerate(text.split("|")):
        names = symbols.split()
        if style.sevenths:
            names = [name + "7" if name in ("I", "ii", "IV", "vi", "i", "iv", "VI") else name
                     for name in names]
        start = number * bar
        cuts = [start, start + bar] if len(names) == 1 else [start, start + half, start + bar]
        spans += [Span(*cut, read_chord(name, minor))
                  for cut, name in zip(pairwise(cuts), names, strict=True)]
    return spans


def chord_at(spans: list[Span], step: int) -> Chord:
    return next(span.chord for span in spans if span.start <= step < span.end)


# ------------------------------------------------------------------------------------- melody


class Tone(NamedTuple):
    """A note of the melody, in steps, with its pitch as a scale degree (7 is an octave up)."""

    start: int
    length: int
    degree: int


def bar_steps(style: Style) -> int:
    return style.metre[0] * 16 // style.metre[1]


def read_rhythm(text: str) -> list[tuple[int, int]]:
    """Start and length of each note of "x---x-x-"."""
    return [(m.start(), len(m.group())) for m in re.finditer(r"x-*", text)]


def invent_rhythm(dice: Dice, style: Style) -> str:
    """A bar of rhythm with three to nine notes."""
    while True:
        text = ""
        while len(text) < bar_steps(style):
            text += dice.pick(RHYTHMS[style.rhythm])
        if 3 <= text.count("x") <= 9:
            return text


def invent_contour(dice: Dice, count: int) -> list[int]:
    """Degrees relative to the first note: mostly steps; a leap turns back by step."""
    contour, last = [0], 0
    while len(contour) < count:
        move = dice.pick((-1, 1)) if abs(last) < 2 else (-1 if last > 0 else 1)
        if abs(last) < 2 and dice.chance(0.4):
            move = dice.pick((0, 2, -2, 2, 3, 4, -3))
        if -4 <= contour[-1] + move <= 5:
            contour.append(contour[-1] + move)
            last = move
    return contour


def is_foreign(degree: int, chord: Chord) -> bool:
    return degree % 7 not in chord.degrees


def fit(rhythm, contour, start, spans, before, aim, homeward: bool) -> list[Tone]:
    """Lay a motif over the harmony: try every height, keep the best, then mend what still rubs."""
    chords = [chord_at(spans, start + onset) for onset, _ in rhythm]

    def cost(first: int) -> int:
        degrees = [first + offset for offset in contour]
        weights = [length + 4 * (onset == 0) for onset, length in rhythm]
        rub = sum(weight for degree, chord, weight in zip(degrees, chords, weights, strict=True)
                  if is_foreign(degree, chord))
        leap = abs(first - before)
        doubled_bass = sum(chord.scale[degree % 7] == chord.bass and onset % 4 == 0 for
                           degree, chord, (onset, _) in zip(degrees, chords, rhythm, strict=True))
        mean_error = abs(sum(degrees) - aim * len(degrees)) // len(degrees)
        far_from_home = homeward and (degrees[-1] + 1) % 7 > 2  # better beside the tonic: 7, 1, 2
        return (2 * rub + leap + 4 * max(0, leap - 3) + 3 * mean_error + 4 * doubled_bass
                + 8 * far_from_home)

    first = min(range(aim - 6, aim + 7), key=cost)
    tones = [Tone(start + onset, length, first + offset)
             for (onset, length), offset in zip(rhythm, contour, strict=True)]
    return mend(tones, chords, start)


def mend(tones: list[Tone], chords: list[Chord], bar_start: int) -> list[Tone]:
    """A note foreign to the chord stays only off the bar line and between two steps: it passes."""
    mended = []
    for index, (tone, chord) in enumerate(zip(tones, chords, strict=True)):
        if is_foreign(tone.degree, chord):
            inside = 0 < index < len(tones) - 1 and tone.start > bar_start and tone.length <= 4
            steps = inside and (abs(tone.degree - mended[-1].degree) == 1
                                and abs(tones[index + 1].degree - tone.degree) == 1)
            if not steps:
                near = (tone.degree + n for n in (0, -1, 1, -2, 2))
                tone = tone._replace(degree=next(d for d in near if not is_foreign(d, chord)))
        mended.append(tone)
    return mended


def cadence(rhythm, start, spans, before, aim, tonic: bool) -> list[Tone]:
    """End a phrase on a long chord note (the tonic at a close), reached by step from above."""
    chord = chord_at(spans, start + rhythm[-1][0])
    goals = [d for d in range(before - 4, before + 5)
             if (d % 7 == 0 if tonic else not is_foreign(d, chord))]
    goal = min(goals, key=lambda d: 2 * abs(d - (before - 1)) + abs(d - aim))
    sigh = [goal + len(rhythm) - 1 - n for n in range(len(rhythm))]
    if len(sigh) == 3:
        sigh[1] = goal - 1  # turn round the goal: above, below, home
    return [Tone(start + onset, length, degree)
            for (onset, length), degree in zip(rhythm, sigh, strict=True)]


def write_line(dice, style, plan, motifs, spans, aim, before) -> list[Tone]:
    """The melody of a section, bar by bar as its plan says."""
    bar, line = bar_steps(style), []
    for number, letter in enumerate(plan):
        start = number * bar
        if letter in "hc":
            table = HALF_CADENCE if letter == "h" else FULL_CADENCE
            rhythm = read_rhythm(dice.pick(table[bar]))
            line += cadence(rhythm, start, spans, before, aim, letter == "c")
        else:
            rhythm, contour = motifs["a" if letter == "i" else letter]
            if letter == "i":
                contour = [-offset for offset in contour]
            height = (0, 1, 2, 0, 0, 2, 3, 0)[number]
            line += fit(rhythm, contour, start, spans, before, aim + height,
                        plan[number + 1] == "c")
        before = line[-1].degree
    return line


def add_pickups(line: list[Tone], phrase_starts: set[int], count: int) -> list[Tone]:
    """Before a phrase, climb by step into its first note, but leave a breath of two steps."""
    result, end = [], 0
    for tone in line:
        if tone.start in phrase_starts:
            room = (tone.start - end - 2) // 2
            result += [Tone(tone.start - 2 * n, 2, tone.degree - n)
                       for n in range(min(count, room), 0, -1)]
        result.append(tone)
        end = tone.start + tone.length
    return result


def vary(dice: Dice, line: list[Tone], keep_steps: int, amount: float) -> list[Tone]:
    """A repeat with ornaments; the first `keep_steps`, where the motif shows itself, stay plain."""
    result: list[Tone] = []
    for tone, after in zip(line, [*line[1:], *line[-1:]], strict=True):
        start, length, degree = tone
        gap, half = after.degree - degree, length // 2
        touching = after.start == start + length
        if start < keep_steps or length < 4 or length > 8 or not dice.chance(amount):
            result.append(tone)
        elif result and result[-1].degree == degree + 1 and start % 8 == 0:  # suspension
            result += [Tone(start, half, degree + 1), Tone(start + half, length - half, degree)]
        elif touching and abs(gap) == 2:  # passing note
            result += [Tone(start, half, degree),
                       Tone(start + half, length - half, degree + gap // 2)]
        elif touching and abs(gap) == 3:  # run of two
            step = gap // 3
            result += [Tone(start, length - 2, degree), Tone(start + length - 2, 1, degree + step),
                       Tone(start + length - 1, 1, degree + 2 * step)]
        elif dice.chance(0.5):  # mordent
            result += [Tone(start, 1, degree), Tone(start + 1, 1, degree + 1),
                       Tone(start + 2, length - 2, degree)]
        else:  # repeated note
            result += [Tone(start, half, degree), Tone(start + half, length - half, degree)]
    return result


def melody_pitches(line: list[Tone], spans: list[Span], tonic: int) -> list[int]:
    """Degrees become pitches in the scale of their chord; a passing 6 rises beside a raised 7."""
    pitches = []
    chords = [chord_at(spans, tone.start) for tone in line]
    for index, (tone, chord) in enumerate(zip(line, chords, strict=True)):
        pitch = tonic + chord.scale[tone.degree % 7] + 12 * (tone.degree // 7)
        if tone.degree % 7 == 5 and is_foreign(tone.degree, chord):
            sevenths = [chords[n].scale[6] for n in (index - 1, index + 1)
                        if 0 <= n < len(line) and line[n].degree == tone.degree + 1]
            pitch += any(seventh - chord.scale[5] == 3 for seventh in sevenths)
        pitches.append(pitch)
    return pitches


# ------------------------------------------------------------------------------ accompaniment


class Sound(NamedTuple):
    """A note before its loudness and hand are known."""

    start: int  # steps
    length: int
    pitch: int  # MIDI
    part: str  # melody, filler, bass, inner


class Voicing(NamedTuple):
    span: Span
    bass: int  # MIDI pitches
    inner: tuple[int, ...]


def lead_voices(spans: list[Span], style: Style, tonic: int) -> list[Voicing]:
    """A bass that moves little, and three inner voices that take the shortest lawful way."""
    voicings: list[Voicing] = []
    bass, inner = sum(style.bass) // 2, tuple(style.inner[0] + n for n in (1, 5, 9))
    for span in spans:
        centre = sum(style.bass) // 2
        roots = [p for p in range(style.bass[0], style.bass[1] + 1)
                 if (p - tonic) % 12 == span.chord.bass]
        new_bass = min(roots, key=lambda p: 2 * abs(p - bass) + abs(p - centre))
        pool = [p for p in range(style.inner[0], style.inner[1] + 1)
                if (p - tonic) % 12 in span.chord.tones and p > new_bass]

        def cost(voices, chord=span.chord, old=(bass, *inner), low=new_bass):
            new = (low, *voices)
            sounding = [(p - tonic) % 12 for p in new]
            motion = sum(abs(a - b) for a, b in zip(new[1:], old[1:], strict=True))
            missing = sum(weight for tone, weight in zip(chord.tones, (5, 14, 3, 9), strict=False)
                          if tone not in sounding)
            doubled = sounding.count(11) > 1 or sounding.count(chord.tones[1]) > 2
            moves = combinations(zip(old, new, strict=True), 2)
            parallel = sum((b - a) % 12 in (0, 7) and (d - c - b + a) % 12 == 0 and a != c
                           for (a, c), (b, d) in moves)
            crowded = sum(b - a < 3 or (a < 48 and b - a < 5) for a, b in pairwise(new))
            return motion + missing + 10 * doubled + 6 * parallel + 8 * crowded

        bass, inner = new_bass, min(combinations(pool, 3), key=cost)
        voicings.append(Voicing(span, bass, inner))
    return voicings


def bass_pitch(sign: str, voicing: Voicing, following: Voicing, lowest: int, tonic: int) -> int:
    """The pitch of a sign: b bass, f fifth or t third (else root), w a step into what follows."""
    chord, bass = voicing.span.chord, voicing.bass
    if sign in "ft":
        wanted = (chord.tones[0], chord.tones[1 if sign == "t" else 2])
        near = [p for p in range(max(lowest, bass - 7), bass + 10)
                if (p - tonic) % 12 in wanted and (p - bass) % 12]
        return min(near, key=lambda p: ((p - tonic) % 12 == wanted[0], p > bass, abs(p - bass)))
    if sign == "w":
        side = 1 if bass > following.bass else -1
        steps = [following.bass + side * n for n in (1, 2)]
        in_scale = [p for p in steps[::-1] if (p - tonic) % 12 in chord.scale]
        return (in_scale or steps)[0]
    return bass


def play_layer(layer, bar_start, voicings, style, tonic) -> list[Sound]:
    """One texture string over one bar; what is held strikes again when the chord changes."""
    notes, strikes, sign = [], [], "."
    for step, char in enumerate(layer, bar_start):
        index = next(n for n, v in enumerate(voicings) if v.span.start <= step < v.span.end)
        new_chord = step == voicings[index].span.start
        if char == "-" and not (new_chord and sign != "."):
            continue
        sign = sign if char == "-" else "b" if new_chord and char in "ftw" else char
        strikes.append((step, sign, index))
    ends = [step for step, _, _ in strikes[1:]] + [bar_start + len(layer)]
    for (step, sign, index), end in zip(strikes, ends, strict=True):
        voicing, following = voicings[index], voicings[min(index + 1, len(voicings) - 1)]
        if sign in "bftw":
            pitch = bass_pitch(sign, voicing, following, style.bass[0], tonic)
            notes.append(Sound(step, end - step, pitch, "bass"))
        elif sign != ".":
            chosen = {"c": voicing.inner, "u": voicing.inner[1:]}.get(sign)
            chosen = chosen or (voicing.inner[int(sign) - 1],)
            notes += [Sound(step, end - step, pitch, "inner") for pitch in chosen]
    return notes


def suspend(sounds: list[Sound]) -> list[Sound]:
    """Where an inner voice steps down into a long note, it comes a beat late: it is suspended."""
    late = list(sounds)
    for i, new in enumerate(sounds):
        if new.part != "inner" or new.length < 8 or new.start % 16:
            continue
        old = [j for j, sound in enumerate(sounds) if sound.part == "inner"
               and sound.start + sound.length == new.start and sound.pitch - new.pitch in (1, 2)]
        rubs = any(s.start == new.start and s.pitch - new.pitch in (1, 2) for s in sounds)
        if old and not rubs:
            late[old[0]] = sounds[old[0]]._replace(length=sounds[old[0]].length + 4)
            late[i] = new._replace(start=new.start + 4, length=new.length - 4)
    return late


# ---------------------------------------------------------------------------- the whole piece


class Note(NamedTuple):
    start: int  # steps
    length: int
    pitch: int  # MIDI
    velocity: int
    hand: int


class Piece(NamedTuple):
    number: int
    style: Style
    key: str  # "F#m"
    tempo_bpm: int
    bars: int
    notes: list[Note]

    @property
    def file_name(self) -> str:
        tonic = self.key.removesuffix("m").replace("b", "-flat").replace("#", "-sharp").lower()
        mode = "minor" if self.key.endswith("m") else "major"
        return f"{self.number:03d}_{self.style.name}_{tonic}-{mode}.mid"


class Section(NamedTuple):
    letter: str
    start: int  # steps
    steps: int
    level: int  # velocity


def deal_key(number: int, seed: int) -> str:
    """Each run of 24 pieces goes once through all the keys, in an order of its own."""
    order = Dice(seed * 1_000_003 + number // 24).shuffled(MAJOR_KEYS + MINOR_KEYS)
    return order[number % 24]


def tonic_pitch(key: str) -> int:
    """The tonic's MIDI pitch from 58 (B flat below middle C) to 69."""
    pitch_class = (MINOR_KEYS if key.endswith("m") else MAJOR_KEYS).index(key)
    return 58 + (pitch_class - 58) % 12


def compose(number: int, seed: int) -> Piece:
    """One piece: harmony and melody of each section, the sections in a row, then all the voices."""
    dice = Dice(seed * 1_000_003 + 1_000 + number)
    style, key = STYLES[number % len(STYLES)], deal_key(number, seed)
    minor, tonic, bar = key.endswith("m"), tonic_pitch(key), bar_steps(style)
    before, form, after = dice.pick(FORMS[bar])
    harmony = invent_harmony(dice, style, minor)
    melody = invent_melody(dice, style, harmony, tonic)

    sections, spans, line, start = [], [], [], 0
    letters = [letter for letter in (before, *form, after) if letter]
    for index, letter in enumerate(letters):
        steps, again = harmony[letter][-1].end, letters[:index].count(letter)
        level = SECTION_LEVEL[letter] + dice.between(-3, 3) + (0, dice.pick((-8, 5)), 8, 4)[again]
        sections.append(Section(letter, start, steps, level))
        spans += [Span(s.start + start, s.end + start, s.chord) for s in harmony[letter]]
        line += [tone._replace(start=tone.start + start)
                 for tone in vary(dice, melody[letter], 2 * bar, 0.3 * again + 0.1)]
        start += steps
    last = spans[-1].chord  # the last chord is a plain triad, the last note as long as its bar
    triad = last._replace(degrees=last.degrees[:3], tones=last.tones[:3])
    spans[-1] = spans[-1]._replace(chord=triad)
    phrase_starts = {s.start + n for s in sections for n in range(0, s.steps, 4 * bar)}
    line = add_pickups(line, phrase_starts, dice.between(0, 3))
    line[-1] = line[-1]._replace(length=start - line[-1].start)

    sounds = [Sound(tone.start, tone.length, pitch, "melody")
              for tone, pitch in zip(line, melody_pitches(line, spans, tonic), strict=True)]
    sounds += accompany(sections, spans, style, tonic)
    sounds += second_voice(dice, sounds, sections, spans, style, tonic)
    right = ("melody", "filler", "inner") if style.suspensions else ("melody", "filler")
    notes = [Note(*sound[:3], loudness(dice, sound, sections, style),
                  RIGHT if sound.part in right else LEFT) for sound in sounds]
    return Piece(number, style, key, dice.between(*style.tempo_bpm), start // bar, untangle(notes))


def invent_harmony(dice: Dice, style: Style, minor: bool) -> dict[str, list[Span]]:
    """The chords of each kind of section."""
    table = MINOR_HARMONY if minor else MAJOR_HARMONY
    roles = {"A": ("opening", "close"), "B": ("sequence", "return"), "coda": ("coda",),
             "vamp": ("vamp",)}
    return {letter: read_harmony(" | ".join(dice.pick(table[role]) for role in names), style, minor)
            for letter, names in roles.items()}


def invent_melody(dice: Dice, style: Style, harmony, tonic: int) -> dict[str, list[Tone]]:
    """Two motifs, and the line that each kind of section makes of them; none over a vamp."""
    motifs = {}
    for letter in "ab":
        rhythm = read_rhythm(invent_rhythm(dice, style))
        motifs[letter] = rhythm, invent_contour(dice, len(rhythm))
    heights = (tonic + 12 * (d // 7) + MAJOR_SCALE[d % 7] for d in range(14))
    aim = next(d for d, pitch in enumerate(heights) if pitch >= style.centre)
    lines = {"vamp": []}
    for letter, height in (("A", 0), ("B", 2), ("coda", -1)):
        plan = dice.pick(PLANS[letter])
        lines[letter] = write_line(dice, style, plan, motifs, harmony[letter], aim + height, aim)
    return lines


def accompany(sections, spans, style, tonic) -> list[Sound]:
    """Bass and inner voices of the whole piece, bar by bar in the section's texture."""
    bar, voicings = bar_steps(style), lead_voices(spans, style, tonic)
    main, middle, closing = style.textures
    notes = []
    for section in sections:
        end = section.start + section.steps
        texture = middle if section.letter == "B" else main
        for start in range(section.start, end, bar):
            fourth_bar = (start + bar - section.start) % (4 * bar) == 0
            for layer in closing if fourth_bar else texture:
                notes += play_layer(layer, start, voicings, style, tonic)
    final_bar = spans[-1].end - bar
    notes = [note for note in notes if note.start < final_bar]
    final = voicings[-1]
    low = final.bass - 12 if final.bass - 12 >= 28 else final.bass
    notes += [Sound(final_bar, bar, pitch, "bass") for pitch in sorted({low, final.bass})]
    notes += [Sound(final_bar, bar, pitch, "inner") for pitch in final.inner]
    return suspend(notes) if style.suspensions else notes


def second_voice(dice, sounds, sections, spans, style, tonic) -> list[Sound]:
    """A chord note a third to a sixth below the long notes of the melody, in some places."""
    notes = []
    duet = dice.chance(0.4)
    for start, length, pitch, part in sounds:
        if part != "melody" or length < 4 or start % 4:
            continue
        letter = next(s.letter for s in sections if s.start <= start < s.start + s.steps)
        if not (style.full_right_hand or (duet and letter == "B")) or not dice.chance(0.75):
            continue
        tones = chord_at(spans, start).tones
        below = [p for p in range(pitch - 3, pitch - 10, -1) if (p - tonic) % 12 in tones]
        if below and below[0] > style.inner[1]:
            notes.append(Sound(start, length, below[0], "filler"))
    return notes


def loudness(dice, sound, sections, style) -> int:
    """Velocity: section and phrase, then metre and syncopation, voice and height, then a touch."""
    start, length, pitch, part = sound
    bar, beat = bar_steps(style), 6 if style.metre == (6, 8) else 4
    section = next(s for s in sections if s.start <= start < s.start + s.steps)
    number, step = divmod(start - section.start, bar)
    low, high = PHRASE_ARC[number], PHRASE_ARC[number + 1]
    arc = low + (high - low) * step // bar
    if step == 0:
        accent = 7
    elif step % beat == 0:
        accent = 3 if step == bar // 2 else 0
    else:
        accent = 4 if length >= 4 and part == "melody" else -5 - step % 2
    height = (pitch - style.centre) // 2 if part == "melody" else 0
    touch = dice.between(-3, 3)
    return max(20, min(120, section.level + PART_LEVEL[part] + arc + accent + height + touch))


def untangle(notes: list[Note]) -> list[Note]:
    """One key of the piano sounds once at a time: the melody keeps it, an older note lets go."""
    kept: list[Note] = []
    for note in sorted(notes, key=lambda n: (n.hand, n.start, -n.velocity, n.pitch)):
        same = [k for k in kept if k.pitch == note.pitch]
        if any(k.start <= note.start < k.start + k.length for k in same):
            continue
        later = [k.start - note.start for k in same if k.start > note.start]
        kept.append(note._replace(length=min([note.length, *later])))
    return sorted(kept)


# ------------------------------------------------------------------------------------- files


def to_bytes(piece: Piece) -> bytes:
    """The piece as a Standard MIDI File: a track of facts, then the right and the left hand."""
    numerator, denominator = piece.style.metre
    facts = mido.MidiTrack([
        mido.MetaMessage("copyright", text="CC0 1.0"),
        mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator),
        mido.MetaMessage("key_signature", key=piece.key),
        mido.MetaMessage("set_tempo", tempo=60_000_000 // piece.tempo_bpm),
    ])
    midi = mido.MidiFile(type=1, ticks_per_beat=STEPS_PER_BEAT * TICKS_PER_STEP, tracks=[facts])
    for hand, name in ((RIGHT, "right hand"), (LEFT, "left hand")):
        piano = mido.Message("program_change", channel=hand, program=0)
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name), piano])
        events = []
        for note in piece.notes:
            if note.hand == hand:
                events.append((note.start, 1, note.pitch, note.velocity))
                events.append((note.start + note.length, 0, note.pitch, 0))  # ends go first
        now = 0
        for step, _, pitch, velocity in sorted(events):
            now, wait = step, (step - now) * TICKS_PER_STEP
            track.append(mido.Message("note_on", channel=hand, note=pitch, velocity=velocity,
                                      time=wait))
        midi.tracks.append(track)
    buffer = io.BytesIO()
    midi.save(file=buffer)
    return buffer.getvalue()


def make_corpus(pieces: int, seed: int) -> dict[str, tuple[Piece, bytes]]:
    corpus = {}
    for number in range(pieces):
        piece = compose(number, seed)
        corpus[piece.file_name] = piece, to_bytes(piece)
    return corpus


def write(path: Path, data: bytes) -> None:
    """All or nothing: write beside the file, then rename."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)


def differences(folder: Path, corpus) -> list[str]:
    """Names of files that are missing, different, or not of the corpus."""
    there = {path.name: path.read_bytes() for path in folder.glob("*.mid")}
    made = {name: data for name, (_, data) in corpus.items()}
    return sorted(name for name in there.keys() | made.keys() if there.get(name) != made.get(name))


def counts(corpus) -> dict[str, int]:
    """The counts that data/README.md states; a window counts when a note starts in it."""
    starts = [[note.start for note in piece.notes] for piece, _ in corpus.values()]
    return {
        "pieces": len(corpus),
        "bars": sum(piece.bars for piece, _ in corpus.values()),
        "notes": sum(len(piece.notes) for piece, _ in corpus.values()),
        "windows of 128 steps": sum(len({step // 128 for step in piece}) for piece in starts),
        "windows of 300 steps": sum(len({step // 300 for step in piece}) for piece in starts),
        "bytes": sum(len(data) for _, data in corpus.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Compose the built-in corpus.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pieces", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "midi")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    corpus = make_corpus(arguments.pieces, arguments.seed)
    if arguments.check:
        wrong = differences(arguments.out, corpus)
        print(f"{len(wrong)} files differ from what the rules make", *wrong, sep="\n  ")
        return 1 if wrong else 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, (_, data) in corpus.items():
        write(arguments.out / name, data)
    for name, count in counts(corpus).items():
        print(f"{name:22} {count:8,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
