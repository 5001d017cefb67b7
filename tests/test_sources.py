"""Collections by name, from a server on the loopback address, and archives that mean harm."""

import contextlib
import errno
import http.server
import io
import shutil
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import hostile_midi
import pytest

from utils import corpus, sources
from utils.files import MusicError

NOTES = hostile_midi.GOOD
LINKS = {"d": tarfile.SYMTYPE, "l.mid": tarfile.SYMTYPE, "h.mid": tarfile.LNKTYPE,
         "f.mid": tarfile.FIFOTYPE}
both_kinds = pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])


def archive_of(name: str, members: dict[str, bytes]) -> bytes:
    """A zip or a tar of files; what `LINKS` names is a link in a tar."""
    file = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            for member, data in members.items():
                zipped.writestr(member, data)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as tarred:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size, info.linkname = len(data), "/etc/passwd"
                info.type = LINKS.get(member, tarfile.REGTYPE)
                tarred.addfile(info, io.BytesIO(data))
    return file.getvalue()


def notes_at(folder: str, *names: str) -> dict[str, bytes]:
    """A file with another note at each name in a folder."""
    return {f"{folder}/{name}": NOTES.replace(b"\x3c", bytes([40 + i]))
            for i, name in enumerate(names)}


TABLE = b"midi_filename,split\n04/a.midi,train\n04/b.midi,validation\n06/c.midi,test\n"
POP909 = f"POP909-Dataset-{sources._POP909}"
PUBLISHED = {  # each as it is published: the archive, how many pieces count, those held out
    "maestro-v2": (archive_of("a.zip", {"maestro-v2.0.0/maestro-v2.0.0.csv": TABLE} | notes_at(
        "maestro-v2.0.0", "04/a.midi", "04/b.midi", "06/c.midi")), 2, {"04/b.midi"}),
    "pop909": (archive_of("a.zip", {f"{POP909}/README.md": b""} | notes_at(
        f"{POP909}/POP909", "001/001.mid", "720/720.mid", "721/721.mid", "909/909.mid")),
        4, {"721/721.mid", "909/909.mid"}),
    "lakh": (archive_of("a.tar.gz", notes_at("lmd_full/0", *map("{}.mid".format, range(12)))),
             12, None)}  # a tenth, by chance


