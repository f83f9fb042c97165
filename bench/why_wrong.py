"""Does `edgerun why-wrong` find what was planted? `python -m bench.why_wrong [--held-out] [NAME…]`.

Plants are defined in bench/plants.py. A plant counts when it costs at least 1 dB of SQNR on samples that the diagnosis
never sees; it is found when the worst row names its layer and its cause; it is recovered by the share of the noise
that it added which that row's fix takes away again, on those same other samples.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import onnx

from bench import plant_nets, plants, zoo
from edgerun import files, quantize, registry
from edgerun.data import open_data
from edgerun.metrics import wilson
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.quantize import diagnosis
from edgerun.quantize.diagnosis import fixes, trials
from edgerun.quantize.numerics import causes
from edgerun.verbs.compress import _open, compress
from edgerun.verbs.why_wrong import opened_here

RANGES = "minmax"  # of the good models: the search for better ones looks at few samples, and that is not the question
RESULTS = Path(__file__).resolve().parent / "results" / "why_wrong.json"
LEAST_DB = 1.0
SEEDS = {False: (0, 1), True: (400,)}
Feeds = dict[str, np.ndarray]
Build = Callable[[int], "Planted"]


@dataclass(frozen=True)
class Planted:
    """A float model, its good and its damaged quantization, data to diagnose on and others, and the truth."""

    float: Model
    good: Model
    bad: Model
    data: Feeds
    fresh: Feeds
    layer: str
    cause: str
    saturating: bool = False


@dataclass(frozen=True)
class Result:
    """What came out for one plant; noises are relative to the signal, on the fresh samples."""

    plant: str
    net: str
    seed: int
    planted_layer: str
    planted_cause: str
    found_layer: str
    found_cause: str
    evidence: str
    fix: str
    good_db: float
    bad_db: float
    fixed_db: float
    recovered: float
    seconds: float

    @property
    def found(self) -> bool:
        """Layer and cause are both right."""
        return self.found_layer == self.planted_layer and self.found_cause == self.planted_cause


def _small(net: str, seed: int) -> tuple[Model, Feeds, Feeds]:
    model = {"chain": plant_nets.chain, "branches": plant_nets.branches, "perceptron": plant_nets.perceptron}[net](seed)
    return model, plant_nets.feeds(model, seed, 256), plant_nets.feeds(model, seed + 5000, 64)


def _real(net: str, seed: int) -> tuple[Model, Feeds, Feeds]:
    chosen = zoo.model(net)
    with np.load(chosen.calibration) as stored:
        data = {name: stored[name][:96] for name in stored.files}
    count = 48 if net == "cifar_cnn" else 16
    return (
        Model.load(chosen.onnx),
        {n: a[:count] for n, a in data.items()},
        {n: a[48 : 48 + count] for n, a in data.items()},
    )


def _net(net: str, seed: int) -> tuple[Model, Feeds, Feeds]:
    return _real(net, seed) if net in zoo.MODELS else _small(net, seed)


def edited(net: str, cause: str, plant: plants.Plant) -> Build:
    """A good model of edgerun's with an edit."""

    def build(seed: int) -> Planted:
        model, data, fresh = _net(net, seed)
        good = compress(model, calibration=data, ranges=RANGES)
        file = plants.File(onnx.ModelProto.FromString(good.to_bytes()))
        layer = plant(file, np.random.default_rng([seed, 1]))
        return Planted(model, good, Model.from_proto(file.proto), data, fresh, layer, cause)

    return build


def calibrated(net: str, cause: str, mistake: Callable[[np.ndarray], np.ndarray]) -> Build:
    """A model that was compressed with other data than it is used with."""

    def build(seed: int) -> Planted:
        model, data, fresh = _net(net, seed)
        wrong = {name: np.ascontiguousarray(mistake(array), np.float32) for name, array in data.items()}
        good, bad = (_unjudged(model, given) for given in (data, wrong))
        return Planted(model, good, bad, data, fresh, diagnosis.WHOLE, cause)

    return build


def concat(mixed: float) -> Build:
    """One branch of two is `mixed` times as small, under one scale."""

    def build(seed: int) -> Planted:
        even, data, fresh = _small("branches", seed)
        model = plant_nets.branches(seed, mixed)
        good, bad = (compress(m, calibration=data, ranges=RANGES) for m in (even, model))
        return Planted(model, good, bad, data, fresh, "joined", causes.CONCAT)

    return build


