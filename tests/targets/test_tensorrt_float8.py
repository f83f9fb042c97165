"""8-bit floats on TensorRT: which GPUs have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import tensorrt as target
from tests.verbs.test_fitting import floats

rtx_only = pytest.mark.skipif(
    target.available() is not None or tensorrt.chosen() != "tensorrt_rtx", reason="tensorrt_rtx is not what builds here"
)


@pytest.mark.parametrize(("capability", "has"), [((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_the_gpu_here_decides_on_8_bit_floats(
    capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edgerun targets` and `edgerun probe` list what the GPU that answers has; without one, what the library has."""
    assert "fp8" in target.quantization().schemes or cuda.missing() is None
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu("a GPU", capability, 1 << 30, (12, 6)))
    rules = target.quantization()
    assert ("fp8" in rules.schemes, "fp8" in rules.lacks) == (has, not has)
    assert {"w8a8", "w4a16_b64", "w16a16"} <= set(rules.schemes)


@rtx_only
def test_the_library_builds_no_8_bit_floats_for_gpus_without_them(tmp_path: Path) -> None:
    """What the rule rests on, of the GPUs that can be built for here."""
    model = Model.load(floats(tmp_path / "m.onnx"))
    for number, has in (("SM80", False), ("SM86", False), ("SM89", True)):
        options = Options(extra={build.CAPABILITY: number})
        if has:
            assert target.compile(model, options).payload
        else:
            with pytest.raises(EdgerunError, match="fp8"):
                target.compile(model, options)
