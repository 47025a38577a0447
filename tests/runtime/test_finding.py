"""The vector that belongs to a model's weights: found in a folder and on a hub (a stand-in on
loopback), by every command, and trusted no more than a file that was given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import ended
from hubs import Files, served
from models import OPTIONS, random_llama
from servers import HARMFUL, chat, running

from mars_gguf import SteeredLlama
from mars_gguf.demo_model import MMPROJ, TEXT_MODEL, VECTOR
from mars_gguf.errors import VectorError
from mars_gguf.runtime.finding import find_vector
from mars_gguf.vectors import MAX_FILE_BYTES, Vector, read_vector, write_vector
from mars_gguf.vectors.shelf import publish

GIVEN = read_vector(VECTOR)
WEIGHTS = GIVEN.model.weights_sha256
MODEL = str(TEXT_MODEL)


def put(folder: Path, *models: dict[str, str], **more: Any) -> Path:
    """A shelf of the demo model's vector, once for each change of the model that it names."""
    for number, changes in enumerate(models or ({},)):
        vector: Vector = replace(GIVEN, model=replace(GIVEN.model, **changes), **more)
        path = folder.parent / f"{folder.name}-{number}.gguf"
        write_vector(vector, path)
        path.with_suffix(".md").write_text("a card", "utf-8")
        publish(folder, [path])
    return folder


def files(shelf: Path) -> Files:
    return {f"vectors/{path.name}": path for path in (shelf / "vectors").iterdir()}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's vectors, which is not there yet."""
    monkeypatch.setenv("MARS_VECTORS", str(tmp_path / "mine"))
    monkeypatch.delenv("MARS_VECTORS_FROM", raising=False)
    return tmp_path / "mine"


def test_the_vector_of_a_model_is_found_by_its_weights(shelf: Path, tmp_path: Path) -> None:
    put(shelf)
    copy = tmp_path / "renamed.gguf"
    copy.symlink_to(TEXT_MODEL)
    assert find_vector(str(copy)) == str(shelf / "vectors" / f"{WEIGHTS}.gguf")
    with pytest.raises(VectorError, match="no vector of these weights"):
        find_vector(random_llama(tmp_path / "other.gguf"))


def test_of_several_the_one_of_this_mmproj_and_this_reasoning_is_taken(shelf: Path) -> None:
    put(shelf, {"mmproj_sha256": "12" * 32}, {"mmproj_sha256": ""}, {}, {"reasoning": "answer"})
    blind, seeing = find_vector(MODEL), find_vector(MODEL, str(MMPROJ))
    thinking = find_vector(MODEL, str(MMPROJ), reasoning="answer")
    numbers = [Path(path).stem.removeprefix(WEIGHTS) for path in (blind, seeing, thinking)]
    assert numbers == ["-2", "-3", "-4"]


def test_where_there_is_none_it_is_said_where_was_looked_and_what_to_do(shelf: Path) -> None:
    put(shelf, {"mmproj_sha256": "12" * 32})
    with pytest.raises(VectorError) as caught:
        find_vector(MODEL, str(MMPROJ), ["not a name"])
    message = str(caught.value)
    assert f"no vector of these weights ({WEIGHTS})" in message
    assert f"{WEIGHTS}.gguf: mmproj_sha256: made for '1212" in message
    assert "not a name: cannot be downloaded" in message
    assert "python -m mars_gguf.convert text-Q4_K_M.gguf" in message


def test_a_vector_of_other_weights_under_the_name_of_these_is_refused(shelf: Path) -> None:
    put(shelf, {"weights_sha256": "ab" * 32})
    path = shelf / "vectors" / f"{'ab' * 32}.gguf"
    path.rename(path.with_stem(WEIGHTS))
    with pytest.raises(VectorError, match="of other weights than its name says"):
        find_vector(MODEL)


def test_a_steered_model_finds_its_vector(shelf: Path) -> None:
    put(shelf)
    options: Any = OPTIONS | {"vector": "auto", "mmproj": str(MMPROJ)}
    with closing(SteeredLlama(MODEL, **options)) as llama:
        assert llama.vectors["mars"].model == GIVEN.model
    with pytest.raises(VectorError, match="must fit by itself"):
        SteeredLlama(MODEL, **options, force=True)


@pytest.mark.parametrize("field", ["chat_template_sha256", "quantization", "tokenizer_sha256"])
def test_a_vector_that_fits_by_force_alone_is_not_taken(field: str, shelf: Path) -> None:
    put(shelf, {field: "ab" * 32})
    with pytest.raises(VectorError, match=f"made for another model:\n  {field}"):
        SteeredLlama(MODEL, vector="auto", mmproj=str(MMPROJ), **OPTIONS)


