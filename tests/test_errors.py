from __future__ import annotations

import subprocess
import sys


def test_errors_are_an_attribute_of_the_package_that_brings_no_llama_cpp() -> None:
    code = (
        "import sys, mars_gguf\n"
        "assert issubclass(mars_gguf.errors.VectorError, mars_gguf.errors.MarsError)\n"
        "assert 'llama_cpp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
