"""Time what it takes to decode a picture in a process of its own, and in this one.

python -m tests.attacks.decoder_cost
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from mars_gguf.media.images import decode_image
from mars_gguf.server import decoders

TIMES = 100
LIMITS = {"max_pixels": 1 << 24, "most_pixels": 1 << 24}


def milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((1024, 1024)).save(file, "JPEG", quality=90)
    data = file.getvalue()

    def there() -> object:
        return decoders.decode(LIMITS, time.monotonic() + 60, data)

    first = milliseconds(there)
    both = [
        (milliseconds(lambda: decode_image(io.BytesIO(data), "it")), milliseconds(there))
        for _ in range(TIMES)
    ]
    print(f"A JPEG of 1024 x 1024 pixels, {len(data):,} bytes, milliseconds of {TIMES} times:")
    for name, times in zip(("in this process", "in another"), np.transpose(both), strict=True):
        print(f"{name:15} fastest {times.min():.1f}, median {np.median(times):.1f}")
    print(f"{first - both[0][1]:.0f} to begin that other process")


if __name__ == "__main__":
    main()
