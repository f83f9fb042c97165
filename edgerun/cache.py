"""What outlives a run: one folder of whole files, bounded in size and age. Losing it costs time and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edgerun import files
from edgerun.errors import EdgerunError

VARIABLE, DEFAULT = "EDGERUN_CACHE", "~/.cache/edgerun"
MOST_BYTES, OLDEST = 1 << 30, 30 * 86400.0  # of the whole folder; seconds since an entry was written
ABANDONED = 3600.0  # seconds after which a temporary file belongs to nobody
MAGIC = b"edgerun cache 1\n"


def folder() -> Path:
    """$EDGERUN_CACHE, else ~/.cache/edgerun. It need not exist."""
    return Path(os.environ.get(VARIABLE) or DEFAULT).expanduser()


def key(*parts: str) -> str:
    """A name for an entry, from all that its content depends on."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def read(kind: str, name: str) -> bytes | None:
    """The entry `name` of a `kind` (a subfolder), or None where there is none.

    Raises EdgerunError for one that cannot be read, or is not, to the byte, what `write` wrote.
    """
    path = folder() / kind / name
    try:
        with open(path, "rb") as file:
            magic, digest, data = file.read(len(MAGIC)), file.read(32), file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EdgerunError("a cache entry cannot be read", got=f"{path}: {error.strerror}") from error
    if magic != MAGIC or hashlib.sha256(data).digest() != digest:
        raise EdgerunError("a cache entry is damaged", got=path)
    return data


def write(kind: str, name: str, data: bytes | Iterator[bytes]) -> None:
    """Put `data`, in one piece or several, there atomically, in place of what was there.

    Drops what is too old or too much of the rest. Raises EdgerunError where the folder cannot be written.
    """
    path = folder() / kind / name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EdgerunError("the cache cannot be written", got=f"{path.parent}: {error.strerror}") from error
    hashed = hashlib.sha256()
    with files.replacing(path, told=False) as temporary, open(temporary, "wb") as file:
        file.write(MAGIC + hashed.digest())  # its place; the data's own is known in the end
        for piece in [data] if isinstance(data, bytes) else data:
            hashed.update(piece)
            file.write(piece)
        file.seek(len(MAGIC))
        file.write(hashed.digest())
    _prune(path)


def remove(kind: str, name: str) -> None:
    """Forget an entry, if there is one, and what killed writers of it have left."""
    place = folder() / kind
    for path in (place / name, *place.glob(f".{name}.*")):
        with contextlib.suppress(OSError):
            path.unlink()


def _prune(kept: Path) -> None:
    """Remove entries from the oldest on until the folder keeps its bounds; `kept` stays."""
    found, now, total = [], time.time(), 0
    for path in folder().glob("*/*"):
        with contextlib.suppress(OSError):  # another process may have removed it
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    for written, size, path in sorted(found, reverse=True):
        total += size
        old = now - written > (ABANDONED if path.name.startswith(".") else OLDEST)
        if path != kept and (old or total > MOST_BYTES):
            with contextlib.suppress(OSError):
                path.unlink()
