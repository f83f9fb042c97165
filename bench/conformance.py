"""Does a target compute what ONNX says? Its conformance suite through `edgerun.compile` and `Session.run`.

    python -m bench.conformance [--target NAME …] [--cases WORD] [--drawn]

Each case is compiled with its own inputs as the self-check's feeds, or with drawn ones, and run. Cases run in child
processes with limits: one that a runtime kills, or that hangs, is a crash, and the rest go on. Writes
results/conformance.json and docs/conformance.md, unless WORD or --drawn is given.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import numpy as np

from bench.conformance_cases import Case, cases
from edgerun import files

if TYPE_CHECKING:
    from edgerun.runtime import TensorSpec

RESULTS = Path(__file__).parent / "results" / "conformance.json"
SECONDS = 120.0  # for one case, before its process is ended
MEMORY = 6 << 30  # bytes of address space for a child
CHUNK = 400  # cases for one child, which takes a second or two to begin
ROOT = Path(__file__).resolve().parent.parent
CHILD = "import sys; from bench.conformance import work; work(sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'drawn')"
OUTCOMES = ("pass", "rounding", "compiled", "wrong, refused", "unsupported", "wrong", "error", "crash")


def outcome(case: Case, target: str, drawn: bool = False) -> tuple[str, str]:
    """One of OUTCOMES, and why.

    "rounding": beyond the case's tolerance for an element, within a thousandth of the largest output, one step of a
    quantizer (a tie that fell the other way), or two of bfloat16 at the largest (what rounds less often is nearer to
    what is exact than the case). "wrong, refused" is what the self-check found; "wrong" what it did not; "error" is
    anything else than a refusal that names an operator. "compiled": nothing of this target runs here. With `drawn` the
    self-check does not see the case's inputs.
    """
    import edgerun
    from edgerun import registry
    from edgerun.errors import EdgerunError, GateFailed, Unsupported
    from edgerun.model import Model
    from edgerun.verbs.compile import built
    from edgerun.verbs.written_out import or_written_out

    options, ops = edgerun.Options(threads=1), set[str]()
    try:
        model = Model.from_bytes(case.model)
        ops = {str(node.op_type) for node in model.ir.graph.all_nodes()}
        names = [spec.name for spec in model.inputs]
        feeds = [dict(zip(names, inputs, strict=False)) for inputs, _ in case.sets]
        if target != "auto" and registry.target(target, usable=False).runnable():
            own = replace(options, sizes=_sizes(model.inputs, feeds))
            or_written_out(model, target, lambda form: built(form, target, own))
            return "compiled", ""
        engine = edgerun.compile(model, target, options, feeds=[] if drawn else feeds)
        with edgerun.load(engine, options=options) as session:
            found = [judged(case, session.run(feed), outs) for feed, (_, outs) in zip(feeds, case.sets, strict=True)]
    except GateFailed as error:
        return "wrong, refused", _text(error)
    except Unsupported as error:
        told = any(f"({op})" in str(error) for op in ops)
        return ("unsupported" if told else "error"), _text(error)
    except EdgerunError as error:
        return "error", _text(error)
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"[:500]
    return max(found, key=lambda told: OUTCOMES.index(told[0]))


def _sizes(inputs: Sequence[TensorSpec], feeds: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """The sizes of open dimensions in the feeds: least, the first, most."""
    found: dict[str, list[int]] = {}
    for spec in inputs:
        for shape in (getattr(feed[spec.name], "shape", ()) for feed in feeds):
            for dim, size in zip(spec.shape, shape, strict=False):
                if isinstance(dim, str):
                    found.setdefault(dim, []).append(size)
    return {dim: (max(1, min(sizes)), max(1, sizes[0]), max(1, max(sizes))) for dim, sizes in found.items()}


def judged(case: Case, got: dict[str, Any], wanted: Sequence[Any]) -> tuple[str, str]:
    """The outcome of one run."""
    worst = "pass", ""
    for (name, have), want in zip(got.items(), wanted, strict=False):
        for h, w in zip(_leaves(have), _leaves(want), strict=True):
            if h.dtype != w.dtype or h.shape != w.shape:
                return "wrong", f"{name}: {h.dtype}{list(h.shape)} for {w.dtype}{list(w.shape)}"
            if h.dtype.kind == "O":
                if not np.array_equal(h, w):
                    return "wrong", f"{name}: other strings"
                continue
            told = _close(case, h.astype(np.float64), w.astype(np.float64), w.dtype.name)
            worst = max(worst, told, key=lambda t: OUTCOMES.index(t[0]))
    return worst


def _close(case: Case, h: np.ndarray, w: np.ndarray, dtype: str) -> tuple[str, str]:
    if np.allclose(h, w, rtol=case.rtol, atol=case.atol, equal_nan=True):
        return "pass", ""
    finite = np.isfinite(w)
    error = np.abs(h[finite] - w[finite]).max(initial=0.0)
    largest = np.abs(w[finite]).max(initial=0.0)
    same = np.array_equal(h[~finite], w[~finite], equal_nan=True)
    steps = {"int8": 1.0, "uint8": 1.0, "bfloat16": 2 * 2.0 ** (np.frexp(largest)[1] - 8)}
    small = error <= max(1e-3 * largest, steps.get(dtype, 0.0))
    return ("rounding" if same and small else "wrong"), f"error {error:.2g} of {largest:.2g}"


def _leaves(value: Any) -> list[np.ndarray]:
    if value is None:
        return []
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


def _text(error: Exception) -> str:
    return " | ".join(" ".join(str(error).split("\n")).split())[:500].replace(" | ", " ")


def run(chosen: Sequence[Case], target: str, drawn: bool = False) -> Iterator[tuple[Case, str, str]]:
    """(case, outcome, reason), in order. A child runs `CHUNK` of them; the next one starts where it died."""
    at = 0
    while at < len(chosen):
        part = chosen[at : at + CHUNK]
        told = list(_chunk(part, target, drawn))
        yield from ((case, *result) for case, result in zip(part, told, strict=False))
        at += len(told)


def _chunk(part: Sequence[Case], target: str, drawn: bool) -> Iterator[tuple[str, str]]:
    """Their outcomes, computed in a new process: one that is split off has this one's locks, but not the threads that
    would open them."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as given:
        pickle.dump(part, given)
        given.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, target, str(writing), "drawn" if drawn else ""], stdin=given,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(writing,), cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    os.close(writing)
    done = 0
    with os.fdopen(reading, "rb", buffering=0) as answers:
        for line in _lines(answers):
            yield tuple(json.loads(line))
            done += 1
    if done < len(part):
        child.kill()  # it hangs, or is dead already
    status = child.wait()
    if done < len(part):
        yield "crash", _death(status)


