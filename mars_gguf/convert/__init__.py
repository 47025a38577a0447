"""The converter: measure a model's refusal geometry and write it as a vector file."""

N_THOUGHT = 64  # tokens of a thought, after which it is ended
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
