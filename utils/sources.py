"""Collections of MIDI by name: download, check, unpack. Explained in notebook 01.

Nothing is downloaded unless its name is asked for. What is downloaded lies in `runs/collections`
(or where the environment variable MIDI_COLLECTIONS says), outside version control.
"""

import hashlib
import os
import stat
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from utils.files import MusicError, atomic

ROOT = Path(__file__).parent.parent
BUILTIN = ROOT / "data" / "midi"
MAX_MEMBERS = 1_000_000
MAX_UNPACKED = 20 * 2**30  # bytes; Lakh, the largest of them, needs about a third
MAX_MEMBER = 64 * 2**20
KEPT = (".mid", ".midi", ".csv", ".json", ".txt", "license", "licence", "readme", ".md")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Collection:
    """Where a collection is published, under which licence, and how to cite it."""

    url: str
    licence: str
    citation: str
    sha256: str = ""  # as the publisher gives it; empty: the publisher gives none
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


def collections_dir() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("MIDI_COLLECTIONS", ROOT / "runs" / "collections"))


def collection_folder(midi_dir: str | Path) -> Path:
    """The folder of MIDI for a collection's name, an archive or a folder; fetched and unpacked.

    Raises `MusicError` where there is no such thing, or no connection to fetch it.
    """
    if str(midi_dir) == "builtin":
        return BUILTIN
    path = Path(midi_dir)
    if path.is_dir():
        return path
    if str(midi_dir) in COLLECTIONS and not path.exists():
        return fetch(str(midi_dir))
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        return _unpacked(path, collections_dir() / f"{path.name}-{_sha256(path)[:12]}")
    names = ", ".join(("builtin", *COLLECTIONS))
    raise MusicError(f"{midi_dir}: no such folder; set midi_dir to a folder of MIDI files, to an "
                     f"archive ({', '.join(ARCHIVES[:4])}) or to a collection ({names})")


def fetch(name: str) -> Path:
    """Download a collection unless it is there, check it, unpack it, print licence and citation."""
    collection = COLLECTIONS[name]
    print(f"{name}: licence {collection.licence}; cite {collection.citation}")
    home = collections_dir() / name
    if not home.is_dir():
        archive = _download(name, collection)
        try:
            _unpacked(archive, home)
        except MusicError as error:
            archive.unlink(missing_ok=True)  # the next call downloads it again
            raise MusicError(f"{error}; run it again to download it again") from None
    folder = home / collection.folder
    return folder if folder.is_dir() else home


def _download(name: str, collection: Collection) -> Path:
    """The archive on disk, whole and checked. A download that was cut off starts afresh."""
    import pooch
    archive = collections_dir() / collection.url.rpartition("/")[2]
    record = archive.with_name(archive.name + ".sha256")
    recorded = record.read_text().split()[0] if record.is_file() else ""
    expected = collection.sha256 or recorded
    if not expected:
        print(f"{name}: the publisher gives no sha256; what arrives is recorded in {record.name}")
    pooch.get_logger().setLevel("ERROR")
    progress = pooch.HTTPDownloader(progressbar=True, timeout=60)
    try:
        pooch.retrieve(collection.url, f"sha256:{expected}" if expected else None, archive.name,
                       archive.parent, downloader=progress)
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise MusicError(f"{collection.url}: the download is damaged, or not the published file "
                         f"(its sha256 is not {expected}); run it again") from None
    except Exception as error:  # requests raises many kinds, and so do sockets
        reason = type(error).__name__
        raise MusicError(f"{name}: cannot be downloaded ({reason}); download {collection.url} "
                         f"elsewhere and put it at {archive}") from None
    if not collection.sha256 and not recorded:
        with atomic(record) as temporary:
            temporary.write_text(f"{_sha256(archive)}  {archive.name}\n")
    return archive


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
                if not target.is_dir():
                    raise
    while len(inside := list(target.iterdir())) == 1 and inside[0].is_dir():
        target = inside[0]
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the MIDI files, tables and licences of an archive into a new folder.

    No member lands outside `folder`, and links are left out. Raises `MusicError` for an archive
    that is damaged, hostile or too large.
    """
    folder.mkdir()
    allowed = _Allowed(archive)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:  # it drops what leads out of the folder
                zipped.extractall(folder, [
                    member for member in zipped.infolist()
                    if stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
                    and allowed(member.filename, member.file_size)])
        else:
            with tarfile.open(archive) as tarred:  # `data_filter` refuses what leads out
                tarred.extractall(folder, filter=lambda member, path: tarfile.data_filter(
                    member, path) if member.isreg() and allowed(member.name, member.size) else None)
                while tarred.fileobj.read(2**20):  # to its end, so that its checksum is checked
                    pass
    except MusicError:
        raise
    except Exception as error:  # zipfile, tarfile, zlib, lzma: their errors share no parent
        raise MusicError(f"{archive}: a damaged archive ({type(error).__name__}: "
                         f"{str(error)[:80]}); delete it and download it again") from None


class _Allowed:
    """Whether a member is unpacked, by its name and size. Raises `MusicError` past the limits."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.members, self.bytes = archive, 0, 0

    def __call__(self, name: str, size: int) -> bool:
        if not name.lower().endswith(KEPT):
            return False
        self.members, self.bytes = self.members + 1, self.bytes + size
        if size > MAX_MEMBER or self.bytes > MAX_UNPACKED or self.members > MAX_MEMBERS:
            raise MusicError(f"{self.archive}: unpacks to more than a collection of MIDI could; it "
                             "is hostile, delete it")
        return True
