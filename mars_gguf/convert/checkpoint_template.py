"""Writes the prompts of a checkpoint of transformers. Knows a tokenizer when it is given one, and
imports neither transformers nor torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import ModelError
from mars_gguf.runtime.template import ChatTemplate, recognised

Message = dict[str, Any]
PROBE = "Is this text shown?"  # to see what a template does with a text


class CheckpointTemplate:
    """The chat template of a checkpoint's processor, or of its tokenizer.

    name: what messages call the checkpoint. processor: None for a model that is to see nothing.
    multimodal: whether the model was made to see. kwargs: variables for the template.

    Raises ModelError if there is no template, or if it shows no text however it is asked.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        processor: Any,
        *,
        multimodal: bool,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.tokenizer, self.sees = name, tokenizer, processor is not None
        self.kwargs = dict(kwargs or {})
        source = getattr(processor, "chat_template", None) or tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        if not source:
            raise ModelError(
                f"{name}: this model has no chat template, expected a chat model: refusal is "
                "measured on chat prompts. Use the instruct version of the model."
            )
        self.source = str(source)
        self._off = _without_thoughts(self.source)
        self._pinned = pinned = {} if self._off is None else self._off.pinned
        if set_ := [key for key in pinned if self.kwargs.get(key, pinned[key]) != pinned[key]]:
            raise ModelError(
                f"{name}: found the chat template variable {set_[0]} = {self.kwargs[set_[0]]!r}; "
                "transformers models are measured without thoughts. Convert the GGUF, or leave it "
                "out."
            )
        self._formatter = None if multimodal else recognised(self.source)
        self._wants_parts = self._learn_content(multimodal)

    @property
    def sha256(self) -> str:
        """The hash of the template's text, hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def reasoning(self) -> str:
        """ "off" for a model that thinks, "" for another (mars_gguf.reasoning)."""
        return "off" if self._off is not None else ""

    @property
    def variables(self) -> str:
        """The variables for the template as JSON, keys sorted, for the fingerprint."""
        return json.dumps(self.kwargs, sort_keys=True)

    def render(self, prompt: Prompt) -> str:
        """Writes ``prompt``, to be continued by the assistant, with the processor's marker for each
        picture and each frame of a film. Raises ModelError if the user's text, or one of the
        context before it, is not in what the template writes."""
        before = prompt.context.messages
        return self._rendered(prompt.text, len(prompt.images), self._wants_parts, before)

    def _learn_content(self, multimodal: bool) -> bool:
        """Finds out whether the template is to be given typed parts, else strings. Templates of
        models that see want parts, those of text models strings; each kind may drop the other
        silently."""
        failures = []
        for parts in (True, False) if multimodal else (False, True):
            try:
                alone = self._rendered(PROBE, 0, parts)
                if not self.sees or self._rendered(PROBE, 1, parts) != alone:
                    return parts
                failures.append("it shows no pictures")
            except ModelError as error:
                failures.append(str(error))
        raise ModelError(f"{self.name}: the chat template cannot be used: {failures[0]}")

    def _rendered(
        self, text: str, n_images: int, parts: bool, before: Sequence[Mapping[str, str]] = ()
    ) -> str:
        user: Message = {"role": "user", "content": text}
        messages = [*(dict(message) for message in before), user]
        if parts:
            for message in messages:
                message["content"] = [{"type": "text", "text": message["content"]}]
            user["content"] = [{"type": "image"}] * n_images + list(user["content"])
        rendered = self._written(messages)
        for shown in [*(message["content"] for message in before), text]:
            if shown.strip() not in rendered:
                raise ModelError(
                    f"{self.name}: the chat template loses the text {shown!r:.60}, expected it in "
                    "the prompt that it renders"
                )
        return rendered

    def _written(self, messages: list[Message]) -> str:
        try:
            if self._formatter is not None:
                return str(self._formatter(messages=messages).prompt)
            text = str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=True,
                    **self.kwargs | self._pinned,
                )
            )
            return text if self._off is None else self._off.ended(text)
        except Exception as error:  # jinja2's, or whatever the template calls
            raise ModelError(f"{self.name}: the chat template fails: {error}") from error


def _without_thoughts(source: str) -> ChatTemplate | None:
    """The runtime's template of a model that thinks, told not to; None for another model."""
    try:
        template = ChatTemplate(source, reasoning="off")
    except ModelError:  # what is wrong with it, is said when it is used
        return None
    return template if template.thinks is not None else None
