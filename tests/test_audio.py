"""MIDI → WAV with both renderers: length, pitch, loudness, and every way in which it can fail."""

import io
import os
import shutil
import sys
from pathlib import Path

import hostile_midi
import mido
import numpy as np
import pytest
import soundfile

from utils import audio, pianoroll
from utils.files import MusicError

needs_fluidsynth = pytest.mark.skipif(shutil.which("fluidsynth") is None,
                                      reason="the fluidsynth program is not installed")
HOURS = hostile_midi.midi(hostile_midi.track(
    hostile_midi.NOTE + b"\x82\xb7\xc0" + hostile_midi.NOTE + hostile_midi.END))
unix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names and scripts")


@pytest.fixture(params=[pytest.param("FluidSynth", marks=needs_fluidsynth), "midirenderer"])
def renderer(request, monkeypatch):
    """The synthesizer that is used."""
    if request.param == "midirenderer":
        monkeypatch.setattr(audio.shutil, "which", lambda name: None)
    return request.param


def write_midi(path, notes=((0, 8, 60, 100), (8, 8, 64, 60))) -> Path:
    """Notes of start, length, pitch, velocity, at 120 beats a minute: 8 steps are a second."""
    steps = max(note[0] + note[1] for note in notes)
    return pianoroll.save_midi(
        pianoroll.PianoRoll(pianoroll.roll_of(np.array(notes), 128, steps)), path)


def rendered(midi, **options) -> tuple[audio.WavFacts, np.ndarray, int]:
    """What was measured, mono sound, samples a second."""
    facts = audio.midi_to_wav(midi, midi.with_suffix(".wav"), **options)
    sound, rate_hz = soundfile.read(midi.with_suffix(".wav"))
    return facts, sound.mean(axis=1), rate_hz


