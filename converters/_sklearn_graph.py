"""A fitted estimator as ONNX: skl2onnx writes it, and standard operators replace ai.onnx.ml's where they can."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.converters import _boosting, _normalize
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

log = logging.getLogger("edgerun")


def written(estimator: Any, doors: Sequence[TensorSpec], opset: int) -> ir.Model:
    """The estimator's graph, normalized; `doors` name its inputs as it knows them (the columns of a DataFrame).

    Raises Unsupported for an estimator that skl2onnx does not know or cannot write, naming it.
    """
    import onnx_ir as ir
    import skl2onnx  # type: ignore[import-untyped]
    from skl2onnx.common import data_types, exceptions  # type: ignore[import-untyped]

    logging.getLogger("skl2onnx").setLevel(logging.ERROR)
    kinds = {"float32": "Float", "int64": "Int64", "object": "String"}
    types = [(d.name, getattr(data_types, f"{kinds[d.dtype]}TensorType")([None, *d.shape[1:]])) for d in doors]
    numbered = _numbered(estimator)
    opset = min(opset, skl2onnx.__max_supported_opset__)
    try:
        with _whole_numbers():
            proto: Any = skl2onnx.to_onnx(numbered, initial_types=types, options=_options(numbered),
                                      target_opset={"": opset, "ai.onnx.ml": 3})  # fmt: skip
    except (exceptions.MissingShapeCalculator, exceptions.MissingConverter) as error:
        named = re.search(r"type '?<class '([\w.]+)'>|alias '?([\w.]+)", str(error))
        raise Unsupported(
            "an estimator cannot be converted", got=(named[1] or named[2]) if named else first_line(error),
            wanted="scikit-learn's own estimators, xgboost's and lightgbm's",
            do="replace it, or convert the part of the pipeline that is scikit-learn's",
        ) from error  # fmt: skip
    except Exception as error:  # NotImplementedError, NameError, RuntimeError … by the estimator
        raise Unsupported(
            f"{type(estimator).__name__} cannot be written as ONNX", got=f"{type(error).__name__}: {first_line(error)}",
            do="another setting of the estimator may have an ONNX form",
        ) from error  # fmt: skip
    graph = _normalize.normalize(ir.from_proto(proto))
    _standard_ops(graph)
    graph = _normalize.normalize(graph)
    graph.ir_version = _normalize.ir_version(opset)
    return graph


def final(estimator: Any) -> Any:
    """The estimator that ends a pipeline."""
    while hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return estimator


@contextmanager
def _whole_numbers() -> Iterator[None]:
    """skl2onnx writes bools among the integers of histogram gradient boosting, and onnx takes none."""
    from skl2onnx.common import _container

    original = _container.make_node

    def make_node(*args: Any, **attributes: Any) -> onnx.NodeProto:
        for name, value in attributes.items():
            if isinstance(value, list) and any(isinstance(item, (bool, np.bool_)) for item in value):
                attributes[name] = [int(item) for item in value]
        node: onnx.NodeProto = original(*args, **attributes)
        return node

    _container.make_node = make_node
    try:
        yield
    finally:
        _container.make_node = original


def _options(estimator: Any) -> dict[int, dict[str, bool]]:
    """Probabilities as one tensor, and scores where the final estimator has no probabilities."""
    from skl2onnx._supported_operators import _get_sklearn_operator_name  # type: ignore[import-untyped]
    from skl2onnx.common import _registration

    last = final(estimator)
    try:
        allowed = _registration.get_converter(_get_sklearn_operator_name(type(last))).get_allowed_options() or {}
    except (ValueError, RuntimeError):  # not known at all: `to_onnx` says so
        return {}
    wanted = {"zipmap": False} if "zipmap" in allowed else {}
    if "raw_scores" in allowed and not hasattr(last, "predict_proba"):
        wanted["raw_scores"] = True
    return {id(last): wanted}


def class_names(estimator: Any) -> list[str]:
    """The classes of a classifier that are no integers, as text in the order of their numbers; else none."""
    classes = getattr(estimator, "classes_", None)
    if classes is None or np.asarray(classes).dtype.kind in "iu":
        return []
    return [str(name) for name in classes]


def _numbered(estimator: Any) -> Any:
    """A copy whose classes are their numbers, where they are names: not every runtime has text."""
    if not class_names(estimator):
        return estimator
    number = {name: index for index, name in enumerate(np.asarray(estimator.classes_).tolist())}
    estimator = copy.deepcopy(estimator)
    for part in parts(estimator):
        classes = vars(part).get("classes_")
        if isinstance(classes, np.ndarray) and all(name in number for name in classes.tolist()):
            part.classes_ = np.array([number[name] for name in classes.tolist()], np.int64)
    return estimator


def parts(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Every estimator inside an estimator, itself included."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.dtype == object):
        for item in value:
            yield from parts(item, seen)
    elif isinstance(value, dict):
        yield from parts(list(value.values()), seen)
    elif _boosting.owner(value) is not None:
        yield value
    elif hasattr(value, "__dict__") and type(value).__module__.startswith("sklearn."):
        yield value
        yield from parts(list(vars(value).values()), seen)


def _standard_ops(graph: ir.Model) -> None:
    """ai.onnx.ml's Scaler and ArrayFeatureExtractor as standard operators, a product with its bias as Gemm, which
    has integer kernels, and casts of float32 to itself away."""
    import onnx_ir as ir
    from onnx_ir import convenience

    outputs, single = list(graph.graph.outputs), [v for v in graph.graph.inputs if v.dtype == ir.DataType.FLOAT]
    for node in list(graph.graph):
        inputs, y, old = list[Any](node.inputs), node.outputs[0], [node]
        x, rest = inputs[0], inputs[1:]
        if node.op_type == "Cast" and x in single and node.attributes.get_int("to") == 1 and y not in outputs:
            convenience.replace_all_uses_with(y, x)
            graph.graph.remove(node, safe=True)
            continue
        if node.op_type == "Scaler":
            shift, by = (np.array(node.attributes[a].as_floats(), np.float32) for a in ("offset", "scale"))
            new = [ir.node("Sub", [x, _constant(graph, node, "offset", shift)])]
            new.append(ir.node("Mul", [new[0].outputs[0], _constant(graph, node, "scale", by)]))
            single.append(new[1].outputs[0])
        elif node.op_type == "ArrayFeatureExtractor":
            flat = _constant(graph, node, "flat", np.array([-1], np.int64))
            new = [ir.node("Reshape", [rest[0], flat])]
            if x is not None and x.const_value is not None and len(x.const_value.shape) == 1:
                x = _constant(graph, node, "rows", x.const_value.numpy()[None])  # the operator gives a row for a vector
            new.append(ir.node("Gather", [x, new[0].outputs[0]], {"axis": -1}))
        elif node.op_type == "Add" and (product := _product(x, rest[0])) is not None:
            bias = _constant(graph, node, "bias", rest[0].const_value.numpy().reshape(-1))
            old, new = [node, product], [ir.node("Gemm", [*product.inputs, bias])]
        else:
            continue
        convenience.replace_nodes_and_values(graph.graph, node, old, new, [y], [new[-1].outputs[0]])


def _product(x: Any, bias: Any) -> ir.Node | None:
    """The MatMul of rows with a constant matrix whose result is `x`, where only a constant `bias` for each column is
    added to it."""
    node = x.producer()
    if node is None or node.op_type != "MatMul" or len(x.uses()) != 1 or bias.const_value is None:
        return None
    weight = node.inputs[1].const_value
    fits = weight is not None and len(weight.shape) == 2 and bias.const_value.size == weight.shape[1]
    return node if fits else None


def flattened(graph: ir.Model, value: ir.Value) -> ir.Value:
    """`value` with one axis, as a new value at the graph's end."""
    import onnx_ir as ir

    producer = value.producer()
    assert producer is not None
    node = ir.node("Reshape", [value, _constant(graph, producer, "flat", np.array([-1], np.int64))])
    node.outputs[0].type, node.name = value.type, f"{producer.name}_flat"
    graph.graph.append(node)
    return node.outputs[0]


def _constant(graph: ir.Model, node: ir.Node, what: str, array: np.ndarray) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.tensor(array, name=f"{node.name}_{what}")
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.graph.register_initializer(value)
    return value


def refuse_unfitted(estimator: Any) -> None:
    """Raise EdgerunError unless the estimator was fitted."""
    from sklearn.exceptions import NotFittedError  # type: ignore[import-untyped]
    from sklearn.utils.validation import check_is_fitted  # type: ignore[import-untyped]

    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise EdgerunError(
            "the estimator is not fitted", got=type(estimator).__name__, do="call its fit first"
        ) from error
