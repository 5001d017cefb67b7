"""Notebooks 05 and 06 on folders with good, bad and hostile files, run with papermill."""

import base64
import csv
import io
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import soundfile
from PIL import Image

from utils import pianoroll
from utils.pianoroll import PianoRoll

ROOT = Path(__file__).parent.parent


def execute(name, tmp_path, cwd=ROOT, **parameters) -> str:
    """Run a notebook; what it printed."""
    out = tmp_path / f"{name}.ipynb"
    papermill.execute_notebook(ROOT / "notebooks" / f"{name}.ipynb", out, parameters, cwd=cwd,
                               kernel_name="python3", progress_bar=False)
    notebook = nbformat.read(out, as_version=4)
    return "".join(output.get("text", "") for cell in notebook.cells
                   for output in cell.get("outputs", []) if output.get("name") == "stdout")


def picture(preset, seed, **facts) -> PianoRoll:
    """A few bars of notes."""
    rng = np.random.default_rng(seed)
    starts = np.arange(0, preset.steps - 8, 4)
    notes = np.stack([starts, rng.integers(1, 8, len(starts)), rng.integers(40, 90, len(starts)),
                      rng.integers(30, 127, len(starts))], axis=1)
    levels = pianoroll.roll_of(notes, preset.pitches, preset.steps, preset.lowest_pitch)
    return PianoRoll(levels, preset.lowest_pitch, **facts)