def save_track(path, *messages) -> Path:
    """One track at 120 beats a minute, 480 ticks a beat."""
    mido.MidiFile(tracks=[mido.MidiTrack(messages)]).save(path)
    return path


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_length_rate_and_loudness(renderer, rate_hz, tmp_path):
    wav = tmp_path / "deep" / "a.wav"
    facts = audio.midi_to_wav(write_midi(tmp_path / "a.mid"), wav, sample_rate=rate_hz)
    assert facts.renderer == renderer
    assert bool(facts.note) == (renderer != "FluidSynth"), "why FluidSynth is not used is said"
    info = soundfile.info(wav)
    assert (info.samplerate, info.channels, info.subtype) == (rate_hz, 2, "PCM_16")
    assert 2.0 <= info.duration <= 2.0 + audio.ECHO_S + 0.1
    assert 0.05 < facts.rms < 0.11 and facts.peak <= 0.9
    sound, _ = soundfile.read(wav)
    assert (facts.peak, facts.rms) == pytest.approx((np.abs(sound).max(), sound.std()), abs=1e-4)
    assert [path.name for path in wav.parent.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("pitch", [33, 93])
def test_a_key_sounds_at_its_frequency(renderer, pitch, tmp_path):
    _, sound, rate_hz = rendered(write_midi(tmp_path / "a.mid", [(0, 8, pitch, 100)]))
    spectrum = np.abs(np.fft.rfft(sound[:rate_hz] * np.hanning(rate_hz), rate_hz * 2))
    harmonic = np.argmax(spectrum) / 2 / (440 * 2 ** ((pitch - 69) / 12))
    assert 0.9 < harmonic < 3.1
    assert abs(1200 * np.log2(harmonic / round(harmonic))) < 30, "within 30 cents"


def test_notes_sound_when_they_should_louder_if_struck_harder_and_die_away(renderer, tmp_path):
    facts, sound, rate_hz = rendered(write_midi(
        tmp_path / "a.mid", [(0, 1, 72, 110), (32, 1, 72, 30), (96, 8, 60, 110)]))

    def loudest(begin_s, end_s):
        return np.abs(sound[int(begin_s * rate_hz) : int(end_s * rate_hz)]).max()

    first, second, third = (loudest(at, at + 0.12) for at in (0, 4, 12))
    assert first > 4 * second and third > 4 * second and loudest(2.5, 3.9) < second / 4
    assert facts.seconds > 13.2 and loudest(13, 13.05) > 0.01, "an echo that is heard"
    assert np.abs(sound[-rate_hz // 200 :]).max() < 0.001, "and ends without a click"


def test_a_wall_of_sound_does_not_clip(renderer, tmp_path):
    wall = [(step, 4, pitch, 127) for step in range(0, 16, 4) for pitch in range(21, 109)]
    facts = audio.midi_to_wav(write_midi(tmp_path / "a.mid", wall), tmp_path / "a.wav")
    sound, _ = soundfile.read(tmp_path / "a.wav")
    assert facts.peak <= 0.9
    assert (np.abs(sound) > facts.peak - 1e-4).sum() < 20, "no flat tops"


def test_a_note_that_is_never_released_fades(renderer, tmp_path):
    facts, sound, rate_hz = rendered(save_track(
        tmp_path / "a.mid", mido.Message("note_on", note=67, time=1920),
        mido.MetaMessage("end_of_track", time=960 * 60)))
    assert facts.midi_seconds == pytest.approx(2) and 3 < facts.seconds < 5.1
    assert np.abs(sound[-rate_hz // 200 :]).max() < 0.01


# ---------------------------------------------------------------- what the synthesizer gets


@pytest.mark.parametrize("late", [
    mido.MetaMessage("end_of_track", time=960 * 600),
    mido.Message("control_change", control=64, value=0, time=960 * 600),
    mido.Message("note_off", note=64, time=960 * 600)], ids=lambda late: late.type)
def test_silence_at_the_end_is_not_rendered(late, tmp_path):
    """A second of it takes 1.3 MB."""
    midi = save_track(tmp_path / "a.mid", mido.Message("note_on", note=60),
                      mido.Message("note_off", note=60, time=1440), late)
    data, midi_s = audio.playable(midi)
    assert midi_s == pytest.approx(1.5)
    assert mido.MidiFile(file=io.BytesIO(data)).length == pytest.approx(1.5 + audio.ECHO_S)


def test_the_synthesizer_gets_what_the_file_says(tmp_path):
    M, tempo = mido.Message, mido.MetaMessage
    tracks = ([tempo("set_tempo", tempo=250_000, time=300),
               tempo("set_tempo", tempo=1_000_000, time=300)],
              [M("program_change", program=19), M("control_change", control=7, value=90),
               M("note_on", note=60), M("note_on", note=60, velocity=0, time=960)],
              [M("note_on", channel=9, note=36, time=100), M("pitchwheel", pitch=99, time=5),
               M("sysex", data=(126, 127, 9, 1)), M("note_off", channel=9, note=36, time=200)])
    file = mido.MidiFile(tracks=list(map(mido.MidiTrack, tracks)))
    file.save(tmp_path / "a.mid")
    data, midi_s = audio.playable(tmp_path / "a.mid")

    def timed(midi):
        seconds = np.cumsum([message.time for message in midi])
        return [(second, message.copy(time=0)) for second, message in
                zip(seconds, midi, strict=True) if not message.is_meta]

    before, after = timed(file), timed(mido.MidiFile(file=io.BytesIO(data)))
    for (second, message), (same_second, same) in zip(before, after, strict=False):
        assert message == same and same_second == pytest.approx(second, abs=1e-4)
    assert len(after) >= len(before) == 8 and midi_s == pytest.approx(before[-1][0])


# ---------------------------------------------------------------- FluidSynth that misbehaves


def fake_fluidsynth(folder, monkeypatch, script: str):
    """Put a program called fluidsynth first in PATH; `REAL` in it is the real one."""
    program = folder / "bin" / "fluidsynth"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys, os, wave\narguments = sys.argv[1:]\n"
                       f"REAL = {shutil.which('fluidsynth')!r}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@unix
@needs_fluidsynth
def test_a_fluidsynth_that_refuses_options_after_files(tmp_path, monkeypatch):
    fake_fluidsynth(tmp_path, monkeypatch, """
files = [a.endswith((".mid", ".sf2", ".sf3")) for a in arguments]
if any(a.startswith("-") for a in arguments[files.index(True):]):
    sys.exit("options must come before files")
os.execv(REAL, ["fluidsynth", *arguments])""")
    facts, _, _ = rendered(write_midi(tmp_path / "a.mid"))
    assert facts.renderer == "FluidSynth" and facts.note == ""


@unix
@pytest.mark.parametrize(("script", "reason"), [
    ("sys.exit('no audio\\ndriver')", "no audio driver"), ("sys.exit(0)", "whole piece"),
    *((f"""with wave.open(arguments[arguments.index('-F') + 1], 'wb') as w:
    w.setparams((2, 2, 44100, 0, 'NONE', '')); w.writeframes(b'{sample}' * 4 * 44100 * {seconds})
""", "whole piece") for sample, seconds in (("a", 1), ("\\0", 3)))], ids=[
        "refuses", "writes nothing", "stops early", "plays silence"])
def test_a_fluidsynth_that_fails_is_replaced_and_the_reason_said(script, reason, tmp_path,
                                                                 monkeypatch):
    fake_fluidsynth(tmp_path, monkeypatch, script)
    facts, _, _ = rendered(write_midi(tmp_path / "a.mid"))
    assert facts.renderer == "midirenderer" and reason in facts.note and "\n" not in facts.note


# ---------------------------------------------------------------- bad input


def refusal(folder, *more, **others) -> str:
    """The line that says why `a.mid` is not rendered; nothing is written."""
    with pytest.raises(MusicError) as caught:
        audio.midi_to_wav(folder / "a.mid", folder / "a.wav", *more, **others)
    assert "\n" not in str(caught.value) and not (folder / "a.wav").exists()
    return str(caught.value)


@pytest.mark.parametrize("content", [None, b"not a sound font at all", b"",
                                     b"RIFF\x10\0\0\0sfbkLIST\0\0\0\0"])
def test_a_sound_font_that_is_none_is_named(renderer, content, tmp_path):
    write_midi(tmp_path / "a.mid")
    if content is not None:
        (tmp_path / "bad.sf2").write_bytes(content)
    assert refusal(tmp_path, tmp_path / "bad.sf2").startswith(f"{tmp_path / 'bad.sf2'}: ")


@pytest.mark.parametrize(("content", "rate_hz", "line"), [
    (None, 44_100, "a.mid: no such file"), (b"hello", 44_100, "a.mid: "),
    (hostile_midi.GOOD, 8_000, "give 16,000 to 48,000"),
    (HOURS, 44_100, "a.mid: lasts 1.5 hours; cut it to 1 or less"),
    (bytes(2**21 + 1), 44_100, "a.mid: over 2 MiB")])
def test_what_cannot_be_played_is_named_in_one_line(content, rate_hz, line, tmp_path):
    if content is not None:
        (tmp_path / "a.mid").write_bytes(content)
    assert line in refusal(tmp_path, sample_rate=rate_hz)


def write_wav(path, seconds=2.0, amplitude=0.3):
    time_s = np.arange(int(seconds * 16_000)) / 16_000
    soundfile.write(path, np.clip(amplitude * np.sin(2765 * time_s), -1, 1), 16_000)


@pytest.mark.parametrize(("make", "wrong"), [
    (lambda path: path.write_text("RIFF"), "no WAV"),
    (lambda path: write_wav(path, 1.5), "lasts 1.50 s"),
    (lambda path: write_wav(path, 9), "lasts 9"), (lambda path: write_wav(path, 2, 0), "silent"),
    (lambda path: write_wav(path, 2, 3), "clipped")])
def test_check_wav_refuses(make, wrong, tmp_path):
    make(tmp_path / "a.wav")
    with pytest.raises(MusicError, match=rf"a\.wav: .*{wrong}"):
        audio.check_wav(tmp_path / "a.wav", 2)