class Handler(http.server.BaseHTTPRequestHandler):
    cut = False  # whether half of what is promised arrives

    def do_GET(self) -> None:
        data = PUBLISHED[self.path[1:].partition(".")[0]][0]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.cut else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    """The published archives, on the loopback address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        for name in PUBLISHED:
            url = f"http://127.0.0.1:{running.server_port}/{name}.zip"
            monkeypatch.setitem(sources.COLLECTIONS, name, replace(
                sources.COLLECTIONS[name], url=url, sha256=None))
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def collections_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MIDI_COLLECTIONS", str(tmp_path / "collections"))
    return tmp_path / "collections"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_collection_is_downloaded_once_and_split(server, tmp_path, capsys, name):
    pieces = corpus.choose_pieces(name)
    printed = capsys.readouterr().out
    assert sources.COLLECTIONS[name].licence in printed and "cite" in printed
    _, count, expected = PUBLISHED[name]
    held_out = {piece.source for piece in pieces if piece.split == "valid"}
    assert len(pieces) == count and (held_out == expected if expected else len(held_out) == 1)
    server.shutdown()
    assert corpus.convert(name, tmp_path / "run").pieces == count


def test_a_download_that_is_cut_off_or_has_another_sha256_is_refused_and_starts_afresh(
        server, monkeypatch, collections_dir):
    with monkeypatch.context() as patch:
        patch.setattr(Handler, "cut", True)
        with pytest.raises(MusicError, match="run it again"):
            sources.fetch("lakh")
    with monkeypatch.context() as patch:
        one = replace(sources.COLLECTIONS["lakh"], sha256="0" * 64)
        patch.setitem(sources.COLLECTIONS, "lakh", one)
        with pytest.raises(MusicError, match="sha256"):
            sources.fetch("lakh")
    assert not list(collections_dir.rglob("*.*"))
    assert corpus.find_midi("lakh")


def test_offline_it_says_what_to_put_where(server, collections_dir):
    server.shutdown()
    server.server_close()
    url = sources.COLLECTIONS["pop909"].url
    place = collections_dir / url.rpartition("/")[2]
    with pytest.raises(MusicError) as error:
        sources.fetch("pop909")
    assert url in str(error.value) and str(place) in str(error.value)
    place.write_bytes(PUBLISHED["pop909"][0])  # as told
    assert len(corpus.find_midi("pop909")) == 4


def unpacked(tmp_path: Path, name: str, members: dict[str, bytes], cut: int | None = None) -> set:
    """The files that lie in the folder after unpacking; nothing else may have changed."""
    archive, folder = tmp_path / "a" / name, tmp_path / "a" / "b"
    archive.parent.mkdir()
    archive.write_bytes(archive_of(name, members)[:cut])
    try:
        sources.unpack(archive, folder)
    finally:
        outside = {path for path in tmp_path.rglob("*") if folder not in path.parents}
        assert outside == {archive.parent, archive, folder}
        assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("member", ["/tmp/x.mid", "../x.mid", "a/../../x.mid", "..\\x.mid",
                                    "C:\\x.mid", "C:x.mid", "\\x.mid"])
@both_kinds
def test_no_member_lands_outside(tmp_path, name, member):
    with contextlib.suppress(MusicError):  # refused, or the member lands inside
        unpacked(tmp_path, name, {"good.mid": NOTES, member: NOTES})


@both_kinds
def test_only_music_tables_and_licences_are_unpacked_and_no_links(tmp_path, name):
    links = dict.fromkeys(LINKS, b"") if "tar" in name else {}
    members = links | {"d/a b.mid": NOTES, "run.exe": b"MZ", "d.txt": b""}
    assert unpacked(tmp_path, name, members) == {"a b.mid", "d.txt"}


@pytest.mark.parametrize("members", [{"bomb.mid": bytes(2**23)},
                                     {f"{i}.mid": b"" for i in range(600)}])
@both_kinds
def test_a_bomb_is_stopped(tmp_path, monkeypatch, name, members):
    monkeypatch.setattr(sources, "MAX_UNPACKED", 2**21)
    with pytest.raises(MusicError, match="more than a collection"):
        unpacked(tmp_path, name, members)


def test_a_tar_whose_member_has_a_negative_size_is_refused(tmp_path):
    """Older Pythons would go back to its header again and again."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tarred:
        for name, headers in (("good.mid", {}), ("bad.mid", {"size": "-1536"})):
            info = tarfile.TarInfo(name)
            info.pax_headers = headers
            tarred.addfile(info)
    with pytest.raises(MusicError, match="negative size"):
        sources.unpack(tmp_path / "a.tar", tmp_path / "out")


@both_kinds
def test_a_damaged_archive_is_named(tmp_path, name):
    with pytest.raises(MusicError, match=f"{name}: cannot be unpacked"):
        unpacked(tmp_path, name, notes_at("a", *map("{}.mid".format, range(99))), -600)


@pytest.mark.parametrize("name", ["midi.zip", "midi.tar.gz"])
def test_a_full_disk_is_not_the_archives_fault(tmp_path, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(MusicError, match=f"{name}: .*No space left.*; free some disk space"):
        unpacked(tmp_path, name, {"a.mid": b"MThd"})


def test_an_archive_keeps_the_official_split_and_what_is_none_is_refused(tmp_path):
    (tmp_path / "downloaded.zip").write_bytes(PUBLISHED["maestro-v2"][0])
    split = {p.source: p.split for p in corpus.choose_pieces(tmp_path / "downloaded.zip")}
    assert split == {"04/a.midi": "train", "04/b.midi": "valid"}
    with pytest.raises(MusicError, match=r"no such folder.*maestro-v2"):
        sources.collection_folder(tmp_path / "nowhere")


def test_a_second_run_that_unpacks_leaves_the_files_of_the_first(tmp_path, monkeypatch):
    archive, unpack, first = tmp_path / "a.zip", sources.unpack, []
    archive.write_bytes(PUBLISHED["pop909"][0])

    def meanwhile_another_run_unpacks(*arguments):
        monkeypatch.setattr(sources, "unpack", unpack)
        first.append(corpus.find_midi(archive)[0].stat().st_ino)
        unpack(*arguments)

    monkeypatch.setattr(sources, "unpack", meanwhile_another_run_unpacks)
    assert corpus.find_midi(archive)[0].stat().st_ino == first[0]