def spread(net: str) -> Build:
    """ONNX Runtime's quantizer with one weight scale per layer, where one channel has a far larger weight."""

    def build(seed: int) -> Planted:
        model, data, fresh = _small(net, seed)
        reads, writes = {"chain": ("4", "3"), "perceptron": ("3", "2")}[net]
        proto = onnx.ModelProto.FromString(model.to_bytes())
        file = plants.File(proto)
        into, out = file.array(f"w{reads}").copy(), file.array(f"w{writes}").copy()
        bias = file.array(f"b{writes}").copy()
        rows, columns = (into, out) if net == "chain" else (into.T, out.T)
        channel = int(np.random.default_rng([seed, 2]).integers(len(bias)))
        columns[channel] /= 60
        bias[channel] /= 60
        rows[:, channel] = 0
        rows[3, channel] = 60 * np.abs(rows).max()
        for name, array in ((f"w{reads}", into), (f"w{writes}", out), (f"b{writes}", bias)):
            file.put(name, array)
        float_ = Model.from_proto(file.proto)
        good, bad = (_ort(float_, data, per_channel) for per_channel in (True, False))
        layer = {"chain": "c4", "perceptron": "g3"}[net]
        return Planted(float_, good, bad, data, fresh, layer, causes.SPREAD)

    return build


def saturated(net: str) -> Build:
    """Large weights side by side behind large activations, on a CPU that adds two products in 16 bits."""

    def build(seed: int) -> Planted:
        model, data, fresh = _small(net, seed)
        before, at, layer = {"chain": ("b2", "w3", "c3"), "perceptron": ("b1", "w2", "g2")}[net]
        file = plants.File(onnx.ModelProto.FromString(model.to_bytes()))
        weight = file.array(at).copy()
        rows = weight if net == "chain" else weight.T
        rows[:6] = np.abs(rows[:6]).mean()
        file.put(at, weight)
        file.put(before, file.array(before) + np.float32(8.0))
        float_ = Model.from_proto(file.proto)
        made = plants.File(onnx.ModelProto.FromString(compress(float_, calibration=data).to_bytes()))
        plants.reduced(made, besides=layer)
        bad = Model.from_proto(made.proto)
        return Planted(float_, bad, bad, data, fresh, layer, causes.SATURATION, saturating=True)

    return build


