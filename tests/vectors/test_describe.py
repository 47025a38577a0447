from __future__ import annotations

from dataclasses import replace

from vector_files import MODEL, VECTOR

from mars_gguf.vectors.describe import describe


def test_a_vector_is_described_line_by_line_and_steers_no_terminal():
    source = {"note": "\x1b[2J\x9bü\nmodel  none", "media": ["noise", "drawn"]}
    model = replace(MODEL, reasoning="answer")
    lines = describe(replace(VECTOR, source=source, model=model)).splitlines()
    assert lines[0] == "model       Tiny Chat (llama, 8 blocks, n_embd 4, Q4_K_M)"
    assert {
        "reasoning   answer",
        "layer       3",
        "direction   D = 3",
        "calibration auroc = 0.9375",
        "source      media = 2 values",
        "source      note = \\x1b[2J\\x9bü\\nmodel  none",
    } <= set(lines)
    image = next(line for line in lines if line.startswith("image"))
    assert "spread 0.25, shift 2.36 D, gate opens at t = -0.5" in image
