"""An emulated ARM64 device: what is installed there runs, and INT8 models compute there what they compute here.

Integer kernels are exact: what reads the same integers writes the same, bit for bit, on every CPU, with dot product
instructions (rpi5, n1) or without. Float arithmetic is not: float layers, means, and additions of quantized values
(ONNX Runtime rescales those in float) sum in another order or round once where another CPU rounds twice. Their last
bit now and then decides between two codes, and the layers behind carry that on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from bench import arm, zoo
from edgerun.devices import find
from edgerun.errors import Unsupported
from edgerun.metrics import sqnr_db
from edgerun.runtime import machine
from edgerun.targets import _cpu

pytestmark = pytest.mark.arm
BOARDS = {"rpi3": "raspberry-pi-3", "rpi4": "raspberry-pi-4", "rpi5": "raspberry-pi-5"}
EXACT = {"Conv", "Gemm", "MatMul", "MaxPool", "Reshape", "Flatten", "Transpose", "Relu", "Clip"}
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return arm.install(tmp_path_factory.mktemp("installed"))
    except Unsupported as error:
        pytest.skip(str(error))


def _device(name: str, installed: Path, place: Path) -> arm.Device:
    try:
        return arm.device(name, installed, place)
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def device(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> arm.Device:
    """One that stands for all."""
    return _device("rpi4", installed, tmp_path_factory.mktemp("rpi4"))


@pytest.fixture(scope="module", params=sorted(arm.PROFILES))
def board(request: pytest.FixtureRequest, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> arm.Device:
    return _device(request.param, installed, tmp_path_factory.mktemp(request.param))


def _told(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert done.returncode == code, f"{done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    return done.stderr if code else done.stdout


def _both(board: arm.Device, model: Path, feeds: Arrays) -> tuple[Arrays, Arrays]:
    """What `edgerun run` of one file writes on the device, and what it computes here."""
    if _cpu.saturates(set(machine.isa()), None):
        pytest.skip("this machine's CPU adds two products in 16 bits: its own integer results are not exact")
    place = model.parent
    np.savez(place / "feeds.npz", allow_pickle=False, **feeds)
    words = ("run", model.name, "--feeds", "feeds.npz", "-o", f"{board.profile.cpu}.npz", "--force")
    _told(board.edgerun(*words, cwd=place))
    with np.load(place / f"{board.profile.cpu}.npz") as there, edgerun.load(model, "onnxruntime") as session:
        return dict(there), session.run(feeds)


def test_the_cpu_is_what_the_kernel_tells_of(board: arm.Device, tmp_path: Path) -> None:
    code = "import ctypes, platform; print(platform.machine(), ctypes.CDLL(None).getauxval(16) >> 20 & 1)"
    dot_product = "asimddp" in board.profile.features.split()
    assert _told(board.call("-c", code, cwd=tmp_path)).split() == ["aarch64", str(int(dot_product))]


def test_the_install_has_what_it_needs_and_no_more(device: arm.Device, tmp_path: Path) -> None:
    code = "import importlib.metadata as m, sys; import edgerun; print(*{d.name for d in m.distributions()})"
    names = set(_told(device.call("-c", code, cwd=tmp_path)).lower().split())
    assert {"edgerun-device", "numpy", "click", "onnxruntime"} <= names
    assert not names & {"onnx", "onnx-ir", "onnxscript", "torch", "openvino", "pillow", "scikit-learn"}


def test_the_command_line_works_there(device: arm.Device, tmp_path: Path) -> None:
    assert "Commands:" in _told(device.edgerun("--help", cwd=tmp_path))
    targets = {t["name"]: t for t in json.loads(_told(device.edgerun("targets", "--json", cwd=tmp_path)))}
    assert targets["onnxruntime"]["reason"] is None and targets["onnxruntime"]["opset"] >= 20
    assert "pip install 'edgerun-device[openvino]'" in targets["openvino"]["reason"]
    assert "edgerun inspect is not in edgerun-device" in _told(device.edgerun("inspect", "x", cwd=tmp_path), code=3)


def test_python_3_10_finds_its_wheels(installed: Path, tmp_path: Path) -> None:
    """Such as JetPack 6 has; that the code runs on 3.10 is shown in tests/contract/test_device_install.py."""
    (wheel,) = installed.parent.glob("*.whl")
    how = ("--dry-run", "--ignore-installed", "--quiet", "--report", "-", "--target", str(tmp_path))
    command = [sys.executable, "-m", "pip", "install", *how, *arm.wheels("3.10"), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=arm.SECONDS)
    found = {p["metadata"]["name"]: p["download_info"]["url"] for p in json.loads(_told(done))["install"]}
    assert {"edgerun-device", "numpy", "click", "onnxruntime"} <= set(found)
    assert all("aarch64" in found[name] for name in ("numpy", "onnxruntime"))


@dataclass(frozen=True)
class _Net:
    """A wholly integer network once compressed: convolutions (full, depthwise, pointwise), pooling, a dense layer."""

    model: Path
    calibration: np.ndarray
    x: np.ndarray


@pytest.fixture
def net(tmp_path: Path) -> _Net:
    """x float32 [batch, 16, 10, 10] -> y float32 [batch, 10]."""
    rng = np.random.default_rng(0)
    shapes = {"a": (32, 16, 3, 3), "b": (32, 1, 3, 3), "c": (24, 32, 1, 1), "d": (10, 24 * 4)}
    weights = {n: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    biases = {f"{n}_bias": rng.normal(scale=0.1, size=s[0]).astype(np.float32) for n, s in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "a", "a_bias"], ["1"], "full"),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b", "b_bias"], ["3"], "depthwise", group=32),
        helper.make_node("Relu", ["3"], ["4"]),
        helper.make_node("Conv", ["4", "c", "c_bias"], ["5"], "pointwise"),
        helper.make_node("Relu", ["5"], ["6"]),
        helper.make_node("MaxPool", ["6"], ["7"], kernel_shape=[3, 3], strides=[3, 3]),
        helper.make_node("Flatten", ["7"], ["8"]),
        helper.make_node("Gemm", ["8", "d", "d_bias"], ["y"], "dense", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in (weights | biases).items()],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    draw: Callable[[int], np.ndarray] = lambda count: rng.normal(size=(count, 16, 10, 10)).astype(np.float32)  # noqa: E731
    return _Net(path, draw(64), draw(32))


def test_a_board_is_known_and_its_int8_is_bit_for_bit_ours(board: arm.Device, net: _Net, tmp_path: Path) -> None:
    """Probed there, compressed here by the file that the probe wrote, run there."""
    _told(board.edgerun("probe", "-o", "board.toml", cwd=tmp_path))
    probed = find(tmp_path / "board.toml")
    name = next((n for n, profile in arm.PROFILES.items() if profile is board.profile))
    assert (probed.arch, probed.target) == ("aarch64", "onnxruntime")
    assert probed.isa == {"asimd"} | ({"asimddp"} & set(board.profile.features.split()))
    if name in BOARDS:
        assert (probed.summary, probed.isa) == (find(BOARDS[name]).summary, find(BOARDS[name]).isa)
    small = tmp_path / "small.onnx"
    edgerun.compress(net.model, device=tmp_path / "board.toml", calibration={"x": net.calibration}, output=small)
    graph = onnx.load(small).graph
    assert all(_sources(graph, value)[0] <= EXACT for value in _values(graph)), "no float layer"
    assert all("x" not in _sources(graph, v)[1] or not _sources(graph, v)[0] for v in _values(graph)), "x is quantized"
    there, here = _both(board, small, {"x": net.x})
    assert there["y"].tobytes() == here["y"].tobytes()
    with edgerun.load(net.model, "onnxruntime") as session:
        assert sqnr_db(session.run({"x": net.x})["y"], there["y"]) > 30


def _values(graph: onnx.GraphProto) -> list[str]:
    """The values that are compared: all that a quantizer writes, and the graph's outputs."""
    quantized = [node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    return [*quantized, *(output.name for output in graph.output if output.name not in quantized)]


def _sources(graph: onnx.GraphProto, value: str) -> tuple[set[str], set[str]]:
    """What computes a value: the ops between it and the compared values or inputs that they read, and these."""
    nodes = {output: node for node in graph.node for output in node.output}
    inputs = {i.name for i in graph.input}
    ops, read = set[str](), set[str]()
    left = [nodes[value].input[0] if nodes[value].op_type == "QuantizeLinear" else value]
    while left:
        name = left.pop()
        if name in inputs:
            read.add(name)
        elif name in nodes and nodes[name].op_type == "QuantizeLinear":
            read.add(name)
        elif name in nodes:
            ops |= {nodes[name].op_type} - {"DequantizeLinear"}
            left += nodes[name].input
    return ops, read


def _compressed(name: str, place: Path, samples: int) -> tuple[Path, Arrays]:
    """A model of the zoo in INT8 for a Raspberry Pi 4, and feeds from its test set."""
    chosen = zoo.model(name)
    if not chosen.ready:
        pytest.skip(f"{name} is not in the cache: python -m bench.zoo {name}")
    path = place / f"{name}.onnx"
    edgerun.compress(chosen.onnx, device="raspberry-pi-4", calibration=chosen.calibration, output=path, preset="fast")
    feeds, _ = next(iter(chosen.test(samples)))
    return path, {key: np.asarray(array) for key, array in feeds.items()}


@pytest.fixture(scope="module")
def cifar_cnn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    return _compressed("cifar_cnn", tmp_path_factory.mktemp("cifar_cnn"), 8)


@pytest.fixture(scope="module")
def mobilenet_v2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    return _compressed("mobilenet_v2", tmp_path_factory.mktemp("mobilenet_v2"), 4)


@pytest.mark.zoo
def test_cifar_cnn_is_bit_for_bit_ours(board: arm.Device, cifar_cnn: tuple[Path, Arrays]) -> None:
    there, here = _both(board, *cifar_cnn)
    assert {name: array.tobytes() for name, array in there.items()} == {n: a.tobytes() for n, a in here.items()}


@pytest.mark.zoo
def test_mobilenet_v2_differs_where_it_is_float_and_nowhere_else(
    board: arm.Device, mobilenet_v2: tuple[Path, Arrays], tmp_path: Path
) -> None:
    """28.4 dB between the CPUs on an AVX-512 machine, where INT8 is 22.4 dB from float: the first two layers are float,
    and 3 of their 1,605,632 results fell on the other side of a rounding edge."""
    model, feeds = mobilenet_v2
    there, here = _both(board, model, feeds)
    assert sqnr_db(here["output"], there["output"]) > 20
    assert (there["output"].argmax(axis=1) == here["output"].argmax(axis=1)).all()
    for other in model.parent.glob("*-*.npz"):  # of the boards before this one
        assert np.load(other)["output"].tobytes() == there["output"].tobytes(), "ARM CPUs agree bit for bit"
    exact, others = _layers(board, model, feeds, tmp_path)
    assert exact > 12
    assert all(most <= 1 and apart <= 2 + size / 10_000 for most, apart, size in others), "one code, and rarely"


# Samples, and dB between the CPUs at least: more than twice as near as INT8 is to float.
REST = {"resnet50": (1, 30), "minilm": (1, 60), "ppocr_det": (1, 30), "nudenet": (1, 60), "magika": (2, 30),
        "speaker": (1, 30), "silero": (1, 30)}  # fmt: skip


@pytest.mark.zoo
@pytest.mark.parametrize("name", REST)
def test_the_rest_of_the_zoo_computes_there_what_it_computes_here(
    device: arm.Device, name: str, tmp_path: Path
) -> None:
    """Samples of the test set: the outputs, and bit for bit each layer that reads the same integers, where nothing is
    carried from frame to frame."""
    samples, least = REST[name]
    model, feeds = _compressed(name, tmp_path, samples)
    there, here = _both(device, model, feeds)
    for output, array in here.items():
        print(name, output, sqnr_db(array, there[output]))
        assert sqnr_db(array, there[output]) > least
    if not zoo.model(name).state:
        assert _layers(device, model, feeds, tmp_path)[0] >= (30 if name in ("resnet50", "nudenet") else 0)


def _layers(board: arm.Device, model: Path, feeds: Arrays, place: Path) -> tuple[int, list[tuple[int, int, int]]]:
    """How many layers were compared on equal integers, and wrote the same integers on both CPUs, bit for bit; and of
    those behind a float operation, by how many codes they are apart at most and in sum, of how many."""
    proto = onnx.load(model)
    told = {output.name for output in proto.graph.output}
    kinds = {array.name: array.data_type for array in proto.graph.initializer}
    quantizers = {n.output[0]: kinds[n.input[2]] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    new = [name for name in quantizers if name not in told]
    proto.graph.output.extend(helper.make_tensor_value_info(name, quantizers[name], None) for name in new)
    onnx.save(proto, place / "all.onnx")
    there, here = _both(board, place / "all.onnx", feeds)
    exact, others = 0, list[tuple[int, int, int]]()
    for name in quantizers:
        ops, read = _sources(proto.graph, name)
        if not all(n in feeds or np.array_equal(there[n], here[n]) for n in read):
            continue
        if ops <= EXACT and not read & set(feeds):
            assert there[name].tobytes() == here[name].tobytes(), name
            exact += 1
        else:
            apart = np.abs(there[name].astype(int) - here[name].astype(int))
            others.append((int(apart.max(initial=0)), int(apart.sum()), apart.size))
    return exact, others
