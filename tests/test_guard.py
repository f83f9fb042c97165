"""The static guard: broken and hostile ONNX files are refused with a reason, legal ones pass."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun import guard, guard_source  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402


def _model(**options: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    opsets = [helper.make_opsetid("", options.get("opset", 21))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=options.get("ir_version", 10))


def _write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_a_legal_model_passes(tmp_path: Path) -> None:
    guard.check_onnx(_write(tmp_path / "m.onnx", _model()))


def test_element_types_are_told_wherever_a_tensor_stands(tmp_path: Path) -> None:
    model = _model()
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [1], [0.0])
    model.graph.node.insert(0, helper.make_node("Constant", [], ["zero"], "constant", value=zero))
    assert guard.check_onnx(_write(tmp_path / "m.onnx", model)) == {TensorProto.FLOAT, TensorProto.FLOAT8E4M3FN}
    assert guard.check_bytes(_model().SerializeToString()) == {TensorProto.FLOAT}


def test_an_attribute_that_stands_at_many_nodes_is_as_good_or_bad_as_at_one(tmp_path: Path) -> None:
    """The same bytes are read once; a tensor within is read each time, and a broken one refused wherever it stands."""
    model = _model()
    broken = onnx.TensorProto(name="b", dims=[2], data_type=TensorProto.FLOAT, raw_data=b"1234")
    for number, name in enumerate("pqr"):
        node = helper.make_node("Constant", [], [name], f"c{name}", value_floats=[1.0])
        if number == 2:
            node.attribute[0].CopyFrom(helper.make_attribute("value", broken))
        model.graph.node.append(node)
    with pytest.raises(EdgerunError, match="'b' does not have the size"):
        guard.check_onnx(_write(tmp_path / "m.onnx", model))


def test_known_versions_are_those_of_the_pinned_onnx() -> None:
    assert guard.NEWEST_OPSET >= onnx.defs.onnx_opset_version()
    assert guard.NEWEST_IR >= onnx.IR_VERSION


def test_missing_folder_and_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for path, message in (
        (tmp_path / "no.onnx", "does not exist"),
        (tmp_path, "not a file"),
        (tmp_path / "empty.onnx", "empty"),
    ):
        with pytest.raises(EdgerunError, match=message) as caught:
            guard.check_onnx(path)
        assert caught.value.exit_code == 2


def test_the_pointer_that_git_leaves_in_place_of_a_file(tmp_path: Path) -> None:
    """In place of the model, and of the weights beside one."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345678\n"
    (tmp_path / "m.onnx").write_text(pointer)
    with pytest.raises(EdgerunError, match="(?s)Git LFS.*git lfs pull"):
        guard.check_onnx(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_text(pointer)
    with pytest.raises(EdgerunError, match=r"(?s)Git LFS.*w\.bin.*git lfs pull"):
        guard.check_onnx(_external(tmp_path / "m.onnx", "w.bin", offset=5000))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """A cut may fall between two fields, where the rest still parses: then a part that every model has is missing."""
    whole = _model().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(EdgerunError, match="truncated|not an ONNX model"):
            guard.check_onnx(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_noise_never_escapes_as_another_error(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "noise.onnx"
    path.write_bytes(noise)
    with pytest.raises(EdgerunError):
        guard.check_onnx(path)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_flipped_bytes_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    data = bytearray(_model().SerializeToString())
    data[place % len(data)] = value
    path = tmp_path_factory.mktemp("flip") / "flip.onnx"
    path.write_bytes(data)
    try:
        Model.load(path)
    except EdgerunError as error:
        assert str(error)


def test_versions_from_the_future(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"(?s)opset is from the future.*999.*at most 28"):
        guard.check_onnx(_write(tmp_path / "m.onnx", _model(opset=999)))
    with pytest.raises(Unsupported, match="IR version"):
        guard.check_onnx(_write(tmp_path / "m.onnx", _model(ir_version=99)))


def test_size_that_does_not_match_the_bytes(tmp_path: Path) -> None:
    model = _model()
    model.graph.initializer[0].dims[0] = 3000
    with pytest.raises(EdgerunError, match=r"(?s)'w' does not have the size.*48 bytes.*48000 bytes"):
        guard.check_onnx(_write(tmp_path / "m.onnx", model))
    model.graph.initializer[0].dims[0] = -3
    with pytest.raises(EdgerunError, match="negative"):
        guard.check_onnx(_write(tmp_path / "m.onnx", model))


def test_small_dtypes_are_counted_in_bits(tmp_path: Path) -> None:
    model = _model()
    for dtype, count, size in ((TensorProto.INT4, 5, 3), (TensorProto.BFLOAT16, 3, 6), (TensorProto.FLOAT8E5M2, 3, 3)):
        tensor = model.graph.initializer.add(name=f"t{dtype}", data_type=dtype, raw_data=bytes(size))
        tensor.dims.append(count)
    guard.check_onnx(_write(tmp_path / "m.onnx", model))


def test_duplicates(tmp_path: Path) -> None:
    twice = _model()
    twice.graph.node.append(twice.graph.node[0])
    with pytest.raises(EdgerunError, match="two nodes write"):
        guard.check_onnx(_write(tmp_path / "m.onnx", twice))
    twice = _model()
    twice.graph.initializer.append(twice.graph.initializer[0])
    with pytest.raises(EdgerunError, match="share a name"):
        guard.check_onnx(_write(tmp_path / "m.onnx", twice))
    both = _model()
    both.graph.initializer[0].name = "y"
    with pytest.raises(EdgerunError, match="also a node's output"):
        guard.check_onnx(_write(tmp_path / "m.onnx", both))


def test_no_output_and_no_graph(tmp_path: Path) -> None:
    model = _model()
    del model.graph.output[:]
    with pytest.raises(EdgerunError, match="no output"):
        guard.check_onnx(_write(tmp_path / "m.onnx", model))
    model.ClearField("graph")
    with pytest.raises(EdgerunError, match="no graph"):
        guard.check_onnx(_write(tmp_path / "m.onnx", model))


def test_a_value_from_nowhere(tmp_path: Path) -> None:
    model = _model()
    model.graph.node[0].input[0] = "elsewhere"
    with pytest.raises(EdgerunError, match="(?s)nothing produces.*elsewhere"):
        guard.check_onnx(_write(tmp_path / "m.onnx", model))
    model = _model()
    model.graph.output[0].name = "elsewhere"
    with pytest.raises(EdgerunError, match="(?s)nothing produces.*elsewhere"):
        guard.check_onnx(_write(tmp_path / "m.onnx", model))


def test_subgraphs_see_the_values_around_them(tmp_path: Path) -> None:
    model = _model()
    for outer, legal in (("w", True), ("nothing", False)):
        branch = helper.make_graph(
            [helper.make_node("Relu", [outer], ["r"])], "branch", [], [helper.make_tensor_value_info("r", 1, [3, 4])]
        )
        del model.graph.node[1:]
        model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
        path = _write(tmp_path / "m.onnx", model)
        if legal:
            guard.check_onnx(path)
        else:
            with pytest.raises(EdgerunError, match="nothing produces"):
                guard.check_onnx(path)


def test_deep_nesting(tmp_path: Path) -> None:
    model = _model()
    inner = model.graph
    for depth in range(45):
        branch = helper.make_graph([], f"g{depth}", [], [helper.make_tensor_value_info("y", 1, [1])])
        node = helper.make_node("If", ["c"], [f"o{depth}"], then_branch=branch)
        inner.node.append(node)
        inner = inner.node[-1].attribute[0].g
    with pytest.raises(EdgerunError, match="nested too deeply"):
        guard.check_onnx(_write(tmp_path / "m.onnx", model))


def _external(path: Path, location: str, offset: int = 0, length: int = 48) -> Path:
    model = _model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return _write(path, model)


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(bytes(64))
    guard.check_onnx(_external(folder / "m.onnx", "w.bin", offset=16))
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "link").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "link", "*/_ORT_MEM_ADDR_/*", ""):
        with pytest.raises(EdgerunError, match="outside the model's folder"):
            guard.check_onnx(_external(folder / "m.onnx", location))
    with pytest.raises(EdgerunError, match="missing"):
        guard.check_onnx(_external(folder / "m.onnx", "none.bin"))
    for offset, length in ((17, 48), (-1, 48), (0, 1 << 40)):
        with pytest.raises(EdgerunError, match="beyond their file"):
            guard.check_onnx(_external(folder / "m.onnx", "w.bin", offset, length))
    with pytest.raises(EdgerunError, match="larger than its stored"):
        guard.check_onnx(_external(folder / "m.onnx", "w.bin", 0, 47))
    os.link(tmp_path / "secret", folder / "hard.bin")
    with pytest.raises(EdgerunError, match="hard link"):
        guard.check_onnx(_external(folder / "m.onnx", "hard.bin"))


def test_a_saved_model_is_a_folder_that_nothing_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"x")
    (folder / "variables" / "inside").symlink_to("../saved_model.pb")
    guard_source.check(folder)
    (tmp_path / "secret").write_bytes(b"secret")
    leads: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(tmp_path / "secret"),
        "folder": lambda path: path.symlink_to(tmp_path, target_is_directory=True),
        "hard": lambda path: os.link(tmp_path / "secret", path),
        "pipe": os.mkfifo,
    }
    for name, make in leads.items():
        make(folder / "variables" / name)
        with pytest.raises(EdgerunError, match="leaves the folder|hard link|neither file nor folder"):
            guard_source.check(folder)
        (folder / "variables" / name).unlink()
    guard_source.check(folder)
    (folder / "saved_model.pb").unlink()
    with pytest.raises(EdgerunError, match="not a file"):
        guard_source.check(folder)


def test_guard_needs_no_onnx() -> None:
    import subprocess
    import sys

    code = "import sys; import edgerun.guard; sys.exit('onnx' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
