"""Measure a model's refusal geometry and write it as a control-vector file, with a card and a plot
beside it.

    python -m mars_gguf.convert MODEL.gguf [--mmproj MMPROJ.gguf] [-o VECTOR.gguf]
    python -m mars_gguf.convert DIRECTORY-OR-HUB-ID [-o VECTOR.gguf]
    python -m mars_gguf.convert DIRECTION.{safetensors,npz,pt,gguf} --model MODEL [--layer N]
    python -m mars_gguf.convert --recipe convert/NAME.toml
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mars_gguf.console import command
from mars_gguf.convert import DEVICES, DTYPES
from mars_gguf.convert.artefacts import Artefact, is_artefact, read_artefact
from mars_gguf.convert.prompts import (
    ContrastPrompts,
    builtin_contrast,
    read_prompts,
    require_enough,
)
from mars_gguf.convert.recipes import read_recipe
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic, sha256
from mars_gguf.options import layer_range, positive, seed
from mars_gguf.vectors import (
    Vector,
    VectorError,
    read_vector,
    write_contents,
)
from mars_gguf.vectors.describe import describe

if TYPE_CHECKING:
    from mars_gguf.convert.extract import GgufExtractor
    from mars_gguf.convert.extract_transformers import TransformersExtractor
    from mars_gguf.convert.prompts import Prompt

# What a recipe leaves to the command line: the machine, and what is shown.
BESIDE_RECIPE = (
    "recipe output device batch_size n_gpu_layers threads trust_remote_code no_plot quiet verbose"
).split()

GGUF_OPTIONS = "ctx_size n_gpu_layers threads".split()
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
    p.add_argument("--mmproj", metavar="FILE", help="multimodal projector of a GGUF model")
    p.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="vector file (default: MODEL-mars.gguf in this directory)",
    )
    prompts = p.add_argument_group("what to measure with")
    prompts.add_argument(
        "--harmful",
        metavar="FILE",
        help="harmful prompts, one a line or JSON Lines (default: built in)",
    )
    prompts.add_argument("--harmless", metavar="FILE", help="harmless prompts, likewise")
    prompts.add_argument(
        "--modality",
        action="append",
        choices=["text", "image", "video"],
        help="measure text and this alone; can be repeated (default: all that the model takes)",
    )
    prompts.add_argument(
        "--neutral-media",
        metavar="PATH",
        help="your own harmless pictures: a directory, or a .jsonl file that "
        "pairs pictures with prompts",
    )
    prompts.add_argument(
        "--probes",
        type=positive,
        default=96,
        metavar="N",
        help="neutral prompts with pictures (default: 96)",
    )
    prompts.add_argument(
        "--image-size",
        type=positive,
        default=224,
        metavar="N",
        help="width and height of neutral pictures (default: 224)",
    )
    prompts.add_argument("--seed", type=seed, default=0, metavar="N")
    choice = p.add_argument_group("how to choose")
    choice.add_argument(
        "--layers", metavar="FIRST-LAST", help="candidate blocks (default: 1 to 80 %% of the depth)"
    )
    choice.add_argument(
        "--over-refusal",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of neutral inputs that may open the gate (default: 0.01)",
    )
    given = p.add_argument_group("direction measured elsewhere")
    given.add_argument("--model", metavar="MODEL", help="the model it is for, GGUF or transformers")
    given.add_argument("--layer", type=int, metavar="N", help="its block, 0-based")
    gguf = p.add_argument_group("GGUF models")
    gguf.add_argument(
        "-c",
        "--ctx-size",
        type=positive,
        default=4096,
        metavar="N",
        help="context that several prompts share (default: 4096)",
    )
    gguf.add_argument("-ngl", "--n-gpu-layers", type=int, default=0, metavar="N")
    gguf.add_argument("-t", "--threads", type=positive, metavar="N")
    torch = p.add_argument_group("transformers models")
    torch.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the weights (default: auto, as they are stored)",
    )
    torch.add_argument("--device", choices=DEVICES, default="auto")
    torch.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts at once (default: 8)"
    )
    torch.add_argument("--revision", metavar="COMMIT", help="of a model on the hub")
    torch.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    p.add_argument("--no-plot", action="store_true", help="write no PNG")
    p.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    p.add_argument("-v", "--verbose", action="store_true", help="show what the libraries say")
    p.set_defaults(untested=None, quantization=None, prompts_sha256=None)
    return p


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
    from mars_gguf.convert.card import card
    from mars_gguf.convert.pipeline import Options, convert
    from mars_gguf.convert.plot import write_plot

    if args.input is None:
        raise MarsError("no model: give a GGUF file, a transformers model, or --recipe")
    contrast = _contrast(args)
    options = Options(
        seed=args.seed, layers=layer_range(args.layers), over_refusal=_share(args.over_refusal)
    )
    given, model = _artefact(args)
    _require_fitting(args, model)
    used = (args.harmful, args.harmless, args.neutral_media, args.mmproj, args.recipe)
    inputs = [args.input, model, *(str(path) for path in used if path)]
    output, *beside = _outputs(
        args.output or f"{_stem(args.input)}-mars.gguf", inputs, plot=not args.no_plot
    )
    neutral = _neutral(args) if args.mmproj or not is_gguf(model) else _no_pictures(args)
    extractor = open_model(model, args)
    try:
        if not extractor.sees_images:
            neutral = _no_pictures(args)
        if args.quantization not in (None, extractor.fingerprint.quantization):
            raise MarsError(
                f"{model}: found quantization {extractor.fingerprint.quantization!r}, the recipe "
                f"says {args.quantization!r}"
            )
        conversion = convert(
            extractor,
            contrast,
            neutral,
            options,
            source=_source(args, extractor, given),
            given=given,
            progress=not args.quiet,
        )
    finally:
        extractor.close()
    if args.untested:
        conversion.warnings.insert(0, f"The recipe was shipped untested: {args.untested}")
    parity = _parity_table(output, conversion.vector)
    with ExitStack() as files:  # all of them, or none
        vector_file = files.enter_context(atomic(output))
        write_contents(conversion.vector, vector_file)
        text = card(conversion, output.name, sha256(vector_file), parity)
        files.enter_context(atomic(beside[0])).write_text(text, encoding="utf-8")
        for plot in beside[1:]:
            write_plot(conversion, files.enter_context(atomic(plot)))
    print(describe(conversion.vector))
    for warning in conversion.warnings:
        print(f"warning: {warning}")
    print(f"wrote {output}, {', '.join(path.name for path in beside)}")


def _parity_table(output: Path, vector: Vector) -> str:
    """The parity table in the card that is to be replaced, if the vector there was measured on the
    same model: the same fingerprint, and a direction that rounding explains. Else ""."""
    from mars_gguf.convert.card import split_parity

    try:
        older = read_vector(output)
        text = output.with_suffix(".md").read_text(encoding="utf-8")
    except (VectorError, OSError, UnicodeDecodeError):
        return ""
    a, b = older.geometry, vector.geometry
    same = (older.model, older.layer) == (vector.model, vector.layer) and (
        a.direction @ b.direction > 0.999 * a.distance * b.distance
    )
    return split_parity(text)[1] if same else ""


def open_model(model: str, args: argparse.Namespace) -> GgufExtractor | TransformersExtractor:
    """Open a GGUF file by llama.cpp, anything else by transformers."""
    from mars_gguf.convert.extract import GgufExtractor
    from mars_gguf.hooks import require_gguf

    if is_gguf(model):
        require_gguf(model)
        return GgufExtractor(
            model,
            args.mmproj,
            n_gpu_layers=args.n_gpu_layers,
            n_threads=args.threads,
            n_ctx=args.ctx_size,
            verbose=args.verbose,
        )
    if args.mmproj:
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
        verbose=args.verbose,
    )


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
    if args.revision is not None and Path(model).exists():
        raise MarsError(
            f"--revision: {model} is a directory, expected the name of a model on the hub"
        )


def is_gguf(model: str) -> bool:
    """Whether this is for llama.cpp: any file, and what is called one."""
    return Path(model).is_file() or model.lower().endswith(".gguf")


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).is_file() else Path(name).name


def _contrast(args: argparse.Namespace) -> ContrastPrompts:
    if (args.harmful is None) != (args.harmless is None):
        raise MarsError("--harmful and --harmless go together: give both files or neither")
    if args.harmful is None:
        contrast = builtin_contrast()
    else:
        contrast = ContrastPrompts(read_prompts(args.harmful), read_prompts(args.harmless))
        require_enough(contrast.harmful, args.harmful)
        require_enough(contrast.harmless, args.harmless)
    if args.prompts_sha256 not in (None, contrast.sha256):
        raise MarsError(
            f"{args.recipe}: found prompts of sha256 {contrast.sha256}, prompts.sha256 says "
            f"{args.prompts_sha256}: other prompts make another vector"
        )
    return contrast


def _artefact(args: argparse.Namespace) -> tuple[Artefact | None, str]:
    """(what was measured elsewhere, the model)."""
    if not is_artefact(Path(args.input)):
        if args.model is not None or args.layer is not None:
            raise MarsError(
                f"--model and --layer go with a direction measured elsewhere; {args.input} is none"
            )
        return None, args.input
    given = read_artefact(Path(args.input), args.layer)
    if args.model is None:
        raise MarsError(
            f"{args.input}: holds a direction, no model. What else a vector needs is measured on "
            "the model: give it with --model."
        )
    if args.layers is not None:
        raise MarsError(f"--layers: {args.input} is of block {given.layer}, there is no choice")
    return given, args.model


def _outputs(name: str, inputs: list[str], *, plot: bool) -> list[Path]:
    """Where the vector, its card and, with ``plot``, its plot go. Raises MarsError if they cannot
    be written there, or would replace anything but an older vector with what lies beside it."""
    output = Path(name)
    if output.is_dir():
        raise MarsError(f"{output}: is a directory, expected a file name")
    if output.suffix != ".gguf":
        raise MarsError(
            f"{output}: found the ending {output.suffix!r}, expected '.gguf': the card and the "
            "plot are written beside it under '.md' and '.png'"
        )
    outputs = [output, *map(output.with_suffix, [".md", ".png"][: 1 + plot])]
    for written in outputs:
        if written.is_dir():
            raise MarsError(f"{written}: is a directory, expected to write a file there")
        if written.exists() and any(Path(i).exists() and written.samefile(i) for i in inputs):
            raise MarsError(f"{written}: this is the input itself. Choose another --output.")
    if output.exists() and not is_artefact(output):
        raise MarsError(f"{output}: found a file that is no vector. Choose another --output.")
    for written in outputs[1:]:
        if written.exists() and not output.exists():
            raise MarsError(
                f"{written}: found a file here, but no vector {output.name} that it belongs to. "
                "Move it away, or choose another --output."
            )
    folder = next(p for p in output.absolute().parents if p.exists())
    try:  # now, not after an hour of measuring
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MarsError(
            f"{output}: cannot be written, {folder}: {error.strerror}. Choose another --output."
        ) from error
    return outputs


def _neutral(args: argparse.Namespace) -> dict[str, list[Prompt]]:
    from mars_gguf.convert.probes import neutral_probes

    wanted = args.modality or ["image", "video"]
    if set(wanted) <= {"text"}:
        return {}
    probes = neutral_probes(args.probes, args.image_size, args.seed, args.neutral_media)
    return {m: prompts for m, prompts in probes.items() if m in wanted}


def _no_pictures(args: argparse.Namespace) -> dict[str, list[Prompt]]:
    media = [m for m in args.modality or [] if m != "text"]
    if media or args.neutral_media:
        raise MarsError(
            f"{'--modality ' + media[0] if media else '--neutral-media'}: this model sees no "
            "pictures. A GGUF model needs --mmproj, a transformers model a processor that takes "
            "images."
        )
    return {}


def _source(
    args: argparse.Namespace,
    extractor: GgufExtractor | TransformersExtractor,
    given: Artefact | None,
) -> dict[str, str]:
    source = {
        "backend": extractor.backend,
        "prompts": "built in" if args.harmful is None else "files",
    }
    if not extractor.fingerprint.name:
        source["model"] = Path(args.model or args.input).name
    if given is not None:
        source |= {"direction": given.origin, "direction_sha256": sha256(args.input)}
    if args.revision is not None:
        source["revision"] = args.revision
    if args.recipe:
        source["recipe"] = args.recipe.name
    return source


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise MarsError(f"--over-refusal: found {value}, expected a share from 0 to below 1")
    return value


if __name__ == "__main__":
    main()
