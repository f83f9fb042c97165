"""Hostile Keras, scikit-learn and booster files, made here: one clear error each, nothing run and nothing written.

What they ask for would make the file `canary`, or bring a file of this machine into the model.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import edgerun  # noqa: E402
from edgerun.data import open_data  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402
from edgerun.runtime import TensorSpec  # noqa: E402
from edgerun.sandbox import Limits  # noqa: E402
from tests.converters.hostile import changed, flipped, half, one_clear_error, packed, written  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
MAKERS: dict[str, Callable[[Path], object]] = {}


class Runs:
    """Unpickling it makes the file `canary`."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def bomb(name: str, *members: tuple[str, bytes]) -> Callable[[Path], object]:
    """A last member of zeros, whose directory entry says that 2 GiB come out of it."""
    data = bytearray(packed(*members, (name, bytes(1 << 20)), compressed=True))
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (0x7FFF_FFFF).to_bytes(4, "little")
    return written(bytes(data))


# --- Keras ------------------------------------------------------------------------------------------------------------


def named(module: str, kind: str, config: Any) -> dict[str, Any]:
    """An object as Keras's files name it."""
    return {"module": module, "class_name": kind, "config": config, "registered_name": None}


def config(*layers: Any) -> bytes:
    start = named("keras.layers", "InputLayer", {"batch_shape": [None, 4], "dtype": "float32", "name": "x"})
    inner = {"name": "net", "trainable": True, "layers": [start, *layers], "build_input_shape": [None, 4]}
    return json.dumps(named("keras", "Sequential", inner)).encode()


def layer(kind: str, module: str = "keras.layers", **more: Any) -> dict[str, Any]:
    return named(module, kind, {"name": "l", **more})


META = json.dumps({"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"}).encode()
CODE = "4wEAAAAAAAAAAAAAAAEAAAADAAAAQwAAAHMEAAAAZABTACkBTukBAAAAqQApAdoBeA=="
STORED = {"class_name": "__lambda__", "config": {"code": CODE, "defaults": None, "closure": None}}
LAMBDA = layer("Lambda", function=STORED)
SETTINGS: dict[str, Any] = {"units": 3, "activation": "linear", "use_bias": True, "dtype": "float32"}
POPEN = named("subprocess", "Popen", {"args": ["touch", "canary"]})
SYSTEM = named("os", "function", "system")
GET_FILE = named("keras.utils", "get_file", {"fname": "canary", "origin": "file:///etc/passwd"})


def dense(**more: Any) -> dict[str, Any]:
    return layer("Dense", **{**SETTINGS, **more})


def weights() -> bytes:
    h5py = pytest.importorskip("h5py")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((4, 3), np.float32))
        file.create_dataset("layers/dense/vars/1", data=np.ones(3, np.float32))
    return buffer.getvalue()


def keras(*layers: Any, extra: tuple[tuple[str, bytes], ...] = ()) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        members = (("metadata.json", META), ("config.json", config(*layers)), ("model.weights.h5", weights()))
        path.write_bytes(packed(*members, *extra))

    return make


def h5(attribute: bytes, link: str = "") -> Callable[[Path], object]:
    def make(path: Path) -> None:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = attribute
            group = file.create_group("model_weights")
            group.attrs["layer_names"] = [b"l"]
            inner = group.create_group("l")
            inner.attrs["weight_names"] = [b"l/kernel", b"l/bias"]
            if link == "external":
                inner["l/kernel"] = h5py.ExternalLink("/etc/passwd", "/")
                inner["l/bias"] = h5py.ExternalLink("../secret", "/")
            if link == "storage":
                for name, shape in (("l/kernel", (4, 3)), ("l/bias", (3,))):
                    inner.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, 4 * int(np.prod(shape)))])

    return make


def plain(text: bytes, **more: Any) -> Callable[[Path], object]:
    """A `.keras` file whose configuration is `text`."""
    return written(packed(("metadata.json", META), ("config.json", text), **more))


MAKERS |= {
    "lambda.keras": keras(LAMBDA),
    "class_of_os.keras": keras(layer("system", "os")),
    "initializer_that_starts.keras": keras(dense(kernel_initializer=POPEN)),
    "activation_that_starts.keras": keras(dense(activation=SYSTEM)),
    "regularizer_that_starts.keras": keras(dense(kernel_regularizer=POPEN)),
    "dtype_that_starts.keras": keras(dense(dtype=POPEN)),
    "constraint_in_a_nest.keras": keras(layer("Sequential", "keras", layers=[dense(bias_constraint=POPEN)])),
    "wrapper_of_a_lambda.keras": keras(layer("TimeDistributed", layer=LAMBDA)),
    "get_file.keras": keras(dense(activation=GET_FILE)),
    "layers_that_are_no_list.keras": plain(b'{"config": {"layers": 7}}'),
    "layers_of_text.keras": plain(b'{"config": {"layers": ["a", null, 1]}}'),
    "config_without_end.keras": plain(b'{"config":' * 100_000),
    "config_bomb.keras": plain(bytes(80 << 20), compressed=True),
    "weights_bomb.keras": bomb("model.weights.h5", ("metadata.json", META), ("config.json", config(dense()))),
    "two_configs.keras": keras(dense(), extra=(("config.json", config(LAMBDA)),)),
    "paths.keras": keras(dense(), extra=(("assets/../../canary", b"x"), ("/tmp/canary", b"x"))),
    "half.keras": changed(keras(dense()), half),
    "flipped.keras": changed(keras(dense()), flipped),
    "half.h5": changed(h5(config(dense())), half),
    "lambda.h5": h5(config(LAMBDA)),
    "class_of_os.h5": h5(config(layer("system", "os"))),
    "initializer_that_starts.h5": h5(config(dense(kernel_initializer=POPEN))),
    "external_links.h5": h5(config(dense()), "external"),
    "external_storage.h5": h5(config(dense()), "storage"),
}  # fmt: skip


