"""MIDI → WAV: with FluidSynth where it is installed, otherwise with midirenderer, which pip brings.

Every WAV is brought to the same loudness and checked before it takes its name.
Explained in notebook 06.
"""

import contextlib
import io
import math
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import midirenderer
import mido
import numpy as np
import pretty_midi
import scipy.signal
import soundfile

from utils import pianoroll
from utils.files import MusicError, atomic

LONGEST_S = 3600  # an hour takes up to 4 GB of memory
MAX_BYTES = 2**21  # of a MIDI file: 2 MiB, four times the longest recital
ECHO_S = 3.0  # the last notes ring on at most this long
RELEASE_S = 1.0  # after the last note everything is released
QUIET, SILENT = 10 ** (-60 / 20), 10 ** (-55 / 20)  # where an echo ends; what is silence
RMS_TARGET, PEAK_LIMIT = 10 ** (-20 / 20), 10 ** (-1 / 20)  # -20 dB on average, peaks below -1 dB
CLIPPED = 0.999
TEMPO, TICKS_PER_BEAT = 500_000, 10_000  # of the MIDI for the synthesizer: 20 ticks are 1 ms
SHIPPED_FONT = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")  # 6 MB, comes with pretty_midi
USUAL_FONTS = ("~/.fluidsynth/default_sound_font.sf2", "/usr/share/sounds/sf2/default-GM.sf2",
               "/usr/share/soundfonts/default.sf2", "/usr/share/sounds/sf3/default-GM.sf3",
               "C:/soundfonts/default.sf2")


class Silence(MusicError):
    """A piece of music with nothing to hear in it."""


@dataclass(frozen=True)
class WavFacts:
    """What was measured on a WAV. `peak` and `rms` are amplitudes, 1.0 is full scale."""

    seconds: float
    midi_seconds: float
    sample_rate: int
    peak: float
    rms: float
    renderer: str = ""
    sound_font: str = ""
    note: str = ""  # why FluidSynth was not used


def default_sound_font() -> Path:
    """FluidSynth's own sound font where there is one, else the one that pretty_midi ships."""
    fonts = (Path(font).expanduser() for font in USUAL_FONTS)
    return next((font for font in fonts if font.is_file()), SHIPPED_FONT)


def midi_to_wav(midi_path: str | Path, wav_path: str | Path,
                sound_font: str | Path | None = None, sample_rate: int = 44_100) -> WavFacts:
    """Render a MIDI file to 16-bit stereo, at `sample_rate` (16,000 to 48,000 Hz).

    The WAV is as long as the music and its echo (at most 3 s), averages -20 dB and peaks below
    -1 dB. Raises `MusicError` for a MIDI file that is missing, silent or longer than an hour, for
    a missing sound font and for a full disk.
    """
    if not 16_000 <= sample_rate <= 48_000:
        raise MusicError(f"sample_rate {sample_rate:,} is out of range; give 16,000 to 48,000")
    font = Path(sound_font).expanduser() if sound_font else default_sound_font()
    if not font.is_file():
        raise MusicError(f"{font}: no such sound font; give the path of an .sf2 file, or leave "
                         "sound_font empty")
    if not re.match(rb"RIFF....sfbk", font.open("rb").read(12), re.DOTALL):
        raise MusicError(f"{font}: not a SoundFont file; give another .sf2 as sound_font")
    data, midi_s = playable(midi_path)
    renderer, note = "FluidSynth", ""
    try:
        sound = with_fluidsynth(data, font, sample_rate, midi_s)
    except RuntimeError as reason:
        renderer, note = "midirenderer", str(reason)
        font = font if sound_font else SHIPPED_FONT
        sound = with_midirenderer(data, font, sample_rate)
    in_memory = io.BytesIO()
    soundfile.write(in_memory, finished(sound, sample_rate, midi_s), sample_rate, format="WAV",
                    subtype="PCM_16")
    with atomic(wav_path) as temporary:
        temporary.write_bytes(in_memory.getbuffer())
        facts = check_wav(temporary, midi_s, name=wav_path)
    return replace(facts, renderer=renderer, sound_font=font.name, note=note)


