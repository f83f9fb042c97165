"""`nncf.quantize`, done by `edgerun.compress`, with the names that its users reach through `nncf`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.compat._nodes import Nodes, heard, member, refuse
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model

if TYPE_CHECKING:
    from edgerun.verbs.compress import Indexed

__all__ = ["Dataset", "IgnoredScope", "ModelType", "QuantizationPreset", "TargetDevice", "quantize"]

QuantizationPreset = Enum("QuantizationPreset", {"PERFORMANCE": "performance", "MIXED": "mixed"})
TargetDevice = Enum("TargetDevice", {"ANY": "ANY", "CPU": "CPU", "GPU": "GPU", "NPU": "NPU", "CPU_SPR": "CPU_SPR"})
ModelType = Enum("ModelType", {"TRANSFORMER": "transformer"})


class Dataset:
    """Items of `data_source`, which can be read again (an iterable, or, as a torch Dataset, with length and items),
    through `transform_func`: what a model is fed with. Raises EdgerunError for an iterator."""

    def __init__(
        self, data_source: Iterable[Any] | Indexed, transform_func: Callable[[Any], Any] | None = None
    ) -> None:
        if isinstance(data_source, Iterator):
            got, do = type(data_source).__name__, "give what it iterates over: a list, a DataLoader"
            raise EdgerunError("the dataset cannot be read more than once", got=got, do=do)
        self._source, self._transform = data_source, transform_func

    def get_data(self) -> Iterator[Any]:
        """The items as they are."""
        if isinstance(self._source, Iterable):
            return iter(self._source)
        return map(self._source.__getitem__, range(len(self._source)))

    def get_inference_data(self) -> Iterator[Any]:
        """The items as the model takes them: a dict by input name, an array, or a list in the inputs' order."""
        return self.get_data() if self._transform is None else map(self._transform, self.get_data())


@dataclass(frozen=True)
class IgnoredScope:
    """Nodes that stay float: by name, by regular expression on the name's start, by op. `validate`: each must match."""

    names: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    subgraphs: list[Any] = field(default_factory=list)
    validate: bool = True


def quantize(
    model: Any,
    calibration_dataset: Any,
    *,
    mode: Any = None,
    preset: Any = None,
    target_device: Any = TargetDevice.ANY,
    subset_size: int = 300,
    fast_bias_correction: bool = True,
    model_type: Any = None,
    ignored_scope: Any = None,
    advanced_parameters: Any = None,
    target: str = "onnxruntime",
    allow_slower: bool = False,
) -> Any:
    """`model` in static INT8 by `edgerun.compress`: an `onnx.ModelProto` becomes one, a path or a Model a Model.

    nncf's own Dataset, IgnoredScope and enums are taken too, and for a dataset a list of samples. `subset_size` counts
    its items. Done in edgerun's way: the placement, the signs and the symmetry of activations follow `target`'s fastest
    kernels under either `preset`; biases are corrected layer by layer whatever `fast_bias_correction` says, and kept
    where that pays; `model_type` is seen from the graph. The result is timed against the float model on the first
    sample, as `edgerun compress` does: nodes that do not pay stay float, with a warning.

    Raises Unsupported for what cannot be honoured: models of other frameworks (an `ov.Model` among them: its IR cannot
    be turned back into ONNX), `mode`, GPU and NPU, subgraphs in the ignored scope, `advanced_parameters`; EdgerunError
    for bad input; GateFailed where no placement is as fast as the float model (unless `allow_slower`).
    """
    from edgerun.verbs.compress import compress

    loaded = _model(model)
    for what, value in (("mode", mode), ("advanced_parameters", advanced_parameters)):
        if value is not None:
            refuse(what, got=value, do="leave it out")
    if preset is not None:
        member(preset, QuantizationPreset, "preset")
    if model_type is not None:
        member(model_type, ModelType, "model_type")
    if (device := member(target_device, TargetDevice, "target_device")) in ("GPU", "NPU"):
        refuse("target_device", got=device, do="use TargetDevice.CPU, and target= for the runtime (edgerun targets)")
    if subset_size < 1:
        raise EdgerunError("subset_size counts items", got=subset_size, wanted="1 or more")
    excluded = _ignored(loaded, ignored_scope)
    result = compress(
        loaded, target=target, calibration=_Subset(_dataset(calibration_dataset), subset_size),
        keep_float=Nodes(loaded, target).kept(excluded), allow_slower=allow_slower, clocked=heard,
    )  # fmt: skip
    return result if isinstance(model, (Model, str, Path)) else result.to_proto()


def _dataset(given: Any) -> Any:
    """A dataset as it is, or one of samples that can be iterated over."""
    if hasattr(given, "get_inference_data"):
        return given
    if (isinstance(given, Iterable) or hasattr(given, "__getitem__")) and not isinstance(given, (str, Mapping)):
        return Dataset(given)
    raise EdgerunError("this is no dataset", got=type(given).__name__, wanted="nncf.Dataset, or a list of samples")


class _Subset:
    """The first items of a dataset, each time it is read."""

    def __init__(self, dataset: Any, items: int) -> None:
        self._dataset, self._items = dataset, items

    def get_inference_data(self) -> Iterator[Any]:
        return itertools.islice(self._dataset.get_inference_data(), self._items)

    __iter__ = get_inference_data


def _model(model: Any) -> Model:
    if isinstance(model, Model):
        return model
    if isinstance(model, (str, Path)):
        return Model.load(model)
    if hasattr(model, "graph") and hasattr(model, "opset_import") and hasattr(model, "SerializeToString"):
        return Model.from_proto(model)
    kind = type(model)
    if kind.__module__.split(".")[0] == "openvino":
        do = (
            "give the path of the .onnx that it was read from (or made by edgerun convert, from its source), with "
            "target='openvino'; result.save('small.onnx') is a file for openvino.Core().read_model"
        )
        raise Unsupported("edgerun quantizes ONNX models", got=f"{kind.__module__}.{kind.__qualname__}", do=do)
    raise Unsupported("edgerun quantizes ONNX models", got=kind.__name__, do="edgerun convert it first")


def _ignored(model: Model, scope: Any) -> set[str]:
    """Names of the nodes that an ignored scope means. Raises EdgerunError where a part of it matches nothing."""
    if scope is None:
        return set()
    if scope.subgraphs:
        refuse("subgraphs in ignored_scope", got=scope.subgraphs, do="name their nodes")
    nodes = {str(node.name): node.op_type for node in model.ir.graph}
    found: set[str] = set()
    for kind, wanted in (("name", scope.names), ("pattern", scope.patterns), ("type", scope.types)):
        for word in wanted:
            matches = {
                name for name, op in nodes.items()
                if (kind == "name" and name == word) or (kind == "type" and op == word)
                or (kind == "pattern" and re.match(word, name))
            }  # fmt: skip
            if not matches and scope.validate:
                raise EdgerunError(
                    f"the ignored scope's {kind} {word!r} matches no node", wanted=", ".join(nodes)[:200]
                )
            found |= matches
    return found
