"""A folder or a named collection of MIDI becomes images, which are then loaded or streamed.
Explained in notebook 01.

Images are PNG files, or for large collections rows of parquet files that hold the same bytes.
Hugging Face's `datasets` loads both (`load_dataset("imagefolder" or "parquet", data_dir=...)`).
"""

import collections
import contextlib
import csv
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import pebble
from tqdm import tqdm

from utils import pianoroll
from utils.files import MusicError, atomic, printable, write_json, write_table
from utils.pianoroll import PRESETS
from utils.sources import collection_folder

SPLITS = ("train", "valid")
FOLDERS = [f"{preset}/{split}" for preset in PRESETS for split in SPLITS]
VALID_SHARE = 0.1  # of the pieces, where a collection has no official split
POP909_TRAIN = 720  # ids up to this one are trained on
BATCH = {"png": 8, "parquet": 256}  # files to a task, to a record of what is done, to a shard
ROWS_AT_ONCE = 256  # of a parquet file in memory
METADATA = ("file_name", "source", "start_step", "tempo")
OURS = re.compile(r".*_\d{4,}\.png|[0-9a-f]{32}\.parquet|metadata\.csv|\.\d+-.*")  # files made here

CPU_S = 2.0  # a file, in a child process; processor time, so that a busy machine changes nothing
WALL_S = 60.0  # a file, where it waits for a disk or where processor time cannot be limited
MEMORY_MIB = 400  # for a child process, on top of the interpreter and its libraries
FROM_OUTSIDE = {-signal.SIGINT, -signal.SIGTERM, signal.SIGTERM, -9, -1}  # exit codes; -9: SIGKILL


@dataclass(frozen=True, slots=True)
class Piece:
    """One MIDI file: `source` is its path below the collection, `split` is train or valid."""

    path: str
    source: str
    split: str
    digest: str  # sha256 of the bytes


@dataclass(frozen=True)
class Summary:
    """What a conversion made: images by "preset/split", and (source, reason) of the skipped."""

    pictures: dict[str, int]
    skipped: list[tuple[str, str]]
    pieces: int


# ---------------------------------------------------------------- pieces and their split


def find_midi(midi_dir: str | Path) -> list[Path]:
    """Every .mid and .midi file below a folder, in order, at any depth (links to folders are not
    followed), or of an archive or a collection by name."""
    folder = collection_folder(midi_dir)
    found = sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names
                   if name.lower().endswith((".mid", ".midi")) and name[:2] != "._")
    if not found:
        raise MusicError(f"{midi_dir}: no MIDI files (.mid, .midi) in it; set midi_dir to a folder "
                         "that has some, or to 'builtin'")
    return found


def official_split(folder: Path) -> Callable[[str], str] | None:
    """The publisher's split as a function of `source`, for MAESTRO and POP909; else None."""
    for table in sorted(folder.glob("maestro-v*.csv")):
        with table.open(encoding="utf-8", newline="") as file:
            splits = {row["midi_filename"]: row["split"] for row in csv.DictReader(file)}
        return lambda source: {"validation": "valid"}.get(s := splits.get(source, "test"), s)
    if folder.name.lower().startswith("pop909"):
        return lambda source: "train" if int("0" + re.sub(r"\D", "", Path(source).stem)[:3]) \
            <= POP909_TRAIN else "valid"
    return None


