"""`edgerun compile` and `edgerun warm`: engines that were compared, and recipes that a device finishes."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.model import Model
from edgerun.runtime import Engine, Options
from edgerun.targets._onnxruntime_session import OrtSession
from edgerun.targets._openvino_session import OvSession
from edgerun.verbs import compiled as into_files
from edgerun.verbs import recipe
from edgerun.verbs.compiled import compiled
from edgerun.verbs.warm import warm

TENSORRT = registry.target("tensorrt", usable=False)
idle = pytest.mark.skipif(TENSORRT.runnable() is None, reason="a GPU answers here")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "reference"])
def test_an_engine_is_written_when_it_agrees(place: Any, cli: Any, name: str) -> None:
    target = registry.target(name, usable=False)
    if reason := target.available():
        pytest.skip(f"{name}: {reason}")
    output = place.folder / f"made{target.suffixes[0]}"
    ran = cli("compile", place.a, "-o", output, "--target", name, "--threads", 1)
    assert ran.code == 0 and "relative error" in ran.out and f"for {name}" in ran.out, ran.err
    with edgerun.load(output, name) as session:
        np.testing.assert_allclose(session.run({"x": place.x})["y"], place.x @ place.w, rtol=1e-4, atol=1e-5)
    again = cli("compile", place.a, "-o", output, "--target", name)
    assert again.code == 2 and "--force" in again.err
    told = json.loads(cli("compile", place.a, "-o", output, "--target", name, "--force", "--json").out)
    assert told["target"] == name and told["check"]["relative_error"] < 1e-5 and told["check"]["runs"] == 4


def test_real_data_is_compared_on(place: Any, cli: Any) -> None:
    ran = cli("compile", place.a, "-o", place.folder / "made.onnx", "--data", place.data, "--json")
    check = json.loads(ran.out)["check"]
    assert check["shapes"] == ["x[1, 8]", "x[2, 8]"] and check["runs"] == 5  # one of another shape


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-o", "made.txt"], 2, "no target reads this kind of file"),
        (["-o", "made.xml", "--target", "onnxruntime"], 2, "does not write this kind of file"),
        (["-o", "no/made.onnx"], 2, "folder does not exist"),
        (["-o", "made.onnx", "--option", "no_such_option"], 2, "KEY=VALUE"),
        (["-o", "made.onnx", "--option", "a=1", "--option", "a=2"], 2, "given twice"),
        (["-o", "made.onnx", "--option", "no_such_option=1"], 2, "no_such_option"),
        (["-o", "made.onnx", "--size", "n=1,2"], 2, "NAME=LEAST,USUAL,MOST"),
        (["-o", "made.onnx", "--size", "n=3,2,1"], 2, "least, usual, most"),
        (["-o", "made.onnx", "--device", "raspbery-pi-5"], 2, "did you mean 'raspberry-pi-5'"),
        (["-o", "made.recipe"], 2, "nothing says which"),
        (["-o", "made.recipe", "--device", "raspbery-pi-5"], 2, "did you mean 'raspberry-pi-5'"),
        (["-o", "made.recipe", "--device", "raspberry-pi-5"], 3, "do: -o NAME.onnx, or -o NAME.ort\n"),
        (["-o", "made.recipe", "--device", "intel-n100"], 3, "do: -o NAME.xml\n"),
        (["-o", "made.engine", "--device", "jetson-orin-nano"], 2, "finishes: -o made.recipe"),
    ],
)
def test_misuse(
    place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(place.folder)
    before = sorted(place.folder.iterdir())
    ran = cli("compile", place.a, *words)
    assert ran.code == code and message in ran.err and "Traceback" not in ran.err
    assert sorted(place.folder.iterdir()) == before


@idle
def test_an_engine_that_cannot_run_here_is_not_written(place: Any, cli: Any) -> None:
    if TENSORRT.available():
        pytest.skip(str(TENSORRT.available()))
    ran = cli("compile", place.a, "-o", place.folder / "made.engine")
    assert ran.code == 3 and str(TENSORRT.runnable()) in ran.err and "NAME.recipe" in ran.err
    assert not (place.folder / "made.engine").exists()


def test_a_recipe_is_for_its_device(place: Any, cli: Any) -> None:
    """The same bytes twice; what it expects stands in the table of devices; here it is not finished but refused."""
    outputs = [place.folder / f"{name}.recipe" for name in "ab"]
    for output in outputs:
        ran = cli("compile", place.a, "--target", "tensorrt", "--device", "jetson-orin-nano", "-o", output)
        assert ran.code == 0 and "edgerun warm" in ran.out and "for tensorrt on jetson-orin-nano" in ran.out, ran.err
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    told = recipe.read(outputs[0])
    assert told.expects == {"arch": "aarch64", "capability": "8.7"} and told.device == "jetson-orin-nano"
    assert told.engine.digest == Model.load(place.a).digest() and told.engine.payload == Model.load(place.a).to_bytes()
    for feed, output in zip(told.feeds, told.outputs, strict=True):
        np.testing.assert_allclose(output["y"], feed["x"] @ place.w, rtol=1e-4, atol=1e-5)
    ran = cli("warm", outputs[0])
    assert ran.code == 3 and "Traceback" not in ran.err and not (place.folder / "a.engine").exists()


@pytest.mark.parametrize("verb", ["compile", "check", "compress", "convert"])
def test_a_device_without_a_gpu_is_not_for_tensorrt(place: Any, cli: Any, verb: str) -> None:
    output = () if verb == "check" else ("-o", place.folder / ("pi.recipe" if verb == "compile" else "pi.onnx"))
    ran = cli(verb, place.a, "--target", "tensorrt", "--device", "raspberry-pi-4", *output)
    assert ran.code == 2 and "tensorrt does not run on raspberry-pi-4" in ran.err and "Traceback" not in ran.err
    assert "--target onnxruntime" in ran.err and not list(place.folder.glob("pi.*"))


ORIN = ("--target", "tensorrt", "--device", "jetson-orin-nano", "-o", "made.recipe")
SIZE = ("--size", "n=1,2,2")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([*ORIN, "--option", "FOO=1"], 2, "unknown option of TensorRT 'FOO'"),
        ([*ORIN, "--option", "COMPUTE_CAPABILITY=SM87"], 3, "wanted: current, portable"),
        ([*ORIN, "--option", "COMPUTE_CAPABILITY=SM89"], 3, "tensorrt does not build for this"),
        ([*ORIN, "--option", "RUNTIME_CACHE=a"], 3, "tensorrt compiles its kernels while it builds"),
        ([*ORIN, "--option", "REFIT=a.onnx"], 2, "do: WEIGHTS=refittable too"),
        ([*ORIN, "--option", "REFIT=a.onnx", "--option", "WEIGHTS=refittable"], 0, ""),
        ([*ORIN, "--size", "nn=1,2,4"], 2, "did you mean 'n'"),
        ([*ORIN, *SIZE, "--data", "long.npz"], 0, ""),
        ([*ORIN, "--size", "n=2,4,8", "--data", "long.npz"], 2, "wanted: n 2 to 8"),
        (["--target", "tensorrt", "-o", "made.recipe", "--option", "COMPUTE_CAPABILITY=SM87"], 3, "SM89"),
        (["--target", "tensorrt", "-o", "made.recipe", "--option", "COMPUTE_CAPABILITY=SM89"], 0, ""),
    ],
)
def test_a_recipe_is_what_its_device_takes(
    place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    """Whatever is installed here: the options, the names of sizes, and the feeds that it would be compared on."""
    monkeypatch.chdir(place.folder)
    np.savez("long.npz", x=place.x[:6])
    ran = cli("compile", place.a, *words)
    assert ran.code == code and message in ran.err and "Traceback" not in ran.err, ran.err
    assert (place.folder / "made.recipe").exists() == (code == 0)


def test_an_open_dimension_that_is_no_batch_needs_a_size(tmp_path: Path, cli: Any) -> None:
    shape: list[str | int | None] = ["batch", "length", 4]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    command = ("compile", tmp_path / "a.onnx", "--target", "tensorrt", "-o", tmp_path / "a.recipe")
    ran = cli(*command)
    assert ran.code == 2 and "give --size length=LEAST,USUAL,MOST" in ran.err and not (tmp_path / "a.recipe").exists()
    assert cli(*command, "--size", "length=1,8,9").code == 0
    assert {feed["x"].shape[1] for feed in recipe.read(tmp_path / "a.recipe").feeds} <= set(range(1, 10))


@pytest.fixture
def finishing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """ONNX Runtime as a target that finishes recipes, so that a recipe can be finished here; off by a factor."""
    target = registry.target("onnxruntime")
    off = {"by": 1.0}

    def finish(engine: Engine, options: Options, told: Mapping[str, Any]) -> Engine:
        assert isinstance(engine.payload, bytes)
        return Engine(engine.target, engine.payload, engine.inputs, engine.outputs, target.device(), engine.digest)

    run = OrtSession._run

    def moved(self: Any, feeds: Any) -> dict[str, np.ndarray]:
        return {name: value * np.float32(off["by"]) for name, value in run(self, feeds).items()}

    monkeypatch.setattr(target, "finish", finish, raising=False)
    monkeypatch.setattr(target, "ranges", lambda inputs, options, device: options.sizes, raising=False)
    monkeypatch.setattr(OrtSession, "_run", moved)
    return lambda by: off.update(by=by)


def test_warm_compiles_compares_and_writes(place: Any, cli: Any, finishing: Callable[[float], None]) -> None:
    path, made = place.folder / "net.recipe", place.folder / "net.onnx"
    told = compiled(place.a, path, target="onnxruntime", options=Options(1))
    assert told.tried is not None and told.check is None
    ran = cli("warm", path)
    assert ran.code == 0 and "compiled here" in ran.out and "relative error" in ran.out, ran.err
    with edgerun.load(made) as session:
        np.testing.assert_allclose(session.run({"x": place.x})["y"], place.x @ place.w, rtol=1e-4, atol=1e-5)
    written = made.stat().st_mtime_ns
    ran = cli("warm", path, "--json")
    assert json.loads(ran.out)["compiled"] is False and made.stat().st_mtime_ns == written
    made.write_bytes(b"damaged")
    assert warm(path).compiled and warm(path, force=True).compiled and not warm(path).compiled
    finishing(1.002)
    made.unlink()
    with pytest.raises(GateFailed, match="does not compute"):
        warm(path)
    assert not made.exists()


def test_a_rounding_model_is_judged_beside_its_float_model(
    place: Any, finishing: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = place.folder / "small.onnx"
    edgerun.compress(place.a, calibration={"x": place.x}, output=small, placement="rules")
    path = place.folder / "small.recipe"
    compiled(small, path, target="onnxruntime", original=place.a)
    told = recipe.read(path)
    assert told.rounds and len(told.exact) == len(told.feeds) == 4
    assert warm(path, place.folder / "made.onnx").check.sqnr_db > 20
    finishing(0.5)  # 6 dB: below the bound for models that round, and far from the float model
    with pytest.raises(GateFailed, match="SQNR of 10 dB"):
        warm(path, place.folder / "other.onnx")


def test_a_rounding_model_that_fails_on_drawn_inputs_asks_for_real_ones(
    place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector gives next to nothing on noise, and that is all rounding: real data, or the float model, decides."""
    small, output, data = (place.folder / name for name in ("small.onnx", "made.xml", "real.npz"))
    pytest.importorskip("openvino")
    edgerun.compress(place.a, calibration={"x": place.x}, target="openvino", output=small, placement="rules")
    np.savez(data, x=place.x)
    run = OvSession._run
    monkeypatch.setattr(OvSession, "_run", lambda *a, **k: {n: v * np.float32(0.5) for n, v in run(*a, **k).items()})
    command = ("compile", small, "-o", output, "--target", "openvino")
    drawn, real = cli(*command), cli(*command, "--data", data)
    assert drawn.code == real.code == 1 and not output.exists()
    assert "--data" in drawn.err and "--original" in drawn.err and "use another target" in real.err


