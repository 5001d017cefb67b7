"""Parameters as they are declared, names of outputs, and what an earlier run left."""

import errno
from pathlib import Path

import pytest

from utils import files
from utils.files import MusicError, as_kind, output_names


@pytest.mark.parametrize(("value", "kind", "expected"), [
    ("false", "bool", False), (0, "bool", False), (True, "bool", True), ("1e4", "int", 10_000),
    (1e4, "int", 10_000), ("20_000", "int", 20_000), (2**60 + 1, "int", 2**60 + 1),
    (2, "float", 2.0), ("1e-3", "float", 0.001), ("2018", "str", "2018"), ("a~b", "str", "a~b")])
def test_a_value_becomes_what_its_annotation_says(value, kind, expected):
    result = as_kind("x", value, kind)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(("value", "kind"), [
    ("two", "int"), ("1.5", "int"), ("", "int"), (True, "int"), ("inf", "int"), (None, "int"),
    ("nan", "float"), (2, "bool"), (2018, "str"), ("two\nlines", "int")])
def test_a_value_of_another_kind_is_refused_in_one_line(value, kind):
    with pytest.raises(MusicError, match=r"^x is .*; give .*$"):
        as_kind("x", value, kind)


def test_a_tilde_is_the_home_folder():
    namespace = {"folder": "~/midi", "other": "~", "__annotations__": {"folder": str}}
    assert files.as_declared(namespace) == {"folder": str(Path.home() / "midi")}


@pytest.mark.parametrize(("sources", "expected"), [
    (["a.mid", "b/a.midi"], ["a.wav", "b/a.wav"]),
    (["A.mid", "a.midi", "b.mid"], ["A.mid.wav", "a.midi.wav", "b.wav"]),
    (["a.mid", "a.mid.mid", "a.midi"], ["a.mid.wav", "a.mid.mid.wav", "a.midi.wav"])])
def test_no_two_outputs_have_one_name(sources, expected):
    assert output_names(list(map(Path, sources)), ".wav") == list(map(Path, expected))


def test_only_files_that_a_listing_names_are_removed(tmp_path):
    for name in ("out/old.wav", "out/mine.wav", "outside.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = tmp_path / "out" / "list.csv"
    files.list_outputs(listing, [Path("old.wav"), Path("never.wav"), Path("../outside.wav")])
    files.replace_outputs(listing, [Path("new.wav")])
    assert {path.name for path in tmp_path.rglob("*.wav")} == {"mine.wav", "outside.wav"}
    assert listing.read_text(encoding="utf-8").split() == ["file", "new.wav"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept.png"
    path.write_text("before")
    with pytest.raises(MusicError, match="No space left"), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("kept.png", "before")]
