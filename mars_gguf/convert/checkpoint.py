"""Loads a checkpoint of transformers, makes tensors of prompts, and runs it."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf

from mars_gguf.convert.checkpoint_template import CheckpointTemplate
from mars_gguf.convert.choices import CheckpointOptions
from mars_gguf.convert.extractor import Opening
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import MarsError, ModelError
from mars_gguf.vectors import ModelFingerprint

try:
    import torch
    import transformers
except ImportError as error:
    raise MarsError(
        f"converting from transformers needs torch and transformers ({error}): "
        "pip install 'mars-gguf[convert]'"
    ) from error

Inputs = dict[str, Any]

# transformers' model types whose architecture has another name in GGUF (gguf.MODEL_ARCH_NAMES).
# Empty: it depends on more than the type, so it is not compared.
_GGUF_NAMES = {
    "mistral": "", "mistral3": "", "mixtral": "", "qwen2_5_vl": "qwen2vl", "cohere": "command-r",
    "phi": "phi2",
}  # fmt: skip


class Checkpoint:
    """A causal or image-text-to-text model of transformers.

    name: a local directory, or a hub id.
    images: whether prompts will have pictures, if the model takes them; it then needs its
        processor.

    Raises ModelError for a model that does not load, or that cannot be measured.
    """

    def __init__(self, name: str, options: CheckpointOptions, *, images: bool) -> None:
        require_checkpoint(name)
        self.name = name
        self._options: Inputs = {"trust_remote_code": options.trust_remote_code}
        if options.revision is not None:
            self._options["revision"] = options.revision
        config = self._load(transformers.AutoConfig)
        if config.is_encoder_decoder:
            raise ModelError(f"{name}: an encoder-decoder model, expected a decoder-only one")
        text = config.get_text_config(decoder=True)
        self._multimodal = multimodal = text is not config
        self.processor = self._processor() if multimodal and images else None
        self.tokenizer = (
            self.processor.tokenizer if self.processor else self._load(transformers.AutoTokenizer)
        )
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.template = CheckpointTemplate(
            name,
            self.tokenizer,
            self.processor,
            multimodal=multimodal,
            kwargs=options.chat_template_kwargs,
        )
        kind = "AutoModelForImageTextToText" if multimodal else "AutoModelForCausalLM"
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else device
        self.model = self._load(
            getattr(transformers, kind), dtype=options.dtype, device_map=device
        ).eval()
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}
        self._ends = ends - {None}
        self.model.generation_config = transformers.GenerationConfig(
            do_sample=False,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self._accepts = inspect.signature(self.model.forward).parameters
        self.fingerprint = ModelFingerprint(
            architecture=_architecture(config.model_type, text.model_type),
            name="",  # what GGUF calls general.name is not known here
            n_layer=text.num_hidden_layers,
            n_embd=text.hidden_size,
            quantization="",
            chat_template_sha256=self.template.sha256,
            tokenizer_sha256=_tokenizer_sha256(self.tokenizer),
            chat_template_kwargs=self.template.variables,
            reasoning=self.template.reasoning,
        )

    @property
    def blocks(self) -> Any:
        """The blocks of the language model: the outermost list of so many modules within it."""
        n_layer = self.fingerprint.n_layer
        for name, module in self.model.get_decoder().named_modules():
            tower = re.search("vision|visual|image|audio|speech", name)
            if isinstance(module, torch.nn.ModuleList) and len(module) == n_layer and not tower:
                return module
        raise ModelError(
            f"{type(self.model).__name__}: found no list of {n_layer} blocks in its language "
            "model: this architecture cannot be measured"
        )

    def inputs(self, prompts: Sequence[Prompt]) -> Inputs:
        """Makes the tensors of some prompts, all of them with pictures or none."""
        texts = [self.template.render(prompt) for prompt in prompts]
        images = [[image.convert("RGB") for image in prompt.images] for prompt in prompts]
        begun = self.tokenizer.bos_token is not None and texts[0].startswith(
            self.tokenizer.bos_token
        )
        # As llama.cpp does: the template alone for text models; with a projector the tokenizer adds
        # what the text leaves out.
        options = {
            "padding": True,
            "return_tensors": "pt",
            "add_special_tokens": self._multimodal and not begun,
        }
        if not images[0]:
            encoded = self.tokenizer(texts, **options)
        elif self.processor is None:
            raise ModelError(f"{self.name}: a prompt with pictures, but no processor for them")
        else:
            try:
                encoded = self.processor(text=texts, images=images, **options)
            except (ValueError, TypeError, IndexError) as error:
                raise ModelError(
                    f"{self.name}: its processor does not take {len(images[0])} picture(s) in one "
                    f"prompt: {error}"
                ) from error
        device, dtype = self.model.device, self.model.dtype
        inputs = {
            name: x.to(device, dtype if x.is_floating_point() else None)
            for name, x in encoded.items()
            if torch.is_tensor(x) and (name in self._accepts or name != "token_type_ids")
        }
        if not self._multimodal and "position_ids" in self._accepts:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return inputs

    def run(self, inputs: Inputs) -> Any:
        """Runs the model on ``inputs``; with logits of the last token alone where it can choose."""
        options = {"logits_to_keep": 1} if "logits_to_keep" in self._accepts else {}
        with self._errors_of(inputs):
            return self.model(**inputs, use_cache=False, **options)

    def replies(self, inputs: Inputs, n_tokens: int) -> list[Opening]:
        """Generates the first ``n_tokens`` tokens of the greedy replies."""
        asked = {name: x for name, x in inputs.items() if name != "position_ids"}
        with self._errors_of(inputs):
            rows = self.model.generate(**asked, max_new_tokens=n_tokens)
        return [self.reply(row) for row in rows[:, inputs["input_ids"].shape[1] :].tolist()]

    @contextmanager
    def _errors_of(self, inputs: Inputs) -> Iterator[None]:
        """Turns whatever any architecture's code raises into a ModelError."""
        try:
            with torch.inference_mode():
                yield
        except MarsError:
            raise
        except Exception as error:
            shape = " x ".join(map(str, inputs["input_ids"].shape))
            raise ModelError(
                f"{self.name}: its forward pass failed on {shape} tokens "
                f"({' '.join(str(error).split()):.400}). If memory ran out, try a recipe with "
                "model.dtype = 'bfloat16', or fewer prompts at once (CheckpointOptions.batch_size)."
            ) from error

    def reply(self, tokens: list[int]) -> Opening:
        """Makes the reply that these tokens begin, or are, up to the end of the text."""
        length = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        return Opening(tokens[0], self.tokenizer.decode(tokens[:length], skip_special_tokens=True))

    def _load(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self.name, **self._options, **options)
        except Exception as error:  # whatever its readers of files make of these
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{self.name}: transformers could not load it as {kind.__name__}: {reason:.400}"
            ) from error

    def _processor(self) -> Any:
        advice = "To measure text alone, use --modality text."
        try:
            processor = self._load(transformers.AutoProcessor)
        except ModelError as error:
            raise ModelError(f"{error}. {advice}") from error
        if getattr(processor, "image_processor", None) is None:
            raise ModelError(f"{self.name}: its processor takes no images. {advice}")
        return processor


