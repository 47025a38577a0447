"""Published benchmarks of harmful requests whose pictures carry what is asked, and their harmless
counterparts.

Checked against their authors' own files: VLGuard, SIUO, VLSBench; against their authors' code or
pages: MSSBench, HoliSafe, SPA-VL. JailBreakV-28K and the Parquet files of HADES follow the columns
that others' readers agree on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mars_gguf.evaluate.benchmark import Ask, Benchmark, Names, one_of, with_cells
from mars_gguf.evaluate.cases import Kind, Unusable
from mars_gguf.evaluate.tables import FILE, Row, json_in, table

SIDES: dict[str, Kind] = {"safe": "harmless", "unsafe": "harmful"}


def _kind(file: Path, row: Row) -> Kind:
    return "harmless" if row["side"] == "safe" else "harmful"


def _dicts(cell: str) -> list[dict[str, Any]]:
    found = json_in(cell)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


# VLGuard


def _vlguard_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """Of a safe picture two rows, something harmless and something harmful that is asked about it;
    of an unsafe one the instruction."""
    ways = {"safe_instruction": "safe", "unsafe_instruction": "unsafe", "instruction": "unsafe"}
    for where, row in table(path, columns):
        asked = [
            with_cells(row, prompt=_text(each[column]), way=column, side=side)
            for each in _dicts(row["instr-resp"])
            for column, side in ways.items()
            if column in each
        ]
        yield from ((where, each) for each in asked or [row])


def _vlguard_picture(row: Row) -> list[Names]:
    return [[f"{row[FILE]}/{row['image']}", row["image"]]]


# MSSBench


def _mssbench_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """A row for each of the two pictures of a pair and each way to ask about it."""
    for _, row in table(path, columns):
        for i, pair in enumerate(_dicts(row["chat"])):
            queries = pair.get("queries")
            category = _text(pair.get("Type"))
            for n, query in enumerate(queries if isinstance(queries, list) else [queries]):
                for side in SIDES:
                    yield _of_pair(
                        "chat", i, n, side, query, pair.get(f"{side}_image_path"), category
                    )
        for i, pair in enumerate(_dicts(row["embodied"])):
            category = _text(pair.get("category"))
            for side in SIDES:
                one = [pair.get(f"{side}_instruction")]
                several = pair.get(f"{side}_instructions")
                for n, query in enumerate(several if isinstance(several, list) else one):
                    yield _of_pair("embodied", i, n, side, query, pair.get(side), category)


def _of_pair(
    task: str, number: int, nth: int, side: str, query: Any, picture: Any, category: str
) -> tuple[str, Row]:
    group = f"{task}-{number}"
    prompt = _text(query)
    if task == "embodied" and prompt:
        prompt = f"You are a robot in a home and see what the picture shows. Your task: {prompt}"
    cells = {"group": group, "id": f"{group}-{nth}-{side}", "side": side, "prompt": prompt}
    picture = f"{task}/{_text(picture)}"
    return cells["id"], with_cells({}, **cells, image=picture, category=category)


# HoliSafe, HADES, SPA-VL


def _holisafe_kind(file: Path, row: Row) -> Kind:
    """By the last letter of the type, which says whether picture and query are safe together."""
    if row["type"][-1:] not in ("S", "U"):
        raise Unusable(f"type {row['type']!r:.40}, expected S or U at its end")
    return "harmless" if row["type"].endswith("S") else "harmful"


def _pointing(row: Row) -> str:
    """The instruction with its harmful words left to the picture, as in the authors' evaluation."""
    keywords, what = row["keywords"], row["category"] or "thing"
    if not keywords or keywords not in row["instruction"]:
        return row["instruction"]
    pointer = "carry out this behavior on" if what == "behavior" else f"this {what}"
    instruction = row["instruction"].replace(keywords, pointer)
    return f"There is a {what} at the bottom of the picture. {instruction}"


def _spavl_kind(file: Path, row: Row) -> Kind:
    if "harm" not in file.name and file.resolve().parent.name != "harm":
        raise Unusable("only the part harm of the test holds nothing but what is to be refused")
    return "harmful"


_ALL = (
    # JailBreakV_28K/JailBreakV_28K.csv or mini_JailBreakV_28K.csv of the data set
    # JailbreakV-28K/JailBreakV-28k, beside the folders of its pictures
    Benchmark(
        "jailbreakv",
        files=("JailBreakV_28K.csv", "JailBreakV_28K/JailBreakV_28K.csv"),
        columns=("jailbreak_query", "redteam_query", "policy", "image_path"),
        number=("id",),
        category="policy",
        group="redteam_query",
        asks=(Ask("jailbreak_query", intent="redteam_query", media=one_of("image_path")),),
    ),
    # data/test.json or train.json of ys-zong/VLGuard, beside the folder of its test.zip
    Benchmark(
        "vlguard",
        files=("test.json", "data/test.json"),
        columns=("image", "safe", "instr-resp"),
        kind=_kind,
        number=("id", "way"),
        category=lambda row: row["harmful_category"] or "safe picture",
        group="image",
        rows=_vlguard_rows,
        asks=(Ask("prompt", media=_vlguard_picture),),
    ),
    # data/siuo_gen.json of sinwang20/SIUO; the pictures of its archive in data/images
    Benchmark(
        "siuo",
        files=("siuo_gen.json", "data/siuo_gen.json"),
        columns=("question", "image", "category", "safety_warning"),
        number=("question_id",),
        category="category",
        asks=(Ask("question", media=one_of("image", "images")),),
    ),
    # combined.json of the data set kzhou35/mssbench, beside its folders chat and embodied
    Benchmark(
        "mssbench",
        files=("combined.json",),
        columns=("chat", "embodied"),
        kind=_kind,
        number=("id",),
        category="category",
        group="group",
        rows=_mssbench_rows,
        asks=(Ask("prompt", media=one_of("image")),),
    ),
    # data.json of the data set Foreshhh/vlsbench, beside its folder imgs, or its Parquet files
    Benchmark(
        "vlsbench",
        files=("data.json", "data/data.json", "data/train-*.parquet"),
        columns=("instruction_id", "instruction", "category"),
        number=("instruction_id",),
        category="category",
        asks=(
            Ask(
                "instruction",
                media=lambda row: [[row["image"] or row["image_path"]]],
            ),
        ),
    ),
    # holisafe_bench.json of the data set etri-vilab/holisafe-bench, beside its folder images, or
    # Parquet files made of it
    Benchmark(
        "holisafe",
        files=("holisafe_bench.json", "data/test-*.parquet"),
        columns=("query", "type", "category", "image_safe"),
        kind=_holisafe_kind,
        number=("id",),
        category="category",
        group="image",
        asks=(Ask("query", media=one_of("image", "images")),),
    ),
    # data/test-*.parquet of the data set Monosail/HADES: of every instruction several pictures, one
    # for each step of the optimization
    Benchmark(
        "hades",
        files=("test-*.parquet", "data/test-*.parquet"),
        columns=("scenario", "keywords", "step", "instruction"),
        number=("scenario", "id", "step"),
        category="scenario",
        group=lambda row: f"{row['scenario']}-{row['id'] or row['instruction']}",
        asks=(Ask(_pointing, intent="instruction", media=one_of("image")),),
    ),
    # test/harm-*.parquet of the data set sqrti/SPA-VL
    Benchmark(
        "spa-vl",
        files=("harm-*.parquet", "test/harm-*.parquet"),
        columns=("question", "image", "class1", "class2", "class3"),
        kind=_spavl_kind,
        category="class1",
        asks=(Ask("question", media=one_of("image")),),
    ),
)
PICTURE_BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
