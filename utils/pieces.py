"""The pieces of a collection, their split into train and valid, their names. See notebook 01."""

import collections
import csv
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from utils.fetch import collection_folder
from utils.files import MusicError, printable
from utils.pianoroll import MAX_BYTES
from utils.repair import is_whole

VALID_SHARE = 0.1  # of the pieces, where a collection has no official split
POP909_TRAIN = 720  # ids up to this one are trained on
SPLITS = ("train", "valid")


@dataclass(frozen=True, slots=True)
class Piece:
    """One MIDI file: `source` is its path below the collection, `split` is train or valid."""

    path: str
    source: str
    split: str
    digest: str  # sha256 of the bytes


def find_midi(midi_dir: str | Path | Iterable[str | Path]) -> list[Path]:
    """Every .mid and .midi file of a collection, in order: the files of a list, or all below a
    folder (any depth, links to folders are not followed), an archive, a collection by name."""
    if not isinstance(midi_dir, (str, Path)):
        found = [Path(path) for path in midi_dir]
        missing = next((path for path in found if not path.is_file()), None)
        if missing:
            raise MusicError(f"{missing}: no such file; check the list")
    else:
        folder = collection_folder(midi_dir)
        found = sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names
                       if name.lower().endswith((".mid", ".midi")) and name[:2] != "._")
    if not found:
        raise MusicError(f"{midi_dir}: no MIDI files (.mid, .midi) in it; set midi_dir to a folder "
                         "that has some, or to 'builtin'")
    return found


def official_split(folder: Path) -> Callable[[str], str] | None:
    """The publisher's split as a function of `source`, for MAESTRO and POP909; else None."""
    tables = sorted(folder.glob("maestro-v*.csv"))
    if tables:
        with tables[0].open(encoding="utf-8", newline="") as table:
            splits = {row["midi_filename"]: row["split"] for row in csv.DictReader(table)}
        return lambda source: {"validation": "valid"}.get(s := splits.get(source, "test"), s)
    if folder.name.lower().startswith("pop909"):
        return lambda source: "train" if int("0" + re.sub(r"\D", "", Path(source).stem)[:3]) \
            <= POP909_TRAIN else "valid"
    return None


def choose_pieces(midi_dir: str | Path | Iterable[str | Path], max_files: int = 0, seed: int = 0
                  ) -> list[Piece]:
    """The pieces of a collection with their split, by name.

    The split is the publisher's where there is one (its test pieces are left out); otherwise a
    tenth of the pieces is held out, chosen by seed and content, so a copy under another name lands
    on the same side, and damaged files last, so that what is held out gives
    pictures. `max_files` above 0 keeps that many, chosen by seed, each split in proportion.
    """
    paths = find_midi(midi_dir)
    single = isinstance(midi_dir, (str, Path))
    folder = collection_folder(midi_dir) if single else Path(os.path.commonpath(
        [path.absolute().parent for path in paths]))
    with ThreadPoolExecutor() as pool:  # a thousand waiting tasks at a time: each takes memory
        digests, whole = zip(*itertools.chain.from_iterable(
            pool.map(_digest, paths[i : i + 1000]) for i in range(0, len(paths), 1000)),
            strict=True)
    sources = [printable(path.absolute().relative_to(folder.absolute()).as_posix())
               for path in paths]
    rank = {digest: hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest() for digest in digests}
    damaged = {digest for digest, is_whole in zip(digests, whole, strict=True) if not is_whole}
    order = sorted(set(digests), key=lambda digest: (digest in damaged, rank[digest]))
    held_out = set(order[: max(1, round(len(order) * VALID_SHARE)) if len(order) > 1 else 0])
    official = official_split(folder)
    pieces = [Piece(str(path.absolute()), source, official(source) if official else
                    "valid" if digest in held_out else "train", digest)
              for path, source, digest in zip(paths, sources, digests, strict=True)]
    pieces = [piece for piece in pieces if piece.split in SPLITS]
    if 0 < max_files < len(pieces):
        pieces.sort(key=lambda piece: rank[piece.digest])
        valid = [piece for piece in pieces if piece.split == "valid"]
        train = [piece for piece in pieces if piece.split == "train"]
        share = min(len(valid), max(1, round(max_files * len(valid) / len(pieces))))
        share = 0 if max_files == 1 else share
        pieces = train[: max_files - share] + valid[:share]
    return sorted(pieces, key=lambda piece: piece.source)


def _digest(path: Path) -> tuple[str, bool]:
    """sha256 of the file and whether it is whole MIDI; of its name where it cannot be read (its
    conversion will say why)."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        return hashlib.sha256(os.fsencode(path)).hexdigest(), False
    return hashlib.sha256(data).hexdigest(), is_whole(data)


def picture_names(pieces: list[Piece]) -> list[str]:
    """A file name without suffix for each piece: readable, safe everywhere, unique, the same for
    the same source."""
    clean = [re.sub(r"[^\w.+-]+", "_", piece.source.replace("/", "__")) for piece in pieces]
    stems = [name.removesuffix(".midi").removesuffix(".mid").encode()[:150].decode(errors="ignore")
             for name in clean]
    known = collections.Counter(stem.lower() for stem in stems)  # some disks ignore case
    plain = [stem == Path(piece.source).stem for stem, piece in zip(stems, pieces, strict=True)]
    tags = [hashlib.sha256(piece.source.encode()).hexdigest()[:8] for piece in pieces]
    return [stem if is_plain and known[stem.lower()] == 1 else f"{stem}-{tag}"
            for stem, is_plain, tag in zip(stems, plain, tags, strict=True)]