# The hub -----------------------------------------------------------------------------------------


@pytest.fixture
def hub(shelf: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that knows a hub: org/vectors has the demo model's, org/bad
    one that is damaged, org/none no vectors."""
    good, bad = (files(put(tmp_path / name)) for name in ("good", "bad"))
    bad = {**bad, f"vectors/{WEIGHTS}.gguf": random_bytes()}
    known = {"org/vectors": good, "org/bad": bad, "org/none": {"README.md": b"#"}}
    with served(tmp_path / "hub", known) as environment:
        yield environment


def random_bytes() -> bytes:
    return b"GGUF" + bytes(100)


def find(hub: dict[str, str], *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mars_gguf.vectors", "find", MODEL, *options]
    return subprocess.run(command, env=hub | settings, capture_output=True, text=True)


def test_a_repository_that_the_user_names_is_looked_into_and_no_other(hub: dict[str, str]) -> None:
    nowhere = find(hub)
    assert nowhere.returncode == 2
    assert "org/" not in nowhere.stderr
    named = find(hub, "--vectors-from", "org/none", "--vectors-from", "org/vectors")
    assert named.returncode == 0, named.stderr
    path = Path(named.stdout.strip())
    assert path.read_bytes() == Path(VECTOR).read_bytes() or read_vector(path).model == GIVEN.model
    assert path.with_suffix(".md").read_text("utf-8") == "a card"
    offline = find(hub, MARS_VECTORS_FROM="org/none, org/vectors", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, named.stdout), offline.stderr


def test_a_repository_whose_file_is_damaged_ends_the_search(
    hub: dict[str, str],
) -> None:
    done = find(hub, MARS_VECTORS_FROM="org/bad,org/vectors")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{WEIGHTS}.gguf: " in done.stderr and "Traceback" not in done.stderr


def test_a_file_beyond_all_measure_is_not_downloaded(shelf: Path, tmp_path: Path) -> None:
    large = {f"vectors/{WEIGHTS}.gguf": bytes(MAX_FILE_BYTES + 1)}
    with served(tmp_path / "hub", {"org/large": large}) as hub:
        done = find(hub, "--vectors-from", "org/large")
    assert done.returncode == 2
    assert f".gguf has {MAX_FILE_BYTES + 1} bytes, expected at most" in done.stderr
    assert not [
        path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.stat().st_size
    ]


def test_the_folder_of_the_user_goes_before_a_hub(hub: dict[str, str], shelf: Path) -> None:
    put(shelf)
    done = find(hub, "--vectors-from", "org/bad")
    assert done.stdout.strip() == str(shelf / "vectors" / f"{WEIGHTS}.gguf")


# Commands ----------------------------------------------------------------------------------------


def test_the_chat_takes_what_is_found(hub: dict[str, str], tmp_path: Path) -> None:
    hub = hub | {"MARS_VECTORS_FROM": "org/vectors"}
    named = ["-m", MODEL, "--vector", "auto", "-t", "1"]
    asked = [*named, "-c", "1024", "-p", HARMFUL["content"], "--json", "--temp", "0"]
    command = [sys.executable, "-m", "mars_gguf.chat", *asked]
    done = subprocess.run(
        command, env=hub, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mars"]["layer"] == GIVEN.layer
    assert f"steered by {tmp_path}" in done.stderr


def test_the_server_takes_what_is_found_and_says_so(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(shelf)
    options = ["--model", MODEL, "--mmproj", str(MMPROJ), "--vector", "auto", "--n_threads", "1"]
    with running(tmp_path, *options) as server:
        assert chat(server, [HARMFUL])["mars"]["layer"] == GIVEN.layer
        [model] = json.loads(server.get("/v1/models"))["data"]
    assert WEIGHTS in json.dumps(model)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("chat", ["-p", "Why?", "--vector", "auto"], "no vector of these weights"),
        ("chat", ["-p", "Why?", "--vector", "auto", "--force"], "takes what fits by itself"),
        ("server", ["--vector", "auto", "--force"], "takes what fits by itself"),
        ("server", ["--vector", "x.gguf", "--vectors_from", "a/b"], "is for vector auto"),
    ],
)
def test_what_cannot_be_found_ends_a_command_with_a_message(
    module: str, options: list[str], message: str, shelf: Path
) -> None:
    done = ended(f"mars_gguf.{module}", "--model", MODEL, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
