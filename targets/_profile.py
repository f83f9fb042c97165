"""What profilers have in common: robust times from their counts, and which of a model's nodes a kernel computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

TICK = 1e-6  # profilers count whole microseconds, rounded down: half of one is missing on average


def typical(counts: Sequence[float]) -> float:
    """Seconds of a typical run from whole microseconds of each: the interquartile mean, plus half a tick.

    Runs that something interrupted lie in the upper quarter, and a mean of the middle is finer than one tick, which a
    median of whole numbers is not.
    """
    ordered = np.sort(np.asarray(counts, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean() + 0.5) * TICK


def from_running_means(means: Sequence[float], after: Sequence[int] | None = None) -> float:
    """Seconds of a typical run where the profiler tells, after so many runs, in rising numbers (None: after each), the
    mean of all runs so far, rounded down to whole microseconds.

    The sum after run i is i·(mean_i + ½) ± i/2, so that its steps over n runs, d = Δsum/n, are those runs' own mean,
    ± i/n at most. The mean of the steps that are no longer than 1.25·median(d) + 2i/n leaves out interrupted runs and
    the first one, and in it the errors of neighbouring steps cancel.
    """
    runs = np.arange(1, len(means) + 1) if after is None else np.asarray(after)
    total = runs * (np.asarray(means, np.float64) + 0.5)
    if len(total) == 1:
        return (float(means[0]) + 0.5) * TICK
    counts, sums = np.diff(runs), np.diff(total)
    usual = sums / counts <= 1.25 * np.median(sums / counts) + 2 * runs[1:] / counts
    return (max(float(sums[usual].sum() / counts[usual].sum()), 0.0) + 0.5) * TICK


def covers(
    readers: Mapping[str, Sequence[str]],
    named: Mapping[int, Collection[str]],
    apart: Collection[str],
    reads: Mapping[int, Collection[int]],
) -> dict[int, tuple[str, ...]]:
    """The nodes that each kernel computes, from those that it is known by.

    `readers` gives for each of the model's nodes, in topological order, the nodes that read it; `named` the nodes
    whose names a kernel carries. A node that no kernel carries was fused or folded: into the one kernel behind it
    or, where there are several or none, into that of a node before it. A sum of two kernels'
    results, of which one reads the other (`reads`), was fused into that one. Nodes in `apart` (Q/DQ) are computed by
    nobody else's kernel, and nothing is looked for behind them.
    """
    owner: dict[str, int] = {}
    for kernel, nodes in named.items():
        for node in nodes:
            owner.setdefault(node, kernel)
    _own_sums(owner, readers, apart, reads)
    for node in reversed(list(readers)):
        if node not in owner and node not in apart:
            one = {owner.get(reader) for reader in readers[node] if reader not in apart}
            if len(one) == 1 and (behind := one.pop()) is not None:
                owner[node] = behind
    _own_sums(owner, readers, apart, reads, follow=True)
    found: dict[int, list[str]] = {kernel: [] for kernel in named}
    carried = {kernel: set(nodes) for kernel, nodes in named.items()}
    for node in readers:
        for kernel, nodes in carried.items():
            if node in nodes or owner.get(node) == kernel:
                found[kernel].append(node)
    return {kernel: tuple(nodes) for kernel, nodes in found.items()}


def _own_sums(
    owner: dict[str, int],
    readers: Mapping[str, Sequence[str]],
    apart: Collection[str],
    reads: Mapping[int, Collection[int]],
    follow: bool = False,
) -> None:
    """Give each node without a kernel that joins two to the one that reads the other; with `follow`, every other one
    to that of the first node before it that has one."""
    before: dict[str, list[str]] = {node: [] for node in readers}
    for node, after in readers.items():
        for reader in after:
            before[reader].append(node)
    for node, sources in before.items():
        if node in owner or node in apart:
            continue
        kernels = list(dict.fromkeys(owner[s] for s in sources if s in owner and s not in apart))
        fused = [k for k in kernels if len(kernels) == 2 and set(kernels) - {k} <= set(reads.get(k, ()))]
        if len(fused) == 1:
            owner[node] = fused[0]
        elif follow and kernels:
            owner[node] = kernels[0]
