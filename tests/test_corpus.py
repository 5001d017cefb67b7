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

both_storages = pytest.mark.parametrize("storage", ["png", "parquet"])


def tree(folder: Path) -> dict[str, str]:
    """Every file's sha256, by its path below the folder."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def midi(tmp_path_factory, builtin_midi) -> Path:
    """Fourteen pieces in two folders, a copy under another name, a retitled copy, and a text."""
    folder = tmp_path_factory.mktemp("midi")
    for number, path in enumerate(builtin_midi[:14]):
        target = folder / f"{number % 2}" / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(builtin_midi[0], folder / "a copy.MID")
    pianoroll.save_midi(pianoroll.read_midi(builtin_midi[1]), folder / "other header.mid")
    (folder / "text.mid").write_text("no music")
    return folder


@pytest.fixture(scope="module")
def converted(midi, tmp_path_factory) -> dict[str, Path]:
    """A run folder for each storage, made by one process, in batches of eight files."""
    run_dirs = {storage: tmp_path_factory.mktemp(storage) for storage in ("png", "parquet")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(corpus.BATCH, "parquet", 8)
        for storage, run_dir in run_dirs.items():
            corpus.convert(midi, run_dir, jobs=1, storage=storage)
        yield run_dirs


@both_storages
def test_neither_a_stop_nor_the_number_of_workers_changes_a_byte(midi, converted, tmp_path,
                                                                 monkeypatch, storage):
    convert, calls = corpus.guarded, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return convert(*arguments)

    monkeypatch.setattr(corpus, "guarded", stops)
    with pytest.raises(KeyboardInterrupt):
        corpus.convert(midi, tmp_path, jobs=1, storage=storage)
    corpus.convert(midi, tmp_path, jobs=3, storage=storage)
    assert len(calls) == 12 + 17 - 8, "the batch of eight that was done is not done again"
    assert tree(tmp_path) == tree(converted[storage])


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_bytes(midi, converted, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
          as cluster, distributed.Client(cluster) as client, joblib.parallel_config("dask")):
        corpus.convert(midi, tmp_path)
        steps = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
    assert steps > 10  # the cluster did the work
    assert tree(tmp_path) == tree(converted["png"])


def test_what_is_done_stays_and_what_is_lost_or_of_other_settings_is_made_anew(
        midi, converted, tmp_path, monkeypatch):
    shutil.copytree(converted["png"], tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "guarded", lambda *a: pytest.fail("done again"))
        corpus.convert(midi, tmp_path)
    train = tmp_path / "images" / "gan" / "train"
    next(train.glob("*.png")).unlink()
    corpus.convert(midi, tmp_path)
    assert tree(tmp_path) == tree(converted["png"])

    corpus.convert(midi, tmp_path, max_files=3, steps_per_beat=8)
    corpus.convert(midi, tmp_path, max_files=3, storage="parquet")
    for left in (".done/.4711-abc.json", ".4711-skipped.csv", "gan/train/.4711-0.parquet",
                 "gan/train/x_0001.png", "gan/train/mine.png"):  # of a killed run, and a user's own
        (tmp_path / "images" / left).write_text("half")
    corpus.convert(midi, tmp_path)
    (train / "mine.png").unlink()
    assert tree(tmp_path) == tree(converted["png"])


def test_both_storages_hold_the_same_images_and_none_twice(converted):
    for preset in PRESETS:
        one, two = ([roll.tobytes() for split in corpus.SPLITS for roll in corpus.load_rolls(
            run_dir / "images" / preset / split)] for run_dir in converted.values())
        assert sorted(one) == sorted(two) and len(set(one)) == len(one)


@pytest.mark.slow
def test_both_storages_load_with_datasets(converted, tmp_path):
    datasets = pytest.importorskip("datasets")
    one, two = ([(row["source"], row["start_step"], row["image"].tobytes()) for row in
                 datasets.load_dataset(kind, data_dir=str(converted[storage] / "images/gan"),
                                       cache_dir=str(tmp_path), split="validation")]
                for kind, storage in (("imagefolder", "png"), ("parquet", "parquet")))
    assert sorted(one) == sorted(two)
    assert len(one) == corpus.count_images(converted["parquet"] / "images/gan/valid")


def test_a_copy_lands_on_the_same_side_and_is_named_with_the_file_that_it_repeats(midi, converted):
    with (converted["png"] / "images" / "skipped.csv").open(newline="") as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    (copied,) = reasons.keys() & {"a copy.MID", "0/000_chorale_c-minor.mid"}
    (other,) = {"a copy.MID", "0/000_chorale_c-minor.mid"} - {copied}
    assert reasons[copied] == f"a duplicate of {other}"
    assert "not a MIDI file" in reasons["text.mid"] and len(reasons) == 3
    sources = {row["source"] for table in converted["png"].rglob("metadata.csv")
               for row in csv.DictReader(table.open(newline=""))}
    assert len(sources) == 14 and not sources & reasons.keys()
    for seed in range(12):
        split = {piece.source: piece.split for piece in corpus.choose_pieces(midi, seed=seed)}
        assert split["a copy.MID"] == split["0/000_chorale_c-minor.mid"]


def test_of_the_builtin_corpus_a_piece_of_each_style_is_held_out_chosen_by_seed():
    chosen = [{piece.source for piece in corpus.choose_pieces("builtin", seed=seed)
               if piece.split == "valid"} for seed in range(3)]
    assert all(len({source.split("_")[1] for source in some}) == len(some) == 12
               for some in chosen)
    assert chosen[0] != chosen[1] != chosen[2]


@pytest.mark.parametrize("in_memory", [4, 10_000])
@both_storages
def test_a_stream_shows_every_image_once_an_epoch(converted, monkeypatch, storage, in_memory):
    monkeypatch.setattr(corpus, "IN_MEMORY", in_memory)
    folder = converted[storage] / "images" / "diffusion" / "train"
    rolls = corpus.load_rolls(folder)
    batches = list(itertools.islice(corpus.stream_rolls(folder, 1, seed=3), 2 * len(rolls)))
    assert batches[0].dtype == np.uint8 and batches[0].shape == (1, 128, 128)
    order = [batch.tobytes() for batch in batches]
    first, second = order[: len(rolls)], order[len(rolls) :]
    assert sorted(first) == sorted(second) == sorted(roll.tobytes() for roll in rolls)
    assert first != second
    for start in (1, len(rolls) - 1, len(rolls) + 2):  # resumed there, as if it had come by
        again = corpus.stream_rolls(folder, 1, seed=3, start=start)
        assert [batch.tobytes() for batch in itertools.islice(again, 3)] == order[start : start + 3]
    assert len(next(corpus.stream_rolls(folder, len(rolls) + 2))) == len(rolls) + 2


@both_storages
def test_examples_are_evenly_spaced_and_stand_in_for_held_out_ones(converted, tmp_path, storage):
    shutil.copytree(converted[storage], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "images" / "diffusion"
    rolls = [corpus.load_rolls(folder / split) for split in corpus.SPLITS]
    for split, some in zip(rolls, corpus.load_examples(tmp_path, "diffusion", 3), strict=True):
        evenly = np.linspace(0, len(split) - 1, 3).round().astype(int)
        np.testing.assert_array_equal(some, split[evenly])
    shutil.rmtree(folder / "valid")
    train, held_out = corpus.load_examples(tmp_path, "diffusion")
    np.testing.assert_array_equal(train, rolls[0])
    assert held_out is train


@pytest.mark.parametrize(("bad", "seed"), [(b"no music", 0), *(
    (hostile_midi.SMALL["drums_alone"][0], seed) for seed in (0, 5))])
def test_one_good_file_is_trained_on_whatever_lies_beside_it(tmp_path, bad, seed):
    (tmp_path / "good.mid").write_bytes(hostile_midi.GOOD)
    (tmp_path / "bad.mid").write_bytes(bad)
    made = corpus.convert(tmp_path, tmp_path / "run", jobs=1, seed=seed)
    assert made.images["diffusion/train"] == 1 and made.images["diffusion/valid"] == 0
    assert [source for source, _ in made.skipped] == ["bad.mid"]


def test_what_is_no_image_is_refused_and_missing_ones_never_replace_another_collections(
        converted, tmp_path):
    with pytest.raises(MusicError, match="no images; run notebook 01_midi2img first"):
        corpus.load_rolls(tmp_path)
    for name in ("a.png", "a.parquet"):
        (tmp_path / name).write_bytes(b"half")
        with pytest.raises(MusicError, match=r"a\.p.*again"):
            corpus.load_rolls(tmp_path)
    shutil.copytree(converted["png"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "images" / "gan")
    with pytest.raises(MusicError, match="run notebook 01_midi2img again"):
        corpus.ensure_images(tmp_path / "run", "gan")


def test_names_are_safe_and_unique():
    sources = ["a/b.mid", "a__b.mid", "A/B.mid", "a.mid", "A.midi", "ß/" + "名" * 300 + ".mid",
               "x\ny.mid", "con?.mid", "sub/../odd.mid"]
    names = corpus.image_names([corpus.Piece("", source, "train", "") for source in sources])
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name.encode()) < 200 and name.isprintable() for name in names)
