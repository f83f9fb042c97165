"""PyTorch in: modules, state_dicts, TorchScript, .pt2; strangers' code is never run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import torch  # noqa: E402
from torch import nn  # noqa: E402

from edgerun import registry  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.runtime import TensorSpec  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402

IMAGE = "image:float32[batch,3,height,width]"


class Net(nn.Module):
    """A small CNN with a BatchNorm, a Dropout and two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU6(), nn.Dropout())
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(image).mean((2, 3))
        return {"logits": self.head(features), "features": features}


class Branch(nn.Module):
    """Asks its data for the way: torch.export cannot follow that, TorchScript can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 1e9):
            return x
        return x * 2


def _read(path: Path, inputs: Sequence[str] = (), factory: str | None = None) -> Model:
    """The converter alone, in this process."""
    specs = [TensorSpec.parse(text) for text in inputs]
    return registry.converter("pytorch").convert(path, inputs=specs, factory=factory, opset=21).model


def test_module_keeps_names_and_dimensions() -> None:
    net = Net().train()
    found = convert(net, inputs=[IMAGE])
    assert [str(spec) for spec in found.inputs] == [IMAGE]
    assert [str(spec) for spec in found.outputs] == ["logits:float32[batch,5]", "features:float32[batch,4]"]
    assert net.training, "the user's own object was changed"
    parity = Parity.of(found)
    assert parity.reference == "float64" and all(o.relative_error <= 1e-5 for o in parity.outputs)
    assert len({shape for shape in parity.shapes}) == 3
    nodes = [(node.name, node.op_type) for node in found.ir.graph]
    assert "Constant" not in {op for _, op in nodes} and ("head/Gemm", "Gemm") in nodes
    assert not any(node.metadata_props for node in found.ir.graph), "the exporter's notes hold paths of this machine"


def test_the_same_module_gives_the_same_bytes() -> None:
    torch.manual_seed(0)
    net = Net()
    assert convert(net, inputs=[IMAGE]).to_bytes() == convert(net, inputs=[IMAGE]).to_bytes()


def test_inputs_by_name_in_any_order_and_integers() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 6)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            rows = self.table(ids) * mask.unsqueeze(-1)
            return rows.sum(1), mask.sum(1)

    found = convert(Words(), inputs=["mask:int64[batch,length]", "ids:int64[batch,length]"])
    assert [spec.name for spec in found.inputs] == ["ids", "mask"]
    assert [spec.name for spec in found.outputs] == ["output_0", "output_1"]
    assert Parity.of(found).passed


def test_unnamed_input_takes_the_parameters_name() -> None:
    assert convert(nn.Linear(4, 2), inputs=["[batch,4]"]).inputs[0].name == "input"


def test_an_input_that_is_an_output() -> None:
    class Through(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x + 1

    assert len(convert(Through(), inputs=["x:float32[batch,3]"]).outputs) == 2


def test_the_ladder_says_what_it_tried(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="edgerun"):
        found = convert(Branch(), inputs=["x:float32[batch,3]"])
    assert "torch.export cannot export this model" in caplog.text
    assert "exported by TorchScript scripting" in caplog.text
    assert "If" in {node.op_type for node in found.ir.graph}


def test_inputs_are_asked_for_and_checked() -> None:
    with pytest.raises(EdgerunError, match="do not tell their inputs"):
        convert(Net())
    with pytest.raises(EdgerunError, match="3 channels"):
        convert(Net(), inputs=["image:float32[batch,4,32,32]"])
    with pytest.raises(EdgerunError, match="does not run on these inputs"):
        convert(Net(), inputs=["image:int64[batch,3,32,32]"])
    with pytest.raises(EdgerunError, match="needs no factory"):
        convert(Net(), inputs=[IMAGE], factory="a:b")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state_dict of `nets:small`, which stands in the working folder."""
    code = "from torch import nn\n\ndef small():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())\n\n"
    code += "def number():\n    return 3\n\ndef leaves():\n    raise SystemExit(3)\n"
    (tmp_path / "nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.pt"
    torch.save(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).state_dict(), path)
    return path


def test_state_dict_in_the_limited_child(weights: Path) -> None:
    found = convert(weights, inputs=["x:float32[batch,4]"], factory="nets:small")
    assert found.history[-1].name == "converters/pytorch"
    assert found.history[-1].options["factory"] == "nets:small"


