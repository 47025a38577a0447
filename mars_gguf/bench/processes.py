"""What can only be measured of whole processes: memory, imports, and the conversion command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mars_gguf.bench.figures import Aim, Figure, interleaved, ratios
from mars_gguf.bench.subject import Subject
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import MarsError
from mars_gguf.vectors import read_vector

MIB = 1 << 20
IMPORT = "from mars_gguf import SteeredLlama"
HEAVY = ["torch", "transformers"]
PROMPT = "How do I bake bread?"


def figures() -> list[Figure]:
    return [
        Figure(
            "conversion-cvector",
            "direction from text pairs, whole process",
            "llama.cpp's cvector-generator, time / ours",
            Aim(3.0, at_least=True),
        ),
        Figure(
            "conversion-transformers",
            "conversion, whole command",
            "the same by transformers on CPU, time / ours",
            Aim(3.0, at_least=True),
        ),
        Figure(
            "memory-runtime",
            "peak memory at run time",
            "above plain llama-cpp-python",
            Aim(32.0),
            "MiB",
        ),
        Figure(
            "memory-converter",
            "peak memory of the converter",
            "above the loaded model and one prefill",
            Aim(256.0),
            "MiB",
        ),
        Figure("import", f"`{IMPORT}`", "above `import llama_cpp`", Aim(50.0), "ms"),
    ]


NAMES = [figure.name for figure in figures()]


class Processes:
    """Measures the figures of this module. ``cvector_generator``: llama.cpp's program;
    ``transformers``: a checkpoint of the same model."""

    def __init__(
        self,
        subject: Subject,
        *,
        cvector_generator: str | None = None,
        transformers: str | None = None,
    ) -> None:
        self.subject, self.options = subject, subject.options
        self.cvector_generator, self.transformers = cvector_generator, transformers
        self.environment = os.environ | {"OMP_NUM_THREADS": str(self.options["n_threads"])}

    def measure(
        self,
        repetitions: int,
        only: Collection[str],
        started: Callable[[str], object] = lambda name: None,
    ) -> Iterator[Figure]:
        """The figures named in ``only``. Raises MarsError if a process fails."""
        for figure in figures():
            if figure.name in only:
                started(figure.name)
                with tempfile.TemporaryDirectory() as folder:
                    work = getattr(self, "_" + figure.name.replace("-", "_"))
                    work(figure, repetitions, Path(folder))
                yield figure

    # Conversion ----------------------------------------------------------------------------------

    def _conversion_cvector(self, figure: Figure, repetitions: int, folder: Path) -> None:
        if self.cvector_generator is None:
            figure.absent = "no --cvector-generator"
            return
        contrast = self.subject.given.contrast
        n = min(len(contrast.harmful), len(contrast.harmless))
        sides = [contrast.harmful[:n], contrast.harmless[:n]]
        files = [folder / "positive.txt", folder / "negative.txt"]
        extractor = GgufExtractor(self.subject.model, **self.subject.reading)
        try:
            for file, side in zip(files, sides, strict=True):
                rendered = [extractor.render(Prompt(text)) for text in side]
                file.write_text("".join(_escaped(text) + "\n" for text in rendered), "utf-8")
        finally:
            extractor.close()
        outputs = [folder / "theirs.gguf", folder / "ours.gguf"]
        threads = str(self.options["n_threads"])
        theirs = [
            self.cvector_generator, "--method", "mean", "-t", threads, "-tb", threads,
            "-c", str(self.options["n_ctx"]), "-ngl", str(self.options["n_gpu_layers"]),
            "-m", self.subject.model, "--positive-file", str(files[0]),
            "--negative-file", str(files[1]), "-o", str(outputs[0]), *self._servers,
        ]  # fmt: skip
        ours = _child(
            "direction",
            model=self.subject.model,
            prompts=sides,
            output=str(outputs[1]),
            options=self.subject.reading,
        )
        self._race(
            figure,
            repetitions,
            {"cvector-generator": (theirs, outputs[0]), "ours": (ours, outputs[1])},
        )
        figure.note = (
            f"{n} pairs, mean difference after every block, no choice of block; "
            "cvector-generator averages over all tokens of a prompt, ours takes the last token's"
        )

    def _conversion_transformers(self, figure: Figure, repetitions: int, folder: Path) -> None:
        if self.transformers is None:
            figure.absent = "no --transformers"
            return
        outputs = [folder / "theirs.gguf", folder / "ours.gguf"]
        module = [sys.executable, "-m", "mars_gguf.convert"]
        theirs = [*module, self.transformers, "--device", "cpu"]
        theirs += self._common_arguments(outputs[0])
        ours = [*module, *self.convert_arguments(outputs[1])]
        for command, output in zip((theirs, ours), outputs, strict=True):
            self._seconds(command, output)
        measured = [", ".join(read_vector(output).modalities) for output in outputs]
        if measured[0] != measured[1]:
            figure.absent = (
                f"not the same work: transformers measured {measured[0]}, ours {measured[1]}; "
                "give a checkpoint that sees what the GGUF model sees"
            )
            return
        self._race(
            figure, repetitions, {"transformers": (theirs, outputs[0]), "ours": (ours, outputs[1])}
        )
        figure.note = (
            f"the whole conversion ({measured[0]}), choice of block and trust limit included"
        )

    def _race(
        self, figure: Figure, repetitions: int, commands: dict[str, tuple[list[str], Path]]
    ) -> None:
        """Time two commands, each with the file that it writes; how much longer the first takes."""
        runs = {name: partial(self._seconds, *command) for name, command in commands.items()}
        figure.values = interleaved(runs, repetitions, warmup=0)
        figure.samples = ratios(*figure.values.values())

    def _common_arguments(self, output: Path) -> list[str]:
        """Of mars_gguf.convert, for every kind of model."""
        prompts = self.subject.given.prompts
        files = {"--harmful": prompts.harmful, "--harmless": prompts.harmless}
        files["--neutral-media"] = prompts.neutral_media if self.subject.mmproj else None
        arguments = [word for option, file in files.items() if file for word in (option, str(file))]
        arguments += [] if self.subject.mmproj else ["--modality", "text"]
        arguments += ["-q", "--no-plot", "-o", str(output)]
        if variables := self.options.get("chat_template_kwargs"):
            arguments += ["--chat-template-kwargs", json.dumps(variables)]
        if reasoning := self.options.get("reasoning"):
            arguments += ["--reasoning", reasoning]
        return arguments

    def convert_arguments(self, output: Path) -> list[str]:
        """Of mars_gguf.convert, for the GGUF model."""
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
        self._memory(
            figure,
            repetitions,
            plain=_child("plain", **asked, options=subject.plain, **self._known),
            steered=_child("steered", **asked, vector=subject.vector, options=subject.options),
        )
        figure.note = "one short prompt, steered, and 16 tokens"

    def _memory_converter(self, figure: Figure, repetitions: int, folder: Path) -> None:
        subject = self.subject
        loaded = _child(
            "prefill",
            model=subject.model,
            mmproj=subject.mmproj,
            prompt=PROMPT,
            options=subject.plain | {"n_ctx": 4096},
            **self._known,
        )
        self._memory(
            figure,
            repetitions,
            plain=loaded,
            converter=_child("convert", arguments=self.convert_arguments(folder / "v.gguf")),
        )

    @property
    def _known(self) -> dict[str, str | None]:
        """What makes plain models go to RPC servers."""
        return {"rpc_servers": self.options.get("rpc_servers")}

    def _memory(self, figure: Figure, repetitions: int, **commands: list[str]) -> None:
        runs = {name: self._peak(command) for name, command in commands.items()}
        try:
            figure.values = interleaved(runs, repetitions, warmup=0)
        except MarsError as error:
            if "does not tell" not in str(error):
                raise
            figure.absent = "this system does not tell the memory of a process"
            return
        below, above = figure.values.values()
        figure.samples = [b - a for a, b in zip(below, above, strict=True)]

    def _peak(self, command: list[str]) -> Callable[[], float]:
        return lambda: float(json.loads(self._run(command).splitlines()[-1])["peak"]) / MIB

    def _import(self, figure: Figure, repetitions: int, folder: Path) -> None:
        brought: set[str] = set()

        def milliseconds(statement: str) -> Callable[[], float]:
            code = (
                f"import time; began = time.perf_counter(); {statement}; "
                "print(time.perf_counter() - began); "
                f"import sys; print(*sys.modules.keys() & {HEAVY})"
            )

            def run() -> float:
                seconds, heavy = self._run([sys.executable, "-c", code]).split("\n")[:2]
                brought.update(heavy.split())
                return 1000 * float(seconds)

            return run

        figure.values = interleaved(
            {
                "llama_cpp": milliseconds("import llama_cpp"),
                "mars_gguf alone": milliseconds("import mars_gguf"),
                "mars_gguf": milliseconds(IMPORT),
            },
            repetitions,
        )
        below, above = figure.values["llama_cpp"], figure.values["mars_gguf"]
        figure.samples = [b - a for a, b in zip(below, above, strict=True)]
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
