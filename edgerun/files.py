"""Files that are either the old one or the new one, never half."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from edgerun.errors import EdgerunError

_placed: dict[Path, int] = {}  # the inode of what `replacing` puts there; of what comes too late, another's is found
lasting = True  # False in a limited child: what it leaves, its parent writes anew or moves, by `replacing`


def path_of(source: object, wanted: str, do: str) -> Path:
    """`source` as a Path. Raises EdgerunError, which does not print it, for what names no file."""
    if isinstance(source, (str, os.PathLike)) and isinstance(os.fspath(source), str):
        return Path(source)
    got = f"{len(source)} bytes" if isinstance(source, (bytes, bytearray)) else type(source).__name__
    raise EdgerunError("a file is given by its path", got=got, wanted=wanted, do=do)


def check_name(path: Path) -> None:
    """Raise for a name that no file system here can hold (too long, or with a NUL)."""
    try:
        path.exists()
    except (OSError, ValueError) as error:
        got = f"{str(path)[:80]}: {error.args[-1]}"
        raise EdgerunError("not a usable file name", got=got, do="choose another name") from error


def refuse_overwrite(path: Path, force: bool) -> None:
    """Raise unless `path` can be written: its folder exists, it is free, or `force` is set."""
    check_name(path)
    if path.is_dir():
        raise EdgerunError("the output is a folder", got=path, wanted="a file name", do="give -o FILE")
    if not path.parent.is_dir():
        raise EdgerunError("the output's folder does not exist", got=path.parent, do=f"mkdir -p {path.parent}")
    if path.exists() and not force:
        raise EdgerunError("the output exists", got=path, do="give another -o, or --force to replace it")


def refuse_same(output: Path, *sources: object) -> None:
    """Raise when `output` is the file of one of `sources`, by any name or link; what is no path is none."""
    for source in sources:
        if not isinstance(source, (str, Path)):
            continue
        with contextlib.suppress(OSError, ValueError):  # what is not there, or is no name, is another's to tell
            if output.samefile(source):
                what = "the output would replace what it is made from"
                raise EdgerunError(what, got=output, wanted="a file of its own", do="give it another name")


def placed() -> list[Path]:
    """What `replacing` has put in place in this process: who is interrupted at any instruction is told so."""
    return [path for path, inode in _placed.items() if path.exists() and path.stat().st_ino == inode]


@contextlib.contextmanager
def replacing(path: Path, *, told: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block ends well, delete it otherwise.

    The bytes are synced before the rename, so that a power cut leaves the old file or the new one. `told`: `placed`
    tells of it. A full disk becomes an EdgerunError that names the place.
    """
    # Its name is known before it is there: who is interrupted while it is made leaves nothing, either.
    temporary = path.with_name(f".{path.name[:100]}.{os.urandom(8).hex()}{path.suffix}")
    try:
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        if lasting:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        if told:
            _placed[path] = temporary.stat().st_ino
        temporary.replace(path)
    except OSError as error:
        raise EdgerunError(
            f"could not write {path}", got=error.strerror or str(error), do="free space or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes, *, told: bool = True) -> None:
    """Write `data` to `path` atomically; `told` as in `replacing`."""
    with replacing(Path(path), told=told) as temporary:
        temporary.write_bytes(data)
