"""Pictures on disk: a folder of PNG files, or parquet shards of PNG bytes. See notebooks 01 to 03.

Both hold the same PNG bytes and the same facts beside them, and both load with Hugging Face's
`datasets` as images: `load_dataset("imagefolder", data_dir=...)` and `load_dataset("parquet",
data_dir=...)`. A million small files are slow to list and to copy; shards are not.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils import pianoroll
from utils.files import MusicError, atomic
from utils.pianoroll import PRESETS

METADATA = ("file_name", "source", "start_step", "tempo")
FEATURES = {"image": {"_type": "Image"}} | {
    name: {"dtype": kind, "_type": "Value"} for name, kind in
    zip(METADATA, ("string", "string", "int64", "float64"), strict=True)}
ROWS_AT_ONCE = 256  # of a shard in memory


# ---------------------------------------------------------------- shards


def write_shard(path: Path, rows: list[dict]) -> None:
    """Write rows (`METADATA` and the PNG's bytes as "png") as one parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    facts = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    schema = pa.schema({"image": image, "file_name": pa.string(), "source": pa.string(),
                        "start_step": pa.int64(), "tempo": pa.float64()}, metadata=facts)
    images = [{"bytes": row["png"], "path": row["file_name"]} for row in rows]
    columns = [[row[name] for row in rows] for name in METADATA]
    table = pa.table([pa.array(images, image), *columns], schema=schema)
    with atomic(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROWS_AT_ONCE, compression="zstd",
                       use_dictionary=["source"])


def drop_from_shard(path: Path, file_names: set[str]) -> None:
    """Rewrite a shard without some of its rows; a shard without rows is removed."""
    import pyarrow.parquet as pq
    table = pq.read_table(path)
    kept = table.filter([name not in file_names for name in table["file_name"].to_pylist()])
    if not len(kept):
        path.unlink()
    elif len(kept) < len(table):
        with atomic(path) as temporary:
            pq.write_table(kept, temporary, row_group_size=ROWS_AT_ONCE, compression="zstd",
                           use_dictionary=["source"])


# ---------------------------------------------------------------- reading


def find_pictures(folder: str | Path) -> tuple[list[str], list[str]]:
    """Paths of the PNG files and of the parquet shards in a folder, each in order of name.

    Raises `MusicError` where there is neither.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [entry.path for entry in entries if not entry.name.startswith(".")]
        files = sorted(name for name in names if name.endswith(".png"))
        shards = sorted(name for name in names if name.endswith(".parquet"))
    if not Path(folder).is_dir() or not (files or shards):
        raise MusicError(f"{folder}: no pictures; run notebook 01_midi2img first")
    return files, shards


def has_pictures(folder: str | Path) -> bool:
    """Whether a folder is there and holds a picture, in either storage."""
    return any(Path(folder).glob("*.p[na]*"))


def count_pictures(folder: str | Path) -> int:
    """How many pictures a folder holds, in either storage."""
    files, shards = find_pictures(folder)
    return len(files) + sum(map(_rows_in, shards))


def _rows_in(shard: str) -> int:
    """How many rows a shard has. Raises `MusicError` for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    try:
        return pq.read_metadata(shard).num_rows
    except (OSError, pa.ArrowException) as error:
        raise _damaged(shard, error) from None


def _damaged(shard: str, error: Exception) -> MusicError:
    return MusicError(f"{shard}: no shard of pictures ({str(error).splitlines()[0]}); run "
                      "notebook 01_midi2img again")


def load_levels(folder: str | Path, preset_name: str | None = None, most: int = 0) -> np.ndarray:
    """The pictures of a folder, in order of file and row, as `uint8 [N, pitches, steps]`.

    All of them, or with `most` that many, evenly spaced. Raises `MusicError` where there are none,
    or where one differs in size from the preset. A collection too large for memory:
    `stream_levels`.
    """
    size = _size(folder, preset_name)
    levels = np.empty((min(count := count_pictures(folder), most or count), *size), dtype=np.uint8)
    for at, row in enumerate(_evenly(folder, len(levels))):
        levels[at] = _decoded(*row, size)
    return levels


def load_pictures(folder: str | Path, most: int = 0) -> list[pianoroll.Picture]:
    """The same pictures as `load_levels`, with their facts. An empty folder has none."""
    if not has_pictures(folder):
        return []
    count = count_pictures(folder)
    return [pianoroll.load_png(*row) for row in _evenly(folder, min(count, most or count))]


