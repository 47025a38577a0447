"""Decode what nobody would draw: pictures and animations that are changed at random.

    python -m tests.attacks.fuzz_pictures [--files 1000000] [--seed 0] [--first 0]

Whatever the bytes, pixels or a clear MarsError come of them, in little time and memory. Files are
numbered, and each follows from its number and the seed, so that a run can go on at any, and several
can share the work. They are decoded in processes that may die of one. Prints what became of them; a
file over which something else happens is kept in the working directory (crash-*), and the exit code
is then 1.
"""

from __future__ import annotations

import argparse
import io
import mmap
import os
import random
import resource
import signal
import struct
import sys
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, ImageDraw

from mars_gguf.errors import MarsError
from mars_gguf.media import animations
from mars_gguf.media.animations import load_animation
from mars_gguf.media.images import decode_image

BATCH = 2000  # files of a process
SECONDS = 2.0  # of the processor, for one file
MEMORY = 192 << 20  # bytes, over all files of a process
# Of a picture or a frame, here. The package allows more, which would take longer.
MAX_PIXELS = 1 << 22
OUTCOMES = {  # by what is in the message
    "decoded": "", "no picture": "not a picture", "too large": "too large",
    "damaged": "truncated or damaged", "too many scans": "scans, expected at most",
}  # fmt: skip
FAILED = 255
OTHERS = ("TIFF", "ICO", "PPM", "TGA", "PCX", "DDS", "ICNS")  # that Pillow could read
SIZE = (24, 16)
NUMBERS = (0, 1, 2, 4, 8, 255, 256, 4095, 32767, 32768, 65535, 1 << 20, 2**31 - 1, 2**31, 2**32 - 1)


# What to begin with


@cache
def picture(mode: str, shade: int = 0) -> Image.Image:
    image = Image.radial_gradient("L").resize(SIZE).convert("RGBA")
    ImageDraw.Draw(image).rectangle((3, 3, 12, 9), (200, shade, 30, shade))
    return image.convert("RGB").convert(mode) if mode in ("P", "1", "CMYK") else image.convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced() -> bytes:
    """A PNG in seven passes, which Pillow does not write."""
    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    rows = [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8)]
    data = b"".join(bytes(height * (1 + 3 * width)) for height, width in rows)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + chunks


def runs(depth: int) -> bytes:
    """A BMP in runs: of one colour, copied, skipped, to the end of a line and of the picture."""
    pixels = b"\x05\x01\0\x04\1\2\3\4\0\0" + b"\0\2\1\1" + b"\x03\x02\0\0" * 4 + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, depth, 3 - depth // 4, len(pixels), 0, 0, 16, 0)
    size = 14 + len(head) + 64
    file = struct.pack("<IHHI", size + len(pixels), 0, 0, size) + head + bytes(range(64))
    return b"BM" + file + pixels


@cache
def profile() -> bytes:
    found = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return found[:24] + bytes(12) + found[36:]  # without its date


