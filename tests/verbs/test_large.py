"""Models over 2 GB: weights stay in their file. Small ones that count as large, and a sparse file that is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402

from bench.big import build, computed, sparse  # noqa: E402
from edgerun import external, files, pair  # noqa: E402
from edgerun.errors import EdgerunError, GateFailed  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.parity import Parity  # noqa: E402
from edgerun.sandbox import physical_memory  # noqa: E402
from edgerun.verbs import compare as comparing  # noqa: E402
from edgerun.verbs.check import check  # noqa: E402
from edgerun.verbs.compare import compare  # noqa: E402
from edgerun.verbs.compile import compile  # noqa: E402
from edgerun.verbs.compress import compress  # noqa: E402
from edgerun.verbs.convert import convert, convert_here  # noqa: E402
from edgerun.verbs.load import load  # noqa: E402

LAYERS, WIDTH = 3, 320  # a bias has more than 1 KiB, too
X = np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)
GIB = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sparse(tmp_path / "m.onnx", LAYERS, WIDTH)
    return tmp_path / "m.onnx"


def _weights(model: Model) -> list[Any]:
    values = model.ir.graph.initializers.values()
    return [v.const_value for v in values if v.const_value is not None and v.const_value.nbytes >= 4 * WIDTH * WIDTH]


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_weights_are_mapped_and_the_digest_is_that_of_a_model_in_memory(path: Path, large: None) -> None:
    mapped = Model.load(path)
    assert all(isinstance(weight, external.Mapped) for weight in _weights(mapped))
    whole = Model.from_proto(onnx.load(path))
    assert not any(isinstance(weight, external.Mapped) for weight in _weights(whole))
    assert mapped.digest() == whole.digest()
    for one, other in zip(_weights(mapped), _weights(whole), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_what_is_saved_runs_and_says_the_same(path: Path, tmp_path: Path, large: None) -> None:
    layers = sparse(path, LAYERS, WIDTH)
    (tmp_path / "there").mkdir()
    model = Model.load(path)
    model.save(tmp_path / "there" / "n.onnx")
    assert _names(tmp_path / "there") == ["n.onnx", "n.onnx.data"]
    assert Model.load(tmp_path / "there" / "n.onnx").digest() == model.digest()
    path.with_name("m.onnx.data").unlink()  # nothing points back
    with load(tmp_path / "there" / "n.onnx") as session:
        np.testing.assert_allclose(session.run({"x": X})["y"], computed(layers, X), rtol=1e-5, atol=1e-5)


def test_a_run_killed_between_the_two_files_leaves_the_old_model(
    path: Path, tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    shutil.copy(path, folder)
    shutil.copy(path.with_name("m.onnx.data"), folder)
    before, model = Model.load(folder / "m.onnx").digest(), Model.load(path)
    first = next(iter(model.ir.graph.initializers.values()))
    first.const_value = ir.tensor(np.ones((WIDTH, WIDTH), np.float32), name=first.name)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            model.save(folder / "m.onnx")
    assert Model.load(folder / "m.onnx").digest() == before
    model.save(folder / "m.onnx")
    after = Model.load(folder / "m.onnx").digest()
    assert after == model.digest() != before
    graph = onnx.load(folder / "m.onnx", load_external_data=False).graph
    named = {tensor.external_data[0].value for tensor in graph.initializer if tensor.external_data}
    assert len(named) == 1 and "m.onnx.data" not in _names(folder)  # the old weights went with the old graph


def test_a_full_disk_leaves_the_old_model(
    path: Path, tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(path)

    def full(*_: Any) -> None:
        raise EdgerunError("could not write", got="No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(EdgerunError, match="could not write"):
        model.save(tmp_path / "n.onnx")
    assert _names(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_small_model_in_the_place_of_a_large_one(path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(path)
    digest = model.digest()
    model.save(path)
    (data,) = path.parent.glob("m.onnx.*data")
    written = data.stat().st_mtime_ns
    model = Model.load(path)
    model.save(path)  # where it lies: only the graph is written
    assert _names(path.parent) == sorted(["m.onnx", data.name]) and data.stat().st_mtime_ns == written
    monkeypatch.setattr(external, "ABOVE", 1 << 30)
    Model.load(path).save(path)
    assert _names(path.parent) == ["m.onnx"]
    assert Model.load(path).digest() == digest
    with pytest.raises(EdgerunError, match="gone"):
        _weights(model)[0].numpy()


def test_convert(path: Path, tmp_path: Path, large: None) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    convert_here(str(path), str(folder), "onnx", [], None, 21)
    model = Model.load(folder / "model.onnx")
    assert Parity.of(model).outputs[0].max_abs_error == 0 and model.history[-1].before
    digest = model.digest()
    pair.move(folder / "model.onnx", tmp_path / "out.onnx")
    assert _names(folder) == ["model.onnx"] and Model.load(tmp_path / "out.onnx").digest() == digest


def test_convert_brings_shapes_names_and_opset_up_to_date(path: Path, tmp_path: Path, large: None) -> None:
    proto = onnx.load(path, load_external_data=False)
    proto.opset_import[0].version = 11
    for node in proto.graph.node:
        node.name = "same"
    onnx.save(proto, path)
    (tmp_path / "made").mkdir()
    convert_here(str(path), str(tmp_path / "made"), "onnx", ["x:float32[2,320]"], None, 21)
    model = Model.load(tmp_path / "made" / "model.onnx")
    assert model.ir.opset_imports[""] == 21 and model.inputs[0].shape == (2, 320)
    assert all(value.shape is not None for node in model.ir.graph for value in node.outputs)


def test_a_wrong_conversion_is_located(
    path: Path, tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgerun.converters import _normalize

    def broken(proto: onnx.ModelProto) -> onnx.ModelProto:
        next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Neg"
        return proto

    monkeypatch.setattr(_normalize, "infer_shapes", broken)
    (tmp_path / "made").mkdir()
    with pytest.raises(GateFailed, match="relu0"):
        convert_here(str(path), str(tmp_path / "made"), "onnx", [], None, 21)


def test_pytorch(tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged in float64, which is made operator by operator; the module keeps its own weights."""
    torch = pytest.importorskip("torch")
    from edgerun.converters import _torch_files

    monkeypatch.setattr(_torch_files, "LARGE", 500_000)
    torch.manual_seed(0)
    module = build(LAYERS, WIDTH)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    model = convert(module, inputs=["x:float32[batch,320]"], output=tmp_path / "out.onnx")
    parity = Parity.of(model)
    assert parity.reference == "float64" and 0 < parity.outputs[0].relative_error < 1e-6
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before
    assert _names(tmp_path) == ["out.onnx", "out.onnx.data"]
    with load(tmp_path / "out.onnx") as session:
        wanted = module.double()(torch.from_numpy(X).double()).detach().numpy()
        np.testing.assert_allclose(session.run({"x": X})["output"], wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(EdgerunError, match="into a file"):
        convert(module.float(), inputs=["x:float32[batch,320]"])


def test_float64_without_a_copy_refuses_what_writes_into_weights() -> None:
    torch = pytest.importorskip("torch")
    from edgerun.converters import _torch_double
    from edgerun.converters._torch_call import Call
    from edgerun.runtime import TensorSpec

    class Counting(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Any) -> Any:
            self.seen.add_(1)
            return x + self.seen

    module = Counting()
    with pytest.raises(TypeError, match="float32"):
        _torch_double.twin(Call(module, [TensorSpec("x", "float32", (3,))])).run({"x": X[0, :3]})
    assert not module.seen.any()


def test_check_and_compile(path: Path, tmp_path: Path, large: None) -> None:
    assert not check(path, target="onnxruntime").refused
    engine = compile(path, "onnxruntime", output=tmp_path / "out.onnx")
    assert engine.folder == tmp_path.resolve() and len(engine.payload) < 10_000  # type: ignore[arg-type]
    assert engine.check is not None and engine.check.relative_error < 1e-6
    assert Model.load(tmp_path / "out.onnx").digest() == Model.load(path).digest()


def test_compare_in_turn(path: Path, tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    compress(path, scheme="w8a16", output=tmp_path / "small.onnx")
    in_turn = compare(path, tmp_path / "small.onnx", {"x": X}, batch=1)
    monkeypatch.setattr(comparing, "LARGE", 1 << 30)
    assert in_turn == compare(path, tmp_path / "small.onnx", {"x": X}, batch=1)
    assert in_turn.samples == 2 and 20 < in_turn.outputs[0].sqnr_db < 80


PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "edgerun", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_2_gib_in_bounded_memory(tmp_path: Path) -> None:
    """Nine layers of 268 MB: looking takes no weights at all, converting them once. Counts pages of files too."""
    if os.environ.get("EDGERUN_SLOW") != "1":
        pytest.skip("takes a minute, 2.4 GB of disk and 3.5 GB of memory: EDGERUN_SLOW=1 runs it")
    if (free := shutil.disk_usage(tmp_path).free) < 6 * GIB:
        pytest.skip(f"needs 6 GiB of disk, {free / GIB:.1f} are free")
    if (memory := physical_memory()) < 12 * GIB:
        pytest.skip(f"needs 12 GiB of memory for the addresses of a sparse file, {memory / GIB:.1f} are there")
    path, weights = tmp_path / "big.onnx", 9 * 4 * 8192**2
    layers = sparse(path, 9, 8192)
    assert path.with_name("big.onnx.data").stat().st_size == weights > 2 * GIB

    def peak(*words: object) -> int:
        command = [sys.executable, "-c", PEAK, *map(str, words)]
        return 1024 * int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert peak("inspect", path) < GIB
    assert peak("check", path, "--target", "onnxruntime") < GIB
    assert peak("convert", path, "-o", tmp_path / "out.onnx") < weights + GIB
    x = np.random.default_rng(3).standard_normal((1, 8192)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    out = tmp_path / "out.onnx", "--feeds", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--option", "MEMORY=small"
    assert peak("run", *out) < weights + GIB
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], computed(layers, x), rtol=1e-4, atol=1e-4)
