"""The PyTorch networks of the bench: they run, some are converted here, and the page is what the results say."""

from __future__ import annotations

import importlib.util
import json

import pytest

pytest.importorskip("torch")
import torch  # noqa: E402

from bench import torch_coverage, torch_families, torch_page  # noqa: E402
from edgerun.converters._torch_call import Call  # noqa: E402
from edgerun.runtime import TensorSpec  # noqa: E402

CASES = torch_coverage.cases()
REFUSED = {"bincount", "eigenvalues", "mamba"}  # two for an operator that ONNX has not, one for a loop over time
PLAIN = [name for name, (kind, _, _) in CASES.items() if kind == "plain"]


def test_every_plain_network_runs_on_its_inputs() -> None:
    assert len(PLAIN) >= 35
    for name in PLAIN:
        _, build, inputs = CASES[name]
        assert Call(build().eval(), [TensorSpec.parse(text) for text in inputs]).example(), name


@pytest.mark.parametrize("name", ["gat", "kv_cache", "scripted_loop", "squeeze_excite"])
def test_converted(name: str) -> None:
    made = torch_coverage.row(name, CASES[name])
    assert "refused" not in made and made["relative_error"] <= 1e-5
    assert made["route"] == ("TorchScript" if name == "scripted_loop" else "torch.export")


@pytest.mark.zoo
@pytest.mark.parametrize("name", CASES)
def test_converted_or_refused_with_a_reason(name: str) -> None:
    made = torch_coverage.row(name, CASES[name])
    assert ("refused" in made) == (name in REFUSED)
    if "refused" in made:
        assert "smallest part that fails alone" in made["got"] and made["do"]
        assert "ONNX has no operator" in made["got"] or "fixed sizes only" in made["refused"]


def test_families_are_counted_or_skipped_with_the_reason() -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed: pip install transformers")
    assert set(torch_families.FAMILIES) <= set(CASES)
    assert isinstance(torch_families.build("bert"), torch.nn.Module)


def test_the_page_is_what_the_results_say() -> None:
    results = json.loads(torch_coverage.RESULTS.read_text())
    assert torch_page.PAGE.read_text() == torch_page.page(results)
    assert {name for name, made in results.items() if "refused" in made} <= REFUSED
