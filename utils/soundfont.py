"""A sampler in NumPy: plays notes with a SoundFont 2 file, where FluidSynth is not installed.

It does what every wavetable synthesizer does: find the recording nearest to a key, play it faster
or slower until the pitch fits, loop it, shape its loudness. No filters, pedals, bends or effects.
Generator numbers and units: SoundFont Technical Specification 2.04, section 8.1.
Explained in notebook 06.
"""

import functools
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.pianoroll import MusicError

# generators: the settings of a zone, by the number the format gives them
LOOP_START, LOOP_START_COARSE, LOOP_END, LOOP_END_COARSE = 2, 45, 3, 50  # samples, 32,768 samples
PAN, ATTACK, HOLD, DECAY, SUSTAIN, RELEASE = 17, 34, 35, 36, 37, 38  # 0.1 %, timecents, 0.1 dB
INSTRUMENT, KEYS, VELOCITIES, ATTENUATION = 41, 43, 44, 48
COARSE_TUNE, FINE_TUNE, SAMPLE, LOOPS, SCALE_TUNE, ROOT_KEY = 51, 52, 53, 54, 56, 58
DEFAULTS = {ATTACK: -12000, HOLD: -12000, DECAY: -12000, RELEASE: -12000, SCALE_TUNE: 100,
            ROOT_KEY: -1}
NOT_ADDED = {KEYS, VELOCITIES, INSTRUMENT, SAMPLE, LOOPS, ROOT_KEY}  # a preset's value adds, else
DRUM_BANK = 128
REMEDY = "give another .sf2 as sound_font, or install FluidSynth"

_PRESET = np.dtype([("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"),
                    ("unused", "V12")])
_INSTRUMENT = np.dtype([("name", "S20"), ("bag", "<u2")])
_BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
_GENERATOR = np.dtype([("kind", "<u2"), ("value", "<i2")])
_SAMPLE = np.dtype([("name", "S20"), ("start", "<u4"), ("end", "<u4"), ("loop_start", "<u4"),
                    ("loop_end", "<u4"), ("rate", "<u4"), ("root", "u1"), ("correction", "i1"),
                    ("link", "<u2"), ("type", "<u2")])
_TABLES = {b"phdr": _PRESET, b"pbag": _BAG, b"pgen": _GENERATOR, b"inst": _INSTRUMENT,
           b"ibag": _BAG, b"igen": _GENERATOR, b"shdr": _SAMPLE}


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks of a RIFF file, those inside lists too."""
    at = 0
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + size]
        if name in (b"RIFF", b"LIST"):
            yield from _chunks(body[4:])
        else:
            yield name, body
        at += 8 + size + size % 2


def check_header(path: str | Path) -> None:
    """Raises `MusicError` for a file that is missing or no sound font."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise MusicError(f"{path}: no such sound font that can be read ({error.strerror}); give the"
                         " path of an .sf2 file, or leave sound_font empty") from None
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise MusicError(f"{path}: not a SoundFont 2 file; {REMEDY}")


class SoundFont:
    """The presets and recordings of an `.sf2` file. Raises `MusicError` for any other file."""

    def __init__(self, path: str | Path):
        check_header(path)
        try:
            chunks = dict(_chunks(memoryview(Path(path).read_bytes())))
            self.sound = np.frombuffer(chunks[b"smpl"], dtype="<i2")  # all recordings, end to end
            self.tables = {name: np.frombuffer(chunks[name], dtype=dtype)
                           for name, dtype in _TABLES.items()}
            compressed = (self.tables[b"shdr"]["type"] & 0x10).any()  # SF3 keeps Ogg Vorbis
        except (KeyError, ValueError):
            raise MusicError(f"{path}: a damaged sound font; {REMEDY}") from None
        if compressed:
            raise MusicError(f"{path}: a compressed sound font, which needs FluidSynth; {REMEDY}")
        self.zones = functools.cache(self._zones)

    def _bags(self, bags: bytes, generators: bytes, first: int, last: int) -> list[dict[int, int]]:
        edges = self.tables[bags]["generator"][first : last + 1].astype(int)
        table = self.tables[generators]
        return [dict(zip(table["kind"][a:b].tolist(), table["value"][a:b].tolist(), strict=True))
                for a, b in itertools.pairwise(edges.tolist())]

    def _layers(self, header: bytes, index: int, bags: bytes, generators: bytes, link: int
                ) -> list[dict[int, int]]:
        """The zones of one preset or instrument, the first one's settings filled into the rest."""
        edges = self.tables[header]["bag"].astype(int)
        zones = self._bags(bags, generators, edges[index], edges[index + 1])
        common = zones[0] if zones and link not in zones[0] else {}
        return [{**common, **zone} for zone in zones if link in zone]

    def _zones(self, program: int, bank: int) -> list[dict[int, int]]:
        """Every zone of a preset: which keys and velocities it serves, and how it sounds."""
        presets = self.tables[b"phdr"][:-1]
        wanted = [(bank, program), (bank, 0), (0, program), (0, 0)]
        found = [np.flatnonzero((presets["bank"] == b) & (presets["program"] == p))
                 for b, p in wanted]
        index = next((int(f[0]) for f in found if len(f)), 0)
        zones = []
        for preset in self._layers(b"phdr", index, b"pbag", b"pgen", INSTRUMENT):
            for zone in self._layers(b"inst", preset[INSTRUMENT], b"ibag", b"igen", SAMPLE):
                merged = {**DEFAULTS, **zone}
                for kind, value in preset.items():
                    if kind not in NOT_ADDED:
                        merged[kind] = merged.get(kind, 0) + value
                ranges = [(*_span(preset.get(k)), *_span(zone.get(k))) for k in (KEYS, VELOCITIES)]
                merged["keys"], merged["velocities"] = [(max(a, c), min(b, d))
                                                        for a, b, c, d in ranges]
                zones.append(merged)
        return zones

    def tone(self, zone: dict, pitch: int, count: int, rate_hz: int) -> np.ndarray:
        """The zone's recording at a pitch, `count` samples, key held down, float32 -1…1."""
        sample = self.tables[b"shdr"][zone[SAMPLE]]
        start, end = int(sample["start"]), int(sample["end"])
        root = zone[ROOT_KEY] if zone[ROOT_KEY] >= 0 else int(sample["root"])
        cents = ((pitch - root) * zone[SCALE_TUNE] + zone.get(COARSE_TUNE, 0) * 100
                 + zone.get(FINE_TUNE, 0) + int(sample["correction"]))
        position = np.arange(count) * (2 ** (cents / 1200) * int(sample["rate"]) / rate_hz)
        if zone.get(LOOPS, 0) & 1:
            first = int(sample["loop_start"]) - start + _offset(zone, LOOP_START, LOOP_START_COARSE)
            last = int(sample["loop_end"]) - start + _offset(zone, LOOP_END, LOOP_END_COARSE)
            if last > first:
                again = position >= last
                position[again] = first + (position[again] - first) % (last - first)
        recording = np.append(self.sound[start:end].astype(np.float32) / 32768, np.float32(0))
        below = np.minimum(position.astype(np.int64), len(recording) - 2)
        share = np.where(position < len(recording) - 1, position - below, 1).astype(np.float32)
        return recording[below] * (1 - share) + recording[below + 1] * share


