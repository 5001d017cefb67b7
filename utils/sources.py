"""Collections of MIDI by name: download, check, unpack. Explained in notebook 01.

Nothing is downloaded unless its name is asked for. What is downloaded lies in `runs/collections`
(or where the environment variable MIDI_COLLECTIONS says), outside version control.
"""

import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.files import MusicError

ROOT = Path(__file__).parent.parent
BUILTIN = ROOT / "data" / "midi"
MAX_UNPACKED = 20 * 2**30  # bytes; Lakh, the largest of them, needs about a third
KEPT = (".mid", ".midi", ".csv", ".json", ".txt", "license", "licence", "readme", ".md")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Collection:
    """Where a collection is published, under which licence, and how to cite it."""

    url: str
    licence: str
    citation: str
    sha256: str | None = None  # as the publisher gives it
    folder: str = ""  # within the archive


_MAESTRO = ("CC BY-NC-SA 4.0 (not for commercial use)",
            'Hawthorne et al., "Enabling Factorized Piano Music Modeling and Generation with the '
            'MAESTRO Dataset", ICLR 2019')
_LAKH = ("CC BY 4.0", 'Raffel, "Learning-Based Methods for Comparing Sequences, with Applications '
         'to Audio-to-MIDI Alignment and Matching", PhD thesis, Columbia University, 2016')
_MAGENTA = "https://storage.googleapis.com/magentadata/datasets/maestro"
_COLUMBIA = "http://hog.ee.columbia.edu/craffel/lmd"
_POP909 = "d83e6edba6872a704f5d3b8b32f5cb540088dae6"

COLLECTIONS = {
    "maestro-v2": Collection(
        f"{_MAGENTA}/v2.0.0/maestro-v2.0.0-midi.zip", *_MAESTRO,
        "ec2cc9d94886c6b376db1eaa2b8ad1ce62ff9f0a28b3744782b13163295dadf3", "maestro-v2.0.0"),
    "maestro-v3": Collection(
        f"{_MAGENTA}/v3.0.0/maestro-v3.0.0-midi.zip", *_MAESTRO,
        "70470ee253295c8d2c71e6d9d4a815189e35c89624b76d22fce5a019d5dde12c", "maestro-v3.0.0"),
    "lakh": Collection(f"{_COLUMBIA}/lmd_full.tar.gz", *_LAKH, folder="lmd_full"),
    "lakh-matched": Collection(f"{_COLUMBIA}/lmd_matched.tar.gz", *_LAKH, folder="lmd_matched"),
    "pop909": Collection(
        f"https://github.com/music-x-lab/POP909-Dataset/archive/{_POP909}.zip",
        "MIT (the songs are third-party compositions)",
        'Wang et al., "POP909: A Pop-song Dataset for Music Arrangement Generation", ISMIR 2020',
        folder=f"POP909-Dataset-{_POP909}/POP909"),
}


def collection_folder(midi_dir: str | Path) -> Path:
    """The folder of MIDI for a collection's name, an archive or a folder; fetched and unpacked.

    Raises `MusicError` where there is no such thing, or where it cannot be fetched or unpacked.
    """
    if str(midi_dir) == "builtin":
        return BUILTIN
    path = Path(midi_dir)
    if path.is_dir():
        return path
    if str(midi_dir) in COLLECTIONS and not path.exists():
        return fetch(str(midi_dir))
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return _unpacked(path, collections_dir() / f"{path.name}-{digest[:12]}")
    names = ", ".join(("builtin", *COLLECTIONS))
    raise MusicError(f"{midi_dir}: no such folder; set midi_dir to a folder of MIDI files, to an "
                     f"archive ({', '.join(ARCHIVES[:4])}) or to a collection ({names})")


def collections_dir() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("MIDI_COLLECTIONS", ROOT / "runs" / "collections"))


def fetch(name: str) -> Path:
    """Download a collection unless it is there, check it, unpack it, print licence and citation.

    A download that was cut off starts afresh.
    """
    collection, home = COLLECTIONS[name], collections_dir() / name
    print(f"{name}: licence {collection.licence}; cite {collection.citation}")
    if not home.is_dir():
        import pooch
        pooch.get_logger().setLevel("ERROR")
        archive = home.with_name(collection.url.rpartition("/")[2])
        try:
            pooch.retrieve(collection.url, collection.sha256, archive.name, archive.parent,
                           progressbar=True)
        except Exception as error:  # requests raises many kinds, and so do sockets
            reason = "its sha256 is wrong" if type(error) is ValueError else type(error).__name__
            raise MusicError(f"{name}: cannot be downloaded ({reason}); run it again, or download "
                             f"{collection.url} elsewhere and put it at {archive}") from None
        _unpacked(archive, home)
    return home / collection.folder


def _unpacked(archive: Path, target: Path) -> Path:
    """The innermost folder that holds all of an archive, unpacked to `target` unless it is there.

    The archive is unpacked elsewhere and moved to `target` whole: of two runs that do so at the
    same time, the second finds the files of the first.
    """
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as temporary:
            unpack(archive, folder := Path(temporary) / "folder")
            try:
                folder.rename(target)
            except OSError:
                if not target.is_dir():  # if it is, another run was faster
                    raise
    while len(inside := list(target.iterdir())) == 1 and inside[0].is_dir():
        target = inside[0]
    return target


def _files(tarred: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar. Raises where its headers would be read for ever."""
    last = -1
    for member in tarred:
        if member.size < 0 or member.offset <= last:
            raise MusicError("a member of a negative size")
        last = member.offset
        if member.isreg() and not member.issparse():
            yield member


def _write_member(tarred: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """A file of a tar, below `folder`, a resolved path. (tarfile's filters need Python 3.11.4.)"""
    path = (folder / member.name.lstrip("/")).resolve()
    if not path.is_relative_to(folder):
        raise MusicError(f"leads out of its folder: {member.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarred.extractfile(member) as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the MIDI files, tables and licences of an archive into a new folder.

    No member lands outside `folder`, and no link is made. Raises `MusicError` for an archive that
    is damaged, hostile or too large.
    """
    size_left = MAX_UNPACKED

    def is_kept(name: str, size: int) -> bool:
        nonlocal size_left
        if not name.lower().endswith(KEPT):
            return False
        size_left -= max(size, 4096)  # a small file takes a block of the disk
        if size_left < 0:
            raise MusicError("more than a collection of MIDI could hold")
        return True

    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:  # it drops what leads out of the folder
                zipped.extractall(folder, [member for member in zipped.infolist()
                                           if is_kept(member.filename, member.file_size)])
        else:
            with tarfile.open(archive) as tarred:
                inside = folder.resolve()
                for member in _files(tarred):
                    if is_kept(member.name, member.size):
                        _write_member(tarred, member, inside)
                while tarred.fileobj.read(2**20):  # to its end, so that its checksum is checked
                    pass
    except Exception as error:  # zipfile, tarfile, zlib, lzma: their errors share no parent
        full = getattr(error, "errno", 0) == errno.ENOSPC
        remedy = "free some disk space" if full else "delete it and download it again"
        raise MusicError(f"{archive}: cannot be unpacked ({str(error)[:80]}); {remedy}") from None
