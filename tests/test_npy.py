"""Arrays in files: read the same in every pass, and damaged or hostile ones are refused."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.data import open_data
from edgerun.errors import EdgerunError
from edgerun.runtime import TensorSpec

ONE = (TensorSpec("x", "float32", ("n", 3)),)
SAVERS = (np.savez, np.savez_compressed)


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("damage", ["flip", "truncate", "text", "empty"])
def test_damaged_files_are_refused(tmp_path: Path, save: Any, damage: str) -> None:
    path = tmp_path / "d.npz"
    save(path, x=np.random.default_rng(1).integers(0, 200, (1000, 3)))
    data = path.read_bytes()
    middle = len(data) // 2  # in the numbers: only the CRC or the decompressor can tell
    flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
    path.write_bytes({"flip": flipped, "truncate": data[:-500], "text": b"not a zip", "empty": b""}[damage])
    with pytest.raises(EdgerunError, match="cannot read|is empty"):
        list(open_data(path, (TensorSpec("x", "int64", ("n", 3)),)))


@pytest.mark.parametrize("save", SAVERS)
def test_later_passes_give_what_the_first_gave(tmp_path: Path, save: Any) -> None:
    """A file that was checked to its end is read faster then; one that was written anew since is checked again."""
    path, array = tmp_path / "d.npz", np.random.default_rng(1).integers(0, 200, (1000, 3))
    save(path, x=array, y=np.arange(1000))
    data = open_data(path, (TensorSpec("x", "int64", ("n", 3)),), batch=32)
    for _ in range(3):
        np.testing.assert_array_equal(next(iter(data))["x"], array[:32])  # not to its end
    for _ in range(3):
        np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in data]), array)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 0xFF
    path.write_bytes(damaged)
    os.utime(path, ns=(0, 0))
    with pytest.raises(EdgerunError, match="cannot read"):
        list(data)


def test_hostile_members_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "object.npz", x=np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "promise.npz", "w") as archive:
        header = str({"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)}).ljust(117) + "\n"
        size = len(header).to_bytes(2, "little")
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + size + header.encode() + b"\0" * 12)
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("x.npy", b"")
        archive.writestr("x.npy", b"")
    messages = {"object": "neither numeric|cannot read", "promise": "promises more", "twice": "cannot read|twice"}
    for name, message in messages.items():
        with pytest.raises(EdgerunError, match=message):
            open_data(tmp_path / f"{name}.npz", ONE)
