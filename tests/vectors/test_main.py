"""``python -m mars_gguf.vectors``"""

from __future__ import annotations

from commands import ended
from vector_files import VECTOR

from mars_gguf.files import sha256
from mars_gguf.vectors import write_vector
from mars_gguf.vectors.describe import describe


def test_the_command_prints_what_a_vector_holds_and_its_identity(tmp_path):
    write_vector(VECTOR, tmp_path / "a.gguf")
    done = ended("mars_gguf.vectors", str(tmp_path / "a.gguf"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{describe(VECTOR)}\nsha256      {sha256(tmp_path / 'a.gguf')}\n"
