"""Tiny random multimodal models of the families that people run, written within a moment.

Each is a text model, an mmproj and a chat template in the form of the family's public GGUF files.
The weights are random and always the same.
"""

from .families import FAMILIES, UNSTEERABLE, Family

__all__ = ["FAMILIES", "UNSTEERABLE", "Family"]
