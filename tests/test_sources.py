"""Collections by name, from a server on the loopback address, and archives that mean harm."""

import contextlib
import http.server
import io
import shutil
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import hostile_midi
import pytest

from utils import corpus, sources
from utils.files import MusicError

NOTES = hostile_midi.GOOD


def zip_of(members: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        for name in links:
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
    return file.getvalue()


def tar_of(members: dict[str, bytes], links: tuple[tuple[str, bytes], ...] = ()) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, kind in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def other(number: int) -> bytes:
    return NOTES.replace(b"\x3c", bytes([40 + number]))


CSV = b"midi_filename,split\n2004/a.midi,train\n2004/b.midi,validation\n2006/c.midi,test\n"
LAYOUTS = {
    name: zip_of({f"{folder}/LICENSE": b"", f"{folder}/{folder}.csv": CSV} | {
        f"{folder}/{path}": other(i)
        for i, path in enumerate(("2004/a.midi", "2004/b.midi", "2006/c.midi"))})
    for name, folder in (("maestro-v2", "maestro-v2.0.0"), ("maestro-v3", "maestro-v3.0.0"))} | {
    "lakh": tar_of({f"lmd_full/{i:x}/{i:032x}.mid": other(i) for i in range(12)}),
    "lakh-matched": tar_of({f"lmd_matched/A/B/C/TRABC{i}/{i:032x}.mid": other(i)
                            for i in range(12)}),
    "pop909": zip_of({f"POP909-Dataset-{sources._POP909}/POP909/{i:03d}/{name}": other(i % 60)
                      for i in (1, 2, 720, 721, 909) for name in
                      (f"{i:03d}.mid", "beat_midi.txt", f"versions/{i:03d}-v1.mid")}),
}
SPLITS = {"maestro-v2": {"2004/a.midi": "train", "2004/b.midi": "valid"},
          "maestro-v3": {"2004/a.midi": "train", "2004/b.midi": "valid"}}


class Server(http.server.BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}
    cut: ClassVar[set[str]] = set()  # these are promised whole and sent by half, once
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        data = self.files.get(name)
        self.asked.append(name)
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if name in self.cut:
            self.cut.remove(name)
            data = data[: len(data) // 2]
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The published archives' layouts, on the loopback address."""
    names = {name: one.url.rpartition("/")[2] for name, one in sources.COLLECTIONS.items()}
    Server.files = {names[name]: data for name, data in LAYOUTS.items()}
    Server.cut, Server.asked = set(), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("MIDI_COLLECTIONS", str(tmp_path / "collections"))
        for name, one in sources.COLLECTIONS.items():
            url = f"http://127.0.0.1:{running.server_port}/{names[name]}"
            monkeypatch.setitem(sources.COLLECTIONS, name, replace(one, url=url, sha256=""))
        yield running
        running.shutdown()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_collection_by_name(server, tmp_path, capsys, name):
    pieces = corpus.choose_pieces(name)
    printed = capsys.readouterr().out
    assert sources.COLLECTIONS[name].licence in printed and "cite" in printed
    assert "the publisher gives no sha256" in printed and len(list(tmp_path.rglob("*.sha256"))) == 1
    split = {piece.source: piece.split for piece in pieces}
    if name in SPLITS:
        assert split == SPLITS[name]
    elif name == "pop909":
        assert len(split) == 10
        assert {source[:3] for source, side in split.items() if side == "valid"} == {"721", "909"}
    else:
        assert len(split) == 12 and sorted(split.values()).count("valid") == 1
    assert len(Server.asked) == 1
    corpus.choose_pieces(name)  # nothing is downloaded or unpacked again
    assert len(Server.asked) == 1
    assert corpus.convert(name, tmp_path / "run").pieces == len(pieces)


def test_the_published_sha256_is_checked(server, monkeypatch, tmp_path):
    one = sources.COLLECTIONS["maestro-v2"]
    monkeypatch.setitem(sources.COLLECTIONS, "maestro-v2", replace(one, sha256="0" * 64))
    with pytest.raises(MusicError, match="sha256"):
        sources.fetch("maestro-v2")
    assert not list(tmp_path.rglob("*.midi")) and not list(tmp_path.rglob("*.zip"))


def test_the_recorded_sha256_is_checked(server, tmp_path):
    sources.fetch("lakh")
    archive = next(tmp_path.rglob("lmd_full.tar.gz"))
    archive.unlink()
    shutil.rmtree(tmp_path / "collections" / "lakh")
    Server.files["lmd_full.tar.gz"] = LAYOUTS["lakh-matched"]
    with pytest.raises(MusicError, match="sha256"):
        sources.fetch("lakh")


@pytest.mark.parametrize("name", ["maestro-v2", "lakh"])
def test_a_download_that_is_cut_off_starts_afresh(server, tmp_path, name):
    Server.cut = set(Server.files)
    with pytest.raises(MusicError) as error:
        sources.fetch(name)
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.mid*"))
    assert corpus.find_midi(name)


def test_offline_it_says_what_to_put_where(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(MusicError) as error:
        sources.fetch("pop909")
    place = tmp_path / "collections" / sources.COLLECTIONS["pop909"].url.rpartition("/")[2]
    assert sources.COLLECTIONS["pop909"].url in str(error.value) and str(place) in str(error.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(LAYOUTS["pop909"])  # as told
    assert len(corpus.find_midi("pop909")) == 10


def unpacked(tmp_path: Path, data: bytes, name: str) -> list[str]:
    """The files that lie in the folder after unpacking; nothing else may have changed."""
    archive = tmp_path / "a" / name
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(data)
    folder = tmp_path / "a" / "b"
    try:
        sources.unpack(archive, folder)
    finally:
        outside = {path for path in tmp_path.rglob("*") if folder not in path.parents}
        assert outside == {archive.parent, archive, folder}
        assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.mid"))


@pytest.mark.parametrize("member", ["/tmp/x.mid", "../x.mid", "a/../../x.mid", "..\\x.mid",
                                    "C:\\x.mid", "C:x.mid", "\\x.mid"])
@pytest.mark.parametrize(("pack", "name"), [(zip_of, "a.zip"), (tar_of, "a.tar.gz")])
def test_no_member_lands_outside(tmp_path, pack, name, member):
    with contextlib.suppress(MusicError):  # a tar is refused, a zip's member lands inside
        unpacked(tmp_path, pack({"good.mid": NOTES, member: NOTES}), name)


def test_no_link_is_made_or_followed(tmp_path):
    links = (("d", tarfile.SYMTYPE), ("l.mid", tarfile.SYMTYPE), ("h.mid", tarfile.LNKTYPE),
             ("f.mid", tarfile.FIFOTYPE), ("c.mid", tarfile.CHRTYPE))
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    assert unpacked(tmp_path / "1", tar_of({"d/x.mid": NOTES}, links), "a.tar.gz") == ["d/x.mid"]
    assert unpacked(tmp_path / "2", zip_of({"x.mid": NOTES}, ("l.mid",)), "a.zip") == ["x.mid"]


@pytest.mark.parametrize(("pack", "name"), [(zip_of, "a.zip"), (tar_of, "a.tar.gz")])
def test_a_bomb_is_stopped(tmp_path, monkeypatch, pack, name):
    monkeypatch.setattr(sources, "MAX_MEMBER", 2**20)
    with pytest.raises(MusicError, match="hostile"):
        unpacked(tmp_path, pack({"bomb.mid": bytes(2**23)}), name)
    monkeypatch.setattr(sources, "MAX_UNPACKED", 2**21)
    (tmp_path / "more").mkdir()
    with pytest.raises(MusicError, match="hostile"):
        unpacked(tmp_path / "more", pack({f"{i}.mid": bytes(2**19) for i in range(9)}), name)


@pytest.mark.parametrize("cut", [10, 100, 300])
@pytest.mark.parametrize("name", ["maestro-v2", "lakh"])
def test_a_damaged_archive_is_named(tmp_path, name, cut):
    suffix = "zip" if name == "maestro-v2" else "tar.gz"
    with pytest.raises(MusicError, match="damaged archive"):
        unpacked(tmp_path, LAYOUTS[name][:-cut], f"a.{suffix}")


def test_only_music_tables_and_licences_are_unpacked(tmp_path):
    names = unpacked(tmp_path, zip_of({"a b.mid": NOTES, "run.exe": b"MZ", "d.txt": b""}), "a.zip")
    assert names == ["a b.mid"]
    assert not list(tmp_path.rglob("*.exe")) and list(tmp_path.rglob("*.txt"))


def test_an_archive_keeps_the_official_split(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDI_COLLECTIONS", str(tmp_path / "collections"))
    archive = tmp_path / "downloaded.zip"
    archive.write_bytes(LAYOUTS["maestro-v2"])
    split = {piece.source: piece.split for piece in corpus.choose_pieces(archive)}
    assert split == SPLITS["maestro-v2"]


def test_a_second_run_that_unpacks_leaves_the_files_of_the_first(tmp_path, monkeypatch):
    archive, target = tmp_path / "a.zip", tmp_path / "collections" / "a"
    archive.write_bytes(LAYOUTS["pop909"])
    unpack = sources.unpack

    def meanwhile_another_run_unpacks(*arguments):
        monkeypatch.setattr(sources, "unpack", unpack)
        before.append(next(sources._unpacked(archive, target).rglob("*.mid")).stat())
        unpack(*arguments)

    before = []
    monkeypatch.setattr(sources, "unpack", meanwhile_another_run_unpacks)
    folder = sources._unpacked(archive, target)
    assert next(folder.rglob("*.mid")).stat().st_ino == before[0].st_ino
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_an_archive_is_a_collection(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDI_COLLECTIONS", str(tmp_path / "collections"))
    archive = tmp_path / "mine.zip"
    archive.write_bytes(zip_of({f"d/{i}.mid": other(i) for i in range(3)}))
    assert len(corpus.choose_pieces(archive)) == len(corpus.choose_pieces(str(archive))) == 3


def test_what_is_no_collection(tmp_path):
    with pytest.raises(MusicError, match="maestro-v2"):
        sources.collection_folder(tmp_path / "nowhere")
