"""Notebooks 05 and 06 on folders with good, bad and hostile files, run with papermill."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from notebook_code import executed, refused, rows_of
from PIL import Image

from real_midi import ROOT
from utils import pianoroll
from utils.pianoroll import PianoRoll

SILENT = PianoRoll(np.zeros((128, 128), np.uint8))


def roll(preset, seed) -> PianoRoll:
    """A few bars of notes."""
    rng = np.random.default_rng(seed)
    start = np.arange(0, preset.steps - 8, 4)
    notes = np.stack([start, rng.integers(1, 8, len(start)), rng.integers(40, 90, len(start)),
                      rng.integers(30, 127, len(start))], axis=1)
    pixels = pianoroll.roll_of(notes, preset.pitches, preset.steps, preset.lowest_pitch)
    return PianoRoll(pixels, preset.lowest_pitch, tempo_bpm=100.0)


def skipped(folder) -> dict[str, str]:
    return {row["file"]: row["reason"] for row in rows_of(folder / "skipped.csv")}


def relative(folder, suffix) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}")}


GOOD = {"diffusion/a": pianoroll.DIFFUSION, "gan/<b>&'c'": pianoroll.GAN,
        "diffusion/deep/\u00e9t\u00e9": pianoroll.DIFFUSION}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with samples, good and bad; 05, from another folder and with flip, then 06."""
    run_dir = tmp_path_factory.mktemp("run with space")
    samples = run_dir / "samples"
    for seed, (name, preset) in enumerate(GOOD.items()):
        pianoroll.save_png(roll(preset, seed), samples / f"{name}.png")
    drawn = np.zeros((128, 128), np.uint8)
    for i in range(20):
        drawn[67 - i, 6 * i : 6 * i + 4] = 255  # row 0 is at the top: it rises
    Image.fromarray(drawn).save(samples / "drawn.png")
    pianoroll.save_png(SILENT, samples / "bad" / "silent.png")
    (samples / "bad" / "text.png").write_text("this is text, not an image")
    Image.fromarray(np.zeros((200, 200), dtype=np.uint8)).save(samples / "bad" / "size.png")
    (samples / "bad" / "notes.txt").write_text("not looked at")
    executed("05", run_dir, cwd=ROOT / "notebooks", flip=True)
    executed("06", run_dir)
    return run_dir


def test_every_good_image_is_decoded_exactly_and_a_drawn_one_is_flipped(run):
    assert relative(run / "midi", ".mid") == {f"{name}.mid" for name in (*GOOD, "drawn")}
    for name in GOOD:
        before = pianoroll.notes_of(pianoroll.load_png(run / "samples" / f"{name}.png"))
        after = pianoroll.notes_of(pianoroll.read_midi(run / "midi" / f"{name}.mid"))
        assert np.array_equal(before, after) and len(before) > 25
    drawn = pianoroll.notes_of(pianoroll.read_midi(run / "midi" / "drawn.mid"))
    assert drawn[np.argsort(drawn[:, 0]), 2].tolist() == list(range(60, 80))


def test_every_bad_image_is_named_with_its_reason(run):
    reasons = skipped(run / "midi")
    assert set(reasons) == {"bad/text.png", "bad/size.png", "bad/silent.png"}
    assert "silent" in reasons["bad/silent.png"] and "200" in reasons["bad/size.png"]
    assert all(reason and "\n" not in reason for reason in reasons.values())


def test_every_midi_is_rendered(run):
    assert relative(run / "wav", ".wav") == {f"{name}.wav" for name in (*GOOD, "drawn")}
    assert skipped(run / "wav") == {}
    sounds = [soundfile.read(path) for path in (run / "wav").rglob("*.wav")]
    assert all(rate_hz == 44_100 and sound.shape[1] == 2 for sound, rate_hz in sounds)
    assert all(sound.std() > 0.02 and np.abs(sound).max() < 0.95 for sound, _ in sounds)


def test_the_gallery_shows_the_samples_themselves(run):
    page = (run / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<article>") == page.count("data:audio/mpeg") == 4
    assert "<b>" not in page and "gan/&lt;b&gt;&amp;&#x27;c&#x27;" in page
    assert "300]]" in page, "the whole image of 300 columns, its silent end too"


def test_a_second_run_removes_what_the_first_made_and_nothing_else(tmp_path):
    for seed, name in enumerate(["gone", "silent", "stays"]):
        image = roll(pianoroll.DIFFUSION, seed)
        pianoroll.save_png(image, tmp_path / "samples" / f"{name}.png")
    pianoroll.save_midi(roll(pianoroll.DIFFUSION, 9), tmp_path / "midi" / "complete" / "own.mid")
    executed("05", tmp_path)
    executed("06", tmp_path)
    (tmp_path / "samples" / "gone.png").unlink()
    pianoroll.save_png(SILENT, tmp_path / "samples" / "silent.png")
    (tmp_path / "wav" / "mine.wav").write_bytes(b"not of notebook 06")
    executed("05", tmp_path)
    pianoroll.save_png(roll(pianoroll.GAN, 7), tmp_path / "samples" / "stays.png")
    executed("06", tmp_path)
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
    printed = executed("06", run_dir, midi_dir=str(midi_dir), sample_rate=16_000)
    assert "FluidSynth is not used: the fluidsynth program is not installed" in printed
    assert relative(run_dir / "wav", ".wav") == {"deep/good $5.wav", "song.mid.wav",
                                                 "song.midi.wav"}
    assert set(skipped(run_dir / "wav")) == {"text.mid", "cut.mid"}
    assert soundfile.info(run_dir / "wav" / "song.mid.wav").samplerate == 16_000


@pytest.mark.parametrize(("number", "name", "value", "line"), [
    ("05", "image_dir", "EMPTY", "EMPTY: no PNGs in it; set image_dir to a folder"),
    ("06", "midi_dir", "EMPTY", "EMPTY: no MIDI files in it; set midi_dir to a folder"),
    ("05", "image_dir", "nowhere", "nowhere: no such folder; set image_dir to a folder"),
    ("06", "sound_font", "nowhere.sf2", "nowhere.sf2: no such sound font")])
def test_one_line_says_what_to_do(number, name, value, line, tmp_path):
    (tmp_path / "EMPTY").mkdir()
    given = str(tmp_path / value) if value == "EMPTY" else value
    assert line in refused(number, tmp_path, **{name: given})


@pytest.mark.parametrize(("number", "made"), [("05", "midi/**/*.mid"), ("06", "wav/**/*.wav")])
def test_a_fresh_run_takes_the_built_in_corpus(number, made, tmp_path):
    executed(number, tmp_path)
    assert 4 <= len(list(tmp_path.glob(made))) <= 8
