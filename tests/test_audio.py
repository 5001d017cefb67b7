"""MIDI → WAV with both renderers: length, pitch, loudness, and every way in which it can fail."""

import errno
import io
import os
import shutil
import stat
import sys
from pathlib import Path

import hostile_midi
import mido
import numpy as np
import pretty_midi
import psutil
import pytest
import soundfile

from utils import audio, pianoroll
from utils.pianoroll import MusicError, PianoRoll

needs_fluidsynth = pytest.mark.skipif(shutil.which("fluidsynth") is None,
                                      reason="the fluidsynth program is not installed")
both = pytest.mark.parametrize("renderer", [
    pytest.param("FluidSynth", marks=needs_fluidsynth), "midirenderer"])


def choose(renderer, monkeypatch):
    if renderer != "FluidSynth":
        monkeypatch.setattr(audio.shutil, "which", lambda name: None)


def write_midi(path, notes=((0, 8, 60, 100), (8, 8, 64, 60)), tempo_bpm=120.0) -> Path:
    levels = pianoroll.roll_of(np.array(notes), 128, max(n[0] + n[1] for n in notes))
    return pianoroll.save_midi(PianoRoll(levels, tempo_bpm=tempo_bpm), path)


def dominant_hz(sound, rate_hz):
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), rate_hz * 2))
    return np.argmax(spectrum) / 2, spectrum


