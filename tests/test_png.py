"""Images from elsewhere: what `load_png` reads, and that it refuses the rest in one line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from utils import pianoroll
from utils.pianoroll import MusicError

NOTES = [[3, 4, 60, 30], [9, 1, 64, 127]]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def roll(**facts) -> pianoroll.PianoRoll:
    return pianoroll.PianoRoll(pianoroll.roll_of(np.array(NOTES), 128, 16), **facts)


def test_16_bit_gray_keeps_its_loudness(tmp_path):
    Image.fromarray(roll().pixels.astype(np.uint16) << 8).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "I;16"
    assert pianoroll.notes_of(pianoroll.load_png(tmp_path / "a.png")).tolist() == NOTES


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_another_format_named_png_is_refused(kind, tmp_path):
    Image.fromarray(roll().pixels).save(tmp_path / "a.png", kind)
    with pytest.raises(MusicError, match=r"a\.png: cannot be read as a PNG"):
        pianoroll.load_png(tmp_path / "a.png")


def test_an_eps_named_png_does_not_reach_ghostscript(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript",
                        lambda *arguments, **_: called.append(1) or Image.new("L", (16, 128)).im)
    (tmp_path / "a.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 128\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(MusicError, match="cannot be read as a PNG"):
        pianoroll.load_png(tmp_path / "a.png")
    assert not called


@pytest.mark.parametrize("extra", [
    chunk(b"iCCP", b""), chunk(b"pHYs", b"\0"), chunk(b"cHRM", b"\0"), chunk(b"gAMA", b"\0"),
    chunk(b"acTL", b"\0"), chunk(b"tRNS", b""), chunk(b"fcTL", b"\0" * 3), chunk(b"sRGB", b""),
    chunk(b"zTXt", b"lowest_pitch\0\0" + zlib.compress(b"0" * 70_000_000))])
def test_a_damaged_chunk_is_read_over_or_named(extra, tmp_path):
    data = pianoroll.png_bytes(roll())
    (tmp_path / "a.png").write_bytes(data[:33] + extra + data[33:])  # after the header
    try:
        levels = pianoroll.load_png(tmp_path / "a.png").pixels
    except MusicError as error:
        assert "a.png" in str(error) and "\n" not in str(error)
    else:
        assert np.array_equal(levels, roll().pixels)


def test_a_colour_image_is_named_so(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (128, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    with pytest.raises(MusicError, match=r"a\.png: a colour image; convert it to grayscale"):
        pianoroll.load_png(tmp_path / "a.png")
