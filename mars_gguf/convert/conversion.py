"""The converter as a library: from the files of a model to its vector, card and plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Union

from mars_gguf.console import printable
from mars_gguf.convert.artefacts import Artefact
from mars_gguf.convert.choices import Calibration, CheckpointOptions, GgufOptions, Prompts, StrPath
from mars_gguf.convert.extractor import Say
from mars_gguf.convert.pipeline import Measurement, measure_vector
from mars_gguf.convert.prompt_sets import PromptSets, gather, renderable, require_no_media
from mars_gguf.convert.resuming import ResumeFile, code_sha256, require_ours
from mars_gguf.convert.vector_files import output_paths, resume_path, write_outputs
from mars_gguf.errors import MarsError
from mars_gguf.files import sha256
from mars_gguf.modalities import TEXT
from mars_gguf.vectors import Vector

if TYPE_CHECKING:
    from mars_gguf.convert.extract_gguf import GgufExtractor
    from mars_gguf.convert.extract_transformers import TransformersExtractor

Loaded = Union["GgufExtractor", "TransformersExtractor"]


@dataclass(frozen=True)
class Conversion:
    """A vector that was measured on a model, ready to be written.

    measurement: the vector, with everything that its card and plot tell.
    inputs: the files that it was made from, which it does not replace.
    output: where it is written, if `write` is not told.
    """

    measurement: Measurement
    inputs: tuple[str, ...] = ()
    output: Path | None = None

    @property
    def vector(self) -> Vector:
        """The vector, as SteeredLlama and write_vector take it."""
        return self.measurement.vector

    @property
    def warnings(self) -> list[str]:
        """Sentences that speak against using the vector."""
        return self.measurement.warnings

    def write(self, path: StrPath | None = None) -> list[Path]:
        """Writes the vector to ``path`` (.gguf), with its card (.md) and its plot (.png) beside it:
        all of them or, after an error, none. They replace an older vector with its card and plot.

        Returns the paths written. Raises MarsError for a path that cannot be written, or that holds
        anything else.
        """
        target = path or self.output
        if target is None:
            raise MarsError("found no path to write to, expected one here or as convert's output")
        outputs = output_paths(target, self.inputs)
        write_outputs(self.measurement, outputs)
        if self.output is not None:
            resume_path(self.output).unlink(missing_ok=True)
        return outputs


def convert(
    model: StrPath,
    mmproj: StrPath | None = None,
    *,
    direction: Artefact | None = None,
    prompts: Prompts | None = None,
    calibration: Calibration | None = None,
    options: GgufOptions | CheckpointOptions | None = None,
    quantization: str | None = None,
    source: Mapping[str, str] | None = None,
    output: StrPath | None = None,
    progress: bool = False,
    say: Say = lambda line: None,
    verbose: bool = False,
) -> Conversion:
    """Measures the refusal geometry of a model and calibrates a vector for it.

    model: a GGUF file; or a transformers model, by its directory or hub id (ORG/NAME).
    mmproj: the multimodal projector of a GGUF model. Without one, text alone is measured.
    direction: one measured elsewhere (read_artefact), in place of the model's own.
    prompts, calibration: what to measure with, and how to choose.
    options: how the model is loaded: GgufOptions of a GGUF, else CheckpointOptions.
    quantization: the one that a GGUF must have, if given, such as "Q4_K_M".
    source: further entries for the vector's account of how it was made.
    output: where `Conversion.write` will write. Whether it can is seen before anything is measured;
        and what is measured is kept beside it, so that after an interruption the same call goes on.
    progress: whether a bar is shown on standard error.
    say: is called with what a user should know meanwhile.
    verbose: whether the libraries say what they do.

    Raises MarsError for bad input, ModelError for a model that does not load or cannot be measured.
    """
    job = _Job.of(model, mmproj, prompts, options, direction)
    calibration = calibration or Calibration()
    if direction is not None and calibration.layers is not None:
        raise MarsError(f"layers: {direction.origin} is of block {direction.layer} alone")
    inputs, resume = job.inputs(), None
    if output is not None:
        output_paths(output, inputs)
        require_ours(resume := resume_path(output))
    sees = mmproj is not None or not is_gguf(job.model)
    sets = gather(job.prompts, calibration.seed, sees=sees)
    with closing(job.load(say, verbose=verbose)) as extractor:
        sets = job.fitting(extractor, sets, quantization)
        extractor.make_room(sets.longest(), say)
        measure = partial(measure_vector, extractor, sets, calibration, progress=progress)
        account = job.account(extractor) | dict(source or {})
        with _resumed(resume, job.key(extractor)) as store:
            measurement = measure(source=account, given=direction, store=store)
    return Conversion(measurement, inputs, None if output is None else Path(output))


def is_gguf(model: str) -> bool:
    """Tells whether a model is for llama.cpp: any file is, and what is called as one."""
    return Path(model).is_file() or model.lower().endswith(".gguf")


@dataclass(frozen=True)
class _Job:
    """Holds what a call of `convert` measures, and on what."""

    model: str
    mmproj: str | None
    prompts: Prompts
    options: GgufOptions | CheckpointOptions
    direction: Artefact | None

    @classmethod
    def of(
        cls,
        model: StrPath,
        mmproj: StrPath | None,
        prompts: Prompts | None,
        options: GgufOptions | CheckpointOptions | None,
        direction: Artefact | None,
    ) -> _Job:
        """A job with the defaults filled in."""
        usual = GgufOptions() if is_gguf(str(model)) else CheckpointOptions()
        projector = None if mmproj is None else str(mmproj)
        return cls(str(model), projector, prompts or Prompts(), options or usual, direction)

    def inputs(self) -> tuple[str, ...]:
        """The files that are read."""
        p = self.prompts
        read = (self.model, self.mmproj, p.harmful, p.harmless, p.neutral_text, p.neutral_media)
        given = () if self.direction is None else (self.direction.path,)
        return tuple(str(path) for path in (*read, *given) if path)

    def load(self, say: Say, *, verbose: bool) -> Loaded:
        """Loads the model. Raises MarsError for options of the other kind of model, ModelError for
        one that does not load."""
        options = self.options
        if is_gguf(self.model) != isinstance(options, GgufOptions):
            kind = "transformers" if isinstance(options, GgufOptions) else "GGUF"
            raise MarsError(f"{self.model}: a {kind} model, found {type(options).__name__}")
        if isinstance(options, GgufOptions):
            return self._load_gguf(options, say, verbose=verbose)
        if self.mmproj is not None:
            raise MarsError(f"--mmproj goes with GGUF models, {self.model} has its own processor")
        from mars_gguf.convert.extract_transformers import TransformersExtractor

        wanted = self.prompts.modalities
        images = wanted is None or set(wanted) != {TEXT.name}
        return TransformersExtractor(self.model, options, images=images, verbose=verbose)

    def _load_gguf(self, options: GgufOptions, say: Say, *, verbose: bool) -> GgufExtractor:
        from mars_gguf.convert.extract_gguf import GgufExtractor
        from mars_gguf.loading import say_if_without_template

        extractor = GgufExtractor(self.model, self.mmproj, **vars(options), verbose=verbose)
        if extractor.thinker is None and options.n_thought != GgufOptions.n_thought:
            extractor.close()
            raise MarsError(
                "reasoning_budget is of thoughts, and this model is measured without any: it would "
                "change nothing. Leave it out, or give --reasoning answer to a model that thinks."
            )
        say_if_without_template(extractor.llama, options.chat_handler, say)
        if extractor.reasoning and options.reasoning is None:
            say(f"--reasoning {extractor.reasoning}, as the chat template suggests")
        return extractor

    def fitting(self, extractor: Loaded, sets: PromptSets, quantization: str | None) -> PromptSets:
        """Leaves out of ``sets`` what the model does not see and its template does not write.
        Raises MarsError if it was asked for, and for a model of another ``quantization``."""
        found = extractor.fingerprint.quantization
        if quantization not in (None, found):
            raise MarsError(
                f"{self.model}: found quantization {found!r}, the recipe says {quantization!r}"
            )
        if not extractor.sees_images:
            require_no_media(self.prompts)
            sets = replace(sets, media={})
        return renderable(extractor, sets)

    def key(self, extractor: Loaded) -> str:
        """Names all that decides what is seen of a prompt: the model and its mmproj, as far as a
        look at the files tells, how it is loaded, and the code that sees."""
        files = [f for name in (self.model, self.mmproj) if name for f in _files(Path(name))]
        looks = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        known = f"{code_sha256()} {extractor.backend} {extractor.fingerprint} {looks}"
        if isinstance(self.options, CheckpointOptions):  # whose fingerprint knows no weights
            return f"{known} {self.options.dtype} {self.options.revision}"
        return f"{known} {self.options.n_thought}"

    def account(self, extractor: Loaded) -> dict[str, str]:
        """Says how the vector is made, for its metadata."""
        built_in, options = self.prompts.harmful is None, self.options
        source = {"backend": extractor.backend, "prompts": "built in" if built_in else "files"}
        if isinstance(options, GgufOptions):
            if extractor.fingerprint.reasoning in ("thought", "answer"):
                source["thoughts"] = f"ended after {options.n_thought} tokens"
        elif options.revision is not None:
            source["revision"] = options.revision
        if not extractor.fingerprint.name:
            source["model"] = printable(Path(self.model).name)
        if self.direction is not None:
            source["direction"] = self.direction.origin
            if self.direction.path is not None:
                source["direction_sha256"] = sha256(self.direction.path)
        if self.prompts.quick:
            source["quick"] = "measured on a quarter of the prompts"
        if self.prompts.system_prompt is not None:
            source["system_prompt"] = self.prompts.system_prompt
        return source


@contextmanager
def _resumed(path: Path | None, job: str) -> Iterator[ResumeFile | None]:
    """Yields the file at ``path`` that keeps what is measured. It is removed after a MarsError: the
    same call would end alike."""
    try:
        yield None if path is None else ResumeFile(path, job)
    except MarsError:
        if path is not None:
            path.unlink(missing_ok=True)
        raise


def _files(path: Path) -> list[Path]:
    """Lists the files of a model: one, those of a folder, or none where it is on a hub."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in inside if file.is_file()]
