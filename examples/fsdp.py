"""Fully sharded training of a PyTorch model from JAX: each device keeps a part of the parameters and of Adam's moments.

The parameters of a stage of the model are one vector, split over the devices. A stage gathers its parameters just
before torch runs it. `jax.checkpoint` releases them, and gathers them again for the backward (XLA on CPU merges the
two). The transpose of the gather is a reduce-scatter, so each device gets the gradients of its own part. The script
compares the losses with the same training on one device.

    python examples/fsdp.py                   # 8 virtual CPU devices
    python examples/fsdp.py --processes 2     # in two processes
    srun --kill-on-bad-exit python examples/fsdp.py --distributed
"""

import _launch

if __name__ == "__main__":
    OPTIONS = _launch.prepare(__doc__)

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from _waveforms import Batch, Loss, cross_entropy, train_and_compare, transformer
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from t2j_autodiff import module2jax

Stage = Callable[[jax.Array, jax.Array], jax.Array]  # (a device's part of the parameters, input) -> output


def sharded_stage(module: torch.nn.Module, devices: int) -> tuple[Stage, jax.Array]:
    """Return a module as a function of a device's part of its parameters, and the vector of all parameters to split."""
    apply, variables = module2jax(module)
    vector, unravel = ravel_pytree(variables["params"])

    @jax.checkpoint
    def stage(part: jax.Array, x: jax.Array) -> jax.Array:
        whole = jax.lax.all_gather(part, "data", tiled=True)
        return apply({"params": unravel(whole[: vector.size]), "buffers": {}}, x)

    return stage, jnp.pad(vector, (0, -vector.size % devices))


def fully_sharded_loss(stages: list[Stage], mesh: Mesh) -> Loss:
    """Return the loss of the global batch, computed by every device for its own rows."""

    def loss(parts: Any, batch: Batch) -> jax.Array:
        x = batch.signals
        for stage, part in zip(stages, parts, strict=True):
            x = stage(part, x)
        return jax.lax.pmean(cross_entropy(x, batch.labels), "data")

    return jax.shard_map(loss, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P())


def main() -> None:
    """Train the model fully sharded."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    model = transformer()
    stages, vectors = zip(*(sharded_stage(module, mesh.size) for module in model), strict=True)
    specs = [P("data")] * len(stages)
    train_and_compare(model, fully_sharded_loss(list(stages), mesh), list(vectors), specs, mesh)


if __name__ == "__main__":
    _launch.run(main, OPTIONS)