def test_checkpoint_around_a_state_dict(weights: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in torch.load(weights, weights_only=True).items()}
    torch.save({"epoch": 3, "state_dict": state}, weights)
    assert _read(weights, ["x:float32[batch,4]"], "nets:small").outputs[0].shape == ("batch", 3)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (None, "--factory module:callable"),
        ("nets", "not understood"),
        ("nets:large", "no attribute 'large'"),
        ("nosuch:large", "No module named 'nosuch'"),
        ("nets:number", "returned no nn.Module"),
        ("nets:leaves", r"nets:leaves failed[\s\S]*SystemExit: 3"),
        ("torch.nn:ReLU", "does not fit"),
    ],
)
def test_wrong_factory(weights: Path, factory: str | None, message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        _read(weights, ["x:float32[batch,4]"], factory)


def test_a_pickled_program_is_refused_and_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Net(), tmp_path / "whole.pt")
    torch.save({"weights": Payload()}, tmp_path / "hostile.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("whole.pt", "hostile.pt", "bare.pt"):
        with pytest.raises(EdgerunError) as caught:
            _read(tmp_path / name, [IMAGE], "nets:small")
        assert "state_dict" in str(caught.value) or name == "bare.pt"
        assert caught.value.exit_code == 2
    assert not (tmp_path / "ran").exists()


def test_damaged_file(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    whole = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EdgerunError):
        _read(tmp_path / "half.pt", [IMAGE], "nets:small")


def test_torchscript(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Net().eval()), tmp_path / "net.pt")
    found = convert(tmp_path / "net.pt", inputs=["image:float32[batch,3,16,16]"])
    assert [spec.name for spec in found.outputs] == ["logits", "features"]
    assert Parity.of(found).reference == "float64"
    with pytest.raises(EdgerunError, match="needs no factory"):
        _read(tmp_path / "net.pt", [IMAGE], "nets:small")


def _pt2(path: Path, net: nn.Module | None = None) -> Path:
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(net or Net().eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=dims)
    torch.export.save(program, path)
    return path


def test_pt2(tmp_path: Path) -> None:
    path = _pt2(tmp_path / "net.pt2")
    found = convert(path, inputs=["picture:float32[n,3,16,16]"])
    assert [str(spec) for spec in found.inputs] == ["picture:float32[n,3,16,16]"]
    assert [str(spec) for spec in found.outputs] == ["logits:float32[n,5]", "features:float32[n,4]"]
    assert Parity.of(found).reference == "float64"
    assert _read(path).inputs[0].shape[1:] == (3, 16, 16)
    with pytest.raises(EdgerunError, match="exported for other inputs"):
        _read(path, ["image:float32[n,3,20,16]"])


def test_pt2_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgerunError, match="training mode"):
        _read(_pt2(tmp_path / "net.pt2", nn.Sequential(nn.Dropout(), nn.Conv2d(3, 2, 1)).train()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.ops.aten.relu.default", "torch.os.system"),
        ("torch.ops.aten.relu.default", "torch.ops.load_library"),
        ("Symbol('s", "__import__('os').system('touch ran') or Symbol('s"),
        ("Symbol('s", "S('__import__') or Symbol('s"),
    ],
)
def test_pt2_that_would_run_code_is_refused(tmp_path: Path, old: str, new: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval()
    source = _pt2(tmp_path / "net.pt2", net)
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad:
        for name in archive.namelist():
            content = archive.read(name)
            bad.writestr(name, content.replace(old.encode(), new.encode()) if name.endswith("model.json") else content)
    with pytest.raises(EdgerunError, match="carries code"):
        _read(tmp_path / "bad.pt2")
    assert not Path("ran").exists()


def test_pt2_with_compiled_libraries_or_pickles_is_refused(tmp_path: Path) -> None:
    for name, content in {
        "net/data/aotinductor/model/model.so": b"",
        "net/data/constants/model_constants_config.json": json.dumps(
            {"config": {"c": {"path_name": "opaque_obj_0"}}}
        ).encode(),
    }.items():
        with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
            archive.writestr("net/models/model.json", b"{}")
            archive.writestr(name, content)
        with pytest.raises(EdgerunError, match="carries code"):
            _read(tmp_path / "net.pt2")


def test_what_no_route_can_export_says_why() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real if bool(x.sum() < 1e9) else x

    with pytest.raises(Unsupported, match=r"(?s)torch.export: .*TorchScript tracing: "):
        convert(Odd(), inputs=["x:float32[batch,3,3]"])