def _ort(model: Model, data: Feeds, per_channel: bool) -> Model:
    from onnxruntime import quantization  # type: ignore[import-untyped]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([data])

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "float.onnx"), Path(folder, "quantized.onnx")
        model.save(source)
        quantization.quantize_static(
            source, result, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=per_channel,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return Model.load(result)


def _unjudged(model: Model, data: Feeds) -> Model:
    """Compressed by the pass itself: the verb would refuse data that never changes, or tell of it."""
    rules = registry.target("onnxruntime").quantization()
    given = open_data(data, model.inputs, batch=8)
    request = Request(rules, _open, given, RANGES)
    return quantize.apply("static_int8", model, request)


def _reversed(images: np.ndarray) -> np.ndarray:
    return images[:, ::-1] if images.shape[1] == 3 else images[..., ::-1]


def suite() -> dict[str, Build]:
    """Every plant by `net/name`."""
    found: dict[str, Build] = {}
    for net in ("chain", "branches", "perceptron", "cifar_cnn", "mobilenet_v2"):
        found |= {
            f"{net}/clipped range": edited(net, causes.CLIPPING, plants.range_times(0.2)),
            f"{net}/range of a dead channel": edited(net, causes.CALIBRATION, plants.range_times(0.002)),
            f"{net}/dead weight channels": edited(net, causes.DEAD, plants.dead_channels),
            f"{net}/bias shift": edited(net, causes.BIAS, plants.bias_shift(0.12)),
            f"{net}/constant calibration": calibrated(net, causes.CALIBRATION, np.zeros_like),
            f"{net}/data 255 times too small": calibrated(net, causes.PREPROCESSING, lambda a: a / 255),
        }
        if net != "branches":  # there every tensor has two readers
            found[f"{net}/outlier channel"] = edited(net, causes.OUTLIER, plants.outlier(48.0))
        if net != "perceptron":
            found[f"{net}/colours reversed"] = calibrated(net, causes.PREPROCESSING, _reversed)
    for net in ("chain", "perceptron"):
        found |= {f"{net}/one weight scale": spread(net), f"{net}/saturation": saturated(net)}
    found |= {f"branches/mixed Concat {m:g}": concat(m) for m in (48.0, 200.0)}
    found["branches/range never filled"] = edited("branches", causes.CALIBRATION, plants.range_times(60.0))
    found["chain/range never filled"] = edited("chain", causes.CALIBRATION, plants.range_times(60.0))
    return found


def run(name: str, build: Build, seed: int) -> Result | None:
    """Plant, diagnose, and measure the worst row's fix on fresh samples. None when the plant does no damage."""
    planted = build(seed)
    outputs = [spec.name for spec in planted.float.outputs]
    judged, fresh = (_trials(planted, feeds, outputs) for feeds in (planted.data, planted.fresh))
    good = replace(fresh, saturating=False).measure(planted.good.ir)
    bad = fresh.measure(planted.bad.ir)
    if good.sqnr_db - bad.sqnr_db < LEAST_DB:
        return None
    start = time.perf_counter()
    remake, data = None, open_data(planted.data, planted.float.inputs, batch=8)
    if planted.bad.history:  # as the verb does: what edgerun made it can make again, on the data that it is given
        remake = lambda: compress(planted.float, calibration=data, ranges=RANGES).ir  # noqa: E731
    found = diagnosis.diagnose(
        planted.bad.ir, planted.float.ir, judged, 5, lambda *_: None, planted.saturating, remake, data
    )  # fmt: skip
    seconds = time.perf_counter() - start
    row = found.findings[0]
    fixed = bad
    if row.tried is not None:
        made = fixes.applied(found.case, planted.bad.ir, found.case.counterpart, row.tried.fix)
        assert made is not None
        fixed = fresh.measure(made[0])
    noises = [float(m.noise.mean()) for m in (good, bad, fixed)]
    net, plant = name.split("/")
    return Result(
        plant, net, seed, planted.layer, planted.cause, row.layer, row.cause.name, row.cause.evidence,
        row.tried.fix.name if row.tried else "", good.sqnr_db, bad.sqnr_db, fixed.sqnr_db,
        (noises[1] - noises[2]) / (noises[1] - noises[0]), seconds,
    )  # fmt: skip


def _trials(planted: Planted, feeds: Feeds, outputs: list[str]) -> trials.Trials:
    data = open_data(feeds, planted.float.inputs, batch=8)
    count = min(len(next(iter(feeds.values()))), 8 if planted.float.weight_bytes() > 8 << 20 else 32)
    made = trials.collect(opened_here, planted.float.ir, data, outputs, count, lambda *_: None)
    return replace(made, saturating=planted.saturating)


def _results(held_out: bool, names: tuple[str, ...]) -> Iterator[Result]:
    for name, build in suite().items():
        net = name.split("/")[0]
        if names and not any(wanted in name for wanted in names):
            continue
        if net in zoo.MODELS and not zoo.model(net).ready:
            click.echo(f"{name}: not in the cache", err=True)
            continue
        for seed in SEEDS[held_out] if net not in zoo.MODELS else SEEDS[held_out][:1]:
            result = run(name, build, seed)
            if result is None:
                click.echo(f"{name} ({seed}): costs less than {LEAST_DB:g} dB, not counted", err=True)
                continue
            mark = "found " if result.found else "MISSED"
            layers = f"{result.planted_layer} -> {result.found_layer}, {result.found_cause} ({result.evidence})"
            path = " -> ".join(f"{db:.1f}" for db in (result.good_db, result.bad_db, result.fixed_db))
            share = f"{100 * result.recovered:6.1f} %"
            click.echo(f"{mark} {share}  {name} ({seed}): {layers}; {result.fix}; {path} dB, {result.seconds:.1f} s")
            yield result


@click.command()
@click.argument("names", nargs=-1)
@click.option("--held-out", is_flag=True, help="The seeds that nothing was tuned on; writes the results.")
def main(names: tuple[str, ...], held_out: bool) -> None:
    """Plant, diagnose, count. What is named replaces its own rows in the kept results, no others."""
    results = [{**asdict(r), "found": r.found} for r in _results(held_out, names)]
    if held_out:
        kept = json.loads(RESULTS.read_text())["plants"] if names and RESULTS.exists() else []
        fresh = {(r["net"], r["plant"], r["seed"]) for r in results}
        results = [*(r for r in kept if (r["net"], r["plant"], r["seed"]) not in fresh), *results]
    found, recovered = sum(r["found"] for r in results), sum(r["recovered"] >= 0.8 for r in results)
    interval = wilson(found, len(results))
    median = float(np.median([r["recovered"] for r in results]))
    total = {
        "plants": len(results), "found": found, "share": found / len(results), "interval": asdict(interval),
        "recovered 80 %": recovered, "median recovered": median,
    }  # fmt: skip
    bounds = f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f}"
    click.echo(f"{found} of {len(results)} found ({100 * found / len(results):.1f} %, {bounds})")
    click.echo(f"{recovered} recovered by 80 % or more; median {100 * median:.1f} %")
    if held_out:
        text = json.dumps({"total": total, "plants": results}, indent=1)
        files.write_bytes(RESULTS, (text + "\n").encode())


if __name__ == "__main__":
    main()
