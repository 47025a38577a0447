"""The converter as a library: from the files of a model to its vector, card and plot."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from mars_gguf.console import printable
from mars_gguf.convert.artefacts import Artefact
from mars_gguf.convert.choices import Calibration, CheckpointOptions, GgufOptions, Prompts, StrPath
from mars_gguf.convert.loader import Loaded, Say, is_gguf, load_extractor, make_room
from mars_gguf.convert.pipeline import Measurement, measure
from mars_gguf.convert.prompt_sets import PromptSets, gather, require_no_media
from mars_gguf.convert.resuming import ResumeFile, code_sha256, require_ours
from mars_gguf.convert.vector_files import claimed, output_paths, write_outputs
from mars_gguf.errors import MarsError
from mars_gguf.files import sha256
from mars_gguf.modalities import TEXT
from mars_gguf.vectors import Vector


@dataclass(frozen=True)
class Conversion:
    """A vector that was measured on a model, ready to be written.

    measurement: the vector, with everything that its card and plot tell.
    inputs: the files that it was made from, which it does not replace.
    resume: the file that keeps what was measured, and goes when the vector is written.
    """

    measurement: Measurement
    inputs: tuple[str, ...] = ()
    resume: Path | None = None

    @property
    def vector(self) -> Vector:
        """The vector, as SteeredLlama and write_vector take it."""
        return self.measurement.vector

    @property
    def warnings(self) -> list[str]:
        """Sentences that speak against using the vector."""
        return self.measurement.warnings

    def write(self, path: StrPath, *, plot: bool = True) -> list[Path]:
        """Writes the vector to ``path`` (.gguf), with its card (.md) and its plot (.png) beside it:
        all of them or, after an error, none. They replace an older vector with its card and plot.

        Returns the paths written. Raises MarsError for a path that cannot be written, or that holds
        anything else, and while another conversion is writing there.
        """
        outputs = output_paths(str(path), self.inputs, plot=plot)
        with claimed(outputs[0]):
            write_outputs(self.measurement, outputs)
            if self.resume is not None:
                self.resume.unlink(missing_ok=True)
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
    resume: StrPath | None = None,
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
    resume: a file to keep what is measured in, so that after an interruption the same call goes on.
        It is removed after an error of measuring, and when the vector is written.
    progress: whether a bar is shown on standard error.
    say: is called with what a user should know meanwhile.
    verbose: whether the libraries say what they do.

    Raises MarsError for bad input, ModelError for a model that does not load or cannot be measured.
    """
    job = _Job(
        str(model),
        None if mmproj is None else str(mmproj),
        prompts or Prompts(),
        calibration or Calibration(),
        options or (GgufOptions() if is_gguf(str(model)) else CheckpointOptions()),
        direction,
    )
    sets, kept = job.gather(), None if resume is None else Path(resume)
    if kept is not None:
        require_ours(kept)
    with closing(job.load(say, verbose=verbose)) as extractor:
        sets = job.fitting(extractor, sets, quantization)
        make_room(extractor, sets, say)
        account = job.source(extractor) | dict(source or {})
        store = None if kept is None else ResumeFile(kept, job.key(extractor))
        try:
            measurement = measure(
                extractor, sets, job.calibration, source=account, given=direction, store=store,
                progress=progress,
            )  # fmt: skip
        except MarsError:  # the same call would end alike
            if kept is not None:
                kept.unlink(missing_ok=True)
            raise
    return Conversion(measurement, job.files(), kept)


@dataclass(frozen=True)
class _Job:
    """A call of `convert`, with the defaults filled in."""

    model: str
    mmproj: str | None
    prompts: Prompts
    calibration: Calibration
    options: GgufOptions | CheckpointOptions
    direction: Artefact | None

    def gather(self) -> PromptSets:
        """Reads and checks all that can be before the model is loaded. Raises MarsError."""
        given = self.direction
        if given is not None and self.calibration.layers is not None:
            raise MarsError(
                f"--layers: {given.origin} is of block {given.layer}, there is no choice"
            )
        sees = self.mmproj is not None or not is_gguf(self.model)
        return gather(self.prompts, self.calibration.seed, sees=sees)

    def load(self, say: Say, *, verbose: bool) -> Loaded:
        wanted = self.prompts.modalities
        images = wanted is None or set(wanted) != {TEXT.name}
        return load_extractor(
            self.model, self.mmproj, self.options, images=images, say=say, verbose=verbose
        )

    def fitting(self, extractor: Loaded, sets: PromptSets, quantization: str | None) -> PromptSets:
        """Leaves out of ``sets`` what the model does not see. Raises MarsError if it was asked for,
        and for a model of another ``quantization``."""
        found = extractor.fingerprint.quantization
        if quantization not in (None, found):
            raise MarsError(
                f"{self.model}: found quantization {found!r}, the recipe says {quantization!r}"
            )
        if extractor.sees_images:
            return sets
        require_no_media(self.prompts)
        return replace(sets, media={})

    def files(self) -> tuple[str, ...]:
        """The files that were read."""
        p = self.prompts
        read = (self.model, self.mmproj, p.harmful, p.harmless, p.neutral_text, p.neutral_media)
        given = () if self.direction is None else (self.direction.path,)
        return tuple(str(path) for path in (*read, *given) if path)

    @property
    def _n_thought(self) -> int:
        return self.options.n_thought if isinstance(self.options, GgufOptions) else 0

    def key(self, extractor: Loaded) -> str:
        """Names all that decides what is seen of a prompt: the model and its mmproj, as far as a
        look at the files tells, its weights' type and revision, how long it may think, and the code
        that sees."""
        files = [f for name in (self.model, self.mmproj) if name for f in _files(Path(name))]
        looks = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        known = f"{code_sha256()} {extractor.backend} {extractor.fingerprint}"
        if isinstance(self.options, CheckpointOptions):  # whose fingerprint knows no weights
            known += f" {self.options.dtype} {self.options.revision}"
        return f"{known} {self._n_thought} {looks}"

    def source(self, extractor: Loaded) -> dict[str, str]:
        """Tells how the vector is made, for its metadata."""
        built_in = self.prompts.harmful is None
        source = {"backend": extractor.backend, "prompts": "built in" if built_in else "files"}
        if extractor.fingerprint.reasoning in ("thought", "answer"):
            source["thoughts"] = f"ended after {self._n_thought} tokens"
        if not extractor.fingerprint.name:
            source["model"] = printable(Path(self.model).name)
        if self.direction is not None:
            source["direction"] = self.direction.origin
            if self.direction.path is not None:
                source["direction_sha256"] = sha256(self.direction.path)
        if isinstance(self.options, CheckpointOptions) and self.options.revision is not None:
            source["revision"] = self.options.revision
        if self.prompts.quick:
            source["quick"] = "measured on a quarter of the prompts"
        if self.prompts.system_prompt is not None:
            source["system_prompt"] = self.prompts.system_prompt
        return source


def _files(path: Path) -> list[Path]:
    """Lists the files of a model: one, those of a folder, or none where it is on a hub."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in inside if file.is_file()]
