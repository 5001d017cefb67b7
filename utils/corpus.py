"""Collections of MIDI become collections of pictures, in bulk. Explained in notebook 01."""

import collections
import contextlib
import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from utils import guard, pianoroll
from utils.fetch import BUILTIN
from utils.files import MusicError, atomic, write_json, write_table
from utils.pianoroll import PRESETS
from utils.pieces import SPLITS, Piece, choose_pieces, find_midi, official_split, picture_names
from utils.storage import (
    METADATA,
    count_pictures,
    drop_from_shard,
    has_pictures,
    load_examples,
    load_levels,
    load_pictures,
    stream_levels,
    write_shard,
)

__all__ = ["BUILTIN", "Piece", "Summary", "choose_pieces", "convert", "count_pictures",
           "ensure_images", "find_midi", "load_examples", "load_levels", "load_pictures",
           "official_split", "picture_names", "stream_levels"]

BATCH = {"png": 8, "parquet": 256}  # files to a task, to a record of what is done, to a shard


@dataclass(frozen=True)
class Summary:
    """What a conversion made: pictures by "preset/split", and (source, reason) of the skipped."""

    pictures: dict[str, int]
    skipped: list[tuple[str, str]]
    pieces: int


# ---------------------------------------------------------------- conversion in bulk


def convert(midi_dir: str | Path | Iterable[str | Path], run_dir: str | Path,
            steps_per_beat: int = 4, max_files: int = 0, jobs: int = -1, seed: int = 0,
            storage: str = "png", hop: int = 8) -> Summary:
    """Turn a collection into pictures: `run_dir/images/<preset>/<split>/*.png`, a metadata.csv in
    each folder, or with `storage="parquet"` shards of the same PNG bytes and facts.

    `midi_dir` is a folder, an archive, a list of files or the name of a collection (`utils.fetch`).
    `hop` is that of `pianoroll.windows`: 8 cuts pieces side by side, 1 begins a window at each bar.
    The files are the same bytes whatever `jobs` is (-1: one process a core); within
    `joblib.parallel_config(backend="dask")` a cluster does the work. What an earlier call with the
    same settings finished is not done again; pictures of other settings are removed. Files that
    give no picture are listed with the reason in `images/skipped.csv`. A window with the pixels of
    another is kept once, so no piece is in both splits, under whatever name.
    """
    if storage not in BATCH:
        raise MusicError(f"storage={storage!r}: choose 'png' or 'parquet'")
    if not 1 <= hop <= 8:
        raise MusicError(f"hop is {hop}; choose 1 to 8 bars")
    images = Path(run_dir).absolute() / "images"
    pieces = choose_pieces(midi_dir, max_files, seed)
    tasks = list(zip(pieces, picture_names(pieces), strict=True))
    batches = [tasks[i : i + BATCH[storage]] for i in range(0, len(tasks), BATCH[storage])]
    job = images, steps_per_beat, storage, hop
    _remove_others(images, {_fingerprint(batch, *job) for batch in batches})
    done = joblib.Parallel(n_jobs=jobs, return_as="generator", prefer="threads")(
        joblib.delayed(_convert_batch)(batch, *job) for batch in batches)
    windows = []
    with tqdm(total=len(pieces), unit="file", desc="MIDI → pictures") as bar:
        for batch, found in zip(batches, done, strict=True):
            windows.append(found)
            bar.update(len(batch))
    return _assemble(batches, _find_twins(windows), job)


def _convert_batch(batch: list[tuple[Piece, str]], images: Path, steps_per_beat: int, storage: str,
                   hop: int, again: bool = False) -> np.ndarray:
    """Convert a few files, unless a record in `images/.done` says that just this was done.

    Returns one row a window: its digest, and 1 if it is held out, uint64 `[N, 2]`.
    """
    fingerprint = _fingerprint(batch, images, steps_per_beat, storage, hop)
    path = images / ".done" / f"{fingerprint}.json"
    record = _read_record(path)
    if again or record["rows"] is None or _missing(images, record):
        write_json(path, {"names": [name for _, name in batch], "rows": None})  # begun
        record = {"names": [name for _, name in batch], "rows": [], "skipped": []}
        for piece, name in batch:
            try:
                record["rows"] += _convert_guarded(piece, name, images, steps_per_beat, storage,
                                                   hop)
            except MusicError as error:
                record["skipped"].append((piece.source, str(error).removeprefix(f"{piece.path}: ")))
        if storage == "parquet":
            _write_shards(images, fingerprint, record["rows"])
        write_json(path, record)
    return np.array([(int(row["digest"], 16), row["folder"].endswith("valid"))
                     for row in record["rows"]], dtype=np.uint64).reshape(-1, 2)


