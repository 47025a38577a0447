"""Reads the settings of the server, those of ``llama_cpp.server`` and ours, from flags, environment
variables or a configuration file."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import llama_cpp.server.settings as upstream
from llama_cpp.server.cli import add_args_from_model
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_settings import SettingsConfigDict

from mars_gguf.errors import MarsError
from mars_gguf.formats import HANDLERS
from mars_gguf.options import servers
from mars_gguf.reasoning import Reasoning
from mars_gguf.vectors.shelf import AUTO

DEFAULT_VECTOR, UNSTEERED = "default", "none"
# Values of chat_format: those that mean the chat template of the model's GGUF, those that name
# another template, and both, which is all that SteeredLlama can write prompts in.
OWN_FORMATS = (None, "chat_template.default", "mtmd", "gemma4")
TEMPLATES = tuple(name for name in HANDLERS if name not in OWN_FORMATS)
RENDERED_FORMATS = (*OWN_FORMATS, *TEMPLATES)
# Our own yes-or-no settings, by the other names of their flags, which say yes by themselves.
SWITCHES = {
    "force": "force_vector",
    "allow-client-control": "allow_client_control",
    "allow-private-media": "allow_private_media",
    "chat-only": "chat_only",
    "parse-special": "parse_special",
    "log-prompts": "log_prompts",
}


class ModelSettings(upstream.ModelSettings):
    """Settings of a model: those of ``llama_cpp.server``, and the vector that steers it."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    vector: str = ""
    """Vector file that mars_gguf.convert wrote; auto: the one that belongs to the model's weights,
    of those in $MARS_VECTORS, else the user's cache, and in vectors_from; none, for a model that is
    served unsteered beside others."""
    vectors_from: list[str] = Field([])
    """Repositories of a Hugging Face hub with vectors, ORG/NAME (default: those that
    $MARS_VECTORS_FROM names)."""
    mmproj: str = ""
    """Multimodal projector (GGUF); another name for clip_model_path."""
    vectors: dict[str, str] = Field({})
    """Further vector files by id, as a JSON object. With allow_client_control a request may name
    one of these ids."""
    force_vector: bool = False
    """Use vectors made for another quantization or chat template of the model, that of a
    chat_format or other chat_template_kwargs for one."""
    parse_special: bool = False
    """Obey special tokens, such as the end of a turn, in what clients write as users or tools; else
    they are text."""
    rpc_servers: Optional[str] = None  # noqa: UP045 - as the reader of flags wants it
    """HOST:PORT,... of machines that layers go to by llama.cpp's RPC backend, all of them without
    n_gpu_layers."""
    reasoning: Reasoning | None = None
    """For models that think. off: without thoughts; thought, answer: with them, and the token that
    is judged and steered is the first of the thought, or of the answer after it (default: as the
    vector was measured)."""
    verbose: bool = False
    """Show what llama.cpp says."""


class ServerSettings(upstream.ServerSettings):
    """Settings of the server: those of ``llama_cpp.server``, and what clients may do."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    interrupt_requests: bool = False
    """Whether to cut a streamed reply short when a new request is received."""
    allow_client_control: bool = False
    """Let a request choose among the vectors given at start-up, by id."""
    allow_private_media: bool = False
    """Fetch pictures and films from private, loopback and link-local addresses too."""
    chat_only: bool = False
    """Refuse what a client could write the beginning of a reply with: completions of raw prompts,
    grammar, response_format, a chosen tool, logit_bias."""
    max_video_frames: int = Field(32, ge=1)
    """Most frames shown of a film."""
    max_media_pixels: int = Field(16 << 20, ge=1)
    """Most pixels that the pictures of one request may have; frames of films are scaled down to
    it."""
    max_media_bytes: int = Field(20 << 20, ge=1)
    """Most bytes that the pictures and films of one request may have."""
    max_held_bytes: int = Field(512 << 20, ge=1)
    """Most bytes of requests and of their pictures that are held at a time, of those that wait for
    the model, too, and at most as many of one client as it leaves for others; a request of 256 KiB
    or less, or one alone, is always taken."""
    reply_timeout: float = Field(900.0, gt=0)
    """Seconds that the model works on one request; a stream ends then as at max_tokens."""
    turn_timeout: float = Field(900.0, gt=0)
    """Seconds after which a reply ends so where requests of other clients wait for the model."""
    allowed_hosts: list[str] = Field([])
    """Names that requests may call the server by, besides those of this machine (default: any, or
    none if it listens on a loopback address without an api_key)."""
    cors_allow_origins: list[str] = Field([])
    """Origins of web pages that may ask the server, such as https://example.org, or * for all."""
    log_prompts: bool = False
    """Write prompts into the log."""


class Settings(ServerSettings, ModelSettings):
    """Settings of a server with one model."""


class ConfigFileSettings(ServerSettings):
    """Settings in a configuration file: the server's, and a list of models."""

    models: list[ModelSettings] = Field(default=[], description="Model configs")


def _yes_or_no(text: str) -> bool:
    return TypeAdapter(bool).validate_python(text)


