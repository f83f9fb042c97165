"""Graph networks and control flow in plain PyTorch: what scatters along edges, branches on data, or loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.torch_nets import case

GRAPH = ("nodes:float32[nodes,6]", "edges:int64[2,edges]")


@case("gcn", *GRAPH)
class GCN(nn.Module):
    """Kipf and Welling 2017: neighbours summed by index_add, scaled by the square roots of both degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 3)])

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        loops = torch.arange(nodes.shape[0]).expand(2, -1)
        source, target = torch.cat([edges, loops], 1)
        ones = torch.ones(source.shape[0], dtype=nodes.dtype)
        scale = torch.zeros(nodes.shape[0], dtype=nodes.dtype).index_add(0, target, ones).rsqrt()
        weight = (scale[source] * scale[target]).unsqueeze(1)
        x = nodes
        for index, layer in enumerate(self.layers):
            x = layer(x)
            x = torch.zeros_like(x).index_add(0, target, x[source] * weight)
            x = torch.relu(x) if index == 0 else x
        return x


@case("gat", *GRAPH)
class GAT(nn.Module):
    """Veličković et al. 2018: attention over each node's incoming edges, softmax by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.score = nn.Linear(6, 8, bias=False), nn.Linear(16, 1, bias=False)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        loops = torch.arange(nodes.shape[0]).expand(2, -1)
        source, target = torch.cat([edges, loops], 1)
        x = self.project(nodes)
        scores = F.leaky_relu(self.score(torch.cat([x[target], x[source]], 1)), 0.2).squeeze(1)
        largest = torch.full((nodes.shape[0],), -1e9, dtype=x.dtype).scatter_reduce(0, target, scores, "amax")
        weights = torch.exp(scores - largest[target])
        sums = torch.zeros(nodes.shape[0], dtype=x.dtype).scatter_add(0, target, weights)
        mixed = (weights / sums[target]).unsqueeze(1) * x[source]
        return torch.zeros_like(x).scatter_add(0, target.unsqueeze(1).expand_as(mixed), mixed)


@case("graph_sage", *GRAPH)
class GraphSAGE(nn.Module):
    """Hamilton et al. 2017: the mean of the neighbours beside the node itself."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.near = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        sums = torch.zeros_like(nodes)
        sums.index_add_(0, target, nodes[source])
        degree = torch.zeros(nodes.shape[0], dtype=nodes.dtype).index_add(
            0, target, torch.ones_like(target, dtype=nodes.dtype)
        )
        return F.normalize(self.own(nodes) + self.near(sums / degree.clamp(min=1).unsqueeze(1)), dim=1)


class _Gated(nn.Module):
    """As Silero's voice detector: the branch by the input's length, a state in and out, a loop over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long, self.cell = nn.Linear(8, 4), nn.Linear(16, 4), nn.LSTMCell(4, 4)

    def forward(self, audio: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: list[Tensor] = []
        for step in range(audio.size(1)):
            frame = audio[:, step]
            x = self.short(frame) if frame.size(1) == 8 else self.long(frame)
            h, c = self.cell(torch.relu(x), (h, c))
            found.append(torch.sigmoid(h.mean(1)))
        return torch.stack(found, 1), h, c


@case("scripted_loop", "audio:float32[batch,frames,16]", "h:float32[batch,4]", "c:float32[batch,4]")
def scripted_loop() -> nn.Module:
    """`_Gated` as TorchScript: If and Loop in the graph."""
    return torch.jit.script(_Gated())


class _Switch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cold, self.warm = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.mean() > 0):
            y = self.warm(x)
        else:
            y = self.cold(x)
        result: Tensor = y
        return result


@case("scripted_if", "x:float32[batch,4]")
def scripted_if() -> nn.Module:
    """A branch on the data's mean as TorchScript."""
    return torch.jit.script(_Switch())


@case("cond", "x:float32[batch,4]")
class Cond(nn.Module):
    """The same branch with torch.cond."""

    def __init__(self) -> None:
        super().__init__()
        self.cold, self.warm = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.cond(x.mean() > 0, lambda v: self.warm(v), lambda v: self.cold(v), (x,))
        return y


@case("data_branch", "x:float32[batch,4]")
def data_branch() -> nn.Module:
    """The same branch in Python: no route may follow one side of it in silence."""
    return _Switch()


@case("early_exit", "x:float32[batch,4]")
class EarlyExit(nn.Module):
    """A check of the input that raises: a guard, which TorchScript's tracing leaves behind."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise ValueError("the input is not finite")
        y: Tensor = self.net(x)
        return y


@case("bincount", *GRAPH)
class Degrees(nn.Module):
    """How many edges end at each node, by bincount."""

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        return nodes * torch.bincount(edges[1], minlength=nodes.shape[0]).unsqueeze(1)


@case("nonzero", "x:float32[rows,4]")
class Chosen(nn.Module):
    """Rows chosen by a mask: the output's size depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x.sum(1) > 0] * 2


@case("eigenvalues", "x:float32[batch,3,3]")
class Eigenvalues(nn.Module):
    """What ONNX has no operator for: refused, with the smallest part that shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.linalg.eigvalsh(self.before(x) @ self.before(x).mT)
        return y
