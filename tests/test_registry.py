"""How names are found: edgerun's own first, and other packages' only where they are asked for."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from edgerun import registry
from edgerun.errors import EdgerunError
from edgerun.verbs.load import target_for

OTHERS = [
    EntryPoint("acme", "edgerun.targets.reference", "edgerun.targets"),
    EntryPoint("openvino", "edgerun.targets.reference", "edgerun.targets"),
]


def test_others_are_found_beside_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", lambda kind: OTHERS)
    assert registry.names("target")[:2] == ["acme", "onnxruntime"] and "acme" not in registry.own("target")
    assert registry.target("acme", usable=False).__name__ == "edgerun.targets.reference"  # type: ignore[attr-defined]


def test_another_package_replaces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a target of the same name nor one that reads the same files changes where a model runs."""
    monkeypatch.setattr(registry, "_entries", lambda kind: OTHERS)
    assert registry.target("openvino", usable=False).__name__ == "edgerun.targets.openvino"  # type: ignore[attr-defined]
    assert target_for(".onnx") == "onnxruntime"


def test_our_own_are_found_without_the_metadata_of_all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", lambda kind: pytest.fail("nobody asked for others"))
    assert target_for(".xml") == "openvino" and registry.converter("onnx")


def test_a_kind_of_file_that_nobody_reads() -> None:
    with pytest.raises(EdgerunError, match=r"no target reads.*\n.*\.docx\n.*\.engine, \.onnx, \.ort, \.xml"):
        target_for(".docx")
