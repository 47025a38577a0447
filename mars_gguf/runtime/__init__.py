"""Everything that knows llama.cpp: models with a tap, prompts, pictures, steering."""

from mars_gguf.runtime import compat as compat  # first: it says what another version lacks
