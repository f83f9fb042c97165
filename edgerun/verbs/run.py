"""Run: a model file, one set of feeds, and its outputs in a file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgerun import files, guard
from edgerun.errors import EdgerunError
from edgerun.npy import read_npz
from edgerun.runtime import Options
from edgerun.verbs.feeds import DeviceLike, opened


def run(
    model: str | Path,
    feeds: str | Path,
    output: str | Path | None = None,
    *,
    target: str | None = None,
    device: DeviceLike | None = None,
    options: Options | None = None,
    checked: bool = False,
    force: bool = False,
) -> dict[str, np.ndarray]:
    """The outputs by name of `model` (or `model@target`), for the arrays of an `.npz` named as its inputs, fed whole.

    `device` is a board, or hardware in the target's own word, and a `checked` model is compared with the reference
    before it runs, as in `edgerun.load`.

    With `output` they are also written there, as `.npz`, atomically. Raises EdgerunError for feeds that do not fit.
    """
    feeds = Path(feeds)
    if output is not None:
        output = Path(output)
        if output.suffix != ".npz":
            raise EdgerunError("outputs are written as .npz", got=output.name, wanted="-o NAME.npz")
        files.refuse_same(output, feeds)
        files.refuse_overwrite(output, force)
    if feeds.suffix != ".npz":
        raise EdgerunError("feeds are read from .npz", got=feeds.name, wanted="arrays named as the model's inputs")
    guard.check_file(feeds)
    stored = read_npz(feeds)
    with opened(model, target, options, device, checked) as session:
        wanted = {spec.name for spec in (*session.inputs, *session.defaults)}
        # A surplus array is named by the session and is not read: it may be large.
        arrays = {name: array.whole() if name in wanted else np.empty(0) for name, array in stored.items()}
        outputs = session.run(arrays)
    if output is not None:
        write_npz(output, outputs)
    return outputs


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an `.npz` that `numpy.load` reads: uncompressed, atomic, the same bytes for the same arrays."""
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            if isinstance(array, np.ndarray) and array.dtype.kind == "O" and all(type(a) is str for a in array.flat):
                array = array.astype(str)  # of fixed width, which needs no pickle
            if not isinstance(array, np.ndarray) or array.dtype.kind in "OV":
                kind = array.dtype.name if isinstance(array, np.ndarray) else "a sequence, or nothing"
                what = "an .npz holds no such output"
                raise EdgerunError(what, got=f"{name}: {kind}", wanted="numbers that numpy has a type for",
                                   do="leave -o out, or use edgerun.load from Python")  # fmt: skip
            with archive.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
