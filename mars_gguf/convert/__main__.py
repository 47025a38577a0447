"""``python -m mars_gguf.convert MODEL.gguf [--mmproj MMPROJ.gguf] [-o VECTOR.gguf]``: measure a
model's refusal geometry and write it as a control-vector file, with a card and a plot beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from mars_gguf.cli import command
from mars_gguf.convert.prompts import ContrastPrompts, builtin_contrast, read_prompts
from mars_gguf.errors import MarsError
from mars_gguf.vectors import describe, write_vector


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars_gguf.convert", description=__doc__)
    p.add_argument("model", metavar="MODEL.gguf", help="quantized chat model")
    p.add_argument("--mmproj", metavar="FILE", help="multimodal projector of the model")
    p.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
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
        "--neutral-media",
        metavar="PATH",
        help="your own harmless pictures: a directory, or a .jsonl file that "
        "pairs pictures with prompts",
    )
    prompts.add_argument(
        "--probes",
        type=int,
        default=96,
        metavar="N",
        help="neutral prompts with pictures (default: 96)",
    )
    prompts.add_argument(
        "--image-size",
        type=int,
        default=224,
        metavar="N",
        help="width and height of neutral pictures (default: 224)",
    )
    prompts.add_argument("--seed", type=int, default=0, metavar="N")
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
    model = p.add_argument_group("llama.cpp")
    model.add_argument(
        "-c",
        "--ctx-size",
        type=int,
        default=4096,
        metavar="N",
        help="context that several prompts share (default: 4096)",
    )
    model.add_argument("-ngl", "--n-gpu-layers", type=int, default=0, metavar="N")
    model.add_argument("-t", "--threads", type=int, metavar="N")
    p.add_argument("--no-plot", action="store_true", help="write no PNG")
    p.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    p.add_argument("-v", "--verbose", action="store_true", help="show what llama.cpp says")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with command():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Convert as the command line says. Raises MarsError for bad input, before anything is
    written."""
    from mars_gguf.convert.extract import GgufExtractor
    from mars_gguf.convert.measure import Options, convert
    from mars_gguf.convert.probes import neutral_probes
    from mars_gguf.convert.report import write_card, write_plot
    from mars_gguf.hooks import require_gguf

    contrast = _contrast(args.harmful, args.harmless)
    options = Options(
        seed=args.seed, layers=_layers(args.layers), over_refusal=_share(args.over_refusal)
    )
    output = args.output or Path(f"{Path(args.model).stem}-mars.gguf")
    if output.exists() and output.samefile(args.model):
        raise MarsError(f"{output}: this is the model itself. Choose another --output.")
    require_gguf(args.model)
    neutral = {}
    if args.mmproj:
        require_gguf(args.mmproj)
        neutral = neutral_probes(args.probes, args.image_size, args.seed, args.neutral_media)
    elif args.neutral_media:
        raise MarsError("--neutral-media needs --mmproj: without it the model sees no pictures")
    extractor = GgufExtractor(
        args.model,
        args.mmproj,
        n_gpu_layers=args.n_gpu_layers,
        n_threads=args.threads,
        n_ctx=args.ctx_size,
        verbose=args.verbose,
    )
    try:
        source = {"backend": "llama.cpp", "prompts": "built in" if not args.harmful else "files"}
        conversion = convert(
            extractor, contrast, neutral, options, source=source, progress=not args.quiet
        )
    finally:
        extractor.close()
    write_vector(conversion.vector, output)
    write_card(conversion, output.with_suffix(".md"), output)
    if not args.no_plot:
        write_plot(conversion, output.with_suffix(".png"))
    print(describe(conversion.vector))
    for warning in conversion.warnings:
        print(f"warning: {warning}")
    print(
        f"wrote {output}, {output.with_suffix('.md').name}"
        + ("" if args.no_plot else f", {output.with_suffix('.png').name}")
    )


def _contrast(harmful: str | None, harmless: str | None) -> ContrastPrompts:
    if (harmful is None) != (harmless is None):
        raise MarsError("--harmful and --harmless go together: give both files or neither")
    if harmful is None or harmless is None:
        return builtin_contrast()
    return ContrastPrompts(read_prompts(harmful), read_prompts(harmless))


def _layers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition("-")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise MarsError(f"--layers: found {text!r}, expected FIRST-LAST, 8-20 for one") from None


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise MarsError(f"--over-refusal: found {value}, expected a share from 0 to below 1")
    return value


if __name__ == "__main__":
    main()