def skipped(folder) -> dict[str, str]:
    with (folder / "skipped.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def relative(folder, suffix) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}")}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder: samples good and bad, then 05 and 06 over them."""
    run_dir = tmp_path_factory.mktemp("run with space")
    good = {"diffusion/a.png": (pianoroll.DIFFUSION, 1), "gan/<b>&'c'.png": (pianoroll.GAN, 2),
            "diffusion/deep/\u00e9t\u00e9.png": (pianoroll.DIFFUSION, 3)}
    for name, (preset, seed) in good.items():
        pianoroll.save_png(picture(preset, seed, tempo_bpm=100.0), run_dir / "samples" / name)
    bad = run_dir / "samples" / "bad"
    bad.mkdir()
    (bad / "text.png").write_text("this is text, not a picture")
    (bad / "empty.png").write_bytes(b"")
    photo = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(photo).save(bad / "photo.png")
    Image.fromarray(np.zeros((200, 200), dtype=np.uint8)).save(bad / "size.png")
    pianoroll.save_png(PianoRoll(np.zeros((128, 128), dtype=np.uint8)), bad / "silent.png")
    (bad / "notes.txt").write_text("not looked at")
    execute("05_img2midi", run_dir, run_dir=str(run_dir))
    execute("06_midi2wav", run_dir, run_dir=str(run_dir))
    return run_dir


def test_every_good_picture_is_decoded_exactly(run):
    assert relative(run / "midi", ".mid") == {
        "diffusion/a.mid", "gan/<b>&'c'.mid", "diffusion/deep/\u00e9t\u00e9.mid"}
    for midi in (run / "midi").rglob("*.mid"):
        png = run / "samples" / midi.relative_to(run / "midi").with_suffix(".png")
        before = pianoroll.notes_of(pianoroll.load_png(png))
        assert np.array_equal(before, pianoroll.notes_of(pianoroll.read_midi(midi)))
        assert len(before) > 25


def test_every_bad_picture_is_named_with_its_reason(run):
    reasons = skipped(run / "midi")
    assert set(reasons) == {f"bad/{name}.png" for name in ("text", "empty", "photo", "size",
                                                            "silent")}
    assert "silent" in reasons["bad/silent.png"] and "200" in reasons["bad/size.png"]
    assert all(reason and "\n" not in reason for reason in reasons.values())


def test_every_midi_sounds_as_long_as_it_lasts(run):
    assert relative(run / "wav", ".wav") == {
        "diffusion/a.wav", "gan/<b>&'c'.wav", "diffusion/deep/\u00e9t\u00e9.wav"}
    assert skipped(run / "wav") == {}
    for wav in (run / "wav").rglob("*.wav"):
        midi = run / "midi" / wav.relative_to(run / "wav").with_suffix(".mid")
        notes = pianoroll.notes_of(pianoroll.read_midi(midi))
        midi_s = (notes[:, 0] + notes[:, 1]).max() / 4 * 60 / 100
        sound, rate_hz = soundfile.read(wav)
        assert rate_hz == 44_100 and sound.shape[1] == 2
        assert midi_s - 0.05 <= len(sound) / rate_hz <= midi_s + 3.1
        assert np.sqrt(np.mean(sound**2)) > 0.02 and np.abs(sound).max() < 0.95


def test_the_gallery_shows_the_samples_themselves(run):
    page = (run / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 3 and page.count("data:audio/mpeg") == 3
    assert "<b>" not in page and "gan/&lt;b&gt;&amp;&#x27;c&#x27;" in page
    assert "300]]" in page, "the whole picture of 300 columns, its silent end too"
    assert "http://" not in page and "https://" not in page


def test_again_gives_the_same_bytes(run, tmp_path):
    before = {path: path.read_bytes() for path in (run / "midi").rglob("*")
              if path.is_file()}
    execute("05_img2midi", tmp_path, cwd=ROOT / "notebooks", run_dir=str(run))
    after = {path: path.read_bytes() for path in (run / "midi").rglob("*") if path.is_file()}
    assert before == after


@pytest.fixture(scope="module")
def flipped(tmp_path_factory) -> Path:
    """A rising line as a drawing program shows it, the same with facts, then 05 with flip, and 06.
    """
    run_dir = tmp_path_factory.mktemp("flipped")
    rising = np.zeros((128, 128), np.uint8)
    for i in range(20):
        rising[67 - i, 6 * i : 6 * i + 4] = 255  # row 0 is at the top
    (run_dir / "samples").mkdir()
    Image.fromarray(rising).save(run_dir / "samples" / "drawn.png")
    pianoroll.save_png(picture(pianoroll.DIFFUSION, 1), run_dir / "samples" / "ours.png")
    execute("05_img2midi", run_dir, run_dir=str(run_dir), flip=True)
    execute("06_midi2wav", run_dir, run_dir=str(run_dir))
    return run_dir


def test_a_line_that_was_drawn_rising_rises_with_flip(flipped):
    notes = pianoroll.notes_of(pianoroll.read_midi(flipped / "midi" / "drawn.mid"))
    assert notes[np.argsort(notes[:, 0]), 2].tolist() == list(range(60, 80))


def test_flip_leaves_an_image_with_facts_as_it_is(flipped):
    notes = pianoroll.notes_of(pianoroll.read_midi(flipped / "midi" / "ours.mid"))
    assert np.array_equal(notes, pianoroll.notes_of(picture(pianoroll.DIFFUSION, 1)))


def test_the_gallery_shows_a_flipped_image_as_it_is_heard(flipped):
    page = (flipped / "gallery.html").read_text(encoding="utf-8")
    png = re.search(r'base64,([^"]+)" alt="Piano roll of drawn"', page)[1]
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        row, column = np.nonzero(np.asarray(image))
    assert row[column.argmin()] > row[column.argmax()], "low notes are at the bottom"


@pytest.fixture(scope="module")
def second_run(tmp_path_factory) -> Path:
    """Three samples decoded and rendered; then one is gone, one silent, one is another, and 05
    runs again, and 06 too."""
    run_dir = tmp_path_factory.mktemp("again")
    names = ["gone", "silent", "stays"]
    for seed, name in enumerate(names):
        pianoroll.save_png(picture(pianoroll.DIFFUSION, seed), run_dir / "samples" / f"{name}.png")
    pianoroll.save_midi(picture(pianoroll.DIFFUSION, 9), run_dir / "midi" / "complete" / "own.mid")
    execute("05_img2midi", run_dir, run_dir=str(run_dir))
    execute("06_midi2wav", run_dir, run_dir=str(run_dir))
    (run_dir / "samples" / "gone.png").unlink()
    silent = PianoRoll(np.zeros((128, 128), np.uint8))
    pianoroll.save_png(silent, run_dir / "samples" / "silent.png")
    (run_dir / "wav" / "mine.wav").write_bytes(b"not of notebook 06")
    execute("05_img2midi", run_dir, run_dir=str(run_dir))
    pianoroll.save_png(picture(pianoroll.GAN, 7), run_dir / "samples" / "stays.png")
    execute("06_midi2wav", run_dir, run_dir=str(run_dir))
    return run_dir


def test_05_removes_what_it_decoded_before_and_nothing_else(second_run):
    assert relative(second_run / "midi", ".mid") == {"stays.mid", "complete/own.mid"}


def test_06_removes_what_it_rendered_before_and_nothing_else(second_run):
    assert relative(second_run / "wav", ".wav") == {"stays.wav", "complete/own.wav", "mine.wav"}


def test_the_gallery_shows_no_picture_that_is_newer_than_the_music(second_run):
    page = (second_run / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 2 and "300]]" not in page


def test_two_suffixes_of_one_name_give_two_sounds(tmp_path):
    for seed, name in enumerate(["song.mid", "song.midi"]):
        pianoroll.save_midi(picture(pianoroll.DIFFUSION, seed), tmp_path / "mine" / name)
    execute("06_midi2wav", tmp_path, run_dir=str(tmp_path / "run"), midi_dir=str(tmp_path / "mine"),
            sample_rate=16_000)
    assert relative(tmp_path / "run" / "wav", ".wav") == {"song.mid.wav", "song.midi.wav"}


def test_any_folder_of_midi_without_fluidsynth(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is found there
    midi_dir, run_dir = tmp_path / "my midi", tmp_path / "run"
    pianoroll.save_midi(picture(pianoroll.DIFFUSION, 5), midi_dir / "deep" / "good $5.midi")
    (midi_dir / "text.mid").write_text("this is text, not MIDI")
    whole = pianoroll.save_midi(picture(pianoroll.GAN, 6), midi_dir / "whole.mid").read_bytes()
    (midi_dir / "cut.mid").write_bytes(whole[:20])
    (midi_dir / "no_notes.mid").write_bytes(
        b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0")
    printed = execute("06_midi2wav", tmp_path, run_dir=str(run_dir), midi_dir=str(midi_dir),
                      sample_rate=16_000)
    assert "FluidSynth is not used: the fluidsynth program is not installed" in printed
    assert relative(run_dir / "wav", ".wav") == {"deep/good $5.wav", "whole.wav"}
    assert set(skipped(run_dir / "wav")) == {"text.mid", "cut.mid", "no_notes.mid"}
    assert soundfile.info(run_dir / "wav" / "whole.wav").samplerate == 16_000
    assert (run_dir / "gallery.html").is_file()


@pytest.mark.parametrize(("name", "parameters", "line"), [
    ("05_img2midi", {"image_dir": "EMPTY"}, "EMPTY: no PNGs in it; set image_dir to a folder"),
    ("06_midi2wav", {"midi_dir": "EMPTY"}, "EMPTY: no MIDI files in it; set midi_dir to a folder"),
    ("05_img2midi", {"image_dir": "nowhere"}, "nowhere: no such folder; set image_dir to a folder"),
    ("05_img2midi", {"image_dir": "README.md"}, "README.md: not a folder; set image_dir to a"),
    ("06_midi2wav", {"midi_dir": "nowhere"}, "nowhere: no such folder; set midi_dir to a folder"),
    ("06_midi2wav", {"sample_rate": "fast"}, "sample_rate is 'fast'; give a whole number"),
    ("06_midi2wav", {"sound_font": "nowhere.sf2"}, "nowhere.sf2: no such sound font"),
])
def test_one_line_says_what_to_do(name, parameters, line, tmp_path):
    empty = tmp_path / "EMPTY"
    empty.mkdir()
    given = {key: str(empty) if value == "EMPTY" else value for key, value in parameters.items()}
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        execute(name, tmp_path, run_dir=str(tmp_path / "run"), **given)
    assert caught.value.ename == "MusicError" and line in caught.value.evalue
    assert "\n" not in caught.value.evalue


def test_a_fresh_run_takes_the_built_in_corpus(tmp_path):
    assert list((ROOT / "data" / "midi").glob("*.mid")), "the corpus lies in data/midi"
    execute("05_img2midi", tmp_path, run_dir=str(tmp_path / "run"))
    assert 4 <= len(relative(tmp_path / "run" / "midi", ".mid")) <= 8
    shutil.rmtree(tmp_path / "run")
    execute("06_midi2wav", tmp_path, run_dir=str(tmp_path / "run"))
    assert 4 <= len(relative(tmp_path / "run" / "wav", ".wav")) <= 8
