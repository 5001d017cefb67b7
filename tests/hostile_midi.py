"""MIDI files that break readers, made here byte by byte."""

import struct

NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x40"  # middle C for 480 ticks
END = b"\x00\xff\x2f\x00"


def track(events: bytes, declared: int | None = None) -> bytes:
    """A track chunk; `declared` lies about its length."""
    return b"MTrk" + struct.pack(">I", len(events) if declared is None else declared) + events


def midi(*tracks: bytes, division: int = 480) -> bytes:
    """A file of tracks."""
    header = struct.pack(">IHHH", 6, 1, min(len(tracks), 65535), division)
    return b"".join([b"MThd", header, *tracks])


GOOD = midi(track(NOTE + END))
FAR = b"\xff\xff\xff\x7f\xb0\x01\x01"  # 2^28 - 1 ticks, then a controller

# name: (bytes, None if it becomes an image, else words of the reason)
SMALL = {
    "tick_past_2_31": (midi(track(FAR * 9 + NOTE + END)), "past"),
    "tempo_zero": (midi(track(b"\x00\xff\x51\x03\x00\x00\x00" + NOTE + END)), None),
    "ten_hours_of_silence": (midi(track(NOTE + b"\x82\xb7\xc0\x00" + NOTE + END)), None),
    "running_status_over_meta": (
        midi(track(b"\x00\x90\x3c\x40\x00\xff\x01\x01a\x60\x3c\x00" + END)), None),
    "ticks_of_seconds": (midi(track(NOTE + END), division=0xE728), None),
    "division_zero": (midi(track(NOTE + END), division=0), "ticks per beat"),
    "too_many_tracks": (midi(*[track(NOTE + END)] * 4097), "over 4096 tracks"),
    "riff": (b"RIFF\x00\x00\x00\x00RMIDdata\x00\x00\x00\x00" + GOOD, None),
    "junk_at_the_end": (GOOD + b"\xff" * 20, None),
    "cut_in_the_last_event": (GOOD[:-3], "cut short"),
    "cut_in_the_header": (GOOD[:10], "cut short"),
    "no_end_of_track": (midi(track(NOTE)), None),
    "one_byte_lost": (midi(track((NOTE * 5)[:20] + (NOTE * 5)[21:] + END, 49)), "on the way"),
    "unknown_chunk": (midi(b"XFIH" + struct.pack(">I", 3) + b"abc", track(NOTE + END)), None),
    "program_out_of_range": (midi(track(b"\x00\xc0\xd0" + NOTE * 20 + END)), None),
    "sysex_past_the_end": (midi(track(b"\x00\xf0\xff\xff\xff\x7f" + NOTE + END)), "damaged"),
    "drums_alone": (midi(track(b"\x00\x99\x3c\x40\x60\x89\x3c\x40" + END)), "no notes"),
    "notes_never_released": (midi(track(b"\x00\x90\x3c\x40\x83\x60\xb0\x01\x01" + END)), None),
    "nine_megabytes": (GOOD + b"\xff" * 9_000_000, "over 8 MiB"),
    "empty": (b"", "not a MIDI file"),
    "web_page": (b"<!DOCTYPE html><html><body>404</body></html>", "DOCTYPE html"),
    "lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "https://git"),
}
