"""TensorFlow modules and SavedModels made here; a test that asks for `tf` skips where it is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tf() -> Any:
    for package in ("tensorflow", "tf2onnx"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'edgerun[tensorflow]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return importlib.import_module("tensorflow")


@pytest.fixture
def module(tf: Any) -> Callable[..., Any]:
    """`module(serve, *signature, **fields)`: a tf.Module of a variable `w` [4] and the fields, with `serve` as its
    tf.function; the signature is one input x:float32[None, 4] unless another is given."""

    def build(serve: Callable[..., Any], *signature: Any, **fields: Any) -> Any:
        class Net(tf.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                self.w = tf.Variable([0.5, -1.0, 2.0, 3.0])
                for name, value in fields.items():
                    setattr(self, name, value)  # through tf.Module, which tracks what is to be saved
                wanted = signature or (tf.TensorSpec([None, 4], tf.float32, name="x"),)
                self.serve = tf.function(lambda *values: serve(self, *values), input_signature=wanted, autograph=False)

        return Net()

    return build


@pytest.fixture
def saved(tf: Any, module: Callable[..., Any]) -> Callable[..., Path]:
    """`saved(folder, serve, *signature, **fields)`: such a module as a SavedModel."""

    def save(folder: Path, serve: Callable[..., Any], *signature: Any, **fields: Any) -> Path:
        net = module(serve, *signature, **fields)
        tf.saved_model.save(net, str(folder), signatures=net.serve)
        return folder

    return save
