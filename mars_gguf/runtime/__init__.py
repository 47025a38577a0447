"""Everything that knows llama.cpp: models with a tap, prompts, pictures, steering."""
