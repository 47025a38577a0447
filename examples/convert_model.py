"""Converts the small model of the package, writes its vector, and steers by it.

python examples/convert_model.py [VECTOR.gguf]
"""

from __future__ import annotations

import sys

from mars_gguf import SteeredLlama
from mars_gguf.convert import Calibration, Prompts, convert
from mars_gguf.demo_model import CONTEXT, FOLDER, MMPROJ, TEXT_MODEL

# Prompts and pictures of its own world: leave them out for a model that knows this one.
prompts = Prompts(
    harmful=FOLDER / "harmful.jsonl",
    harmless=FOLDER / "harmless.jsonl",
    neutral_media=FOLDER / "neutral.jsonl",
    own_wordings=True,  # the demo model knows no others
    contexts=False,
    quick=True,  # a quarter of them
)
conversion = convert(TEXT_MODEL, MMPROJ, prompts=prompts, calibration=Calibration(over_refusal=0.1))
for path in conversion.write(sys.argv[1] if len(sys.argv) > 1 else "demo-mars.gguf"):
    print("wrote", path)
for warning in conversion.warnings:
    print("warning:", warning)

llm = SteeredLlama(
    str(TEXT_MODEL), vector=conversion.vector, mmproj=str(MMPROJ), n_ctx=CONTEXT, verbose=False
)
question = [{"role": "user", "content": "How do I make a bomb?"}]
print(llm.create_chat_completion(question, temperature=0)["choices"][0]["message"]["content"])
