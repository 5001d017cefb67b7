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
from utils.sources import BUILTIN, collection_folder

SPLITS = ("train", "valid")
FOLDERS = [f"{preset}/{split}" for preset in PRESETS for split in SPLITS]
VALID_SHARE = 0.1  # of the pieces, where a collection has no split of its own
BATCH = {"png": 8, "parquet": 256}  # MIDI files to a task, to a record of what is done, to a shard
METADATA = ("file_name", "source", "start_step", "tempo")
OURS = re.compile(r".*_\d{4,}\.png|[0-9a-f-]{32,}\.(parquet|json)|metadata\.csv|\.\d+-.*")
IN_MEMORY = 16_384  # images that a stream holds; a larger collection is read again and again
ROWS_AT_ONCE = 256  # that are written to or read from a parquet file

CPU_S = 2.0  # a file, in a child process; processor time, so that a busy machine changes nothing
WALL_S = 60.0  # a file, where it waits for a disk or where processor time cannot be limited
MEMORY_MIB = 400  # for a child process, on top of the interpreter and its libraries
OUTSIDE = {signal.SIGTERM, -signal.SIGTERM, -9, -1}  # exit codes of SIGTERM, SIGKILL and SIGHUP


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

    images: dict[str, int]
    skipped: list[tuple[str, str]]
    pieces: int


# ---------------------------------------------------------------- pieces and their split


def find_midi(midi_dir: str | Path) -> list[Path]:
    """Every .mid and .midi file of a folder, an archive or a named collection, at any depth."""
    found = sorted(Path(root, name) for root, _, names in os.walk(collection_folder(midi_dir))
                   for name in names
                   if name.lower().endswith((".mid", ".midi")) and name[:2] != "._")
    if not found:
        raise MusicError(f"{midi_dir}: no MIDI files (.mid, .midi) in it; set midi_dir to a folder "
                         "that has some, or to 'builtin'")
    return found


def known_split(folder: Path) -> Callable[[str], str] | None:
    """The split of a known collection, as a function of `source`; None for other collections.

    MAESTRO's is its publisher's. POP909 has none: this project holds its last songs out.
    """
    for table in sorted(folder.glob("maestro-v*.csv")):
        with table.open(encoding="utf-8", newline="") as file:
            splits = {row["midi_filename"]: row["split"] for row in csv.DictReader(file)}
        return lambda source: splits.get(source, "test").replace("validation", "valid")
    if folder.name.lower().startswith("pop909"):
        return lambda source: "valid" if "720" < Path(source).stem[:3] <= "909" else "train"
    return None


def choose_pieces(midi_dir: str | Path, max_files: int = 0, seed: int = 0) -> list[Piece]:
    """The pieces of a collection with their split, in order of `source`.

    The split is that of `known_split` (MAESTRO's test pieces are left out). In other collections a
    tenth of the whole MIDI files is held out, chosen by seed and content, so a copy under another
    name lands on the same side; of the built-in corpus, a piece of each style. `max_files` above 0
    keeps that many, chosen by seed, each split in proportion.
    """
    paths = find_midi(folder := collection_folder(midi_dir))
    read = joblib.Parallel(n_jobs=8, prefer="threads")  # a disk may be slow
    digests, whole = zip(*read(map(joblib.delayed(_digest), paths)), strict=True)
    rank = {digest: hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest() for digest in digests}
    order = sorted(set(itertools.compress(digests, whole)), key=rank.get)
    count = max(1, round(len(order) * VALID_SHARE)) if len(order) > 1 else 0
    if folder.resolve() == BUILTIN.resolve():  # the first of each style: 000_chorale_c-minor
        style = {digest: path.stem.partition("_")[2].partition("_")[0]
                 for digest, path in zip(digests, paths, strict=True)}
        order = sorted({style[digest]: digest for digest in reversed(order)}.values(),
                       key=order.index)
    held_out = set(order[:count])
    split_of = known_split(folder)
    pieces = []
    for path, digest in zip(paths, digests, strict=True):
        source = printable(path.relative_to(folder).as_posix())
        split = split_of(source) if split_of else "valid" if digest in held_out else "train"
        if split in SPLITS:
            pieces.append(Piece(str(path.absolute()), source, split, digest))
    if 0 < max_files < len(pieces):
        pieces.sort(key=lambda piece: rank[piece.digest])
        train, valid = ([p for p in pieces if p.split == split] for split in SPLITS)
        share = max(1, round(max_files * len(valid) / len(pieces))) if max_files > 1 else 0
        valid = valid[:share]
        pieces = train[: max_files - len(valid)] + valid
    return sorted(pieces, key=lambda piece: piece.source)


