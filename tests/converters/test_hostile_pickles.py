"""Hostile pickles and PyTorch files, made here: one clear error each, with nothing run and nothing written.

Each program among them would make the file `canary`.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converters.hostile import changed, flipped, half, one_clear_error, packed, written

pytest.importorskip("onnx")
import edgerun  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402
from edgerun.sandbox import Limits  # noqa: E402

MAKERS: dict[str, Callable[[Path], object]] = {}


class Runs:
    """Unpickling it calls `function` on `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


SYSTEM = Runs(os.system, "touch canary")
EVAL = Runs(eval, "__import__('os').system('touch canary')")
POPEN = Runs(subprocess.Popen, ("touch", "canary"))
TEXT = b"cos\nsystem\n(S'touch canary'\ntR."  # protocol 0, by hand
CHAIN = b"cbuiltins\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'touch canary'\ntR."


def hostile(name: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def keep(maker: Callable[[Path], object]) -> Callable[[Path], object]:
        MAKERS[name] = maker
        return maker

    return keep


# --- Pickles ----------------------------------------------------------------------------------------------------------
MAKERS |= {
    "system.pt": written(pickle.dumps(SYSTEM)),
    "eval.pth": written(pickle.dumps(EVAL, protocol=5)),
    "nested.pt": written(pickle.dumps({"state_dict": {"w": [1, (SYSTEM,)]}})),
    "popen.pt": written(pickle.dumps({"model": POPEN})),
    "text.pt": written(TEXT),
    "chain.pt": written(CHAIN),
    "system.pkl": written(pickle.dumps(SYSTEM)),
    "eval.pickle": written(pickle.dumps([EVAL])),
    "text.joblib": written(TEXT),
    "memo_bomb.pt": written(b"\x80\x04" + b"]" * 1000 + b"\x94" * 1000 + b"N."),
    "lists_without_end.pt": written(b"\x80\x02" + b"(" * 200_000 + b"l" * 200_000 + b"."),
    "bytes_of_terabytes.pt": written(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 42) + b"x."),
}  # fmt: skip


@hostile("archive.pt")
def _(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2), "evil": SYSTEM}, path)


@hostile("compressed.joblib")
def _(path: Path) -> None:
    pytest.importorskip("joblib").dump({"a": np.ones(3), "b": SYSTEM}, path, compress=3)


# --- PyTorch archives -------------------------------------------------------------------------------------------------


def repacked(source: Path, path: Path, change: Callable[[str, bytes], bytes], *more: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(source) as archive:
        members = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    path.write_bytes(packed(*members, *more))


def scripted(path: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(4, 3), torch.ones(1, 4)), str(path))
    return path


def exported(path: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.export.save(torch.export.export(torch.nn.Linear(4, 3), (torch.ones(1, 4),)), path)
    return path


def of(make: Callable[[Path], Path], change: Callable[[str, bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: repacked(make(path.with_name("good.pt")), path, change)


def _graph(text: str, replaced: str) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(text.encode(), replaced.encode()) if name.endswith("model.json") else data

    return change


EVIL = "__import__('os').system('touch canary')"
MAKERS |= {
    "script_with_a_pickle.pt": of(scripted, lambda name, data: TEXT if name.endswith(".pkl") else data),
    "script_with_code.pt": of(
        scripted, lambda name, data: b"import os\nos.system('touch canary')\n" if name.endswith(".py") else data
    ),
    "half_script.pt": changed(scripted, half),
    "flipped_script.pt": changed(scripted, flipped),
    "target_of_a_stranger.pt2": of(exported, _graph("torch.ops.aten.linear.default", "torch.os.system")),
    "half_program.pt2": changed(exported, half),
    "flipped_program.pt2": changed(exported, flipped),
    "pickle_for_weights.pt2": of(
        exported, lambda name, data: pickle.dumps(SYSTEM) if "weight" in name or "constant" in name else data
    ),
    "json_without_end.pt2": of(exported, lambda name, data: b"[" * 200_000 if name.endswith("model.json") else data),
    "library.pt2": lambda path: repacked(
        exported(path.with_name("good.pt2")), path, lambda n, d: d, ("m/data/aotinductor/model/evil.so", b"\x7fELF")
    ),
    "symbol_that_is_code.pt2": lambda path: repacked(
        exported(path.with_name("good.pt2")), path, lambda n, d: d,
        ("m/extra/x.json", json.dumps({"expr_str": EVIL}).encode()),
    ),
    "paths.pt": written(packed(("../../canary", b"x"), ("/tmp/canary", b"x"), ("m/data.pkl", TEXT))),
}  # fmt: skip


@pytest.fixture(scope="module")
def told(given_to_convert: Any) -> Any:
    pytest.importorskip("torch")
    return given_to_convert(MAKERS, inputs=["x:float32[1,4]"], factory="torch.nn:Identity")


@pytest.mark.parametrize("name", list(MAKERS))
def test_one_clear_error_and_nothing_left(told: Any, name: str) -> None:
    one_clear_error(told, name)


def test_a_script_without_end_is_ended(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Endless(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x):  # type: ignore[no-untyped-def]
            while bool((x < 1e9).any()):
                x = torch.tanh(x)
            return x

    torch.jit.script(Endless()).save(str(tmp_path / "endless.pt"))
    with pytest.raises(EdgerunError, match="a loop in the model does not end"):
        edgerun.convert(tmp_path / "endless.pt", inputs=["x:float32[1,4]"], limits=Limits(loop_seconds=1))
