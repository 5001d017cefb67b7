"""Pictures on disk: a folder of PNG files, or parquet shards of PNG bytes. See notebooks 01 to 03.

Both hold the same PNG bytes and the same facts beside them, and both load with Hugging Face's
`datasets` as images: `load_dataset("imagefolder", data_dir=...)` and `load_dataset("parquet",
data_dir=...)`. A million small files are slow to list and to copy; shards are not.
"""

import contextlib
import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

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


def count_pictures(folder: str | Path) -> int:
    """How many pictures a folder holds, in either storage."""
    import pyarrow.parquet as pq
    files, shards = find_pictures(folder)
    return len(files) + sum(pq.read_metadata(shard).num_rows for shard in shards)


def load_levels(folder: str | Path, preset_name: str | None = None) -> np.ndarray:
    """All pictures of a folder, in order of file and row, as `uint8 [N, pitches, steps]`.

    Raises `MusicError` where there are none, or where one differs in size from the preset. A
    collection too large for memory: use `stream_levels`.
    """
    files, shards = find_pictures(folder)
    levels = np.empty((count_pictures(folder), *_size(folder, preset_name)), dtype=np.uint8)
    for at, (path, one) in enumerate(itertools.chain(_of_files(files), _of_shards(shards))):
        levels[at] = _checked(path, one, levels.shape[1:])
    return levels


def stream_levels(folder: str | Path, batch_size: int, preset_name: str | None = None,
                  seed: int = 0, buffer: int = 16_384, epochs: int | None = None
                  ) -> Iterator[np.ndarray]:
    """Batches `uint8 [batch_size, pitches, steps]` in random order, for ever or `epochs` times.

    Memory holds `buffer` pictures, whatever the size of the collection: files and shards come in
    random order, and each picture waits in the buffer for its turn, drawn by chance. A collection
    that fits in the buffer is read once and shuffled whole. The last batch of an epoch that is
    short is left out, unless it is the only one. The same seed gives the same batches.
    """
    rng = np.random.default_rng(seed)
    size = _size(folder, preset_name)
    count = count_pictures(folder)
    batch_size = min(batch_size, count)
    fits = load_levels(folder, preset_name) if count <= buffer else None
    for _ in itertools.count() if epochs is None else range(epochs):
        order = iter(fits[rng.permutation(count)]) if fits is not None else _shuffled(
            folder, size, buffer, rng)
        while len(batch := list(itertools.islice(order, batch_size))) == batch_size:
            yield np.stack(batch)


def _shuffled(folder: str | Path, size: tuple[int, int], buffer: int, rng: np.random.Generator
              ) -> Iterator[np.ndarray]:
    """Every picture once, through a buffer from which chance draws the next."""
    files, shards = find_pictures(folder)
    files = [files[i] for i in rng.permutation(len(files))]
    shards = [shards[i] for i in rng.permutation(len(shards))]
    waiting = np.empty((buffer, *size), dtype=np.uint8)
    filled = 0
    for path, one in itertools.chain(_of_files(files), _of_shards(shards)):
        _checked(path, one, size)
        if filled < buffer:
            waiting[filled] = one
            filled += 1
            continue
        drawn = rng.integers(buffer)
        yield waiting[drawn].copy()
        waiting[drawn] = one
    for drawn in rng.permutation(filled):
        yield waiting[drawn].copy()


def _of_files(paths: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    return ((path, pianoroll.load_png(path).levels) for path in paths)


def _of_shards(paths: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    for path in paths:
        try:
            with pq.ParquetFile(path, pre_buffer=False) as shard:
                for rows in shard.iter_batches(ROWS_AT_ONCE, columns=["image.bytes"]):
                    for png in rows["image"].field("bytes"):
                        yield path, np.asarray(Image.open(io.BytesIO(png.as_buffer())))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise MusicError(f"{path}: no shard of pictures ({str(error).splitlines()[0]}); run "
                             "notebook 01_midi2img again") from None


def _size(folder: str | Path, preset_name: str | None) -> tuple[int, int]:
    """Rows and columns: the preset's, or the first picture's."""
    if preset_name in PRESETS:
        return PRESETS[preset_name].pitches, PRESETS[preset_name].steps
    files, shards = find_pictures(folder)
    return next(itertools.chain(_of_files(files), _of_shards(shards)))[1].shape


def _checked(path: str, levels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if levels.shape != tuple(size):
        raise MusicError(f"{path}: {'×'.join(map(str, levels.shape))} pixels, not "
                         f"{size[0]}×{size[1]}; run notebook 01_midi2img again")
    return levels
