"""What PyTorch's exporter writes, made smaller: the same numbers from fewer nodes, and masks as torch defines them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from edgerun.converters import _ort  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402
from tests.converters.conftest import ops  # noqa: E402


class Attention(nn.Module):
    """Two heads of four; `keep` says which keys a query may look at."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).view(x.shape[0], -1, 2, 4).transpose(1, 2) for f in self.qkv)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        return mixed.transpose(1, 2).reshape(x.shape[0], -1, 8)


def test_a_fully_masked_row_gives_zero_as_in_torch() -> None:
    torch.manual_seed(0)
    net = Attention()
    found = convert(net, inputs=["x:float32[batch,length,8]", "keep:bool[batch,length]"])
    assert Parity.of(found).outputs[0].relative_error <= 1e-6
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    keep = np.array([[False, False, False], [True, False, True]])
    got = _ort.runner(found.to_bytes())({"x": x, "keep": keep})["output"]
    with torch.no_grad():
        want = net.eval()(torch.from_numpy(x), torch.from_numpy(keep)).numpy()
    assert not got[0].any() and got[1].any()
    assert np.abs(got - want).max() <= 1e-6


def test_attention_needs_no_arithmetic_on_shapes() -> None:
    found = convert(Attention(), inputs=["x:float32[batch,length,8]", "keep:bool[batch,length]"])
    made = ops(found)
    assert not {"Shape", "Slice", "Concat", "Gather"} & set(made)
    assert made["Reshape"] == 4 and made["Transpose"] == 5  # q, k, v and back; the keys' own


@pytest.mark.parametrize(("cell", "hidden"), [(nn.LSTM, 512), (nn.LSTM, 20), (nn.GRU, 600)])
def test_recurrent_weights_are_constants(cell: type[nn.LSTM | nn.GRU], hidden: int) -> None:
    """No Slice, Concat or Unsqueeze of weights at any size: integer kernels and packing look for these."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(8, hidden, 2, batch_first=True, bidirectional=hidden == 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.cell(x)[0]
            return made

    found = convert(Net(), inputs=["x:float32[batch,time,8]"])
    nodes = [node for node in found.ir.graph if node.op_type == cell.__name__]
    assert len(nodes) == 2
    assert all(value is not None and value.const_value is not None for node in nodes for value in node.inputs[1:4])
    assert not [n for n in found.ir.graph if all(v is None or v.const_value is not None for v in n.inputs)]
    assert found.weight_bytes() < 1.02 * sum(4 * p.numel() for p in Net().parameters())


def test_no_mask_no_guard() -> None:
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    assert ops(convert(Plain(), inputs=["x:float32[batch,2,length,4]"])) == {
        "Transpose": 1, "Mul": 2, "MatMul": 2, "Softmax": 1,
    }  # fmt: skip


def test_a_recurrence_reshapes_by_constants() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 4, bidirectional=True, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.lstm(x)[0]
            return y

    found = convert(Both(), inputs=["x:float32[batch,time,5]"])
    made = ops(found)
    assert made["Reshape"] == 1 and made["Slice"] == 1 and "Mul" not in made  # the slice is the first state's
    assert len({shape for shape in Parity.of(found).shapes}) == 3 and Parity.of(found).passed


def test_what_changes_nothing_is_left_out() -> None:
    class Idle(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = F.pad(x * 1.0 + 0.0, (0, 0)).float()
            return torch.relu(y), x * 1.0

    found = convert(Idle(), inputs=["x:float32[batch,3]"])
    assert ops(found) <= Counter(["Relu", "Mul", "Identity"]), "a result of the model itself stays a node"
    assert ops(found).total() <= 2


def test_sizes_that_are_computed_stay_computed() -> None:
    """Two sizes that only the input tells: no constant could stand for both."""

    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0] * x.shape[1], x.shape[2] // 2, 2)

    found = convert(Halves(), inputs=["x:float32[batch,length,width]"])
    assert Parity.of(found).passed and "Shape" in ops(found)
