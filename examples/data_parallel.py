"""Data parallel training of a PyTorch model from JAX: every device has all parameters and a part of the batch.

`jax.shard_map` runs the torch model on each device's rows and averages the loss. Its gradient is the average of the
gradients, in one all-reduce, because JAX knows that the parameters are equal on all devices. The script compares the
losses with the same training on one device.

    python examples/data_parallel.py                   # 8 virtual CPU devices
    python examples/data_parallel.py --processes 2     # in two processes
    srun --kill-on-bad-exit python examples/data_parallel.py --distributed
"""

import _launch

if __name__ == "__main__":
    OPTIONS = _launch.prepare(__doc__)

from typing import Any

import jax
from _waveforms import Batch, Loss, cross_entropy, train_and_compare, transformer
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from t2j_autodiff import TorchFunction, module2jax


def data_parallel_loss(apply: TorchFunction, mesh: Mesh) -> Loss:
    """Return the loss of the global batch, computed by every device for its own rows."""

    def loss(params: Any, batch: Batch) -> jax.Array:
        logits = apply({"params": params, "buffers": {}}, batch.signals)
        return jax.lax.pmean(cross_entropy(logits, batch.labels), "data")

    return jax.shard_map(loss, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())


def main() -> None:
    """Train the model data parallel."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    model = transformer()
    apply, variables = module2jax(model)
    specs = jax.tree.map(lambda _: P(), variables["params"])
    train_and_compare(model, data_parallel_loss(apply, mesh), variables["params"], specs, mesh)


if __name__ == "__main__":
    _launch.run(main, OPTIONS)
