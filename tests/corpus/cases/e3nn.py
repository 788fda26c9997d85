"""Equivariant layers of e3nn. It compiles them to TorchScript, which pickles and runs like a module."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from corpus_case import Case, TorchCase, TorchTask
from e3nn import nn as layers
from e3nn import o3
from torch import Tensor, nn


class Convolution(nn.Module):
    """A message-passing layer on points in space."""

    def __init__(self) -> None:
        super().__init__()
        self.harmonics = o3.Irreps.spherical_harmonics(2)
        self.product = o3.FullyConnectedTensorProduct("2x0e+1x1o", self.harmonics, "2x0e+1x1o", shared_weights=False)
        self.weights = layers.FullyConnectedNet([3, 8, self.product.weight_numel], torch.nn.functional.silu)

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        edge = positions[:, None] - positions[None] + 0.1
        length = edge.norm(dim=-1)
        basis = torch.exp(-((length[..., None] - torch.tensor([0.5, 1.0, 1.5])) ** 2))
        angles = o3.spherical_harmonics(self.harmonics, edge, normalize=True, normalization="component")
        sources = features[None].expand(len(features), -1, -1)
        return self.product(sources, angles, self.weights(basis)).mean(1)


def harmonics() -> TorchTask:
    fn = lambda x: o3.spherical_harmonics([0, 1, 2, 3], x, normalize=True)
    return TorchTask(fn, (torch.randn(4, 3),))


def wigner() -> TorchTask:
    fn = lambda a, b, c: o3.wigner_D(2, a, b, c)
    return TorchTask(fn, tuple(torch.rand(2) for _ in range(3)))


def gate() -> TorchTask:
    act = torch.nn.functional.silu
    net = layers.Gate("2x0e", [act], "1x0e", [torch.sigmoid], "1x1o")
    return TorchTask(net, (torch.randn(3, net.irreps_in.dim),))


TASKS = {
    "linear": lambda: TorchTask(o3.Linear("2x0e+2x1o", "1x0e+1x1o"), (torch.randn(3, 8),)),
    "tensor product": lambda: TorchTask(
        o3.FullyConnectedTensorProduct("1x0e+1x1o", "1x1o", "1x0e+1x1e+1x1o"), (torch.randn(3, 4), torch.randn(3, 3))
    ),
    "tensor square": lambda: TorchTask(o3.TensorSquare("1x0e+1x1o"), (torch.randn(3, 4),)),
    "spherical harmonics": harmonics,
    "wigner matrices": wigner,
    "gate": gate,
    "norm activation": lambda: TorchTask(
        layers.NormActivation(o3.Irreps("1x0e+1x1o"), torch.sigmoid, bias=True), (torch.randn(3, 4),)
    ),
    "batch norm": lambda: TorchTask(layers.BatchNorm("1x0e+1x1o").eval(), (torch.randn(5, 4),)),
    "convolution": lambda: TorchTask(Convolution(), (torch.randn(4, 5), torch.randn(4, 3))),
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make) for name, make in TASKS.items())
