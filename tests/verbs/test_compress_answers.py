"""What `compress` says: every scheme on every target, refusals as JSON, and options that would do nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgerun import registry
from edgerun.errors import GateFailed
from edgerun.measure.stats import Estimate
from edgerun.metrics import Interval
from edgerun.verbs import placements
from edgerun.verbs.clock import Speed

NET = """<ir_version: 9, opset_import: ["": 19]> net (float[n,8,6,6] x) => (float[n,40] y) {
    c = Conv<pads = [1,1,1,1]>(x, w, b) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g) y = Gemm(f, v, u) }"""
OPEN = (
    """<ir_version: 8, opset_import: ["": 17]> net (float[n,rows,32] x) => (float[n,rows,40] y) { y = MatMul(x, v) }"""
)
X = np.random.default_rng(0).standard_normal((40, 8, 6, 6)).astype(np.float32)
PAIRS = [(target, scheme) for target, schemes in {
    "onnxruntime": ("w8a8", "w8a8_dynamic", "w8a16", "w4a16_b32", "w4a8", "fp16"),
    "openvino": ("w8a8", "w8a8_dynamic", "w8a16", "w4a16_b32", "w4a8", "fp16"),
    "reference": ("w8a8", "w8a16"),
    "tensorrt": ("w8a8", "fp8", "w4a16_b64", "w16a16"),
}.items() for scheme in schemes]  # fmt: skip


def save(path: Path, text: str = NET) -> Path:
    generator = np.random.default_rng(1)
    shapes = {"w": (32, 8, 3, 3), "b": (32,), "v": (32, 40), "u": (40,)}
    proto = onnx.parser.parse_model(text)
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items() if name in read)
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    onnx.save(proto, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    np.savez(tmp_path / "c.npz", x=X)
    return save(tmp_path / "m.onnx")


def test_the_pairs_are_all_that_is_offered() -> None:
    """Here; w16a16 on OpenVINO takes a CPU with AMX (tests/verbs/test_bfloat16.py)."""
    offered = [(name, scheme) for name in registry.names("target")
               for scheme in registry.target(name, usable=False).quantization().schemes]  # fmt: skip
    assert sorted(pair for pair in offered if pair != ("openvino", "w16a16")) == sorted(PAIRS)


@pytest.mark.parametrize(("target", "scheme"), PAIRS)
def test_every_scheme_on_every_target(tmp_path: Path, model: Path, cli: Any, target: str, scheme: str) -> None:
    """Written, printed as lines and as JSON, exit 0."""
    if reason := registry.target(target, usable=False).available():
        pytest.skip(reason)
    words = ("compress", model, "--scheme", scheme, "--target", target, "--calibration", tmp_path / "c.npz", "-o")
    ran = cli(*words, tmp_path / "o.onnx")
    assert ran.code == 0 and f"{scheme} for {target}" in ran.out, ran.err
    assert ("8-bit floats" in ran.out) == (scheme == "fp8")
    assert ("nodes on integers" in ran.out) == (scheme == "w8a8")
    graph = "the graph itself was run on ONNX Runtime"
    assert (graph in ran.out) == (registry.target(target).runnable() is not None)
    if (target, scheme) in (("onnxruntime", "w8a8"), ("tensorrt", "fp8")):
        told = json.loads(cli(*words, tmp_path / "j.onnx", "--json").out)
        assert told["calibration SQNR (dB)"] > 20
        assert (tmp_path / "j.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()


def test_a_refusal_is_json_too(tmp_path: Path, model: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio with its interval and the slowest layers, beside the message; stdout is one JSON value, exit 1."""
    slower = Speed("slower", Estimate(0.5, Interval(0.4, 0.6)), 5, 30)

    def refused(made: Any, clock: Any, search: Any, **_: Any) -> Any:
        raise placements._refusal(clock, made, search, slower, 2)

    monkeypatch.setattr(placements, "held", refused)
    words = ("compress", model, "--calibration", tmp_path / "c.npz", "--placement", "clock", "-o", tmp_path / "o.onnx")
    ran = cli(*words, "--json")
    told = json.loads(ran.out)
    assert ran.code == 1 and "does not pay" in ran.err and not (tmp_path / "o.onnx").exists()
    assert told["output"] is None and told["error"]["what"].startswith("w8a8 does not pay on onnxruntime")
    assert (told["speed"]["speed-up"], told["speed"]["interval (95 %)"]) == (0.5, [0.4, 0.6])
    assert told["speed"]["answer"] == "slower" and told["speed"]["placements tried"] == 2
    assert len(told["slowest layers"]) <= 3 and all(x["loses (s)"] > 0 for x in told["slowest layers"])
    assert len(ran.out) < 3000 and cli(*words).out == ""
    assert GateFailed("no").measured == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calibration", "c.npz", "--logits", "nope"), "--logits"),
        (("--scheme", "fp16", "--preset", "best"), "--preset does nothing for fp16"),
        (("--scheme", "w4a16_b32", "--preset", "default"), "--preset does nothing for w4a16_b32"),
        (("--scheme", "w8a16", "--memory-cap", "64"), "--memory-cap does nothing for w8a16"),
        (("--scheme", "w8a8_dynamic", "--limit", "3"), "--limit does nothing for w8a8_dynamic"),
        (("--scheme", "fp16", "--allow-slower"), "--allow-slower does nothing"),
        (
            ("--scheme", "w8a16", "--placement", "rules"),
            "--placement does nothing here\n  got: w8a16 promises no speed",
        ),
        (("--scheme", "fp16", "--placement", "clock"), "--placement does nothing here\n  got: fp16 promises no speed"),
        (("--calibration", "c.npz", "--placement", "rules", "--allow-slower"), "nothing is timed"),
    ],
)
def test_options_that_would_do_nothing(
    model: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(model.parent)
    ran = cli("compress", "m.onnx", "-o", "o.onnx", *options)
    assert ran.code == 2 and message in ran.err and not Path("o.onnx").exists()


def test_options_that_do_something_are_taken(model: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    for options in (
        ("--scheme", "fp16", "--calibration", "c.npz", "--preset", "fast", "--memory-cap", "64", "--limit", "8"),
        ("--scheme", "w8a8_dynamic", "--preset", "best", "--allow-slower"),
    ):
        assert cli("compress", "m.onnx", "-o", "o.onnx", "--force", *options).code == 0


@pytest.mark.parametrize(
    "verb", ["compress", "convert", "compile", "check --fix", "check --subgraph", "why-wrong --fix"]
)
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_model_is_not_replaced_by_what_is_made_of_it(model: Path, cli: Any, verb: str, link: Any) -> None:
    """Nor through a link of either kind, whatever --force says."""
    before, output = model.read_bytes(), model
    if link is not None:
        link(model, output := model.with_name("other.onnx"))
    verb, _, option = verb.partition(" ")
    options = {"compress": ("--calibration", model.with_name("c.npz")),
               "why-wrong": (model, "--data", model.with_name("c.npz"))}.get(verb, ())  # fmt: skip
    ran = cli(verb, model, *options, option or "-o", output, "--force")
    assert ran.code == 2 and "would replace what it is made from" in ran.err and model.read_bytes() == before


def test_open_sizes_name_the_option(tmp_path: Path, cli: Any) -> None:
    """Written untimed with the option's name; with the option it is timed, and `why-slow` says the same."""
    model, output = save(tmp_path / "open.onnx", OPEN), tmp_path / "o.onnx"
    words = ("compress", model, "--scheme", "w8a8_dynamic", "-o", output, "--force", "--placement", "clock")
    ran = cli(*words)
    assert ran.code == 0 and "not timed" in ran.err and "--input-shape x:[1,rows,32]" in ran.err
    assert "--input-shape x:[1,rows,32], with numbers for rows" in cli("why-slow", model, output).err
    ran = cli(*words, "--input-shape", "x:[1,4,32]", "--allow-slower", "--json")
    assert ran.code == 0 and json.loads(ran.out)["speed"]["answer"] != "not timed"
