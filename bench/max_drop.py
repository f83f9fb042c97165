"""Does the bound hold? 40 searches with `--max-drop`, each judged on pictures that it never saw.

    python -m bench.max_drop            writes results/max_drop.json (a few minutes; needs the zoo's CIFAR-10 archive)

A small CNN is trained on CIFAR-10 training pictures, halved in size, once. Every run draws its own damage (how many
bits each layer's weights are rounded to, so few that accuracy falls by up to tens of points), its own labelled pictures
out of the test set, and one of the bounds; the search of `edgerun compress --max-drop` runs as it is, with real
sessions. The test pictures that were not drawn are fresh: on them the drop of what the search returned is measured.

Beside it, on the same candidates and data, NNCF's accuracy control replayed: rank every layer with 300 samples, return
one layer to float at a time, evaluate fully, stop at the first drop below the bound (no interval).
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from bench import zoo_images
from edgerun import registry
from edgerun.data import Data, open_data
from edgerun.errors import GateFailed
from edgerun.files import write_bytes
from edgerun.metrics import correct, paired_drop, wilson
from edgerun.model import Model, Step
from edgerun.quantize.graphs import edit
from edgerun.quantize.graphs.work import layers
from edgerun.runtime import Options
from edgerun.verbs import search
from edgerun.verbs.looks import Looks

RESULTS = Path(__file__).parent / "results" / "max_drop.json"
TARGET = "onnxruntime"
RUNS, LABELLED, BOUNDS = 40, (2000, 4000), (1.0, 2.0)  # pictures, points
BITS = (3, 4, 5)  # of a layer's weights, drawn
WIDTHS = ((3, 24, 2), (24, 32, 1), (32, 32, 1), (32, 48, 2), (48, 48, 1), (48, 64, 2), (64, 64, 1))
EPOCHS, BATCH, RATE = 8, 64, 2e-3
CALIBRATION = 64
RANKING = 300  # NNCF's ranking_subset_size
Variant = Callable[[frozenset[str]], Model]


@dataclass(frozen=True)
class Run:
    """One search. Drops in points; `exceeds`: the drop on fresh pictures is above the bound, None: nothing claimed.

    `passes` are samples run on candidates over labelled samples; `nncf_*` the same of NNCF's algorithm.
    """

    seed: int
    bound: float
    labelled: int
    straight_drop: float
    kept: int | None
    layers: int
    drop: float | None
    fresh: int
    fresh_drop: float | None
    fresh_interval: tuple[float, float] | None
    exceeds: bool | None
    passes: float | None
    nncf_kept: int
    nncf_fresh_drop: float
    nncf_exceeds: bool
    nncf_passes: float


def halved(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 32, 32, 3] to float32 [n, 3, 16, 16], means of 2 x 2 pixels, scaled and centred."""
    scaled = zoo_images.mean_std(images)
    return np.ascontiguousarray(scaled.reshape(len(images), 3, 16, 2, 16, 2).mean(axis=(3, 5)))


def trained(images: np.ndarray, labels: np.ndarray) -> Model:
    """A CNN of eight layers, image float32 [n, 3, 16, 16] -> logits [n, 10], trained with a fixed seed."""
    import io

    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for before, after, stride in WIDTHS:
        parts += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1][1], 10))
    pictures, truth = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(truth)).split(BATCH):  # type: ignore[no-untyped-call]
            flipped = pictures[rows].flip(3) if torch.rand(()) < 0.5 else pictures[rows]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(flipped), truth[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    buffer = io.BytesIO()
    torch.onnx.export(
        net.eval(), (pictures[:2],), cast(Any, buffer), input_names=["image"], output_names=["logits"],
        opset_version=17, dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}}, dynamo=False,
    )  # fmt: skip
    import onnx

    return Model.from_proto(onnx.load_from_string(buffer.getvalue()))


def rounded(original: Model, bits: dict[str, int]) -> Variant:
    """A compressor of known coarseness: layers that are not kept have weights of so many `bits`, one scale each."""

    def variant(kept: frozenset[str]) -> Model:
        graph = original.clone()
        for node in list(graph.graph):
            name = str(node.name)
            if name in bits and name not in kept:
                weight = edit.constant(node.inputs[1])
                assert weight is not None
                scale = np.abs(weight).max() / (2 ** (bits[name] - 1) - 1)
                edit.set_constant(graph.graph, node, 1, (np.round(weight / scale) * scale).astype(np.float32))
        made = Model.of(graph)
        return Model(made.ir, made.inputs, made.outputs, history=(Step("bench/rounded", "0"),))

    return variant


