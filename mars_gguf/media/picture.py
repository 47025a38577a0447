"""A decoded picture, as messages of our own code carry it to the projector."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Picture:
    """The pixels of a picture, upright and opaque: ``rgb`` has 3 bytes for each, row by row.

    It stands in a message where a URL would. No JSON makes one, so that no client can.
    """

    width: int
    height: int
    rgb: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1 or len(self.rgb) != 3 * self.width * self.height:
            raise ValueError(
                f"a picture of {self.width} x {self.height} pixels: found {len(self.rgb)} bytes, "
                f"expected {3 * self.width * self.height}, more than none"
            )

    @cached_property
    def sha256(self) -> str:
        """The hash of its size and pixels, hexadecimal: equal if and only if the pictures are."""
        found = hashlib.sha256(b"%d %d " % (self.width, self.height))
        found.update(self.rgb)
        return found.hexdigest()