def choose_pieces(midi_dir: str | Path, max_files: int = 0, seed: int = 0) -> list[Piece]:
    """The pieces of a collection with their split, by name.

    The split is the publisher's where there is one (its test pieces are left out). Otherwise a
    tenth of the whole MIDI files is held out, chosen by seed and content, so a copy under another
    name lands on the same side. `max_files` above 0 keeps that many, chosen by seed, each split in
    proportion.
    """
    paths, folder = find_midi(midi_dir), collection_folder(midi_dir)
    read = joblib.Parallel(n_jobs=8, prefer="threads")  # a disk may be slow
    digests, whole = zip(*read(map(joblib.delayed(_digest), paths)), strict=True)
    rank = {digest: hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest() for digest in digests}
    order = sorted(set(itertools.compress(digests, whole)), key=rank.get)
    held_out = set(order[: max(1, round(len(order) * VALID_SHARE)) if len(order) > 1 else 0])
    official = official_split(folder) or (lambda _: None)
    sources = [printable(path.relative_to(folder).as_posix()) for path in paths]
    pieces = [Piece(str(path.absolute()), source,
                    official(source) or ("valid" if digest in held_out else "train"), digest)
              for path, source, digest in zip(paths, sources, digests, strict=True)]
    pieces = [piece for piece in pieces if piece.split in SPLITS]
    if 0 < max_files < len(pieces):
        pieces.sort(key=lambda piece: rank[piece.digest])
        train, valid = ([p for p in pieces if p.split == split] for split in SPLITS)
        share = min(len(valid), max(1, round(max_files * len(valid) / len(pieces))))
        share = 0 if max_files == 1 else share
        pieces = train[: max_files - share] + valid[:share]
    return sorted(pieces, key=lambda piece: piece.source)


def _digest(path: Path) -> tuple[str, bool]:
    """sha256 of the file, and whether it is whole MIDI; of its name where it cannot be read (its
    conversion will say why)."""
    try:
        with path.open("rb") as file:
            data = file.read(pianoroll.MAX_BYTES + 1)
    except OSError:
        return hashlib.sha256(os.fsencode(path)).hexdigest(), False
    whole = False
    with contextlib.suppress(MusicError):
        whole = bool(pianoroll.split_midi(data))
    return hashlib.sha256(data).hexdigest(), whole


def image_names(pieces: list[Piece]) -> list[str]:
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


# ---------------------------------------------------------------- a file in a child process


class Stopped(MusicError):
    """The child process was stopped from outside: the file is not to blame."""


@contextlib.contextmanager
def child_processes(count: int) -> Iterator[pebble.ProcessPool]:
    """A pool of child processes with a limit of memory. They end with the block."""
    multiprocessing.current_process().daemon = False  # a dask worker is one: it may have no child
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = pebble.ProcessPool(count, max_tasks=2000, initializer=_limit_memory, context=context)
    try:
        yield pool
    finally:
        pool.stop()
        pool.join()


def guarded(pool: pebble.ProcessPool, function: Callable, *args: object) -> object:
    """`function(*args)` in a child process, where a crash, a hang or a memory leak does no harm.

    Raises what the function raises, `MusicError` where it crashes or exceeds a limit, and `Stopped`
    where the process was killed by the user or by the system. Ctrl-C does not reach the child.
    """
    try:
        return pool.schedule(_timed, (function, *args), timeout=WALL_S).result()
    except pebble.ProcessExpired as death:
        if death.exitcode == -getattr(signal, "SIGPROF", 0):
            raise MusicError(f"takes longer than {CPU_S:.0f} seconds; leave it out") from None
        if death.exitcode in FROM_OUTSIDE:
            raise Stopped("its reader was stopped from outside; run notebook 01 again") from None
        raise MusicError("crashes the reader; the file is damaged, leave it out") from None
    except TimeoutError:
        raise MusicError(f"takes longer than {WALL_S:.0f} seconds; leave it out") from None
    except MemoryError:
        raise MusicError(f"needs more than {MEMORY_MIB} MiB of memory; leave it out") from None
    except Exception:
        if not pool.active:
            raise Stopped("its reader was stopped from outside; run notebook 01 again") from None
        raise


