"""The errors that callers and users meet.

A message says what was wrong, what was found, what was expected and what to do. Commands print it
and exit: with code 2 for a MarsError, with code 1 for a SteeringError.
"""

from __future__ import annotations


class MarsError(ValueError):
    """Bad input: a file, a prompt set, an option."""


class VectorError(MarsError):
    """A vector file that is damaged, hostile, or made for another model."""


class ModelError(MarsError):
    """A model or mmproj that cannot be loaded, probed or steered."""


class PromptError(MarsError):
    """Messages that do not become a prompt: refused by the chat template, or lost in it."""


class SteeringError(RuntimeError):
    """A failure of steering while a model was running. Nothing unsteered is returned instead."""
