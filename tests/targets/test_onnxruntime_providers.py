"""Execution providers where none but the CPU's can run: what is refused, with which reason, and what is asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _onnxruntime_graph as graph
from edgerun.targets import _onnxruntime_providers as providers
from edgerun.targets import onnxruntime as target

WHY = providers.missing(target._runtime(), providers.PROVIDERS["CUDA"])
no_gpu = pytest.mark.skipif(WHY is None, reason="the CUDA provider runs here")


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"PROVIDER": "CUDAA"}, EdgerunError, "did you mean 'CUDA'"),
        ({"PROVIDER": "CUDA", "TF32": "yes"}, EdgerunError, "TF32 is a switch"),
        ({"TF32": "1"}, EdgerunError, "PROVIDER=CPU has no TF32"),
        ({"PROVIDER": "XNNPACK", "CUDA_GRAPH": "1"}, EdgerunError, "wanted: PROVIDER=CUDA"),
        ({"PROVIDER": "TENSORRT", "TF32": "1", "CUDA_GRAPH": "1"}, EdgerunError, "PROVIDER=TENSORRT has no CUDA_GRAPH"),
    ],
)
def test_misuse(dense: Model, extra: dict[str, str], error: type[EdgerunError], message: str) -> None:
    with pytest.raises(error, match=message):
        target.load(target.compile(dense, Options()), Options(extra=extra))
    with pytest.raises(error, match=message):
        target.compile(dense, Options(extra=extra))


@no_gpu
@pytest.mark.parametrize("extra", [{"PROVIDER": "CUDA"}, {"PROVIDER": "CUDA", "CUDA_GRAPH": "1"}])
def test_what_cannot_run_is_refused_with_the_reason(dense: Model, extra: dict[str, str]) -> None:
    """The runtime itself would take the CPU, with a line on stderr."""
    for refused in (
        lambda: target.load(target.compile(dense, Options()), Options(extra=extra)),
        lambda: edgerun.compile(dense, "onnxruntime", Options(extra=extra)),
    ):
        with pytest.raises(Unsupported, match="cannot run on CUDA here") as error:
            refused()
        assert error.value.got == WHY and error.value.do


@pytest.mark.parametrize("extra", [{}, {"TF32": "0"}, {"TF32": "1"}])
def test_a_provider_that_is_missing_asks_for_nothing_else(
    dense: Model, monkeypatch: pytest.MonkeyPatch, extra: dict[str, str]
) -> None:
    """TENSORRT needs TF32=1, which is of no use where TENSORRT is not: that comes first."""
    options = Options(extra={"PROVIDER": "TENSORRT", **extra})
    reason = providers.missing(target._runtime(), providers.PROVIDERS["TENSORRT"])
    if reason is not None:
        with pytest.raises(Unsupported, match="cannot run on TENSORRT here") as error:
            edgerun.compile(dense, "onnxruntime", options)
        assert error.value.got == reason and "TF32" not in str(error.value)
    monkeypatch.setattr(providers, "missing", lambda *_: None)  # as where it is
    if extra.get("TF32") != "1":
        with pytest.raises(Unsupported, match=r"no way to turn TF32 off[\s\S]*do: say TF32=1 as well"):
            edgerun.compile(dense, "onnxruntime", options)


@pytest.mark.parametrize("provider", ["XNNPACK", "ACL", "QNN"])
def test_a_provider_that_is_not_built_in_is_named(dense: Model, provider: str) -> None:
    runtime, name = target._runtime(), providers.PROVIDERS[provider].name
    assert name in runtime.get_all_providers()
    if name in runtime.get_available_providers():
        pytest.skip(f"this build of ONNX Runtime has {provider}")
    with pytest.raises(Unsupported, match=f"this build of ONNX Runtime has no {name}"):
        target.load(target.compile(dense, Options()), Options(extra={"PROVIDER": provider}))


def test_what_a_missing_library_is_called(tmp_path: Path) -> None:
    """The loader's own words, for a build whose provider cannot be loaded."""
    folder = tmp_path / "capi"
    folder.mkdir()
    (tmp_path / "__init__.py").touch()
    (folder / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")

    class Runtime:
        __file__ = str(tmp_path / "__init__.py")

        @staticmethod
        def preload_dlls() -> None:
            print("Failed to load libcublas.so: a line that nobody asked for")

    assert "libonnxruntime_providers_cuda.so" in str(providers._unloadable(Runtime, "cuda"))
    (folder / "libonnxruntime_providers_cuda.so").unlink()
    assert providers._unloadable(Runtime, "other") is None


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({}, [("CPUExecutionProvider", {})]),
        (
            {"PROVIDER": "CUDA"},
            [("CUDAExecutionProvider",
              {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": "0"})],
        ),
        (
            {"PROVIDER": "CUDA", "TF32": "1", "CUDA_GRAPH": "1"},
            [("CUDAExecutionProvider",
              {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": "1"})],
        ),
        (
            {"PROVIDER": "TENSORRT", "TF32": "1"},
            [("TensorrtExecutionProvider", {}),
             ("CUDAExecutionProvider",
              {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": "0"})],
        ),
        ({"PROVIDER": "XNNPACK"}, [("XnnpackExecutionProvider", {"intra_op_num_threads": "3"})]),
    ],
)  # fmt: skip
def test_nothing_is_left_to_the_provider(extra: dict[str, str], wanted: list[tuple[str, dict[str, str]]]) -> None:
    assert providers.choice(Options(extra=extra)).listed(3) == wanted


def test_nodes_that_run_elsewhere_are_counted_and_told_once(rounded: Model, caplog: pytest.LogCaptureFixture) -> None:
    """A session on the CPU, looked at as if CUDA had been asked for: all of its nodes are elsewhere."""
    runtime = target._runtime()
    settings = target._settings(Options(1))
    settings.add_session_config_entry(providers.RECORD, "1")
    session: Any = runtime.InferenceSession(rounded.to_bytes(), settings, providers=["CPUExecutionProvider"])
    asked = providers.choice(Options(extra={"PROVIDER": "CUDA"}))
    providers._tell.cache_clear()
    with caplog.at_level(logging.WARNING, "edgerun"):
        found = providers.left(session, asked)
        assert providers.left(session, asked) == found
    assert found is not None
    assert {issue.reason for issue in found} == {"runs on CPU"} and "MatMul" in str([issue.op for issue in found])
    told = [record.message for record in caplog.records]
    assert len(told) == 1 and told[0].startswith(f"{len(found)} of {len(found)} nodes do not run on CUDA but on CPU: ")
    assert providers.left(session, providers.choice(Options())) == ()
    assert providers.left(object(), asked) is None  # an older runtime's session tells nothing: that is not "no node"


def test_the_cpu_stays_the_default(dense: Model) -> None:
    """Its fingerprint says nothing of providers, and naming it changes nothing."""
    plain, named = (target.compile(dense, Options(1, extra)) for extra in ({}, {"PROVIDER": "CPU", "TF32": "0"}))
    assert plain.device == named.device == target.device() and "provider" not in plain.device
    x = np.ones((2, 6), np.float32)
    with target.load(named, Options(1, {"PROVIDER": "CPU"})) as session:
        assert session.run({"x": x})["y"].shape == (2, 4)


def test_feeds_go_into_the_buffers_of_their_shapes(rounded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session with CUDA graphs does, on buffers of the CPU: the second shape has its own, the third has none."""
    monkeypatch.setattr(graph, "DEVICE", "cpu")
    monkeypatch.setattr(graph, "MOST", 2)
    runtime, rng = target._runtime(), np.random.default_rng(0)
    session: Any = runtime.InferenceSession(rounded.to_bytes(), providers=["CPUExecutionProvider"])
    graphs = graph.Graphs(runtime, session, ["y"])
    for batch in (1, 1, 2, 3, 1, 2, 3, 2):
        feeds = {"x": rng.standard_normal((6, batch)).astype(np.float32).T}  # not contiguous
        (found,) = graphs.run(feeds)
        np.testing.assert_array_equal(found, session.run(["y"], feeds)[0])
    assert [key for key in graphs._graphs] == [(("x", (1, 6)),), (("x", (2, 6)),)]
    graphs.close()
    assert not graphs._graphs
