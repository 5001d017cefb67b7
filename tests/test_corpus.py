"""Conversion in bulk: the same bytes however it is spread, resumable, twins once, both storages."""

import csv
import hashlib
import itertools
import shutil
from pathlib import Path

import hostile_midi
import joblib
import numpy as np
import pytest

from utils import corpus, pianoroll
from utils.files import MusicError
from utils.pianoroll import PRESETS


def tree(folder: Path) -> dict[str, str]:
    """Every file's sha256, by its path below the folder."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def midi(tmp_path_factory, builtin_midi) -> Path:
    """Thirty pieces in two folders, a copy under another name, a retitled copy, and a text."""
    folder = tmp_path_factory.mktemp("midi")
    for number, path in enumerate(builtin_midi[:30]):
        target = folder / f"{number % 2}" / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(builtin_midi[0], folder / "a copy.MID")
    piece = pianoroll.read_midi(builtin_midi[1])
    pianoroll.save_midi(piece, folder / "other header.mid")
    (folder / "text.mid").write_text("no music")
    return folder


@pytest.fixture(scope="module")
def converted(midi, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    corpus.convert(midi, run_dir, jobs=1)
    return run_dir


@pytest.mark.parametrize("kind", ["png", "parquet"])
def test_the_number_of_workers_changes_no_byte(midi, tmp_path, kind):
    one = corpus.convert(midi, tmp_path / "1", jobs=1, storage=kind)
    assert one == corpus.convert(midi, tmp_path / "3", jobs=3, storage=kind)
    assert tree(tmp_path / "1") == tree(tmp_path / "3")


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_bytes(midi, converted, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
          as cluster, distributed.Client(cluster) as client, joblib.parallel_config("dask")):
        corpus.convert(midi, tmp_path)
        steps = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
    assert steps > 10  # the cluster did the work
    assert tree(tmp_path) == tree(converted)


def test_what_is_done_is_not_done_again(midi, tmp_path, monkeypatch):
    first = corpus.convert(midi, tmp_path)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "guarded", lambda *a: pytest.fail("done again"))
        assert corpus.convert(midi, tmp_path) == first
    next((tmp_path / "images" / "gan" / "train").glob("*.png")).unlink()
    corpus.convert(midi, tmp_path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["png", "parquet"])
def test_a_run_that_was_stopped_goes_on(midi, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(corpus.BATCH, kind, 8)
    convert, calls = corpus.guarded, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return convert(*arguments)

    monkeypatch.setattr(corpus, "guarded", stops)
    with pytest.raises(KeyboardInterrupt):
        corpus.convert(midi, tmp_path / "stopped", jobs=1, storage=kind)
    corpus.convert(midi, tmp_path / "stopped", jobs=1, storage=kind)
    assert len(calls) == 20 + 33 - 16  # two batches of eight were done
    corpus.convert(midi, tmp_path / "whole", jobs=1, storage=kind)
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")


def test_other_settings_leave_nothing_behind(midi, tmp_path):
    mine = tmp_path / "run" / "images" / "gan" / "train" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"not ours")
    corpus.convert(midi, tmp_path / "run", steps_per_beat=8)
    corpus.convert(midi, tmp_path / "run", storage="parquet")
    corpus.convert(midi, tmp_path / "run", max_files=5)
    mine.unlink()
    corpus.convert(midi, tmp_path / "fresh", max_files=5)
    assert tree(tmp_path / "run") == tree(tmp_path / "fresh")


def test_no_window_is_kept_twice_and_no_piece_is_in_both_splits(midi, converted):
    for preset in PRESETS:
        levels = [one.tobytes() for split in ("train", "valid")
                  for one in corpus.load_rolls(converted / "images" / preset / split)]
        assert len(set(levels)) == len(levels)
    for seed in range(12):  # wherever the copies fall by name or bytes
        pieces = corpus.choose_pieces(midi, seed=seed)
        first = next(piece.digest for piece in pieces if piece.source == "a copy.MID")
        sides = {piece.split for piece in pieces if piece.digest == first}
        assert len(sides) == 1


@pytest.mark.parametrize("kind", ["png", "parquet"])
def test_a_copy_in_the_other_split_gives_no_picture(builtin_midi, tmp_path, kind):
    piece = pianoroll.read_midi(builtin_midi[0])
    folder = tmp_path / "maestro"
    folder.mkdir()
    for number in range(4):
        shutil.copy(builtin_midi[number], folder / f"{number}.mid")
    pianoroll.save_midi(piece, folder / "other.mid")
    with (folder / "maestro-v2.0.0.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("midi_filename", "split"), ("0.mid", "train"),
                                    ("1.mid", "validation"), ("2.mid", "test"), ("3.mid", "train"),
                                    ("other.mid", "validation")])
    corpus.convert(folder, tmp_path, storage=kind)
    train, valid = (corpus.load_rolls(tmp_path / "images" / "diffusion" / split)
                    for split in ("train", "valid"))
    expected = [len(pianoroll.windows(pianoroll.read_midi(builtin_midi[i]), pianoroll.DIFFUSION))
                for i in range(4)]
    assert len(valid) <= expected[1] and len(train) <= expected[0] + expected[3]
    assert not {one.tobytes() for one in train} & {one.tobytes() for one in valid}


@pytest.mark.slow
def test_both_storages_hold_the_same_and_load_with_datasets(midi, converted, tmp_path):
    datasets = pytest.importorskip("datasets")
    made = corpus.convert(midi, tmp_path, storage="parquet")
    assert not list(tmp_path.rglob("*.png"))
    for preset in PRESETS:
        files = datasets.load_dataset("imagefolder", data_dir=str(converted / "images" / preset),
                                      cache_dir=str(tmp_path / "cache"))
        shards = datasets.load_dataset("parquet", cache_dir=str(tmp_path / "cache"), data_files={
            split: str(tmp_path / "images" / preset / folder / "*.parquet")
            for split, folder in (("train", "train"), ("validation", "valid"))})
        for split, folder in (("train", "train"), ("validation", "valid")):
            assert len(files[split]) == len(shards[split]) == made.pictures[f"{preset}/{folder}"]
            assert shards[split][0]["image"].mode == "L"
            one, two = ({(row["source"], row["start_step"], np.asarray(row["image"]).tobytes())
                         for row in rows[split]} for rows in (files, shards))
            assert one == two
            levels = [{row.tobytes() for row in corpus.load_rolls(
                run / "images" / preset / folder, preset)} for run in (converted, tmp_path)]
            assert levels[0] == levels[1]


@pytest.mark.parametrize("buffer", [4, 10_000])
@pytest.mark.parametrize("kind", ["png", "parquet"])
def test_a_stream_gives_every_picture_once_an_epoch(midi, tmp_path, kind, buffer):
    corpus.convert(midi, tmp_path, storage=kind)
    folder = tmp_path / "images" / "diffusion" / "train"
    levels = corpus.load_rolls(folder)
    stream = corpus.stream_rolls(folder, 1, "diffusion", seed=3, buffer=buffer)
    batches = list(itertools.islice(stream, 2 * len(levels)))
    assert batches[0].dtype == np.uint8 and batches[0].shape == (1, 128, 128)
    order = [batch.tobytes() for batch in batches]
    first, second = order[: len(levels)], order[len(levels) :]
    assert sorted(first) == sorted(second) == sorted(one.tobytes() for one in levels)
    assert first != second
    for start in (1, len(levels) - 1, len(levels) + 2):  # resumed there, as if it had come by
        again = corpus.stream_rolls(folder, 1, seed=3, start=start, buffer=buffer)
        assert [batch.tobytes() for batch in itertools.islice(again, 3)] == order[start : start + 3]
    assert next(corpus.stream_rolls(folder, len(levels) + 2)).shape[0] == len(levels) + 2


@pytest.mark.parametrize("kind", ["png", "parquet"])
def test_examples_are_evenly_spaced_and_stand_in_for_missing_held_out_ones(midi, tmp_path, kind):
    corpus.convert(midi, tmp_path, storage=kind)
    folder = tmp_path / "images" / "diffusion"
    train, valid = corpus.load_rolls(folder / "train"), corpus.load_rolls(folder / "valid")
    some, held_out = corpus.load_examples(tmp_path, "diffusion", 3)
    evenly = np.linspace(0, len(train) - 1, 3).round().astype(int)
    np.testing.assert_array_equal(some, train[evenly])
    np.testing.assert_array_equal(held_out[[0, -1]], valid[[0, -1]])
    shutil.rmtree(folder / "valid")
    some, held_out = corpus.load_examples(tmp_path, "diffusion")
    np.testing.assert_array_equal(some, train)
    assert held_out is some
    (folder / "valid").mkdir()
    (folder / "valid" / ("a.png" if kind == "png" else "a.parquet")).write_bytes(b"half")
    with pytest.raises(MusicError, match=r"a\.p"):  # what is damaged is not passed over
        corpus.load_examples(tmp_path, "diffusion")


def test_a_file_of_duplicates_alone_is_named_with_the_file_that_it_repeats(converted):
    with (converted / "images" / "skipped.csv").open(newline="") as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    (copied,) = reasons.keys() & {"a copy.MID", "0/000_chorale_c-minor.mid"}
    (other,) = {"a copy.MID", "0/000_chorale_c-minor.mid"} - {copied}
    assert reasons[copied] == f"a duplicate of {other}"
    assert "not a MIDI file" in reasons["text.mid"] and len(reasons) == 3
    sources = {row["source"] for table in converted.rglob("metadata.csv")
               for row in csv.DictReader(table.open(newline=""))}
    assert len(sources) == 30 and not sources & reasons.keys()


@pytest.mark.parametrize("kind", ["png", "parquet"])
def test_files_that_a_kill_left_are_removed(midi, tmp_path, kind):
    corpus.convert(midi, tmp_path, storage=kind)
    before = tree(tmp_path)
    for left in ("skipped.csv", "gan/train/metadata.csv", "diffusion/train/0.parquet",
                 ".done/abc.json"):
        path = tmp_path / "images" / left
        path.with_name(f".4711-{path.name}").write_text("half")
    (tmp_path / "images" / "gan" / "train" / "x_0001.png").write_bytes(b"half")
    corpus.convert(midi, tmp_path, storage=kind)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("bad", [b"no music", hostile_midi.SMALL["drums_alone"][0]])
@pytest.mark.parametrize("seed", [0, 5])
def test_one_good_file_is_trained_on_whatever_lies_beside_it(tmp_path, bad, seed):
    (tmp_path / "good.mid").write_bytes(hostile_midi.GOOD)
    (tmp_path / "bad.mid").write_bytes(bad)
    made = corpus.convert(tmp_path, tmp_path / "run", seed=seed)
    assert made.pictures["diffusion/train"] == 1 and made.pictures["diffusion/valid"] == 0
    assert [source for source, _ in made.skipped] == ["bad.mid"]


def test_missing_pictures_never_replace_those_of_another_collection(midi, tmp_path):
    corpus.convert(midi, tmp_path)
    shutil.rmtree(tmp_path / "images" / "gan")
    before = tree(tmp_path)
    with pytest.raises(MusicError, match="run notebook 01_midi2img again"):
        corpus.ensure_images(tmp_path, "gan")
    assert tree(tmp_path) == before


def test_pictures_that_are_none(tmp_path):
    with pytest.raises(MusicError, match="01_midi2img"):
        corpus.load_rolls(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(MusicError, match=r"a\.parquet: no parquet file"):
        corpus.load_rolls(tmp_path)
    with pytest.raises(MusicError, match="storage"):
        corpus.convert("builtin", tmp_path, storage="zarr")


def test_names_are_safe_and_unique():
    sources = ["a/b.mid", "a__b.mid", "A/B.mid", "a.mid", "A.midi", "ß/" + "名" * 300 + ".mid",
               "x\ny.mid", "con?.mid", "sub/../odd.mid"]
    names = corpus.image_names([corpus.Piece("", source, "train", "") for source in sources])
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name.encode()) < 200 and name.isprintable() for name in names)
