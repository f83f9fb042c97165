"""Every layer and operation of Keras converts as docs/keras.md says, and the page is whole and current."""

from __future__ import annotations

import importlib.util
import inspect
import os
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
pytest.importorskip("torch")

from bench import keras_cases, keras_coverage, keras_ops  # noqa: E402
from edgerun.converters._keras_refused import NO_LAYERS, REASONS  # noqa: E402

RELATIVE = 1e-4
TABLE = keras_coverage.kept()
QUICK = ("DenseNet121", "EfficientNetB0", "MobileNet", "MobileNetV2", "MobileNetV3Small")
SLOW = os.environ.get("EDGERUN_SLOW") == "1"


def _needs_tensorflow(case: str) -> bool:
    return "IntegerLookup" in case and importlib.util.find_spec("tensorflow") is None


@pytest.mark.parametrize("case", [*keras_cases.CASES, *keras_ops.CASES])
def test_case(case: str) -> None:
    if _needs_tensorflow(case):
        pytest.skip("Keras looks numbers up with TensorFlow, which is not installed")
    found = keras_coverage.measure(lambda: keras_cases.build(case))
    kept = {**TABLE["layers"], **TABLE["operations"]}[case]
    assert found.get("error", 1) <= RELATIVE, found
    if TABLE["keras"] == keras.__version__:
        assert found["nodes"] == kept["nodes"], "measure again: python -m bench.keras_coverage layers; make docs"


@pytest.mark.slow
@pytest.mark.parametrize("name", keras_coverage.architectures())
def test_architecture(name: str) -> None:
    if name not in QUICK and not SLOW:
        pytest.skip("takes a minute or more, and up to 8 GB: EDGERUN_SLOW=1 runs it")
    if keras_coverage.BACKENDS.get(name, "torch") != keras.backend.backend():
        pytest.skip("Keras cannot build it on this backend")
    found = keras_coverage.measure(lambda: keras_coverage.application(name))
    assert found.get("error", 1) <= RELATIVE, found
    kept = TABLE["applications"].get(name, found)  # the largest may wait to be measured
    assert found["nodes"] == kept["nodes"], f"measure again: python -m bench.keras_coverage {name}; make docs"


def test_every_public_layer_is_listed() -> None:
    found = {n: getattr(keras.layers, n) for n in dir(keras.layers)}
    public = {kind.__name__: n for n, kind in found.items() if inspect.isclass(kind)}
    covered = {keras_cases.layer_of(case) for case in keras_cases.CASES} | set(REASONS) | set(NO_LAYERS)
    assert [name for kind, name in public.items() if name not in covered and kind not in covered] == []
    assert [n for n in (*REASONS, *NO_LAYERS) if not inspect.isclass(getattr(keras.layers, n, None))] == []
    assert not {keras_cases.layer_of(case) for case in keras_cases.CASES} & set(REASONS)


def test_the_table_has_every_case() -> None:
    assert list(TABLE["layers"]) == sorted(keras_cases.CASES)
    assert list(TABLE["operations"]) == sorted(keras_ops.CASES)
    assert set(QUICK) <= set(TABLE["applications"]) <= set(keras_coverage.architectures())
    kept = {**TABLE["layers"], **TABLE["operations"], **TABLE["applications"]}
    assert [case for case, found in kept.items() if found.get("error", 1) > RELATIVE] == []


def _make_keras() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "make_keras.py"
    spec = importlib.util.spec_from_file_location("make_keras", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current() -> None:
    make = _make_keras()
    assert make.PAGE.read_text() == make.page(), "run: make docs"


@pytest.mark.parametrize("name", sorted(REASONS))
def test_what_is_refused_says_why(name: str) -> None:
    from edgerun.converters import _keras_walk

    kind = type(name, (), {"__module__": "keras.src.layers.some"})
    assert REASONS[name] in str(_keras_walk.refusal(kind()))
