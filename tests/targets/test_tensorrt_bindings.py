"""Every name that the target uses exists in every version of TensorRT that it is for."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import tensorrt as target

ROOT = Path(__file__).parents[2]
VERSIONS = ("10.3.0", "10.13.3.9", "10.16.0.72", "11.4.0.106")
# What our code calls the library's objects, and their classes there.
OBJECTS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "cache": "ITimingCache", "tensor": "ITensor", "layer": "ILayer",
    "error": "ParserError", "inspector": "EngineInspector", "_engine": "ICudaEngine", "engine": "ICudaEngine",
    "_context": "IExecutionContext", "_runtime": "Runtime", "refitter": "Refitter",
    "onnx_refitter": "OnnxParserRefitter", "runtime_config": "IRuntimeConfig", "_jit": "IRuntimeCache",
}  # fmt: skip
FILES = {  # and in which files
    "_tensorrt_build.py": ("builder", "network", "parser", "config", "profile", "tensor", "layer"),
    "_tensorrt_timings.py": ("config", "cache"),
    "_tensorrt_session.py": ("_engine", "_context", "_runtime", "inspector"),
    "_tensorrt_refit.py": ("refitter", "onnx_refitter"),
    "_tensorrt_jit.py": ("engine", "runtime_config", "_jit"),
    "tensorrt.py": ("parser", "error"),
}
RTX_ALONE = {
    "ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability",
    "ICudaEngine.create_runtime_config", "IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache",
    "IRuntimeCache.deserialize", "IRuntimeCache.serialize",
}  # fmt: skip
# All that the bindings want of the libraries which they are linked to.
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
ASK = """
import json, sys
import tensorrt as trt
from edgerun.errors import Unsupported
from edgerun.targets import _tensorrt_library as library, tensorrt as target
def has(name):
    found = trt
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None
try:
    library.builder(trt, library.Log(trt))
    refusal = ""
except Unsupported as error:
    refusal = error.what
print(json.dumps({
    "absent": [name for name in json.loads(sys.argv[1]) if not has(name)], "version": trt.__version__,
    "bit": library.bit(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), "refusal": refusal,
    "limits": [target.limits().ir_version, target.limits().opset], "available": target.available(),
}))
"""


def _chain(node: ast.Attribute) -> list[str]:
    """`self._engine.x` as ["self", "_engine", "x"]; nothing for what does not begin with a name."""
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return [inner.id, *reversed(parts)] if isinstance(inner, ast.Name) else []


def used() -> set[str]:
    """Names as `BuilderFlag.TF32` and `IBuilderConfig.set_flag`, read from the target's source."""
    found = set()
    for path in sorted((ROOT / "targets").glob("*tensorrt*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            chain = _chain(node) if isinstance(node, ast.Attribute) else []
            if chain[:1] == ["trt"] and not chain[1].startswith("__"):
                found.add(".".join(chain[1:]))
            for name in FILES.get(path.name, ()):
                if name in chain[:-1]:
                    found.add(f"{OBJECTS[name]}.{chain[chain.index(name) + 1]}")
    return found


def test_the_names_are_read() -> None:
    assert {
        "Builder", "OnnxParser", "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "OnnxParser.supports_model_v2",
        "IExecutionContext.execute_async_v3", "ICudaEngine.get_tensor_profile_shape", "IBuilderConfig.set_flag",
        "ICudaEngine.num_optimization_profiles", "IExecutionContext.set_optimization_profile_async",
        "Runtime.deserialize_cuda_engine", "IOptimizationProfile.set_shape", "ITensor.get_dimension_name",
        "IProgressMonitor", "IBuilderConfig.progress_monitor", "ITimingCache.serialize", "IBuilderConfig.DLA_core",
        "BuilderFlag.STRIP_PLAN", "BuilderFlag.REFIT_IDENTICAL", "BuilderFlag.REFIT",
        "OnnxParserRefitter.refit_from_bytes", "Refitter.get_missing_weights", "Refitter.refit_cuda_engine",
        "DeviceType.DLA", "BuilderFlag.GPU_FALLBACK", "Builder.num_DLA_cores", "ILayer.name", "Runtime.DLA_core",
    } <= used()  # fmt: skip
    assert RTX_ALONE - {"ComputeCapability"} <= used() and "ComputeCapability" in {n.split(".")[0] for n in used()}


@pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
def test_the_installed_library_has_them() -> None:
    found: Any = tensorrt.library()
    for name in sorted(used()):
        inner = found
        for part in name.split("."):
            inner = getattr(inner, part)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shared libraries that have the symbols and do nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is on this machine")
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "stub.c").write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for major in (10, 11):
        for name in LIBRARIES:
            file = f"lib{name}.so.{major}"
            named = [f"-Wl,-soname,{file}", "-o", str(folder / file), str(folder / "stub.c")]
            subprocess.run([compiler, "-shared", "-fPIC", *named], check=True)
    return folder


@pytest.mark.install
@pytest.mark.parametrize("version", VERSIONS)
def test_the_bindings_of_every_version_have_them(version: str, libraries: Path, tmp_path: Path) -> None:
    """The real bindings, over libraries that do nothing: names exist, flags are bits, and no GPU is a clear refusal."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    done = subprocess.run([*command, f"tensorrt_cu12_bindings=={version}"], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"the bindings of {version} cannot be fetched here: {done.stderr[-300:]}")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "site/tensorrt").mkdir()
    (tmp_path / "site/tensorrt/__init__.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "LD_LIBRARY_PATH": str(libraries)}
    # As where nothing else is installed, and with the driver that is here, or not.
    hide = "import sys; sys.modules['tensorrt_rtx'] = None\nimport importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'tensorrt_rtx' else f(name, *a)\n"
    names = json.dumps(sorted(name for name in used() - RTX_ALONE if not name.startswith("ComputeCapability")))
    done = subprocess.run([sys.executable, "-c", hide + ASK, names], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["absent"] == [] and told["version"].startswith(version)
    assert told["bit"] == (2 if version.startswith("10") else 1)
    assert told["refusal"] == "tensorrt cannot build here"
    assert told["limits"] == {"10.3.0": [9, 20], "10.13.3.9": [9, 20], "10.16.0.72": [12, 24]}.get(version, [13, 25])
    if reason := cuda.missing():
        assert told["available"] == f"tensorrt builds engines only where a GPU is: {reason}"
