"""The cache: whole entries or none, damage told, and never more than its bounds."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgerun import cache
from edgerun.errors import EdgerunError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_entry_comes_back_until_it_is_removed(place: Path) -> None:
    assert cache.read("kind", "name") is None and not place.exists()
    cache.write("kind", "name", b"old")
    cache.write("kind", "name", iter([b"n", b"ew"]))
    assert cache.read("kind", "name") == b"new" and cache.read("other", "name") is None
    assert [path.name for path in place.rglob("*") if path.is_file()] == ["name"]
    assert place.joinpath("kind").stat().st_mode & 0o777 == 0o700
    (place / "kind" / ".name.half").touch()
    cache.remove("kind", "name")
    cache.remove("kind", "name")
    assert cache.read("kind", "name") is None and not list(place.rglob("*name*"))


def test_a_damaged_entry_is_told(place: Path) -> None:
    """Every bit counts, and so does every byte at the end; what another program left there is no entry."""
    cache.write("kind", "name", b"some bytes")
    path = place / "kind" / "name"
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(EdgerunError, match="damaged"):
            cache.read("kind", "name")
    for other in (b"", whole[:-1], whole + b"\0", b"foreign"):
        path.write_bytes(other)
        with pytest.raises(EdgerunError, match="damaged"):
            cache.read("kind", "name")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(EdgerunError, match="cannot be written"):
        cache.write("kind", "name", b"")


def test_the_folder_keeps_its_bounds(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first, whatever their kind; so do leftovers of killed writers, and what is older than a month."""
    monkeypatch.setattr(cache, "MOST_BYTES", 5 * 148)
    for age in range(10):
        cache.write("odd" if age % 2 else "even", str(age), bytes(100))
        for path in place.glob("*/*"):
            os.utime(path, (0, path.stat().st_mtime - 60))
    assert sorted(path.name for path in place.glob("*/*")) == ["5", "6", "7", "8", "9"]
    now = time.time()
    for name, seconds in ((".half", 7200.0), (".under way", 10.0), ("last year", 3e7)):
        (place / "odd" / name).touch()
        os.utime(place / "odd" / name, (now - seconds, now - seconds))
    cache.write("even", "8", b"")
    assert sorted(path.name for path in place.glob("*/*")) == [".under way", "5", "6", "7", "8", "9"]


def test_a_name_is_made_of_all_parts() -> None:
    assert cache.key("a", "b") == cache.key("a", "b") != cache.key("ab", "")