def hits(model: Model, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [n]: which pictures `model` has right."""
    target = registry.target(TARGET)
    with target.load(target.compile(model, Options()), Options()) as session:
        parts = [session.run({"image": images[i : i + 50]})["logits"] for i in range(0, len(images), 50)]
    return correct(np.concatenate(parts), labels)


def points(truth: np.ndarray, ours: np.ndarray) -> float:
    """The drop in points."""
    return round(100 * float(truth.mean() - ours.mean()), 3)


def nncf(
    truth: np.ndarray, right: Callable[[frozenset[str]], np.ndarray], names: list[str], bound: float
) -> tuple[frozenset[str], float]:
    """NNCF 3.4's accuracy control on hits of labelled samples: the layers it returns to float, and its passes.

    Ranking by how much nearer one layer in float brings the hits to the baseline's, on the `RANKING` samples that
    differ first; a step that made things worse is taken back once, and the rest ranked again.
    """
    n, kept = len(truth), frozenset[str]()
    samples = n  # the quantized model itself
    drop = points(truth, right(kept))
    order: list[str] = []
    step_back = True
    while drop > bound and len(kept) < len(names):
        if not order:
            chosen = np.argsort(right(kept) == truth, kind="stable")[:RANKING]
            left = [name for name in names if name not in kept]
            nearer = {name: np.mean(right(kept | {name})[chosen] == truth[chosen]) for name in left}
            samples += len(chosen) * len(left)
            order = sorted(left, key=lambda name: nearer[name])
        name = order.pop()
        new = points(truth, right(kept | {name}))
        samples += n
        if new > drop and not step_back:
            order, step_back, drop = [], True, new
            continue
        kept, step_back, drop = kept | {name}, False, new
    return kept, samples / n


def run(
    seed: int, original: Model, calibration: Data, images: np.ndarray, labels: np.ndarray, truth: np.ndarray
) -> Run:
    """One search and its judgement on the pictures that it did not see."""
    generator = np.random.default_rng(seed)
    n, bound = LABELLED[seed % 2], BOUNDS[seed // 2 % 2]
    order = generator.permutation(len(labels))
    seen, fresh = np.sort(order[:n]), np.sort(order[n:])
    cost = layers(original, registry.target(TARGET).quantization())
    variant = rounded(original, {name: int(generator.choice(BITS)) for name in cost})
    right = functools.cache(lambda kept: hits(variant(kept), images, labels))
    labelled = open_data({"image": images[seen], "labels": labels[seen]}, original.inputs, batch=50)
    kept: frozenset[str] | None
    try:
        told: dict[str, Any] = dict(
            search.hold(original, variant, cost, calibration, Looks(labelled), target=TARGET, max_drop=bound)
            .history[-1].options["max drop"]
        )  # fmt: skip
        kept, passes, drop = frozenset(told["kept float"]), round(told["samples run"] / n, 2), told["drop (points)"]
    except GateFailed:
        kept, passes, drop = None, None, None
    others, other_passes = nncf(truth[seen], lambda k: right(k)[seen], list(cost), bound)
    result = None if kept is None else right(kept)[fresh]
    interval = None
    if result is not None:
        found = paired_drop(int((truth[fresh] & ~result).sum()), int((result & ~truth[fresh]).sum()), len(fresh))
        interval = (round(100 * found.low, 3), round(100 * found.high, 3))
    fresh_drop = None if result is None else points(truth[fresh], result)
    theirs = points(truth[fresh], right(others)[fresh])
    return Run(
        seed, bound, n, points(truth, right(frozenset())), None if kept is None else len(kept), len(cost), drop,
        len(fresh), fresh_drop, interval, None if fresh_drop is None else fresh_drop > bound, passes,
        len(others), theirs, theirs > bound, round(other_passes, 2),
    )  # fmt: skip


def summary(runs: list[Run]) -> dict[str, Any]:
    """What the runs say together: shares with Wilson intervals (95 %), medians of passes."""

    def share(count: int, of: int) -> dict[str, Any]:
        found = wilson(count, of)
        return {"count": count, "of": of, "interval": [round(found.low, 3), round(found.high, 3)]}

    claimed = [r for r in runs if r.kept is not None]
    return {
        "exceeds": share(sum(bool(r.exceeds) for r in claimed), len(claimed)),
        "nothing claimed": len(runs) - len(claimed),
        "nncf exceeds": share(sum(r.nncf_exceeds for r in runs), len(runs)),
        "median kept": float(np.median([r.kept for r in claimed if r.kept is not None])),
        "nncf median kept": float(np.median([r.nncf_kept for r in runs])),
        "median passes": float(np.median([r.passes for r in claimed if r.passes is not None])),
        "nncf median passes": float(np.median([r.nncf_passes for r in runs])),
    }


def main(count: int = RUNS) -> None:
    """Train, run, write and print."""
    images, labels = zoo_images.cifar10("train")
    prepared = halved(images)
    original = trained(prepared[:-CALIBRATION], labels[:-CALIBRATION])
    calibration = open_data({"image": prepared[-CALIBRATION:]}, original.inputs, batch=8)
    tested, truth_labels = zoo_images.cifar10("test")
    pictures = halved(tested)
    truth = hits(original, pictures, truth_labels)
    print(f"fp32: {100 * truth.mean():.2f} % of {len(truth)} pictures", file=sys.stderr)
    runs = []
    for seed in range(count):
        start = time.monotonic()
        runs.append(run(seed, original, calibration, pictures, truth_labels, truth))
        print(f"{time.monotonic() - start:.1f} s {runs[-1]}", file=sys.stderr)
    told = {"fp32 accuracy": round(float(truth.mean()), 4), "summary": summary(runs), "runs": [asdict(r) for r in runs]}
    if count == RUNS:
        write_bytes(RESULTS, (json.dumps(told, indent=1) + "\n").encode())
    print(json.dumps(told["summary"], indent=2))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
