"""How long the door takes to open: `python -m bench.startup`.

Each command is a new process; the commands take turns, so that they share the machine's good and bad moments.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from edgerun.measure.stats import quantile

GOAL_MS = 150.0
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import numpy, click": [sys.executable, "-c", "import numpy, click"],
    "import numpy": [sys.executable, "-c", "import numpy"],
    "import edgerun.runtime": [sys.executable, "-c", "import numpy, edgerun.runtime"],
    "import edgerun": [sys.executable, "-c", "import edgerun"],
    "edgerun --help": [str(Path(sys.executable).with_name("edgerun")), "--help"],
}


def wall(command: list[str]) -> float:
    """Milliseconds from the start of the process to its end, with bytecode as pip installs it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return (perf_counter() - start) * 1e3


@click.command()
@click.option("--runs", type=click.IntRange(min=10), default=30, show_default=True, help="Processes per command.")
def main(runs: int) -> None:
    """Print the median wall time of each command, in milliseconds."""
    for command in COMMANDS.values():
        wall(command)  # the first start reads the files from the disk
    times = np.array([[wall(command) for command in COMMANDS.values()] for _ in range(runs)])
    click.echo(f"{'command':<24}{'median':>10}  95 % interval, n={runs}; goal for --help <= {GOAL_MS:g} ms")
    for name, column in zip(COMMANDS, times.T, strict=True):
        median = quantile([np.array([time]) for time in column], 0.5)
        click.echo(f"{name:<24}{median.value:>7.1f} ms  [{median.interval.low:.1f}, {median.interval.high:.1f}]")


if __name__ == "__main__":
    main()
