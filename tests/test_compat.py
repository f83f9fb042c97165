"""A changed import is enough: onnxruntime's and nncf's calls give what `compress` gives, or are refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnxruntime import quantization as ort  # type: ignore[import-untyped]

from edgerun.compat import nncf as like_nncf
from edgerun.compat import nncf_quantize
from edgerun.compat import onnxruntime as like_ort
from edgerun.compat.onnxruntime import quantize_static
from edgerun.data import open_data
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import TensorSpec
from edgerun.verbs.compress import compress

X = np.random.default_rng(1).standard_normal((24, 6, 8, 8)).astype(np.float32)
TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,6,8,8] x) => (float[n,5] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1) [r1] r = Relu(a) [c2] c = Conv(r, w2, b2) [r2] s = Relu(c)
    [pool] h = GlobalAveragePool(s) [flat] f = Flatten(h) [mm] m = MatMul(f, w3) [add] y = Add(m, b3) }"""


def network() -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    shapes = {"w1": (8, 6, 3, 3), "b1": (8,), "w2": (12, 8, 1, 1), "b2": (12,), "w3": (12, 5), "b3": (5,)}
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in shapes.items():
        array = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) * 0.7
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return proto


class Once(ort.CalibrationDataReader):  # type: ignore[misc]
    """onnxruntime's own base class; read to its end once, as most readers are."""

    def __init__(self) -> None:
        self._items: Iterator[dict[str, np.ndarray]] = iter([{"x": X[i : i + 4]} for i in range(0, len(X), 4)])

    # The base says `-> dict`, but its own `__next__` takes None as the end.
    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return next(self._items, None)


class Again(Once):
    """The same with `rewind`."""

    def rewind(self) -> None:
        super().__init__()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def weights_in_float(path: Path) -> set[str]:
    """The names of the convolutions and products that no DequantizeLinear feeds."""
    graph = onnx.load(path).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    return {
        node.name
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and made.get(node.input[1]) != "DequantizeLinear"
    }


@pytest.mark.parametrize("reader", [Once, Again])
@pytest.mark.parametrize("names", [ort, like_ort])
def test_quantize_static_as_it_is_called(model: Path, tmp_path: Path, reader: type[Once], names: Any) -> None:
    """Positional, with either enums: the same graph as `compress` makes of the same samples."""
    quantize_static(
        str(model), str(tmp_path / "q.onnx"), reader(), names.QuantFormat.QDQ, per_channel=True,
        activation_type=names.QuantType.QUInt8, weight_type=names.QuantType.QInt8,
        calibrate_method=names.CalibrationMethod.Entropy, extra_options={"ActivationSymmetric": False},
    )  # fmt: skip
    expected = compress(model, calibration={"x": X}, ranges="entropy")
    assert (tmp_path / "q.onnx").read_bytes() == expected.to_bytes()


def test_the_default_picks_the_ranges_by_measurement(model: Path, tmp_path: Path) -> None:
    made = quantize_static(onnx.load(model), tmp_path / "q.onnx", Once())
    assert made.to_bytes() == compress(model, calibration={"x": X}).to_bytes()


def test_every_parameter_of_the_original_is_there() -> None:
    """Names and order of the installed onnxruntime."""
    import inspect

    theirs, ours = (list(inspect.signature(f).parameters) for f in (ort.quantize_static, quantize_static))
    assert ours == [*theirs, "target", "allow_slower"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, set()),
        ({"nodes_to_exclude": ["c1"]}, {"c1"}),
        ({"nodes_to_exclude": ["c2", "r2", "flat"]}, {"c2"}),
        ({"nodes_to_exclude": ["mm"]}, {"add"}),  # the product and its bias are one Gemm, under the sum's name
        ({"nodes_to_quantize": ["c2", "add"]}, {"c1"}),
        ({"op_types_to_quantize": ["Conv"]}, {"add"}),
    ],
)
def test_what_stays_float(model: Path, tmp_path: Path, options: dict[str, Any], kept: set[str]) -> None:
    quantize_static(model, tmp_path / "q.onnx", Again(), calibrate_method=ort.CalibrationMethod.MinMax, **options)
    assert weights_in_float(tmp_path / "q.onnx") == kept


