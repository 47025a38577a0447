"""The fingerprint of a model: what decides whether a vector belongs to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

FORGIVABLE = {
    "name", "quantization", "chat_template_sha256", "chat_template_kwargs", "weights_sha256",
    "mmproj_sha256", "reasoning",
}  # fmt: skip


@dataclass(frozen=True)
class ModelFingerprint:
    """Identifies the model that a vector was measured on.

    An empty string means "not known"; of ``reasoning`` (mars_gguf.reasoning) it means that the
    model does not think, or that it was not known to.
    """

    architecture: str
    name: str
    n_layer: int
    n_embd: int
    quantization: str
    chat_template_sha256: str
    tokenizer_sha256: str
    chat_template_kwargs: str = "{}"  # as JSON, keys sorted
    weights_sha256: str = ""  # of a sample of them, as of the mmproj's
    mmproj_sha256: str = ""
    reasoning: str = ""

    def differing(self, other: ModelFingerprint, *, force: bool = False) -> list[str]:
        """Names the fields in which ``other`` differs from self and must not.

        ``force`` allows another name, quantization, other weights, another mmproj or chat template
        with its variables, and another way of thinking; the architecture, the shape and the
        tokenizer must always agree.
        """
        mine, theirs = asdict(self), asdict(other)
        return [
            key
            for key in mine
            if mine[key] != theirs[key]
            and (key == "reasoning" or (mine[key] != "" and theirs[key] != ""))
            and not (force and key in FORGIVABLE)
        ]

    def differences(self, other: ModelFingerprint, *, force: bool = False) -> list[str]:
        """Says in one line each what `differing` names."""
        return [
            f"{key}: the vector was made for {_short(getattr(self, key))}, this model has "
            f"{_short(getattr(other, key))}"
            for key in self.differing(other, force=force)
        ]


def _short(value: object) -> str:
    text = str(value) or "none"
    return text[:12] + "..." if len(text) == 64 else f"{text:.100}"