def _limit_memory() -> None:
    """Let the process grow by `MEMORY_MIB` and no more, where the system says how large it is."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _timed(function: Callable, *args: object) -> object:
    """`function(*args)`; the signal SIGPROF ends the process after `CPU_S`."""
    timer = getattr(signal, "setitimer", lambda *_: None)  # Windows has none
    timer(getattr(signal, "ITIMER_PROF", 0), CPU_S)
    try:
        return function(*args)
    finally:
        timer(getattr(signal, "ITIMER_PROF", 0), 0)


# ---------------------------------------------------------------- conversion in bulk


def convert(midi_dir: str | Path, run_dir: str | Path, steps_per_beat: int = 4, max_files: int = 0,
            jobs: int = -1, seed: int = 0, storage: str = "png", hop: int = 8) -> Summary:
    """Turn a collection into images: `run_dir/images/<preset>/<split>/*.png`, a metadata.csv in
    each folder, or with `storage="parquet"` files of many rows, with the same PNG bytes and facts.

    `midi_dir` is a folder, an archive or a collection's name (`utils.sources`), `hop` that of
    `pianoroll.windows`. The files are the same bytes whatever `jobs` is (-1: one process a core);
    within `joblib.parallel_config(backend="dask")` a cluster does the work. What an earlier call
    with the same settings finished is not done again; images of other settings are removed. Files
    that give no image of their own are listed with the reason in `images/skipped.csv`. A window
    with the pixels of another is kept once, so no piece is in both splits, under whatever name.
    """
    if storage not in BATCH:
        raise MusicError(f"storage={storage!r}: choose 'png' or 'parquet'")
    if not 1 <= hop <= 8:
        raise MusicError(f"hop is {hop}; choose 1 to 8 eighths of an image")
    images = Path(run_dir).absolute() / "images"
    pieces = choose_pieces(midi_dir, max_files, seed)
    made = _convert_pieces(pieces, images, jobs, storage, steps_per_beat, hop)
    if any(made.pictures.values()) and not any(made.pictures[f] for f in FOLDERS[::2]):
        pieces = [replace(piece, split="train") for piece in pieces]  # all others gave nothing
        made = _convert_pieces(pieces, images, jobs, storage, steps_per_beat, hop)
    if not any(made.pictures.values()):
        raise MusicError(f"{images / 'skipped.csv'}: none of {made.pieces} files became an image; "
                         "read the reasons there, then set midi_dir to other files")
    return made


def _convert_pieces(pieces: list[Piece], images: Path, jobs: int, *settings: str | int) -> Summary:
    """Convert in parallel, and write what comes in order: the training pieces, then the others."""
    named = sorted(zip(pieces, image_names(pieces), strict=True),
                   key=lambda pair: SPLITS.index(pair[0].split))
    storage, size = settings[0], BATCH[settings[0]]
    batches = [named[i : i + size] for i in range(0, len(named), size)]
    paths = [images / ".done" / f"{_fingerprint(batch, *settings)}.json" for batch in batches]
    _remove_others(images, set(paths))
    done = {path for path in paths if path.is_file()}
    todo = [batch for batch, path in zip(batches, paths, strict=True) if path not in done]
    seen: dict[str, tuple[str, str]] = {}  # digest of a window: the file and source that has it
    skipped, counts, tables = [], dict.fromkeys(FOLDERS, 0), {folder: [] for folder in FOLDERS}
    with _shared_pool(jobs), tqdm(total=len(pieces), unit="file", desc="MIDI → images") as bar:
        fresh = joblib.Parallel(n_jobs=jobs, return_as="generator", prefer="threads")(
            joblib.delayed(_convert_batch)(batch, *settings) for batch in todo)
        for batch, path in zip(batches, paths, strict=True):
            record = _read_record(path) if path in done else next(fresh)
            if path not in done or not _is_current(images, record, seen):
                record = record if path not in done else _convert_batch(batch, *settings)
                _write(images, path, record, seen)
            skipped += map(tuple, record["skipped"])
            for row in record["rows"]:
                if not row["twin"]:
                    counts[row["folder"]] += 1
                    if storage == "png":
                        tables[row["folder"]].append([row[column] for column in METADATA])
            bar.update(len(batch))
    for folder, rows in tables.items() if storage == "png" else ():
        write_table(images / folder / "metadata.csv", METADATA, rows)
    write_table(images / "skipped.csv", ("file", "reason"), sorted(skipped))
    return Summary(counts, sorted(skipped), len(pieces))


def _convert_batch(batch: list[tuple[Piece, str]], storage: str, *settings: int) -> dict:
    """The record of a few files: a row a window, each with its PNG, and what is skipped and why.
    It is "final" unless a child process was stopped from outside."""
    record = {"storage": storage, "rows": [], "skipped": [], "final": True}
    with contextlib.nullcontext(_pools[-1]) if _pools else child_processes(1) as pool:
        for piece, name in batch:
            try:
                record["rows"] += guarded(pool, _convert_piece, piece, name, *settings)
            except Exception as error:  # no fault in one file, of ours either, stops the others
                reason = str(error).removeprefix(f"{piece.path}: ")
                if not isinstance(error, MusicError):
                    reason = f"the reader fails ({reason.partition(chr(10))[0]}); leave it out"
                record["skipped"].append((piece.source, reason))
                record["final"] &= not isinstance(error, Stopped)
    return record


_pools: list[pebble.ProcessPool] = []  # of this process while it converts; none in a dask worker


@contextlib.contextmanager
def _shared_pool(jobs: int) -> Iterator[None]:
    """Child processes for all batches that are converted in this process."""
    with child_processes(joblib.effective_n_jobs(jobs)) as pool:
        _pools.append(pool)
        try:
            yield
        finally:
            _pools.remove(pool)


def _convert_piece(piece: Piece, name: str, steps_per_beat: int, hop: int) -> list[dict]:
    """A row of metadata, with the PNG's bytes, for each window of a piece."""
    whole = pianoroll.read_midi(piece.path, steps_per_beat)
    rows, lines = [], pianoroll.bar_lines_of(whole)
    for preset in PRESETS.values():
        for number, picture in enumerate(pianoroll.windows(whole, preset, hop, lines)):
            digest = hashlib.blake2b(picture.pixels, digest_size=8, salt=preset.name.encode())
            rows.append({"folder": f"{preset.name}/{piece.split}",
                         "file_name": f"{name}_{number:04d}.png", "source": piece.source,
                         "start_step": picture.start_step, "tempo": round(picture.tempo_bpm, 3),
                         "digest": digest.hexdigest(), "png": pianoroll.png_bytes(picture)})
    if not rows:
        raise MusicError("no note within the images' pitches; leave it out")
    return rows


