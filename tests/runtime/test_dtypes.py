"""Narrow types: packed as ONNX packs them, and through a session and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.errors import Unsupported
from edgerun.runtime import dtypes

CODES = st.lists(st.integers(0, 255), max_size=17)


def _array(name: str, codes: list[int]) -> np.ndarray:
    """Every code of the type's bits, as its array holds it."""
    bits = dtypes.NARROW[name]
    if bits == 16:
        return np.array([code * 257 for code in codes], np.uint16).view(dtypes.dtype(name))
    return dtypes.unpacked(dtypes.packed(np.array(codes, np.uint8), bits), name, (len(codes),))


@pytest.mark.parametrize("name", [name for name in dtypes.NARROW if name != "float8_e8m0fnu"])
@given(codes=CODES)
def test_packed_as_onnx_packs(name: str, codes: list[int]) -> None:
    array = _array(name, codes)
    packed = dtypes.packed(array, dtypes.NARROW[name])
    assert packed.tobytes() == numpy_helper.from_array(array).raw_data  # the oracle
    assert dtypes.unpacked(packed, name, array.shape).tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "INT4", "UINT4"])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_through_a_session(target: str, kind: str) -> None:
    number = TensorProto.DataType.Value(kind)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["n"], to=number), helper.make_node("Cast", ["m"], ["y"], to=1)], "casts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5]), helper.make_tensor_value_info("m", number, [5])],
        [helper.make_tensor_value_info("n", number, [5]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if registry.target(target, usable=False).available():
        pytest.skip(f"{target} is not installed")
    x = np.array([0, 1, 2, 3, 5], np.float32)  # exact in all of these types
    narrow = x.astype(helper.tensor_dtype_to_np_dtype(number))
    with edgerun.load(proto.SerializeToString(), target) as session:
        assert session.outputs[0].dtype == narrow.dtype.name
        outputs = session.run({"x": x, "m": narrow})
    assert outputs["n"].dtype == narrow.dtype and outputs["n"].tobytes() == narrow.tobytes()
    np.testing.assert_array_equal(outputs["y"], x)


def test_a_device_without_the_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    dtypes.dtype.cache_clear()
    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(Unsupported, match="pip install 'ml_dtypes"):
        dtypes.dtype("bfloat16")
