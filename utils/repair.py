"""Damaged MIDI: read what is sound in it, or say in plain words what is wrong. See notebook 01.

Written after the Standard MIDI File 1.0 specification: a header chunk `MThd`, track chunks `MTrk`,
in a track pairs of (delta time, event). The parser that `utils.pianoroll` uses stops at the first
byte out of place; this one is slower and is asked only when that happens.
"""

import struct
from collections.abc import Iterator

from utils.files import MusicError

MAX_BYTES = 2**20  # larger damaged files are not repaired: a second of work at most
END_OF_TRACK = b"\xff\x2f\x00"
MAX_TICK = 2**31 - 1
FAULTS_PER_EVENT = 0.01  # more bytes out of range than this: the notes are not sound
DATA_BYTES = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}  # by the status' high half
FEW_BYTES = 64  # missing before a sound end: lost on the way, not a careless writer
SMPTE_FRAMES = {24: 24.0, 25: 25.0, 29: 29.97, 30: 30.0}  # a second


class _Cut(Exception):
    """The bytes end within an event."""


class _Nonsense(Exception):
    """No event begins with these bytes."""


def find_header(data: bytes) -> int:
    """Where `MThd` begins: after a RIFF or MacBinary header or other junk, or at 0.

    Raises `MusicError` (a reason, without the file's name) where there is none.
    """
    at = data.find(b"MThd", 0, 2**16)
    if at >= 0:
        return at
    head = data[:512].lstrip().lower()
    if not data:
        raise MusicError("not a MIDI file but an empty one; download it again, or leave it out")
    if head.startswith(b"version https://git-lfs"):
        raise MusicError("not a MIDI file but a git-lfs pointer to one; run 'git lfs pull'")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise MusicError("not a MIDI file but a web page; download it again, or leave it out")
    raise MusicError("not a MIDI file (it has no MThd header); leave it out")


def is_whole(data: bytes) -> bool:
    """Whether the header and every track lie within the data, end to end, as they say they do."""
    division = int.from_bytes(data[12:14], "big", signed=True)
    if len(data) < 14 or data[:8] != b"MThd\0\0\0\6" or division <= 0:
        return False
    at = 14
    for _ in range(int.from_bytes(data[10:12], "big")):
        if data[at : at + 4] != b"MTrk":
            return False
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "big")
    return at <= len(data)


def repair(data: bytes) -> bytes:
    """A sound MIDI file (notes, sustain pedal and tempo alone) with what is sound in a damaged one.

    A file that ends too early is read up to there, a lone byte out of range costs its event, and
    times in seconds (SMPTE) become beats at 120 bpm. Raises `MusicError` with the reason, without
    the file's name, where nothing is sound.
    """
    at = find_header(data)
    if len(data) > MAX_BYTES:
        raise MusicError(f"damaged, and over {MAX_BYTES >> 20} MiB; leave it out")
    if len(data) < at + 14:
        raise MusicError("cut short within the header; download it again, or leave it out")
    length, _, _, division = struct.unpack(">IHHh", data[at + 4 : at + 14])
    ticks_per_beat = _ticks_per_beat(division)
    tracks, status = [], 0
    for number, (begin, end, declared) in enumerate(_chunks(data, at + 8 + max(length, 6)), 1):
        events, status = _read_track(data, begin, end, declared, number, status)
        tracks.append(_write_track([e for e in events if division > 0 or e[1][0] != 0xFF]))
    if not tracks:
        raise MusicError("a header and no tracks, so no notes; leave it out")
    return struct.pack(">4sIHHH", b"MThd", 6, 1, min(len(tracks), 65535), ticks_per_beat
                       ) + b"".join(tracks)


def _ticks_per_beat(division: int) -> int:
    """The header's last field; negative: (frames a second, ticks a frame), read at 120 bpm."""
    if division > 0:
        return division
    frames, ticks = SMPTE_FRAMES.get(-(division >> 8)), division & 0xFF
    if not frames or not ticks:
        raise MusicError("its header gives no ticks per beat; leave it out")
    return max(1, round(frames * ticks / 2))


