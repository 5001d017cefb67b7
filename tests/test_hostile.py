"""No file stops a conversion: each becomes a picture, or is named with a reason."""

import os
import random
import sys
import time
from pathlib import Path

import hostile_midi
import numpy as np
import pytest
import symusic
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import corpus, guard, pianoroll, repair
from utils.files import MusicError

DATA = Path(__file__).parent / "data_hostile"


def test_the_files_on_disk_are_those_that_the_script_makes():
    assert {path.stem: path.read_bytes() for path in DATA.glob("*.mid")} == {
        name: data for name, (data, _) in hostile_midi.SMALL.items()}


@pytest.mark.parametrize("name", hostile_midi.SMALL)
def test_a_small_hostile_file(name):
    path, reason = DATA / f"{name}.mid", hostile_midi.SMALL[name][1]
    if reason is None:
        assert len(pianoroll.notes_of(pianoroll.read_midi(path)))
    else:
        with pytest.raises(MusicError, match=reason) as error:
            pianoroll.read_midi(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_whole_run_over_hostile_files_large_and_small(tmp_path):
    folder = tmp_path / "midi"
    folder.mkdir()
    for name, (data, _) in (hostile_midi.SMALL | hostile_midi.large()).items():
        (folder / f"{name}.mid").write_bytes(data)
    (folder / "a\nname.mid").write_bytes(hostile_midi.GOOD)
    (folder / ("x" * 200 + ".mid")).write_bytes(hostile_midi.GOOD[:-4])
    (folder / os.fsdecode(b"\xff\xfe.mid")).write_bytes(hostile_midi.GOOD)
    (folder / "a_folder.mid").mkdir()
    summary = corpus.convert(folder, tmp_path / "run")
    skipped = {Path(source).stem: reason for source, reason in summary.skipped}
    for name, (_, reason) in hostile_midi.SMALL.items():
        assert (name in skipped) == (reason is not None), name
    for name, (_, may) in hostile_midi.large().items():
        assert may or name in skipped, name
    assert not any("\n" in reason or "Error" in reason for reason in skipped.values())


@pytest.mark.parametrize("name", hostile_midi.large())
def test_a_large_file_stays_within_the_limits(tmp_path, name):
    """Two seconds of processor time and 512 MiB are the guard's to keep: the call comes back."""
    path = tmp_path / "large.mid"
    path.write_bytes(hostile_midi.large()[name][0])
    begin = time.process_time()
    try:
        guard.call("utils.pianoroll", "read_midi", str(path))
    except guard.Crash:
        pytest.fail("crashed")
    except (MusicError, RuntimeError) as error:
        assert isinstance(error, MusicError), error
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(("function", "arguments", "words"), [
    (("os", "abort"), (), "crashes"), (("builtins", "exec"), ("while True: pass",), "2 seconds"),
    (("numpy", "ones"), (10**9,), "memory")])
def test_a_death_in_the_child_is_an_error_of_one_line(function, arguments, words):
    with pytest.raises(MusicError, match=words):
        guard.call(*function, *arguments)
    assert guard.call("builtins", "len", "abc") == 3


def test_a_reader_that_dies_does_not_end_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "midi"
    folder.mkdir()
    for number in range(4):
        note = bytes([60 + number])
        (folder / f"{number}.mid").write_bytes(hostile_midi.GOOD.replace(b"\x3c", note))
    call = guard.call

    def dies(module, function, piece, *rest):
        if piece.source == "1.mid":
            return call("os", "abort")
        return call(module, function, piece, *rest)

    monkeypatch.setattr(guard, "call", dies)
    summary = corpus.convert(folder, tmp_path / "run")
    assert [source for source, reason in summary.skipped] == ["1.mid"]
    assert "crashes" in summary.skipped[0][1]


def test_the_careful_parser_reads_sound_files_as_the_fast_one_does(builtin_midi):
    for path in builtin_midi[:20]:
        fast, slow = pianoroll.read_midi(path), pianoroll.read_midi(path, careful=True)
        assert np.array_equal(fast.levels, slow.levels)
        assert fast.tempo_bpm == slow.tempo_bpm and fast.tempo_changes == slow.tempo_changes


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_repair_gives_bytes_or_a_reason(noise, with_header):
    data = hostile_midi.midi(hostile_midi.track(noise)) if with_header else noise
    try:
        again = repair.repair(data)
    except MusicError as error:
        assert "\n" not in str(error)
    else:
        symusic.Score.from_midi(again)


def test_mutated_files_give_a_picture_or_a_reason(builtin_midi, tmp_path):
    sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
    import fuzz_midi
    rng = random.Random(0)
    path = tmp_path / "mutated.mid"
    for _ in range(300):
        path.write_bytes(fuzz_midi.mutate(rng.choice(builtin_midi).read_bytes(), rng))
        try:
            guard.call("utils.pianoroll", "read_midi", str(path))
        except MusicError as error:
            assert not isinstance(error, (guard.Crash, guard.OverLimit))


def test_the_collection_of_hostile_files(real_midi, tmp_path):
    summary = corpus.convert(real_midi / "hostile", tmp_path)
    assert summary.pieces == 66 and len(summary.skipped) <= 26
    named = {source.split("/")[0] for source, _ in summary.skipped}
    assert "music21" not in named
