"""What is measured once stays measured: results kept under the hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgerun import files


def digest(*parts: object) -> str:
    """SHA-256 over paths' content, and over JSON for everything else."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
        else:
            hashed.update(json.dumps(part, sort_keys=True, default=str).encode())
    return hashed.hexdigest()


def sources(root: Path, folders: Iterable[str]) -> str:
    """SHA-256 over the Python and TOML files below `root`'s folders, names included."""
    found = sorted(p for folder in folders for p in (root / folder).rglob("*") if p.suffix in (".py", ".toml"))
    return digest(*(part for path in found for part in (str(path.relative_to(root)), path)))


class Cells:
    """JSON results in a folder, by name and key; `fresh` forgets what was there."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self._folder, self._fresh = folder, fresh
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of that name and key, made when absent, or when a file it names is gone."""
        path = self._folder / f"{name}.json"
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text())
            if kept["key"] == key and not self._fresh and all(Path(p).exists() for p in kept["files"]):
                result: dict[str, Any] = kept["result"]
                return result
        result = make()
        made = [str(p) for p in result.get("files", [])]
        files.write_bytes(path, json.dumps({"key": key, "files": made, "result": result}, default=str).encode())
        return result