def load_examples(run_dir: str | Path, preset_name: str, most: int = 2048
                  ) -> tuple[np.ndarray, np.ndarray]:
    """A run's pictures to train on and its held-out pictures, at most `most` of each.

    Where nothing is held out (a collection of one piece), both are training pictures, and a line
    says so.
    """
    folder = Path(run_dir) / "images" / preset_name
    train = load_levels(folder / "train", preset_name, most)
    if has_pictures(folder / "valid"):
        return train, load_levels(folder / "valid", preset_name, most)
    print("Nothing is held out: training pictures stand in for new music.")
    return train, train


def stream_levels(folder: str | Path, batch_size: int, preset_name: str | None = None,
                  seed: int = 0, start: int = 0, buffer: int = 16_384) -> Iterator[np.ndarray]:
    """Batches `uint8 [batch_size, pitches, steps]` in random order, for ever, from batch `start`.

    A collection of at most `buffer` pictures is read once. Of a larger one, memory holds the names
    of its files, or `buffer` rows of its shards, which come in random order; each waits in the
    buffer for its turn, drawn by chance. An epoch shows every picture once, but for a short
    batch's worth at its end; a collection smaller than a batch repeats pictures. Batch number k
    is the same for the same seed, wherever one starts.
    """
    size, count = _size(folder, preset_name), count_pictures(folder)
    all_of_them = load_levels(folder, preset_name) if count <= max(buffer, batch_size) else None
    an_epoch = max(1, count // batch_size)
    for epoch in itertools.count(start // an_epoch):
        rng = np.random.default_rng([seed, epoch])
        skipped = start % an_epoch * batch_size if epoch == start // an_epoch else 0
        if all_of_them is None:
            drawn = itertools.islice(_shuffled(folder, buffer, rng), skipped, None)
            pictures = (_decoded(*row, size) for row in drawn)
        else:
            order = np.resize(rng.permutation(count), max(count, batch_size))
            pictures = (all_of_them[i] for i in order[skipped:])
        while len(batch := list(itertools.islice(pictures, batch_size))) == batch_size:
            yield np.stack(batch)


Row = tuple[str, bytes | None]  # a picture: its file and None, or its shard and its PNG


def _shuffled(folder: str | Path, buffer: int, rng: np.random.Generator) -> Iterator[Row]:
    """Every picture once, through a buffer from which chance draws the next."""
    files, shards = ([paths[i] for i in rng.permutation(len(paths))]
                     for paths in find_pictures(folder))
    waiting: list[Row] = []
    for row in _rows(files, shards):
        if len(waiting) < buffer:
            waiting.append(row)
            continue
        drawn = rng.integers(buffer)
        yield waiting[drawn]
        waiting[drawn] = row
    for drawn in rng.permutation(len(waiting)):
        yield waiting[drawn]


def _rows(files: list[str], shards: list[str]) -> Iterator[Row]:
    """The pictures of files, then of shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    yield from ((path, None) for path in files)
    for path in shards:
        try:
            with pq.ParquetFile(path, pre_buffer=False) as shard:
                for rows in shard.iter_batches(ROWS_AT_ONCE, columns=["image.bytes"]):
                    yield from ((path, png.as_py()) for png in rows["image"].field("bytes"))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise _damaged(path, error) from None


def _evenly(folder: str | Path, count: int) -> Iterator[Row]:
    """`count` rows of a folder, from the first to the last in equal strides."""
    chosen = np.linspace(0, count_pictures(folder) - 1, count).round().astype(int)
    wanted = iter(chosen.tolist())
    number = next(wanted)
    for i, row in enumerate(_rows(*find_pictures(folder))):
        if i == number:
            yield row
            number = next(wanted, None)


def _decoded(path: str, png: bytes | None, size: tuple[int, ...]) -> np.ndarray:
    """A row's levels. Raises `MusicError` where they are not of this size."""
    levels = pianoroll.load_png(path, png).levels
    if levels.shape != tuple(size):
        raise MusicError(f"{path}: {'×'.join(map(str, levels.shape))} pixels, not "
                         f"{'×'.join(map(str, size))}; run notebook 01_midi2img again")
    return levels


def _size(folder: str | Path, preset_name: str | None) -> tuple[int, int]:
    """Rows and columns: the preset's, or the first picture's."""
    if preset_name in PRESETS:
        return PRESETS[preset_name].pitches, PRESETS[preset_name].steps
    return pianoroll.load_png(*next(_rows(*find_pictures(folder)))).levels.shape
