"""What the doors load: a device has numpy, click and one runtime, and pays for nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgerun
from edgerun.errors import EdgerunError

FRAMEWORKS = {
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "keras",
    "tensorflow",
    "sklearn",
    "skl2onnx",
    "skops",
    "pandas",
    "PIL",
}
CODE = """
import sys
before = set(sys.modules)
{statement}
print(" ".join(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def _loaded(statement: str) -> set[str]:
    command = [sys.executable, "-c", CODE.format(statement=statement)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import edgerun",
        "import edgerun; dir(edgerun)",
        "import edgerun.runtime",
        "import edgerun.cli",
        "import edgerun.verbs.load, edgerun.verbs.run, edgerun.verbs.predict",
        "import edgerun.targets.onnxruntime, edgerun.targets.openvino",
        "import edgerun.targets.reference, edgerun.targets.tensorrt",
        "from edgerun import registry; registry.names('target')",
    ],
)
def test_no_framework(statement: str) -> None:
    assert not _loaded(statement) & FRAMEWORKS


def test_completion_offers_every_public_name() -> None:
    """As a REPL asks: by `dir`, and then for each name that begins so."""
    told = "import edgerun, rlcompleter; c = rlcompleter.Completer(vars()); print(*c.attr_matches('edgerun.'))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    offered = {word.removeprefix("edgerun.").partition("(")[0] for word in done.stdout.split()}
    assert {name for name in edgerun.__all__ if not name.startswith("_")} <= offered
    assert {"compress", "load", "Options", "Session", "EdgerunError"} <= offered
    assert issubclass(edgerun.GateFailed, edgerun.EdgerunError) and edgerun.EdgerunError is EdgerunError
    with pytest.raises(edgerun.EdgerunError, match="does not exist"):
        edgerun.load("nowhere.onnx")


def test_opening_a_model_loads_what_it_needs() -> None:
    """numpy and ONNX Runtime have their own price; what is beside them on the way to a session is short."""
    spared = {"importlib.metadata", "tempfile", "hashlib", "edgerun.passes", "edgerun.model", "edgerun.verbs.compile"}
    code = "import sys, numpy; known = set(sys.modules); import edgerun.verbs.load, edgerun.targets.onnxruntime; "
    code += "print(*(set(sys.modules) - known))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "edgerun.guard" in loaded and not spared & set(loaded)


def test_help_loads_no_framework() -> None:
    statement = (
        "from click.testing import CliRunner; from edgerun.cli import edgerun as e; CliRunner().invoke(e, ['--help'])"
    )
    assert not _loaded(statement) & FRAMEWORKS


def test_the_runtime_needs_numpy_alone() -> None:
    foreign = _loaded("import edgerun.runtime") - set(sys.stdlib_module_names) - {"edgerun", "numpy"}
    assert not {name for name in foreign if not name.startswith("_")}
