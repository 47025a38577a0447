"""Makes cases of the files of published suites, by the table data/benchmarks.toml."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as files_of
from os.path import splitext
from pathlib import Path
from typing import Any

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.cases import (
    Case,
    Found,
    Kind,
    Medium,
    StoredPicture,
    Unusable,
    file_below,
    usable_prompt,
)
from mars_gguf.evaluate.tables import PLACE, Row, listed, table
from mars_gguf.modalities import IMAGE, TEXT, VIDEO

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Ask:
    """One way in which a row is asked. Texts are templates of the row's cells.

    name: ends the ids of cases, where there are several ways.
    context: put before the prompt, if there is one.
    media: names that one picture or film may have below the benchmark's folder, with any ending of
        a picture; or the column that holds it. A row without a picture is asked as text.
    """

    prompt: str
    name: str = ""
    context: str = ""
    media: Sequence[str] = ()
    modality: str = IMAGE.name


@dataclass(frozen=True)
class Benchmark:
    """Says where a published suite is, and what its columns are. Texts are templates.

    source, licence: of the files, for those who look for them.
    columns: those that each file has, by which it is told.
    files: names or patterns to look for in a folder; none, if a file must be named.
    kind: one for all, or a "column", and the kind for each text in it.
    id: of a case; an empty one becomes the row's place. group: if it is not the id.
    folder: media lie below it; given from the file's own.
    """

    name: str
    source: str
    licence: str
    columns: Sequence[str]
    asks: Sequence[Ask]
    files: Sequence[str] = ()
    kind: Kind | Mapping[str, Any] = "harmful"
    id: str = ""
    group: str = ""
    category: str = ""
    intent: str = ""
    folder: str = "."

    def files_in(self, folder: Path) -> list[Path]:
        """Lists the benchmark's files in a folder."""
        return [file for name in self.files for file in sorted(folder.glob(name)) if file.is_file()]

    def cases(self, path: Path) -> Found:
        """Yields all cases of a file or folder. Raises MarsError if it is not the benchmark's."""
        found = self.files_in(path) if path.is_dir() and self.files else [path]
        if not found:
            raise MarsError(
                f"{path}: found none of the files {listed(self.files)}; {self.name} is "
                f"{self.source}. Name the file itself."
            )
        for file in found:
            for row in table(file, self.columns):
                yield from self._cases(file, row)

    def _cases(self, file: Path, row: Row) -> Iterator[Case | str]:
        for ask in self.asks:
            try:
                yield self._case(file, row, ask)
            except Unusable as problem:
                yield f"{row[PLACE]}: {problem}"

    def _case(self, file: Path, row: Row, ask: Ask) -> Case:
        name = self.id.format_map(row) or row[PLACE]
        context, prompt = ask.context.format_map(row), ask.prompt.format_map(row)
        media = tuple(self._media(file, row, ask))
        return Case(
            f"{name}-{ask.name}" if ask.name else name,
            self._kind(row),
            ask.modality if media else TEXT.name,
            usable_prompt(f"{context}\n\n---\n\n{prompt}" if context and prompt else prompt),
            media,
            category=self.category.format_map(row),
            intent=self.intent.format_map(row),
            group=self.group.format_map(row) or name,
        )

    def _kind(self, row: Row) -> Kind:
        if isinstance(self.kind, str):
            return self.kind
        column, *known = self.kind
        label = row[self.kind[column]]
        if label not in known:
            raise Unusable(f"{self.kind[column]} {label!r:.40}, expected {listed(known)}")
        kind: Kind = self.kind[label]
        return kind

    def _media(self, file: Path, row: Row, ask: Ask) -> Iterator[Medium]:
        column = re.fullmatch(r"\{([^{}]*)\}", ask.media[0]) if ask.media else None
        cell = row[column[1]] if column else None
        if isinstance(cell, bytes):
            yield StoredPicture(cell, row[PLACE])
        elif ask.media and (cell != "" or ask.modality == VIDEO.name):
            written = [each.format_map(row) for each in ask.media]
            names = [name for each in written for name in _spelled(each, ask.modality)]
            yield file_below(file.resolve().parent / self.folder, names)


def _spelled(name: str, modality: str) -> list[str]:
    """Spells the names that a file may have: of a film, a folder of its frames comes first; of a
    picture, the ending may be another one than a table says."""
    stem = splitext(name)[0]
    return [stem, name] if modality == VIDEO.name else [name, f"{stem}.jpg", f"{stem}.png"]


_TABLE = files_of("mars_gguf.evaluate") / "data" / "benchmarks.toml"
BENCHMARKS = {
    name: Benchmark(name, **entry | {"asks": [Ask(**ask) for ask in entry["asks"]]})
    for name, entry in tomllib.loads(_TABLE.read_text(encoding="utf-8")).items()
}
