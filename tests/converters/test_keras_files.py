"""Keras files: what is read, what is refused and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
pytest.importorskip("torch")

from bench.keras_cases import shaken  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402

L = keras.layers


def _stack(shape: tuple[int, ...], *layers: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *layers])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files(tmp_path: Path, suffix: str) -> None:
    model = shaken(_stack((9, 8, 3), L.Conv2D(4, 3), L.Flatten(), L.Dropout(0.5), L.Dense(5)))
    model.save(tmp_path / f"net{suffix}")
    found = convert(tmp_path / f"net{suffix}")
    assert found.history[-1].name == "converters/keras"
    assert len(found.history[-1].before) == 64


class OwnIdentity(L.Identity):  # type: ignore[misc, name-defined]
    """Nothing that Keras knows."""


def test_every_unsupported_layer_of_a_file_is_named(tmp_path: Path) -> None:
    x = keras.Input((4, 6), name="x")
    y = L.Lambda(lambda t: t * 2, name="twice", output_shape=(4, 6))(x)
    y = OwnIdentity(name="own")(y)
    keras.Model(x, y).save(tmp_path / "net.keras")
    with pytest.raises(Unsupported) as caught:
        convert(tmp_path / "net.keras")
    assert all(word in str(caught.value) for word in ("twice: Lambda is", "own: OwnIdentity of ", "--factory"))


def test_every_unsupported_layer_of_an_object_is_named() -> None:
    x = keras.Input((4, 6), name="x", batch_size=2)
    y = L.LSTM(3, stateful=True, return_sequences=True, name="memory")(x)
    y = L.Lambda(lambda t: keras.ops.fft((t, t))[0], name="waves", output_shape=(4, 3))(y)
    with pytest.raises(Unsupported) as caught:
        convert(keras.Model(x, y))
    assert all(word in str(caught.value) for word in ("memory: LSTM is stateful", "waves: keras.ops: FFT"))


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    for name in ("net.keras", "net.h5"):
        (tmp_path / name).write_bytes(b"not a model at all")
        with pytest.raises(EdgerunError, match="not a Keras model file"):
            convert(tmp_path / name)
    model = _stack((3,), L.Dense(2))
    model.save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(EdgerunError, match="weights without a model"):
        convert(tmp_path / "only.weights.h5")
    with pytest.raises(EdgerunError, match="needs no factory"):
        convert(model, factory="a:b")


def test_average_over_uneven_padding_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras's backends compute it differently, and a file does not tell which one it was trained on."""
    model = _stack((8, 8, 3), L.AveragePooling2D(3, strides=2, padding="same"))
    model.save(tmp_path / "net.keras")
    monkeypatch.delenv("KERAS_BACKEND")
    with pytest.raises(Unsupported, match="backends disagree; set KERAS_BACKEND"):
        convert(tmp_path / "net.keras")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert Parity.of(convert(tmp_path / "net.keras")).passed


FRESH = """
import gc, sys
from pathlib import Path
from edgerun import registry
found = registry.converter("keras").convert(Path(sys.argv[1]), inputs=[], factory=None, opset=20)
assert found.run64 is not None
print(sorted({"tensorflow", "sklearn", "pandas", "requests", "torch._dynamo"} & set(sys.modules)))
import torch, sklearn
print(callable(torch._dynamo.disable), torch.compiler.is_compiling(), gc.isenabled())
"""


def test_a_file_needs_neither_tensorflow_nor_the_compiler(tmp_path: Path) -> None:
    """What Keras imports for other purposes stays out, and can be imported afterwards."""
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]).save(tmp_path / "net.keras")
    command = [sys.executable, "-c", FRESH, str(tmp_path / "net.keras")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": "torch"})
    assert done.stdout.split("\n") == ["[]", "True False True", ""], done.stderr
