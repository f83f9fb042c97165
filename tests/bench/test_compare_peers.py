"""The machinery of the comparison, without any peer: samples, processes, kept cells, scores, tables."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import chart, compare_peers, peers, scores, tables, zoo
from bench.cells import Cells, digest
from bench.environments import ENVIRONMENTS, Environment, made
from bench.peers import Samples
from bench.processes import measured
from edgerun.errors import EdgerunError


def test_samples_are_the_rows_of_the_file(tmp_path: Path) -> None:
    image, ids = np.random.default_rng(0).random((5, 3, 4), np.float32), np.arange(10).reshape(5, 2)
    np.savez(tmp_path / "c.npz", image=image, ids=ids)
    samples = Samples(tmp_path / "c.npz")
    assert len(samples) == 5
    for index, feeds in enumerate(samples):
        assert np.array_equal(feeds["image"], image[index : index + 1]) and feeds["ids"].dtype == ids.dtype
    samples.set_range(3, 5)
    assert np.array_equal(samples.get_first()["ids"], ids[:1])  # it takes nothing
    taken = [samples.get_next(), samples.get_next(), samples.get_next()]
    assert taken[0] is not None and np.array_equal(taken[0]["ids"], ids[3:4])
    assert taken[1] is not None and taken[2] is None


def test_compressed_samples_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "c.npz", image=np.zeros((2, 2), np.float32))
    with pytest.raises(SystemExit, match="numpy.savez"):
        Samples(tmp_path / "c.npz")


def test_peak_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    grow = "b = bytearray(b'x') * 100_000_000; import time; time.sleep(0.5)"
    both = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {grow!r}]); {grow}; p.wait()"
    ours = bytearray(b"x") * 400_000_000  # what the caller holds does not count
    alone = measured([sys.executable, "-c", grow], tmp_path)
    together = measured([sys.executable, "-c", both], tmp_path)
    assert 100 <= alone.peak_mb < 180 and 200 <= together.peak_mb < 300
    assert alone.seconds >= 0.5 and len(ours) == 400_000_000


def test_a_failing_command_shows_its_stderr(tmp_path: Path) -> None:
    with pytest.raises(EdgerunError, match="no such thing"):
        measured([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


def test_cells_are_made_again_only_when_something_changed(tmp_path: Path) -> None:
    artefact, made = tmp_path / "model", []

    def make() -> dict[str, Any]:
        made.append(1)
        artefact.write_text("x")
        return {"value": len(made), "files": [str(artefact)]}

    cells = Cells(tmp_path / "cells")
    assert [cells.get("a", "k1", make)["value"] for _ in range(3)] == [1, 1, 1]
    assert cells.get("a", "k2", make)["value"] == 2
    artefact.unlink()
    assert cells.get("a", "k2", make)["value"] == 3
    assert Cells(tmp_path / "cells", fresh=True).get("a", "k2", make)["value"] == 4
    assert digest(artefact) != digest("x")


def test_scores_are_paired(tmp_path: Path) -> None:
    labels = np.arange(100) % 10
    reference = np.eye(10, dtype=np.float32)[labels]  # all right
    other = reference.copy()
    other[:10] = np.roll(other[:10], 1, axis=1)  # ten wrong
    np.savez(tmp_path / "a.npz", outputs=reference, labels=labels)
    np.savez(tmp_path / "b.npz", outputs=other, labels=labels)
    score = scores.scored(zoo.CIFAR_CNN, tmp_path / "a.npz", tmp_path / "b.npz")
    assert score["drop"]["value"] == pytest.approx(0.1) and score["drop"]["low"] > 0
    assert score["agreement"] == pytest.approx(0.9) and score["cosine"] == pytest.approx(0.9)
    assert score["sqnr_db"] == pytest.approx(6.9897, abs=1e-4)  # signal 100, noise 10 · 2
    # Of 100 examples 10 ± 3 are wrong: between 4.1 and 15.9 of them, 10·log10(100 / 2n) dB.
    assert score["sqnr_interval"]["low"] == pytest.approx(4.98, abs=0.4)
    assert score["sqnr_interval"]["high"] == pytest.approx(10.9, abs=1.2)


def _score(drop: float) -> dict[str, Any]:
    whole = {"value": 0.8 - drop, "low": 0.7, "high": 0.9}
    shift = {"value": drop, "low": drop - 0.01, "high": drop + 0.01}
    return {"n": 10, "accuracy": whole, "drop": shift, "agreement": 0.9, "sqnr_db": None, "cosine": 1.0}


def test_the_page_tells_ours_and_the_best_peer() -> None:
    cost = {"wall_s": 2.0, "peak_mb": 300.0, "size": 1_000_000}
    accuracy = {
        "fp32": _score(0.0),
        "nncf_ir": _score(0.01),
        "ort_minmax": _score(0.1),
        "edgerun_openvino": _score(0.002),
    }
    result = {
        "model": "m",
        "metric": "top-1",
        "size": 4_000_000,
        "quantize": {
            "nncf_ir": cost,
            "ort_minmax": {**cost, "wall_s": 1.0},
            "edgerun_openvino": cost,
            "nncf_onnx": {"failed": "it does not load"},
        },
        "targets": {"openvino": {"accuracy": accuracy, "failed": {"nncf_ir": "no"}}},
    }
    page = tables.page([result])
    assert re.search(r"\| m \| openvino \| \*\*0\.20\*\* \[-?\d+\.\d\d, \d+\.\d\d\] \(1\.00 nncf_ir\) \|", page)
    assert "2.0 (1.0 ort_minmax)" in page
    rows = [line for line in page.splitlines() if "fails:" in line]
    assert len(rows) == 2 and all(row.count("|") == 14 for row in rows)
    assert "| nncf_onnx |  | fails: makes no model: it does not load |" in page
    assert "| nncf_ir | openvino | fails: its model does not run: no |" in page
    assert tables.CHART not in page  # nothing was timed


def test_the_picture_has_a_point_per_variant_that_was_timed() -> None:
    def row(speed: float) -> dict[str, Any]:
        return {"speedup": {"value": speed, "low": speed - 0.1, "high": speed + 0.1}}

    accuracy = {name: {"agreement": 0.9} for name in ("fp32", "nncf_ir", "edgerun_openvino", "untimed")}
    rows = {"fp32": {"speedup": None}, "nncf_ir": row(0.5), "edgerun_openvino": row(2.0)}
    told = {"model": "m", "targets": {"openvino": {"accuracy": accuracy, "latency": {"rows": rows}}}}
    root = ElementTree.fromstring(chart.svg([told]))
    said = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert said == ["nncf_ir: 0.50 times fp32, 10.00 % changed", "edgerun_openvino: 2.00 times fp32, 10.00 % changed"]
    slow, fast = (float(c.get("cx", 0)) for c in root.iter("{http://www.w3.org/2000/svg}circle") if len(c))
    assert slow < fast


def test_rows_can_be_whole_feeds(tmp_path: Path) -> None:
    frames, state = np.random.default_rng(0).random((3, 4, 2), np.float32), np.zeros((3, 1, 1, 5), np.float32)
    np.savez(tmp_path / "c.npz", frames=frames, state=state)
    second = Samples(tmp_path / "c.npz", whole=True)[1]
    assert np.array_equal(second["frames"], frames[1]) and second["state"].shape == (1, 1, 5)


def test_without_labels_agreement_counts(tmp_path: Path) -> None:
    first, second = np.zeros((2, 1, 4, 4), np.float32), np.zeros((2, 1, 4, 4), np.float32)
    first[:, 0, :2], second[0, 0, :2], second[1, 0, :1] = 1, 1, 1  # the whole mask, and half of it
    for name, outputs in (("a", first), ("b", second)):
        np.savez(tmp_path / f"{name}.npz", outputs=outputs, labels=np.full(2, -1))
    score = scores.scored(zoo.PPOCR_DET, tmp_path / "a.npz", tmp_path / "b.npz")
    assert score["agreement"] == score["accuracy"]["value"] == pytest.approx(0.75)
    assert score["drop"] == pytest.approx({"value": 0.25, "low": 0.0, "high": 0.5})


def test_an_environment_is_made_once_and_again_when_its_requirements_change(tmp_path: Path) -> None:
    wanted, folder = tmp_path / "wanted.txt", tmp_path / "environment"
    wanted.write_text("# nothing\n")
    environment = Environment(wanted, compile=("quark",))  # not installed: said, and no reason to stop
    python = made(environment, folder)
    prefix = measured([str(python), "-c", "import sys; print(sys.prefix)"], tmp_path).stdout.strip()
    assert Path(prefix).resolve() == folder.resolve()
    (folder / "seen").touch()
    assert made(environment, folder) == python and (folder / "seen").exists()
    wanted.write_text("# still nothing\n")
    made(environment, folder)
    assert not (folder / "seen").exists()


def test_every_peer_says_where_it_is_installed_and_what_it_writes() -> None:
    for variant in compare_peers.VARIANTS:
        if not variant.ours:
            assert peers.PEERS[variant.name][0] == variant.suffix
            assert ENVIRONMENTS[variant.environment].requirements.exists()
    own = Path(sys.executable)
    chosen = [v for v in compare_peers.VARIANTS if v.name in ("quark", "edgerun_openvino")]
    given = {"vendors": own, "peers": None}
    assert compare_peers.environments(chosen, Path("nowhere"), given) == {"vendors": own}  # the other is not made
    assert compare_peers.environments(chosen[1:], Path("nowhere"), given) == {}


# Stands in for an environment's Python: `python peers.py PEER model calibration OUTPUT` writes OUTPUT, drops a file
# where it runs and one in the temporary folder, and says its name.
_PYTHON = """#!/bin/sh
[ "$2" = modelopt ] && { echo "no kernel for it" >&2; exit 1; }
touch dropped "$TMPDIR/left"
echo model > "$5"
echo '{"told": "NAME", "folder": "'"$PWD"'", "temporary": "'"$TMPDIR"'"}'
"""


def test_a_variant_runs_in_its_environment_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pythons = {name: tmp_path / name for name in ENVIRONMENTS}
    for name, python in pythons.items():
        python.write_text(_PYTHON.replace("NAME", name))
        python.chmod(0o755)
    monkeypatch.setenv("EDGERUN_BENCH", str(tmp_path / "bench"))
    monkeypatch.setenv("EDGERUN_ZOO", str(tmp_path))
    zoo.CIFAR_CNN.onnx.parent.mkdir(parents=True)
    zoo.CIFAR_CNN.onnx.touch()
    zoo.CIFAR_CNN.calibration.touch()
    run = compare_peers.Comparison(pythons, fresh=False, repeat=2, seconds=1.0)
    by_name = {v.name: v for v in compare_peers.VARIANTS}
    for name, environment in (("ort_minmax", "peers"), ("quark", "vendors")):
        cell = run.quantized(zoo.CIFAR_CNN, by_name[name])
        assert cell["told"]["told"] == environment and cell["size"] == len("model\n") and cell["runs"] == 2
        assert cell["told"]["folder"] == cell["told"]["temporary"] and not Path(cell["told"]["folder"]).exists()
    monkeypatch.setattr(compare_peers, "ENOUGH", 0.0)
    assert run.quantized(zoo.CIFAR_CNN, by_name["ort_layers"])["runs"] == 1
    assert run.quantized(zoo.CIFAR_CNN, by_name["modelopt"]) == {"failed": "no kernel for it"}
    kept = json.loads((tmp_path / "bench" / "cells" / "cifar_cnn.quark.quantize.json").read_text())
    (tmp_path / "vendors").write_text("#!/bin/sh\nexit 1\n")  # kept: it is not asked again
    assert run.quantized(zoo.CIFAR_CNN, by_name["quark"]) == kept["result"]
