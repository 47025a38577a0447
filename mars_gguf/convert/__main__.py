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
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mars_gguf import __version__
from mars_gguf.console import command, printable
from mars_gguf.convert.artefacts import Artefact, is_artefact, read_artefact
from mars_gguf.convert.prompts import Context, ContrastPrompts, Prompt, contexts, read_contrast
from mars_gguf.convert.recipes import MODALITIES, read_recipe
from mars_gguf.errors import MarsError
from mars_gguf.files import sha256
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
    positive,
    require_one_source,
    seed,
)
from mars_gguf.reasoning import N_THOUGHT

if TYPE_CHECKING:
    from mars_gguf.convert.extract_gguf import GgufExtractor
    from mars_gguf.convert.extract_transformers import TransformersExtractor
    from mars_gguf.convert.geometry import Shrinkage
    from mars_gguf.convert.pipeline import Conversion, Options
    from mars_gguf.convert.splits import Split

QUICK = 4

# What a recipe leaves to the command line: the machine, and what is shown.
BESIDE_RECIPE = (
    "recipe output device batch_size n_gpu_layers rpc threads trust_remote_code no_plot quiet "
    "verbose"
).split()

GGUF_OPTIONS = ("ctx_size n_gpu_layers rpc threads chat_handler no_mmproj reasoning_budget").split()
TRANSFORMERS_OPTIONS = "dtype device batch_size revision trust_remote_code".split()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="mars_gguf.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "input",
        nargs="?",
        metavar="MODEL",
        help="a GGUF file; a transformers directory or hub id (ORG/NAME); or a file with a "
        "direction that was measured elsewhere (mars_gguf/convert/artefacts.py says how it looks)",
    )
    p.add_argument("--recipe", metavar="FILE", type=Path, help="convert as this TOML file says")
    p.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="vector file (default: MODEL-mars.gguf in this directory)",
    )
    add_file_arguments(p, "the same as MODEL; beside a direction, the model that it is for")
    add_template_arguments(p)
    prompts = p.add_argument_group("what to measure with, and how to choose")
    add_prompt_arguments(prompts)
    prompts.add_argument(
        "--modality",
        action="append",
        choices=MODALITIES,
        help="measure text and this alone; can be repeated (default: all that the model takes)",
    )
    add_calibration_arguments(prompts)
    prompts.add_argument(
        "--layer", type=int, metavar="N", help="block of a direction measured elsewhere, 0-based"
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="measure on a quarter of the prompts; the card says with what confidence",
    )
    gguf = p.add_argument_group("GGUF models")
    add_context_argument(gguf, None, "4096, more where prompts with pictures need it")
    add_thought_argument(gguf)
    add_device_arguments(gguf)
    add_threads_argument(gguf)
    torch = p.add_argument_group("transformers models")
    add_checkpoint_arguments(torch)
    torch.add_argument("--revision", metavar="COMMIT", help="of a model on the hub")
    torch.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    p.add_argument("--no-plot", action="store_true", help="write no PNG")
    p.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    add_verbose_argument(p)
    p.set_defaults(untested=None, quantization=None, prompts_sha256=None)
    return p


def add_thought_argument(group: Group) -> None:
    group.add_argument(
        "--reasoning-budget",
        type=positive,
        default=N_THOUGHT,
        metavar="N",
        help="of a model that thinks: tokens of the thought that goes before what is measured (or "
        f"judged), after which it is ended (default: {N_THOUGHT})",
    )


def add_calibration_arguments(group: Group) -> None:
    """How the gate is calibrated, and on what besides the contrast prompts."""
    group.add_argument(
        "--neutral-text",
        metavar="FILE",
        help="harmless text besides --harmless, borderline requests above all, one a line or JSON "
        "Lines (default: built in, without --harmful none)",
    )
    group.add_argument(
        "--contexts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure half of the neutral prompts after system prompts and earlier turns",
    )
    group.add_argument(
        "--system-prompt",
        metavar="FILE",
        help="measure everything under this system prompt, which the model will be used with",
    )
    group.add_argument(
        "--over-refusal",
        type=float,
        metavar="SHARE",
        help="share of neutral inputs, borderline ones among them, that may open the gate, at "
        "most, with 95 %% confidence (default: 0.1 of text; of pictures and of films 0.05 to 0.2, "
        "as much as is needed)",
    )
    group.add_argument(
        "--shrinkage",
        type=shrinkage,
        default=0.5,
        metavar="RULE",
        help="of the read-out: 0 to 1 (the projection on the direction), oas or ledoit-wolf "
        "(default: 0.5)",
    )
    group.add_argument("--seed", type=seed, default=0, metavar="N")


