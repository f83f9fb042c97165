"""The post-processing contract as other tools write it: Transformers, timm, and Ultralytics' exports.

    config.json   Transformers' or timm's (edgerun.classifiers)
    model.onnx    its metadata: edgerun's own contract, or task and names of an Ultralytics export

The kind is told by the keys. What is not understood is refused by name: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import contracts, distribution, onnx_file
from edgerun.errors import EdgerunError
from edgerun.postprocess import Postprocessing, not_understood

if TYPE_CHECKING:
    from edgerun.runtime import TensorSpec

OWN = "edgerun.postprocessing"  # of a model's metadata
_ULTRALYTICS = {"task", "imgsz", "stride", "names"}


def read(path: Path) -> dict[str, Any]:
    """The values of a file of any kind above, for `parsed`. Raises EdgerunError for what cannot be read."""
    if path.suffix.lower() != ".onnx":
        return contracts.values(path, "post-processing")
    metadata = onnx_file.metadata(path)
    if OWN in metadata:
        return contracts.own(metadata[OWN], "post-processing")
    if not set(metadata) >= _ULTRALYTICS:
        raise EdgerunError("the model's metadata holds no post-processing contract", got=path)
    return dict(metadata)


def told(metadata: Mapping[str, str], outputs: Sequence[TensorSpec]) -> Postprocessing | None:
    """The contract in a model's metadata: edgerun's own, else that of an Ultralytics export, else None."""
    if OWN in metadata:
        return parsed(contracts.own(metadata[OWN], "post-processing"), outputs)
    return parsed(metadata, outputs) if set(metadata) >= _ULTRALYTICS else None


def parsed(values: Mapping[str, Any], outputs: Sequence[TensorSpec]) -> Postprocessing:
    """The contract that JSON values hold, of the kind that their keys tell, for a model of these outputs."""
    if "id2label" in values or "label_names" in values or isinstance(values.get("pretrained_cfg"), Mapping):
        if distribution.lacks("classifiers"):
            raise distribution.absent("what reads a post-processing file of Transformers or timm")
        from edgerun import classifiers

        found = classifiers.parsed(values)
    elif set(values) >= _ULTRALYTICS:
        found = ultralytics(values, outputs)
    else:
        found = Postprocessing.from_json(values)
    return found.fitted(outputs)


def ultralytics(values: Mapping[str, Any], outputs: Sequence[TensorSpec]) -> Postprocessing:
    """The metadata of an Ultralytics export, with the defaults of its `predict`: boxes above 0.25, an IoU of 0.7, at
    most 300; classifiers end with their softmax in the graph."""
    names = contracts.literal(values, "names")
    if not isinstance(names, dict) or list(names) != list(range(len(names))):
        raise not_understood("names", str(names)[:80], "a name for every number from 0 on")
    labels = [str(name) for name in names.values()]
    if values["task"] == "classify":
        return Postprocessing.from_json({"kind": "classes", "labels": labels})
    shape = outputs[0].shape if len(outputs) == 1 else ()
    if values["task"] != "detect" or len(shape) != 3:
        got = f"{values['task']} with {', '.join(map(str, outputs))}"
        raise not_understood("task", got, "classify, or detect with one output of boxes")
    chosen = shape[2] == 6 and shape[1] != 4 + len(labels)  # corners, score, class: suppressed in the graph
    form = "xyxy_score_class" if chosen else "xywh_classes"
    return Postprocessing.from_json({"kind": "boxes", "format": form, "threshold": 0.25, "iou": 0.7, "most": 300,
                                     "labels": labels})  # fmt: skip


def to_json(contract: Postprocessing | Mapping[str, Any] | str | Path | None) -> dict[str, Any] | None:
    """A contract, or the values of its file, as JSON values for `parsed`."""
    if isinstance(contract, (str, Path)):
        return read(Path(contract))
    if isinstance(contract, Postprocessing):
        return contract.to_json()
    return None if contract is None else dict(contract)
