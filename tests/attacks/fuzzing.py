"""Files that nobody would write, guided by what they have reached of the reader's code: vectors
and pictures.

Whatever the bytes, a vector, pixels or a clear MarsError come of them, soon and in little memory.
What files hold of themselves, a vector's hash and the checksums of a PNG, is put right for half of
them, so that what lies behind it is reached, too. A file for which that fails is kept in the
working directory (crash-*, timeout-*, oom-*).
"""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

VECTOR = Path(__file__).parents[2] / "vectors" / "demo.gguf"
MAX_BYTES = 1 << 16  # of an input
GROWTH = 256 << 10  # kB of memory, over all of them
# Of a picture or a frame, here. The package allows more, which would take longer.
MAX_PIXELS = 1 << 22
REFUSALS = ("not a picture", "too large", "truncated or damaged", "scans, expected at most")

Target = Callable[[bytes], None]


def fuzz(name: str, runs: int, seed: int) -> int:
    """Tries "vectors" or "pictures" in a process of its own. Returns its exit code."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, name, str(runs), str(seed + 1)]
    # By a shell: else what this process has in memory would count as the most that it took.
    shell = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    return subprocess.run(shell, env=environment).returncode


# Vectors -----------------------------------------------------------------------------------------

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    """An array that says it has ``count`` items."""
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    keys: list[bytes], tensors: list[bytes], data: bytes = b"", *,
    n_keys: int | None = None, n_tensors: int | None = None, version: int = 3,
) -> bytes:  # fmt: skip
    """A GGUF control vector; counts and version can lie."""
    keys = [key("general.architecture", STRING, text("controlvector")), *keys]
    head = b"GGUF" + struct.pack(
        "<IQQ", version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )  # fmt: skip
    head += b"".join(keys + tensors)
    return head + bytes(-len(head) % 32) + data


ONE = tensor("direction.1", 4)
FOUR = struct.pack("<4f", 1, 2, 3, 4)
HOSTILE = {
    "nothing": b"",
    "the magic alone": b"GGUF",
    "an array of 2^40 numbers": gguf([key("x", ARRAY, array(U32, 1 << 40))], [ONE], FOUR),
    "an array of 2^64 - 1 texts": gguf([key("x", ARRAY, array(STRING, (1 << 64) - 1))], [ONE]),
    "an array of arrays": gguf([key("x", ARRAY, array(ARRAY, 1, array(U8, 0)))], [ONE], FOUR),
    "a text of 2^63 bytes": gguf([key("x", STRING, struct.pack("<Q", 1 << 63))], [ONE], FOUR),
    "2^60 keys": gguf([], [ONE], FOUR, n_keys=1 << 60),
    "2^60 tensors": gguf([], [ONE], FOUR, n_tensors=1 << 60),
    "no tensor": gguf([], []),
    "a tensor of 2^62 values": gguf([], [tensor("direction.1", 1 << 62)], FOUR),
    "a tensor of 2^32 by 2^32 values": gguf([], [tensor("direction.1", 1 << 32, 1 << 32)], FOUR),
    "a tensor of 2^30 dimensions": gguf([], [text("direction.1") + struct.pack("<I", 1 << 30)]),
    "a tensor at 2^64 - 32": gguf([], [tensor("direction.1", 4, offset=(1 << 64) - 32)], FOUR),
    "a quantized tensor": gguf([], [tensor("direction.1", 32, kind=2)], bytes(18)),
    "an unknown type of tensor": gguf([], [tensor("direction.1", 4, kind=99)], FOUR),
    "an unknown type of value": gguf([key("x", 99, b"")], [ONE], FOUR),
    "a version to come": gguf([], [ONE], FOUR, version=4),
    "the other endianness": gguf([], [ONE], FOUR, version=3 << 24),
    "an alignment of 0": gguf([key("general.alignment", U32, bytes(4))], [ONE], FOUR),
    "an alignment of 2^63": gguf(
        [key("general.alignment", U64, struct.pack("<Q", 1 << 63))], [ONE], FOUR
    ),
    "one key twice": gguf([key("x", BOOL, b"\1")] * 2, [ONE], FOUR),
    "one tensor twice": gguf([], [ONE, ONE], FOUR),
    "a name that is not UTF-8": gguf([struct.pack("<Q", 1) + b"\xff"], [ONE], FOUR),
}


def small(path: Path, **changes: Any) -> Path:
    """A vector of few values."""
    import numpy as np

    from mars_gguf.steering import Geometry
    from mars_gguf.vectors import ModelFingerprint, Vector, write_vector

    safe, unsafe = np.zeros(2, np.float32), np.array([1, 0], np.float32)
    geometry = Geometry(
        safe=safe, unsafe=unsafe, readout=unsafe, shifts={"text": safe, "image": unsafe},
        spreads={"text": 0.1, "image": 0.1}, thresholds={"text": 0.5, "image": 0.5},
        gate_ramp=1.0, trust_limit=1.0,
    )  # fmt: skip
    model = ModelFingerprint("llama", "", 3, 2, "Q4_K_M", "", "")
    write_vector(Vector(1, geometry, model, **changes), path)
    return path


def vectors(folder: Path) -> None:
    """Files to begin with."""
    (folder / "demo").write_bytes(VECTOR.read_bytes())
    small(folder / "small")
    small(folder / "listed", calibration={"a": [1, 2], "b": ["x", ""], "c": True, "d": ""})
    for number, data in enumerate(HOSTILE.values()):
        (folder / f"hostile-{number}").write_bytes(data)


def reads_vectors() -> Target:
    import atheris

    with atheris.instrument_imports(include=["mars_gguf.vectors"]):
        from mars_gguf.vectors import VectorError, parse_vector, sealed
        from mars_gguf.vectors.describe import describe

    def read(data: bytes) -> None:
        with suppress(VectorError):
            describe(parse_vector(sealed(data) if zlib.crc32(data) % 2 else data))

    return read


# Pictures ----------------------------------------------------------------------------------------


def pictures(folder: Path) -> None:
    """Files to begin with."""
    from PIL import Image, ImageCms

    rgba = Image.radial_gradient("L").resize((24, 16)).convert("RGBA")
    frames = [rgba.rotate(90 * n).convert("RGB") for n in range(4)]
    film: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x112] = 6
    noted: dict[str, Any] = {"exif": exif, "icc_profile": profile}
    saved: list[tuple[str, str, dict[str, Any]]] = [
        *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("JPEG", mode, {"quality": 60}) for mode in ("L", "RGB", "CMYK")),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")),
        *((form, "RGB", film) for form in ("PNG", "GIF", "WEBP", "MPO")),
        *((form, "RGB", noted) for form in ("PNG", "JPEG", "WEBP")),
        ("JPEG", "RGB", {"progressive": True}), ("WEBP", "RGBA", {"lossless": True}),
        ("GIF", "P", {"transparency": 3}), ("TIFF", "RGB", {}), ("ICO", "RGB", {}),
    ]  # fmt: skip
    for number, (form, mode, options) in enumerate(saved):
        image = rgba.convert("RGB").convert("L" if mode == "I;16" else mode).convert(mode)
        image.save(folder / str(number), form, **options)


def mended(data: bytes) -> bytes:
    """Puts the checksums of a PNG right."""
    found, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        checksum = zlib.crc32(data[at + 4 : at + 8 + length])
        struct.pack_into(">I", found, at + 8 + length, checksum)
        at += 12 + length
    return bytes(found)


def reads_pictures() -> Target:
    import atheris

    with atheris.instrument_imports(include=["PIL", "mars_gguf.media"]):
        from mars_gguf.errors import MarsError
        from mars_gguf.media.images import decode_image

    warnings.simplefilter("ignore")

    def read(data: bytes) -> None:
        data = mended(data) if zlib.crc32(data) % 2 else data
        try:
            image = decode_image(io.BytesIO(data), "it", MAX_PIXELS)
            assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
        except MarsError as error:
            text = str(error)
            assert text.startswith("it: ") and text.isprintable() and len(text) < 400, text
            assert any(words in text for words in REFUSALS), text

    return read


# Both --------------------------------------------------------------------------------------------

# How each is read, what to begin with, and seconds of the processor for one file.
READERS = {"vectors": (reads_vectors, vectors, 1.0), "pictures": (reads_pictures, pictures, 2.0)}


def bounded(read: Target, seconds: float) -> Target:
    """Raises where a file takes longer, or all of them too much memory."""

    def memory() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    most = memory() + GROWTH

    def bounded_read(data: bytes) -> None:
        began = time.process_time()
        read(data)
        if (took := time.process_time() - began) > seconds:
            raise RuntimeError(f"{took:.1f} s for {len(data)} bytes")
        if memory() > most:
            raise MemoryError(f"{memory() >> 10} MB after {len(data)} bytes")

    return bounded_read


def main(name: str, runs: str, seed: str) -> None:
    import atheris

    make, begin_with, seconds = READERS[name]
    read = bounded(make(), seconds)
    folder = tempfile.mkdtemp()  # atheris.Fuzz never returns
    begin_with(Path(folder))
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", "-timeout=20"]
    atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=2048", folder], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
