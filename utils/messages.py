"""Read every message of a MIDI file so that it is written again byte for byte. See notebook 08.

mido alone fails at an odd meta message, forgets how long to wait before one that it does not know,
and writes an `F7` event as `F0`.
"""

import io

import mido
from mido.midifiles import midifiles as parts
from mido.midifiles.meta import build_meta_message, encode_variable_int

META, END_OF_TRACK, SYSTEM_EXCLUSIVE = 0xFF, 0x2F, (0xF0, 0xF7)


class SystemExclusive(mido.UnknownMetaMessage):
    """A message of a maker's own (`F0`) or any bytes at all (`F7`), `data` as it is in the file."""

    def bytes(self) -> list[int]:
        return [self.type_byte, *encode_variable_int(len(self.data)), *self.data]


def read(data: bytes) -> mido.MidiFile:
    """A MIDI file. Raises errors of many kinds where it is damaged."""
    file = io.BytesIO(data)
    kind, tracks, ticks_per_beat = parts.read_file_header(file)
    midi = mido.MidiFile(type=kind, ticks_per_beat=ticks_per_beat)
    midi.tracks += [_track(file) for _ in range(tracks)]
    return midi


def _track(file: io.BytesIO) -> mido.MidiTrack:
    name, size = parts.read_chunk_header(file)
    if name != b"MTrk":
        raise ValueError("a track begins with MTrk")
    track, status, end = mido.MidiTrack(), None, file.tell() + size
    while file.tell() < end:
        delta, first = parts.read_variable_int(file), parts.read_byte(file)
        if first == META:
            kind = parts.read_byte(file)
            message = _meta(kind, parts.read_bytes(file, parts.read_variable_int(file)))
        elif first in SYSTEM_EXCLUSIVE:
            body = parts.read_bytes(file, parts.read_variable_int(file))
            message = SystemExclusive(first, body)
        else:
            status, rest = (first, []) if first >= 0x80 else (status, [first])
            message = parts.read_message(file, status, rest, delta, clip=True)
        message.time = delta
        track.append(message)
    return track


def _meta(kind: int, body: list[int]) -> mido.MetaMessage:
    """A meta message; as bytes alone where mido would not write the same again."""
    raw = mido.UnknownMetaMessage(kind, body)
    try:
        message = build_meta_message(kind, body)
        return message if kind == END_OF_TRACK or message.bytes() == raw.bytes() else raw
    except Exception:  # mido raises many kinds
        return raw
