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
import numpy as np
import pretty_midi
import scipy.signal
import soundfile
import symusic

from utils import pianoroll
from utils.pianoroll import MusicError

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 16_000, 48_000
LONGEST_S = 2 * 3600
TAIL_S = 3.0  # the last notes ring on at most this long
QUIET, SILENT = 10 ** (-60 / 20), 10 ** (-55 / 20)  # amplitudes: where a tail ends; what is silence
RMS_TARGET, PEAK_LIMIT = 10 ** (-20 / 20), 10 ** (-1 / 20)  # -20 dB on average, peaks below -1 dB
CLIPPED = 0.999
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
    -1 dB. Raises `MusicError` for a missing or silent MIDI, a missing sound font, a full disk.
    """
    if not LOWEST_RATE_HZ <= sample_rate <= HIGHEST_RATE_HZ:
        raise MusicError(f"sample_rate {sample_rate:,} is out of range; give {LOWEST_RATE_HZ:,} "
                         f"to {HIGHEST_RATE_HZ:,}")
    font = Path(sound_font).expanduser() if sound_font is not None else default_sound_font()
    check_sound_font(font)
    data, score = read_score(midi_path)
    midi_s = max((float(track.end()) for track in score.tracks if len(track.notes)), default=0.0)
    if midi_s <= 0:
        raise Silence(f"{midi_path}: no notes, so there is nothing to hear; leave it out")
    if midi_s > LONGEST_S:
        raise MusicError(f"{midi_path}: lasts {midi_s / 3600:.1f} hours; cut it to 2 or fewer")
    sound, note = with_fluidsynth(data, font, sample_rate, midi_s)
    renderer = "FluidSynth"
    if sound is None:
        font = font if sound_font is not None else SHIPPED_FONT
        sound = with_midirenderer(data, font, sample_rate)
        renderer = "midirenderer"
    sound = level(trim(sound, sample_rate, midi_s))
    with pianoroll.atomic(wav_path) as temporary:
        in_memory = io.BytesIO()
        soundfile.write(in_memory, sound, sample_rate, format="WAV", subtype="PCM_16")
        temporary.write_bytes(in_memory.getbuffer())
        facts = check_wav(temporary, midi_s, name=wav_path)
    return replace(facts, renderer=renderer, sound_font=font.name, note=note)


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


def with_midirenderer(data: bytes, font: Path, sample_rate: int) -> np.ndarray:
    """Sound float32 `[samples, 2]`. Raises `MusicError` for a font that cannot be played."""
    try:
        wav = midirenderer.render_wave_from(font_bytes(str(font)), data)
    except RuntimeError as error:
        raise MusicError(f"{font}: a damaged SoundFont file ({error}); give another .sf2 as "
                         "sound_font, or install FluidSynth") from None
    sound, rate_hz = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    return resample(sound, rate_hz, sample_rate)


def resample(sound: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Sound `[samples]` or `[samples, channels]` at another rate."""
    common = math.gcd(from_hz, to_hz)
    return scipy.signal.resample_poly(sound, to_hz // common, from_hz // common)


@functools.lru_cache(maxsize=1)
def font_bytes(path: str) -> bytes:
    """A sound font, kept in memory for the next piece."""
    return Path(path).read_bytes()


def read_score(midi_path: str | Path) -> tuple[bytes, symusic.Score]:
    """A file's bytes and its score in seconds. A damaged one is played as its picture shows it.

    Raises `MusicError` where `pianoroll.read_midi` does: no such file, not MIDI, no notes.
    """
    try:
        data = Path(midi_path).read_bytes()
        return data, symusic.Score.from_midi(data).to("second")
    except Exception:  # symusic raises many kinds
        mended = io.BytesIO()
        pianoroll.to_midi(pianoroll.read_midi(midi_path)).write(mended)
        return mended.getvalue(), symusic.Score.from_midi(mended.getvalue()).to("second")


# ---------------------------------------------------------------- FluidSynth


def with_fluidsynth(data: bytes, font: Path, sample_rate: int, midi_s: float
                    ) -> tuple[np.ndarray | None, str]:
    """Sound float32 `[samples, 2]` and "", or None and the reason why there is none.

    First through midi2audio. It ignores FluidSynth's exit code and puts the options after the
    files, which FluidSynth 2.4.7 refuses: so what came out is checked, and otherwise the program
    is called with its options first. Softer, too, if the sound touched full scale.
    """
    program = shutil.which("fluidsynth")
    if program is None:
        return None, "the fluidsynth program is not installed"
    ask = "import sys, midi2audio as m; m.FluidSynth(sys.argv[1], sys.argv[2])" \
          ".midi_to_audio(sys.argv[3], sys.argv[4])"
    reason = ""
    try:
        with tempfile.TemporaryDirectory(prefix="midi2wav-") as folder:
            midi, wav = Path(folder, "in.mid"), Path(folder, "out.wav")  # plain names
            midi.write_bytes(data)
            calls = [[sys.executable, "-c", ask, font, sample_rate, midi, wav]]
            calls += [[program, "-ni", "-g", gain, "-r", sample_rate, "-F", wav, font, midi]
                      for gain in (0.2, 0.04)]
            for call in calls:
                wav.unlink(missing_ok=True)
                ran = subprocess.run([str(part) for part in call], capture_output=True,
                                     stdin=subprocess.DEVNULL, timeout=60 + 2 * midi_s, check=False)
                if b"ailed to load" in ran.stderr:  # it would take another font, unasked
                    return None, f"fluidsynth failed to load {font.name}"
                sound, peak, reason = _what_came(wav, sample_rate, midi_s, font)
                if sound is not None and (peak < CLIPPED or call is calls[-1]):
                    return sound, ""
                if sound is None and ran.stderr.strip():
                    said = ran.stderr.decode(errors="replace").strip().splitlines()[-1]
                    reason += f" ({said[:80]})"
    except subprocess.TimeoutExpired:
        reason = "fluidsynth did not come to an end"
    except OSError as error:
        reason = f"fluidsynth could not be run ({error.strerror or error})"
    return None, reason


def _what_came(wav: Path, sample_rate: int, midi_s: float, font: Path
               ) -> tuple[np.ndarray | None, float, str]:
    """FluidSynth's sound and its peak, or None and what is wrong with it."""
    try:
        sound, rate_hz = soundfile.read(wav, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError):
        return None, 0.0, "fluidsynth wrote no sound"
    peak = float(np.abs(sound).max(initial=0))
    if rate_hz != sample_rate or len(sound) < midi_s * rate_hz * 0.98:
        return None, peak, "fluidsynth stopped before the end of the piece"
    if peak < SILENT / 10:
        return None, peak, f"fluidsynth played only silence with {font.name}"
    return sound, peak, ""


# ---------------------------------------------------------------- after rendering


def trim(sound: np.ndarray, sample_rate: int, midi_s: float) -> np.ndarray:
    """As long as the music, and then until its echo is gone, at most 3 s, faded out."""
    music = int(np.ceil(midi_s * sample_rate))
    tail = sound[music : music + int(TAIL_S * sample_rate)]
    audible = np.flatnonzero(np.abs(tail).max(axis=1) > QUIET * np.abs(sound).max(initial=0))
    keep = music + (int(audible[-1]) + 1 if len(audible) else 0)
    sound = sound[:keep]
    fade = min(int(0.2 * sample_rate), keep - music)
    if fade:
        sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
    return np.pad(sound, ((0, max(music - len(sound), 0)), (0, 0)))


def level(sound: np.ndarray) -> np.ndarray:
    """The same sound at -20 dB on average, less where its peaks would pass -1 dB."""
    peak, rms = float(np.abs(sound).max(initial=0)), root_mean_square(sound)
    return sound * np.float32(min(PEAK_LIMIT / peak, RMS_TARGET / rms)) if peak > 0 else sound


def root_mean_square(sound: np.ndarray) -> float:
    """The average amplitude of a sound, 1.0 at full scale."""
    return float(np.sqrt(np.mean(np.square(sound), dtype=np.float64))) if sound.size else 0.0


def check_wav(wav_path: str | Path, midi_seconds: float, name: str | Path = "") -> WavFacts:
    """Measure a WAV. Raises `MusicError` if it is missing, too short, too long, silent or clipped.

    `name` stands in messages for a file that has a temporary name.
    """
    name = name or wav_path
    try:
        sound, rate_hz = soundfile.read(wav_path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError):
        raise MusicError(f"{name}: no WAV that can be read; render it again") from None
    seconds, rms = len(sound) / rate_hz, root_mean_square(sound)
    peak = float(np.abs(sound).max(initial=0))
    if not midi_seconds - 0.05 <= seconds <= midi_seconds + TAIL_S + 2:
        raise MusicError(f"{name}: lasts {seconds:.2f} s where its MIDI lasts {midi_seconds:.2f} s;"
                         " render it again")
    if rms < SILENT / 10 or peak < SILENT:
        raise Silence(f"{name}: silent; try another sound_font")
    if peak >= CLIPPED:
        raise MusicError(f"{name}: clipped, its peaks reach full scale; render it again")
    return WavFacts(seconds, midi_seconds, rate_hz, peak, rms)
