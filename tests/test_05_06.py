"""Notebooks 05 and 06 on folders with good, bad and hostile files, run with papermill."""

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import papermill
import pytest
import soundfile
from PIL import Image

from real_midi import ROOT
from utils import pianoroll
from utils.pianoroll import PianoRoll

SILENT = PianoRoll(np.zeros((128, 128), np.uint8))


def execute(name, run_dir, cwd=ROOT, **parameters) -> str:
    """Run a notebook; what it printed."""
    made = papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb", run_dir / f"{name}.ipynb",
        {"run_dir": str(run_dir), **parameters}, cwd=cwd, progress_bar=False)
    return "".join(output.get("text", "") for cell in made.cells
                   for output in cell.get("outputs", []) if output.get("name") == "stdout")


def both(run_dir, **parameters) -> None:
    """Run 05, from another folder and with these parameters, then 06."""
    execute("05_img2midi", run_dir, cwd=ROOT / "notebooks", **parameters)
    execute("06_midi2wav", run_dir)


def roll(preset, seed) -> PianoRoll:
    """A few bars of notes."""
    rng = np.random.default_rng(seed)
    start = np.arange(0, preset.steps - 8, 4)
    notes = np.stack([start, rng.integers(1, 8, len(start)), rng.integers(40, 90, len(start)),
                      rng.integers(30, 127, len(start))], axis=1)
    pixels = pianoroll.roll_of(notes, preset.pitches, preset.steps, preset.lowest_pitch)
    return PianoRoll(pixels, preset.lowest_pitch, tempo_bpm=100.0)


def skipped(folder) -> dict[str, str]:
    with (folder / "skipped.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def relative(folder, suffix) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}")}