def parser() -> argparse.ArgumentParser:
    """Takes every setting as ``--name VALUE``, our own switches as ``--dashed-name`` too."""
    p = argparse.ArgumentParser(
        prog="mars-gguf server",
        description="Serve steered models behind the OpenAI API. Takes every option, environment "
        "variable and configuration file of llama_cpp.server.",
    )
    own = {*SWITCHES.values(), "rpc_servers"}
    fields = {name: field for name, field in Settings.model_fields.items() if name not in own}
    add_args_from_model(p, SimpleNamespace(model_fields=fields))  # type: ignore[arg-type]
    p.add_argument("--config_file", "--config-file", metavar="FILE", help="JSON or YAML")
    p.add_argument(
        "--rpc",
        "--rpc_servers",
        dest="rpc_servers",
        type=servers,
        metavar="HOST:PORT,...",
        help=Settings.model_fields["rpc_servers"].description,
    )
    p.add_argument("--demo", action="store_true", help="serve the small model of the package")
    for switch, name in SWITCHES.items():
        p.add_argument(
            f"--{switch}",
            f"--{name}",
            dest=name,
            nargs="?",
            const=True,
            type=_yes_or_no,
            metavar="true|false",
            help=Settings.model_fields[name].description,
        )
    return p


def read_settings(argv: list[str] | None) -> tuple[ServerSettings, list[ModelSettings]]:
    """Reads the settings of the server and of its models. Flags win over the configuration file,
    and that over environment variables. Raises MarsError."""
    args = parser().parse_args(argv)
    config_file = args.config_file or os.environ.get("CONFIG_FILE")
    given = {k: v for k, v in vars(args).items() if v is not None and k in Settings.model_fields}
    if args.demo:
        if config_file or given.keys() & {"model", "mmproj", "clip_model_path", "vector"}:
            raise MarsError("--demo brings its own model: give it or another model, not both")
        given = _demo() | given
    try:
        if config_file:
            server, models = _from_file(config_file, given)
        else:
            server = Settings(**given)
            own = server.model_dump(include=set(ModelSettings.model_fields))
            models = [ModelSettings(**own)]
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()
        ]
        raise MarsError("\n".join(["settings:", *lines, "--help lists them."])) from error
    for model in models:
        _complete(model)
        if model.verbose and model.clip_model_path and not server.log_prompts:
            raise MarsError(
                "verbose makes llama.cpp print prompts with pictures: give --log-prompts "
                "as well, or leave verbose off"
            )
    if models[0].vector == UNSTEERED:
        raise MarsError(
            f"{models[0].model_alias}: vector none: the first model is that of requests which name "
            "none. Put a model that is steered before it, in a configuration file."
        )
    names = [model.model_alias for model in models]
    if len(set(names)) < len(names):
        raise MarsError(f"models of the same name ({names}): give each a model_alias")
    return server, models


def _from_file(path: str, given: dict[str, Any]) -> tuple[ServerSettings, list[ModelSettings]]:
    if stray := sorted(given.keys() & ModelSettings.model_fields.keys()):
        raise MarsError(f"--{stray[0]}: say it in the configuration file, for each model")
    settings = ConfigFileSettings(**(_read(path) | given))
    if not settings.models:
        raise MarsError(f"{path}: no models, expected a list of them under 'models'")
    return settings, settings.models


def _complete(model: ModelSettings) -> None:
    """Fills in what follows from other settings; raises MarsError for what contradicts them."""
    name = model.model_alias or Path(model.model).name
    if not model.vector:
        raise MarsError(
            f"{name}: no vector. Make one with python -m mars_gguf.convert, then give it with "
            "--vector, or as vector in the configuration file: this server does not run models "
            "unsteered."
        )
    if taken := model.vectors.keys() & {DEFAULT_VECTOR, UNSTEERED}:
        raise MarsError(f"{name}: vectors: the id {min(taken)!r} has a meaning of its own")
    if model.vectors and model.vector == UNSTEERED:
        raise MarsError(f"{name}: vector none and vectors: give one of them")
    if model.vector == AUTO and model.force_vector:
        raise MarsError(
            f"{name}: vector auto takes what fits by itself: give the file, or no force_vector"
        )
    if model.vector != AUTO and model.vectors_from:
        raise MarsError(f"{name}: vectors_from is for vector auto: give it, or leave this out")
    if model.mmproj and model.clip_model_path not in (None, model.mmproj):
        raise MarsError(f"{name}: mmproj and clip_model_path name different files: give one")
    model.model_alias = name  # llama_cpp.server would show clients the path
    model.clip_model_path = model.mmproj or model.clip_model_path
    if model.chat_format in RENDERED_FORMATS:
        return  # of these the vector says whether it was measured with them
    if not model.force_vector and model.vector != UNSTEERED:
        raise MarsError(
            f"{name}: chat_format: found {model.chat_format!r}, with which no vector is measured. "
            f"Leave it out for the chat template of the model's GGUF, name one of "
            f"{', '.join(TEMPLATES)}, or give --force (force_vector) to use the vector all the "
            "same."
        )
    if model.clip_model_path:
        raise MarsError(
            f"{name}: chat_format {model.chat_format!r} takes no mmproj. Leave it out, or give "
            "the one that belongs to the model."
        )


def _demo() -> dict[str, Any]:
    from mars_gguf import demo_model

    return {
        "model": str(demo_model.TEXT_MODEL),
        "mmproj": str(demo_model.MMPROJ),
        "vector": str(demo_model.VECTOR),
        "model_alias": "demo",
        "n_ctx": 0,  # as the model was trained
    }


def _read(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith((".yaml", ".yml")):
            import yaml  # type: ignore[import-untyped]

            content = yaml.safe_load(text)
        else:
            content = json.loads(text)
    except OSError as error:
        raise MarsError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # ValueError, or YAMLError where yaml is installed
        raise MarsError(f"{path}: not a configuration file: {error}") from error
    if not isinstance(content, dict):
        raise MarsError(f"{path}: found a {type(content).__name__}, expected an object of settings")
    return content
