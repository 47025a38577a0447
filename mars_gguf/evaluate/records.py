"""Keeps the record of each case and arm on disk at once, so that a run can go on where it ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mars_gguf import __version__
from mars_gguf.errors import MarsError
from mars_gguf.evaluate.cases import Case, StoredPicture
from mars_gguf.evaluate.judges import Rating
from mars_gguf.files import atomic, sha256
from mars_gguf.openings import Verdict
from mars_gguf.runtime.llama import SteeredLlama

RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Record:
    """One case asked of one arm.

    reply: with the thought, if there is one; ``verdict`` is of the answer alone.
    whole: it was asked for to its end. goes_on: it begins as a refusal and goes on into an answer,
        so that its verdict is "answered".
    correct: of a visual question.
    t: what the arm's geometry measured at the last prompt token.
    tokens: those sampled from the first that gave text, the end of the reply among them.
    first_token_ms, ms: milliseconds, without the encoding of pictures.
    group: what the case is about, one thing with other cases of the same group.
    error: why the case failed.
    """

    case: str
    kind: str
    modality: str
    category: str
    arm: str
    prompt: str
    reply: str = ""
    verdict: Verdict = "unjudged"
    second_verdict: Rating | None = None
    correct: bool | None = None
    t: float = 0.0
    gate: float = 0.0
    alpha: float = 0.0
    tokens: int = 0
    first_token_ms: float = 0.0
    ms: float = 0.0
    group: str = ""
    whole: bool = False
    goes_on: bool = False
    error: str | None = None


class RecordFile:
    """``records.jsonl`` in a folder: one line that says what is run, then one for each record.

    Goes on with the run that the folder holds. Raises MarsError if it is another run.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.path = folder / RECORDS
        self.records = self._read(run) if self.path.exists() else list[Record]()
        lines = [{"run": run}, *map(asdict, self.records)]
        with atomic(self.path) as part:  # whole again, in case the last line was cut off
            part.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    def _read(self, run: dict[str, Any]) -> list[Record]:
        lines = []
        for text in self.path.read_bytes().split(b"\n"):
            with suppress(ValueError, RecursionError):  # of a line that was cut off
                lines.append(json.loads(text))
        try:
            before = dict(lines[0]["run"])
            records = [Record(**line) for line in lines[1:]]
            # What failed, or was not judged, is asked again.
            records = [r for r in records if r.error is None and r.second_verdict != "unjudged"]
        except (LookupError, TypeError, ValueError) as error:
            raise MarsError(f"{self.path}: not the records of a run ({error})") from error
        now = json.loads(json.dumps(run))
        differ = [key for key in now | before if before.get(key) != now.get(key)]
        if differ:
            raise MarsError(
                f"{self.path}: records of another run; {', '.join(differ)} differ"
                f"{'s' * (len(differ) == 1)}. Give the same options, or another --output."
            )
        return records

    def add(self, record: Record) -> None:
        """Keeps a record; it is on disk when this returns."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


def describe_run(
    llama: SteeredLlama, vector: str, cases: Sequence[Case], **options: Any
) -> dict[str, Any]:
    """Describes what makes two runs the same: model, mmproj, vector, cases and options. Pictures
    that are drawn follow from their case's id."""
    asked = hashlib.sha256()
    for case in cases:
        media = [_content(s) for s in case.media if isinstance(s, Path | StoredPicture)]
        asks = case.id, case.kind, case.modality, case.prompt, case.request, case.answer
        facts = *asks, media, [dict(message) for message in case.before]
        asked.update(json.dumps(facts).encode())
    return {
        "version": __version__,
        "model": asdict(llama.fingerprint),
        "vector_sha256": sha256(vector),
        "cases": len(cases),
        "cases_sha256": asked.hexdigest(),
        **options,
    }


def _content(source: Path | StoredPicture) -> list[str]:
    """The hash of a picture that stands in a table, of a file, or of each file of a folder of
    frames, after its name."""
    if isinstance(source, StoredPicture):
        return [hashlib.sha256(source.content).hexdigest()]
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [f"{file.name} {sha256(file)}" for file in files if file.is_file()]
