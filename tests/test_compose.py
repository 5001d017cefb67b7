"""The built-in corpus: the committed files are what the rules make, and they keep the rules."""

import importlib.util
import io
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import mido
import pytest

from utils import pianoroll

ROOT = Path(__file__).resolve().parents[1]
MIDI = ROOT / "data" / "midi"
STEP = 120  # ticks: a sixteenth at 480 ticks a quarter note


def _load():
    spec = importlib.util.spec_from_file_location("compose", ROOT / "data" / "compose.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compose = _load()


@pytest.fixture(scope="module")
def corpus():
    """File name to (piece, bytes), composed afresh."""
    return compose.make_corpus(pieces=120, seed=1)


@pytest.fixture(scope="module")
def pieces(corpus):
    return [piece for piece, _ in corpus.values()]


def read(data: bytes):
    """Facts and notes (start, end, pitch, velocity, channel) in ticks, read back with mido."""
    midi = mido.MidiFile(file=io.BytesIO(data))
    facts, notes = [], []
    for track in midi.tracks:
        now, open_notes = 0, {}
        for message in track:
            now += message.time
            if message.is_meta:
                facts.append((now, message))
            elif message.type == "note_on":
                key = message.channel, message.note
                if message.velocity:
                    assert key not in open_notes, "a note starts while it sounds"
                    open_notes[key] = now, message.velocity
                else:
                    start, velocity = open_notes.pop(key)
                    notes.append((start, now, message.note, velocity, message.channel))
        assert not open_notes
    return midi, facts, notes


# ---------------------------------------------------------------------------------- the files


def test_committed_files_are_what_the_rules_make(corpus):
    assert compose.differences(MIDI, corpus) == []


def test_a_changed_a_missing_and_a_foreign_file_are_noticed(corpus, tmp_path):
    few = dict(list(corpus.items())[:4])
    for name, (_, data) in few.items():
        compose.write(tmp_path / name, data)
    assert compose.differences(tmp_path, few) == []
    first, second, *_ = few
    (tmp_path / first).write_bytes(few[first][1][:-1])
    (tmp_path / second).unlink()
    (tmp_path / "stray.mid").write_bytes(b"MThd")
    assert compose.differences(tmp_path, few) == sorted([first, second, "stray.mid"])


def test_check_says_so_with_its_exit_status(tmp_path, monkeypatch, capsys):
    arguments = ["compose.py", "--pieces", "3", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert compose.main() == 0
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert compose.main() == 0
    monkeypatch.setattr("sys.argv", [*arguments, "--check", "--seed", "2"])
    assert compose.main() == 1
    assert "differ" in capsys.readouterr().out


def test_a_piece_depends_on_its_number_and_the_seed_alone(corpus):
    piece = compose.compose(37, seed=1)
    assert compose.to_bytes(piece) == corpus[piece.file_name][1]
    assert compose.to_bytes(compose.compose(37, seed=2)) != corpus[piece.file_name][1]


def test_readme_states_the_counts(corpus):
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name, count in compose.counts(corpus).items():
        assert re.search(rf"\| {name} \| {count:,} \|", text), (name, count)


def test_all_files_together_are_under_one_megabyte(corpus):
    assert sum(len(data) for _, data in corpus.values()) < 1_000_000


def test_facts_are_in_the_file(corpus):
    for piece, data in corpus.values():
        midi, facts, notes = read(data)
        by_type = defaultdict(list)
        for now, message in facts:
            by_type[message.type].append((now, message))
        assert midi.ticks_per_beat == 480 and midi.type == 1
        assert [m.key for _, m in by_type["key_signature"]] == [piece.key]
        (now, signature), = by_type["time_signature"]
        assert (signature.numerator, signature.denominator) == piece.style.metre and now == 0
        (now, tempo), = by_type["set_tempo"]
        assert now == 0 and 60 <= round(mido.tempo2bpm(tempo.tempo)) <= 160
        programs = [m.program for t in midi.tracks for m in t if m.type == "program_change"]
        assert programs == [0, 0]
        assert {channel for *_, channel in notes} == {0, 1}


def test_the_picture_of_a_file_holds_its_notes_exactly(corpus):
    for name, (piece, _) in corpus.items():
        picture = pianoroll.read_midi(MIDI / name)
        painted = {tuple(row) for row in pianoroll.notes_of(picture).tolist()}
        assert painted == {(n.start, n.length, n.pitch, n.velocity) for n in piece.notes}, name


# --------------------------------------------------------------------------------- the corpus


def test_all_keys_and_styles_come_round(pieces):
    keys = Counter(piece.key for piece in pieces)
    assert len(keys) == 24 and set(keys.values()) == {5}
    assert len({piece.style.name for piece in pieces}) >= 10
    assert {piece.style.metre for piece in pieces} == {(4, 4), (3, 4), (6, 8)}
    for style in compose.STYLES:
        modes = {piece.key.endswith("m") for piece in pieces if piece.style == style}
        assert modes == {True, False}


def test_no_two_pieces_are_alike(pieces):
    """Not even after transposition: the melodies' rhythms and intervals all differ."""
    def fingerprint(piece):
        notes = [note for note in piece.notes if note.hand == compose.RIGHT]
        return tuple((a.start, b.pitch - a.pitch) for a, b in pairwise(notes))

    assert len({fingerprint(piece) for piece in pieces}) == len(pieces)


def test_register_polyphony_and_density_are_sane(pieces):
    for piece in pieces:
        assert all(21 <= note.pitch <= 108 for note in piece.notes)
        sounding = Counter(s for n in piece.notes for s in range(n.start, n.start + n.length))
        assert max(sounding.values()) <= 8
        assert 1.5 <= sum(sounding.values()) / len(sounding) <= 5.5
        assert 8 <= 16 * len(piece.notes) / max(sounding) <= 26


def test_one_key_of_the_piano_sounds_once_at_a_time(pieces):
    for piece in pieces:
        ends: dict[int, int] = {}
        for note in sorted(piece.notes):
            assert note.start >= ends.get(note.pitch, 0) and note.length >= 1
            ends[note.pitch] = note.start + note.length


# ---------------------------------------------------------------------------------- the music


@pytest.mark.parametrize("symbol, minor, tones, bass", [
    ("I", False, (0, 4, 7), 0),
    ("ii65", False, (2, 5, 9, 0), 5),
    ("V43", False, (7, 11, 2, 5), 2),
    ("V65/V", False, (2, 6, 9, 0), 6),
    ("V7/vi", False, (4, 8, 11, 2), 4),
    ("V42/IV", False, (0, 4, 7, 10), 10),
    ("iv6", False, (5, 8, 0), 8),
    ("V7", True, (7, 11, 2, 5), 7),
    ("viio7/V", True, (6, 9, 0, 3), 6),
    ("iiø65", True, (2, 5, 8, 0), 5),
    ("bII6", True, (1, 5, 8), 5),
    ("V65/III", True, (10, 2, 5, 8), 2),
    ("VI", True, (8, 0, 3), 8),
])
def test_numerals_spell_their_chords(symbol, minor, tones, bass):
    chord = compose.read_chord(symbol, minor)
    assert chord.tones == tones and chord.bass == bass
    assert all(chord.scale[d] == t for d, t in zip(chord.degrees, tones, strict=True))
    assert len(set(chord.scale)) == 7


@pytest.mark.parametrize("minor", [False, True])
def test_every_progression_can_be_read_and_cadences(minor):
    table = compose.MINOR_HARMONY if minor else compose.MAJOR_HARMONY
    for role, texts in table.items():
        for text in texts:
            chords = [compose.read_chord(name, minor) for name in text.replace("|", "").split()]
            assert len(text.split("|")) == (2 if role == "vamp" else 4)
            root = chords[-1].tones[0]
            if role in ("opening", "return"):
                assert root == 7 and 11 in chords[-1].tones, text  # half cadence, leading note up
            if role in ("close", "coda"):
                assert chords[-2].tones[0] == 7 and root == 0, text  # authentic cadence


def test_every_piece_ends_on_its_tonic_chord(pieces):
    for piece in pieces:
        tonic = compose.tonic_pitch(piece.key) % 12
        end = piece.bars * compose.bar_steps(piece.style)
        last = sorted(n.pitch for n in piece.notes if n.start + n.length == end)
        assert last[0] % 12 == last[-1] % 12 == tonic, piece.file_name
        allowed = {tonic, (tonic + 3) % 12, (tonic + 4) % 12, (tonic + 7) % 12}
        assert {pitch % 12 for pitch in last} <= allowed and len(last) >= 4


def test_most_notes_are_of_the_key(pieces):
    """Minor counts its raised sixth and seventh."""
    rates = []
    for piece in pieces:
        tonic = compose.tonic_pitch(piece.key)
        minor = piece.key.endswith("m")
        scale = {*compose.MINOR_SCALE, 9, 11} if minor else set(compose.MAJOR_SCALE)
        rates.append(sum((n.pitch - tonic) % 12 in scale for n in piece.notes) / len(piece.notes))
    assert min(rates) >= 0.9 and max(rates) > 0.99


def melody_rhythms(piece):
    """For each bar, the set of steps in it where the top voice of the right hand strikes."""
    bar = compose.bar_steps(piece.style)
    right = [note for note in piece.notes if note.hand == compose.RIGHT]
    top: dict[int, int] = {}
    for note in right:
        for step in range(note.start, note.start + note.length):
            top[step] = max(note.pitch, top.get(step, 0))
    rhythms = defaultdict(set)
    for note in right:
        if note.pitch == top[note.start]:
            rhythms[note.start // bar].add(note.start % bar)
    return [frozenset(rhythms[number]) for number in range(piece.bars)]


def test_the_motif_comes_back(pieces):
    """Bars 1 and 2 of the melody come again in rhythm, later and more than once."""
    for piece in pieces:
        rhythms = melody_rhythms(piece)
        first = 2 if piece.bars % 4 == 2 else 0  # after a vamp of two bars
        assert rhythms.count(rhythms[first]) >= 3, piece.file_name
        pairs = Counter(pairwise(rhythms))
        assert pairs[rhythms[first], rhythms[first + 1]] >= 2, piece.file_name
