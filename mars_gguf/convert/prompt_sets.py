"""Everything that a conversion asks a model, gathered from what the user chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from mars_gguf.convert.choices import Prompts
from mars_gguf.convert.extractor import Extractor
from mars_gguf.convert.probes import is_paired, neutral_probes
from mars_gguf.convert.prompts import ContrastPrompts, Preamble, Prompt, contexts, read_contrast
from mars_gguf.convert.splits import Split
from mars_gguf.errors import MarsError
from mars_gguf.modalities import MEDIA, TEXT

QUICK = 4  # one of so many prompts is measured


@dataclass(frozen=True)
class PromptSets:
    """Holds everything that a conversion asks.

    media: by modality, neutral prompts with pictures or films.
    contexts: what stands before prompts; the first of them (none, or a system prompt) before all.
    notes: what the user should know of what was left out, in sentences.
    """

    contrast: ContrastPrompts
    media: Mapping[str, Split] = field(default_factory=dict)
    contexts: Sequence[Preamble] = (Preamble(),)
    notes: Sequence[str] = ()

    def longest(self) -> list[Prompt]:
        """The longest text after every context, and all that have media: none needs more cells."""
        texts = self.contrast.harmful, self.contrast.harmless, *self.contrast.neutral.values()
        text = max(chain.from_iterable(texts), key=len)
        return [
            *(Prompt(text, context=context) for context in self.contexts),
            *(prompt for split in self.media.values() for part in split for prompt in part),
        ]


def gather(prompts: Prompts, seed: int, *, sees: bool) -> PromptSets:
    """Reads or draws all that ``prompts`` choose.

    sees: whether the model takes pictures. Raises MarsError for files that cannot be used, for sets
    that are too small, and for media that the model does not take.
    """
    contrast = read_contrast(prompts.harmful, prompts.harmless, prompts.neutral_text)
    if prompts.quick:
        contrast = contrast.thinned(QUICK)
    if prompts.sha256 not in (None, contrast.sha256):
        raise MarsError(
            f"found prompts of sha256 {contrast.sha256}, prompts.sha256 says {prompts.sha256}: "
            "other prompts make another vector"
        )
    if prompts.own_wordings and not is_paired(prompts.neutral_media):
        raise MarsError(
            "--own-wordings goes with a .jsonl file of --neutral-media, which pairs pictures with "
            "prompts: it would change nothing. Leave it out."
        )
    before = contexts(prompts.system_prompt)[: None if prompts.contexts else 1]
    wanted = set(MEDIA if prompts.modalities is None else prompts.modalities) - {TEXT.name}
    if not sees:
        require_no_media(prompts)
    if not sees or not wanted:
        return PromptSets(contrast, {}, before)
    media = neutral_probes(
        prompts.probes // QUICK if prompts.quick else prompts.probes,
        prompts.image_size,
        seed,
        before,
        [t for t in contrast.neutral.get("borderline", []) if t not in contrast.wordings],
        prompts.neutral_media,
        alone=prompts.own_wordings,
    )
    return PromptSets(contrast, {m: split for m, split in media.items() if m in wanted}, before)


def require_no_media(prompts: Prompts) -> None:
    """Raises MarsError if ``prompts`` ask for pictures or films, of a model that sees none."""
    media = [m for m in prompts.modalities or [] if m != TEXT.name]
    if media or prompts.neutral_media:
        raise MarsError(
            f"{'--modality ' + media[0] if media else '--neutral-media'}: this model sees no "
            "pictures. A GGUF model needs --mmproj, a transformers model a processor that takes "
            "images."
        )


def renderable(extractor: Extractor, sets: PromptSets) -> PromptSets:
    """Leaves out the contexts that the chat template does not write, of prompts with media too,
    with a note. Raises MarsError for a system prompt."""
    lost = [c for c in sets.contexts if c.messages and not extractor.takes(c)]
    if not lost:
        return sets
    if sets.contexts[0] in lost:
        raise MarsError("--system-prompt: the chat template does not write it. Leave it out.")

    def written(prompt: Prompt) -> Prompt:
        return replace(prompt, context=Preamble()) if prompt.context in lost else prompt

    media = {m: Split(*([written(p) for p in part] for part in s)) for m, s in sets.media.items()}
    kept = [context for context in sets.contexts if context not in lost]
    names = ", ".join(dict.fromkeys(c.name for c in lost))
    note = f"The chat template does not write these contexts, which were not measured: {names}."
    return replace(sets, contexts=kept, media=media, notes=(*sets.notes, note))
