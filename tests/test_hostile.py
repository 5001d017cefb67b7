"""No file stops a conversion: each becomes an image, or is named with a reason."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile_midi
import psutil
import pytest

from real_midi import ROOT
from utils import corpus, pianoroll
from utils.files import MusicError


@pytest.mark.parametrize("name", hostile_midi.SMALL)
def test_a_hostile_file_is_read_or_refused_in_one_line(name, tmp_path):
    data, reason = hostile_midi.SMALL[name]
    path = tmp_path / "odd.mid"
    path.write_bytes(data)
    if reason is None:
        assert len(pianoroll.notes_of(pianoroll.read_midi(path)))
    else:
        with pytest.raises(MusicError, match=reason) as error:
            pianoroll.read_midi(path)
        assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")


@pytest.mark.slow
def test_a_run_over_hostile_files_accounts_for_each(tmp_path):
    folder, large = tmp_path / "midi", hostile_midi.large()
    folder.mkdir()
    for name, (data, _) in (hostile_midi.SMALL | large).items():
        (folder / f"{name}.mid").write_bytes(data)
    for name in ("a\nname.mid", "x" * 200 + ".mid", os.fsdecode(b"\xff\xfe.mid")):
        (folder / name).write_bytes(hostile_midi.GOOD)
    (folder / "a_folder.mid").mkdir()
    summary = corpus.convert(folder, tmp_path / "run")
    refused = {Path(source).stem: reason for source, reason in summary.skipped
               if not reason.startswith("a duplicate of")}
    for name, (_, reason) in hostile_midi.SMALL.items():
        assert (name in refused) == (reason is not None), name
    assert {name for name, (_, may) in large.items() if not may} <= refused.keys()
    assert not any("\n" in reason or "Error" in reason for reason in refused.values())
    named = {source for source, _ in summary.skipped} | {
        row.split(",")[1] for table in (tmp_path / "run").rglob("metadata.csv")
        for row in table.read_text().splitlines()}
    assert {piece.source for piece in corpus.choose_pieces(folder)
            if "\n" not in piece.source} <= named


def abort(*_) -> None:
    """A crash, without the report that Python prints of it."""
    faulthandler.disable()
    os.abort()


def killed(*_) -> None:
    """What the system does to a process when memory is short."""
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize(("function", "arguments", "words"), [
    (abort, (), "crashes"), (exec, ("while True: pass",), "2 seconds"),
    (bytearray, (10**9,), "MiB"), (killed, (), "outside")])
def test_a_death_in_the_child_is_an_error_of_one_line(function, arguments, words):
    with corpus.child_processes(1) as pool:
        with pytest.raises(MusicError, match=words):
            corpus.guarded(pool, function, *arguments)
        assert corpus.guarded(pool, len, "abc") == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_a_child_that_is_killed_while_it_waits_blames_no_file():
    with corpus.child_processes(1) as pool:
        child = corpus.guarded(pool, os.getpid)
        os.kill(child, signal.SIGKILL)
        time.sleep(1)
        with pytest.raises(corpus.Stopped, match="outside"):
            for _ in range(3):
                corpus.guarded(pool, len, "abc")


@pytest.mark.parametrize(("death", "words", "is_read_later"), [
    (abort, "crashes", False), (killed, "outside", True)])
def test_a_death_does_not_end_the_run(tmp_path, monkeypatch, death, words, is_read_later):
    folder, guarded = tmp_path / "midi", corpus.guarded
    folder.mkdir()
    for number in range(4):
        note = bytes([60 + number])
        (folder / f"{number}.mid").write_bytes(hostile_midi.GOOD.replace(b"\x3c", note))
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "guarded", lambda pool, function, piece, *rest: guarded(
            pool, death if piece.source == "1.mid" else function, piece, *rest))
        ((source, reason),) = corpus.convert(folder, tmp_path / "run").skipped
    assert source == "1.mid" and words in reason
    assert (corpus.convert(folder, tmp_path / "run").skipped == []) == is_read_later


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals to a group of processes")
@pytest.mark.parametrize("by_ctrl_c", [True, False])
def test_a_run_that_is_stopped_leaves_no_process_and_blames_no_file(tmp_path, by_ctrl_c):
    run = subprocess.Popen([sys.executable, "-c", "import signal\nfrom utils import corpus\n"
                            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                            f"corpus.convert('builtin', {str(tmp_path)!r}, jobs=3)"], cwd=ROOT,
                           stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(tmp_path.rglob("*.json")):  # some files are done, others are being read
        assert run.poll() is None
        time.sleep(0.01)
    children = psutil.Process(run.pid).children(recursive=True)
    if by_ctrl_c:
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the child processes, too
    else:
        run.kill()
    assert run.wait(60) != 0 and not psutil.wait_procs(children, timeout=20)[1]
    summary = corpus.convert("builtin", tmp_path)
    assert not summary.skipped and summary.pieces == 120


@pytest.mark.slow
def test_of_a_collection_of_hostile_files_no_good_one_is_lost(real_midi, tmp_path):
    summary = corpus.convert(real_midi / "hostile", tmp_path)
    refused = [source for source, reason in summary.skipped if "a duplicate of" not in reason]
    assert summary.pieces == 66 and len(refused) <= 26
    assert not any(source.startswith("music21/") for source in refused)
