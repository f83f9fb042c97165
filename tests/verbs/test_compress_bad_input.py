"""compress refuses what it cannot do: one error that names the trouble, its exit code, and no file is touched."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

X = np.random.default_rng(1).standard_normal((12, 6)).astype(np.float32)
TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,6] x, float[n,6] z) => (float[n,4] y) {
    s = Add(x, z) a = Gemm(s, w, b) y = Relu(a) }"""


def network(text: str = TEXT) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(text)
    for name, shape in (("w", (6, 4)), ("b", (4,))):
        if any(name in node.input for node in proto.graph.node):
            array = generator.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`m.onnx` with inputs x and z, `c.npz` with data for both."""
    onnx.save(network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=X, z=X)
    return tmp_path


def stored(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def refused(place: Path, cli: Any) -> Callable[..., str]:
    """Run compress on m.onnx with c.npz, but for what `changes` says; it must fail with `code` and write nothing."""

    def run(code: int, **changes: object) -> str:
        given: dict[str, Any] = {
            "model": place / "m.onnx",
            "-o": place / "small.onnx",
            "--calibration": place / "c.npz",
        }
        given |= {key if key in given or key.startswith("-") else f"--{key}": value for key, value in changes.items()}
        before = stored(place)
        model = given.pop("model")
        options = [word for pair in given.items() if pair[1] is not None for word in pair]
        done = cli("compress", model, *options)
        assert done.code == code, done.err
        assert done.out == "" and "Traceback" not in done.err
        assert stored(place) == before
        return str(done.err)

    return run


DATA: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "an input is missing": ({"x": X}, "'z' is missing"),
    "another name": ({"x": X, "q": X}, "'z' is missing"),
    "another dtype": ({"x": X, "z": X.astype(np.float64)}, "wrong dtype"),
    "integers": ({"x": X, "z": X.astype(np.int32)}, "wrong dtype"),
    "another width": ({"x": X, "z": X[:, :5]}, "wrong shape"),
    "another rank": ({"x": X[:, :, None], "z": X}, "wrong shape"),
    "other counts": ({"x": X, "z": X[:7]}, "number of samples"),
    "empty": ({"x": X[:0], "z": X[:0]}, "empty"),
    "NaN": ({"x": np.where(np.arange(12)[:, None] == 9, np.nan, X).astype(np.float32), "z": X}, "sample 9"),
    "infinity": ({"x": X, "z": np.where(np.arange(12)[:, None] == 3, np.inf, X).astype(np.float32)}, "sample 3"),
}


@pytest.mark.parametrize("case", DATA)
def test_calibration_data(place: Path, refused: Callable[..., str], case: str) -> None:
    arrays, words = DATA[case]
    np.savez(place / "c.npz", **arrays)  # type: ignore[arg-type]
    assert words in refused(2)


def test_calibration_sources(place: Path, refused: Callable[..., str]) -> None:
    (place / "empty").mkdir()
    (place / "zero.npz").write_bytes(b"")
    (place / "half.npz").write_bytes((place / "c.npz").read_bytes()[:-60])
    (place / "notes.txt").write_text("x")
    for source, words in (
        (place / "nowhere.npz", "does not exist"), (place / "empty", "neither"), (place / "zero.npz", "empty"),
        (place / "half.npz", "cannot read"), (place / "notes.txt", "unknown kind"), ("no_such_mod:f", "no_such_mod"),
        ("json:no_such_function", "no_such_function"), ("random:0", "empty"), (None, "--calibration"),
    ):  # fmt: skip
        assert words in refused(2, **{"--calibration": source}), source


NAMES = {
    "scheme": ("w8a9", "w8a8"),
    "target": ("openvno", "openvino"),
    "ranges": ("msee", "mse"),
    "keep-float": ("Gem", "unknown node"),
    "limit": ("0", "1"),
    "memory-cap": ("1", "16"),
}


@pytest.mark.parametrize("option", NAMES)
def test_unknown_names_and_numbers(refused: Callable[..., str], option: str) -> None:
    """The message names what there is, and what was probably meant."""
    got, words = NAMES[option]
    message = refused(2, **{option: got})
    assert got in message and words in message


def test_outputs(place: Path, refused: Callable[..., str]) -> None:
    (place / "old.onnx").write_bytes(b"old")
    (place / "old.bin").write_bytes(b"old")
    (place / "folder.onnx").mkdir()
    assert "exists" in refused(2, **{"-o": place / "old.onnx"})
    assert "exists" in refused(2, **{"-o": place / "old.xml", "target": "openvino"})
    assert "folder" in refused(2, **{"-o": place / "folder.onnx"})
    assert "does not exist" in refused(2, **{"-o": place / "no" / "small.onnx"})
    assert ".onnx" in refused(2, **{"-o": place / "small.tflite"})
    assert ".onnx" in refused(2, **{"-o": place / "small.xml"})
    assert "could not write" in refused(2, **{"-o": "/proc/small.onnx"})
    assert "too long" in refused(2, **{"-o": place / f"{'a' * 300}.onnx"})


def future(proto: onnx.ModelProto) -> bytes:
    proto.opset_import[0].version = 99
    return bytes(proto.SerializeToString())


def old(proto: onnx.ModelProto) -> bytes:
    proto.opset_import[0].version, proto.ir_version = 12, 7
    return bytes(proto.SerializeToString())


def weights_as_inputs(proto: onnx.ModelProto) -> bytes:
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [6, 4]))
    return bytes(proto.SerializeToString())


def broken_weights(proto: onnx.ModelProto) -> bytes:
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[2, 1] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    return bytes(proto.SerializeToString())


MODELS: dict[str, tuple[Callable[[onnx.ModelProto], bytes], int, str]] = {
    "empty": (lambda proto: b"", 2, "empty"),
    "truncated": (lambda proto: bytes(proto.SerializeToString()[:-70]), 2, "truncated"),
    "text": (lambda proto: b"hello world, this is no model", 2, "not an ONNX model"),
    "opset from the future": (future, 3, "future"),
    "an old opset": (old, 2, "edgerun convert"),
    "weights as inputs": (weights_as_inputs, 2, "edgerun convert"),
    "weights that are not finite": (broken_weights, 2, "not finite"),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_models(place: Path, refused: Callable[..., str], case: str, target: str) -> None:
    make, code, words = MODELS[case]
    (place / "m.onnx").write_bytes(make(network()))
    assert words in refused(code, target=target)


def test_no_model_there(place: Path, refused: Callable[..., str]) -> None:
    assert "does not exist" in refused(2, model=place / "none.onnx")
    assert "not a file" in refused(2, model=place)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_nothing_to_quantize(place: Path, refused: Callable[..., str], target: str) -> None:
    """Exit 3: valid, but no integer kernel takes anything of it."""
    text = TEXT.replace("a = Gemm(s, w, b)", "a = Sigmoid(s)").replace("float[n,4] y", "float[n,6] y")
    onnx.save(network(text), place / "m.onnx")
    assert "nothing in this model" in refused(3, target=target)


def test_quantized_already(place: Path, cli: Any, refused: Callable[..., str]) -> None:
    first = cli("compress", place / "m.onnx", "-o", place / "q.onnx", "--calibration", place / "c.npz")
    assert first.code == 0, first.err
    assert "quantized already" in refused(2, model=place / "q.onnx")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_activations_that_are_not_finite(place: Path, refused: Callable[..., str], target: str) -> None:
    """log of negative numbers: the first such activation is named."""
    onnx.save(network(TEXT.replace("s = Add(x, z)", "t = Add(x, z) s = Log(t)")), place / "m.onnx")
    assert "'s' is not finite" in refused(2, target=target)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
@pytest.mark.parametrize(("target", "name"), [("onnxruntime", "small.onnx"), ("openvino", "small.xml")])
def test_a_full_disk(place: Path, cli: Any, tiny_disk: Path, target: str, name: str) -> None:
    """The old output stays as it was, and no temporary file takes what is left."""
    weight = np.random.default_rng(0).standard_normal((6, 20_000)).astype(np.float32)
    proto = network(TEXT.replace("float[n,4] y", "float[n,20000] y"))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight[0].copy(), "b")]
    )
    onnx.save(proto, place / "m.onnx")
    (tiny_disk / name).write_bytes(b"old")
    arguments = ["--calibration", place / "c.npz", "--target", target, "--force", "--ranges", "minmax"]
    done = cli("compress", place / "m.onnx", "-o", tiny_disk / name, *arguments)
    assert done.code == 2 and "could not write" in done.err and "free space" in done.err
    assert stored(tiny_disk) == {name: b"old"}


def test_no_space_for_temporary_files(place: Path) -> None:
    """OpenVINO writes its IR into some, and says nothing of space: no file may grow over 8 kB here."""
    pytest.importorskip("openvino")
    command: list[str | Path] = [sys.executable, "-m", "edgerun", "compress", place / "m.onnx", "-o", place / "s.xml"]
    command += ["--target", "openvino", "--calibration", place / "c.npz", "--placement", "rules"]
    limits = (8192, resource.RLIM_INFINITY)
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    )
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.splitlines()[-3] == "error: could not write temporary files"
    assert "free space" in done.stderr and not (place / "s.xml").exists()


def test_the_whole_way_prints_no_traceback(place: Path) -> None:
    """In a process of its own: message on stderr, exit code to the shell."""
    command = [sys.executable, "-m", "edgerun", "compress", str(place / "m.onnx"), "-o", str(place / "s.onnx")]
    done = subprocess.run([*command, "--calibration", str(place / "none.npz")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
