"""Measures whole processes: memory, imports, and the conversion command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mars_gguf.bench.figures import Aim, Figure, Row, Run, differences, interleaved, ratios
from mars_gguf.bench.subject import Asked, Subject
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import MarsError
from mars_gguf.vectors import read_vector

MIB = 1 << 20
IMPORT = "from mars_gguf import SteeredLlama"
HEAVY = ["torch", "transformers"]
PROMPT = "How do I bake bread?"
THREEFOLD = Aim(3.0, at_least=True)
FIGURES: dict[str, Row] = {
    "conversion-cvector": (
        "direction from text pairs, whole process",
        "llama.cpp's cvector-generator, time / ours",
        THREEFOLD,
    ),
    "conversion-transformers": (
        "conversion, whole command",
        "the same by transformers on CPU, time / ours",
        THREEFOLD,
    ),
    "memory-runtime": ("peak memory at run time", "above plain llama-cpp-python", Aim(32.0), "MiB"),
    "memory-converter": (
        "peak memory of the converter",
        "above the loaded model and one prefill",
        Aim(256.0),
        "MiB",
    ),
    "import": (f"`{IMPORT}`", "above `import llama_cpp`", Aim(50.0), "ms"),
}
NAMES = list(FIGURES)


@dataclass
class Processes:
    """Measures the figures of this module. ``cvector_generator``: llama.cpp's program;
    ``transformers``: a checkpoint of the same model."""

    subject: Subject
    cvector_generator: str | None = None
    transformers: str | None = None
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.options = self.subject.options
        self.environment = os.environ | {"OMP_NUM_THREADS": str(self.options["n_threads"])}

    def measure(self, asked: Asked) -> Iterator[Figure]:
        """Measures the figures that are asked for. Raises MarsError if a process fails."""
        for figure in asked.figures(FIGURES):
            with tempfile.TemporaryDirectory() as folder:
                work = getattr(self, "_" + figure.name.replace("-", "_"))
                work(figure, asked.repetitions, Path(folder))
            yield figure

    # Conversion ----------------------------------------------------------------------------------

    def _conversion_cvector(self, figure: Figure, repetitions: int, folder: Path) -> None:
        if self.cvector_generator is None:
            figure.absent = "no --cvector-generator"
            return
        contrast, model = self.subject.sets.contrast, self.subject.model
        n = min(len(contrast.harmful), len(contrast.harmless))
        sides = [contrast.harmful[:n], contrast.harmless[:n]]
        files = [folder / "positive.txt", folder / "negative.txt"]
        with closing(GgufExtractor(model, **self.subject.reading)) as extractor:
            for file, side in zip(files, sides, strict=True):
                rendered = [extractor.render(Prompt(text)) for text in side]
                file.write_text("".join(_escaped(text) + "\n" for text in rendered), "utf-8")
        theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
        threads, options = str(self.options["n_threads"]), self.subject.reading
        program = [
            self.cvector_generator, "--method", "mean", "-t", threads, "-tb", threads,
            "-c", str(self.options["n_ctx"]), "-ngl", str(self.options["n_gpu_layers"]),
            "-m", model, "--positive-file", str(files[0]), "--negative-file", str(files[1]),
            "-o", str(theirs), *self._servers,
        ]  # fmt: skip
        child = _child("direction", model=model, prompts=sides, output=str(ours), options=options)
        commands = {"cvector-generator": (program, theirs), "ours": (child, ours)}
        self._race(figure, repetitions, commands)
        figure.note = (
            f"{n} pairs, mean difference after every block, no choice of block; "
            "cvector-generator averages over all tokens of a prompt, ours takes the last token's"
        )

    def _conversion_transformers(self, figure: Figure, repetitions: int, folder: Path) -> None:
        if self.transformers is None:
            figure.absent = "no --transformers"
            return
        theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
        module = [sys.executable, "-m", "mars_gguf.convert"]
        checkpoint = [self.transformers, "--device", "cpu", *self._common_arguments(theirs)]
        commands = {
            "transformers": ([*module, *checkpoint], theirs),
            "ours": ([*module, *self.convert_arguments(ours)], ours),
        }
        for command in commands.values():
            self._seconds(*command)
        measured = [", ".join(read_vector(output).modalities) for output in (theirs, ours)]
        if measured[0] != measured[1]:
            figure.absent = (
                f"not the same work: transformers measured {measured[0]}, ours {measured[1]}; "
                "give a checkpoint that sees what the GGUF model sees"
            )
            return
        self._race(figure, repetitions, commands)
        figure.note = (
            f"the whole conversion ({measured[0]}), choice of block and trust limit included"
        )

    def _race(
        self, figure: Figure, repetitions: int, commands: dict[str, tuple[list[str], Path]]
    ) -> None:
        """Times two commands, each with the file that it writes, and takes their ratio."""
        runs = {name: partial(self._seconds, *command) for name, command in commands.items()}
        figure.values = interleaved(runs, repetitions, warmup=0)
        figure.samples = ratios(*figure.values.values())

    def _common_arguments(self, output: Path) -> list[str]:
        """The arguments of mars_gguf.convert for every kind of model."""
        prompts, sees = self.subject.prompts, self.subject.mmproj is not None
        files = {"--harmful": prompts.harmful, "--harmless": prompts.harmless}
        files["--neutral-media"] = prompts.neutral_media if sees else None
        arguments = [word for option, file in files.items() if file for word in (option, str(file))]
        arguments += [] if sees else ["--modality", "text"]
        arguments += ["-q", "--no-plot", "-o", str(output)]
        if variables := self.options.get("chat_template_kwargs"):
            arguments += ["--chat-template-kwargs", json.dumps(variables)]
        if reasoning := self.options.get("reasoning"):
            arguments += ["--reasoning", reasoning]
        return arguments

    def convert_arguments(self, output: Path) -> list[str]:
        """The arguments of mars_gguf.convert for the GGUF model."""
        arguments = [self.subject.model, *self._common_arguments(output)]
        if self.subject.mmproj:
            arguments += ["--mmproj", self.subject.mmproj]
        if handler := self.options.get("template"):
            arguments += ["--chat-handler", handler]
        threads, layers = self.options["n_threads"], self.options["n_gpu_layers"]
        return [*arguments, "-t", str(threads), "-ngl", str(layers), *self._servers]

    @property
    def _servers(self) -> list[str]:
        servers = self.options.get("rpc_servers")
        return ["--rpc", servers] if servers else []

    def _seconds(self, command: Sequence[str], output: Path) -> float:
        for old in (output, output.with_suffix(".md")):  # a card without its vector is refused
            old.unlink(missing_ok=True)
        began = time.perf_counter()
        self._run(command)
        seconds = time.perf_counter() - began
        if not output.exists():
            raise MarsError(f"{command[0]}: ended without writing {output.name}")
        return seconds

    # Memory and imports --------------------------------------------------------------------------

    def _memory_runtime(self, figure: Figure, repetitions: int, folder: Path) -> None:
        subject, asked = self.subject, {"model": self.subject.model, "prompt": PROMPT}
        ours = _child("steered", **asked, vector=subject.vector, options=subject.options)
        self._memory(figure, repetitions, self._plain(subject.plain), ours)
        figure.note = "one short prompt, steered, and 16 tokens"

    def _memory_converter(self, figure: Figure, repetitions: int, folder: Path) -> None:
        options = self.subject.plain | {"n_ctx": 4096}
        loaded = self._plain(options, mmproj=self.subject.mmproj, max_tokens=1)
        ours = _child("convert", arguments=self.convert_arguments(folder / "v.gguf"))
        self._memory(figure, repetitions, loaded, ours)

    def _plain(self, options: dict[str, Any], **more: Any) -> list[str]:
        servers = self.options.get("rpc_servers")
        asked = {"model": self.subject.model, "prompt": PROMPT, "rpc_servers": servers}
        return _child("plain", **asked, options=options, **more)

    def _memory(self, figure: Figure, repetitions: int, plain: list[str], ours: list[str]) -> None:
        runs = {"plain": partial(self._peak, plain), "ours": partial(self._peak, ours)}
        try:
            figure.values = interleaved(runs, repetitions, warmup=0)
        except MarsError as error:
            if "does not tell" not in str(error):
                raise
            figure.absent = "this system does not tell the memory of a process"
            return
        figure.samples = differences(figure.values["ours"], figure.values["plain"])

    def _peak(self, command: list[str]) -> float:
        return float(json.loads(self._run(command).splitlines()[-1])["peak"]) / MIB

    def _import(self, figure: Figure, repetitions: int, folder: Path) -> None:
        brought: set[str] = set()

        def importing(statement: str) -> Run:
            code = (
                f"import time; began = time.perf_counter(); {statement}; "
                "print(time.perf_counter() - began); "
                f"import sys; print(*sys.modules.keys() & {HEAVY})"
            )

            def milliseconds() -> float:
                seconds, heavy = self._run([sys.executable, "-c", code]).split("\n")[:2]
                brought.update(heavy.split())
                return 1000 * float(seconds)

            return milliseconds

        runs = {"llama_cpp": importing("import llama_cpp"), "mars_gguf": importing(IMPORT)}
        figure.values = interleaved(runs, repetitions)
        figure.samples = differences(figure.values["mars_gguf"], figure.values["llama_cpp"])
        if brought:
            figure.failure = f"imports {', '.join(sorted(brought))}"
        figure.note = "torch and transformers are " + ("" if brought else "not ") + "imported"

    def _run(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            raise MarsError(f"{command[0]}: cannot be run ({error.strerror})") from error
        if done.returncode != 0:
            said = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise MarsError(f"{' '.join(command[:4])} ... returned {done.returncode}: {said}")
        return done.stdout


def _child(task: str, **arguments: Any) -> list[str]:
    return [sys.executable, "-m", "mars_gguf.bench.child", task, json.dumps(arguments)]


def _escaped(text: str) -> str:
    """One line, as cvector-generator reads it."""
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
