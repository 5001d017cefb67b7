"""No file stops a conversion: each becomes an image, or is named with a reason."""

import faulthandler
import os
import signal
import subprocess
import sys
import time

import hostile_midi
import psutil
import pytest

from real_midi import ROOT
from utils import audio, corpus, pianoroll
from utils.files import MusicError


@pytest.mark.parametrize("name", hostile_midi.SMALL)
def test_a_hostile_file_is_read_or_refused_in_one_line(name, tmp_path):
    data, reason = hostile_midi.SMALL[name]
    path = tmp_path / "odd.mid"
    path.write_bytes(data)
    if reason is None:
        assert len(pianoroll.notes_of(pianoroll.read_midi(path)))
        assert audio.playable(path), "what becomes an image can be heard"
    else:
        with pytest.raises(MusicError, match=reason) as error:
            pianoroll.read_midi(path)
        assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")


def test_a_run_over_odd_files_and_names_accounts_for_each(tmp_path):
    (tmp_path / "a_folder.mid").mkdir()
    names = ["x" * 200, os.fsdecode(b"\xff\xfe"), "two\nlines"]
    for i, name in enumerate(names):
        (tmp_path / f"{name}.mid").write_bytes(hostile_midi.GOOD.replace(b"\x3c", bytes([40 + i])))
    for name, (data, _) in hostile_midi.SMALL.items():
        (tmp_path / f"{name}.mid").write_bytes(data)
    made = corpus.convert(tmp_path, tmp_path / "run", jobs=1)
    refused = {source for source, why in made.skipped if not why.startswith("a duplicate of")}
    assert refused == {f"{name}.mid" for name, (_, why) in hostile_midi.SMALL.items() if why}
    assert not any("\n" in why or "Error" in why for _, why in made.skipped)
    images = sum(count for folder, count in made.images.items() if "diffusion" in folder)
    assert images >= len(names) and made.pieces == len(names) + len(hostile_midi.SMALL)


def crash(*_) -> None:
    faulthandler.disable()  # it would print a report
    os.abort()


def hang(*_) -> None:
    while True:
        pass


def grow(*_) -> None:
    bytearray(10**9)


def killed(*_) -> None:
    """As the system does when memory is short."""
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize(("death", "words"), [
    (crash, "crashes"), (hang, "2 seconds"), (grow, "MiB"), (killed, "outside")])
def test_a_death_does_not_end_the_run(tmp_path, monkeypatch, death, words):
    folder, guarded = tmp_path / "midi", corpus.guarded
    folder.mkdir()
    for number in range(3):
        note = bytes([60 + number])
        (folder / f"{number}.mid").write_bytes(hostile_midi.GOOD.replace(b"\x3c", note))
    start_s = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "guarded", lambda pool, function, piece, *rest: guarded(
            pool, death if piece.source == "1.mid" else function, piece, *rest))
        ((source, reason),) = corpus.convert(folder, tmp_path / "run", jobs=1).skipped
    assert source == "1.mid" and words in reason and "\n" not in reason
    assert time.monotonic() - start_s < corpus.WALL_S, "a limit of processor time ends it first"
    is_read_later = not corpus.convert(folder, tmp_path / "run", jobs=1).skipped
    assert is_read_later == (death is killed)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_a_child_that_is_killed_while_it_waits_blames_no_file():
    with corpus.child_processes(1) as pool:
        os.kill(corpus.guarded(pool, os.getpid), signal.SIGKILL)
        time.sleep(1)
        with pytest.raises(corpus.Stopped, match="outside"):
            for _ in range(3):
                corpus.guarded(pool, len, "abc")


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