# ---------------------------------------------------------------- records, files and tables


def _fingerprint(batch: list[tuple[Piece, str]], *settings: object) -> str:
    todo = [(piece.source, piece.split, piece.digest, name) for piece, name in batch]
    return hashlib.sha256(json.dumps([todo, *settings]).encode()).hexdigest()[:32]


def _read_record(path: Path) -> dict:
    """What a batch became."""
    return json.loads(path.read_text(encoding="utf-8"))  # it was written whole or not at all


def _file_of(row: dict) -> str:
    """The file that holds a row's image, below `images`."""
    return f"{row['folder']}/{row.get('shard', row['file_name'])}"


def _twin(row: dict, seen: dict[str, tuple[str, str]]) -> str:
    """The source of an earlier window with the same pixels; "" for the first one."""
    first = seen.setdefault(row["digest"], (row["file_name"], row["source"]))
    return "" if first[0] == row["file_name"] else first[1]


def _is_current(images: Path, record: dict, seen: dict[str, tuple[str, str]]) -> bool:
    """Whether a record's files are there and its duplicates are still those of today."""
    return (all(row["twin"] == _twin(row, seen) for row in record["rows"])
            and all((images / file).is_file()
                    for file in {_file_of(row) for row in record["rows"] if not row["twin"]}))


def _write(images: Path, path: Path, record: dict, seen: dict[str, tuple[str, str]]) -> None:
    """Write the images of a fresh record, but for duplicates, and then the record."""
    rows, shard = record["rows"], f"{path.stem}.parquet"
    for row in rows:
        row["twin"] = _twin(row, seen)
    kept = {row["source"] for row in rows if not row["twin"]}
    duplicates = {row["source"]: row["twin"] for row in rows if row["source"] not in kept}
    record["skipped"] += [(source, f"a duplicate of {of}") for source, of in duplicates.items()]
    try:
        for folder in FOLDERS:
            (images / folder).mkdir(parents=True, exist_ok=True)
            own = [row for row in rows if row["folder"] == folder]
            if record["storage"] == "parquet":
                write_shard(images / folder / shard, [row for row in own if not row["twin"]])
            for row in own:
                png = row.pop("png")
                if record["storage"] == "parquet":
                    row["shard"] = shard
                elif row["twin"]:
                    (images / _file_of(row)).unlink(missing_ok=True)
                else:
                    (images / _file_of(row)).write_bytes(png)
    except OSError as error:
        raise MusicError(f"{images}: cannot be written ({error.strerror}); free some disk space, "
                         "or choose another run_dir") from None
    if record["final"]:
        write_json(path, record)


