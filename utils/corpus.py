"""Where MIDI comes from, the split by piece, and conversion in bulk. Explained in notebook 01."""

import csv
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from utils import pianoroll
from utils.files import MusicError, write_json, write_table
from utils.pianoroll import PRESETS

BUILTIN = Path(__file__).parent.parent / "data" / "midi"
VALID_SHARE = 0.1  # of the pieces, where a collection has no official split
BATCH = 32  # files to a task, and to a record of what is done
POP909_TRAIN = 720  # ids up to this one are trained on
METADATA = ("file_name", "source", "start_step", "tempo")


@dataclass(frozen=True)
class Piece:
    """One MIDI file: `source` is its path below the collection, `split` is train or valid."""

    path: str
    source: str
    split: str
    digest: str  # sha256 of the bytes


@dataclass(frozen=True)
class Summary:
    """What a conversion made: pictures by "preset/split", and (source, reason) of the skipped."""

    pictures: dict[str, int]
    skipped: list[tuple[str, str]]
    pieces: int


# ---------------------------------------------------------------- pieces and their split


def find_midi(midi_dir: str | Path) -> list[Path]:
    """Every .mid and .midi file below a folder, any depth, in order. Links are not followed."""
    folder = BUILTIN if str(midi_dir) == "builtin" else Path(midi_dir)
    if not folder.is_dir():
        raise MusicError(f"{midi_dir}: no such folder; set midi_dir to a folder of MIDI files")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".mid", ".midi"))
    if not found:
        raise MusicError(f"{folder}: no MIDI files (.mid, .midi) in it; set midi_dir to a folder "
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


def choose_pieces(midi_dir: str | Path, max_files: int = 0, seed: int = 0) -> list[Piece]:
    """The pieces of a collection with their split, by name.

    The split is the publisher's where there is one (its test pieces are left out); otherwise a
    tenth of the pieces is held out, chosen by seed and content, so a copy under another name lands
    on the same side. `max_files` above 0 keeps that many, chosen by seed, each split in proportion.
    """
    paths = find_midi(midi_dir)
    folder = BUILTIN if str(midi_dir) == "builtin" else Path(midi_dir)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    sources = [path.relative_to(folder).as_posix() for path in paths]
    rank = {digest: hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest() for digest in digests}
    order = sorted(set(digests), key=rank.__getitem__)
    held_out = set(order[: max(1, round(len(order) * VALID_SHARE)) if len(order) > 1 else 0])
    official = official_split(folder)
    pieces = [Piece(str(path), source, official(source) if official else
                    "valid" if digest in held_out else "train", digest)
              for path, source, digest in zip(paths, sources, digests, strict=True)]
    pieces = [piece for piece in pieces if piece.split in ("train", "valid")]
    if 0 < max_files < len(pieces):
        pieces.sort(key=lambda piece: rank[piece.digest])
        valid = [piece for piece in pieces if piece.split == "valid"]
        train = [piece for piece in pieces if piece.split == "train"]
        share = min(len(valid), max(1, round(max_files * len(valid) / len(pieces))))
        share = 0 if max_files == 1 else share
        pieces = train[: max_files - share] + valid[:share]
    return sorted(pieces, key=lambda piece: piece.source)


# ---------------------------------------------------------------- conversion in bulk


def convert(midi_dir: str | Path, run_dir: str | Path, steps_per_beat: int = 4, max_files: int = 0,
            jobs: int = -1, seed: int = 0) -> Summary:
    """Turn a collection into `run_dir/images/<preset>/<split>/*.png` with a metadata.csv in each.

    The files are the same bytes whatever `jobs` is (-1: one process a core). What an earlier call
    with the same settings finished is not done again; pictures of other settings are removed.
    Files that give no picture are listed with the reason in `images/skipped.csv`.
    """
    images = Path(run_dir) / "images"
    pieces = choose_pieces(midi_dir, max_files, seed)
    tasks = list(zip(pieces, picture_names(pieces), strict=True))
    batches = [tasks[i : i + BATCH] for i in range(0, len(tasks), BATCH)]
    done = joblib.Parallel(n_jobs=jobs, return_as="generator")(
        joblib.delayed(_convert_batch)(batch, str(images), steps_per_beat) for batch in batches)
    records = []
    with tqdm(total=len(pieces), unit="file", desc="MIDI → pictures") as bar:
        for record in done:
            records.append(record)
            bar.update(len(record["names"]))
    _mark_twins(records)
    missing = {source for record in records for source in _missing(images, record)}
    for piece, name in tasks:
        if piece.source in missing:  # its twin in another file is gone since
            _convert_piece(piece, name, images, steps_per_beat)
    return _assemble(images, records)


def picture_names(pieces: list[Piece]) -> list[str]:
    """A file name without suffix for each piece: readable, safe everywhere, unique, the same for
    the same source."""
    clean = [re.sub(r"[^\w.+-]+", "_", piece.source.replace("/", "__"))[:80] for piece in pieces]
    stems = [name.removesuffix(".midi").removesuffix(".mid") for name in clean]
    known = {stem: stems.count(stem) for stem in set(stems)}
    plain = [stem == Path(piece.source).stem for stem, piece in zip(stems, pieces, strict=True)]
    tags = [hashlib.sha256(piece.source.encode()).hexdigest()[:8] for piece in pieces]
    return [stem if is_plain and known[stem] == 1 else f"{stem}-{tag}"
            for stem, is_plain, tag in zip(stems, plain, tags, strict=True)]


def _convert_batch(batch: list[tuple[Piece, str]], images: str, steps_per_beat: int) -> dict:
    """Convert a few files, unless a record in `images/.done` says that just this was done."""
    todo = [(piece.source, piece.split, piece.digest, name) for piece, name in batch]
    fingerprint = hashlib.sha256(json.dumps([todo, steps_per_beat]).encode()).hexdigest()[:32]
    path = Path(images) / ".done" / f"{fingerprint}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": None}
    if record["rows"] is not None and not _missing(Path(images), record):
        return record
    record = {"fingerprint": fingerprint, "names": [name for _, name in batch], "rows": None}
    write_json(path, record)  # begun: cut short here, the next run still knows its pictures
    record |= {"rows": [], "skipped": []}
    for piece, name in batch:
        try:
            record["rows"] += _convert_piece(piece, name, Path(images), steps_per_beat)
        except MusicError as error:
            record["skipped"].append((piece.source, str(error).removeprefix(f"{piece.path}: ")))
    write_json(path, record)
    return record