def _chunks(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Where each track begins, where it ends at the latest, where its header says it ends."""
    at = data.find(b"MTrk", min(at, max(len(data) - 4, 0)))
    while at >= 0:
        begin = at + 8
        declared = begin + int.from_bytes(data[at + 4 : begin], "big")
        follows = data[declared : declared + 4] == b"MTrk"
        at = declared if follows else data.find(b"MTrk", begin)
        yield begin, declared if declared == at else len(data) if at < 0 else at, declared


def _read_track(data: bytes, begin: int, end: int, declared: int, number: int, status: int
                ) -> tuple[list[tuple[int, bytes]], int]:
    """(tick, event) of the notes, pedal and tempo in a track, and the last status byte.

    `status` is that of the track before: some files let a running status cross into the next.
    """
    events, at, tick, count, faults, ended = [], begin, 0, 0, 0, False
    try:
        while at < end and not ended:
            start = at
            delta, at = _variable_length(data, at, end)
            tick += delta
            first = data[at] if at < end else _stop(_Cut)
            if first in (0xFF, 0xF0, 0xF7):
                kind, at, body = _long_event(data, at, end)
                ended = kind == 0x2F
                if kind == 0x51 and len(body) == 3 and any(body):
                    events.append((tick, b"\xff\x51\x03" + body))
                continue
            if first >= 0x80:
                status, at = first, at + 1
            size = DATA_BYTES.get(status >> 4) or _stop(_Nonsense)
            event = data[at : at + size] if at + size <= end else _stop(_Cut)
            at += size
            count += 1
            if tick > MAX_TICK:
                raise MusicError("a note lies past tick 2^31; the file is damaged, leave it out")
            if max(event) > 127:
                faults += 1
            elif status < 0xA0 or (status >> 4 == 0xB and event[0] == 64):
                events.append((tick, bytes([status]) + event))
    except _Cut:  # by the end of the file: what was read is sound
        ended = end < len(data) or data.endswith(END_OF_TRACK)
    except _Nonsense:
        raise MusicError(f"damaged: track {number} makes no sense from byte {start:,} on; "
                         "download it again, or leave it out") from None
    if faults > max(1, count * FAULTS_PER_EVENT):
        raise MusicError(f"damaged: {faults:,} of {count:,} events in track {number} are out of "
                         "range; download it again, or leave it out")
    offs, strays = _last_note_offs(events, tick)
    if ended and at != declared and (offs or strays or 0 < declared - at <= FEW_BYTES):
        raise MusicError(f"damaged on the way: bytes are missing from track {number} or too many "
                         "in it; download it again as binary, or leave it out")
    return events + offs, status


def _stop(kind: type[Exception]) -> int:
    raise kind


def _variable_length(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of one to four bytes, seven bits each, and where it ends."""
    value = 0
    for i in range(at, at + 4):
        if i >= end:
            raise _Cut
        value = value << 7 | data[i] & 0x7F
        if data[i] < 0x80:
            return value, i + 1
    raise _Nonsense


def _long_event(data: bytes, at: int, end: int) -> tuple[int, int, bytes]:
    """A meta or system-exclusive event: its kind (0 for the latter), its end and its bytes."""
    is_meta = data[at] == 0xFF
    kind = data[at + 1] if is_meta and at + 1 < end else 0
    size, body = _variable_length(data, at + 1 + is_meta, end)
    if body + size > end:
        raise _Cut if size < 2**14 and end == len(data) else _Nonsense
    return kind, body + size, data[body : body + size]


def _last_note_offs(events: list[tuple[int, bytes]], tick: int
                    ) -> tuple[list[tuple[int, bytes]], int]:
    """A note-off for each note that still sounds at the end, and how many offs had no note."""
    sounding, strays = set(), 0
    for _, event in events:
        key = event[0] & 0x0F, event[1]
        if event[0] >> 4 == 0x9 and event[2]:
            sounding.add(key)
        elif event[0] < 0xA0:
            strays += key not in sounding
            sounding.discard(key)
    offs = [(tick, bytes([0x80 | channel, pitch, 0])) for channel, pitch in sorted(sounding)]
    return offs, strays


def _write_track(events: list[tuple[int, bytes]]) -> bytes:
    """A track chunk."""
    body, before = bytearray(), 0
    for tick, event in [*events, (events[-1][0] if events else 0, END_OF_TRACK)]:
        delta = tick - before
        before = tick
        if delta >= 2**28:  # four bytes of seven bits hold no more
            raise MusicError("a note lies past 2^28 ticks; the file is damaged, leave it out")
        for shift in (21, 14, 7):
            if delta >> shift:
                body.append(delta >> shift & 0x7F | 0x80)
        body.append(delta & 0x7F)
        body += event
    return b"MTrk" + len(body).to_bytes(4, "big") + bytes(body)