def _convert_guarded(piece: Piece, name: str, *job: object) -> list[dict]:
    """`_convert_piece` in a child process; where that dies, once more with the careful parser."""
    try:
        return guard.call("utils.corpus", "_convert_piece", piece, name, *job)
    except guard.Crash:
        return guard.call("utils.corpus", "_convert_piece", piece, name, *job, True)


def _convert_piece(piece: Piece, name: str, images: Path, steps_per_beat: int, storage: str,
                   hop: int, careful: bool = False) -> list[dict]:
    """One piece's rows of metadata; its pictures are files, or in the rows as "png"."""
    whole = pianoroll.read_midi(piece.path, steps_per_beat, careful=careful)
    rows, lines = [], pianoroll.bar_lines_of(whole)
    for preset in PRESETS.values():
        for number, picture in enumerate(pianoroll.windows(whole, preset, hop, lines)):
            folder = f"{preset.name}/{piece.split}"
            file_name = f"{name}_{number:04d}.png"
            digest = hashlib.blake2b(picture.levels, digest_size=8, salt=preset.name.encode())
            rows.append({"folder": folder, "file_name": file_name, "source": piece.source,
                         "start_step": picture.start_step, "tempo": round(picture.tempo_bpm, 3),
                         "digest": digest.hexdigest(), "twin": False})
            rows[-1]["png"] = pianoroll.png_bytes(picture)
    if storage == "png":
        _write_files(images, rows)
    if not rows:
        raise MusicError("no note within the pictures' pitches; leave it out")
    return rows


def _fingerprint(batch: list[tuple[Piece, str]], images: Path, *settings: object) -> str:
    todo = [(piece.source, piece.split, piece.digest, name) for piece, name in batch]
    return hashlib.sha256(json.dumps([todo, *settings]).encode()).hexdigest()[:32]


def _read_record(path: Path) -> dict:
    """What a batch became: its pictures' names, rows (None: begun, not finished) and skipped."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {"names": [], "rows": None, "skipped": []}


def _write_files(images: Path, rows: list[dict]) -> None:
    """A file a row. One that is cut short is made again: its batch is on record as begun."""
    try:
        for folder in {row["folder"] for row in rows}:
            (images / folder).mkdir(parents=True, exist_ok=True)
        for row in rows:
            (images / row["folder"] / row["file_name"]).write_bytes(row.pop("png"))
    except OSError as error:
        raise OSError(f"{images}: cannot be written ({error.strerror}); free some disk space, "
                         "or choose another run_dir") from None


def _write_shards(images: Path, fingerprint: str, rows: list[dict]) -> None:
    """A shard a folder; the rows then name it instead of holding their PNG."""
    by_folder = collections.defaultdict(list)
    for row in rows:
        by_folder[row["folder"]].append(row)
    for folder, own in by_folder.items():
        write_shard(images / folder / f"{fingerprint}.parquet", own)
    for row in rows:
        row["shard"] = f"{fingerprint}.parquet"
        del row["png"]


def _file_of(row: dict) -> str:
    """The file that holds a row's picture, below `images`."""
    return f"{row['folder']}/{row.get('shard', row['file_name'])}"


def _missing(images: Path, record: dict) -> bool:
    """Whether a file that should be there is not."""
    files = {_file_of(row) for row in record["rows"] if not row["twin"]}
    return not all((images / file).is_file() for file in files)


def _find_twins(windows: list[np.ndarray]) -> Iterator[np.ndarray]:
    """For each batch, which windows have the pixels of one before; train comes before valid."""
    sizes = [len(found) for found in windows]
    digest, valid = np.concatenate([*windows, np.zeros((0, 2), dtype=np.uint64)]).T
    order = np.argsort(valid, kind="stable")
    order = order[np.argsort(digest[order], kind="stable")]
    twin = np.zeros(len(digest), dtype=bool)
    twin[order[1:]] = digest[order[1:]] == digest[order[:-1]]
    return iter(np.split(twin, np.cumsum(sizes)[:-1]))


