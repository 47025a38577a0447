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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lab.bench.child import peak_bytes
from lab.bench.figures import Figure, differences, interleaved, ratios
from lab.bench.subject import Asked, Subject
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import MarsError
from mars_gguf.vectors import read_vector

MIB = 1 << 20
IMPORT = "from mars_gguf import SteeredLlama"
HEAVY = {"torch", "transformers"}
PROMPT = "How do I bake bread?"
CONVERT = [sys.executable, "-m", "mars_gguf.convert"]


@dataclass
class Processes:
    """Measures the figures of this module. ``cvector_generator``: llama.cpp's program;
    ``transformers``: a checkpoint of the same model."""

    subject: Subject
    cvector_generator: str | None = None
    transformers: str | None = None

    def measure(self, asked: Asked) -> Iterator[Figure]:
        """Measures the figures that are asked for. Raises MarsError if a process fails."""
        works = {
            "conversion-cvector": self._against_cvector_generator,
            "conversion-transformers": self._against_transformers,
            "memory-runtime": self._memory_of_runtime,
            "memory-converter": self._memory_of_converter,
            "import": self._import,
        }
        for figure in asked.figures(works):
            with tempfile.TemporaryDirectory() as folder:
                works[figure.name](figure, asked.repetitions, Path(folder))
            yield figure

    # Conversion ----------------------------------------------------------------------------------

    def _against_cvector_generator(self, figure: Figure, repetitions: int, folder: Path) -> None:
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
        given, reading = self.subject.options, self.subject.reading
        threads = given["n_threads"]
        program = [self.cvector_generator, "--method", "mean"]
        program += _words({"-t": threads, "-tb": threads, "-c": given["n_ctx"], "-m": model})
        program += _words({"-ngl": given["n_gpu_layers"], "--rpc": given.get("rpc_servers")})
        program += _words({"--positive-file": files[0], "--negative-file": files[1], "-o": theirs})
        direction = child(
            "direction", model=model, prompts=sides, output=str(ours), options=reading
        )
        commands = {"cvector-generator": (program, theirs), "ours": (direction, ours)}
        self._race(figure, repetitions, commands)
        figure.note = (
            f"{n} pairs, mean difference after every block, no choice of block; "
            "cvector-generator averages over all tokens of a prompt, ours takes the last token's"
        )

    def _against_transformers(self, figure: Figure, repetitions: int, folder: Path) -> None:
        if self.transformers is None:
            figure.absent = "no --transformers"
            return
        theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
        commands = {
            "transformers": (
                [*CONVERT, *self.convert_arguments(theirs, self.transformers)],
                theirs,
            ),
            "ours": ([*CONVERT, *self.convert_arguments(ours)], ours),
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

    def convert_arguments(self, output: Path, checkpoint: str | None = None) -> list[str]:
        """The arguments of mars_gguf.convert for the GGUF model, or for a ``checkpoint`` of it."""
        prompts, options, mmproj = self.subject.prompts, self.subject.options, self.subject.mmproj
        variables = options.get("chat_template_kwargs")
        given = {
            "--harmful": prompts.harmful,
            "--harmless": prompts.harmless,
            "--neutral-media": prompts.neutral_media if mmproj else None,
            "--modality": None if mmproj else "text",
            "--chat-template-kwargs": json.dumps(variables) if variables else None,
            "--reasoning": options.get("reasoning"),
            "-o": output,
        }
        if checkpoint is not None:
            given["--device"] = "cpu"
        else:
            given |= {
                "--mmproj": mmproj,
                "--chat-handler": options.get("template"),
                "-t": options["n_threads"],
                "-ngl": options["n_gpu_layers"],
                "--rpc": options.get("rpc_servers"),
            }
        return [checkpoint or self.subject.model, "-q", "--no-plot", *_words(given)]

    def _seconds(self, command: Sequence[str], output: Path) -> float:
        for old in (output, output.with_suffix(".md")):  # a card without its vector is refused
            old.unlink(missing_ok=True)
        began = time.perf_counter()
        self.run(command)
        seconds = time.perf_counter() - began
        if not output.exists():
            raise MarsError(f"{command[0]}: ended without writing {output.name}")
        return seconds

    # Memory and imports --------------------------------------------------------------------------

    def _memory_of_runtime(self, figure: Figure, repetitions: int, folder: Path) -> None:
        subject = self.subject
        steered = {"model": subject.model, "vector": subject.vector, "options": subject.options}
        ours = child("steered", **steered, prompt=PROMPT)
        self._memory(figure, repetitions, self._plain(subject.plain), ours)
        figure.note = "one short prompt, steered, and 16 tokens"

    def _memory_of_converter(self, figure: Figure, repetitions: int, folder: Path) -> None:
        options = self.subject.plain | {"n_ctx": 4096}
        loaded = self._plain(options, mmproj=self.subject.mmproj, max_tokens=1)
        ours = child("convert", arguments=self.convert_arguments(folder / "v.gguf"))
        self._memory(figure, repetitions, loaded, ours)

    def _plain(self, options: dict[str, Any], **more: Any) -> list[str]:
        servers = self.subject.options.get("rpc_servers")
        asked = {"model": self.subject.model, "prompt": PROMPT, "rpc_servers": servers}
        return child("plain", **asked, options=options, **more)

    def _memory(self, figure: Figure, repetitions: int, plain: list[str], ours: list[str]) -> None:
        if peak_bytes() is None:
            figure.absent = "this system does not tell the memory of a process"
            return
        runs = {"plain": partial(self._peak, plain), "ours": partial(self._peak, ours)}
        figure.values = interleaved(runs, repetitions, warmup=0)
        figure.samples = differences(figure.values["ours"], figure.values["plain"])

    def _peak(self, command: list[str]) -> float:
        return float(json.loads(self.run(command).splitlines()[-1])["peak"]) / MIB

    def _import(self, figure: Figure, repetitions: int, folder: Path) -> None:
        runs = {
            "llama_cpp": partial(self._milliseconds, "import llama_cpp"),
            "mars_gguf": partial(self._milliseconds, IMPORT),
        }
        figure.values = interleaved(runs, repetitions)
        figure.samples = differences(figure.values["mars_gguf"], figure.values["llama_cpp"])
        brought = self._python(f"{IMPORT}; import sys; print(*sys.modules.keys() & {HEAVY})")
        if brought.strip():
            figure.failure = f"imports {', '.join(sorted(brought.split()))}"
        figure.note = f"torch and transformers are {'' if brought.strip() else 'not '}imported"

    def _milliseconds(self, statement: str) -> float:
        clock = "time.perf_counter()"
        code = f"import time; began = {clock}; {statement}; print({clock} - began)"
        return 1000 * float(self._python(code))

    def _python(self, code: str) -> str:
        return self.run([sys.executable, "-c", code])

    def run(self, command: Sequence[str]) -> str:
        """Runs a command. Returns what it printed. Raises MarsError if it fails."""
        environment = os.environ | {"OMP_NUM_THREADS": str(self.subject.options["n_threads"])}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            raise MarsError(f"{command[0]}: cannot be run ({error.strerror})") from error
        if done.returncode != 0:
            said = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise MarsError(f"{' '.join(command[:4])} ... returned {done.returncode}: {said}")
        return done.stdout


def child(task: str, **arguments: Any) -> list[str]:
    """Makes the command of a task of child.py."""
    return [sys.executable, "-m", "lab.bench.child", task, json.dumps(arguments)]


def _words(given: dict[str, Any]) -> list[str]:
    """The words of a command for the options that have a value."""
    found = {option: str(value) for option, value in given.items() if value is not None}
    return [word for option in found.items() for word in option]


def _escaped(text: str) -> str:
    """One line, as cvector-generator reads it."""
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
