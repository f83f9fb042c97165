"""What of Keras converts, measured: `python -m bench.keras_coverage [layers] [NAME …]` writes results/keras.json.

Every case of keras_cases.py and keras_ops.py, and every architecture of keras.applications with drawn weights, is
converted and compared with Keras, by the same check as `edgerun convert`. docs/keras.md shows it (docs/make_keras.py).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgerun import files

RESULTS = Path(__file__).with_name("results") / "keras.json"
SECONDS = 1500  # for one architecture
SIZES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71, "NASNetLarge": 64, "NASNetMobile": 64}  # pixels
# A factor on the drawn scales of the deepest: with 1, activations grow until float32 alone is as far off as it can be,
# or until one class has everything, which hides any error.
DAMPED = {"EfficientNetV2L": 0.3, "EfficientNetV2M": 0.3, "EfficientNetV2S": 0.3, "NASNetMobile": 0.5}
BACKENDS = {"NASNetLarge": "tensorflow", "NASNetMobile": "tensorflow"}  # Keras 3.15 cannot build them on torch
NO_TABLE: dict[str, Any] = {"keras": "", "layers": {}, "operations": {}, "applications": {}}


def architectures() -> list[str]:
    """The names of keras.applications that build a model."""
    import keras  # type: ignore[import-untyped]

    return [name for name in dir(keras.applications) if name[0].isupper()]


def application(name: str, **more: Any) -> Any:
    """An architecture at a small size (or as `more` tells), weights as they are initialized; what training moves
    elsewhere is drawn."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(5)
    size = SIZES.get(name, 32)
    told: dict[str, Any] = {"weights": None, "input_shape": (size, size, 3), "classes": 10, **more}
    model = getattr(keras.applications, name)(**told)
    rng, damped = np.random.default_rng(3), DAMPED.get(name, 1.0)
    for variable in model.weights:
        word = variable.path.split("/")[-1]
        if "layer_scale" in variable.path:
            value = rng.uniform(0.05, 0.15, variable.shape)
        elif word in ("gamma", "moving_variance", "variance"):
            value = rng.uniform(0.5, 1.5, variable.shape) * (damped if word == "gamma" else 1)
        elif word in ("beta", "moving_mean", "bias", "mean"):
            value = rng.normal(0, 0.1, variable.shape)
        else:
            continue
        variable.assign(value.astype("float32"))
    return model


def measure(build: Any) -> dict[str, Any]:
    """Convert what `build` gives; the figures of the comparison, or why there are none."""
    from edgerun.errors import EdgerunError
    from edgerun.verbs.convert import Parity, convert

    model = build()
    start = time.perf_counter()
    try:
        made = convert(model)
    except EdgerunError as error:
        return {"refused": str(error)}
    parity = Parity.of(made)
    seconds = time.perf_counter() - start
    worst = max(output.relative_error for output in parity.outputs)
    found = {"error": float(f"{worst:.2g}"), "against": parity.reference, "nodes": len(made.ir.graph)}
    return {**found, "seconds": round(seconds, 1), "parameters": int(model.count_params())}


def layers() -> dict[str, Any]:
    """Every case of a layer, without times."""
    from bench import keras_cases

    return {case: _still(measure(lambda case=case: keras_cases.build(case))) for case in keras_cases.CASES}


def operations() -> dict[str, Any]:
    """Every case of an operation, without times."""
    from bench import keras_cases, keras_ops

    return {case: _still(measure(lambda case=case: keras_cases.build(case))) for case in keras_ops.CASES}


def _still(found: dict[str, Any]) -> dict[str, Any]:
    return {word: item for word, item in found.items() if word not in ("seconds", "parameters")}


def kept() -> dict[str, Any]:
    """What was measured before."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else dict(NO_TABLE)
    return found


def _one(name: str) -> dict[str, Any]:
    """One architecture in a process of its own, whose memory goes with it."""
    command = [sys.executable, "-m", "bench.keras_coverage", "--here", name]
    told = os.environ | {"KERAS_BACKEND": BACKENDS.get(name, os.environ["KERAS_BACKEND"])}
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=SECONDS, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"refused": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "it died"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main(arguments: list[str]) -> None:
    """Measure what is named (all, when nothing is) and keep it."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if arguments[:1] == ["--here"]:
        found = measure(lambda: application(arguments[1]))
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(json.dumps(found))
        return
    import keras

    table: dict[str, Any] = kept() | {"keras": keras.__version__}
    if not arguments or "layers" in arguments:
        table |= {"layers": layers(), "operations": operations()}
    for name in [n for n in architectures() if n in arguments or not arguments]:
        table["applications"][name] = _one(name)
        print(name, table["applications"][name], flush=True)
        files.write_bytes(RESULTS, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())
    files.write_bytes(RESULTS, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