def shrinkage(text: str) -> Shrinkage:
    if text == "oas":
        return "oas"
    if text == "ledoit-wolf":
        return "ledoit-wolf"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 0 to 1, oas or ledoit-wolf")
    return value


def main(argv: list[str] | None = None) -> None:
    p = parser()
    args = p.parse_args(argv)
    with command():
        if args.recipe:
            follow_recipe(args, p)
        run(args)


def follow_recipe(args: argparse.Namespace, p: argparse.ArgumentParser) -> None:
    """Set the options that the recipe states. Raises MarsError for options beside it."""
    beside = [
        name
        for name, value in vars(args).items()
        if name not in BESIDE_RECIPE and value != p.get_default(name)
    ]
    if beside:
        raise MarsError(
            f"--recipe says what to measure: found {', '.join(beside)} beside it. Change a copy of "
            "the recipe, or leave it out."
        )
    for name, value in read_recipe(args.recipe).items():
        if name != "output" or args.output is None:
            setattr(args, name, value)


def run(args: argparse.Namespace) -> None:
    """Convert as the command line says. Raises MarsError for bad input, before anything is
    written."""
    from mars_gguf.convert.vector_files import claimed, write_outputs
    from mars_gguf.vectors.describe import describe

    job = prepare(args)
    measured = job.outputs[0].with_suffix(".measured")
    with claimed(job.outputs[0]):
        extractor = open_model(job.model, job.mmproj, args)
        if args.reasoning is None and (reasoning := extractor.fingerprint.reasoning):
            print(f"--reasoning {reasoning}, as the chat template suggests", file=sys.stderr)
        try:
            make_room(extractor, job)
            conversion = measure(extractor, job, args)
        except MarsError:  # the same command would end alike; after an interruption it goes on
            measured.unlink(missing_ok=True)
            raise
        finally:
            extractor.close()
        write_outputs(conversion, job.outputs)
        measured.unlink(missing_ok=True)
    print(describe(conversion.vector))
    for warning in conversion.warnings:
        print(f"warning: {warning}")
    print(f"wrote {job.outputs[0]}, {', '.join(path.name for path in job.outputs[1:])}")


# Prepare -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What is to be converted, and how: ``given`` is a direction measured elsewhere."""

    model: str
    mmproj: str | None
    given: Artefact | None
    contrast: ContrastPrompts
    contexts: list[Context]
    neutral: dict[str, Split]
    options: Options
    outputs: list[Path]


def prepare(args: argparse.Namespace) -> Job:
    """All that can be read and checked before the model is loaded."""
    from mars_gguf.convert.pipeline import Options
    from mars_gguf.convert.vector_files import output_paths

    contrast = _contrast(args)
    options = Options(
        seed=args.seed,
        layers=layer_range(args.layers),
        over_refusal=_share(args.over_refusal),
        shrinkage=_shrinkage(args.shrinkage),
    )
    before = contexts(_system_prompt(args))
    if not args.contexts:
        before = before[:1]
    given, model, mmproj = _inputs(args)
    _require_fitting(args, model)
    named = args.input or model
    texts = (args.harmful, args.harmless, args.neutral_text, args.system_prompt)
    used = (*texts, args.neutral_media, mmproj, args.recipe)
    inputs = [named, model, *(str(path) for path in used if path)]
    output = args.output or f"{_stem(named)}-mars.gguf"
    outputs = output_paths(output, inputs, plot=not args.no_plot)
    sees = mmproj is not None or not is_gguf(model)
    neutral = _neutral(args, contrast, before) if sees else _no_pictures(args)
    return Job(model, mmproj, given, contrast, before, neutral, options, outputs)


