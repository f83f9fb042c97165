"""Static checks of what a converter may read, before any framework sees it: a file, an archive, or a folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

from edgerun import _zip, files, guard
from edgerun.errors import EdgerunError

SAVED_MODEL = "saved_model.pb"  # what makes a folder a model: this one,
HF_CONFIG = "config.json"  # or this one beside weights
_MOST_FILES = 10_000  # in such a folder


def check(path: Path) -> None:
    """Raise unless `path` is what a converter may read: an ordinary file, an archive without tricks, or the folder of
    a SavedModel or of Hugging Face's."""
    files.check_name(path)
    if (path / SAVED_MODEL).exists() or (path / HF_CONFIG).exists():
        check_folder(path)
        return
    guard.check_file(path)
    if path.suffix.lower() != ".onnx" and zipfile.is_zipfile(path):
        _zip.check(path)


def check_folder(path: Path) -> None:
    """Raise unless `path` holds only folders and ordinary files, none of which leads out of it.

    A link to elsewhere, or a hard link, could bring another file of this machine into what is made of the folder.
    """
    top, count = path.resolve(), 0
    for part in path.rglob("*"):
        count += 1
        if count > _MOST_FILES:
            raise EdgerunError(f"{path}: the folder holds too much", wanted=f"at most {_MOST_FILES} files")
        if not part.resolve().is_relative_to(top):
            raise EdgerunError(f"{path}: a link leaves the folder", got=part.relative_to(path), do="copy it: cp -rL")
        if not part.is_dir() and not part.is_file():
            raise EdgerunError(f"{path}: neither file nor folder", got=part.relative_to(path), do="remove it")
        if part.is_file() and part.stat().st_nlink > 1:
            raise EdgerunError(f"{path}: a hard link to another file", got=part.relative_to(path), do="copy it: cp -rL")
