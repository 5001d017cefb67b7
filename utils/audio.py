"""MIDI → WAV: with FluidSynth where it is installed, otherwise with midirenderer, which pip brings.

Every WAV is brought to the same loudness and checked before it takes its name.
Explained in notebook 06.
"""

import functools
import io
import math
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
import psutil
import scipy.signal
import soundfile

from utils import pianoroll
from utils.pianoroll import MusicError

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 16_000, 48_000
LONGEST_S = 3600  # an hour takes up to 4 GB of memory
MAX_BYTES = 2**21  # of a MIDI file: four times the longest recital
ECHO_S = 3.0  # the last notes ring on at most this long
RELEASE_S = 1.0  # after the last note everything is released
PEDAL, ALL_NOTES_OFF = 64, 123  # control changes
QUIET, SILENT = 10 ** (-60 / 20), 10 ** (-55 / 20)  # where an echo ends; what is silence
RMS_TARGET, PEAK_LIMIT = 10 ** (-20 / 20), 10 ** (-1 / 20)  # -20 dB on average, peaks below -1 dB
CLIPPED = 0.999
TEMPO, TICKS_PER_BEAT = 500_000, 10_000  # of the MIDI for the synthesizer: 20 ticks are 1 ms
SHIPPED_FONT = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")  # 6 MB, comes with pretty_midi
USUAL_FONTS = (
    "~/.fluidsynth/default_sound_font.sf2",
    "/usr/share/sounds/sf2/default-GM.sf2", "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/soundfonts/default.sf2", "/usr/share/soundfonts/FluidR3_GM.sf2",
    "/usr/local/share/soundfonts/default.sf2", "/opt/homebrew/share/soundfonts/default.sf2",
    "/usr/share/sounds/sf3/default-GM.sf3", "C:/soundfonts/default.sf2",
)


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
    if not LOWEST_RATE_HZ <= sample_rate <= HIGHEST_RATE_HZ:
        raise MusicError(f"sample_rate {sample_rate:,} is out of range; give {LOWEST_RATE_HZ:,} "
                         f"to {HIGHEST_RATE_HZ:,}")
    font = Path(sound_font).expanduser() if sound_font is not None else default_sound_font()
    check_sound_font(font)
    data, midi_s = playable(midi_path)
    renderer, note = "FluidSynth", ""
    try:
        sound = with_fluidsynth(data, font, sample_rate, midi_s)
    except RuntimeError as reason:
        renderer, note = "midirenderer", str(reason)
        font = font if sound_font is not None else SHIPPED_FONT
        sound = with_midirenderer(data, font, sample_rate)
    sound = normalise(trim(sound, sample_rate, midi_s))
    in_memory = io.BytesIO()
    soundfile.write(in_memory, sound, sample_rate, format="WAV", subtype="PCM_16")
    del sound  # an hour of it takes 1.3 GB
    with pianoroll.atomic(wav_path) as temporary:
        temporary.write_bytes(in_memory.getbuffer())
        facts = check_wav(temporary, midi_s, name=wav_path)
    return replace(facts, renderer=renderer, sound_font=font.name, note=note)


# ---------------------------------------------------------------- what the synthesizer gets


def playable(midi_path: str | Path) -> tuple[bytes, float]:
    """A MIDI file written anew, and the second when its last note ends.

    What any synthesizer plays: one track at one tempo, which ends 3 s after the last note, so that
    this one can die away and what follows costs nothing. A second after the last note all that is
    still held is released: FluidSynth would play on without end. What mido cannot read is played
    as its piano roll shows it. Raises `MusicError` where `pianoroll.read_midi` does, `Silence`
    where there is no note, and refuses more than an hour or 2 MiB.
    """
    path = Path(midi_path)
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise MusicError(f"{path}: over {MAX_BYTES >> 20} MiB, too much to be played; split it")
    try:
        messages, midi_s = timed_messages(mido.MidiFile(path, clip=True))
    except Exception:  # mido raises many kinds
        midi = io.BytesIO()
        pianoroll.to_midi(pianoroll.read_midi(path)).write(midi)
        midi.seek(0)
        messages, midi_s = timed_messages(mido.MidiFile(file=midi))
    channels = {message.channel for _, message in messages if message.type == "note_on"}
    if not channels:
        raise Silence(f"{path}: no notes, so there is nothing to hear; leave it out")
    if midi_s > LONGEST_S:
        raise MusicError(f"{path}: lasts {midi_s / 3600:.1f} hours; cut it to 1 or less")
    messages = [pair for pair in messages if pair[0] <= midi_s + RELEASE_S]
    messages += [(midi_s + RELEASE_S, mido.Message("control_change", channel=channel,
                                                   control=control, value=0))
                 for channel in sorted(channels) for control in (PEDAL, ALL_NOTES_OFF)]
    track, last = mido.MidiTrack(), 0
    for second, message in [*messages, (midi_s + ECHO_S, mido.MetaMessage("end_of_track"))]:
        tick = mido.second2tick(second, TICKS_PER_BEAT, TEMPO)
        track.append(message.copy(time=tick - last))
        last = tick
    written = io.BytesIO()
    mido.MidiFile(ticks_per_beat=TICKS_PER_BEAT, tracks=[track]).save(file=written)
    return written.getvalue(), midi_s