def write_shard(path: Path, rows: list[dict]) -> None:
    """Write rows (`METADATA` and the PNG's bytes as "png") as one parquet file; none if empty."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    import datasets  # here, since it takes a second
    datasets.disable_progress_bars()
    features = {"image": datasets.Image()} | {
        name: datasets.Value(kind) for name, kind in
        zip(METADATA, ("string", "string", "int64", "float64"), strict=True)}
    columns = {"image": [{"bytes": row["png"], "path": row["file_name"]} for row in rows]} | {
        name: [row[name] for row in rows] for name in METADATA}
    with atomic(path) as temporary:
        datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(
            temporary, batch_size=ROWS_AT_ONCE)


def _remove_others(images: Path, records: set[Path]) -> None:
    """Remove the records and images of other settings, and what a killed run left half-done."""
    kept = set()
    for path in (images / ".done").glob("*"):
        if path in records:
            kept |= {_file_of(row) for row in _read_record(path)["rows"] if not row["twin"]}
        else:
            path.unlink()
    for folder in ("", *FOLDERS):
        for path in (images / folder).glob("*"):
            if OURS.fullmatch(path.name) and f"{folder}/{path.name}" not in kept:
                path.unlink()


# ---------------------------------------------------------------- images of a run


def ensure_images(run_dir: str | Path, preset_name: str) -> Path:
    """The run's folder of images for a preset; empty, it is filled from the built-in corpus."""
    images = Path(run_dir) / "images"
    folder = images / preset_name
    if not _has_images(folder / "train"):
        if any((images / ".done").glob("*.json")):  # of a collection: it must not be replaced
            raise MusicError(f"{folder}: no images, but this run has others; run notebook "
                             "01_midi2img again")
        print(f"No images in {folder.as_posix()}: making them from the built-in corpus.")
        convert("builtin", run_dir)
    return folder


def _find_images(folder: str | Path) -> tuple[list[str], list[str]]:
    """Paths of the PNG files and of the parquet files in a folder, each in order of name.

    Raises `MusicError` where there is neither.
    """
    files, shards = (sorted(str(path) for path in Path(folder).glob(f"*.{suffix}")
                            if path.name[0] != ".") for suffix in ("png", "parquet"))
    if not files and not shards:
        raise MusicError(f"{folder}: no images; run notebook 01_midi2img first")
    return files, shards


def _has_images(folder: str | Path) -> bool:
    return any(Path(folder).glob("*.p[na]*"))


def count_images(folder: str | Path) -> int:
    """How many images a folder holds, as PNG files or as rows of parquet files."""
    import pyarrow.parquet
    files, shards = _find_images(folder)
    count = len(files)
    for shard in shards:
        try:
            count += pyarrow.parquet.read_metadata(shard).num_rows
        except (OSError, pyarrow.ArrowException) as error:
            raise MusicError(f"{shard}: no parquet file ({str(error).splitlines()[0]}); run "
                             "notebook 01_midi2img again") from None
    return count


Image = tuple[str, bytes | None]  # its path, and where that is no file of its own its PNG's bytes


def _evenly(folder: str | Path, most: int = 0) -> list[Image]:
    """All images of a folder in order, or `most`, from the first to the last in equal strides."""
    import pyarrow.dataset
    count = count_images(folder)
    chosen = np.linspace(0, count - 1, min(count, most or count)).round().astype(int)
    files, shards = _find_images(folder)
    if files:
        return [(files[i], None) for i in chosen]
    rows = pyarrow.dataset.dataset(shards, format="parquet").take(chosen, columns=["image"])
    return [(f"{folder}/{row['path']}", row["bytes"]) for row in rows["image"].to_pylist()]


def _decoded(path: str, png: bytes | None, size: tuple[int, ...]) -> np.ndarray:
    """The pixels of an image. Raises `MusicError` where they are not of this size."""
    pixels = pianoroll.load_png(path, png).pixels
    if pixels.shape != tuple(size):
        raise MusicError(f"{path}: {'×'.join(map(str, pixels.shape))} pixels, not "
                         f"{'×'.join(map(str, size))}; run notebook 01_midi2img again")
    return pixels


