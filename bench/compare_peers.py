"""edgerun beside its peers on the zoo, in one run: `python -m bench.compare_peers`.

Every cell (a quantization, an evaluation, a latency run) is a process of its own and is kept under the hash of what it
depends on, so that a later run redoes only what changed. Writes bench/results/NAME.json, bench/results/README.md, and
the summary into README.md.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from bench import chart, scores, tables, zoo, zoo_fetch
from bench.cells import Cells, digest, sources
from bench.environments import ENVIRONMENTS, made
from bench.processes import Measured, measured
from edgerun import files
from edgerun.errors import EdgerunError

HERE = Path(__file__).resolve().parent
ROOT, RESULTS = HERE.parent, HERE / "results"
TARGETS = {"onnxruntime": "onnxruntime", "openvino": "openvino"}  # target name to the package whose version counts
BASELINE = "fp32"
ENOUGH = 60.0  # seconds: a quantization that took so long, repeats included, is not repeated again
PARTIAL = "Quantize and evaluate only these and print what came out; all are timed and written together."
DATA_CODE = ("zoo", "zoo_audio", "zoo_data", "zoo_images", "zoo_text", "evaluate")


@dataclass(frozen=True)
class Variant:
    """One way to make the model small: a peer, or `edgerun compress` for one target; and where the result runs."""

    name: str
    suffix: str
    targets: tuple[str, ...]
    ours: str = ""
    only: tuple[str, ...] = ()  # the zoo's models it is meant for; empty: all
    environment: str = "peers"  # where a peer is installed


VARIANTS = (
    Variant("ort_minmax", ".onnx", ("onnxruntime", "openvino")),
    Variant("ort_minmax_s8s8", ".onnx", ("onnxruntime", "openvino")),
    Variant("ort_percentile", ".onnx", ("onnxruntime", "openvino")),
    Variant("ort_layers", ".onnx", ("onnxruntime", "openvino")),
    Variant(
        "ort_dynamic",
        ".onnx",
        ("onnxruntime", "openvino"),
        only=("minilm", "silero", "silero_meetings", "magika", "speaker"),
    ),
    Variant("onnxsim_minmax", ".onnx", ("onnxruntime", "openvino")),
    Variant("onnxsim_auto", ".onnx", ("onnxruntime", "openvino")),
    Variant("nncf_onnx", ".onnx", ("onnxruntime", "openvino")),
    Variant("nncf_ir", ".xml", ("openvino",)),
    Variant("quark", ".onnx", ("onnxruntime", "openvino"), environment="vendors"),
    Variant("modelopt", ".onnx", ("onnxruntime", "openvino"), environment="vendors"),
    Variant("edgerun_onnxruntime", ".onnx", ("onnxruntime",), ours="onnxruntime"),
    Variant("edgerun_openvino", ".xml", ("openvino",), ours="openvino"),
)


class Comparison:
    """The cells of one run: where they are kept and how each is made; `pythons` by the name of their environment."""

    def __init__(self, pythons: Mapping[str, Path], fresh: bool, repeat: int, seconds: float) -> None:
        self._pythons, self._repeat, self._seconds = pythons, repeat, seconds
        self._folder = Path(os.environ.get("EDGERUN_BENCH") or ROOT / ".cache" / "bench")
        self._cells = Cells(self._folder / "cells", fresh)
        self._own_code = sources(ROOT, ("edgerun", "quantize", "targets"))
        self._versions = {target: version(package) for target, package in TARGETS.items()}

    def artefact(self, model: zoo.ZooModel, variant: Variant | None) -> Path:
        """The model file of a variant; None is fp32."""
        return self._folder / model.name / f"{variant.name}{variant.suffix}" if variant else model.onnx

    def quantized(self, model: zoo.ZooModel, variant: Variant) -> dict[str, Any]:
        """Wall seconds (median), peak MB (largest) over the repeats, size in bytes, and the settings."""
        installed = ENVIRONMENTS[variant.environment].requirements
        code = self._own_code if variant.ours else digest(HERE / "peers.py", installed)
        key = digest(model.onnx, model.calibration, variant.name, code, self._repeat)
        return self._cells.get(f"{model.name}.{variant.name}.quantize", key, lambda: self._quantize(model, variant))

    def _quantize(self, model: zoo.ZooModel, variant: Variant) -> dict[str, Any]:
        output = self.artefact(model, variant)
        output.parent.mkdir(parents=True, exist_ok=True)
        if variant.ours:
            options = ["--scheme", "w8a8", "--target", variant.ours, "--calibration", str(model.calibration)]
            command = [sys.executable, "-m", "edgerun", "compress", str(model.onnx), "-o", str(output), *options]
            command += ["--force", "--json"]
            if model.state:  # a feed is one sample; calibration runs blocks of frames, the device one at a time
                sizes = (f"{name}:[{','.join(map(str, shape[1:]))}]" for name, shape in model.latency.items())
                command += [word for size in sizes for word in ("--input-shape", size)]
        else:
            paths = [str(model.onnx), str(model.calibration), str(output)]
            command = [str(self._pythons[variant.environment]), str(HERE / "peers.py"), variant.name, *paths]
            command += ["--transformer"] if model.transformer else []
            command += ["--whole-feeds"] if model.state else []
        try:
            with tempfile.TemporaryDirectory() as folder:  # some peers leave files where they run
                runs: list[Measured] = []
                while not runs or (len(runs) < self._repeat and sum(run.seconds for run in runs) < ENOUGH):
                    # A cache of its own: no run profits from what another one timed.
                    own = {"EDGERUN_CACHE": f"{folder}/{len(runs)}"} if variant.ours else {"TMPDIR": folder}
                    runs.append(measured(command, ROOT if variant.ours else Path(folder), own))
        except EdgerunError as error:
            if variant.ours:
                raise
            return {"failed": last_line(error)}
        told = json.loads(runs[-1].stdout.strip().splitlines()[-1])
        return {
            "runs": len(runs),
            "wall_s": statistics.median(run.seconds for run in runs),
            "peak_mb": max(run.peak_mb for run in runs),
            "size": size(output),
            "told": told,
            "files": [str(output)],
        }

    def evaluated(self, model: zoo.ZooModel, variant: Variant | None, target: str) -> dict[str, Any]:
        """`files`: outputs and labels of the whole test set, in one; or `failed`: why a peer's model did not run."""
        artefact, name = self.artefact(model, variant), variant.name if variant else BASELINE
        output = self._folder / model.name / f"{name}.{target}.npz"
        data = digest(model.metric, *(HERE / f"{file}.py" for file in DATA_CODE))
        code = digest(*sorted((ROOT / "targets").glob(f"*{target}*.py")))
        key = digest(artefact, *weights(artefact), data, code, target, self._versions[target])

        def make() -> dict[str, Any]:
            output.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "bench.evaluate", model.name, str(artefact), target, str(output)]
            try:
                measured(command, ROOT)
            except EdgerunError as error:
                if variant is None or variant.ours:
                    raise
                return {"failed": last_line(error)}
            return {"files": [str(output)]}

        return self._cells.get(f"{model.name}.{name}.{target}.evaluate", key, make)

    def timed(self, model: zoo.ZooModel, variants: list[Variant], target: str) -> dict[str, Any]:
        """Latency of fp32 and the variants on one target, by name."""
        artefacts = [model.onnx, *(self.artefact(model, v) for v in variants)]
        contents = [part for path in artefacts for part in (path, *weights(path))]
        code = sources(ROOT, ("edgerun/measure", "edgerun/runtime", "targets"))
        key = digest(*contents, target, self._versions[target], self._seconds, code, HERE / "latency.py")

        def make() -> dict[str, Any]:
            command = [sys.executable, "-m", "bench.latency", model.name, target, str(self._seconds)]
            told: dict[str, Any] = json.loads(measured([*command, *map(str, artefacts)], ROOT).stdout)
            return told

        told = self._cells.get(f"{model.name}.{target}.latency", key, make)
        names = [BASELINE, *(v.name for v in variants)]
        return {"device": told["device"], "rounds": told["rounds"], "rows": dict(zip(names, told["rows"], strict=True))}


