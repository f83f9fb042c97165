"""Sums of two products in 16 bits, on every class of CPU that OpenVINO can play here: ONEDNN_MAX_CPU_ISA, per process.

Weights are 0 or ±127 and activations 0 or 255, so nothing rounds: an output that is not the exact integer was cut off.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.model import Model
from edgerun.quantize.graphs import saturation
from edgerun.runtime import Options, machine

CLASSES = ("SSE41", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these classes are x86")
CHILD = """
import json, pathlib, sys
import numpy as np, edgerun
from edgerun import registry
folder, out = pathlib.Path(sys.argv[1]), {}
for path in sorted(folder.glob("*.onnx")):
    with np.load(path.with_suffix(".npz")) as feeds:
        with edgerun.load(path, "openvino", edgerun.Options(threads=1)) as session:
            out[path.stem] = next(iter(session.run(dict(feeds)).values()))
np.savez(sys.argv[2], **out)
print(json.dumps(registry.target("openvino").quantization().reduced_range))
"""


@dataclass(frozen=True)
class Layer:
    """A Conv (with a window) or a MatMul: input channels per group, outputs, groups."""

    inputs: int
    outputs: int
    window: tuple[int, ...] = ()
    groups: int = 1
    stride: int = 1
    pairs: bool = True  # whether any kernel forms them

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs, *self.window) if self.window else (self.inputs, self.outputs)


LAYERS = {
    "even": Layer(16, 32, (3, 3)),
    "stem": Layer(3, 32, (3, 3), stride=2),
    "odd": Layer(13, 32, (1, 1)),
    "grey": Layer(1, 32, (3, 3)),
    "line": Layer(5, 32, (3,)),
    "groups": Layer(3, 32, (3, 3), groups=4),
    "multiplied": Layer(1, 64, (3, 3), groups=32),
    "depthwise": Layer(1, 48, (3, 3), groups=48, pairs=False),
    "dense": Layer(15, 32),
}


def quantized(layer: Layer, stored: np.ndarray) -> Model:
    """The layer behind Q/DQ with scales of one."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weights", axis=0 if layer.window else 1),
    ]
    if layer.window:
        strides = [layer.stride] * len(layer.window)
        nodes.append(helper.make_node("Conv", ["xd", "wd"], ["y"], "layer", group=layer.groups, strides=strides))
    else:
        nodes.append(helper.make_node("MatMul", ["xd", "wd"], ["y"], "layer"))
    given: dict[str, np.ndarray] = {
        "s": np.array(1, np.float32), "z": np.array(0, np.uint8), "w": stored,
        "ws": np.ones(layer.outputs, np.float32), "wz": np.zeros(layer.outputs, np.int8),
    }  # fmt: skip
    spatial = [9] * len(layer.window)
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, layer.inputs * layer.groups, *spatial])],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.FLOAT, [2, layer.outputs, *(f"d{i}" for i, _ in enumerate(spatial))]
            )
        ],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def exact(layer: Layer, stored: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The layer in int64, by its definition."""
    x, wide = x.astype(np.int64), stored.astype(np.int64)
    if not layer.window:
        return x @ wide
    rank = len(layer.window)
    seen = np.lib.stride_tricks.sliding_window_view(x, layer.window, axis=tuple(range(2, 2 + rank)))
    seen = seen[(slice(None), slice(None), *[slice(None, None, layer.stride)] * rank)]
    parts = []
    for group in range(layer.groups):
        mine = seen[:, group * layer.inputs : (group + 1) * layer.inputs]
        out = wide.reshape(layer.groups, -1, layer.inputs, *layer.window)[group]
        axes = [1, *range(2 + rank, 2 + 2 * rank)]
        parts.append(np.moveaxis(np.tensordot(mine, out, (axes, list(range(1, 2 + rank)))), -1, 1))
    return np.concatenate(parts, axis=1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder of layers with extreme weights, `NAME.stored` and `NAME.fitted`, and what each computes exactly."""
    folder, truth = tmp_path_factory.mktemp("planted"), {}
    generator = np.random.default_rng(0)
    for name, layer in LAYERS.items():
        stored = generator.choice(np.array([-127, 0, 127], np.int8), layer.shape)
        x = generator.choice(np.array([0, 255]), (2, layer.inputs * layer.groups, *[9] * len(layer.window)))
        node = quantized(layer, stored).ir.graph[-1]
        for kind, weight in (("stored", stored), ("fitted", saturation.fitted(node, stored))):
            quantized(layer, weight).save(folder / f"{name}.{kind}.onnx")
            np.savez(folder / f"{name}.{kind}.npz", x=x.astype(np.float32))
            truth[f"{name}.{kind}"] = exact(layer, weight, x)
    return folder, truth


def played(isa: str, folder: Path, out: Path) -> tuple[dict[str, np.ndarray], bool]:
    """The outputs of every model in `folder` on one class of CPU, and whether the target's rules say it saturates."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    told = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(out)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    with np.load(out) as outputs:
        return dict(outputs), bool(json.loads(told.stdout))


@on_x86
@pytest.mark.parametrize("isa", CLASSES)
def test_pairs_are_what_the_kernels_form(planted: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, isa: str) -> None:
    """Fitted weights are exact everywhere; stored ones exactly where the rules or the layer say so."""
    folder, truth = planted
    outputs, saturates = played(isa, folder, tmp_path / "out.npz")
    for name, layer in LAYERS.items():
        np.testing.assert_array_equal(outputs[f"{name}.fitted"], truth[f"{name}.fitted"], err_msg=name)
        same = np.array_equal(outputs[f"{name}.stored"], truth[f"{name}.stored"])
        if not (saturates and layer.pairs):
            assert same, name
        elif name != "grey":  # one channel: some kernels pad it to a block of its own
            assert not same, name


@on_x86
def test_rules_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
    monkeypatch.setattr(machine, "isa", lambda: flags)
    rules = registry.target("openvino").quantization
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert not rules().reduced_range and "max_isa" not in registry.target("openvino").device()
    found = {}
    for name in (*CLASSES, "avx2", "AVX512_CORE_AMX", "nonsense", ""):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", name)
        found[name] = rules().reduced_range
        told = registry.target("openvino").device().get("max_isa", "")
        assert told == (name.upper() if name in (*CLASSES, "avx2", "AVX512_CORE_AMX") else "")
    assert [name for name, saturates in found.items() if saturates] == ["SSE41", "AVX2", "AVX512_CORE", "avx2"]
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert rules().reduced_range
    assert registry.target("openvino").device()["max_isa"] == "AVX2"  # what was timed elsewhere does not count there
    assert not registry.target("onnxruntime").quantization().reduced_range  # it knows no such variable


@pytest.mark.parametrize(
    ("flags", "openvino", "onnxruntime"),
    [
        ((), True, False),  # SSE4.1: oneDNN pairs, MLAS widens
        (("avx2",), True, True),
        (("avx2", "avx512f"), True, True),
        (("avx2", "avx_vnni"), False, False),
        (("avx2", "avx512f", "avx512_vnni"), False, False),
    ],
)
def test_rules_by_instruction_set(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], openvino: bool, onnxruntime: bool
) -> None:
    monkeypatch.setattr(machine, "isa", lambda: flags)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert registry.target("openvino").quantization().reduced_range is openvino
    assert registry.target("onnxruntime").quantization().reduced_range is onnxruntime


@pytest.mark.parametrize("flags", [("asimd",), ("asimd", "asimddp", "i8mm")])
def test_arm_adds_in_32_bits(monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]) -> None:
    monkeypatch.setattr(machine, "isa", lambda: flags)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for name in ("openvino", "onnxruntime"):
        assert not registry.target(name).quantization().reduced_range


def test_onnxruntime_is_exact_where_its_rules_say_so(planted: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Its MatMul kernel has float output, so that nothing hides what was cut off."""
    folder, truth = planted
    for kind in ("stored", "fitted"):
        with np.load(folder / f"dense.{kind}.npz") as feeds:
            with edgerun.load(folder / f"dense.{kind}.onnx", "onnxruntime", Options(threads=1)) as session:
                same = np.array_equal(session.run(dict(feeds))["y"], truth[f"dense.{kind}"])
        assert same is (kind == "fitted" or not registry.target("onnxruntime").quantization().reduced_range)


@on_x86
def test_compressed_for_a_saturating_cpu_gives_the_same_bits_on_all(tmp_path: Path) -> None:
    """Through the door: calibrated and compressed as on AVX2, then run on each class whose float kernels have FMA."""
    generator = np.random.default_rng(0)
    weight = generator.choice(np.array([-1, 0.02, 0.97], np.float32), (16, 12, 3, 3))
    x = np.abs(generator.standard_normal((8, 12, 9, 9))).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "layer")],
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 7, 7])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    Model.from_proto(proto).save(tmp_path / "float.onnx")
    np.savez(tmp_path / "x.npz", x=x)
    runs = tmp_path / "runs"
    runs.mkdir()
    np.savez(runs / "small.npz", x=x)
    command = [sys.executable, "-m", "edgerun", "compress", str(tmp_path / "float.onnx"), "--target", "openvino"]
    command += ["--calibration", str(tmp_path / "x.npz"), "-o", str(runs / "small.onnx")]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    compressed = Model.load(runs / "small.onnx")
    assert saturation.channels(compressed.ir.graph) == (0, 16)
    first, *others = (
        played(isa, runs, tmp_path / f"{isa}.npz")[0]["small"] for isa in ("AVX2", "AVX512_CORE", "DEFAULT")
    )
    for other in others:
        np.testing.assert_array_equal(other, first)