@both
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_length_rate_and_loudness(renderer, rate_hz, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    midi = write_midi(tmp_path / "a.mid")
    facts = audio.midi_to_wav(midi, tmp_path / "deep" / "a.wav", sample_rate=rate_hz)
    assert facts.renderer == renderer
    assert bool(facts.note) == (renderer != "FluidSynth"), "why FluidSynth is not used is said"
    info = soundfile.info(tmp_path / "deep" / "a.wav")
    assert (info.samplerate, info.channels, info.subtype) == (rate_hz, 2, "PCM_16")
    assert 2.0 <= info.duration <= 2.0 + audio.ECHO_S + 0.1
    assert 0.05 < facts.rms < 0.11 and facts.peak <= 0.9
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.wav"]


@both
@pytest.mark.parametrize("pitch", [33, 57, 93])
def test_a_key_sounds_at_its_frequency(renderer, pitch, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    audio.midi_to_wav(write_midi(tmp_path / "a.mid", [(0, 8, pitch, 100)]), tmp_path / "a.wav")
    sound, rate_hz = soundfile.read(tmp_path / "a.wav")
    heard_hz, _ = dominant_hz(sound[:rate_hz].mean(axis=1), rate_hz)
    frequency_hz = 440 * 2 ** ((pitch - 69) / 12)
    harmonic = max(round(heard_hz / frequency_hz), 1)
    assert harmonic <= 3
    assert abs(1200 * np.log2(heard_hz / harmonic / frequency_hz)) < 30, "within 30 cents"


@both
def test_notes_sound_when_they_should(renderer, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    notes = [(0, 1, 72, 110), (32, 1, 72, 110), (96, 1, 72, 110)]
    audio.midi_to_wav(write_midi(tmp_path / "a.mid", notes), tmp_path / "a.wav")
    sound, rate_hz = soundfile.read(tmp_path / "a.wav")
    loud = np.abs(sound).max(axis=1) > 0.2
    for start_s in (0.0, 4.0, 12.0):
        first = np.flatnonzero(loud[int(max(start_s - 0.02, 0) * rate_hz) :])[0] / rate_hz
        assert first < 0.12, f"the note at {start_s} s"
    assert not loud[int(2.5 * rate_hz) : int(3.9 * rate_hz)].any()


@both
def test_louder_keys_are_louder(renderer, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    write_midi(tmp_path / "a.mid", [(0, 4, 60, 30), (16, 4, 60, 120)])
    audio.midi_to_wav(tmp_path / "a.mid", tmp_path / "a.wav")
    sound, rate_hz = soundfile.read(tmp_path / "a.wav")
    soft, loud = (np.abs(sound[int(s * rate_hz) : int((s + 0.4) * rate_hz)]).max() for s in (0, 2))
    assert loud > 4 * soft


@both
def test_a_wall_of_sound_does_not_clip(renderer, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    wall = [(step, 4, pitch, 127) for step in range(0, 16, 4) for pitch in range(21, 109)]
    facts = audio.midi_to_wav(write_midi(tmp_path / "a.mid", wall), tmp_path / "a.wav")
    sound, _ = soundfile.read(tmp_path / "a.wav")
    assert facts.peak <= 0.9
    assert (np.abs(sound) > facts.peak - 1e-4).sum() < 20, "no flat tops"


@both
@pytest.mark.parametrize("name", ["new\nline.mid", "été 音楽 – 'q' \"d\".mid", "-g %s$HOME;.mid"])
def test_any_file_name(renderer, name, tmp_path, monkeypatch):
    if os.name == "nt" and set(name) & set('\n"'):
        pytest.skip("Windows allows no such name")
    choose(renderer, monkeypatch)
    monkeypatch.chdir(tmp_path)
    wav = Path(name).with_suffix(".wav")
    assert audio.midi_to_wav(write_midi(Path(name)), wav).seconds >= 2
    assert wav.is_file()


@both
def test_drums_and_other_instruments_sound(renderer, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    midi = pretty_midi.PrettyMIDI()
    for program, drum in ((40, False), (0, True), (119, False)):
        instrument = pretty_midi.Instrument(program, is_drum=drum)
        instrument.notes = [pretty_midi.Note(100, 60, 0.0, 1.0)]
        midi.instruments = [instrument]
        midi.write(str(tmp_path / "a.mid"))
        assert audio.midi_to_wav(tmp_path / "a.mid", tmp_path / "a.wav").rms > 0.005


def test_tempo_changes_are_followed(tmp_path, monkeypatch):
    choose("midirenderer", monkeypatch)
    track = mido.MidiTrack([
        mido.MetaMessage("set_tempo", tempo=1_000_000, time=0),  # 60 beats a minute
        mido.Message("note_on", note=60, velocity=100, time=0),
        mido.MetaMessage("set_tempo", tempo=250_000, time=4 * 96),  # 240
        mido.Message("note_off", note=60, time=12 * 96)])
    mido.MidiFile(ticks_per_beat=96, tracks=[track]).save(tmp_path / "a.mid")
    assert audio.midi_to_wav(tmp_path / "a.mid", tmp_path / "a.wav").midi_seconds == \
        pytest.approx(4 + 3)


@both
def test_the_last_note_dies_away(renderer, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    midi = write_midi(tmp_path / "a.mid", [(0, 8, 60, 100)])
    facts = audio.midi_to_wav(midi, tmp_path / "a.wav")
    sound, rate_hz = soundfile.read(tmp_path / "a.wav")
    assert facts.seconds > 1.2, "an echo"
    assert np.abs(sound[rate_hz : rate_hz + rate_hz // 20]).max() > 0.01, "that is heard"
    assert np.abs(sound[-rate_hz // 200 :]).max() < 0.001, "and ends without a click"


def two_notes(*later) -> mido.MidiTrack:
    return mido.MidiTrack([
        mido.Message("program_change", program=19), mido.Message("control_change", control=7,
                                                                 value=90),
        mido.Message("note_on", note=60, velocity=100), mido.Message("note_off", note=60, time=480),
        mido.Message("note_on", note=64, velocity=90, time=480),
        mido.Message("note_on", note=64, velocity=0, time=480), *later])  # at 1.5 s


@pytest.mark.parametrize("late", [
    [mido.MetaMessage("end_of_track", time=960 * 600)],
    [mido.Message("control_change", control=64, value=0, time=960 * 600)],
    [mido.Message("note_off", note=64, time=960 * 600)],
    [mido.MetaMessage("text", text="late", time=960 * 600)]], ids=lambda late: late[0].type)
def test_silence_at_the_end_is_not_rendered(late, tmp_path):
    """A second of it takes 1.3 MB."""
    mido.MidiFile(tracks=[two_notes(*late)]).save(tmp_path / "a.mid")
    data, midi_s = audio.playable(tmp_path / "a.mid")
    assert midi_s == pytest.approx(1.5)
    assert mido.MidiFile(file=io.BytesIO(data)).length == pytest.approx(1.5 + audio.ECHO_S)


@both
def test_a_note_that_is_never_released_fades(renderer, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    late = mido.Message("note_on", note=67, velocity=90, time=480), mido.MetaMessage(
        "end_of_track", time=960 * 60)
    mido.MidiFile(tracks=[two_notes(*late)]).save(tmp_path / "a.mid")
    facts = audio.midi_to_wav(tmp_path / "a.mid", tmp_path / "a.wav")
    sound, rate_hz = soundfile.read(tmp_path / "a.wav")
    assert facts.midi_seconds == pytest.approx(2) and 4 < facts.seconds < 5.1
    assert np.abs(sound[-rate_hz // 200 :]).max() < 0.01


def test_the_synthesizer_gets_what_the_file_says(tmp_path):
    drums = mido.MidiTrack([mido.Message("note_on", channel=9, note=36, velocity=1, time=100),
                            mido.Message("pitchwheel", pitch=99, time=5),
                            mido.Message("sysex", data=(126, 127, 9, 1)),
                            mido.Message("note_off", channel=9, note=36, time=200)])
    tempo = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=250_000, time=300),
                            mido.MetaMessage("set_tempo", tempo=1_000_000, time=300)])
    file = mido.MidiFile(tracks=[tempo, two_notes(), drums])
    file.save(tmp_path / "a.mid")
    data, midi_s = audio.playable(tmp_path / "a.mid")

    def timed(midi):
        seconds = np.cumsum([message.time for message in midi])
        return [(second, message.copy(time=0)) for second, message in
                zip(seconds, midi, strict=True) if not message.is_meta]

    before, after = timed(file), timed(mido.MidiFile(file=io.BytesIO(data)))
    releases, after = after[len(before):], after[: len(before)]
    assert all(message.control in (audio.PEDAL, audio.ALL_NOTES_OFF) and
               second > midi_s + 0.9 for second, message in releases)
    assert [message for _, message in before] == [message for _, message in after]
    assert np.allclose([s for s, _ in before], [s for s, _ in after], atol=1e-4)
    assert midi_s == pytest.approx(max(s for s, message in before if "note" in message.type))


# ---------------------------------------------------------------- FluidSynth that misbehaves


def fake_fluidsynth(folder, monkeypatch, script: str):
    """Put a program called fluidsynth first in PATH; `REAL` in it is the real one."""
    if os.name == "nt":
        pytest.skip("the stand-in is a Unix script")
    program = folder / "bin" / "fluidsynth"
    program.parent.mkdir()
    real = shutil.which("fluidsynth")
    program.write_text(f"#!{sys.executable}\nimport sys, os\nREAL = {real!r}\n"
                       f"arguments = sys.argv[1:]\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@needs_fluidsynth
def test_a_fluidsynth_that_refuses_options_after_files(tmp_path, monkeypatch):
    fake_fluidsynth(tmp_path, monkeypatch, """
files = [a.endswith((".mid", ".sf2", ".sf3")) for a in arguments]
if any(a.startswith("-") for a in arguments[files.index(True):]):
    sys.exit("options must come before files")
open(os.path.join(os.path.dirname(__file__), "called"), "w").close()
os.execv(REAL, ["fluidsynth", *arguments])""")
    facts = audio.midi_to_wav(write_midi(tmp_path / "a.mid"), tmp_path / "a.wav")
    assert facts.renderer == "FluidSynth" and facts.note == ""
    assert (tmp_path / "bin" / "called").is_file()


@needs_fluidsynth
def test_the_usual_way_is_midi2audio(tmp_path, monkeypatch):
    fake_fluidsynth(tmp_path, monkeypatch, """
if arguments[0] != "-ni" or not arguments[1].endswith((".sf2", ".sf3")):
    sys.exit("not midi2audio's order")
os.execv(REAL, ["fluidsynth", *arguments])""")
    facts = audio.midi_to_wav(write_midi(tmp_path / "a.mid"), tmp_path / "a.wav")
    assert facts.renderer == "FluidSynth"


@pytest.mark.parametrize(("script", "reason"), [
    ("sys.exit('no audio driver')", "no audio driver"),
    ("sys.exit(0)", "wrote no sound"),
    ("""
import wave
with wave.open(arguments[arguments.index('-F') + 1], 'wb') as w:
    w.setparams((2, 2, 44100, 0, 'NONE', '')); w.writeframes(bytes(4 * 44100 * SECONDS))
""".replace("SECONDS", "1"), "stopped before the end"),
    ("""
import wave
with wave.open(arguments[arguments.index('-F') + 1], 'wb') as w:
    w.setparams((2, 2, 44100, 0, 'NONE', '')); w.writeframes(bytes(4 * 44100 * 3))
""", "only silence"),
])
def test_a_fluidsynth_that_fails_is_replaced_and_the_reason_said(script, reason, tmp_path,
                                                                 monkeypatch):
    fake_fluidsynth(tmp_path, monkeypatch, script)
    facts = audio.midi_to_wav(write_midi(tmp_path / "a.mid"), tmp_path / "a.wav")
    assert facts.renderer == "midirenderer" and reason in facts.note
    assert "\n" not in facts.note


# ---------------------------------------------------------------- bad input


def test_missing_sound_font_is_named(tmp_path):
    with pytest.raises(MusicError, match=r"nowhere\.sf2: no such sound font.*leave") as caught:
        audio.midi_to_wav(write_midi(tmp_path / "a.mid"), tmp_path / "a.wav", "nowhere.sf2")
    assert "\n" not in str(caught.value) and not (tmp_path / "a.wav").exists()


@both
@pytest.mark.parametrize("content", [b"not a sound font at all", b"",
                                     b"RIFF\x10\0\0\0sfbkLIST\0\0\0\0"])
def test_a_sound_font_that_is_none(renderer, content, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    (tmp_path / "bad.sf2").write_bytes(content)
    with pytest.raises(MusicError, match=r"bad\.sf2: (not a|a damaged) ?[Ss]ound"):
        audio.midi_to_wav(write_midi(tmp_path / "a.mid"), tmp_path / "a.wav", tmp_path / "bad.sf2")
    assert not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize("rate_hz", [0, 8_000, 96_000])
def test_sample_rates_out_of_range(rate_hz, tmp_path):
    with pytest.raises(MusicError, match="sample_rate"):
        audio.midi_to_wav(write_midi(tmp_path / "a.mid"), tmp_path / "a.wav", sample_rate=rate_hz)


@pytest.mark.parametrize("content", [None, b"hello"])
def test_what_is_no_midi(content, tmp_path):
    path = tmp_path / "a.mid"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MusicError, match=r"a\.mid") as caught:
        audio.midi_to_wav(path, tmp_path / "a.wav")
    assert "\n" not in str(caught.value) and not (tmp_path / "a.wav").exists()


def test_more_than_an_hour_is_refused(tmp_path):
    midi = write_midi(tmp_path / "a.mid", [(0, 4, 60, 80), (32_000, 4, 60, 80)])
    with pytest.raises(MusicError, match=r"1\.1 hours; cut it to 1"):
        audio.midi_to_wav(midi, tmp_path / "a.wav")


def test_a_midi_file_of_megabytes_is_refused(tmp_path):
    path = tmp_path / "a.mid"
    path.write_bytes(hostile_midi.large()["a_million_notes"][0])
    with pytest.raises(MusicError, match=r"a\.mid: over 2 MiB"):
        audio.midi_to_wav(path, tmp_path / "a.wav")


@both
@pytest.mark.parametrize("name", ["unknown_chunk", "no_end_of_track"])
def test_an_odd_midi_file_is_played(renderer, name, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    (tmp_path / "a.mid").write_bytes(hostile_midi.SMALL[name][0])
    facts = audio.midi_to_wav(tmp_path / "a.mid", tmp_path / "a.wav")
    assert facts.renderer == renderer and facts.rms > 0.005


@pytest.mark.parametrize("name", hostile_midi.SMALL)
def test_a_damaged_midi_file_is_played_or_named(name, tmp_path):
    (tmp_path / "a.mid").write_bytes(hostile_midi.SMALL[name][0])
    try:
        data, _ = audio.playable(tmp_path / "a.mid")
        assert mido.MidiFile(file=io.BytesIO(data)).length < audio.LONGEST_S + audio.ECHO_S
    except MusicError as error:
        assert str(error).startswith(f"{tmp_path / 'a.mid'}: ") and "\n" not in str(error)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    choose("midirenderer", monkeypatch)
    midi, wav = write_midi(tmp_path / "a.mid"), tmp_path / "out" / "a.wav"
    wav.parent.mkdir()
    wav.write_bytes(b"what was there")

    def half(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(MusicError, match=r"No space left on device.*free some disk") as caught:
        audio.midi_to_wav(midi, wav)
    assert "\n" not in str(caught.value)
    assert wav.read_bytes() == b"what was there"
    assert [path.name for path in wav.parent.iterdir()] == ["a.wav"]


def write_wav(path, seconds=2.0, amplitude=0.3):
    time_s = np.arange(int(seconds * 16_000)) / 16_000
    soundfile.write(path, np.clip(amplitude * np.sin(2765 * time_s), -1, 1), 16_000)
    return path


@pytest.mark.parametrize(("make", "midi_s", "wrong"), [
    (lambda p: p, 2, "no WAV"), (lambda p: p.write_text("RIFF") and p, 2, "no WAV"),
    (lambda p: write_wav(p, 1.5), 2, "lasts 1.50 s"), (lambda p: write_wav(p, 9), 2, "lasts 9"),
    (lambda p: write_wav(p, amplitude=0), 2, "silent"),
    (lambda p: write_wav(p, amplitude=3), 2, "clipped"),
])
def test_check_wav_refuses(make, midi_s, wrong, tmp_path):
    with pytest.raises(MusicError, match=wrong):
        audio.check_wav(make(tmp_path / "a.wav"), midi_s)


def test_check_wav_measures(tmp_path):
    facts = audio.check_wav(write_wav(tmp_path / "a.wav"), 2)
    assert facts.seconds == 2 and facts.peak == pytest.approx(0.3, abs=1e-3)
    assert facts.rms == pytest.approx(0.3 / np.sqrt(2), abs=1e-3)


@pytest.mark.slow
@both
def test_real_files(renderer, real_midi, tmp_path, monkeypatch):
    choose(renderer, monkeypatch)
    some = sorted(p for name in ("pop909", "lakh-excerpts", "freedoom", "maestro-v2.0.0")
                  for p in sorted((real_midi / name).rglob("*.mid*"))[:1])
    assert some
    for path in sorted(some, key=lambda p: p.stat().st_size)[:3]:
        facts = audio.midi_to_wav(path, tmp_path / "a.wav", sample_rate=16_000)
        assert facts.renderer == renderer and facts.rms > 0.01, path


def test_a_program_that_does_not_end_is_stopped_with_what_it_started():
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', " \
            "'import time; time.sleep(60)'])"
    with pytest.raises(RuntimeError, match="did not come to an end"):
        audio.output_of([sys.executable, "-c", start], 1.0)
    assert not psutil.Process().children(recursive=True)
