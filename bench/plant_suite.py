"""The suite of plants: which fault goes into which network, and what `edgerun why-wrong` ought to say of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bench import plant_nets, plants, zoo
from edgerun import quantize, registry
from edgerun.data import open_data
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.quantize import diagnosis
from edgerun.quantize.numerics import causes
from edgerun.verbs.compress import compress
from edgerun.verbs.making import opened

RANGES = "minmax"  # of the good models: the search for better ones looks at few samples, and that is not the question
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
        good = compress(model, calibration=data, ranges=RANGES, placement="rules")
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
    """One branch of two is `mixed` times as small, under one scale, as ONNX Runtime's quantizer leaves it."""

    def build(seed: int) -> Planted:
        even, data, fresh = _small("branches", seed)
        model = plant_nets.branches(seed, mixed)
        good, bad = (_ort(m, data, True) for m in (even, model))
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
        made = plants.File(onnx.ModelProto.FromString(compress(float_, calibration=data, placement="rules").to_bytes()))
        plants.reduced(made, besides=layer)
        bad = Model.from_proto(made.proto)
        return Planted(float_, bad, bad, data, fresh, layer, causes.SATURATION, saturating=True)

    return build


def _ort(model: Model, data: Feeds, per_channel: bool) -> Model:
    from onnxruntime import quantization  # type: ignore[import-untyped]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([data])

        # The base says `-> dict`, but its own `__next__` takes None as the end.
        def get_next(self) -> Feeds | None:  # pyright: ignore[reportIncompatibleMethodOverride]
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
    request = Request(rules, opened, given, RANGES)
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