REFUSED: dict[str, dict[str, Any]] = {
    "quant_format": {"quant_format": ort.QuantFormat.QOperator},
    "activation_type": {"activation_type": ort.QuantType.QUInt16},
    "weight_type": {"weight_type": ort.QuantType.QInt4},
    "calibrate_method": {"calibrate_method": ort.CalibrationMethod.Distribution},
    "calibration_providers": {"calibration_providers": ["CUDAExecutionProvider"]},
    "calibration_cache_path": {"calibration_cache_path": "cache.json"},
    "SmoothQuant": {"extra_options": {"SmoothQuant": True}},
    "TensorQuantOverrides": {"extra_options": {"TensorQuantOverrides": {}}},
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_cannot_be_honoured_is_refused(model: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(Unsupported, match=option):
        quantize_static(model, tmp_path / "q.onnx", Once(), **REFUSED[option])
    assert not (tmp_path / "q.onnx").exists()


def test_reduce_range_follows_the_machine(model: Path, tmp_path: Path) -> None:
    from edgerun import registry

    if registry.target("onnxruntime").quantization().reduced_range:
        quantize_static(model, tmp_path / "q.onnx", Once(), reduce_range=True)
    else:
        with pytest.raises(Unsupported, match="reduce_range"):
            quantize_static(model, tmp_path / "q.onnx", Once(), reduce_range=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration_data_reader": None}, "calibration_data_reader"),
        ({"nodes_to_exclude": ["c9"]}, "unknown node 'c9'"),
        ({"nodes_to_quantize": ["c9"]}, "unknown node 'c9'"),
        ({"quant_format": "QDQ"}, "unknown quant_format"),
    ],
)
def test_bad_arguments(model: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EdgerunError, match=words):
        arguments: dict[str, Any] = {"calibration_data_reader": Once()}
        quantize_static(model, tmp_path / "q.onnx", **arguments | options)


def test_unsigned_weights_are_said_to_become_signed(model: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="int8"):
        quantize_static(model, tmp_path / "q.onnx", Once(), weight_type=ort.QuantType.QUInt8)


def test_nncf_quantize_on_a_dataset() -> None:
    """Items through a transform; the first `subset_size` of them; a ModelProto comes back."""
    dataset = like_nncf.Dataset([(X[i : i + 2], i) for i in range(0, 24, 2)], lambda item: {"x": item[0]})
    made = nncf_quantize(network(), dataset, subset_size=9, preset=like_nncf.QuantizationPreset.MIXED)
    assert isinstance(made, onnx.ModelProto)
    expected = compress(Model.from_proto(network()), calibration={"x": X[:18]})
    assert Model.from_proto(made).digest() == expected.digest()


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: {"x": x}])
def test_items_may_be_arrays_tuples_or_dicts(form: Any) -> None:
    specs = (TensorSpec("x", "float32", ("n", 6, 8, 8)),)
    data = open_data(like_nncf.Dataset(list(X), form), specs, batch=5)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in data]), X)


