"""Static checks before any parser sees a file."""

from __future__ import annotations

from pathlib import Path

from edgerun.errors import EdgerunError


def check_file(path: Path) -> None:
    """Raise unless `path` is a readable, non-empty, ordinary file."""
    if not path.exists():
        raise EdgerunError("the file does not exist", got=path, do="check the path")
    if not path.is_file():
        raise EdgerunError("not a file", got=path, wanted="a model file")
    if path.stat().st_size == 0:
        raise EdgerunError("the file is empty", got=path, do="export or download it again")


def check_onnx(path: Path) -> None:
    """Raise unless `path` can be an ONNX model."""
    check_file(path)
