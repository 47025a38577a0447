"""The converter: measure a model's refusal geometry and write it as a vector file."""