@cache
def seeds() -> dict[str, list[bytes]]:
    """Files of each kind."""
    rgb, rgba, frames = picture("RGB"), picture("RGBA"), [picture("RGB", 60 * n) for n in range(4)]
    film: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    clear = [picture("RGBA", 60 * n) for n in range(4)]
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    png = [encoded(picture("L" if m == "I;16" else m).convert(m), "PNG") for m in modes]
    png += [interlaced(), encoded(rgb, "PNG", **film), encoded(picture("P"), "PNG", transparency=3)]
    jpeg = [encoded(picture(mode), "JPEG", quality=60) for mode in ("L", "RGB", "CMYK")]
    jpeg += [encoded(rgb, "JPEG", progressive=True), encoded(rgb, "JPEG", subsampling=0)]
    jpeg += [encoded(rgb, "JPEG", comment=b"c" * 40, restart_marker_blocks=1)]
    webp = [encoded(rgb, "WEBP"), encoded(rgba, "WEBP"), encoded(rgba, "WEBP", lossless=True)]
    gif = [encoded(picture("P"), "GIF"), encoded(picture("L"), "GIF", interlace=1)]
    bmp = [encoded(picture(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")]
    return {
        "PNG": png,
        "JPEG": jpeg,
        "MPO": [encoded(rgb, "MPO", **film)],
        "WebP": webp,
        "animated WebP": [encoded(rgb, "WEBP", **film), encoded(clear[0], "WEBP", save_all=True,
                          append_images=clear[1:], lossless=True, minimize_size=True)],
        "GIF": gif,
        "animated GIF": [encoded(rgb, "GIF", **film), encoded(clear[0], "GIF", save_all=True,
                         append_images=clear[1:], disposal=[0, 1, 2, 3], transparency=0)],
        "BMP": [*bmp, runs(8), runs(4)],
        "other": [b"", b"<svg/>", b"%PDF-1.7", bytes(64), *(encoded(rgb, form) for form in OTHERS)],
    }  # fmt: skip


# What is done to it


def with_exif(rng: random.Random) -> bytes:
    """A picture with tags at random: real ones or not, of any type and count."""
    real = (0x10F, 0x112, 0x11A, 0x11B, 0x128, 0x201, 0x202, 0x8769, 0x8825, 0x927C, 0xA005)
    order = rng.choice("<>")
    tags = [(0x112, 3, 1, struct.pack(f"{order}HH", rng.randrange(10), 0))] * rng.randrange(2)
    for _ in range(rng.randrange(1, 12)):
        tag = rng.choice(real) if rng.random() < 0.8 else rng.randrange(1 << 16)
        count = rng.choice((0, 1, 2, 4, rng.choice(NUMBERS)))
        value = struct.pack(f"{order}I", rng.choice((8, rng.randrange(200), rng.choice(NUMBERS))))
        tags.append((tag, rng.choice((*range(14), 99)), count, value))
    entries = b"".join(struct.pack(f"{order}HHI", *tag) + value for *tag, value in tags)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    exif = b"Exif\0\0" + head + entries + struct.pack(f"{order}I", rng.choice((0, 0, 8, 14, 999)))
    return encoded(picture("RGB"), rng.choice(("PNG", "JPEG", "WEBP")), exif=exif + bytes(30))


def with_profile(rng: random.Random) -> bytes:
    """A picture with a profile of colours that has been changed."""
    icc = bytearray(profile())
    for _ in range(rng.randrange(1, 5)):
        change(icc, rng, [profile()])
    mode = rng.choice(("RGB", "L", "CMYK"))
    forms = ("JPEG",) if mode == "CMYK" else ("PNG", "JPEG", "WEBP")
    return encoded(picture(mode), rng.choice(forms), icc_profile=bytes(icc))


def huge(rng: random.Random) -> bytes:
    """A picture that says it is of another size than it is."""
    form = rng.choice(("PNG", "JPEG", "GIF", "animated GIF", "BMP", "WebP", "animated WebP"))
    data = bytearray(rng.choice(seeds()[form]))
    side = [int(2 ** rng.uniform(0, 17)) for _ in range(2)]
    low = [min(s, 65535) for s in side]
    if form == "PNG":
        struct.pack_into(">II", data, 16, *side)
    elif form == "JPEG":
        at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
        struct.pack_into(">HH", data, at + 5, *low)
    elif "GIF" in form:
        frame = data.index(b",", 13)
        struct.pack_into("<HH", data, rng.choice((6, frame + 5)), *low)
    elif form == "BMP":
        struct.pack_into("<ii", data, 18, side[0], side[1] * rng.choice((1, -1)))
    elif data[12:16] == b"VP8X":
        data[24:30] = b"".join((s - 1).to_bytes(3, "little") for s in side)
    elif data[12:16] == b"VP8L":
        struct.pack_into("<I", data, 21, (side[0] - 1) % 16384 | (side[1] - 1) % 16384 << 14)
    else:
        struct.pack_into("<HH", data, 26, *(s % 16384 for s in side))
    return bytes(data)


def change(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    """Changes a file in one place."""
    at, length = rng.randrange(len(data) + 1), int(2 ** rng.uniform(0, 9))
    some = data[at : at + length]
    match rng.randrange(12):
        case 0 | 1 | 2 | 3 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 4 | 5 if at < len(data):
            data[at] = rng.randrange(256)
        case 6 | 7:
            form = rng.choice((">H", "<H", ">I", "<I"))
            limit = 1 << 8 * struct.calcsize(form)
            data[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(NUMBERS) % limit)
        case 8:
            del data[at : at + length]
        case 9:
            place = rng.randrange(len(data) + 1)
            data[place:place] = some * rng.choice((1, 1, 1, 50))
        case 10:
            data[at:at] = rng.randbytes(length)
        case _:
            other = rng.choice(others)
            data[at:] = other[rng.randrange(len(other) + 1) :]


def mend(data: bytearray) -> None:
    """Puts the checksums of a PNG right, so that what lies behind them is reached."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            return
        checksum = zlib.crc32(data[at + 4 : at + 8 + length])
        struct.pack_into(">I", data, at + 8 + length, checksum)
        at += 12 + length


MADE: dict[str, Callable[[random.Random], bytes]] = {
    "EXIF": with_exif, "colour profile": with_profile, "another size": huge,
}  # fmt: skip
KINDS = (*seeds(), *MADE)


def made(seed: int, number: int) -> tuple[str, bytes]:
    """The kind of the file of a number, and the file."""
    rng, kind = random.Random(f"{seed}/{number}"), KINDS[number % len(KINDS)]
    others = [data for each in seeds().values() for data in each]
    data = bytearray(MADE[kind](rng) if kind in MADE else rng.choice(seeds()[kind]))
    least = 0 if kind in MADE else 1
    for _ in range(rng.choice((least, 1, 1, 2, 4, 8))):
        change(data, rng, others)
    if rng.random() < 0.15:
        del data[rng.randrange(len(data) + 1) :]
    if rng.random() < 0.8 and data.startswith(b"\x89PNG"):
        mend(data)
    return kind, bytes(data)


# What becomes of it


@cache
def memory() -> int:
    """A file that is on no disk."""
    return os.memfd_create("animation")


def outcome(data: bytes) -> int:
    """Decodes a file, as a picture and as an animation; which of OUTCOMES that is, for a picture.
    Raises what else is raised."""
    found = 0
    try:
        image = decode_image(io.BytesIO(data), "it", MAX_PIXELS)
        assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
    except MarsError as error:
        found = refusal(error, "it")
    if data[:3] == b"GIF" or data[8:12] == b"WEBP":
        path = f"/proc/self/fd/{memory()}"
        os.truncate(memory(), 0)
        os.pwrite(memory(), data, 0)
        try:
            frames = load_animation(path, 3, 64)
            assert 0 < len(frames) <= 3 and all(max(frame.size) <= 64 for frame in frames)
        except MarsError as error:
            refusal(error, path)
    return found


def refusal(error: MarsError, name: str) -> int:
    """Which of OUTCOMES a clear error is. Raises AssertionError for another."""
    text = str(error)
    assert text.startswith(f"{name}: ") and text.isprintable() and len(text) < 400, text
    found = [n for n, words in enumerate(OUTCOMES.values()) if words and words in text]
    assert found, text
    return found[0]


def keep(number: int, kind: str, data: bytes, why: str) -> None:
    path = Path(f"crash-{kind.replace(' ', '-')}-{number}")
    path.write_bytes(data)
    print(f"{path}: {why}", file=sys.stderr, flush=True)


def try_batch(seed: int, numbers: range, outcomes: mmap.mmap) -> None:
    """Decodes files, in this process, and notes what became of each."""
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, resource.RLIM_INFINITY))
    for place, number in enumerate(numbers):
        kind, data = made(seed, number)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            outcomes[place] = 1 + outcome(data)
        except Exception:
            keep(number, kind, data, traceback.format_exc())
            outcomes[place] = FAILED
        signal.setitimer(signal.ITIMER_PROF, 0)


def fuzz(seed: int, numbers: range) -> Iterator[tuple[int, str]]:
    """Decodes files, in processes of their own; yields what became of each."""
    while numbers:
        batch, outcomes = numbers[:BATCH], mmap.mmap(-1, BATCH)
        child = os.fork()
        if child == 0:
            try:
                try_batch(seed, batch, outcomes)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        done = outcomes[: len(batch)].partition(b"\0")[0]
        for number, code in zip(batch, done, strict=False):
            yield number, "failed" if code == FAILED else list(OUTCOMES)[code - 1]
        numbers = numbers[len(done) :]
        if len(done) < len(batch):
            kind, data = made(seed, batch[len(done)])
            how = os.waitstatus_to_exitcode(status)
            keep(batch[len(done)], kind, data, f"the process ended ({how}) over it")
            yield batch[len(done)], "failed"
            numbers = numbers[1:]


def table(counts: Counter[tuple[str, str]]) -> str:
    columns = [*OUTCOMES, "failed"]
    lines = [f"{'':15}" + "".join(f"{column:>15}" for column in columns)]
    for kind in KINDS:
        lines.append(f"{kind:15}" + "".join(f"{counts[kind, each]:15,}" for each in columns))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.attacks.fuzz_pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--files", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="of the files' numbers")
    args = parser.parse_args()
    for end in (signal.SIGINT, signal.SIGTERM):  # also in the background
        signal.signal(end, signal.default_int_handler)
    animations.MAX_PIXELS = MAX_PIXELS
    counts: Counter[tuple[str, str]] = Counter()
    numbers = range(args.first, args.first + args.files)
    try:
        for number, became in fuzz(args.seed, numbers):
            counts[KINDS[number % len(KINDS)], became] += 1
            if counts.total() % 100_000 == 0:
                print(f"{number + 1:,} files", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"--first {args.first + counts.total()} goes on", file=sys.stderr)
    print(table(counts))
    sys.exit(any(counts[kind, "failed"] for kind in KINDS))


if __name__ == "__main__":
    main()
