"""MIDI files that break readers, made here byte by byte."""

import struct

NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x40"  # middle C for 480 ticks
END = b"\x00\xff\x2f\x00"


def track(events: bytes, declared: int | None = None) -> bytes:
    """A track chunk; `declared` lies about its length."""
    return b"MTrk" + struct.pack(">I", len(events) if declared is None else declared) + events


def midi(*tracks: bytes, division: int = 480, kind: int = 1, count: int | None = None) -> bytes:
    """A file of tracks; `count` lies about their number."""
    number = min(len(tracks), 65535) if count is None else count
    return b"MThd" + struct.pack(">IHHH", 6, kind, number, division & 0xFFFF) + b"".join(tracks)


GOOD = midi(track(NOTE + END))
FAR = b"\xff\xff\xff\x7f\xb0\x01\x01"  # 2^28 - 1 ticks, then a controller

# name: (bytes, None if it becomes a picture, else words of the reason)
SMALL = {
    "tick_past_2_31": (midi(track(FAR * 9 + NOTE + END)), "past"),
    "two_leaps_in_silence": (midi(track(NOTE + FAR * 2 + NOTE + END), count=9),
                             "past"),
    "hundreds_of_hours": (midi(track(FAR * 2 + NOTE + END)), "past"),
    "tempo_zero": (midi(track(b"\x00\xff\x51\x03\x00\x00\x00" + NOTE + END)), None),
    "ten_hours_of_silence": (midi(track(NOTE + b"\x82\xb7\xc0\x00" + NOTE + END)), None),
    "running_status_across_tracks": (
        midi(track(NOTE + END), track(b"\x00\x3e\x40" + END)), "damaged"),
    "running_status_over_meta": (
        midi(track(b"\x00\x90\x3c\x40\x00\xff\x01\x01a\x60\x3c\x00" + END)), None),
    "smpte_division": (midi(track(NOTE + END), division=-25 << 8 | 40), None),
    "division_zero": (midi(track(NOTE + END), division=0), "ticks per beat"),
    "names_with_newlines": (midi(track(b"\x00\xff\x03\x05a\nb\x00c" + NOTE + END)), None),
    "junk_before_the_header": (b"\x00" * 128 + GOOD, None),
    "riff": (b"RIFF" + struct.pack("<I", len(GOOD) + 12) + b"RMIDdata"
             + struct.pack("<I", len(GOOD)) + GOOD, None),
    "cut_in_the_last_event": (GOOD[:-3], "cut short"),
    "cut_in_the_header": (GOOD[:10], "cut short"),
    "header_alone": (GOOD[:14], "no tracks"),
    "no_end_of_track": (midi(track(NOTE)), None),
    "one_byte_lost": (midi(track((NOTE * 5)[:20] + (NOTE * 5)[21:] + END, 49)), "on the way"),
    "length_too_short": (midi(track(NOTE + END, 0)), "no notes"),
    "length_too_long": (midi(track(NOTE + END, 10**6)), "cut short"),
    "fewer_tracks_than_said": (midi(track(NOTE + END), count=9), None),
    "unknown_chunk": (midi(b"XFIH" + struct.pack(">I", 3) + b"abc", track(NOTE + END)), None),
    "long_header": (b"MThd" + struct.pack(">IHHH", 8, 1, 1, 480) + b"ab" + track(NOTE + END), None),
    "program_out_of_range": (midi(track(b"\x00\xc0\xd0" + NOTE * 20 + END)), None),
    "velocity_out_of_range": (midi(track(NOTE * 20 + b"\x00\x90\x3c\xd0" + END)), None),
    "noise_in_the_track": (midi(track(NOTE + b"\x00\xf1\xf4\xf5\xf9" * 9 + END)), None),
    "endless_number": (midi(track(b"\x80" * 40 + NOTE + END)), None),
    "sysex_past_the_end": (midi(track(b"\x00\xf0\xff\xff\xff\x7f" + NOTE + END)), "damaged"),
    "drums_alone": (midi(track(b"\x00\x99\x3c\x40\x60\x89\x3c\x40" + END)), "no notes"),
    "notes_never_released": (midi(track(b"\x00\x90\x3c\x40\x83\x60\xb0\x01\x01" + END)), None),
    "empty": (b"", "empty"),
    "web_page": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                    "git lfs pull"),
}


def large() -> dict[str, tuple[bytes, bool]]:
    """Files of megabytes: (bytes, whether it may become a picture)."""
    return {
        "a_million_tracks": (midi(*[track(END)] * 600_000), False),
        "65535_tracks": (midi(*[track(NOTE + END)] * 65_535), False),
        "4096_tracks": (midi(*[track(NOTE + END)] * 4096), True),
        "a_million_notes": (midi(track(b"\x00\x90\x3c\x40" + b"\x01\x3c\x00\x01\x3c\x40" * 1_200_000
                                       + END)), True),
        "a_million_notes_at_once": (midi(track(b"\x00\x90\x3c\x40" + b"\x00\x3c\x40" * 2_000_000
                                               + b"\x01\x3c\x00" * 9 + END)), True),
        "every_key_for_hours": (midi(track(b"\x00\x90\x00\x40" + b"".join(
            bytes([0, pitch, 64]) for pitch in range(1, 128)) + b"\x9d\xf0\x00\x00\x00" + b"".join(
            bytes([0, pitch, 0]) for pitch in range(1, 128)) + END)), True),
        "damaged_megabytes": (midi(track(NOTE * 100_000 + b"\x00\xf1" + NOTE * 9, 10**6)), False),
        "nine_megabytes": (midi(track(NOTE * 1_100_000 + END)), False),
        "text": (b"la " * 2_000_000, False),
    }
