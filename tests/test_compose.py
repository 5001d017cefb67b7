"""The built-in corpus: the committed files are what the rules make, and they keep the rules."""

import importlib.util
import io
from collections import Counter, defaultdict

import mido
import pytest

from real_midi import ROOT
from utils import pianoroll

MIDI = ROOT / "data" / "midi"
spec = importlib.util.spec_from_file_location("compose", ROOT / "data" / "compose.py")
compose = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compose)


@pytest.fixture(scope="module")
def corpus():
    """File name to (piece, bytes), composed afresh."""
    return compose.make_corpus(pieces=120, seed=1)


@pytest.fixture(scope="module")
def pieces(corpus):
    return [piece for piece, _ in corpus.values()]


def test_committed_files_are_what_the_rules_make(corpus):
    assert compose.differences(MIDI, corpus) == []
    assert sum(len(data) for _, data in corpus.values()) < 1_000_000


def test_a_changed_a_missing_and_a_foreign_file_are_noticed(tmp_path, monkeypatch, capsys):
    arguments = ["compose.py", "--pieces", "3", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert compose.main() == 0
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert compose.main() == 0
    first, second, _ = sorted(tmp_path.iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    (tmp_path / "stray.mid").write_bytes(b"MThd")
    assert compose.main() == 1 and "differ" in capsys.readouterr().out
    few = compose.make_corpus(pieces=3, seed=1)
    assert compose.differences(tmp_path, few) == sorted([first.name, second.name, "stray.mid"])


def test_readme_states_the_counts(corpus):
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name, count in compose.counts(corpus).items():
        assert f"| {name} | {count:,} |" in text


def test_facts_are_in_the_file(corpus):
    for piece, data in corpus.values():
        midi = mido.MidiFile(file=io.BytesIO(data))
        found = defaultdict(list)
        for message in mido.merge_tracks(midi.tracks):
            found[message.type].append(message)
        assert midi.ticks_per_beat == 480 and midi.type == 1
        assert [m.key for m in found["key_signature"]] == [piece.key]
        assert [(m.numerator, m.denominator) for m in found["time_signature"]] == [
            piece.style.metre]
        (tempo,) = found["set_tempo"]
        assert 60 <= round(mido.tempo2bpm(tempo.tempo)) <= 160
        assert [m.program for m in found["program_change"]] == [0, 0]


def test_the_image_of_a_file_holds_its_notes_exactly(corpus):
    for name, (piece, _) in corpus.items():
        notes = pianoroll.notes_of(pianoroll.read_midi(MIDI / name))
        assert {tuple(note) for note in notes.tolist()} == {
            (n.start, n.length, n.pitch, n.velocity) for n in piece.notes}, name


def test_all_keys_styles_and_metres_occur(pieces):
    keys = Counter(piece.key for piece in pieces)
    assert len(keys) == 24 and set(keys.values()) == {5}
    assert {piece.style.metre for piece in pieces} == {(4, 4), (3, 4), (6, 8)}
    assert {(piece.style.name, piece.key.endswith("m")) for piece in pieces} == {
        (style.name, minor) for style in compose.STYLES for minor in (False, True)}


def test_every_piece_ends_on_its_tonic_chord(pieces):
    for piece in pieces:
        tonic = compose.tonic_pitch(piece.key)
        end = piece.bars * compose.bar_steps(piece.style)
        last = sorted(n.pitch - tonic for n in piece.notes if n.start + n.length == end)
        assert last[0] % 12 == last[-1] % 12 == 0, piece.file_name
        assert {pitch % 12 for pitch in last} <= {0, 3, 4, 7} and len(last) >= 4


def test_most_notes_are_of_the_key(pieces):
    """Minor counts its raised sixth and seventh."""
    for piece in pieces:
        tonic, minor = compose.tonic_pitch(piece.key), piece.key.endswith("m")
        scale = {*compose.MINOR_SCALE, 9, 11} if minor else set(compose.MAJOR_SCALE)
        assert sum((n.pitch - tonic) % 12 in scale for n in piece.notes) >= 0.9 * len(piece.notes)