def require_checkpoint(model: str) -> None:
    """Raises ModelError unless ``model`` is a directory with a model, or looks like a hub id."""
    path = Path(model)
    if not path.exists():
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model):
            return
        raise ModelError(f"{model}: no such file or directory, and not a hub id (ORG/NAME)")
    if not path.is_dir():
        raise ModelError(f"{model}: not a directory, expected a transformers model")
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{model}: no config.json in this directory, expected a transformers model (as "
            "save_pretrained writes it)"
        )
    if not any(f.suffix in (".safetensors", ".bin") for f in path.iterdir()):
        raise ModelError(
            f"{model}: no weights in this directory, expected *.safetensors beside config.json. "
            "Is the download complete?"
        )


def _architecture(*model_types: str) -> str:
    """Finds GGUF's name for the architecture of a model of one of these types; "" if not sure."""
    plain = {re.sub(r"\W|_", "", name): name for name in gguf.MODEL_ARCH_NAMES.values()}
    for model_type in model_types:
        name = model_type.removesuffix("_text")
        if name in _GGUF_NAMES:
            return _GGUF_NAMES[name]
        if (found := plain.get(re.sub(r"\W|_", "", name))) is not None:
            return found
    return ""


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Hashes the tokens as the fingerprint of the GGUF of the same model does. "" for tokenizers
    that are no byte-level BPE: converting to GGUF changes texts of theirs."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = type(getattr(backend, "decoder", None)).__name__
    if backend is None or type(backend.model).__name__ != "BPE" or decoder != "ByteLevel":
        return ""
    texts = hashlib.sha256()
    for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer))):
        if token is not None:
            texts.update(token.encode() + b"\n")
    return texts.hexdigest()
