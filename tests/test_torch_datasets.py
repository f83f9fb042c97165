"""A torch Dataset, which has a length and items and is no iterable, is calibration data by every door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgerun.compat import nncf
from edgerun.compat.onnxruntime import quantize_static
from edgerun.data import open_data
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.runtime import TensorSpec
from edgerun.verbs.compress import compress
from tests.test_compat import X, network

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")


@pytest.fixture(autouse=True)
def _rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed here."""
    monkeypatch.setenv("EDGERUN_PLACEMENT", "rules")


class Endless:
    """Items by any index, as of pictures that are drawn from a seed: `len` alone says where they end."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.from_numpy(X[index % len(X)]), "label": index}


def pairs() -> Any:
    return torch.utils.data.TensorDataset(torch.from_numpy(X), torch.arange(len(X)) % 5)


def by_verb(path: Path, data: Any) -> Model:
    return compress(path, calibration=data)


def by_onnxruntime(path: Path, data: Any) -> Model:
    return quantize_static(path, path.with_name("q.onnx"), data)


def by_nncf(path: Path, data: Any) -> Model:
    made: Model = nncf.quantize(path, data)
    return made


def by_its_dataset(path: Path, data: Any) -> Model:
    return by_nncf(path, nncf.Dataset(data))


@pytest.mark.parametrize("made", [pairs, Endless])
@pytest.mark.parametrize("door", [by_verb, by_onnxruntime, by_nncf, by_its_dataset])
def test_every_sample_is_read_and_nothing_else(
    tmp_path: Path, made: Callable[[], Any], door: Callable[[Path, Any], Model]
) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    assert (
        door(tmp_path / "m.onnx", made()).history[-1].data
        == compress(tmp_path / "m.onnx", calibration={"x": X}).history[-1].data
    )


def test_the_labels_beside_are_the_labels() -> None:
    data = open_data(pairs(), (TensorSpec("x", "float32", ("n", 6, 8, 8)),))
    assert data.labels is not None and data.labels.tolist() == (np.arange(24) % 5).tolist()


@pytest.mark.parametrize("door", [by_verb, by_nncf, by_its_dataset])
def test_what_ends_after_one_pass_is_refused_before_it(tmp_path: Path, door: Callable[[Path, Any], Model]) -> None:
    """Its first batch was looked at and gone: the other doors went on with the rest."""
    onnx.save(network(), tmp_path / "m.onnx")
    with pytest.raises(EdgerunError, match="cannot be read more than once"):
        door(tmp_path / "m.onnx", iter(torch.utils.data.DataLoader(pairs(), batch_size=4)))


def test_what_a_dataset_raises_is_told(tmp_path: Path) -> None:
    class Broken(Endless):
        def __getitem__(self, index: int) -> dict[str, Any]:
            raise OSError("no disk")

    onnx.save(network(), tmp_path / "m.onnx")
    with pytest.raises(EdgerunError, match=r"the data failed[\s\S]*OSError: no disk, at .*test_torch_datasets.py:\d+"):
        compress(tmp_path / "m.onnx", calibration=Broken())