def _contrast(args: argparse.Namespace) -> ContrastPrompts:
    contrast = read_contrast(args.harmful, args.harmless, args.neutral_text)
    if args.quick:
        contrast = contrast.thinned(QUICK)
    if args.prompts_sha256 not in (None, contrast.sha256):
        raise MarsError(
            f"{args.recipe}: found prompts of sha256 {contrast.sha256}, prompts.sha256 says "
            f"{args.prompts_sha256}: other prompts make another vector"
        )
    return contrast


def _shrinkage(value: Shrinkage) -> Shrinkage:
    """That of the command line, or of a recipe, where it is any text."""
    try:
        return shrinkage(str(value))
    except argparse.ArgumentTypeError as error:
        raise MarsError(f"--shrinkage: {error}") from error


def _share(value: float | None) -> float | None:
    if value is not None and not 0 <= value < 1:
        raise MarsError(f"--over-refusal: found {value}, expected a share from 0 to below 1")
    return value


def _inputs(args: argparse.Namespace) -> tuple[Artefact | None, str, str | None]:
    """(what was measured elsewhere, the model, its mmproj)."""
    require_one_source(args)
    given, named = None, args.input or args.model
    second = args.input is not None and bool(args.model or args.hf_repo)
    if named is not None and is_artefact(Path(named)):
        given = read_artefact(Path(named), args.layer)
        if args.layers is not None:
            raise MarsError(f"--layers: {named} is of block {given.layer}, there is no choice")
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


def is_gguf(model: str) -> bool:
    """Whether this is for llama.cpp: any file, and what is called one."""
    return Path(model).is_file() or model.lower().endswith(".gguf")


def _require_fitting(args: argparse.Namespace, model: str) -> None:
    """Raise MarsError for options that would change nothing for this kind of model."""
    kind, other, names = (
        ("GGUF", "transformers", TRANSFORMERS_OPTIONS)
        if is_gguf(model)
        else ("transformers", "GGUF", GGUF_OPTIONS)
    )
    defaults = parser()
    idle = [name for name in names if getattr(args, name) != defaults.get_default(name)]
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


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).is_file() else Path(name).name


def _system_prompt(args: argparse.Namespace) -> str | None:
    if args.system_prompt is None:
        return None
    try:
        text = Path(args.system_prompt).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MarsError(f"{args.system_prompt}: cannot be read as text ({error})") from error
    if not text:
        raise MarsError(f"{args.system_prompt}: is empty, expected a system prompt")
    return text


def _neutral(
    args: argparse.Namespace, contrast: ContrastPrompts, before: list[Context]
) -> dict[str, Split]:
    from mars_gguf.convert.probes import neutral_probes

    wanted = args.modality or ["image", "video"]
    if set(wanted) <= {"text"}:
        return {}
    number = args.probes // QUICK if args.quick else args.probes
    borderline = contrast.neutral.get("borderline", [])
    probes = neutral_probes(
        number, args.image_size, args.seed, before, borderline, args.neutral_media
    )
    return {m: prompts for m, prompts in probes.items() if m in wanted}


def _no_pictures(args: argparse.Namespace) -> dict[str, Split]:
    media = [m for m in args.modality or [] if m != "text"]
    if media or args.neutral_media:
        raise MarsError(
            f"{'--modality ' + media[0] if media else '--neutral-media'}: this model sees no "
            "pictures. A GGUF model needs --mmproj, a transformers model a processor that takes "
            "images."
        )
    return {}


# Open and measure --------------------------------------------------------------------------------


def open_model(
    model: str, mmproj: str | None, args: argparse.Namespace
) -> GgufExtractor | TransformersExtractor:
    """Open a GGUF file by llama.cpp, anything else by transformers."""
    if is_gguf(model):
        from mars_gguf.convert.extract_gguf import GgufExtractor
        from mars_gguf.loading import say_if_without_template

        extractor = GgufExtractor(
            model,
            mmproj,
            n_gpu_layers=args.n_gpu_layers,
            rpc_servers=args.rpc,
            n_threads=args.threads,
            n_ctx=args.ctx_size,
            chat_handler=args.chat_handler,
            chat_template_kwargs=args.chat_template_kwargs,
            reasoning=args.reasoning,
            n_thought=args.reasoning_budget,
            verbose=args.verbose,
        )
        if extractor.thinker is None and args.reasoning_budget != N_THOUGHT:
            extractor.close()
            raise MarsError(
                "--reasoning-budget is of thoughts, and this model is measured without any: it "
                "would change nothing. Leave it out, or give --reasoning answer to a model that "
                "thinks."
            )
        say_if_without_template(extractor.llama, args)
        return extractor
    if mmproj:
        raise MarsError(f"--mmproj goes with GGUF models; {model} brings its own processor")
    from mars_gguf.convert.extract_transformers import TransformersExtractor

    return TransformersExtractor(
        model,
        dtype=args.dtype,
        device=args.device,
        batch_size=args.batch_size,
        images=args.modality is None or set(args.modality) != {"text"},
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        chat_template_kwargs=args.chat_template_kwargs,
        verbose=args.verbose,
    )


