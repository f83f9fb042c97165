"""`quantize_dynamic` and `quant_pre_process` as onnxruntime has them, lists of samples for nncf, temporary files."""

from __future__ import annotations

import gc
import inspect
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnxruntime import quantization as ort  # type: ignore[import-untyped]

from edgerun.compat import nncf
from edgerun.compat.onnxruntime import quant_pre_process, quantize_dynamic, quantize_static
from edgerun.data import open_data
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import TensorSpec
from edgerun.verbs.compress import compress
from tests.test_compat import Once, X, network

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (int64[n] x) => (float[n,8] y) {
    [table] e = Gather(t, x) [one] a = MatMul(e, w1) [sum] b = Add(a, b1) [relu] r = Relu(b)
    [two] y = MatMul(r, w2) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A table, a product that becomes a Gemm with the Add behind it, and a product."""
    proto, rng = parser.parse_model(TEXT), np.random.default_rng(0)
    for name, shape in {"t": (600, 32), "w1": (32, 64), "b1": (64,), "w2": (64, 8)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def on_integers(model: Model) -> tuple[int, int]:
    """Products, and tables in 8 bits."""
    told = model.history[-1].options
    return told["integer nodes"], told["tables in 8 bits"]


def test_quantize_dynamic_is_compress(model: Path, tmp_path: Path) -> None:
    """Positional, with onnxruntime's own enum: the graph that `compress` makes."""
    made = quantize_dynamic(str(model), str(tmp_path / "q.onnx"), None, True, weight_type=ort.QuantType.QInt8)
    assert (tmp_path / "q.onnx").read_bytes() == compress(model, scheme="w8a8_dynamic").to_bytes()
    assert on_integers(made) == (2, 1)
    theirs, ours = (list(inspect.signature(f).parameters) for f in (ort.quantize_dynamic, quantize_dynamic))
    assert ours == [*theirs, "target", "allow_slower"]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"op_types_to_quantize": ["MatMul"]}, (2, 0)),
        ({"op_types_to_quantize": ["Gather", "MatMul"]}, (2, 1)),
        ({"nodes_to_quantize": ["one"]}, (1, 0)),  # under the sum's name, which it has behind folding
        ({"nodes_to_exclude": ["one", "relu"]}, (1, 1)),
        ({"nodes_to_exclude": ["table"]}, (2, 0)),
        ({"extra_options": {"MatMulConstBOnly": True}}, (2, 1)),
    ],
)
def test_what_is_quantized_is_what_was_asked_for(
    model: Path, tmp_path: Path, options: dict[str, Any], left: tuple[int, int]
) -> None:
    assert on_integers(quantize_dynamic(model, tmp_path / "q.onnx", **options)) == left


def test_products_are_meant_by_their_op_in_static_quantization_too(tmp_path: Path) -> None:
    """The Gemm that a MatMul becomes, with the Add behind it, is no Add."""
    onnx.save(network(), tmp_path / "m.onnx")
    made = quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", Once(), op_types_to_quantize=["MatMul"])
    assert made.history[-1].options["integer nodes"] == 1
    named = quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", Once(), nodes_to_quantize=["mm"])
    assert named.to_bytes() == made.to_bytes()


@pytest.mark.parametrize("options", [{"op_types_to_quantize": ["Conv", "MatMul"]}, {"nodes_to_quantize": ["c1", "mm"]}])
def test_a_convolution_that_is_asked_for_is_said_to_stay(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="stays float: no kernel quantizes its input while it runs: (Conv|c1)"):
        quantize_dynamic(network(), tmp_path / "q.onnx", **options)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"weight_type": ort.QuantType.QInt16}, Unsupported, "weight_type"),
        ({"extra_options": {"MatMulConstBOnly": False}}, Unsupported, "MatMulConstBOnly"),
        ({"extra_options": {"EnableSubgraph": True}}, Unsupported, "EnableSubgraph"),
        ({"nodes_to_exclude": ["nine"]}, EdgerunError, "unknown node 'nine'"),
        ({"nodes_to_quantize": ["nine"]}, EdgerunError, "unknown node 'nine'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    model: Path, tmp_path: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        quantize_dynamic(model, tmp_path / "q.onnx", **options)
    assert not (tmp_path / "q.onnx").exists()


def test_unsigned_weights_are_said_to_become_signed(model: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="int8"):
        quantize_dynamic(model, tmp_path / "q.onnx", weight_type=ort.QuantType.QUInt8)


def test_quant_pre_process_leaves_the_model_as_it_is(model: Path, tmp_path: Path) -> None:
    quant_pre_process(model, tmp_path / "p.onnx", skip_symbolic_shape=True)
    assert Model.load(tmp_path / "p.onnx").digest() == Model.load(model).digest()
    quant_pre_process(input_model_path=str(model), output_model_path=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()
    known = inspect.signature(quant_pre_process).parameters
    theirs = [name for name in inspect.signature(ort.quant_pre_process).parameters if name != "deprecated_kwargs"]
    assert list(known)[: len(theirs)] == theirs
    with pytest.raises(EdgerunError, match="reads a model and writes one"):
        quant_pre_process(model)
    with pytest.raises(Unsupported, match="external_data_location"):
        quant_pre_process(model, tmp_path / "p.onnx", external_data_location="weights")


def test_the_model_is_not_replaced_by_what_is_made_of_it(model: Path, tmp_path: Path) -> None:
    """Nor through a link: as `compress` refuses it."""
    before, link = model.read_bytes(), tmp_path / "link.onnx"
    link.symlink_to(model)
    for output in (model, link):
        for make in (
            lambda to: quantize_static(model, to, Once()),
            lambda to: quantize_dynamic(str(model), to),
            lambda to: quant_pre_process(model, str(to)),
        ):
            with pytest.raises(EdgerunError, match="would replace what it is made from"):
                make(output)
    assert model.read_bytes() == before and link.is_symlink()


def test_nncf_takes_a_list_of_samples() -> None:
    """As `nncf.Dataset` of it."""
    made = nncf.quantize(network(), list(X), subset_size=18)
    assert made == nncf.quantize(network(), nncf.Dataset(list(X)), subset_size=18)
    for given in ({"x": X}, "calib.npz", 3):
        with pytest.raises(EdgerunError, match=r"no dataset\n  got: \w+\n  wanted: nncf.Dataset, or a list"):
            nncf.quantize(network(), given)


def test_a_reader_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, and no warning of one that is cleaned up by chance."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        data = open_data(Once(), (TensorSpec("x", "float32", ("n", 6, 8, 8)),), batch=5)
        assert sum(len(feeds["x"]) for feeds in data) == len(X) and list(tmp_path.iterdir())
        del data
        gc.collect()
    assert not list(tmp_path.iterdir()) and not told
