"""The post-processing contract as other tools write it: Transformers, timm, and Ultralytics' exports.

    config.json   Transformers': architectures, id2label, problem_type; or timm's: label_names beside pretrained_cfg
    model.onnx    its metadata: edgerun's own contract, or task and names of an Ultralytics export

The kind is told by the keys. What is not understood is refused by name: nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import contracts, onnx_file
from edgerun.errors import EdgerunError
from edgerun.postprocess import Postprocessing

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.runtime import TensorSpec

OWN = "edgerun.postprocessing"  # of a model's metadata
_CLASSIFIERS = ("ForImageClassification", "ForSequenceClassification", "ForAudioClassification")
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


def of(model: Model) -> Postprocessing | None:
    """The contract in a model's metadata: edgerun's own, else that of an Ultralytics export, else None."""
    if model.postprocessing is not None:
        return Postprocessing.from_json(model.postprocessing).fitted(model.outputs)
    return told(model.ir.metadata_props, model.outputs)


def told(metadata: Mapping[str, str], outputs: Sequence[TensorSpec]) -> Postprocessing | None:
    """As `of`, from what `Session.metadata` says."""
    if OWN in metadata:
        return parsed(contracts.own(metadata[OWN], "post-processing"), outputs)
    return parsed(metadata, outputs) if set(metadata) >= _ULTRALYTICS else None


def parsed(values: Mapping[str, Any], outputs: Sequence[TensorSpec]) -> Postprocessing:
    """The contract that JSON values hold, of the kind that their keys tell, for a model of these outputs."""
    if "id2label" in values:
        found = transformers(values)
    elif "label_names" in values or isinstance(values.get("pretrained_cfg"), Mapping):
        found = timm(values)
    elif set(values) >= _ULTRALYTICS:
        found = ultralytics(values, outputs)
    else:
        found = Postprocessing.from_json(values)
    return found.fitted(outputs)


def transformers(values: Mapping[str, Any]) -> Postprocessing:
    """`config.json` of a classifier: softmax, or sigmoid above ½ where classes don't exclude each other."""
    if not classifies(values):
        raise _refused("architectures", values.get("architectures"), f"one that ends with {', '.join(_CLASSIFIERS)}")
    how = values.get("problem_type")
    if how not in (None, "single_label_classification", "multi_label_classification"):
        raise _refused("problem_type", how, "single_label_classification or multi_label_classification")
    names = values["id2label"]
    given = {str(key): name for key, name in names.items()} if isinstance(names, Mapping) else {}
    labels = [given.get(str(number)) for number in range(len(given))]
    if not labels or None in labels:
        raise _refused("id2label", str(names)[:80], "a label for every number from 0 on")
    several = {"activation": "sigmoid", "threshold": 0.5} if how == "multi_label_classification" else {}
    return Postprocessing.from_json({"kind": "classes", "activation": "softmax", "labels": labels, **several})


def classifies(values: Mapping[str, Any]) -> bool:
    """Does a `config.json` of Transformers speak of a classifier? Every config has labels, also where nothing does."""
    kinds = values.get("architectures")
    return isinstance(kinds, list) and bool(kinds) and str(kinds[0]).endswith(_CLASSIFIERS)


def timm(values: Mapping[str, Any]) -> Postprocessing:
    """timm's `config.json`: softmax, and `label_names` where it has them."""
    cfg = values.get("pretrained_cfg")
    names = values.get("label_names") or (cfg.get("label_names") if isinstance(cfg, Mapping) else None) or []
    if not isinstance(names, list):
        raise _refused("label_names", str(names)[:80], "a list of texts")
    return Postprocessing.from_json({"kind": "classes", "activation": "softmax", "labels": names})


def ultralytics(values: Mapping[str, Any], outputs: Sequence[TensorSpec]) -> Postprocessing:
    """The metadata of an Ultralytics export, with the defaults of its `predict`: boxes above 0.25, an IoU of 0.7, at
    most 300; classifiers end with their softmax in the graph."""
    names = contracts.literal(values, "names")
    if not isinstance(names, dict) or list(names) != list(range(len(names))):
        raise _refused("names", str(names)[:80], "a name for every number from 0 on")
    labels = [str(name) for name in names.values()]
    if values["task"] == "classify":
        return Postprocessing.from_json({"kind": "classes", "labels": labels})
    shape = outputs[0].shape if len(outputs) == 1 else ()
    if values["task"] != "detect" or len(shape) != 3:
        got = f"{values['task']} with {', '.join(map(str, outputs))}"
        raise _refused("task", got, "classify, or detect with one output of boxes")
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


def short(values: Mapping[str, Any]) -> str:
    """A contract's JSON for a line: how many labels, in place of a thousand."""
    labels = values.get("labels", ())
    return json.dumps({**values, "labels": f"{len(labels)} labels"} if len(labels) > 5 else dict(values))


def _refused(key: str, got: object, wanted: str) -> EdgerunError:
    return EdgerunError(
        f"{key!r} of the post-processing file is not understood", got=got, wanted=wanted,
        do="write the contract by hand: kind, output, labels, most, threshold, activation, format, iou",
    )  # fmt: skip
