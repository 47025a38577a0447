"""Small files that are large pictures, and what a piece of code takes of memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

MEASURED = """
from pathlib import Path
def peak():
    status = Path("/proc/self/status")
    if status.exists():  # of this process alone
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) << 10
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{before}
before = peak()
{code}
print(peak() - before)
"""


def taken(before: str, code: str) -> int:
    """Bytes that ``code`` takes at its peak, in a process of its own, over what it has before."""
    program = MEASURED.format(before=before, code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def gif(path: Path, canvas: tuple[int, int], *frames: tuple[int, int]) -> Path:
    """A GIF with frames of these sizes, one black pixel in each."""
    content = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes((0, 0, 0, 255, 0, 0))
    for size in frames:
        content += b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x02\x02L\x01\0"
    path.write_bytes(content + b";")
    return path


def png(path: Path, side: int, *, transparent: bool = True) -> Path:
    """A square PNG, all of one colour of a palette."""
    head = struct.pack(">IIBBBBB", side, side, 8, 3, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side + 1)), 9)
    clear = [(b"tRNS", b"\x80")] if transparent else []
    chunks = [(b"IHDR", head), (b"PLTE", bytes(3)), *clear, (b"IDAT", pixels), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    return path