def make_room(extractor: GgufExtractor | TransformersExtractor, job: Job) -> None:
    """Take a context that the prompts fit into, and say on standard error if it is a longer one
    than usual. Raises ModelError if that was ruled out."""
    if not is_gguf(job.model):
        return
    from mars_gguf.convert.extract_gguf import N_CTX, GgufExtractor

    assert isinstance(extractor, GgufExtractor)
    longest = max(job.contrast.harmful + job.contrast.harmless, key=len)
    prompts = [Prompt(longest, context=context) for context in job.contexts]
    if extractor.sees_images:
        prompts += [p for parts in job.neutral.values() for third in parts for p in third]
    lost = {id(context) for context in job.contexts if not extractor.takes(context)}
    extractor.make_room([prompt for prompt in prompts if id(prompt.context) not in lost])
    if extractor.grows and extractor.n_cells > N_CTX:
        print(
            f"the prompts need a context of {extractor.n_cells} tokens, instead of {N_CTX}",
            file=sys.stderr,
        )


def measure(
    extractor: GgufExtractor | TransformersExtractor, job: Job, args: argparse.Namespace
) -> Conversion:
    """The conversion, on an open model."""
    from mars_gguf.convert.pipeline import convert
    from mars_gguf.convert.resuming import Measured

    if args.quantization not in (None, extractor.fingerprint.quantization):
        raise MarsError(
            f"{job.model}: found quantization {extractor.fingerprint.quantization!r}, the recipe "
            f"says {args.quantization!r}"
        )
    conversion = convert(
        extractor,
        job.contrast,
        job.neutral if extractor.sees_images else _no_pictures(args),
        job.options,
        source=_source(extractor, job, args),
        contexts=job.contexts,
        given=job.given,
        stores=Measured(
            job.outputs[0].with_suffix(".measured"),
            _same_job(extractor, job, args.reasoning_budget),
        ),
        progress=not args.quiet,
    )
    if args.untested:
        conversion.warnings.insert(0, f"The recipe was shipped untested: {args.untested}")
    return conversion


def _same_job(extractor: GgufExtractor | TransformersExtractor, job: Job, n_thought: int) -> str:
    """What decides what is seen of a prompt: the model and its mmproj, as far as a look at the
    files tells, how long it may think, and this package."""
    files = [Path(name) for name in (job.model, job.mmproj) if name and Path(name).exists()]
    looks = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return f"{__version__} {extractor.backend} {extractor.fingerprint} {n_thought} {looks}"


def _source(
    extractor: GgufExtractor | TransformersExtractor, job: Job, args: argparse.Namespace
) -> dict[str, str]:
    source = {
        "backend": extractor.backend,
        "prompts": "built in" if args.harmful is None else "files",
    }
    if extractor.fingerprint.reasoning in ("thought", "answer"):
        source["thoughts"] = f"ended after {args.reasoning_budget} tokens"
    if not extractor.fingerprint.name:
        source["model"] = printable(Path(job.model).name)
    if job.given is not None:
        source |= {"direction": job.given.origin, "direction_sha256": sha256(args.input)}
    if args.revision is not None:
        source["revision"] = args.revision
    if args.recipe:
        source["recipe"] = printable(args.recipe.name)
    if args.quick:
        source["quick"] = "measured on a quarter of the prompts"
    if system := job.contexts[0].messages:
        source["system_prompt"] = system[0]["content"]
    return source


if __name__ == "__main__":
    main()