# ---------------------------------------------------------------- the tables


def _assemble(batches: list, twins: Iterator[np.ndarray], job: tuple[Path, int, str, int]
              ) -> Summary:
    """Remove twins, and write the tables, a batch at a time."""
    images, _, kind, _ = job
    skipped, counts = [], dict.fromkeys(_folders(), 0)
    with contextlib.ExitStack() as stack:
        tables = {name: _table(stack, images / name) for name in counts} if kind == "png" else {}
        for batch, twin in zip(batches, twins, strict=True):
            record = _drop_twins(batch, twin, job)
            skipped += map(tuple, record["skipped"])
            for row in record["rows"]:
                if not row["twin"]:
                    counts[row["folder"]] += 1
                    if tables:
                        tables[row["folder"]].writerow([row[column] for column in METADATA])
    write_table(images / "skipped.csv", ("file", "reason"), sorted(skipped))
    pieces = sum(map(len, batches))
    if not any(counts.values()):
        raise MusicError(f"{images / 'skipped.csv'}: none of {pieces} files became a picture; read "
                         "the reasons there, then set midi_dir to other files")
    return Summary(counts, sorted(skipped), pieces)


def _drop_twins(batch: list, twin: np.ndarray, job: tuple[Path, int, str, int]) -> dict:
    """A batch's record, its twins marked and their pictures removed."""
    path = job[0] / ".done" / f"{_fingerprint(batch, *job)}.json"
    record = _read_record(path)
    before = np.array([row["twin"] for row in record["rows"]], dtype=bool)
    if (before & ~twin).any():  # the picture that it was a twin of is gone since
        _convert_batch(batch, *job, again=True)
        record = _read_record(path)
        before[:] = False
    gone = collections.defaultdict(set)
    for row, now, was in zip(record["rows"], twin.tolist(), before.tolist(), strict=True):
        row["twin"] = now
        if now and not was:
            gone[_file_of(row)].add(row["file_name"])
    for file, names in gone.items():
        if file.endswith(".parquet"):
            drop_from_shard(job[0] / file, names)
        else:
            (job[0] / file).unlink(missing_ok=True)
    if gone:
        write_json(path, record)
    return record


def _folders() -> list[str]:
    return [f"{preset}/{split}" for preset in PRESETS for split in SPLITS]


def _table(stack: contextlib.ExitStack, folder: Path) -> "csv._writer":
    """A metadata.csv, open for its rows."""
    temporary = stack.enter_context(atomic(folder / "metadata.csv"))
    writer = csv.writer(stack.enter_context(temporary.open("w", encoding="utf-8", newline="")))
    writer.writerow(METADATA)
    return writer


def _remove_others(images: Path, current: set[str]) -> None:
    """Remove the pictures that runs with other settings made, and their records."""
    begun: set[str] = set()
    for path in (images / ".done").glob("*.json"):
        record = _read_record(path)
        if record["rows"] is None:
            begun |= {path.stem, *record["names"]}
        if path.stem in current:
            continue
        for file in {_file_of(row) for row in record["rows"] or []}:
            (images / file).unlink(missing_ok=True)
        path.unlink()
    for folder in map(images.joinpath, _folders()):
        for path in folder.glob("*.p*") if begun else ():
            if path.stem in begun or path.stem.rpartition("_")[0] in begun:
                path.unlink()
        if not any(folder.glob("*.png")):
            (folder / "metadata.csv").unlink(missing_ok=True)


# ---------------------------------------------------------------- pictures of a run


def ensure_images(run_dir: str | Path, preset_name: str) -> Path:
    """The run's folder of pictures for a preset; empty, it is filled from the built-in corpus."""
    images = Path(run_dir) / "images"
    folder = images / preset_name
    if not has_pictures(folder / "train"):
        if any((images / ".done").glob("*.json")):  # of a collection: it must not be replaced
            raise MusicError(f"{folder}: no pictures, but this run has others; run notebook "
                             "01_midi2img again")
        print(f"No pictures in {folder.as_posix()}: making them from the built-in corpus.")
        convert("builtin", run_dir)
    return folder