# ---------------------------------------------------------------- what the synthesizer gets


def playable(midi_path: str | Path) -> tuple[bytes, float]:
    """A MIDI file written again as one track at one tempo, and the second when its last note ends.

    A second after that note all is released, since FluidSynth would hold a note for ever; 3 s after
    it the track ends, so that the note can die away. Raises `MusicError` where
    `pianoroll.read_midi` does, for more than an hour or 2 MiB, and `Silence` without a note.
    """
    path = Path(midi_path)
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise MusicError(f"{path}: over 2 MiB, too much to be played; split it")
    timed, held, second, midi_s = [], set(), 0.0, 0.0
    for message in messages_of(path):
        second += message.time
        if not message.is_meta and message.bytes()[0] <= 0xF0:  # of a channel, or exclusive
            timed.append((second, message))
        if message.type in ("note_on", "note_off"):
            key = message.channel, message.note
            starts = message.type == "note_on" and message.velocity > 0
            if starts or key in held:  # else it releases nothing
                midi_s = second
            (held.add if starts else held.discard)(key)
    if not any(message.type == "note_on" for _, message in timed):
        raise Silence(f"{path}: no notes, so there is nothing to hear; leave it out")
    if midi_s > LONGEST_S:
        raise MusicError(f"{path}: lasts {midi_s / 3600:.1f} hours; cut it to 1 or less")
    timed = [pair for pair in timed if pair[0] <= midi_s + RELEASE_S]
    timed += [(midi_s + RELEASE_S, mido.Message("control_change", channel=channel, control=control))
              for channel in range(16) for control in (64, 123)]  # pedal up; all notes off
    track, last = mido.MidiTrack(), 0
    for second, message in [*timed, (midi_s + ECHO_S, mido.MetaMessage("end_of_track"))]:
        tick = mido.second2tick(second, TICKS_PER_BEAT, TEMPO)
        track.append(message.copy(time=tick - last))
        last = tick
    written = io.BytesIO()
    mido.MidiFile(ticks_per_beat=TICKS_PER_BEAT, tracks=[track]).save(file=written)
    return written.getvalue(), midi_s


def messages_of(path: Path) -> list[mido.Message]:
    """The messages of all tracks in order; `time` holds the seconds since the one before.

    What mido cannot read is played as its piano roll shows it.
    """
    with contextlib.suppress(Exception):  # mido raises many kinds
        midi = mido.MidiFile(path, clip=True)
        if midi.ticks_per_beat > 0:  # else it counts in seconds
            return list(midi)
    shown = io.BytesIO()
    pianoroll.to_midi(pianoroll.read_midi(path)).write(shown)
    shown.seek(0)
    return list(mido.MidiFile(file=shown))


# ---------------------------------------------------------------- synthesizers


def with_fluidsynth(data: bytes, font: Path, sample_rate: int, midi_s: float) -> np.ndarray:
    """Sound float32 `[samples, 2]`. Raises `RuntimeError` with the reason why there is none.

    First through midi2audio. It ignores FluidSynth's exit code and puts the options after the
    files, which FluidSynth 2.4.7 refuses: so the sound is checked, and where it is missing, the
    program is called with its options first; where it is clipped, softer.
    """
    program = shutil.which("fluidsynth")
    if program is None:
        raise RuntimeError("the fluidsynth program is not installed")
    font = font.absolute()  # no path that looks like an option
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder, "in.mid"), Path(folder, "out.wav")
        midi.write_bytes(data)
        usual = [sys.executable, "-m", "midi2audio", "-s", font, "-r", sample_rate, midi, wav]
        again, softer = ([program, "-ni", "-g", gain, "-r", sample_rate, "-F", wav, font, midi]
                         for gain in (0.2, 0.04))
        for call in (usual, again, softer):
            wav.unlink(missing_ok=True)
            said, sound = "", np.zeros((0, 2), np.float32)
            with contextlib.suppress(soundfile.SoundFileError, OSError, subprocess.TimeoutExpired):
                said = subprocess.run([str(part) for part in call], stdin=subprocess.DEVNULL,
                                      capture_output=True, text=True, errors="replace", check=False,
                                      timeout=60 + 2 * midi_s).stderr
                sound, _ = soundfile.read(wav, dtype="float32", always_2d=True)
            peak, _ = measure(sound)
            whole = len(sound) >= midi_s * sample_rate and peak > SILENT / 10
            another_font = "ailed to load" in said or "not a SoundFont" in said  # taken unasked
            if whole and not another_font and (peak < CLIPPED or call is softer):
                return sound
    said = " ".join(said.split())[-80:] or "no message"
    raise RuntimeError(f"fluidsynth did not play the whole piece with {font.name} ({said})")


