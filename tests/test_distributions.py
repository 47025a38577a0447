"""Wheel and sdist hold what is to be installed, and nothing else.

.ci/run installs them into an empty environment, with a compiler and without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from pages import ROOT

import mars_gguf

for needed in ("build", "setuptools", "twine"):
    pytest.importorskip(needed, reason="needs pip install 'mars-gguf[test]'")

NAME = f"mars_gguf-{mars_gguf.__version__}"
LEFT_BEHIND = ".*", "__pycache__", "*.so", "*.pyd", "*.egg-info", "build", "dist", "site"


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as it is cloned."""
    folder = tmp_path_factory.mktemp("clone") / "mars-gguf"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    return folder


def built(clone: Path, folder: Path, *what: str, **environment: str) -> Path:
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        *what,
        "-o",
        str(folder),
        str(clone),
    ]
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout.decode()
    return folder


@pytest.fixture(scope="module")
def both(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist, and of the wheel that is made of it alone."""
    return built(clone, tmp_path_factory.mktemp("both"))


def test_the_sdist_holds_the_package_and_what_builds_it(both: Path, clone: Path) -> None:
    with tarfile.open(both / f"{NAME}.tar.gz") as archive:
        names = {member.name for member in archive if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    held = {name.removeprefix(f"{NAME}/") for name in names if ".egg-info/" not in name} - made
    around = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
    package = {f"mars_gguf/{name}" for name in below(clone / "mars_gguf")}
    assert held == {*package, *around, "vectors/demo.gguf"}
    assert "mars_gguf/runtime/_tap.c" in held


def test_the_wheel_holds_the_package_with_all_its_data_and_the_compiled_callback(
    both: Path, clone: Path
) -> None:
    (wheel,) = both.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        vector = archive.read("mars_gguf/demo_model/vector.gguf")
    held = {name for name in names if ".dist-info/" not in name}
    (compiled,) = (name for name in held if fnmatch(name, "mars_gguf/runtime/_tap.*"))
    package = {f"mars_gguf/{name}" for name in below(clone / "mars_gguf")}
    package -= {"mars_gguf/runtime/_tap.c"}
    assert held == {*package, "mars_gguf/demo_model/vector.gguf", compiled}
    assert vector == (clone / "vectors/demo.gguf").read_bytes()
    assert {"mars_gguf/py.typed", "mars_gguf/runtime/compat.json"} <= held
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{version}-{version}-" in wheel.name  # of this Python and machine alone
    assert not wheel.name.endswith("-any.whl")


def test_an_index_takes_both_as_they_are_described(both: Path) -> None:
    files = [str(path) for path in both.iterdir()]
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_without_a_compiler_the_wheel_is_the_same_but_for_the_callback(
    both: Path, clone: Path, tmp_path: Path
) -> None:
    (without,) = built(clone, tmp_path, "--wheel", CC="/bin/false").glob("*.whl")
    (wheel,) = both.glob("*.whl")
    lists = [set(zipfile.ZipFile(path).namelist()) for path in (wheel, without)]
    (lost,) = lists[0] - lists[1]
    assert fnmatch(lost, "mars_gguf/runtime/_tap.*")
    assert not lists[1] - lists[0]
