"""Print the files of tests that were skipped, by a report of pytest: ``skipped.py tests.xml``.

What is skipped without a tool of the system may be skipped. So may tests of the real model where
MARS_QWEN is not set, as it could not be fetched.
"""

from __future__ import annotations

import os
import re
import sys
from xml.etree import ElementTree

ALLOWED = r"(tmux|script|hadolint|check-jsonschema) is not installed"


def skipped(report: str) -> dict[str, str]:
    """Why the tests of a file were skipped, by the file; one reason each."""
    allowed = ALLOWED if "MARS_QWEN" in os.environ else f"{ALLOWED}|MARS_QWEN names no"
    return {
        (case.get("classname") or case.get("name", "")).replace(".", "/") + ".py": why
        for case in ElementTree.parse(report).iter("testcase")
        for found in case.iter("skipped")
        if not re.match(allowed, why := found.get("message", ""))
    }


if __name__ == "__main__":
    for file, why in sorted(skipped(sys.argv[1]).items()):
        print(f"{file}: {why}", file=sys.stderr)
        print(file)