def _convert_piece(piece: Piece, name: str, images: Path, steps_per_beat: int) -> list[dict]:
    """Write one piece's pictures; returns their rows of metadata."""
    whole = pianoroll.read_midi(piece.path, steps_per_beat)
    rows = []
    for preset in PRESETS.values():
        for picture in pianoroll.windows(whole, preset):
            folder = f"{preset.name}/{piece.split}"
            file_name = f"{name}_{picture.start_step // preset.steps:04d}.png"
            pianoroll.save_png(picture, images / folder / file_name)
            digest = hashlib.sha256(picture.levels).hexdigest()[:32]
            rows.append({"folder": folder, "file_name": file_name, "source": piece.source,
                         "start_step": picture.start_step, "tempo": round(picture.tempo_bpm, 3),
                         "digest": digest, "twin": False})
    if not rows:
        raise MusicError(f"{piece.path}: no note within the pictures' pitches; leave it out")
    return rows


def _missing(images: Path, record: dict) -> set[str]:
    """The sources of pictures that should be there and are not."""
    return {row["source"] for row in record["rows"]
            if not (row["twin"] or (images / row["folder"] / row["file_name"]).is_file())}


def _mark_twins(records: list[dict]) -> None:
    """Mark each window that has the same pixels as one before it; train comes before valid."""
    seen: set[tuple[str, str]] = set()
    rows = (row for record in records for row in record["rows"])
    for row in sorted(rows, key=lambda row: (row["folder"], row["file_name"])):
        key = row["folder"].partition("/")[0], row["digest"]
        row["twin"] = key in seen
        seen.add(key)


def _assemble(images: Path, records: list[dict]) -> Summary:
    """Write the tables, and remove twins and the pictures of other settings."""
    rows = sorted((row for record in records for row in record["rows"] if not row["twin"]),
                  key=lambda row: (row["folder"], row["file_name"]))
    skipped = sorted(tuple(pair) for record in records for pair in record["skipped"])
    write_table(images / "skipped.csv", ("file", "reason"), skipped)
    pieces = sum(len(record["names"]) for record in records)
    if not rows:
        raise MusicError(f"{images / 'skipped.csv'}: none of {pieces} files became a picture; read "
                         "the reasons there, then set midi_dir to other files")
    ours = {name for path in (images / ".done").glob("*.json")
            for name in json.loads(path.read_text(encoding="utf-8"))["names"]}
    pictures = {}
    for name in (f"{preset}/{split}" for preset in PRESETS for split in ("train", "valid")):
        kept = [row for row in rows if row["folder"] == name]
        names = {row["file_name"] for row in kept}
        for path in (images / name).glob("*.png"):
            if path.name not in names and path.stem.rpartition("_")[0] in ours:
                path.unlink()
        write_table(images / name / "metadata.csv", METADATA,
                    ([row[column] for column in METADATA] for row in kept))
        pictures[name] = len(kept)
    _keep_records(images / ".done", records)
    return Summary(pictures, skipped, pieces)


def _keep_records(folder: Path, records: list[dict]) -> None:
    """Save this run's records with their twins marked; remove those of other runs."""
    for record in records:
        write_json(folder / f"{record['fingerprint']}.json", record)
    current = {record["fingerprint"] for record in records}
    for path in folder.glob("*.json"):
        if path.stem not in current:
            path.unlink()


# ---------------------------------------------------------------- pictures of a run


def ensure_images(run_dir: str | Path, preset_name: str) -> Path:
    """The run's folder of pictures for a preset; empty, it is filled from the built-in corpus."""
    folder = Path(run_dir) / "images" / preset_name
    if not any((folder / "train").glob("*.png")):
        print(f"No pictures in {folder.as_posix()}: making them from the built-in corpus.")
        convert("builtin", run_dir)
    return folder


def load_levels(folder: str | Path, preset_name: str | None = None) -> np.ndarray:
    """All PNGs of a folder, in order of name, as `uint8 [N, pitches, steps]`.

    Raises `MusicError` where there are none, or where one differs in size from the preset.
    """
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        raise MusicError(f"{folder}: no pictures; run notebook 01_midi2img first")
    levels = [pianoroll.load_png(path).levels for path in paths]
    preset = PRESETS.get(preset_name)
    size = (preset.pitches, preset.steps) if preset else levels[0].shape
    for path, one in zip(paths, levels, strict=True):
        if one.shape != size:
            raise MusicError(f"{path}: {one.shape[0]}×{one.shape[1]} pixels, not "
                             f"{size[0]}×{size[1]}; run notebook 01_midi2img again")
    return np.stack(levels)
