"""The built-in corpus: the committed files are what the rules make, and they keep the rules."""

import importlib.util
import io
from collections import Counter

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


def test_committed_files_are_what_the_rules_make_and_data_readme_says(corpus):
    assert {path.name: path.read_bytes() for path in MIDI.iterdir()} == {
        name: data for name, (_, data) in corpus.items()}
    assert sum(len(data) for _, data in corpus.values()) < 1_000_000
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name, count in compose.counts(corpus).items():
        assert f"| {name} | {count:,} |" in text


def test_a_file_holds_the_facts_and_exactly_the_notes_of_its_piece(corpus):
    for name, (piece, data) in corpus.items():
        found = {kind: [] for kind in ("key_signature", "time_signature", "set_tempo")}
        for message in mido.MidiFile(file=io.BytesIO(data)).merged_track:
            found.get(message.type, []).append(message)
        assert [m.key for m in found["key_signature"]] == [piece.key]
        assert [(m.numerator, m.denominator) for m in found["time_signature"]] == [
            piece.style.metre]
        assert [60 <= mido.tempo2bpm(m.tempo) <= 160.5 for m in found["set_tempo"]] == [True]
        notes = pianoroll.notes_of(pianoroll.read_midi(MIDI / name))
        assert {tuple(note) for note in notes.tolist()} == {
            (n.start, n.length, n.pitch, n.velocity) for n in piece.notes}, name


def test_all_keys_and_styles_occur_and_pieces_keep_their_key_and_end_on_its_chord(corpus):
    pieces = [piece for piece, _ in corpus.values()]
    keys = Counter(piece.key for piece in pieces)
    assert len(keys) == 24 and set(keys.values()) == {5}
    assert {(piece.style.name, piece.key.endswith("m")) for piece in pieces} == {
        (style.name, minor) for style in compose.STYLES for minor in (False, True)}
    for piece in pieces:
        tonic, minor = compose.tonic_pitch(piece.key), piece.key.endswith("m")
        scale = {*compose.MINOR_SCALE, 9, 11} if minor else set(compose.MAJOR_SCALE)
        assert sum((n.pitch - tonic) % 12 in scale for n in piece.notes) >= 0.9 * len(piece.notes)
        end = piece.bars * compose.bar_steps(piece.style)
        last = sorted(n.pitch - tonic for n in piece.notes if n.start + n.length == end)
        assert last[0] % 12 == last[-1] % 12 == 0, piece.file_name
        assert {pitch % 12 for pitch in last} <= {0, 3, 4, 7} and len(last) >= 4
