"""The choices that a user has for a conversion, in groups. Each default is the command's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, TypeVar

from mars_gguf.errors import MarsError
from mars_gguf.reasoning import N_THOUGHT, Reasoning

StrPath = str | PathLike[str]
Group = TypeVar("Group")


@dataclass(frozen=True)
class Prompts:
    """Chooses the prompts and pictures that a conversion measures with.

    harmful, harmless: files with one prompt a line, or JSON Lines (prompts.read_prompts); both, or
        neither for the built-in sets.
    neutral_text: a file of harmless text besides, borderline requests above all.
    neutral_media: harmless pictures instead of drawn ones: a folder whose folders are kinds, or a
        JSON Lines file that pairs pictures with prompts.
    own_wordings: whether pictures that a file pairs with prompts are asked about in those prompts
        alone; else also in the package's, and drawn pictures in the file's.
    modalities: what is measured besides text; None: all that the model takes.
    probes: neutral pictures or groups of them, and half as many films.
    image_size: width and height of pictures that are drawn, in pixels.
    system_prompt: text that stands before every prompt.
    contexts: whether half of the neutral prompts stand after system prompts and earlier turns.
    quick: whether a quarter of all prompts is enough.
    sha256: the hash that the text prompts must have, as a recipe and a card state it.
    """

    harmful: StrPath | None = None
    harmless: StrPath | None = None
    neutral_text: StrPath | None = None
    neutral_media: StrPath | None = None
    own_wordings: bool = False
    modalities: Sequence[str] | None = None
    probes: int = 100
    image_size: int = 224
    system_prompt: str | None = None
    contexts: bool = True
    quick: bool = False
    sha256: str | None = None


@dataclass(frozen=True)
class Calibration:
    """Chooses how block and gate are found. Raises MarsError for values out of range.

    layers: first and last candidate block; None: all but the first.
    over_refusal: share of neutral inputs, borderline ones among them, that may open the gate, in
        each modality; None: 0.1 of text, and of media 0.05 to 0.2, as much as is needed.
    seed: of how prompts are divided and pictures are drawn.
    """

    layers: tuple[int, int] | None = None
    over_refusal: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.over_refusal is not None and not 0 <= self.over_refusal < 1:
            raise MarsError(
                f"--over-refusal: found {self.over_refusal}, expected a share from 0 to below 1"
            )


@dataclass(frozen=True)
class GgufOptions:
    """Chooses how a GGUF model is loaded and asked.

    chat_handler: who writes the prompts, one of `formats.HANDLERS`; None: the model's own template.
    chat_template_kwargs: variables for the chat template.
    reasoning: of a model that thinks, which token is measured; None: as its template suggests.
    n_thought: tokens after which its thought is ended.
    n_ctx: tokens of context, 0 for as many as the model was trained with; None for as many as the
        prompts need.
    n_gpu_layers, rpc_servers, n_threads: as SteeredLlama takes them.
    """

    chat_handler: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    reasoning: Reasoning | None = None
    n_thought: int = N_THOUGHT
    n_ctx: int | None = None
    n_gpu_layers: int = 0
    rpc_servers: str | None = None
    n_threads: int | None = None


@dataclass(frozen=True)
class CheckpointOptions:
    """Chooses how a model of transformers is loaded and asked. It runs on CUDA, else on MPS, else
    on the CPU.

    chat_template_kwargs: variables for the chat template.
    dtype: of the weights; "auto": as they are stored.
    batch_size: prompts at once.
    revision: commit of a model on the hub.
    trust_remote_code: whether code that comes with the model is run; else such models are refused.
    """

    chat_template_kwargs: Mapping[str, Any] | None = None
    dtype: str = "auto"
    batch_size: int = 8
    revision: str | None = None
    trust_remote_code: bool = False


def chosen(group: type[Group], options: Mapping[str, Any], **more: Any) -> Group:
    """Makes a group of choices from the ``options`` that are named as its fields, and ``more``."""
    named = {f.name: options[f.name] for f in fields(group) if f.name in options}  # type: ignore
    return group(**named | more)
