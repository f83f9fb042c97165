"""The files that a model's source consists of: their names, the disk that they take, their digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgerun import guard


def parts(source: Path) -> list[Path]:
    """The files of a source in name order: those in a folder, or the file and those beside an ONNX model."""
    if source.is_dir():
        return sorted(part for part in source.rglob("*") if part.is_file())
    return [source, *(guard.beside(source) if source.suffix.lower() == ".onnx" else ())]


def stored(source: Path) -> int:
    """The bytes that a source takes on the disk: a hole, which anyone can make of any size, lifts no cap."""
    found = [part.stat() for part in parts(source)]
    return sum(min(status.st_size, 512 * getattr(status, "st_blocks", 0)) for status in found)


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder or a file with data beside it, over the names and digests of all its files."""
    found, top = parts(path), path if path.is_dir() else path.resolve().parent
    if path.is_dir() or len(found) > 1:
        lines = "".join(f"{part.resolve().relative_to(top.resolve()).as_posix()} {_hashed(part)}\n" for part in found)
        return hashlib.sha256(lines.encode()).hexdigest()
    return _hashed(path)


def _hashed(path: Path) -> str:
    hashed, piece = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:  # hashlib.file_digest is Python 3.11's, and a device may have 3.10
        while read := file.readinto(piece):
            hashed.update(piece[:read])
    return hashed.hexdigest()
