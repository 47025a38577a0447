"""Measures what an attacker who controls the prompt alone can still gain from a steered model.

Requests that nothing was measured on (the suites of `mars_gguf.evaluate`) are asked in many ways
(`attacks`), of the model without steering and with it, and counted (`table`). The judge is the
package's, which reads openings; some replies are looked at to their end.

    python -m lab.attacks -o docs/evaluation/attacks.md
    python -m lab.attacks MODEL.gguf --mmproj MMPROJ.gguf --vector VECTOR.gguf -o attacks.md

Behind the projector of `lab.reader`, with what `lab.reader.report` leaves in its folder PARTS:

    python -m lab.attacks MODEL.gguf --mmproj PARTS/mmproj.gguf --vector PARTS/mars.gguf \\
        --suite PARTS/suite/text.jsonl --suite PARTS/suite/instruction-2.jsonl -o attacks.md
"""