def last_line(error: EdgerunError) -> str:
    """What a failed process said last that says something."""
    lines = [
        line.strip() for line in str(error.got).splitlines() if line.strip() and not line.strip().startswith("do:")
    ]
    return lines[-1] if lines else error.what


def weights(artefact: Path) -> list[Path]:
    """The files beside a model that belong to it."""
    return [artefact.with_suffix(".bin")] if artefact.suffix == ".xml" else []


def size(artefact: Path) -> int:
    """Bytes on disk, weights included."""
    return sum(path.stat().st_size for path in (artefact, *weights(artefact)))


def compare(run: Comparison, model: zoo.ZooModel, chosen: list[Variant], latency: bool) -> dict[str, Any]:
    """Everything about one model as JSON values."""
    result: dict[str, Any] = {"model": model.name, "metric": model.metric, "size": size(model.onnx)}
    result["quantize"] = {
        # Where files lie is for this machine alone to know.
        v.name: {key: value for key, value in run.quantized(model, v).items() if key not in ("files", "told")}
        for v in chosen
        if _said(f"{model.name}: {v.name}")
    }
    result["targets"] = {}
    chosen = [v for v in chosen if "failed" not in result["quantize"][v.name]]
    for target in TARGETS:
        _said(f"{model.name}: accuracy on {target}")
        told = {v: run.evaluated(model, v, target) for v in chosen if target in v.targets}
        here = [v for v in told if "failed" not in told[v]]
        baseline = Path(run.evaluated(model, None, target)["files"][0])
        rows = {BASELINE: scores.scored(model, baseline, baseline)}
        rows |= {v.name: scores.scored(model, baseline, Path(told[v]["files"][0])) for v in here}
        failed = {v.name: told[v]["failed"] for v in told if v not in here}
        result["targets"][target] = {"accuracy": rows, "failed": failed}
        if latency and model.timed:
            _said(f"{model.name}: latency on {target}")
            result["targets"][target]["latency"] = run.timed(model, here, target)
    return result