def with_midirenderer(data: bytes, font: Path, sample_rate: int) -> np.ndarray:
    """Sound float32 `[samples, 2]`. Raises `MusicError` for a font that cannot be played."""
    try:
        wav = midirenderer.render_wave_from(font.read_bytes(), data)
    except RuntimeError as error:  # never the MIDI's fault: it is written by `playable`
        raise MusicError(f"{font}: no SoundFont, or a damaged one ({error}); give another .sf2 as "
                         "sound_font") from None
    sound, rate_hz = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    return resample(sound, rate_hz, sample_rate)


def resample(sound: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Sound `[samples]` or `[samples, channels]` at another rate."""
    common = math.gcd(from_hz, to_hz)
    return scipy.signal.resample_poly(sound, to_hz // common, from_hz // common)


# ---------------------------------------------------------------- after rendering


def finished(sound: np.ndarray, sample_rate: int, midi_s: float) -> np.ndarray:
    """As long as the music and its echo, at most 3 s, faded out; at -20 dB on average, less where
    its peaks would pass -1 dB. Changes `sound`, float32 `[samples, channels]`."""
    music = math.ceil(midi_s * sample_rate)
    echo = sound[music : music + int(ECHO_S * sample_rate)]
    audible = np.flatnonzero(np.abs(echo).max(axis=1) > QUIET * measure(sound)[0])
    echo = echo[: int(audible[-1]) + 1 if len(audible) else 0]
    fade = min(int(0.2 * sample_rate), len(echo))
    echo[len(echo) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
    sound = sound[: music + len(echo)]
    peak, rms = measure(sound)
    sound *= np.float32(min(PEAK_LIMIT / peak, RMS_TARGET / rms) if peak else 1)
    return sound


def measure(sound: np.ndarray) -> tuple[float, float]:
    """Peak and root mean square of a sound `[samples, channels]`, 1.0 at full scale."""
    parts = np.array_split(sound.ravel(), len(sound) // 2**20 + 1)  # the square of all is large
    power = sum(float(np.vdot(part, part)) for part in parts) / max(sound.size, 1)
    return float(max(sound.max(initial=0), -sound.min(initial=0))), math.sqrt(power)


def check_wav(wav_path: str | Path, midi_seconds: float, name: str | Path = "") -> WavFacts:
    """Measure a WAV. Raises `MusicError` if it is missing, too short, too long, silent or clipped.

    `name` stands in messages for a file that has a temporary name.
    """
    name = name or wav_path
    try:
        sound, rate_hz = soundfile.read(wav_path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        raise MusicError(f"{name}: no WAV that can be read; render it again") from None
    seconds, (peak, rms) = len(sound) / rate_hz, measure(sound)
    if not midi_seconds - 0.05 <= seconds <= midi_seconds + ECHO_S + 2:
        raise MusicError(f"{name}: lasts {seconds:.2f} s where its MIDI lasts {midi_seconds:.2f} s;"
                         " render it again")
    if rms < SILENT / 10 or peak < SILENT:
        raise Silence(f"{name}: silent; try another sound_font")
    if peak >= CLIPPED:
        raise MusicError(f"{name}: clipped, its peaks reach full scale; render it again")
    return WavFacts(seconds, midi_seconds, rate_hz, peak, rms)