def timed_messages(midi: mido.MidiFile) -> tuple[list[tuple[float, mido.Message]], float]:
    """What a synthesizer plays, as pairs (second, message), and when the last note ends.

    A note that is never released ends where it starts. Raises `ValueError` for times in seconds
    (SMPTE).
    """
    if midi.ticks_per_beat < 0:
        raise ValueError("SMPTE")
    messages, held, second, end_s = [], set(), 0.0, 0.0
    for message in midi:  # of all tracks, with the time in seconds
        second += message.time
        if not message.is_meta and message.bytes()[0] <= 0xF0:  # a channel's, or the system's
            messages.append((second, message))
        if message.type in ("note_on", "note_off"):
            key = message.channel, message.note
            if message.type == "note_on" and message.velocity:
                held.add(key)
                end_s = second
            elif key in held:
                held.remove(key)
                end_s = second
    return messages, end_s


# ---------------------------------------------------------------- synthesizers


def check_sound_font(path: Path) -> None:
    """Raises `MusicError` for a file that is missing or no SoundFont."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise MusicError(f"{path}: no such sound font that can be read ({error.strerror}); give "
                         "the path of an .sf2 file, or leave sound_font empty") from None
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise MusicError(f"{path}: not a SoundFont file; give another .sf2 as sound_font")


def with_fluidsynth(data: bytes, font: Path, sample_rate: int, midi_s: float) -> np.ndarray:
    """Sound float32 `[samples, 2]`. Raises `RuntimeError` with the reason why there is none.

    First through midi2audio. It ignores FluidSynth's exit code and puts the options after the
    files, which FluidSynth 2.4.7 refuses: so what came out is checked, and otherwise the program
    is called with its options first. Softer, too, if the sound touched full scale.
    """
    program = shutil.which("fluidsynth")
    if program is None:
        raise RuntimeError("the fluidsynth program is not installed")
    ask = "import sys, midi2audio as m; m.FluidSynth(sys.argv[1], sys.argv[2])" \
          ".midi_to_audio(sys.argv[3], sys.argv[4])"
    with tempfile.TemporaryDirectory(prefix="midi2wav-") as folder:
        midi, wav = Path(folder, "in.mid"), Path(folder, "out.wav")  # plain names
        midi.write_bytes(data)
        calls = [[sys.executable, "-c", ask, font, sample_rate, midi, wav]]
        calls += [[program, "-ni", "-g", gain, "-r", sample_rate, "-F", wav, font, midi]
                  for gain in (0.2, 0.04)]
        for call in calls:
            wav.unlink(missing_ok=True)
            said = output_of([str(part) for part in call], 60 + 2 * midi_s)
            try:
                sound, rate_hz = soundfile.read(wav, dtype="float32", always_2d=True)
            except (OSError, soundfile.SoundFileError):
                sound, rate_hz = np.zeros((0, 2), np.float32), 0
            peak, _ = measure(sound)
            if "ailed to load" in said:  # it takes another font, unasked
                problem = f"failed to load {font.name}"
            elif rate_hz != sample_rate:
                problem = "wrote no sound"
            elif len(sound) < midi_s * rate_hz * 0.98:
                problem = "stopped before the end of the piece"
            elif peak < SILENT / 10:
                problem = f"played only silence with {font.name}"
            elif peak < CLIPPED or call is calls[-1]:
                return sound
    said = " ".join(said.split())[-80:]
    raise RuntimeError(f"fluidsynth {problem} ({said})" if said else f"fluidsynth {problem}")


def output_of(command: list[str], limit_s: float) -> str:
    """What a program says on stderr. Raises `RuntimeError` where it cannot be run or does not end;
    then it is stopped with all the programs that it started."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        return process.communicate(timeout=limit_s)[1].decode(errors="replace")
    except subprocess.TimeoutExpired:
        for program in [*psutil.Process(process.pid).children(recursive=True), process]:
            program.kill()
        process.communicate()
        raise RuntimeError("fluidsynth did not come to an end") from None
    except OSError as error:
        raise RuntimeError(f"fluidsynth could not be run ({error.strerror})") from None


def with_midirenderer(data: bytes, font: Path, sample_rate: int) -> np.ndarray:
    """Sound float32 `[samples, 2]`. Raises `MusicError` for a font that cannot be played."""
    try:
        wav = midirenderer.render_wave_from(font_bytes(str(font)), data)
        sound, rate_hz = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    except RuntimeError as error:  # never the MIDI's fault: it is written by `playable`
        raise MusicError(f"{font}: a damaged SoundFont file ({error}); give another .sf2 as "
                         "sound_font, or install FluidSynth") from None
    del wav
    return resample(sound, rate_hz, sample_rate)


@functools.lru_cache(maxsize=1)
def font_bytes(path: str) -> bytes:
    """A sound font, kept in memory for the next piece."""
    return Path(path).read_bytes()


def resample(sound: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Sound `[samples]` or `[samples, channels]` at another rate."""
    common = math.gcd(from_hz, to_hz)
    return scipy.signal.resample_poly(sound, to_hz // common, from_hz // common)


# ---------------------------------------------------------------- after rendering


def trim(sound: np.ndarray, sample_rate: int, midi_s: float) -> np.ndarray:
    """As long as the music, and then until its echo is gone, at most 3 s, faded out."""
    music = math.ceil(midi_s * sample_rate)
    echo = sound[music : music + int(ECHO_S * sample_rate)]
    audible = np.flatnonzero(np.abs(echo).max(axis=1) > QUIET * measure(sound)[0])
    keep = music + (int(audible[-1]) + 1 if len(audible) else 0)
    sound = sound[:keep]
    fade = min(int(0.2 * sample_rate), keep - music)
    if fade:
        sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
    return sound if len(sound) >= music else np.pad(sound, ((0, music - len(sound)), (0, 0)))


def normalise(sound: np.ndarray) -> np.ndarray:
    """The same array, changed to -20 dB on average, less where its peaks would pass -1 dB."""
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
    except (OSError, soundfile.SoundFileError):
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
