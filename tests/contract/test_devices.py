"""What every file in targets/devices must be; a new one is tested the moment it exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgerun import devices, registry
from edgerun.devices import KEYS, NEEDED, Device
from edgerun.runtime import machine

FILES = sorted((Path(__file__).parents[2] / "targets" / "devices").iterdir())
BOARDS = {
    "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin",
    "jetson-thor", "intel-n100", "intel-core-ultra", "xeon-avx2", "xeon-avx512-vnni", "xeon-amx", "generic-aarch64",
    "generic-x86-64",
}  # fmt: skip


@pytest.fixture(params=[path.stem for path in FILES])
def device(request: pytest.FixtureRequest) -> Device:
    return devices.find(request.param)


def test_the_boards_are_there() -> None:
    names = [path.stem for path in FILES]
    assert {d.name for d in devices.known()} == set(names) >= BOARDS
    assert all(path.suffix == ".toml" and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", path.stem) for path in FILES)


def test_every_fact_has_a_source_and_a_known_name(device: Device) -> None:
    assert device.summary and set(NEEDED) <= set(device.facts) <= set(KEYS)
    for key, fact in device.facts.items():
        assert isinstance(fact.value, KEYS[key][0]) and fact.value not in ("", []), key
        assert len(fact.source) > 10 and fact.source != str(fact.value), key


def test_the_values_are_what_the_machine_would_tell(device: Device) -> None:
    assert device.arch in ("x86_64", "aarch64")
    assert device.isa <= set(machine.ISA), "the kernel's spelling, or no rule would see it"
    x86 = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16"}
    assert device.isa <= (x86 if device.arch == "x86_64" else set(machine.ISA) - x86)
    if capability := device.value("capability"):
        assert re.fullmatch(r"\d+\.\d", capability)
    for key in ("python", "cuda", "onnxruntime", "openvino", "tensorrt"):
        assert re.fullmatch(r"\d+(\.\d+)*", device.value(key, "1")), key
    assert device.value("cores", 1) > 0 and all(size > 0 for size in device.value("memory_gib", []))


def test_the_target_exists_and_has_the_schemes(device: Device) -> None:
    assert device.target in registry.names("target")
    target = registry.target(device.target, usable=False)
    assert set(device.value("schemes")) <= set(target.quantization(device).schemes)


def test_a_gpu_is_fast_in_what_it_has(device: Device) -> None:
    """NVIDIA's 8-bit floats begin with 8.9; what stands of a GPU stands for it alone."""
    if "capability" in device.facts:
        has = tuple(map(int, device.value("capability").split("."))) >= (8, 9)
        assert ("fp8" in device.value("schemes")) == has
        assert ("fp8" in registry.target("tensorrt", usable=False).quantization(device).schemes) == has
        assert 0 <= device.value("dla") <= 2
    else:
        assert "dla" not in device.facts


def test_ir_and_opset_go_together(device: Device) -> None:
    """An opset without the IR version that carries it would let a file through that is not read."""
    from onnx import helper

    assert ("opset" in device.facts) == ("ir_version" in device.facts)
    if limits := device.limits(device.target):
        assert helper.find_min_ir_version_for([helper.make_opsetid("", limits.opset)]) <= limits.ir_version


def test_written_and_read_again_it_is_the_same(device: Device) -> None:
    assert devices.read(device.name, device.toml()) == device
