"""Real `.tflite` files of strangers: INT8, float16, sparse, float, and ones with a state, which are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'edgerun[tflite]'")

import edgerun  # noqa: E402
from bench import tflite, zoo_fetch  # noqa: E402
from edgerun.errors import Unsupported  # noqa: E402
from edgerun.parity import Parity  # noqa: E402

pytestmark = pytest.mark.zoo


def _cached(archive: zoo_fetch.Archive) -> None:
    if not archive.path.exists():
        pytest.skip(f"{archive.file} is not in the cache: python -m bench.zoo")


# Transposes that are in each: the door's, and one for every head that leaves in the source's order.
TRANSPOSES = {
    "efficientnet_lite0": 1, "deeplabv3": 2, "face_detection_back": 5, "face_detection_full_range": 2,
    "face_detection_full_range_sparse": 2, "face_landmark": 1, "iris_landmark": 1, "basic_pitch": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", tflite.FILES)
def test_real_files_compute_the_same(name: str, tmp_path: Path) -> None:
    _cached(tflite.FILES[name][0])
    model = edgerun.convert(tflite.file(name, tmp_path), output=tmp_path / "out.onnx")
    parity = Parity.of(model)
    assert parity.passed and bool(parity.codes) == (name == "efficientnet_lite0")
    assert all(kind.steps <= 1 and kind.differing <= 0.01 * kind.elements for kind in parity.codes)
    assert sum(node.op_type == "Transpose" for node in model.ir.graph) == TRANSPOSES[name]


@pytest.mark.parametrize(
    ("name", "mean", "std", "last"),
    [("efficientnet_lite0", 127 - 131 * 0.012566 * 128, 0.012566 * 128, "toilet tissue"),
     ("deeplabv3", 127.5, 127.5, "tv")],
)  # fmt: skip
def test_metadata_tells_the_contract_and_the_classes(
    name: str, mean: float, std: float, last: str, tmp_path: Path
) -> None:
    """Normalized by 127 and 128, or 127.5; EfficientNet's input is codes of that, 0.012566·(q - 131)."""
    _cached(tflite.FILES[name][0])
    model = edgerun.convert(tflite.file(name, tmp_path), output=tmp_path / "out.onnx")
    told = model.preprocessing
    assert told is not None and told["layout"] == "NHWC" and told["dtype"] == model.inputs[0].dtype
    assert told["mean"] == pytest.approx([mean], rel=1e-4) and told["std"] == pytest.approx([std], rel=1e-4)
    assert json.loads(model.ir.metadata_props["classes"])[-1] == last


def test_wake_words_keep_a_state(tmp_path: Path) -> None:
    _cached(zoo_fetch.WAKE_WORDS)
    path = tmp_path / "alexa.tflite"
    path.write_bytes(zoo_fetch.read(zoo_fetch.WAKE_WORDS, "pymicro_wakeword/models/alexa.tflite"))
    with pytest.raises(Unsupported) as refused:
        edgerun.convert(path, output=tmp_path / "out.onnx")
    for kind in ("VAR_HANDLE (6)", "READ_VARIABLE (6)", "ASSIGN_VARIABLE (6)", "CALL_ONCE (1)"):
        assert f"{kind}: a state that lives from run to run" in str(refused.value)