def _said(what: str) -> bool:
    click.echo(what, err=True)
    return True


def environments(chosen: list[Variant], cache: Path, given: Mapping[str, Path | None]) -> dict[str, Path]:
    """The Python of every environment that a chosen peer needs: the given one, or that of the one made in `cache`."""
    needed = [name for name in ENVIRONMENTS if any(v.environment == name for v in chosen if not v.ours)]
    return {name: (given.get(name) or made(ENVIRONMENTS[name], cache / name)).absolute() for name in needed}


def write_pages() -> None:
    """results/README.md, its picture and the README's summary, from the results of all models that were kept."""
    kept = [
        json.loads((RESULTS / f"{name}.json").read_text()) for name in zoo.MODELS if (RESULTS / f"{name}.json").exists()
    ]
    files.write_bytes(RESULTS / "README.md", tables.page(kept).encode())
    if picture := chart.svg(kept):
        files.write_bytes(RESULTS / tables.CHART, picture.encode())
    readme = ROOT / "README.md"
    files.write_bytes(readme, tables.in_readme(readme.read_text(encoding="utf-8"), kept).encode())


@click.command()
@click.argument("names", nargs=-1, metavar="[MODEL]…")
@click.option("--variant", "wanted", multiple=True, type=click.Choice([v.name for v in VARIANTS]), help=PARTIAL)
@click.option("--without", multiple=True, type=click.Choice([v.name for v in VARIANTS]), help="Leave these peers out.")
@click.option("--peers-python", type=click.Path(path_type=Path), help="A Python with the peers; default: make one.")
@click.option("--vendors-python", type=click.Path(path_type=Path), help="One with Quark and Model Optimizer.")
@click.option("--repeat", default=3, show_default=True, help="Quantize so often, or for a minute; the median counts.")
@click.option("--seconds", default=60.0, show_default=True, help="Time for one model's latency on one target.")
@click.option("--no-latency", is_flag=True, help="Quantize and evaluate only.")
@click.option("--fresh", is_flag=True, help="Redo all that is named.")
def main(
    names: tuple[str, ...],
    wanted: tuple[str, ...],
    without: tuple[str, ...],
    peers_python: Path | None,
    vendors_python: Path | None,
    repeat: int,
    seconds: float,
    no_latency: bool,
    fresh: bool,
) -> None:
    """Compare edgerun with its peers on the named zoo models, or on all."""
    chosen = [v for v in VARIANTS if (not wanted or v.name in wanted) and v.name not in without]
    given = {"peers": peers_python, "vendors": vendors_python}
    run = Comparison(environments(chosen, zoo_fetch.cache().parent, given), fresh, repeat, seconds)
    RESULTS.mkdir(exist_ok=True)
    for name in names or list(zoo.MODELS):
        model = zoo.model(name)
        zoo.build(model)
        result = compare(run, model, [v for v in chosen if not v.only or name in v.only], not (wanted or no_latency))
        if not wanted:
            files.write_bytes(RESULTS / f"{name}.json", (json.dumps(result, indent=1, default=str) + "\n").encode())
        click.echo(tables.details(result))
    if not wanted:
        write_pages()


if __name__ == "__main__":
    main()