def _lines(answers: IO[bytes]) -> Iterator[bytes]:
    """Whole lines; ends when the other end does, or when none comes in time."""
    rest = b""
    while select.select([answers], [], [], SECONDS)[0] and (data := answers.read(65536)):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


def _death(status: int) -> str:
    if status >= 0:
        return f"ended with {status}"
    return f"no answer in {SECONDS:g} s" if status == -signal.SIGKILL else f"killed by {signal.Signals(-status).name}"


def work(target: str, answers: int, drawn: bool) -> None:
    """The child: cases from stdin, one line for each on the descriptor `answers`. Never returns."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    part = pickle.load(sys.stdin.buffer)
    with os.fdopen(answers, "w") as told:
        for case in part:
            print(json.dumps(outcome(case, target, drawn)), file=told, flush=True)
        os._exit(0)  # what a runtime does when it ends is nobody's case


@click.command()
@click.option("--target", "targets", multiple=True, help='Only this one, or "auto"; may be given again.')
@click.option("--cases", "word", default="", help="Only cases with this word in their names; nothing is written.")
@click.option("--drawn", is_flag=True, help="The self-check draws its feeds, as for a user; nothing is written.")
def main(targets: tuple[str, ...], word: str, drawn: bool) -> None:
    """Run the suite; results of targets that are not named stay."""
    from bench.conformance_page import write

    chosen = [case for case in cases() if word in case.name]
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"targets": {}}
    for target in targets or (*_runnable(), "auto"):
        table, count = {}, Counter[str]()
        for case, kind, reason in run(chosen, target, drawn):
            count[kind] += 1
            if kind not in ("pass", "compiled"):
                table[case.name] = [kind, reason]
            if word or (drawn and kind == "wrong"):
                click.echo(f"{target:<12} {kind:<15} {case.name}  {reason}")
        click.echo(f"{target:<12} " + ", ".join(f"{n} {kind}" for kind, n in count.items()), file=sys.stderr)
        kept["targets"][target] = {"count": dict(count), "version": _version(target), "not passed": table}
    if word or drawn:
        return
    kept["cases"] = {case.name: case.group for case in chosen}
    files.write_bytes(RESULTS, json.dumps(kept, indent=1, sort_keys=True).encode() + b"\n")
    write(kept)


def _runnable() -> list[str]:
    from edgerun import registry

    names = registry.names("target")
    known = ((name, registry.target(name, usable=False)) for name in names)
    return [name for name, target in known if not target.available() and not target.runnable()]


def _version(target: str) -> str:
    from edgerun import registry

    return "" if target == "auto" else registry.target(target).device()["version"]


if __name__ == "__main__":
    main()