def test_a_loader_of_torch() -> None:
    """TensorDatasets through a DataLoader: the inputs in their order, labels behind them or not, a function or none;
    as a dataset's source, and as calibration data itself. All are the samples of the array."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    specs = (TensorSpec("x", "float32", ("n", 6, 8, 8)),)
    tensors, labels, data = torch.from_numpy(X), torch.arange(24) % 5, torch.utils.data
    for columns in ((tensors,), (tensors, labels), (tensors, labels[:, None])):
        loader = data.DataLoader(data.TensorDataset(*columns), batch_size=5)
        for source in (loader, like_nncf.Dataset(loader), like_nncf.Dataset(loader, lambda item: item[0])):
            opened = open_data(source, specs, batch=7)
            np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in opened]), X)
    opened = open_data(data.DataLoader(data.TensorDataset(tensors, labels), batch_size=5), specs)
    np.testing.assert_array_equal(opened.labels, labels.numpy())


def test_two_inputs_in_their_order() -> None:
    specs = (TensorSpec("b", "float32", ("n", 3)), TensorSpec("a", "int64", ("n", 2)))
    b, a = X[:, :3, 0, 0], np.arange(48).reshape(24, 2)
    opened = open_data(like_nncf.Dataset([(b[i : i + 1], a[i : i + 1]) for i in range(24)]), specs)
    np.testing.assert_array_equal(np.concatenate([feeds["a"] for feeds in opened]), a)
    np.testing.assert_array_equal(np.concatenate([feeds["b"] for feeds in opened]), b)


@pytest.mark.parametrize("item", [(X[:1], X[:1]), (X[:1], np.arange(2).reshape(1, 2)), (), [X[:1]] * 3])
def test_items_that_are_no_feeds(item: Any) -> None:
    specs = (TensorSpec("x", "float32", ("n", 6, 8, 8)),)
    with pytest.raises(EdgerunError, match=r"item 0: not a feed\n  got: a (tuple|list) of \d"):
        list(open_data(like_nncf.Dataset([item]), specs))


def test_a_model_of_openvino(tmp_path: Path) -> None:
    """An ov.Model is refused; what the message says to do gives a file that OpenVINO reads and runs."""
    ov = pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    onnx.save(network(), tmp_path / "m.onnx")
    dataset = like_nncf.Dataset(list(X))
    with pytest.raises(Unsupported, match=r"path of the \.onnx .*target='openvino'.*read_model"):
        nncf_quantize(ov.Core().read_model(tmp_path / "m.onnx"), dataset)
    made = nncf_quantize(str(tmp_path / "m.onnx"), dataset, target="openvino")
    made.save(tmp_path / "small.onnx")
    read = ov.Core().read_model(tmp_path / "small.onnx")
    assert "FakeQuantize" in {op.get_type_name() for op in read.get_ordered_ops()}
    got = ov.compile_model(read, "CPU")({"x": X})["y"]
    exact = ov.compile_model(ov.Core().read_model(tmp_path / "m.onnx"), "CPU")({"x": X})["y"]
    assert 10 * np.log10((exact**2).mean() / ((exact - got) ** 2).mean()) > 25


def test_a_dataset_over_an_iterator_is_refused() -> None:
    items = iter([{"x": X[:8]}, {"x": X[8:]}, *({"x": X} for _ in range(20))])
    theirs: Any = type("Dataset", (), {"get_inference_data": lambda self: items})()  # nncf's own takes one
    with pytest.raises(EdgerunError, match="more than once"):
        compress(Model.from_proto(network()), calibration=theirs)


@pytest.mark.parametrize(
    ("scope", "kept"),
    [
        (like_nncf.IgnoredScope(names=["c1"]), {"c1"}),
        (like_nncf.IgnoredScope(patterns=["c\\d"]), {"c1", "c2"}),
        (like_nncf.IgnoredScope(types=["MatMul"]), {"add"}),
        (like_nncf.IgnoredScope(names=["nowhere"], types=["Conv"], validate=False), {"c1", "c2"}),
    ],
)
def test_the_ignored_scope(tmp_path: Path, scope: Any, kept: set[str]) -> None:
    onnx.save(nncf_quantize(network(), like_nncf.Dataset(list(X)), ignored_scope=scope), tmp_path / "q.onnx")
    assert weights_in_float(tmp_path / "q.onnx") == kept


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"mode": "FP8"}, Unsupported, "mode"),
        ({"advanced_parameters": 1}, Unsupported, "advanced_parameters"),
        ({"target_device": like_nncf.TargetDevice.GPU}, Unsupported, "target_device"),
        ({"ignored_scope": like_nncf.IgnoredScope(subgraphs=[1])}, Unsupported, "subgraphs"),
        ({"ignored_scope": like_nncf.IgnoredScope(names=["c9"])}, EdgerunError, "'c9' matches no node"),
        ({"subset_size": 0}, EdgerunError, "subset_size"),
        ({"preset": "mixed"}, EdgerunError, "unknown preset"),
        ({"model": object()}, Unsupported, "convert"),
    ],
)
def test_what_nncf_takes_and_edgerun_does_not(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        arguments: dict[str, Any] = {"model": network(), "calibration_dataset": like_nncf.Dataset(list(X))}
        nncf_quantize(**arguments | options)


def test_real_nncf_objects() -> None:
    """nncf's own Dataset, scope and enums, where it is installed."""
    nncf = pytest.importorskip("nncf", reason="nncf is not installed: pip install nncf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = nncf_quantize(
            network(), nncf.Dataset(list(X), lambda x: {"x": x}), preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU, ignored_scope=nncf.IgnoredScope(names=["c1"]),
        )  # fmt: skip
    expected = compress(Model.from_proto(network()), calibration={"x": X}, keep_float=["c1"])
    assert Model.from_proto(made).digest() == expected.digest()


@pytest.mark.parametrize("reader", [Once, Again])
def test_readers_are_data_for_any_verb(reader: type[Once]) -> None:
    """Twice the same samples, in batches of any size, and half a pass in between does no harm."""
    data = open_data(reader(), (TensorSpec("x", "float32", ("n", 6, 8, 8)),), batch=5)
    next(iter(data))
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in data]), X)


def test_a_reader_that_gives_no_feeds() -> None:
    class Wrong:
        def get_next(self) -> Any:
            return X[:4]

    with pytest.raises(EdgerunError, match="no feeds"):
        compress(Model.from_proto(network()), calibration=Wrong())