def test_another_device_is_named(
    place: Any, finishing: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.folder / "net.recipe"
    monkeypatch.setattr(into_files, "_expected", lambda facts: {"arch": "riscv64"})
    compiled(place.a, path, target="onnxruntime", device="raspberry-pi-5")
    with pytest.raises(Unsupported, match="raspberry-pi-5") as error:
        warm(path)
    assert error.value.got == f"arch {platform.machine()}" and error.value.wanted == "arch riscv64"


def test_a_damaged_recipe_is_refused(place: Any, finishing: Callable[[float], None]) -> None:
    path = place.folder / "net.recipe"
    compiled(place.a, path, target="onnxruntime")
    data = path.read_bytes()
    for broken in (b"", b"nonsense", data[: len(data) // 2], data[:200] + b"XXXX" + data[204:]):
        path.write_bytes(broken)
        with pytest.raises(EdgerunError):
            warm(path)
    np.savez(place.folder / "other.npz", x=np.zeros(3))
    (place.folder / "other.npz").rename(path)
    with pytest.raises(EdgerunError, match="no build recipe"):
        warm(path)
    with pytest.raises(EdgerunError, match="this is no recipe") as error:
        warm(place.a)
    assert "-o NAME.recipe" in str(error.value.do)


def test_a_model_in_a_recipe_that_reaches_outside_is_refused(place: Any) -> None:
    path = place.folder / "net.recipe"
    compiled(place.a, path, target="tensorrt")
    told = recipe.read(path)
    proto = Model.load(place.a).to_proto()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/hostname")
    replace(told, engine=replace(told.engine, payload=proto.SerializeToString())).save(path)
    with pytest.raises(EdgerunError, match="outside the model"):
        recipe.read(path)


def test_a_device_without_onnx_reads_recipes(place: Any, tmp_path: Path) -> None:
    """The reading side imports no framework and no onnx."""
    path = place.folder / "net.recipe"
    compiled(place.a, path, target="tensorrt")
    code = """
import sys
for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino"):
    sys.modules[name] = None
import edgerun.cli.warm
from edgerun.verbs.warm import warm
from edgerun.verbs.recipe import read
print(read(__import__("pathlib").Path(sys.argv[1])).engine.inputs[0])
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stdout == "x:float32[n,8]\n", done.stderr
