"""What a `.tflite` file tells of its pictures and classes: TFLite's metadata, a FlatBuffer in a buffer of the model.

Fields go by their numbers in metadata_schema.fbs 1.5. Label files lie in a zip archive behind the model.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from edgerun import _flat
from edgerun.converters._tflite_files import Net
from edgerun.errors import EdgerunError
from edgerun.preprocess import Preprocessing
from edgerun.runtime import TensorSpec

_NAME, _IDENTIFIER = "TFLITE_METADATA", b"M001"
_IMAGE, _NORMALIZATION, _AXIS_LABELS = 2, 1, 2  # of ContentProperties, ProcessUnitOptions, AssociatedFileType
_COLOURS = {1: "RGB", 2: "L"}
_LONGEST = 1 << 20  # bytes of a label file
log = logging.getLogger("edgerun")


def read(data: bytes, net: Net, specs: Sequence[TensorSpec]) -> tuple[Preprocessing | None, list[str] | None]:
    """The preprocessing contract of the one input, and the classes of the first output; None for what is not told.

    Metadata that is damaged, or of a picture that does not fit the input, is left out with a note.
    """
    try:
        told = _subgraph(memoryview(data), net.subgraph)
        return (None, None) if told is None else (_contract(told, net, specs), _classes(told, data))
    except (_flat.Malformed, EdgerunError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        log.info("the metadata of the file is left out: %s", error)
        return None, None


def _subgraph(data: memoryview, number: int) -> _flat.Table | None:
    """The SubgraphMetadata of a subgraph."""
    model = _flat.root(data, b"TFL3")
    buffers = list(model.tables(4))
    for entry in model.tables(6):
        index = entry.integer(1, "I")
        if entry.text(0) == _NAME and index < len(buffers):
            start, count = buffers[index].vector(0, 1)
            told = _flat.root(data[start : start + count], _IDENTIFIER)
            return next(islice(told.tables(3), number, None), None)
    return None


def _contract(told: _flat.Table, net: Net, specs: Sequence[TensorSpec]) -> Preprocessing | None:
    """(x - mean) / std of a picture of the input's size, for codes then rounded to them: q = r/scale + zero.

    How a picture comes to that size is not told: it is stretched, between the two nearest pixels on each axis, as
    TFLite's own image classifier does it.
    """
    inputs = list(told.tables(2))
    if len(inputs) != 1 or len(specs) != 1 or len(specs[0].shape) != 4:
        return None
    (tensor,), (spec,) = inputs, specs
    content = tensor.table(3)
    image = content.table(1) if content is not None and content.integer(0, "B") == _IMAGE else None
    colour = _COLOURS.get(image.integer(0, "b")) if image is not None else None
    sizes = spec.shape[1:3]
    if colour is None or not all(isinstance(size, int) for size in sizes):
        return None
    mean, std = np.zeros(1), np.ones(1)
    for unit in tensor.tables(4):
        options = unit.table(1) if unit.integer(0, "B") == _NORMALIZATION else None
        if options is None:
            raise EdgerunError("a step that prepares the input is not understood", got=unit.integer(0, "B"))
        mean, std = (np.array(_floats(options, field), np.float64) for field in (0, 1))
    if (quant := net.tensors[next(iter(net.inputs.values()))].quant) is not None:
        scale, zero = float(quant.scale[0]), float(quant.zero[0])
        mean, std = mean - zero * scale * std, std * scale
    values: dict[str, Any] = {"size": list(sizes), "colour": colour, "layout": "NHWC", "dtype": spec.dtype,
                              "antialias": False, "mean": mean.tolist(), "std": std.tolist()}  # fmt: skip
    return Preprocessing.from_json(values).fitted(specs)


def _floats(table: _flat.Table, field: int) -> list[float]:
    return [float(number) for number in np.array(table.integers(field, "I"), np.uint32).view(np.float32)]


def _classes(told: _flat.Table, data: bytes) -> list[str] | None:
    """The lines of the label file of the first output's axis."""
    for output in islice(told.tables(3), 1):
        for file in output.tables(6):
            if file.integer(2, "b") != _AXIS_LABELS:
                continue
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                info = next((i for i in archive.infolist() if i.filename == file.text(0)), None)
                if info is None or info.file_size > _LONGEST:
                    raise EdgerunError("the label file is missing or too large", got=file.text(0))
                return archive.read(info).decode("utf-8", "replace").splitlines()
    return None