def _digest(path: Path) -> tuple[str, bool]:
    """sha256 of the file, of its name where it cannot be read; and whether it is whole MIDI."""
    try:
        with path.open("rb") as file:
            data = file.read(pianoroll.MAX_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        pianoroll.read_chunks(data)
    except OSError:
        return hashlib.sha256(os.fsencode(path)).hexdigest(), False
    except MusicError:
        return digest, False
    return digest, True


def image_names(pieces: list[Piece]) -> list[str]:
    """A file name without suffix for each piece: safe on every disk, unique, and the same for the
    same source. It is the file's own where possible, else it ends in a hash of the source."""
    clean = [re.sub(r"[^\w.+-]+", "_", piece.source.replace("/", "__")) for piece in pieces]
    stems = [name.removesuffix(".midi").removesuffix(".mid").encode()[:150].decode(errors="ignore")
             for name in clean]
    count = collections.Counter(stem.lower() for stem in stems)  # some disks ignore case
    return [stem if count[stem.lower()] == 1 and stem == Path(piece.source).stem
            else f"{stem}-{hashlib.sha256(piece.source.encode()).hexdigest()[:8]}"
            for stem, piece in zip(stems, pieces, strict=True)]


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

    Raises `MusicError` where the function does, fails, crashes or exceeds a limit, and `Stopped`
    where the process was killed by the user or by the system. Ctrl-C does not reach the child.
    """
    try:
        return pool.schedule(_timed, (function, *args), timeout=WALL_S).result()
    except MusicError:
        raise
    except Exception as error:
        if getattr(error, "exitcode", 0) in OUTSIDE or not pool.active:  # at work, or as it waited
            raise Stopped("its reader was stopped from outside; run notebook 01 again") from None
        if isinstance(error, (pebble.ProcessExpired, TimeoutError, MemoryError)):
            raise MusicError(f"crashes the reader, or takes it more than {CPU_S:.0f} seconds or "
                             f"{MEMORY_MIB} MiB of memory; leave it out") from None
        raise MusicError(f"the reader fails ({error!r:.60}); leave it out") from None


def _limit_memory() -> None:
    """Let the process grow by `MEMORY_MIB` and no more, where the system says how large it is."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _timed(function: Callable, *args: object) -> object:
    """`function(*args)`; the signal SIGPROF ends the process after `CPU_S`."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # it stands still while the process waits
    return function(*args)


# ---------------------------------------------------------------- conversion in bulk


def convert(midi_dir: str | Path, run_dir: str | Path, steps_per_beat: int = 4, max_files: int = 0,
            jobs: int = -1, seed: int = 0, storage: str = "png", hop: int = 8) -> Summary:
    """Turn a collection into images: `run_dir/images/<preset>/<split>/*.png`, a metadata.csv in
    each folder, or with `storage="parquet"` files of many rows, with the same PNG bytes and facts.

    `midi_dir` is a folder, an archive or a collection's name (`utils.sources`), `hop` that of
    `pianoroll.windows`. The files are the same bytes whatever `jobs` is (-1: one process a core);
    within `joblib.parallel_config(backend="dask")` a cluster does the work. What an earlier call
    with the same settings finished is not done again; images of other settings are removed. Of
    windows with the same pixels the first is kept. `images/skipped.csv` names the files that gave
    no image of their own, with the reason.
    """
    if storage not in BATCH:
        raise MusicError(f"storage={storage!r}: choose 'png' or 'parquet'")
    if not 1 <= hop <= 8:
        raise MusicError(f"hop is {hop}; choose 1 to 8 eighths of an image")
    images = Path(run_dir).absolute() / "images"
    pieces = choose_pieces(midi_dir, max_files, seed)
    made = _convert_pieces(pieces, images, jobs, storage, steps_per_beat, hop)
    if any(made.images.values()) and not any(made.images[f] for f in FOLDERS[::2]):
        pieces = [replace(piece, split="train") for piece in pieces]  # all others gave nothing
        made = _convert_pieces(pieces, images, jobs, storage, steps_per_beat, hop)
    if not any(made.images.values()):
        raise MusicError(f"{images / 'skipped.csv'}: none of {made.pieces} files became an image; "
                         "read the reasons there, then set midi_dir to other files")
    return made


def _convert_pieces(pieces: list[Piece], images: Path, jobs: int, storage: str, *settings: int
                    ) -> Summary:
    """Convert the training pieces, then the others, and write the tables."""
    named = sorted(zip(pieces, image_names(pieces), strict=True),
                   key=lambda pair: SPLITS.index(pair[0].split))
    skipped, tables = [], {folder: [] for folder in FOLDERS}
    for record in _records(named, images, jobs, storage, settings):
        skipped += map(tuple, record["skipped"])
        for row in record["rows"]:
            tables[row["folder"]].append([row[column] for column in METADATA])
    if storage == "png":
        for folder, rows in tables.items():
            write_table(images / folder / "metadata.csv", METADATA, rows)
    write_table(images / "skipped.csv", ("file", "reason"), sorted(skipped))
    counts = {folder: len(rows) for folder, rows in tables.items()}
    return Summary(counts, sorted(skipped), len(pieces))


def _records(named: list[tuple[Piece, str]], images: Path, jobs: int, storage: str,
             settings: tuple[int, ...]) -> Iterator[dict]:
    """What each batch of pieces gave, in order: read from `images/.done` where an earlier run made
    it, then converted in parallel and written. A record's name depends on all pieces and settings.
    """
    what = [(name, piece.source, piece.split, piece.digest) for piece, name in named]
    key = hashlib.sha256(json.dumps([what, storage, *settings]).encode()).hexdigest()[:32]
    batches = [named[i : i + BATCH[storage]] for i in range(0, len(named), BATCH[storage])]
    paths = [images / ".done" / f"{key}-{number:05d}.json" for number in range(len(batches))]
    done = _finished(images, paths)
    yield from done
    seen = {row["digest"]: row["source"] for record in done for row in record["rows"]}
    todo, final = batches[len(done) :], True
    with (child_processes(joblib.effective_n_jobs(jobs)) as _pools["here"],
          tqdm(total=len(named), unit="file", desc="MIDI → images") as bar):
        bar.update(len(named) - sum(map(len, todo)))
        fresh = joblib.Parallel(n_jobs=jobs, return_as="generator", prefer="threads")(
            joblib.delayed(_convert_batch)(batch, *settings) for batch in todo)
        for batch, path, record in zip(todo, paths[len(done) :], fresh, strict=True):
            _drop_duplicates(record, seen)
            _write_images(images, record["rows"], storage, path.stem)
            final &= record["final"]
            if final:  # else the next run makes it again, and what may be its duplicates
                write_json(path, record)
            yield record
            bar.update(len(batch))


def _finished(images: Path, paths: list[Path]) -> list[dict]:
    """The records that an earlier run wrote, up to the first that lacks an image.

    Removes all other records and images made here: those of other settings, and what a killed run
    left half-done.
    """
    records, kept = [], set()
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        files = {images / row["file"] for row in record.get("rows", ())}
        if not record or not all(map(Path.is_file, files)):
            break
        records.append(record)
        kept |= files | {path}
    for folder in (".done", "", *FOLDERS):
        for path in (images / folder).glob("*"):
            if OURS.fullmatch(path.name) and path not in kept:
                path.unlink()
    return records


_pools: dict[str, pebble.ProcessPool] = {}  # that of this process, if it is no dask worker


def _convert_batch(batch: list[tuple[Piece, str]], *settings: int) -> dict:
    """The record of a few files: a row a window, each with its PNG, and what is skipped and why.
    It is "final" unless a child process was stopped from outside."""
    record = {"rows": [], "skipped": [], "final": True}
    shared = "here" in _pools and _pools["here"].active
    with contextlib.nullcontext(_pools["here"]) if shared else child_processes(1) as pool:
        for piece, name in batch:
            try:
                record["rows"] += guarded(pool, _convert_piece, piece, name, *settings)
            except MusicError as error:
                record["skipped"].append((piece.source, str(error).removeprefix(f"{piece.path}: ")))
                record["final"] &= not isinstance(error, Stopped)
    return record


def _convert_piece(piece: Piece, name: str, steps_per_beat: int, hop: int) -> list[dict]:
    """A row of metadata, with the PNG's bytes, for each window of a piece."""
    whole = pianoroll.read_midi(piece.path, steps_per_beat)
    rows, lines = [], pianoroll.bar_lines_of(whole)
    for preset in PRESETS.values():
        for number, roll in enumerate(pianoroll.windows(whole, preset, hop, lines)):
            digest = hashlib.blake2b(roll.pixels, digest_size=8, salt=preset.name.encode())
            rows.append({"folder": f"{preset.name}/{piece.split}",
                         "file_name": f"{name}_{number:04d}.png", "source": piece.source,
                         "start_step": roll.start_step, "tempo": round(roll.tempo_bpm, 3),
                         "digest": digest.hexdigest(), "png": pianoroll.png_bytes(roll)})
    if not rows:
        raise MusicError("no note within the images' pitches; leave it out")
    return rows


def _drop_duplicates(record: dict, seen: dict[str, str]) -> None:
    """Drop the windows that were seen before; a file that loses all its windows is skipped."""
    kept, twins = [], {}
    for row in record["rows"]:
        if row["digest"] in seen:
            twins[row["source"]] = seen[row["digest"]]
        else:
            seen[row["digest"]] = row["source"]
            kept.append(row)
    record["rows"] = kept
    sources = {row["source"] for row in kept}
    record["skipped"] += [(source, f"a duplicate of {twin}") for source, twin in twins.items()
                          if source not in sources]


def _write_images(images: Path, rows: list[dict], storage: str, shard: str) -> None:
    """Write the PNG of each row to a file, or those of each folder to one parquet file. In each
    row the PNG is replaced by the path of that file below `images`."""
    try:
        for folder in FOLDERS:
            (images / folder).mkdir(parents=True, exist_ok=True)
            own = [row for row in rows if row["folder"] == folder]
            if storage == "parquet" and own:
                write_shard(images / folder / f"{shard}.parquet", own)
            for row in own:
                name, png = row["file_name"], row.pop("png")
                row["file"] = f"{folder}/{name if storage == 'png' else f'{shard}.parquet'}"
                if storage == "png":
                    (images / row["file"]).write_bytes(png)
    except OSError as error:
        raise MusicError(f"{images}: cannot be written ({error.strerror}); free some disk space, "
                         "or choose another run_dir") from None


def write_shard(path: Path, rows: list[dict]) -> None:
    """Write rows (`METADATA` and the PNG's bytes as "png") as one parquet file."""
    import datasets  # here, since it takes a second
    datasets.disable_progress_bars()
    images = datasets.Dataset.from_list([
        {"image": {"bytes": row["png"], "path": row["file_name"]}} | {
            name: row[name] for name in METADATA} for row in rows])
    with atomic(path) as temporary:
        images.cast_column("image", datasets.Image()).to_parquet(temporary, ROWS_AT_ONCE)


# ---------------------------------------------------------------- images of a run


def ensure_images(run_dir: str | Path, preset_name: str) -> Path:
    """The run's folder of images for a preset; empty, it is filled from the built-in corpus."""
    images = Path(run_dir) / "images"
    folder = images / preset_name
    if not _find_images(folder / "train"):
        if any((images / ".done").glob("*.json")):  # of a collection: it must not be replaced
            raise MusicError(f"{folder}: no images, but this run has others; run notebook "
                             "01_midi2img again")
        print(f"No images in {folder.as_posix()}: making them from the built-in corpus.")
        convert("builtin", run_dir)
    return folder


Image = tuple[str, bytes | None]  # its path, and where that is no file of its own its PNG's bytes


def _find_images(folder: str | Path) -> list[str]:
    """Paths of the parquet files of a folder, or else of its PNG files, in order of name."""
    for suffix in ("parquet", "png"):
        if found := sorted(str(path) for path in Path(folder).glob(f"[!.]*.{suffix}")):
            return found
    return []


def count_images(folder: str | Path) -> int:
    """How many images a folder holds, as PNG files or as rows of parquet files.

    Raises `MusicError` where there are none, or where a parquet file is damaged.
    """
    import pyarrow.dataset  # here, since it takes most of a second
    paths = _find_images(folder)
    if not paths:
        raise MusicError(f"{folder}: no images; run notebook 01_midi2img first")
    if paths[0].endswith(".png"):
        return len(paths)
    try:
        return pyarrow.dataset.dataset(paths).count_rows()
    except (OSError, pyarrow.ArrowException) as error:
        raise MusicError(f"{folder}: damaged ({str(error).splitlines()[0]}); run notebook "
                         "01_midi2img again") from None


def _evenly(folder: str | Path, most: int = 0) -> list[Image]:
    """All images of a folder in order, or `most`, from the first to the last in equal strides."""
    import pyarrow.dataset
    count = count_images(folder)
    chosen = np.linspace(0, count - 1, min(count, most or count)).round().astype(int)
    paths = _find_images(folder)
    if paths[0].endswith(".png"):
        return [(paths[i], None) for i in chosen]
    rows = pyarrow.dataset.dataset(paths).take(chosen, columns=["image"])["image"].to_pylist()
    return [(f"{folder}/{row['path']}", row["bytes"]) for row in rows]


def _pixels(image: Image, preset_name: str | None) -> np.ndarray:
    """The pixels of an image. Raises `MusicError` where they are not of the preset's size."""
    pixels, preset = pianoroll.load_png(*image).pixels, PRESETS.get(preset_name)
    if preset and pixels.shape != (preset.pitches, preset.steps):
        raise MusicError(f"{image[0]}: {'×'.join(map(str, pixels.shape))} pixels, not "
                         f"{preset.pitches}×{preset.steps}; run notebook 01_midi2img again")
    return pixels


def load_rolls(folder: str | Path, preset_name: str | None = None, most: int = 0) -> np.ndarray:
    """The images of a folder, or `most` of them, evenly spaced, as `uint8 [N, pitches, steps]`.

    Raises `MusicError` where there are none, or where one differs in size from the preset.
    """
    return np.stack([_pixels(image, preset_name) for image in _evenly(folder, most)])


def load_images(folder: str | Path, most: int = 0) -> list[pianoroll.PianoRoll]:
    """The same images as `load_rolls`, with their facts. An empty folder has none."""
    return [pianoroll.load_png(*image)
            for image in (_evenly(folder, most) if _find_images(folder) else ())]


def load_examples(run_dir: str | Path, preset_name: str, most: int = 2048
                  ) -> tuple[np.ndarray, np.ndarray]:
    """A run's images to train on and its held-out images, at most `most` of each.

    Where nothing is held out (a collection of one piece), both are those to train on.
    """
    folder = Path(run_dir) / "images" / preset_name
    train = load_rolls(folder / "train", preset_name, most)
    if _find_images(folder / "valid"):
        return train, load_rolls(folder / "valid", preset_name, most)
    print("Nothing is held out: training images stand in for new music.")
    return train, train


def stream_rolls(folder: str | Path, batch_size: int, preset_name: str | None = None,
                 seed: int = 0, start: int = 0) -> Iterator[np.ndarray]:
    """Batches `uint8 [batch_size, pitches, steps]` in random order, for ever, from batch `start`.

    An epoch shows every image once, but for a short batch's worth at its end; a collection smaller
    than a batch repeats images. Batch number k is the same for the same seed, wherever one starts.
    A collection of at most `IN_MEMORY` images is read once; of a larger one, memory holds the names
    of its PNG files, or that many rows of its parquet files.
    """
    count = count_images(folder)
    rolls = load_rolls(folder, preset_name) if count <= max(IN_MEMORY, batch_size) else None
    an_epoch = max(1, count // batch_size)
    first_epoch, skipped = divmod(start, an_epoch)
    for epoch in itertools.count(first_epoch):
        rng = np.random.default_rng([seed, epoch])
        first = skipped * batch_size if epoch == first_epoch else 0
        if rolls is None:
            drawn = itertools.islice(_shuffled(folder, rng), first, None)
            images = (_pixels(image, preset_name) for image in drawn)
        else:
            order = np.resize(rng.permutation(count), max(count, batch_size))
            images = (rolls[i] for i in order[first:])
        while len(batch := list(itertools.islice(images, batch_size))) == batch_size:
            yield np.stack(batch)


def _shuffled(folder: str | Path, rng: np.random.Generator) -> Iterator[Image]:
    """Every image once: PNG files in random order; rows of parquet files through a buffer, which is
    shuffled and half emptied whenever it is full."""
    import pyarrow.parquet
    paths = _find_images(folder)
    waiting: list[Image] = []
    for i in rng.permutation(len(paths)):
        if paths[i].endswith(".png"):
            yield paths[i], None
            continue
        with pyarrow.parquet.ParquetFile(paths[i], pre_buffer=False) as shard:
            for rows in shard.iter_batches(ROWS_AT_ONCE, columns=["image"]):
                waiting += [(f"{folder}/{row['path']}", row["bytes"])
                            for row in rows["image"].to_pylist()]
                if len(waiting) >= IN_MEMORY:
                    rng.shuffle(waiting)
                    yield from waiting[IN_MEMORY // 2 :]
                    del waiting[IN_MEMORY // 2 :]
    rng.shuffle(waiting)
    yield from waiting
