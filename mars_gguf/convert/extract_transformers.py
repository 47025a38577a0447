"""Reads hidden states of a checkpoint of transformers, in torch, without llama.cpp.

Forward hooks on the language model's blocks keep the last token's row of every block's output.
(The last entry of transformers' ``hidden_states`` is after the final norm: no block's output.)
Of a batch, everything but the last tokens goes into a key-value cache once; the last tokens run on
copies of it, as often as another block is to be steered. Where a model's cached pass does not
repeat its plain pass, which is tried on the first batch, whole prompts run each time instead.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mars_gguf.convert.checkpoint_template import CheckpointTemplate
from mars_gguf.convert.choices import CheckpointOptions
from mars_gguf.convert.extractor import Reply
from mars_gguf.convert.prompts import Context, Prompt, Push, Rows
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
Visit = Callable[[int, Any], Any]

# transformers' model types whose architecture has another name in GGUF (gguf.MODEL_ARCH_NAMES).
# Empty: it depends on more than the type, so it is not compared.
_GGUF_NAMES = {
    "mistral": "", "mistral3": "", "mixtral": "", "qwen2_5_vl": "qwen2vl", "cohere": "command-r",
    "phi": "phi2",
}  # fmt: skip


class Batch:
    """A batch of prompts. ``cached``: the last tokens run on a cache of all others."""

    def __init__(self, extractor: TransformersExtractor, inputs: Inputs) -> None:
        self.extractor, self.inputs = extractor, inputs
        self.cached = False
        self._head: Any = None

    def observe(self) -> tuple[Rows, Rows]:
        """Reads hidden states after every block, [n, n_layer, n_embd], and logits of the first
        token, [n, n_vocab], of all prompts of the batch."""
        return self._observe(self._forward)

    def steered(self, layer: int, additions: Rows) -> Rows:
        """Computes the logits of the first token, [n, n_vocab], with ``additions`` [n, n_embd]
        added to the output of block ``layer`` at the last token of each prompt."""

        with self.extractor.visiting(_adding(layer, additions)):
            return self._forward()

    def replies(self, n_tokens: int) -> list[Reply]:
        """Generates the first ``n_tokens`` tokens of the greedy replies to all prompts."""
        return self._replies(None, n_tokens)

    def steered_replies(self, pushes: Sequence[Push], n_tokens: int) -> Iterator[list[Reply]]:
        """Generates these replies for each (layer, additions), which are added at the last token of
        the prompt alone."""
        return (self._replies(push, n_tokens) for push in pushes)

    def _replies(self, push: Push | None, n_tokens: int) -> list[Reply]:
        """Generates on a cache, token by token; without one, from all tokens again for each."""
        tokens: list[Any] = []
        past = copy.deepcopy(self._prefilled()) if self.cached else None
        for step in range(n_tokens):
            visit = None
            if push is not None and not (self.cached and step):
                visit = _adding(*push, -1 if self.cached else -1 - step)
            inputs = self._last(tokens) if self.cached else self._longer(tokens)
            options = {"past_key_values": past} if self.cached else {}
            with self.extractor.visiting(visit):
                output = self.extractor.run(inputs, use_cache=self.cached, **options)
            tokens.append(output.logits[:, -1].argmax(-1))
            past = output.past_key_values if self.cached else None
        return [self.extractor.reply(row) for row in torch.stack(tokens, 1).tolist()]

    def cache_works(self) -> bool:
        """Tries whether the last token on a cache of the others gives what the whole prompt
        gives."""
        whole, _ = self._observe(self._forward_whole)
        try:
            parts, _ = self._observe(self._forward_last)
        except Exception:  # of any kind, from any architecture's code: then not this way
            self._head = None
            return False
        tolerance = max(1e-3, 8 * torch.finfo(self.extractor.model.dtype).eps)
        difference = np.linalg.norm(whole - parts, axis=-1)
        return bool((difference <= tolerance * np.linalg.norm(whole, axis=-1)).all())

    def _observe(self, forward: Callable[[], Rows]) -> tuple[Rows, Rows]:
        extractor = self.extractor
        n = len(self.inputs["input_ids"])
        states = np.empty((n, extractor.n_layer, extractor.n_embd), np.float32)
        missing = set(range(extractor.n_layer))

        def keep(index: int, hidden: Any) -> None:
            if hidden.dim() != 3 or hidden.shape[::2] != (n, extractor.n_embd):
                raise ModelError(
                    f"block {index} puts out a tensor of shape {list(hidden.shape)}, expected "
                    f"[{n}, tokens, {extractor.n_embd}]: this architecture cannot be steered"
                )
            states[:, index] = hidden[:, -1].float().cpu().numpy()
            missing.discard(index)

        with extractor.visiting(keep):
            logits = forward()
        if missing:
            raise ModelError(f"blocks {sorted(missing)} were not run: this model skips blocks")
        if not np.isfinite(states).all():
            raise ModelError(
                f"hidden states in {extractor.model.dtype} have NaN or infinite entries. "
                "Use --dtype bfloat16 or float32."
            )
        return states, logits

    def _forward(self) -> Rows:
        return self._forward_last() if self.cached else self._forward_whole()

    def _forward_whole(self) -> Rows:
        return self._run(self.inputs, use_cache=False)

    def _forward_last(self) -> Rows:
        cache = copy.deepcopy(self._prefilled())
        return self._run(self._last([]), use_cache=True, past_key_values=cache)

    def _last(self, tokens: Sequence[Any]) -> Inputs:
        """Makes inputs of the last token of the prompt, or of ``tokens`` [n] that follow it."""
        ids = tokens[-1][:, None] if tokens else self.inputs["input_ids"][:, -1:]
        mask = _extended(self.inputs["attention_mask"], len(tokens), 1)
        last: Inputs = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self.inputs:
            last["position_ids"] = self.inputs["position_ids"][:, -1:] + len(tokens)
        for deltas in self._rope_deltas():
            positions = mask.sum(-1, keepdim=True) - 1 + deltas
            last["position_ids"] = positions.expand(3, -1, -1)
        return last

    def _longer(self, tokens: Sequence[Any]) -> Inputs:
        """Makes inputs of the prompt and the ``tokens`` [n] that follow it."""
        ids = self.inputs["input_ids"]
        inputs = {
            name: _extended(x, len(tokens), int(name == "attention_mask"))
            if torch.is_tensor(x) and x.shape == ids.shape
            else x
            for name, x in self.inputs.items()
        }
        inputs["input_ids"] = torch.cat([ids, *(t[:, None] for t in tokens)], 1)
        if "position_ids" in inputs:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return inputs

    def _prefilled(self) -> Any:
        if self._head is None:
            self._head = self._prefill()
        return self._head

    def _prefill(self) -> Any:
        """Fills the key-value cache with all tokens but the last."""
        for module in self.extractor.model.modules():
            if hasattr(module, "rope_deltas"):
                module.rope_deltas = None  # of the batch before
        ids = self.inputs["input_ids"]
        head = {
            name: x[:, :-1] if torch.is_tensor(x) and x.shape == ids.shape else x
            for name, x in self.inputs.items()
        }
        with self.extractor.visiting(None):
            return self.extractor.run(head, use_cache=True).past_key_values

    def _rope_deltas(self) -> list[Any]:
        """Reads what to add to the positions after pictures, which take fewer positions than tokens
        (M-RoPE), as the model noted it in the pass over them."""
        deltas = [getattr(m, "rope_deltas", None) for m in self.extractor.model.modules()]
        return [d for d in deltas if d is not None]

    def _run(self, inputs: Inputs, **options: Any) -> Rows:
        logits: Rows = self.extractor.run(inputs, **options).logits[:, -1].float().cpu().numpy()
        return logits


def _adding(layer: int, additions: Rows, position: int = -1) -> Visit:
    """Makes the visit that adds to the output of block ``layer`` at one position of every
    prompt."""

    def add(index: int, hidden: Any) -> Any:
        if index != layer:
            return None
        hidden = hidden.clone()
        hidden[:, position] += torch.from_numpy(additions).to(hidden)
        return hidden

    return add


def _extended(x: Any, n: int, value: int) -> Any:
    """Extends a tensor [prompts, tokens] by ``n`` columns of ``value``."""
    return torch.cat([x, x.new_full((len(x), n), value)], 1)


class TransformersExtractor:
    """A causal or image-text-to-text model of transformers, to be measured.

    model: a local directory, or a hub id.
    images: whether prompts will have pictures, if the model takes them; it then needs its
        processor.

    A model that thinks is measured without thoughts (reasoning "off").

    Raises ModelError for a model that does not load, or that cannot be measured.
    """

    answers_later = False

    def __init__(
        self,
        model: str,
        options: CheckpointOptions | None = None,
        *,
        images: bool = True,
        verbose: bool = False,
    ) -> None:
        if not verbose:
            transformers.utils.logging.disable_progress_bar()
            transformers.utils.logging.set_verbosity_error()
        options = options or CheckpointOptions()
        if options.batch_size < 1:
            raise MarsError(f"--batch-size: found {options.batch_size}, expected at least 1")
        require_checkpoint(model)
        self.name, self.batch_size = model, options.batch_size
        self.backend = f"transformers {transformers.__version__}"
        self._options: Inputs = {"trust_remote_code": options.trust_remote_code}
        if options.revision is not None:
            self._options["revision"] = options.revision
        config = self._load(transformers.AutoConfig)
        if config.is_encoder_decoder:
            raise ModelError(f"{model}: an encoder-decoder model, expected a decoder-only one")
        text = config.get_text_config(decoder=True)
        multimodal = text is not config
        kind = (
            transformers.AutoModelForImageTextToText
            if multimodal
            else transformers.AutoModelForCausalLM
        )
        self.processor = self._processor() if multimodal and images else None
        self.tokenizer = (
            self.processor.tokenizer if self.processor else self._load(transformers.AutoTokenizer)
        )
        self._multimodal = multimodal
        self.template = CheckpointTemplate(
            model,
            self.tokenizer,
            self.processor,
            multimodal=multimodal,
            kwargs=options.chat_template_kwargs,
        )
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = self._load(
            kind, dtype=options.dtype, device_map=_device(options.device)
        ).eval()
        self.n_layer, self.n_embd = text.num_hidden_layers, text.hidden_size
        self._visit: Visit | None = None
        for index, block in enumerate(_blocks(self.model, self.n_layer)):
            block.register_forward_hook(self._hook(index))
        self._accepts = inspect.signature(self.model.forward).parameters
        self._cache_works: dict[int, bool] = {}
        self.fingerprint = self._fingerprint(_architecture(config.model_type, text.model_type))

    def _fingerprint(self, architecture: str) -> ModelFingerprint:
        return ModelFingerprint(
            architecture=architecture,
            name="",  # what GGUF calls general.name is not known here
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            quantization="",
            chat_template_sha256=self.template.sha256,
            tokenizer_sha256=_tokenizer_sha256(self.tokenizer),
            chat_template_kwargs=self.template.variables,
            reasoning=self.template.reasoning,
        )

    @property
    def sees_images(self) -> bool:
        """Whether prompts may have pictures."""
        return self.processor is not None

    def takes(self, context: Context) -> bool:
        """Tells whether the chat template writes what stands in ``context`` before a prompt."""
        try:
            self.template.render(Prompt("Hello", context=context))
        except ModelError:
            return False
        return True

    def reply(self, tokens: list[int]) -> Reply:
        """Makes the reply that these tokens begin, or are, up to the end of the text."""
        ends = {self.tokenizer.eos_token_id}
        stated = getattr(self.model.generation_config, "eos_token_id", None)
        ends |= set(stated if isinstance(stated, list) else [stated])
        length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        return Reply(tokens[0], self.tokenizer.decode(tokens[:length], skip_special_tokens=True))

    def close(self) -> None:
        """Frees the model."""
        del self.model

    # Loading -----------------------------------------------------------------------------------

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

    # Prompts to tensors ------------------------------------------------------------------------

    def _inputs(self, prompts: Sequence[Prompt]) -> Inputs:
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

    # Running -----------------------------------------------------------------------------------

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], Batch]]:
        """Yields batches of ``prompts`` in order, each with the indices of its prompts:
        ``batch_size`` of them, fewer where prompts with and without pictures meet."""
        start = 0
        while start < len(prompts):
            count = len(prompts[start].images)
            stop = start + 1
            while (
                stop < min(len(prompts), start + self.batch_size)
                and len(prompts[stop].images) == count
            ):
                stop += 1
            session = Batch(self, self._inputs(prompts[start:stop]))
            if count not in self._cache_works:
                self._cache_works[count] = session.cache_works()
            session.cached = self._cache_works[count]
            yield list(range(start, stop)), session
            start = stop

    @contextmanager
    def visiting(self, visit: Visit | None) -> Iterator[None]:
        """Makes every pass within this block call ``visit`` (None: nothing) with each block's index
        and output [n, tokens, n_embd], and go on with what it returns, unless that is None."""
        outer, self._visit = self._visit, visit
        try:
            yield
        finally:
            self._visit = outer

    def _hook(self, index: int) -> Any:
        def hook(_block: Any, _inputs: Any, output: Any) -> Any:
            if self._visit is None:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            changed = self._visit(index, hidden)
            if changed is None or not isinstance(output, tuple):
                return changed
            return (changed, *output[1:])

        return hook

    def run(self, inputs: Inputs, **options: Any) -> Any:
        """Runs the model on ``inputs``; with logits of the last token alone where it can choose."""
        if "logits_to_keep" in self._accepts:
            options["logits_to_keep"] = 1
        try:
            with torch.inference_mode():
                return self.model(**inputs, **options)
        except MarsError:
            raise
        except Exception as error:  # of any kind, from any architecture's code
            shape = " x ".join(map(str, inputs["input_ids"].shape))
            raise ModelError(
                f"{self.name}: its forward pass failed on {shape} tokens "
                f"({' '.join(str(error).split()):.400}). If memory ran out, try a smaller "
                "--batch-size or --dtype bfloat16."
            ) from error


def require_checkpoint(model: str) -> None:
    """Raises ModelError unless ``model`` is a directory with a model in it, or looks like a hub id
    (ORG/NAME)."""
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


def _device(name: str) -> str:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available.get(name):
        found = ", ".join(device for device, there in available.items() if there)
        raise MarsError(f"--device: found {name!r}, this machine has {found}")
    return name


def _blocks(model: Any, n_layer: int) -> Any:
    """Finds the language model's list of blocks: the outermost of ``n_layer`` modules within it."""
    for name, module in model.get_decoder().named_modules():
        tower = re.search("vision|visual|image|audio|speech", name)
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layer and not tower:
            return module
    raise ModelError(
        f"{type(model).__name__}: found no list of {n_layer} blocks in its language model: this "
        "architecture cannot be measured"
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
