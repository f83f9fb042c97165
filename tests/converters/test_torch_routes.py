"""The ladder of PyTorch's routes: which one is taken, what is refused and why, the smallest part that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
import torch  # noqa: E402
from torch import nn  # noqa: E402

from edgerun.cli import main  # noqa: E402
from edgerun.errors import Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402

NETS = """
import torch
from torch import nn

class Eigen(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x)

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.body = nn.Sequential(nn.ReLU(), Eigen(), nn.Tanh())

    def forward(self, x):
        return self.body(self.first(x))

def whole():
    return Whole()
"""


def _routes(model: Model) -> list[tuple[str, str | None]]:
    return [(told["route"], told["failed"]) for told in model.history[-1].options["routes"]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run `edgerun ARGUMENTS…` in this process, through its main door."""

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr("sys.argv", ["edgerun", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return run


class Switch(nn.Module):
    """Another layer for other data."""

    def __init__(self) -> None:
        super().__init__()
        self.cold, self.warm = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cold(x)
        if bool(x.mean() > 0):
            y = self.warm(x)
        result: torch.Tensor = y
        return result


def test_a_branch_on_data_keeps_both_sides() -> None:
    found = convert(Switch(), inputs=["x:float32[batch,4]"])
    assert "If" in {node.op_type for node in found.ir.graph}
    routes = _routes(found)
    assert [route for route, _ in routes] == ["torch.export", "TorchScript tracing", "TorchScript scripting"]
    assert "asks the data for its way at test_torch_routes.py" in str(routes[0][1]) and "mean() > 0" in str(
        routes[0][1]
    )
    assert "one side of a branch at test_torch_routes.py" in str(routes[1][1])
    assert routes[2][1] is None


def test_a_plain_network_takes_the_first_route() -> None:
    assert _routes(convert(nn.Linear(4, 2), inputs=["x:float32[batch,4]"])) == [("torch.export", None)]


def test_only_fixed_sizes_are_refused_with_the_sizes_to_fix() -> None:
    class Rows(nn.Module):
        """A branch that torch.export cannot follow, a size that tracing fixes, numpy that is no TorchScript."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool(x.sum() > 1e9):
                return x
            return x + float(x.detach().numpy().shape[0])

    with pytest.raises(Unsupported) as caught:
        convert(Rows(), inputs=["x:float32[batch,3]"])
    assert caught.value.what == "PyTorch exports this model with fixed sizes only"
    assert "--input 'x:float32[1,3]'" in str(caught.value.do)
    assert "holds for the example's sizes only" in str(caught.value.got) or "something else" in str(caught.value.got)
    assert Parity.of(convert(Rows(), inputs=["x:float32[1,3]"])).passed


def test_a_rewrite_of_the_source_is_tried_and_the_source_is_the_judge() -> None:
    class Masked(nn.Module):
        """nn.Transformer looks at its mask's values, which no exporter follows."""

        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
            self.decoder = nn.TransformerDecoder(layer, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
            y: torch.Tensor = self.decoder(x, x, tgt_mask=mask)
            return y

    net = Masked()
    found = convert(net, inputs=["x:float32[batch,length,8]"])
    assert _routes(found)[-1] == ("torch.export with masks as given", None)
    assert [str(spec) for spec in found.outputs] == ["output:float32[batch,length,8]"]
    assert "forward" not in vars(net.decoder), "the user's own object was changed"


def test_dimensions_behind_a_recurrence_keep_the_users_names() -> None:
    """The exporter declares the example's length behind an LSTM."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 4, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.lstm(x)[0] * 1.0
            return result

    found = convert(Tagger(), inputs=["x:float32[batch,time,5]"])
    assert [str(spec) for spec in found.outputs] == ["output:float32[batch,time,8]"]


def test_the_source_stays_in_eval_mode_when_a_route_fails() -> None:
    """A failed TorchScript export leaves a module in training mode: its dropout would then judge."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool(x.sum() > 1e9):
                return x
            result: torch.Tensor = self.drop(x)
            return result

    assert Parity.of(convert(Dropping(), inputs=["x:float32[batch,8]"])).outputs[0].relative_error == 0


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state_dict of `nets:whole` in the working folder."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    torch.save({"first.weight": torch.randn(3, 3), "first.bias": torch.randn(3)}, tmp_path / "net.pt")
    return tmp_path


def test_what_no_route_exports_ends_in_its_smallest_part(nets: Path, cli: Callable[..., Any]) -> None:
    words = ["net.pt", "-o", "out.onnx", "--factory", "nets:whole", "--input", "x:float32[batch,3,3]"]
    ran = cli("convert", *words, "--reproduction", "shown.py")
    assert ran.code == 3, ran.err
    assert "smallest part that fails alone: body.1 (Eigen)" in ran.err
    assert "torch.export: ONNX has no operator for aten._linalg_eigh" in ran.err
    assert "compute what has no ONNX operator before or after the model" in ran.err
    assert sorted(path.name for path in nets.iterdir() if path.is_file()) == ["net.pt", "nets.py", "shown.py"]
    text = (nets / "shown.py").read_text()
    assert "get_submodule('body.1')" in text and "torch.randn((2, 3, 3)" in text and "{0: 'd0'}" in text
    shown = subprocess.run([sys.executable, "shown.py"], capture_output=True, text=True, timeout=300)
    assert shown.returncode == 1 and "_linalg_eigh" in shown.stderr
    again = cli("convert", *words, "--reproduction", "shown.py")
    assert again.code == 2 and "the output exists" in again.err


def test_json_says_which_route(nets: Path, cli: Callable[..., Any]) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), nets / "net.ts")
    ran = cli("convert", "net.ts", "-o", "out.onnx", "--input", "x:float32[batch,3]", "--json")
    assert json.loads(ran.out)["routes"] == [{"route": "TorchScript", "failed": None}]


def test_a_part_whose_call_cannot_be_written_is_recorded_by_the_program(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            result: torch.Tensor = torch.linalg.eigvalsh(pair[0] + pair[1])
            return result

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.pair((x, x))
            return y

    with pytest.raises(Unsupported, match=r"smallest part that fails alone: pair \(Pair\)"):
        convert(Outer(), inputs=["x:float32[batch,3,3]"], reproduction=tmp_path / "shown.py")
    spaces: dict[str, Any] = {}
    exec((tmp_path / "shown.py").read_text(), spaces)
    with pytest.raises(Exception, match="(?s).*"):
        spaces["reproduce"](Outer())
