"""Call a function in a child process: what hangs, crashes or eats memory there does no harm here.

MIDI from the internet crashes parsers that are written in C. A call takes an idle child or starts
one, so there are as many as calls at the same time. Used by `utils.corpus`; see notebook 01.
"""

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

from utils.files import MusicError

CPU_S = 2.0  # a call; processor time, so that a busy machine changes nothing
WALL_S = 60.0  # a call, where it waits for a disk or where processor time cannot be limited
CALLS = 2_000  # a child, before a fresh one takes its place
MEMORY_MIB = 400  # on top of the interpreter and its libraries

_ROOT = str(Path(__file__).parent.parent)
_START = f"import sys; sys.path.insert(0, {_ROOT!r}); from utils import guard; guard._serve()"
_idle: list["_Child"] = []  # list.pop and list.append are atomic


class Crash(MusicError):
    """The child died in the call."""


class OverLimit(MusicError):
    """The call took too long or too much memory."""


def call(module: str, function: str, *args: object) -> object:
    """`module.function(*args)`, run in a child process. Arguments and result are pickled.

    Raises `MusicError` as the function does, `Crash`, `OverLimit`, or `RuntimeError` with the
    traceback of any other exception.
    """
    try:
        child = _idle.pop()
    except IndexError:
        child = _Child()
    try:
        kind, value = child.ask((module, function, args))
    except (OSError, EOFError, pickle.UnpicklingError):
        raise child.cause_of_death() from None
    if child.calls < CALLS:
        _idle.append(child)
    if kind == "music":
        raise MusicError(value)
    if kind == "memory":
        raise OverLimit(f"needs more than {MEMORY_MIB} MiB of memory; leave it out")
    if kind == "error":
        raise RuntimeError(value)
    return value


class _Child:
    def __init__(self) -> None:
        self.late, self.calls = False, 0
        self.process = subprocess.Popen([sys.executable, "-c", _START], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def ask(self, request: tuple) -> tuple[str, object]:
        self.calls += 1
        pickle.dump(request, self.process.stdin)
        self.process.stdin.flush()
        watchdog = threading.Timer(WALL_S, self._kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            return pickle.load(self.process.stdout)
        finally:
            watchdog.cancel()

    def _kill(self) -> None:
        self.late = True
        self.process.kill()

    def cause_of_death(self) -> MusicError:
        code = self.process.wait()
        if self.late:
            return OverLimit(f"takes longer than {WALL_S:.0f} seconds; leave it out")
        if code == -getattr(signal, "SIGPROF", 0):
            return OverLimit(f"takes longer than {CPU_S:.0f} seconds; leave it out")
        return Crash("crashes the reader; the file is damaged, leave it out")

    def __del__(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.close()  # the child reads the end of file, and ends
            self.process.stdout.close()
            self.process.wait(timeout=5)


# ---------------------------------------------------------------- in the child


def _serve() -> None:
    """Answer calls until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    limited = False
    while True:
        try:
            module, function, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        target = getattr(importlib.import_module(module), function)
        if not limited:
            _limit_memory()
            limited = True
        answer = _answer(target, args)
        pickle.dump(answer, answers)
        answers.flush()


def _answer(target: object, args: tuple) -> tuple[str, object]:
    timer = hasattr(signal, "setitimer")
    try:
        if timer:
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # at its end SIGPROF ends the process
        return "value", target(*args)
    except MusicError as error:
        return "music", str(error)
    except MemoryError:
        return "memory", ""
    except Exception:
        import traceback
        return "error", traceback.format_exc()
    finally:
        if timer:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    """Let the process grow by `MEMORY_MIB` and no more, where the system says how large it is."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
