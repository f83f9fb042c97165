"""Run one model over a zoo model's test set, in a process of its own.

python -m bench.evaluate ZOO FILE TARGET OUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import edgerun
from bench import zoo
from edgerun.files import replacing

THREADS = 2


def main(name: str, model: str, target: str, output: str) -> None:
    """Write `outputs` [n, …] and `labels` [n] of the whole test set; the first output counts."""
    chosen = zoo.model(name)
    outputs, labels = [], []
    with edgerun.load(Path(model), target, edgerun.Options(threads=THREADS)) as session:
        first = session.outputs[0].name
        for feeds, truth in chosen.test(chosen.batch):
            outputs.append(session.run(feeds)[first])
            labels.append(truth)
    with replacing(Path(output)) as path:
        np.savez(path, outputs=np.concatenate(outputs), labels=np.concatenate(labels))


if __name__ == "__main__":
    main(*sys.argv[1:])
