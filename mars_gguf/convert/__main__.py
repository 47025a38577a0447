"""Measure a model's refusal geometry and write it as a control-vector file, with a card and a plot
beside it.

    python -m mars_gguf.convert MODEL.gguf [--mmproj MMPROJ.gguf] [-o VECTOR.gguf]
    python -m mars_gguf.convert -hfr ORG/NAME -hff '*Q4_K_M.gguf' [-o VECTOR.gguf]
    python -m mars_gguf.convert DIRECTORY-OR-HUB-ID [-o VECTOR.gguf]
    python -m mars_gguf.convert DIRECTION.{safetensors,npz,pt,gguf} --model MODEL [--layer N]
    python -m mars_gguf.convert --recipe convert/NAME.toml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mars_gguf.console import command, printable
from mars_gguf.convert.artefacts import Artefact, is_artefact, read_artefact
from mars_gguf.convert.choices import Calibration, CheckpointOptions, GgufOptions, Prompts, chosen
from mars_gguf.convert.geometry import SHRINKAGE, read_shrinkage
from mars_gguf.convert.loader import is_gguf
from mars_gguf.convert.recipes import read_recipe
from mars_gguf.errors import MarsError
from mars_gguf.modalities import MODALITIES
from mars_gguf.options import (
    Group,
    add_checkpoint_arguments,
    add_context_argument,
    add_device_arguments,
    add_file_arguments,
    add_prompt_arguments,
    add_template_arguments,
    add_threads_argument,
    add_verbose_argument,
    gguf_files,
    layer_range,
    option,
    positive,
    require_one_source,
    seed,
    switch,
)
from mars_gguf.reasoning import N_THOUGHT

# What a recipe leaves to the command line: the machine, and what is shown.
BESIDE_RECIPE = (
    "recipe output device batch_size n_gpu_layers rpc threads trust_remote_code no_plot quiet "
    "verbose"
).split()

GGUF_OPTIONS = "ctx_size n_gpu_layers rpc threads chat_handler no_mmproj reasoning_budget".split()
TRANSFORMERS_OPTIONS = "dtype device batch_size revision trust_remote_code".split()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="mars-gguf convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "input",
        nargs="?",
        metavar="MODEL",
        help="a GGUF file; a transformers directory or hub id (ORG/NAME); or a file with a "
        "direction that was measured elsewhere (docs/CONVERTING.md says how it looks)",
    )
    option(p, "--recipe FILE", "convert as this TOML file says", Path)
    option(p, "-o --output FILE", "vector file (default: MODEL-mars.gguf in this directory)")
    add_file_arguments(p, "the same as MODEL; beside a direction, the model that it is for")
    add_template_arguments(p)
    prompts = p.add_argument_group("what to measure with, and how to choose")
    add_prompt_arguments(prompts)
    words = "measure text and this alone; can be repeated (default: all that the model takes)"
    prompts.add_argument("--modality", action="append", choices=MODALITIES, help=words)
    add_calibration_arguments(prompts)
    option(prompts, "--layer N", "block of a direction measured elsewhere, 0-based", int)
    switch(p, "--quick", "measure on a quarter of the prompts; the card says with what confidence")
    gguf = p.add_argument_group("GGUF models")
    add_context_argument(gguf, None, "4096, more where prompts with pictures need it")
    option(
        gguf,
        "--reasoning-budget N",
        "of a model that thinks: tokens of the thought that goes before what is measured (or "
        "judged), after which it is ended (default: %(default)s)",
        positive,
        N_THOUGHT,
    )
    add_device_arguments(gguf)
    add_threads_argument(gguf)
    torch = p.add_argument_group("transformers models")
    add_checkpoint_arguments(torch)
    option(torch, "--revision COMMIT", "of a model on the hub")
    switch(torch, "--trust-remote-code", "run code that comes with the model")
    switch(p, "--no-plot", "write no PNG")
    switch(p, "-q --quiet", "no progress bars")
    add_verbose_argument(p)
    p.set_defaults(untested=None, quantization=None, prompts_sha256=None)
    return p


def add_calibration_arguments(group: Group) -> None:
    """Adds the options of how the gate is calibrated, and on what besides the contrast prompts."""
    option(
        group,
        "--neutral-text FILE",
        "harmless text besides --harmless, borderline requests above all, one a line or JSON "
        "Lines (default: built in, without --harmful none)",
    )
    words = "ask about pictures that a file of --neutral-media pairs with prompts in those alone"
    switch(group, "--own-wordings", words)
    words = "measure half of the neutral prompts after system prompts and earlier turns"
    action = argparse.BooleanOptionalAction
    group.add_argument("--contexts", action=action, default=True, help=words)
    words = "measure everything under this system prompt, which the model will be used with"
    option(group, "--system-prompt FILE", words)
    option(
        group,
        "--over-refusal SHARE",
        "share of neutral inputs, borderline ones among them, that may open the gate, at "
        "most, with 95 %% confidence (default: 0.1 of text; of pictures and of films 0.05 to 0.2, "
        "as much as is needed)",
        float,
    )
    option(
        group,
        "--shrinkage RULE",
        "of the read-out: 0 to 1 (the projection on the direction), oas or ledoit-wolf "
        "(default: %(default)s)",
        default=str(SHRINKAGE),
    )
    group.add_argument("--seed", type=seed, default=0, metavar="N")


def main(argv: list[str] | None = None) -> None:
    p = parser()
    args = p.parse_args(argv)
    with command():
        if args.recipe:
            follow_recipe(args, p)
        run(args, p)


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


def run(args: argparse.Namespace, p: argparse.ArgumentParser) -> None:
    """Converts as the command line says. Raises MarsError before anything is written."""
    from mars_gguf.convert.conversion import convert
    from mars_gguf.convert.vector_files import claimed, output_paths, resume_path, write_outputs
    from mars_gguf.loading import say
    from mars_gguf.vectors.describe import describe

    direction, model, mmproj = _inputs(args)
    require_fitting(args, model, p)
    system = _system_prompt(args.system_prompt)
    more = {"modalities": args.modality, "system_prompt": system, "sha256": args.prompts_sha256}
    prompts = chosen(Prompts, vars(args), **more)
    shrinkage = read_shrinkage(args.shrinkage)
    layers = layer_range(args.layers)
    calibration = chosen(Calibration, vars(args), layers=layers, shrinkage=shrinkage)
    named = args.input or model
    texts = (args.harmful, args.harmless, args.neutral_text, args.system_prompt)
    inputs = [named, model, *texts, args.neutral_media, mmproj, args.recipe]
    stem = Path(named).stem if Path(named).is_file() else Path(named).name
    name = args.output or f"{stem}-mars.gguf"
    outputs = output_paths(name, [str(i) for i in inputs if i], plot=not args.no_plot)
    resume = resume_path(outputs[0])
    with claimed(outputs[0]):
        conversion = convert(
            model,
            mmproj,
            direction=direction,
            prompts=prompts,
            calibration=calibration,
            options=_options(args, model),
            quantization=args.quantization,
            source={"recipe": printable(args.recipe.name)} if args.recipe else {},
            resume=resume,
            progress=not args.quiet,
            say=say,
            verbose=args.verbose,
        )
        if args.untested:
            conversion.warnings.insert(0, f"The recipe was shipped untested: {args.untested}")
        write_outputs(conversion.measurement, outputs)
        resume.unlink(missing_ok=True)
    print(describe(conversion.vector))
    for warning in conversion.warnings:
        print(f"warning: {warning}")
    print(f"wrote {outputs[0]}, {', '.join(path.name for path in outputs[1:])}")


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


def require_fitting(args: argparse.Namespace, model: str, p: argparse.ArgumentParser) -> None:
    """Raises MarsError for options that would change nothing for this kind of model."""
    kind, other, names = "transformers", "GGUF", GGUF_OPTIONS
    if is_gguf(model):
        kind, other, names = other, kind, TRANSFORMERS_OPTIONS
    idle = [name for name in names if getattr(args, name) != p.get_default(name)]
    if idle:
        raise MarsError(
            f"--{idle[0].replace('_', '-')} goes with {other} models, {model} is a {kind} model: "
            "it would change nothing. Leave it out."
        )
    if args.reasoning in ("thought", "answer") and not is_gguf(model):
        raise MarsError(
            f"--reasoning {args.reasoning}: thoughts are measured on GGUF models, {model} is a "
            "transformers model. Convert the GGUF, or give --reasoning off."
        )
    if args.revision is not None and Path(model).exists():
        raise MarsError(
            f"--revision: {model} is a directory, expected the name of a model on the hub"
        )


def _options(args: argparse.Namespace, model: str) -> GgufOptions | CheckpointOptions:
    if not is_gguf(model):
        return chosen(CheckpointOptions, vars(args))
    more = {"n_ctx": args.ctx_size, "rpc_servers": args.rpc, "n_threads": args.threads}
    return chosen(GgufOptions, vars(args), n_thought=args.reasoning_budget, **more)


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
