"""Run one model over a zoo model's test set, in a process of its own.

python -m bench.evaluate ZOO FILE TARGET OUT.npz
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

import edgerun
from bench import zoo, zoo_data
from edgerun.files import replacing

THREADS = 2


def main(name: str, model: str, target: str, output: str) -> None:
    """Write `outputs` [n, …] and `labels` [n] of the whole test set; the first output counts.

    A model with state gets each sequence frame by frame and its own state back after every one.
    """
    chosen = zoo.model(name)
    outputs, labels = [], []
    with edgerun.load(Path(model), target, edgerun.Options(threads=THREADS)) as session:
        for feeds, truth in chosen.test(chosen.batch):
            steps = streamed(session, feeds, chosen.state) if chosen.state else [session.run(feeds)]
            outputs += [step[session.outputs[0].name].copy() for step in steps]
            labels.append(truth)
    with replacing(Path(output)) as path:
        np.savez(path, outputs=np.concatenate(outputs), labels=np.concatenate(labels))


def streamed(session: edgerun.Session, feeds: zoo_data.Feeds, state: Mapping[str, str]) -> Iterator[zoo_data.Feeds]:
    """The outputs of each frame (first axis of what is no state); `state` names the output that feeds each input."""
    carried = {name: feeds[name] for name in state}
    frames = {name: array for name, array in feeds.items() if name not in state}
    for step in range(len(next(iter(frames.values())))):
        outputs = session.run({**{name: array[step : step + 1] for name, array in frames.items()}, **carried})
        carried = {name: outputs[fed].copy() for name, fed in state.items()}
        yield outputs


if __name__ == "__main__":
    main(*sys.argv[1:])
