"""Errors of one line, and files that are written whole or not at all."""

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


class MusicError(ValueError):
    """What went wrong with which file and what to do about it, in one line."""

    def _render_traceback_(self) -> list[str]:
        """A notebook shows the line alone: the remedy is in it, not in the call stack."""
        return [f"MusicError: {self}"]


def printable(name: str) -> str:
    """A file's name that can be written anywhere: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def at_least(least: int, **numbers: int) -> None:
    """Raise `MusicError` for a parameter that is less."""
    for name, value in numbers.items():
        if value < least:
            raise MusicError(f"{name} is {value}; choose {least} or more")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on any failure.

    Raises `MusicError` where the disk is full or the folder may not be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise MusicError(f"{path}: cannot be written ({error.strerror or error}); free some disk "
                         "space, or choose another run_dir") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write a CSV file, whole or not at all."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
