"""Makes cases of the files of published benchmarks, by what a `Benchmark` says of their columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.cases import Case, Found, Kind, Media, Unusable, file_below, usable_prompt
from mars_gguf.evaluate.parquet import in_cell, pictures_in_cell
from mars_gguf.evaluate.tables import PLACE, Row, listed, table
from mars_gguf.modalities import IMAGE, TEXT

Text = str | Callable[[Row], str]  # a column, or what makes a text of a row
Names = Sequence[str]  # of one picture or video, the first of which that exists is taken


@dataclass(frozen=True)
class Benchmark:
    """Says where a benchmark's files are, and what their columns are. A column that is called as
    in our own format (see data/CARD.md) need not be said.

    columns: those that each table has, by which it is told.
    prompt, intent, category, group, answer: as of a `Case`; no row needs the last four.
    files: names or patterns to look for in a folder; none, if a file must be named.
    kind: one for all; by the part of the benchmark, which a file's name says; or by row.
    number: columns that make a case's id, after the part; one that is empty gives the row's place.
    media: the column that holds or names a picture, and folders in which it may lie; or what makes
        the names of each picture or video of a row, none if it is asked as text. All lie below
        ``folder``, which is given from the table's.
    modality: of rows with media.
    rows: reads a file.
    requests: makes the requests of a row, where it holds several.
    """

    name: str
    columns: Sequence[str]
    prompt: Text = "prompt"
    files: Sequence[str] = ()
    kind: Kind | Mapping[str, Kind] | Callable[[Row], Kind] = "harmful"
    number: Sequence[str] = ("id",)
    category: Text = "category"
    group: Text = "group"
    intent: Text = "intent"
    answer: Text = ""
    before: Callable[[Row], tuple[Mapping[str, str], ...]] = lambda row: ()
    media: Sequence[str] | Callable[[Row], Sequence[Names]] = ()
    folder: str = "."
    modality: Text = lambda row: IMAGE.name
    rows: Callable[[Path, Iterable[str]], Iterable[Row]] = table
    requests: Callable[[Row], Iterable[Row]] = lambda row: [row]

    def files_in(self, folder: Path) -> list[Path]:
        """Lists the benchmark's files in a folder."""
        return [file for name in self.files for file in sorted(folder.glob(name)) if file.is_file()]

    def cases(self, path: Path) -> Found:
        """Yields all cases of a file or folder. Raises MarsError if it is not the benchmark's."""
        files = self.files_in(path) if path.is_dir() and self.files else [path]
        if not files:
            raise MarsError(
                f"{path}: found none of the files {listed(self.files)}; name the file itself"
            )
        for file in files:
            part = _part(file, self.kind) if isinstance(self.kind, Mapping) else ""
            for row in chain.from_iterable(map(self.requests, self.rows(file, self.columns))):
                try:
                    yield self._case(file, part, row)
                except Unusable as problem:
                    yield f"{row[PLACE]}: {problem}"

    def _case(self, file: Path, part: str, row: Row) -> Case:
        kind = self.kind
        if not isinstance(kind, str):
            kind = kind[part] if isinstance(kind, Mapping) else kind(row)
        prompt = usable_prompt(_text(row, self.prompt))
        media = tuple(self._medium(file, names) for names in self._names(row))
        answer = _text(row, self.answer)
        if kind == "vqa" and not answer:
            raise Unusable("kind 'vqa' without an answer")
        return Case(
            "-".join(filter(None, (part, *(row[name] or row[PLACE] for name in self.number)))),
            kind,
            _text(row, self.modality) if media else TEXT.name,
            prompt,
            media,
            category=_text(row, self.category),
            answer=answer or None,
            intent=_text(row, self.intent),
            before=self.before(row),
            group=_text(row, self.group),
        )

    def _names(self, row: Row) -> Sequence[Names]:
        if callable(self.media):
            return self.media(row)
        named = [row[column] for column in self.media[:1]]
        return [[name, *(f"{folder}/{name}" for folder in self.media[1:])] for name in named]

    def _medium(self, file: Path, names: Names) -> Media:
        if in_cell(names[0]):
            return pictures_in_cell(file, names[0])
        return file_below(file.resolve().parent / self.folder, names)


def _text(row: Row, text: Text) -> str:
    if callable(text):
        return text(row)
    return row[text] if text else ""


def _part(file: Path, parts: Iterable[str]) -> str:
    """Tells which part of a benchmark a file is, by its name."""
    named = [part for part in parts if part in file.name.lower()]
    if len(named) != 1:
        raise MarsError(
            f"{file}: which part of the benchmark is it? expected a name with one of "
            f"{listed(parts)}, as the authors' files have"
        )
    return named[0]
