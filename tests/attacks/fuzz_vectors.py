"""Feed the vector reader what nobody would write, guided by what it has reached.

    python -m tests.attacks.fuzz_vectors [--runs 1000000] [--seed N]

Whatever the bytes, a vector or a VectorError comes of them, soon and in little memory. The hash
that a vector file holds of itself is put right for half of them, so that what lies behind it is
reached, too. An input for which that fails is kept in the working directory (crash-*).
"""

from __future__ import annotations

import argparse
import os
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "vectors" / "demo.gguf"
MAX_BYTES = 1 << 16  # of an input
SECONDS = 1.0  # for one input
GROWTH = 256 << 10  # kB of memory, over all of them

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


def seeds(folder: Path) -> None:
    """What to begin with."""
    (folder / "demo").write_bytes(DEMO.read_bytes())
    small(folder / "small")
    small(folder / "listed", calibration={"a": [1, 2], "b": ["x", ""], "c": True, "d": ""})
    for number, data in enumerate(HOSTILE.values()):
        (folder / f"hostile-{number}").write_bytes(data)


def target() -> Callable[[bytes], None]:
    """What is tried on an input."""
    import atheris

    with atheris.instrument_imports(include=["mars_gguf.vectors"]):
        from mars_gguf.vectors import VectorError, parse_vector, sealed
        from mars_gguf.vectors.describe import describe

    def memory() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    most = memory() + GROWTH

    def read(data: bytes) -> None:
        began = time.process_time()
        try:
            if zlib.crc32(data) % 2:
                data = sealed(data)
            describe(parse_vector(data))
        except VectorError:
            pass
        if (took := time.process_time() - began) > SECONDS:
            raise RuntimeError(f"{took:.1f} s for {len(data)} bytes")
        if memory() > most:
            raise MemoryError(f"{memory() >> 10} MB after {len(data)} bytes")

    return read


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.attacks.fuzz_vectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        child = os.fork()  # atheris.Fuzz never returns
        if child == 0:
            fuzz(Path(name), args.runs, args.seed)
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def fuzz(folder: Path, runs: int, seed: int) -> None:
    import atheris

    read = target()
    seeds(folder)
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", "-timeout=20"]
    atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=2048", str(folder)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