def encrypted(data: bytearray) -> bytearray:
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(sign, data):
            data[found.start() + place] |= 1
    return data


def linked(path: Path) -> None:
    keras(dense())(path)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("assets/link")
        entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")


# --- scikit-learn and boosters ----------------------------------------------------------------------------------------


def schema(node: Any) -> bytes:
    return json.dumps({**node, "protocol": 2, "_skops_version": "0.16.0"}).encode()


def skop(module: str, kind: str, loader: str, content: Any, **more: Any) -> dict[str, Any]:
    """An object as skops's files name it."""
    return {"__class__": kind, "__module__": module, "__loader__": loader, "__id__": 1, "content": content, **more}


CALL = skop("os", "system", "FunctionNode", "x")
EMPTY = skop("builtins", "dict", "DictNode", {}, key_types=skop("builtins", "list", "ListNode", []))
STARTS = skop("subprocess", "Popen", "ObjectNode", EMPTY)


def fitted(path: Path) -> None:
    tree = pytest.importorskip("sklearn.tree").DecisionTreeClassifier(random_state=0)
    pytest.importorskip("skops.io").dump(tree.fit(np.eye(4, dtype=np.float32), [0, 1, 0, 1]), path)


def pickled(path: Path) -> None:
    """A good file whose arrays hold an object."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Runs()], object), allow_pickle=True)
    fitted(path)
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    path.write_bytes(packed(*((n, buffer.getvalue() if n.endswith(".npy") else data) for n, data in members)))


MAKERS |= {
    "function_of_os.skops": written(packed(("schema.json", schema(CALL)))),
    "object_that_starts.skops": written(packed(("schema.json", schema(STARTS)))),
    "schema_without_end.skops": written(packed(("schema.json", b"[" * 200_000))),
    "schema_bomb.skops": bomb("schema.json"),
    "no_schema.skops": written(packed(("other", b"x"), ("../canary", b"x"))),
    "array_that_is_a_pickle.skops": pickled,
    "half.skops": changed(fitted, half),
    "flipped.skops": changed(fitted, flipped),
    "nest.json": written(b'{"learner":' + b"[" * 1_000_000),
    "strange.json": written(b'{"learner": {"objective": {"name": "os.system"}}, "version": [3, 2, 0]}'),
    "array_of_terabytes.ubj": written(b"{L\0\0\0\0\0\0\0\x07learner[$d#L\0\0\x7f\xff\xff\xff\xff\xff"),
    "huge.txt": written(
        b"tree\nversion=v4\nnum_class=2147483647\nnum_tree_per_iteration=2147483647\nlabel_index=0\n"
        b"max_feature_idx=2147483647\nend of trees\n"
    ),
    "encrypted.keras": changed(keras(dense()), encrypted),
    "link.keras": linked,
}  # fmt: skip


# XGBoost's reader of JSON calls itself for every bracket, and its process ends.
ALONE = ("nest.json",)


@pytest.fixture(scope="module")
def told(given_to_convert: Any) -> Any:
    for package in ("keras", "h5py", "skops", "xgboost", "lightgbm"):
        pytest.importorskip(package)
    return given_to_convert({name: make for name, make in MAKERS.items() if name not in ALONE})


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ALONE])
def test_one_clear_error_and_nothing_left(told: Any, name: str) -> None:
    one_clear_error(told, name)


@pytest.mark.parametrize("name", ALONE)
def test_what_crashes_ends_too(tmp_path: Path, name: str) -> None:
    MAKERS[name](tmp_path / name)
    with pytest.raises(EdgerunError, match="the process that read this file died"):
        edgerun.convert(tmp_path / name, limits=Limits(memory=4 << 30, wall_seconds=60))


def test_data_files_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.array([Runs()], object), allow_pickle=True)
    np.savez("x.npz", x=np.array([Runs()], object))
    Path("raw.npy").write_bytes(pickle.dumps(Runs()))
    for name in ("x.npy", "x.npz", "raw.npy"):
        with pytest.raises(EdgerunError, match="cannot read|neither numeric nor text"):
            next(iter(open_data(name, [TensorSpec("x", "float32", ("n", 1))])))
    assert not Path("canary").exists()


def test_the_command_prints_one_error(tmp_path: Path) -> None:
    keras(LAMBDA)(tmp_path / "lambda.keras")
    (tmp_path / "system.joblib").write_bytes(pickle.dumps(Runs()))
    MAKERS["encrypted.keras"](tmp_path / "encrypted.keras")
    for name, code in (("lambda.keras", 3), ("system.joblib", 2), ("encrypted.keras", 2)):
        command = [sys.executable, "-m", "edgerun", "convert", name, "-o", "out.onnx"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == code and done.stdout == ""
        assert "Traceback" not in done.stderr and done.stderr.count("\n  do: ") == 1
    assert sorted(os.listdir(tmp_path)) == ["encrypted.keras", "lambda.keras", "system.joblib"]
