"""The converter: measure a model's refusal geometry and write it as a vector file."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
