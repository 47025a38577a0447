"""Measure a model's refusal geometry and write it as a control-vector file, with a card and a plot
beside it.

    python -m mars_gguf.convert MODEL.gguf [--mmproj MMPROJ.gguf] [-o VECTOR.gguf]
    python -m mars_gguf.convert -hfr ORG/NAME -hff '*Q4_K_M.gguf' [-o VECTOR.gguf]
    python -m mars_gguf.convert DIRECTORY-OR-HUB-ID [-o VECTOR.gguf]
    python -m mars_gguf.convert DIRECTION.{safetensors,npz,gguf} --model MODEL [--layer N]
    python -m mars_gguf.convert --recipe convert/NAME.toml
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mars_gguf.console import command, printable
from mars_gguf.convert.artefacts import Artefact, is_artefact, read_artefact
from mars_gguf.convert.choices import Calibration, CheckpointOptions, GgufOptions, Prompts, chosen
from mars_gguf.convert.conversion import convert, is_gguf
from mars_gguf.convert.recipes import read_recipe
from mars_gguf.errors import MarsError
from mars_gguf.modalities import MODALITIES
from mars_gguf.options import (
    Group,
    add_device_arguments,
    add_file_arguments,
    add_template_arguments,
    add_template_variables_argument,
    add_threads_argument,
    add_verbose_argument,
    gguf_files,
    option,
    require_one_source,
    switch,
)

# What a recipe leaves to the command line: the machine, and what is shown.
BESIDE_RECIPE = "recipe output n_gpu_layers rpc threads trust_remote_code quiet verbose".split()
# How a choice is spelled where a user makes it, if not as an option of its name.
SPELLED = {
    "rpc_servers": "--rpc", "n_threads": "--threads", "n_ctx": "model.ctx_size",
    "n_thought": "model.reasoning_budget", "dtype": "model.dtype", "revision": "model.revision",
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="mars-gguf convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What has no option has a key of a recipe: docs/CONVERTING.md.",
    )
    p.add_argument(
        "input",
        nargs="?",
        metavar="MODEL",
        help="a GGUF file; a transformers directory or hub id (ORG/NAME); or a file with a "
        "direction that was measured elsewhere (docs/CONVERTING.md says how it looks)",
    )
    option(p, "-o --output FILE", "vector file (default: MODEL-mars.gguf in this directory)")
    switch(p, "--quick", "measure on a quarter of the prompts; the card says with what confidence")
    option(p, "--recipe FILE", "convert as this TOML file says", Path)
    switch(p, "-q --quiet", "no progress bar")
    add_verbose_argument(p)
    files = p.add_argument_group("where the model is")
    add_file_arguments(files, "the same as MODEL; beside a direction, the model that it is for")
    words = "block of a direction measured elsewhere, 0-based, if its file does not say"
    option(files, "--layer N", words, int)
    switch(files, "--trust-remote-code", "run code that comes with a transformers model")
    add_prompt_arguments(p.add_argument_group("what to measure with"))
    written = p.add_argument_group("how prompts are written")
    add_template_arguments(written)
    add_template_variables_argument(written)
    machine = p.add_argument_group("machine (GGUF models)")
    add_device_arguments(machine)
    add_threads_argument(machine)
    return p


def add_prompt_arguments(group: Group) -> None:
    """Adds the options that say what a model is measured with."""
    words = "harmful prompts, one a line or JSON Lines (default: built in)"
    option(group, "--harmful FILE", words)
    option(group, "--harmless FILE", "harmless prompts, likewise")
    option(
        group,
        "--neutral-text FILE",
        "harmless text besides --harmless, borderline requests above all, likewise (default: built "
        "in, without --harmful none)",
    )
    option(
        group,
        "--neutral-media PATH",
        "your own harmless pictures instead of drawn ones: a directory, its folders kinds, or a "
        ".jsonl file that pairs pictures with prompts",
    )
    words = "measure everything under this system prompt, which the model will be used with"
    option(group, "--system-prompt FILE", words)
    words = "measure text and this alone; can be repeated (default: all that the model takes)"
    group.add_argument(
        "--modality", dest="modalities", action="append", choices=MODALITIES, help=words
    )
    option(
        group,
        "--over-refusal SHARE",
        "share of neutral inputs, borderline ones among them, that may open the gate, at "
        "most, with 95 %% confidence (default: 0.1 of text; of pictures and of films 0.05 to 0.2, "
        "as much as is needed)",
        float,
    )


def main(argv: list[str] | None = None) -> None:
    p = parser()
    args = p.parse_args(argv)
    with command():
        if args.recipe:
            follow_recipe(args, p)
        run(args)


def follow_recipe(args: argparse.Namespace, p: argparse.ArgumentParser) -> None:
    """Sets the options that the recipe states. Raises MarsError for options beside it."""
    given = [name for name, value in vars(args).items() if value != p.get_default(name)]
    if beside := [name for name in given if name not in BESIDE_RECIPE]:
        raise MarsError(
            f"--recipe says what to measure: found {', '.join(beside)} beside it. Change a copy of "
            "the recipe, or leave it out."
        )
    for name, value in read_recipe(args.recipe).items():
        if name != "output" or args.output is None:
            setattr(args, name, value)


def run(args: argparse.Namespace) -> None:
    """Converts as the command line says. Raises MarsError before anything is written."""
    from mars_gguf.loading import say
    from mars_gguf.vectors.describe import describe

    direction, model, mmproj = _inputs(args)
    given = vars(args) | {"rpc_servers": args.rpc, "n_threads": args.threads}
    named = Path(args.input or model)
    conversion = convert(
        model,
        mmproj,
        direction=direction,
        prompts=chosen(Prompts, given, system_prompt=_system_prompt(args.system_prompt)),
        calibration=chosen(Calibration, given),
        options=options_for(model, given),
        quantization=given.get("quantization"),
        source={"recipe": printable(args.recipe.name)} if args.recipe else {},
        output=args.output or f"{named.stem if named.is_file() else named.name}-mars.gguf",
        progress=not args.quiet,
        say=say,
        verbose=args.verbose,
    )
    if untested := given.get("untested"):
        conversion.warnings.insert(0, f"The recipe was shipped untested: {untested}")
    written, *beside = conversion.write()
    print(describe(conversion.vector))
    for warning in conversion.warnings:
        print(f"warning: {warning}")
    print(f"wrote {written}, {', '.join(path.name for path in beside)}")


# What the options say ----------------------------------------------------------------------------


def _inputs(args: argparse.Namespace) -> tuple[Artefact | None, str, str | None]:
    """(what was measured elsewhere, the model, its mmproj)."""
    require_one_source(args)
    given, named = None, args.input or args.model
    second = args.input is not None and bool(args.model or args.hf_repo)
    if named is not None and is_artefact(Path(named)):
        given = read_artefact(Path(named), args.layer)
        if not second:
            raise MarsError(
                f"{named}: holds a direction, no model. What else a vector needs is measured on "
                "the model: give it with --model."
            )
    elif second or args.layer is not None:
        raise MarsError(
            "--model and --layer go with a direction measured elsewhere; "
            f"{named or args.hf_repo} is none"
        )
    model, mmproj = gguf_files(args)
    model = model or args.input
    if model is None:
        raise MarsError("no model: give a GGUF file, a transformers model, or --recipe")
    return given, model, mmproj


def options_for(model: str, given: Mapping[str, Any]) -> GgufOptions | CheckpointOptions:
    """The choices among ``given`` that are for this kind of model. Raises MarsError for one that
    would change nothing for it."""
    kinds = {True: GgufOptions, False: CheckpointOptions}
    group, other = kinds[is_gguf(model)], kinds[not is_gguf(model)]
    ours = {field.name for field in fields(group)}
    for field in fields(other):
        value = given.get(field.name, field.default)
        if field.name not in ours and value not in (field.default, "off"):
            name = SPELLED.get(field.name, f"--{field.name.replace('_', '-')}")
            kind, needed = ("GGUF", "transformers")[:: 1 if is_gguf(model) else -1]
            raise MarsError(
                f"{name} goes with {needed} models, {model} is a {kind} model: it would change "
                "nothing. Leave it out."
            )
    return chosen(group, given)


def _system_prompt(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MarsError(f"{file}: cannot be read as text ({error})") from error
    if not text:
        raise MarsError(f"{file}: is empty, expected a system prompt")
    return text


if __name__ == "__main__":
    main()
