"""Errors of one line, and files that are written whole or not at all."""

import collections
import contextlib
import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


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


def as_kind(name: str, value: object, kind: str) -> object:
    """A parameter's value, or its text on a command line ("false", "1e4"), as its annotation says.

    `kind` is "bool", "int", "float" or "str"; ~ at the beginning of a path is the home folder.
    Raises `MusicError` for a value of another kind.
    """
    text = str(value).strip().lower()
    if kind == "str" and isinstance(value, str):
        return str(Path(value).expanduser()) if Path(value).parts[:1] == ("~",) else value
    if kind == "bool" and text in TRUTH:
        return TRUTH[text]
    if kind in ("int", "float") and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            number = float(text)
            if kind == "float" and math.isfinite(number):
                return number
            if kind == "int" and number.is_integer():
                return int(number if set(text) & set(".e") else text)  # a float holds 53 bits
    wanted = {"bool": "True or False", "int": "a whole number", "float": "a number",
              "str": "text, in quotes (papermill: -r in place of -p)"}[kind]
    raise MusicError(f"{name} is {value!r:.60}; give {wanted}")


def as_declared(namespace: dict) -> dict:
    """The annotated parameters of a notebook's `globals()`, each as its annotation says.

    papermill's command line gives `-p resume false` as the text "false". Raises `MusicError`.
    """
    kinds = {name: kind.__name__ for name, kind in namespace["__annotations__"].items()
             if kind in (bool, int, float, str) and name in namespace}
    return {name: as_kind(name, namespace[name], kind) for name, kind in kinds.items()}


def output_names(sources: Sequence[Path], suffix: str) -> list[Path]:
    """A different name for each path: `suffix` replaces the path's own, or follows it where two
    names would be one (song.mid.wav, song.midi.wav). Some disks ignore case, so it is ignored."""
    names = [path.with_suffix(suffix) for path in sources]
    for _ in range(2):  # a long name may be another's short one
        known = collections.Counter(str(name).lower() for name in names)
        names = [name if known[str(name).lower()] == 1 else path.with_name(path.name + suffix)
                 for path, name in zip(sources, names, strict=True)]
    return names


def folder_at(path: str | Path, parameter: str) -> Path:
    """The folder that a parameter names. Raises `MusicError` where there is none."""
    path = Path(path)
    if not path.is_dir():
        wrong = "not a folder" if path.exists() else "no such folder"
        raise MusicError(f"{path}: {wrong}; set {parameter} to a folder")
    return path


def list_outputs(listing: Path, names: Iterable[Path]) -> None:
    """Write which files are a notebook's own, as paths below the folder of `listing`."""
    write_table(listing, ["file"], [[name.as_posix()] for name in names])


def replace_outputs(listing: Path, names: Iterable[Path]) -> None:
    """Remove the files that `listing` names, made by an earlier run, and list those that are about
    to be written. Other files in the folder stay."""
    folder = listing.parent
    if listing.is_file():
        with listing.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            earlier = [folder / (row.get("file") or "") for row in csv.DictReader(file)]
        for path in earlier:
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                try:
                    path.unlink()
                except OSError as error:
                    raise MusicError(f"{path}: made by an earlier run, and cannot be removed "
                                     f"({error.strerror}); close what has it open") from None
    list_outputs(listing, names)


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
    with atomic(path) as temporary, temporary.open(
            "w", encoding="utf-8", errors="surrogateescape", newline="") as file:  # odd file names
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
