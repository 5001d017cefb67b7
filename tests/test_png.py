"""Images: what is saved comes back, images from elsewhere are read, the rest is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from utils import pianoroll
from utils.pianoroll import MusicError, PianoRoll

NOTES = [[3, 4, 60, 30], [9, 1, 64, 127]]
ROLL = PianoRoll(pianoroll.roll_of(np.array(NOTES), 128, 16), 0, 12, 93.25, "naïve\n音.mid", 384)


def test_a_png_keeps_pixels_and_facts_and_16_bit_gray_its_loudness(tmp_path):
    again = pianoroll.load_png(pianoroll.save_png(ROLL, tmp_path / "a.png"))
    assert np.array_equal(again.pixels, ROLL.pixels)
    assert all(getattr(again, name) == getattr(ROLL, name) for name in pianoroll.FACTS)
    Image.fromarray(ROLL.pixels.astype(np.uint16) << 8).save(tmp_path / "16 bits.png")
    assert Image.open(tmp_path / "a.png").mode == "L"
    assert Image.open(tmp_path / "16 bits.png").mode == "I;16"
    assert pianoroll.notes_of(pianoroll.load_png(tmp_path / "16 bits.png")).tolist() == NOTES


@pytest.mark.parametrize(("rows", "lowest"), [(128, 0), (106, 21)])
@pytest.mark.parametrize(("dark", "bright", "mode"), [
    (0, 255, "L"), (0, 255, "1"), (0, 255, "RGB"), (40, 200, "L"), (0, 1, "L")])
def test_of_two_values_the_brighter_is_the_notes(tmp_path, rows, lowest, dark, bright, mode):
    pixels = np.full((rows, 300), dark, np.uint8)
    pixels[10, 3:7] = pixels[10, 9:10] = pixels[50, 296:] = bright
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    assert pianoroll.notes_of(pianoroll.load_png(tmp_path / "a.png")).tolist() == [
        [3, 4, 10 + lowest, 100], [9, 1, 10 + lowest, 100], [296, 4, 50 + lowest, 100]]


NOISE = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
GRAY = Image.fromarray(ROLL.pixels)


@pytest.mark.parametrize(("write", "words"), [
    (Image.fromarray(NOISE).save, "a colour image"),
    (Image.fromarray(NOISE[..., 0]).save, "most of it would sound"),
    (Image.new("L", (90, 128)).resize((128, 90)).save, "128×90 pixels"),
    (Image.new("L", (6_000, 20_000)).save, "6000×20000 pixels"),
    (lambda path: path.write_text("no image"), "cannot be read as a PNG"),
    (lambda path: path.write_bytes(pianoroll.png_bytes(ROLL)[:-30]), "cannot be read as a PNG"),
    (lambda path: GRAY.save(path, "GIF"), "cannot be read as a PNG"),
    (lambda path: pianoroll.save_png(PianoRoll(ROLL.pixels, tempo_bpm=float("nan")), path),
     "its text chunks are damaged")])
def test_what_is_no_piano_roll_is_refused_in_one_line(tmp_path, write, words):
    write(tmp_path / "bad.png")
    with pytest.raises(MusicError, match=rf"bad\.png: {words}.*$") as error:
        pianoroll.load_png(tmp_path / "bad.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "data"), [
    (b"iCCP", b""), (b"pHYs", b"\0"), (b"acTL", b"\0"),
    (b"zTXt", b"lowest_pitch\0\0" + zlib.compress(b"0" * 70_000_000))])
def test_a_damaged_chunk_is_read_over_or_named(kind, data, tmp_path):
    png = pianoroll.png_bytes(ROLL)
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "a.png").write_bytes(png[:33] + chunk + png[33:])  # after the header
    try:
        assert np.array_equal(pianoroll.load_png(tmp_path / "a.png").pixels, ROLL.pixels)
    except MusicError as error:
        assert "a.png" in str(error) and "\n" not in str(error)