def _span(value: int | None) -> tuple[int, int]:
    return (0, 127) if value is None else (value & 0xFF, value >> 8 & 0xFF)


def _offset(zone: dict, fine: int, coarse: int) -> int:
    return zone.get(fine, 0) + 32768 * zone.get(coarse, 0)


def _seconds(timecents: int) -> float:
    return 2 ** (min(timecents, 8000) / 1200)


def envelope(zone: dict, count: int, rate_hz: int) -> np.ndarray:
    """Loudness of a held key over time, float32 `[count]`: attack, hold, decay, sustain."""
    attack, hold, decay = (_seconds(zone[kind]) for kind in (ATTACK, HOLD, DECAY))
    time = np.arange(count, dtype=np.float32) / rate_hz
    falling_db = np.clip((time - attack - hold) * (100 / decay), 0, zone.get(SUSTAIN, 0) / 10)
    return np.minimum(time / attack, 1) * 10 ** (-falling_db / 20)


def render(notes: np.ndarray, font: SoundFont, rate_hz: int) -> np.ndarray:
    """Notes as sound, float32 `[samples, 2]` (left, right), not yet scaled: it may pass ±1.

    `notes` is float64 `[N, 6]`: start and end in seconds, pitch, velocity, program, bank (128:
    drums). A note rings on after its end as the sound font's release says, at most 3 s.
    """
    out = np.zeros((int((notes[:, 1].max() + 3.5) * rate_hz), 2), dtype=np.float32)
    for bank, program, pitch in np.unique(notes[:, [5, 4, 2]].astype(int), axis=0).tolist():
        same = notes[(notes[:, [5, 4, 2]] == (bank, program, pitch)).all(axis=1)]
        for zone in font.zones(program, bank):
            low, high = zone["velocities"]
            part = same[(same[:, 3] >= low) & (same[:, 3] <= high)]
            if len(part) and zone["keys"][0] <= pitch <= zone["keys"][1]:
                _add(out, part, font, zone, pitch, rate_hz)
    return out


def _add(out: np.ndarray, notes: np.ndarray, font: SoundFont, zone: dict, pitch: int, rate_hz: int
         ) -> None:
    """Add notes of one pitch, played through one zone, to `out`."""
    release_s = min(max(_seconds(zone[RELEASE]), 0.05), 5)  # the time to fall by 100 dB
    ringing = int(0.6 * release_s * rate_hz)  # until 60 dB are gone
    fade = 10 ** (-5 * np.arange(ringing, dtype=np.float32) / (release_s * rate_hz))
    starts = (notes[:, 0] * rate_hz).astype(int)
    lengths = np.maximum(((notes[:, 1] - notes[:, 0]) * rate_hz).astype(int), 1)
    longest = int(lengths.max()) + ringing
    tone = font.tone(zone, pitch, longest, rate_hz) * envelope(zone, longest, rate_hz)
    loudness = 10 ** (-max(zone.get(ATTENUATION, 0), 0) / 200) * (notes[:, 3] / 127) ** 2
    angle = (np.clip(zone.get(PAN, 0), -500, 500) / 1000 + 0.5) * np.pi / 2
    sides = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
    for start, length, gain in zip(starts.tolist(), lengths.tolist(), loudness, strict=True):
        sound = tone[: length + ringing] * np.float32(gain)
        sound[length:] *= fade
        out[start : start + len(sound)] += sound[:, None] * sides
