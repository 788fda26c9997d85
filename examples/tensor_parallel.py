"""Tensor and data parallel training of PyTorch layers from JAX: feed-forward blocks on a 2-D mesh.

Along "model" each device has some of the hidden units: some rows of the first weight (column-parallel, because its rows
are the columns of the product) and the same columns of the second (row-parallel). Each half is a torch function of the
local shapes. The second half returns a part of a sum, and `jax.lax.psum` adds the parts. Along "data" the devices split
the batch. The script compares the losses with the same training on one device.

    python examples/tensor_parallel.py                   # 8 virtual CPU devices
    python examples/tensor_parallel.py --processes 2     # in two processes
    srun --kill-on-bad-exit python examples/tensor_parallel.py --distributed

The scheme is that of Megatron-LM (Shoeybi et al., 2019, https://arxiv.org/abs/1909.08053).
"""

import _launch

if __name__ == "__main__":
    OPTIONS = _launch.prepare(__doc__)

from typing import Any

import jax
import torch
from _waveforms import KINDS, SAMPLES, Batch, Loss, cross_entropy, train_and_compare
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from t2j_autodiff import torch2jax
from torch.nn.functional import gelu, layer_norm, linear

BLOCKS = 2
HIDDEN = 256  # units of a block, split along "model"

SPECS = {  # for the parameters of a block; a torch weight is [outputs, inputs]
    "norm.weight": P(),
    "norm.bias": P(),
    "up.weight": P("model", None),
    "up.bias": P("model"),
    "down.weight": P(None, "model"),
    "down.bias": P(),
}


class FeedForward(torch.nn.Module):
    """A residual block, as one device computes it: f32[n, SAMPLES] to f32[n, SAMPLES]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(SAMPLES)
        self.up = torch.nn.Linear(SAMPLES, HIDDEN)
        self.down = torch.nn.Linear(HIDDEN, SAMPLES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the block's output to its input."""
        return x + self.down(gelu(self.up(self.norm(x))))


def classifier() -> torch.nn.Sequential:
    """Return the model: blocks, and a linear layer that classifies the kind of a signal."""
    torch.manual_seed(0)
    return torch.nn.Sequential(*(FeedForward() for _ in range(BLOCKS)), torch.nn.Linear(SAMPLES, KINDS))


@torch2jax
def up(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The first half of a block, for the hidden units of this device: f32[n, SAMPLES] to f32[n, units]."""
    normal = layer_norm(x, (SAMPLES,), p["norm.weight"], p["norm.bias"])
    return gelu(linear(normal, p["up.weight"], p["up.bias"]))


@torch2jax
def down(p: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """The second half without the bias: the contribution of these hidden units to the output."""
    return linear(hidden, p["down.weight"])


head = torch2jax(linear)


def tensor_parallel_loss(mesh: Mesh, specs: Any) -> Loss:
    """Return the loss of the global batch; every device computes its hidden units for its rows."""

    def loss(params: Any, batch: Batch) -> jax.Array:
        x = batch.signals
        *blocks, last = params
        for p in blocks:
            x = x + jax.lax.psum(down(p, up(p, x)), "model") + p["down.bias"]
        logits = head(x, last["weight"], last["bias"])
        return jax.lax.pmean(cross_entropy(logits, batch.labels), "data")

    return jax.shard_map(loss, mesh=mesh, in_specs=(specs, P("data")), out_specs=P())


def main() -> None:
    """Train the model tensor and data parallel."""
    width = 2 if jax.device_count() % 2 == 0 else 1
    mesh = jax.make_mesh((jax.device_count() // width, width), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    model = classifier()
    params = [{name: tensor.detach().numpy() for name, tensor in part.named_parameters()} for part in model]
    specs = [*([SPECS] * BLOCKS), {"weight": P(), "bias": P()}]
    train_and_compare(model, tensor_parallel_loss(mesh, specs), params, specs, mesh)


if __name__ == "__main__":
    _launch.run(main, OPTIONS)
