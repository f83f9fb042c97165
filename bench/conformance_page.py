"""docs/conformance.md, written from results/conformance.json."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from edgerun import files

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
HEAD = """# Conformance

What ONNX's own conformance cases (`onnx.backend.test`, opsets 7 to 26, no preview domain) make of each target, through
`edgerun.compile` and `Session.run`. Written by `python -m bench.conformance` from
[results](../bench/results/conformance.json), where every case that does not pass stands with its reason.

A case is compiled with its own inputs as the feeds of the self-check, so that what a runtime computes wrongly is
refused before anyone gets it. Cases run in limited child processes; one that killed its process is counted as a crash.

- **pass**: every element within the case's tolerance (mostly 1e-3 relative plus 1e-7).
- **rounding**: beyond that, but within a thousandth of the largest output, one step of a quantizer, or two of
  bfloat16 at the largest.
- **compiled**: an engine was built; where no GPU is, nothing of TensorRT runs, and what it computes is not known.
- **unsupported**: refused, naming the operator: the runtime lacks it, computes it otherwise, or came before it, or no
  comparison can judge it, since it draws random numbers. **wrong, refused**: the self-check found other values than
  the model says.
- **wrong**: other values that the self-check let through. **error**: refused without naming the operator. **crash**:
  the process died or hung.

1,590 cases, as is said elsewhere, are counted with the nine networks of `real` (opset 9, without data: their runner
draws inputs and asks the evaluator what is expected), and without the eight cases of `ai.onnx.ml` that import no opset
of the default domain.

Two of Resize are refused everywhere (`align_corners` with scales that end between two samples): ONNX's text divides by
the length that comes out, a whole number, as both runtimes and PyTorch do; its evaluator, which wrote the cases, by the
unrounded one. With sizes in place of scales nothing is in doubt. The ten of Attention in bfloat16 that OpenVINO alone
runs count as rounding: against the same computed in float32 it rounds 83 to 92 % of the elements correctly (53.6 to
56.2 dB), and the cases, which round after every operator, 61 to 78 % (49.9 to 53.3 dB).

`auto` is the first target, in the order of their names, whose engine passes the self-check, and of a float model one of
which no element is far from the reference (1e-3 of itself and 1e-5 of the largest) before others. It passes what either
passes. The last of these, `test_attention_4d_causal_fp16`, is OpenVINO's by that rule: of 192 float16 elements
onnxruntime 1.31 gives one two steps from the case's own value, which is no fault. Against float64 it rounds 88.5 % of
them correctly, the case 79.2 % and OpenVINO 99.5 %.
"""


def write(kept: dict[str, Any]) -> None:
    """The page: a table of outcomes, and one of passes for each operator that does not pass everywhere."""
    names, groups, total = list(kept["targets"]), kept["cases"], len(kept["cases"])
    text = [HEAD, _outcomes(kept["targets"], total), "", "## By operator", ""]
    counts = Counter(groups.values())
    passed: dict[str, Counter[str]] = defaultdict(Counter)
    for name in names:
        failed = kept["targets"][name]["not passed"]
        passed[name] = Counter(group for case, group in groups.items() if case not in failed)
    partly = sorted(g for g in counts if any(passed[name][g] < counts[g] for name in names))
    whole = sorted(g for g in counts if g not in partly)
    heads = [f"{name} (compiled)" if kept["targets"][name]["count"].get("compiled") else name for name in names]
    text += [
        f"Passed, or compiled, everywhere: {', '.join(whole)}.",
        "",
        "| operator | cases | " + " | ".join(heads) + " |",
    ]
    text.append("|---|---|" + "---|" * len(names))
    for group in partly:
        cells = (str(passed[name][group]) if passed[name][group] else "–" for name in names)
        text.append(f"| {group} | {counts[group]} | " + " | ".join(cells) + " |")
    files.write_bytes(PAGE, ("\n".join(text) + "\n").encode())


def _outcomes(targets: dict[str, Any], total: int) -> str:
    from bench.conformance import OUTCOMES

    lines = [f"| of {total} cases | " + " | ".join(OUTCOMES) + " |", "|---|" + "---|" * len(OUTCOMES)]
    for name, found in targets.items():
        cells = (str(found["count"].get(kind, 0)) for kind in OUTCOMES)
        lines.append(f"| {name} {found['version']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
