"""Zip archives as models come in them: looked at member by member, by the directory alone, before anything is read."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath

from edgerun.errors import EdgerunError

_MOST = 1 << 30  # bytes unpacked that any archive may have
_GROWTH = 200  # times its own size, beyond that: weights do not compress so well


def check(path: Path) -> None:
    """Raise unless the archive is whole, every name stands once and inside it, nothing is a link or encrypted, and it
    does not unpack to far more than its own size. Readers disagree about what such archives hold: they are no models.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise EdgerunError(
            f"{path}: the archive is damaged", got=str(error)[:300], do="save or download it again"
        ) from error
    seen: set[str] = set()
    for info in members:
        place = PurePosixPath(info.orig_filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or "\0" in info.orig_filename:
            raise _refused(path, "a member's name leads out of the archive", info.orig_filename)
        if info.filename in seen:
            raise _refused(path, "a name stands twice in the archive", info.filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _refused(path, "a member is a link", info.filename)
        if info.flag_bits & 1:
            raise _refused(path, "a member is encrypted", info.filename)
        seen.add(info.filename)
    unpacked = sum(info.file_size for info in members)
    if unpacked > _MOST and unpacked > _GROWTH * path.stat().st_size:
        raise _refused(path, "the archive unpacks to far more than its own size", f"{unpacked} bytes")


def _refused(path: Path, what: str, got: str) -> EdgerunError:
    return EdgerunError(f"{path}: {what}", got=got, do="get the file from who made it, as it was saved")