def _size(folder: str | Path, preset_name: str | None) -> tuple[int, int]:
    """Rows and columns: the preset's, or the first image's."""
    if preset_name in PRESETS:
        return PRESETS[preset_name].pitches, PRESETS[preset_name].steps
    return pianoroll.load_png(*_evenly(folder, 1)[0]).pixels.shape


def load_rolls(folder: str | Path, preset_name: str | None = None, most: int = 0) -> np.ndarray:
    """The images of a folder, in order of file and row, as `uint8 [N, pitches, steps]`.

    All of them, or with `most` that many, evenly spaced. Raises `MusicError` where there are none,
    or where one differs in size from the preset. A collection too large for memory:
    `stream_rolls`.
    """
    size = _size(folder, preset_name)
    return np.stack([_decoded(*image, size) for image in _evenly(folder, most)])


def load_images(folder: str | Path, most: int = 0) -> list[pianoroll.PianoRoll]:
    """The same images as `load_rolls`, with their facts. An empty folder has none."""
    return [pianoroll.load_png(*image) for image in
            (_evenly(folder, most) if _has_images(folder) else ())]


def load_examples(run_dir: str | Path, preset_name: str, most: int = 2048
                  ) -> tuple[np.ndarray, np.ndarray]:
    """A run's images to train on and its held-out images, at most `most` of each.

    Where nothing is held out (a collection of one piece), both are training images, and a line
    says so.
    """
    folder = Path(run_dir) / "images" / preset_name
    train = load_rolls(folder / "train", preset_name, most)
    if _has_images(folder / "valid"):
        return train, load_rolls(folder / "valid", preset_name, most)
    print("Nothing is held out: training images stand in for new music.")
    return train, train


def stream_rolls(folder: str | Path, batch_size: int, preset_name: str | None = None,
                  seed: int = 0, start: int = 0, buffer: int = 16_384) -> Iterator[np.ndarray]:
    """Batches `uint8 [batch_size, pitches, steps]` in random order, for ever, from batch `start`.

    A collection of at most `buffer` images is read once. Of a larger one, memory holds the names of
    its PNG files, or `buffer` rows of its parquet files. An epoch shows every image once, but for a
    short batch's worth at its end; a collection smaller than a batch repeats images. Batch number k
    is the same for the same seed, wherever one starts.
    """
    size, count = _size(folder, preset_name), count_images(folder)
    all_of_them = load_rolls(folder, preset_name) if count <= max(buffer, batch_size) else None
    an_epoch = max(1, count // batch_size)
    for epoch in itertools.count(start // an_epoch):
        rng = np.random.default_rng([seed, epoch])
        skipped = start % an_epoch * batch_size if epoch == start // an_epoch else 0
        if all_of_them is None:
            drawn = itertools.islice(_shuffled(folder, buffer, rng), skipped, None)
            images = (_decoded(*image, size) for image in drawn)
        else:
            order = np.resize(rng.permutation(count), max(count, batch_size))
            images = (all_of_them[i] for i in order[skipped:])
        while len(batch := list(itertools.islice(images, batch_size))) == batch_size:
            yield np.stack(batch)


def _shuffled(folder: str | Path, buffer: int, rng: np.random.Generator) -> Iterator[Image]:
    """Every image once: PNG files in random order, rows of parquet files through a buffer, which is
    shuffled and half emptied whenever it is full."""
    import pyarrow.parquet
    files, shards = _find_images(folder)
    yield from ((files[i], None) for i in rng.permutation(len(files)))
    waiting: list[Image] = []
    for i in rng.permutation(len(shards)):
        with pyarrow.parquet.ParquetFile(shards[i], pre_buffer=False) as shard:
            for rows in shard.iter_batches(ROWS_AT_ONCE, columns=["image"]):
                waiting += [(f"{folder}/{row['path']}", row["bytes"])
                            for row in rows["image"].to_pylist()]
                if len(waiting) >= buffer:
                    rng.shuffle(waiting)
                    yield from waiting[buffer // 2 :]
                    del waiting[buffer // 2 :]
    rng.shuffle(waiting)
    yield from waiting