GOOD = {"diffusion/a": pianoroll.DIFFUSION, "gan/<b>&'c'": pianoroll.GAN,
        "diffusion/deep/\u00e9t\u00e9": pianoroll.DIFFUSION}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder: samples good and bad, then 05 and 06 over them."""
    run_dir = tmp_path_factory.mktemp("run with space")
    for seed, (name, preset) in enumerate(GOOD.items()):
        pianoroll.save_png(roll(preset, seed), run_dir / "samples" / f"{name}.png")
    bad = run_dir / "samples" / "bad"
    pianoroll.save_png(SILENT, bad / "silent.png")
    (bad / "text.png").write_text("this is text, not an image")
    Image.fromarray(np.zeros((200, 200), dtype=np.uint8)).save(bad / "size.png")
    (bad / "notes.txt").write_text("not looked at")
    both(run_dir)
    return run_dir


def test_every_good_image_is_decoded_exactly(run):
    assert relative(run / "midi", ".mid") == {f"{name}.mid" for name in GOOD}
    for name in GOOD:
        before = pianoroll.notes_of(pianoroll.load_png(run / "samples" / f"{name}.png"))
        after = pianoroll.notes_of(pianoroll.read_midi(run / "midi" / f"{name}.mid"))
        assert np.array_equal(before, after) and len(before) > 25


def test_every_bad_image_is_named_with_its_reason(run):
    reasons = skipped(run / "midi")
    assert set(reasons) == {"bad/text.png", "bad/size.png", "bad/silent.png"}
    assert "silent" in reasons["bad/silent.png"] and "200" in reasons["bad/size.png"]
    assert all(reason and "\n" not in reason for reason in reasons.values())


def test_every_midi_is_rendered(run):
    assert relative(run / "wav", ".wav") == {f"{name}.wav" for name in GOOD}
    assert skipped(run / "wav") == {}
    for name in GOOD:
        sound, rate_hz = soundfile.read(run / "wav" / f"{name}.wav")
        assert rate_hz == 44_100 and sound.shape[1] == 2
        assert np.sqrt(np.mean(sound**2)) > 0.02 and np.abs(sound).max() < 0.95


def test_the_gallery_shows_the_samples_themselves(run):
    page = (run / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 3 and page.count("data:audio/mpeg") == 3
    assert "<b>" not in page and "gan/&lt;b&gt;&amp;&#x27;c&#x27;" in page
    assert "300]]" in page, "the whole image of 300 columns, its silent end too"
    assert "http://" not in page and "https://" not in page


def test_a_line_that_was_drawn_rising_rises_with_flip(tmp_path):
    rising = np.zeros((128, 128), np.uint8)
    for i in range(20):
        rising[67 - i, 6 * i : 6 * i + 4] = 255  # row 0 is at the top
    (tmp_path / "samples").mkdir()
    Image.fromarray(rising).save(tmp_path / "samples" / "drawn.png")
    ours = roll(pianoroll.DIFFUSION, 1)
    pianoroll.save_png(ours, tmp_path / "samples" / "ours.png")
    both(tmp_path, flip=True)
    drawn, own = (pianoroll.notes_of(pianoroll.read_midi(tmp_path / "midi" / f"{name}.mid"))
                  for name in ("drawn", "ours"))
    assert drawn[np.argsort(drawn[:, 0]), 2].tolist() == list(range(60, 80))
    assert np.array_equal(own, pianoroll.notes_of(ours)), "an image with facts stays as it is"
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    png = re.search(r'base64,([^"]+)" alt="Piano roll of drawn"', page)[1]
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        row, column = np.nonzero(np.asarray(image))
    assert row[column.argmin()] > row[column.argmax()], "low notes are at the bottom"


def test_a_second_run_removes_what_the_first_made_and_nothing_else(tmp_path):
    for seed, name in enumerate(["gone", "silent", "stays"]):
        image = roll(pianoroll.DIFFUSION, seed)
        pianoroll.save_png(image, tmp_path / "samples" / f"{name}.png")
    pianoroll.save_midi(roll(pianoroll.DIFFUSION, 9), tmp_path / "midi" / "complete" / "own.mid")
    both(tmp_path)
    (tmp_path / "samples" / "gone.png").unlink()
    pianoroll.save_png(SILENT, tmp_path / "samples" / "silent.png")
    (tmp_path / "wav" / "mine.wav").write_bytes(b"not of notebook 06")
    execute("05_img2midi", tmp_path)
    pianoroll.save_png(roll(pianoroll.GAN, 7), tmp_path / "samples" / "stays.png")
    execute("06_midi2wav", tmp_path)
    assert relative(tmp_path / "midi", ".mid") == {"stays.mid", "complete/own.mid"}
    assert relative(tmp_path / "wav", ".wav") == {"stays.wav", "complete/own.wav", "mine.wav"}
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 2
    assert "300]]" not in page, "no image that is newer than its music"


def test_06_takes_any_folder_of_midi_and_needs_no_fluidsynth(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is found there
    midi_dir, run_dir = tmp_path / "my midi", tmp_path / "run"
    run_dir.mkdir()
    for seed, name in enumerate(["deep/good $5.midi", "song.mid", "song.midi"]):
        pianoroll.save_midi(roll(pianoroll.DIFFUSION, seed), midi_dir / name)
    (midi_dir / "text.mid").write_text("this is text, not MIDI")
    (midi_dir / "cut.mid").write_bytes((midi_dir / "song.mid").read_bytes()[:20])
    printed = execute("06_midi2wav", run_dir, midi_dir=str(midi_dir), sample_rate=16_000)
    assert "FluidSynth is not used: the fluidsynth program is not installed" in printed
    assert relative(run_dir / "wav", ".wav") == {"deep/good $5.wav", "song.mid.wav",
                                                 "song.midi.wav"}
    assert set(skipped(run_dir / "wav")) == {"text.mid", "cut.mid"}
    assert soundfile.info(run_dir / "wav" / "song.mid.wav").samplerate == 16_000


@pytest.mark.parametrize(("name", "parameters", "line"), [
    ("05_img2midi", {"image_dir": "EMPTY"}, "EMPTY: no PNGs in it; set image_dir to a folder"),
    ("06_midi2wav", {"midi_dir": "EMPTY"}, "EMPTY: no MIDI files in it; set midi_dir to a folder"),
    ("05_img2midi", {"image_dir": "nowhere"}, "nowhere: no such folder; set image_dir to a folder"),
    ("06_midi2wav", {"midi_dir": "README.md"}, "README.md: not a folder; set midi_dir to a folder"),
    ("06_midi2wav", {"sample_rate": "fast"}, "sample_rate is 'fast'; give a whole number"),
    ("06_midi2wav", {"sound_font": "nowhere.sf2"}, "nowhere.sf2: no such sound font"),
])
def test_one_line_says_what_to_do(name, parameters, line, tmp_path):
    empty = tmp_path / "EMPTY"
    empty.mkdir()
    given = {key: str(empty) if value == "EMPTY" else value for key, value in parameters.items()}
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        execute(name, tmp_path, **given)
    assert caught.value.ename == "MusicError" and line in caught.value.evalue
    assert "\n" not in caught.value.evalue


@pytest.mark.parametrize(("name", "made"), [("05_img2midi", "midi/**/*.mid"),
                                            ("06_midi2wav", "wav/**/*.wav")])
def test_a_fresh_run_takes_the_built_in_corpus(name, made, tmp_path):
    execute(name, tmp_path)
    assert 4 <= len(list(tmp_path.glob(made))) <= 8
