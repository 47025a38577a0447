"""How the requests of a published benchmark lie in its authors' files, and become cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.cases import Case, Found, Kind, Media, Unusable, file_below, usable_prompt
from mars_gguf.evaluate.parquet import in_cell, pictures_in_cell
from mars_gguf.evaluate.tables import Row, listed, table

Text = str | Callable[[Row], str]  # a column, or what makes a text of a row
Names = Sequence[str]  # of one picture or video, the first of which that exists is taken


@dataclass(frozen=True)
class Ask:
    """A way to ask what a row holds: as text, or with the files that `media` names, where it names
    any."""

    prompt: Text
    intent: Text = ""
    carrier: str = ""  # said in place of the prompt, which is then the intent
    suffix: str = ""  # of the case's id, where a row is asked in several ways
    modality: str = "image"
    media: Callable[[Row], Sequence[Names]] = lambda row: ()
    folder: str | Callable[[Path], str] = "."  # of the media, from the table's
    answer: Text = ""  # of a question of kind "vqa"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's tables. The id of a case is made of the part of the benchmark (a key of
    `kind`), of the cells of the columns `number` (one that is empty: of the row's place), and of
    the suffix of the ask; without the suffix it is the case's group, unless `group` names it."""

    name: str
    columns: tuple[str, ...]  # that each table has, and that tell it
    asks: tuple[Ask, ...]
    # one for all, by the part of the benchmark that the file's name says, or by file and row
    kind: Kind | Mapping[str, Kind] | Callable[[Path, Row], Kind] = "harmful"
    number: tuple[str, ...] = ()
    category: Text = ""
    group: Text = ""
    # to look for in a folder: names or patterns, or what finds them
    files: tuple[str, ...] | Callable[[Path], list[Path]] = ()
    # of a file, for those whose rows hold several requests
    rows: Callable[[Path, Iterable[str]], Iterator[tuple[str, Row]]] = table

    def find(self, path: Path) -> list[Path]:
        """The tables in a folder, or `path` itself. Raises MarsError if there is none."""
        if path.is_file() or not self.files:
            return [path]
        if callable(self.files):
            return self.files(path)
        found = [file for name in self.files for file in sorted(path.glob(name)) if file.is_file()]
        if not found:
            raise MarsError(
                f"{path}: found none of the files {', '.join(self.files)}; name the file itself"
            )
        return found

    def lies_in(self, folder: Path) -> bool:
        try:
            self.find(folder)
        except MarsError:
            return False
        return self.files != ()

    def cases(self, path: Path) -> Found:
        """All cases of a file or folder. Raises MarsError for one that is not the benchmark's."""
        for file in self.find(path):
            part = _part(file, self.kind) if isinstance(self.kind, Mapping) else ""
            for where, row in self.rows(file, self.columns):
                asked = True
                for ask in self.asks:
                    if ask.carrier and not asked:
                        continue  # there is nothing to point at
                    try:
                        yield self._case(file, part, where, row, ask)
                    except Unusable as problem:
                        yield f"{where}: {problem}"
                        asked = False

    def _case(self, file: Path, part: str, where: str, row: Row, ask: Ask) -> Case:
        kind = self.kind
        if not isinstance(kind, str):
            kind = kind[part] if isinstance(kind, Mapping) else kind(file, row)
        prompt = usable_prompt(_text(row, ask.prompt))
        number = [row[column] or where for column in self.number] or [where]
        folder = ask.folder if isinstance(ask.folder, str) else ask.folder(file)
        media = tuple(_medium(file, folder, names) for names in ask.media(row))
        id_of_row = "-".join(filter(None, (part, *number)))
        group = _text(row, self.group)
        return Case(
            "-".join(filter(None, (id_of_row, ask.suffix))),
            kind,
            ask.modality if media else "text",
            ask.carrier or prompt,
            media,
            _text(row, self.category),
            answer=_text(row, ask.answer) or None,
            intent=prompt if ask.carrier else _text(row, ask.intent),
            group=f"{self.name}:{group}" if group else id_of_row,
        )


def one_of(column: str, *folders: str) -> Callable[[Row], Sequence[Names]]:
    """The picture that a column holds or names, below the table's folder or one of `folders`."""
    return lambda row: [[row[column], *(f"{folder}/{row[column]}" for folder in folders)]]


def with_cells(row: Row, **cells: str) -> Row:
    """The row, with other cells or more of them."""
    return defaultdict(str, {**row, **cells})


def _medium(file: Path, folder: str, names: Names) -> Media:
    if in_cell(names[0]):
        return pictures_in_cell(file, names[0])
    return file_below(file.resolve().parent / folder, names)


def _text(row: Row, text: Text) -> str:
    if callable(text):
        return text(row)
    return row[text] if text else ""


def _part(file: Path, parts: Iterable[str]) -> str:
    """Which part of a benchmark a file is, by its name."""
    named = [part for part in parts if part in file.name.lower()]
    if len(named) != 1:
        raise MarsError(
            f"{file}: which part of the benchmark is it? expected a name with one of "
            f"{listed(parts)}, as the authors' files have"
        )
    return named[0]
