"""EXIF data that Pillow cannot write again, or not even read."""

from __future__ import annotations

import struct


def tagged(*tags: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of tags, each a number, a type, a count and four bytes, which may lie."""
    entries = b"".join(struct.pack("<HHI", *tag) + value for *tag, value in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


BYTE, ASCII, SHORT, RATIONAL, UNDEFINED = 1, 2, 3, 5, 7
SIDEWAYS = (0x112, SHORT, 1, struct.pack("<HH", 6, 0))
ODD = {
    "two orientations": tagged((0x112, SHORT, 2, struct.pack("<HH", 6, 6))),
    "a resolution in letters": tagged(SIDEWAYS, (0x11A, ASCII, 4, b"72\0\0")),
    "a resolution of one byte": tagged(
        SIDEWAYS, (0x11A, BYTE, 1, b"H\0\0\0"), (0x128, SHORT, 1, struct.pack("<HH", 2, 0))
    ),
    "a resolution beyond the file": tagged(SIDEWAYS, (0x11A, RATIONAL, 1, b"\xff" * 4)),
    "a thumbnail beyond the file": tagged(SIDEWAYS, (0x201, 4, 1, b"\xff" * 4)),
    "a maker's note of a gigabyte": tagged(SIDEWAYS, (0x927C, UNDEFINED, 1 << 30, bytes(4))),
    "a folder of tags beyond the file": tagged(SIDEWAYS, (0x8769, 4, 1, b"\xff" * 4)),
    "a folder of tags in letters": tagged(SIDEWAYS, (0x8825, ASCII, 4, b"abc\0")),
    "a type that there is not": tagged(SIDEWAYS, (0x10F, 99, 1, bytes(4))),
}
UPRIGHT = {
    "an orientation in letters": tagged((0x112, ASCII, 2, b"6\0\0\0")),
    "an orientation beyond the file": tagged((0x112, SHORT, 1 << 20, b"\xff" * 4)),
    "no tags": b"Exif\0\0",
    "no EXIF": b"Exif\0\0what is this",
    "an end in a tag": tagged(SIDEWAYS)[:20],
}
