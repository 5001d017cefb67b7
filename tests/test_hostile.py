"""No file stops a conversion: each becomes an image, or is named with a reason."""

import contextlib
import faulthandler
import os
import random
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
def test_a_small_hostile_file(name, tmp_path):
    data, reason = hostile_midi.SMALL[name]
    path = tmp_path / "odd.mid"
    path.write_bytes(data)
    if reason is None:
        assert len(pianoroll.notes_of(pianoroll.read_midi(path)))
    else:
        with pytest.raises(MusicError, match=reason) as error:
            pianoroll.read_midi(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.slow
def test_a_whole_run_over_hostile_files_large_and_small(tmp_path):
    folder = tmp_path / "midi"
    folder.mkdir()
    for name, (data, _) in (hostile_midi.SMALL | hostile_midi.large()).items():
        (folder / f"{name}.mid").write_bytes(data)
    (folder / "a\nname.mid").write_bytes(hostile_midi.GOOD)
    (folder / ("x" * 200 + ".mid")).write_bytes(hostile_midi.GOOD)
    (folder / os.fsdecode(b"\xff\xfe.mid")).write_bytes(hostile_midi.GOOD)
    (folder / "a_folder.mid").mkdir()
    summary = corpus.convert(folder, tmp_path / "run")
    skipped = {Path(source).stem: reason for source, reason in summary.skipped}
    duplicates = {name for name, reason in skipped.items() if reason.startswith("a duplicate of")}
    for name, (_, reason) in hostile_midi.SMALL.items():
        assert (name in skipped.keys() - duplicates) == (reason is not None), name
    for name, (_, may) in hostile_midi.large().items():
        assert may or name in skipped, name
    assert not any("\n" in reason or "Error" in reason for reason in skipped.values())
    named = {source for source, _ in summary.skipped} | {
        row.split(",")[1] for table in (tmp_path / "run").rglob("metadata.csv")
        for row in table.read_text().splitlines()}
    assert {piece.source.replace("\n", "") for piece in corpus.choose_pieces(folder)
            if "\n" not in piece.source} <= named  # every file is accounted for


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile_midi.large())
def test_a_large_file_stays_within_the_limits(tmp_path, name):
    path = tmp_path / "large.mid"
    path.write_bytes(hostile_midi.large()[name][0])
    try:
        with corpus.child_processes(1) as pool:
            used = corpus.guarded(pool, seconds_to_read, path)
    except MusicError as error:
        assert "crashes" not in str(error)
    else:
        assert used < corpus.CPU_S


def seconds_to_read(path: Path) -> float:
    """Processor time of the process that reads the file, to the image or to the refusal."""
    begin = time.process_time()
    with contextlib.suppress(MusicError):
        pianoroll.read_midi(path)
    return time.process_time() - begin


def abort() -> None:
    """A crash, without the report that Python prints of it."""
    faulthandler.disable()
    os.abort()


@pytest.mark.parametrize(("function", "arguments", "words"), [
    (abort, (), "crashes"), (exec, ("while True: pass",), "2 seconds"),
    (bytearray, (10**9,), "memory"),
    (exec, ("import os; os.kill(os.getpid(), 9)",), "outside")])
def test_a_death_in_the_child_is_an_error_of_one_line(function, arguments, words):
    with corpus.child_processes(1) as pool:
        with pytest.raises(MusicError, match=words):
            corpus.guarded(pool, function, *arguments)
        assert corpus.guarded(pool, len, "abc") == 3


def four_files(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        note = bytes([60 + number])
        (folder / f"{number}.mid").write_bytes(hostile_midi.GOOD.replace(b"\x3c", note))
    return folder


def test_a_reader_that_crashes_does_not_end_the_run(tmp_path, monkeypatch):
    guarded = corpus.guarded
    monkeypatch.setattr(corpus, "guarded", lambda pool, function, piece, *rest: guarded(
        pool, *((os.abort,) if piece.source == "1.mid" else (function, piece, *rest))))
    summary = corpus.convert(four_files(tmp_path / "midi"), tmp_path / "run")
    assert [source for source, reason in summary.skipped] == ["1.mid"]
    assert "crashes" in summary.skipped[0][1]


def test_a_file_whose_reader_the_system_killed_is_read_at_the_next_run(tmp_path, monkeypatch):
    folder, guarded = four_files(tmp_path / "midi"), corpus.guarded
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "guarded", lambda pool, function, piece, *rest: guarded(
            pool, *((exec, "import os; os.kill(os.getpid(), 9)") if piece.source == "1.mid"
              else (function, piece, *rest))))
        stopped = corpus.convert(folder, tmp_path / "run")
    assert [source for source, _ in stopped.skipped] == ["1.mid"]
    assert not corpus.convert(folder, tmp_path / "run").skipped


@pytest.mark.slow
def test_child_processes_end_with_a_run_that_is_killed(tmp_path):
    run = subprocess.Popen([sys.executable, "-c", "from utils import corpus\n"
                            f"corpus.convert('builtin', {str(tmp_path)!r}, jobs=3)"], cwd=ROOT,
                           stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("*.json")):
        time.sleep(0.01)
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    assert len(children) >= 3 and not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals to a group of processes")
def test_ctrl_c_records_nothing_against_a_file(tmp_path):
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    run = subprocess.Popen([sys.executable, "-c", heed +  # a background job ignores Ctrl-C
                            "from utils import corpus\n"
                            f"corpus.convert('builtin', {str(tmp_path)!r}, jobs=2)"], cwd=ROOT,
                           stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(tmp_path.rglob("*.json")):  # some files are done, others are being read
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the child processes, too
    assert run.wait(60) != 0
    summary = corpus.convert("builtin", tmp_path)
    assert not summary.skipped and summary.pieces == 120


@pytest.mark.slow
def test_mutated_files_give_an_image_or_a_reason(builtin_midi, tmp_path):
    sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
    import fuzz_midi
    rng = random.Random(0)
    path = tmp_path / "mutated.mid"
    with corpus.child_processes(1) as pool:
        for _ in range(150):
            path.write_bytes(fuzz_midi.mutate(rng.choice(builtin_midi).read_bytes(), rng))
            try:
                corpus.guarded(pool, pianoroll.read_midi, path)
            except MusicError as error:
                assert not any(word in str(error) for word in ("crashes", "seconds", "memory"))


@pytest.mark.slow
def test_the_collection_of_hostile_files(real_midi, tmp_path):
    summary = corpus.convert(real_midi / "hostile", tmp_path)
    refused = [source for source, reason in summary.skipped if "a duplicate of" not in reason]
    assert summary.pieces == 66 and len(refused) <= 26
    assert "music21" not in {source.split("/")[0] for source in refused}
