"""A call with a side effect in a program of several devices: the first device runs it and sends its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._signature.signature import Leaf


def on_first_device(
    call: Callable[..., Any], results: Sequence[Leaf], mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> Callable[..., Any]:
    """`call` on whole operands, run by the first device of `mesh` alone.

    XLA refuses a custom call with a side effect that all devices would run ("side-effect HLO cannot have a replicated
    sharding"), and its partitioner Shardy drops a sharding that assigns one to a single device, except for JAX's own
    callbacks. So the call goes into a `jax.shard_map`.
    """
    axes = tuple(mesh.axis_names)

    def nothing(*_: jax.Array) -> list[jax.Array]:
        return [jnp.zeros(leaf.shape, leaf.dtype) for leaf in results]

    def on_a_device(*operands: jax.Array) -> tuple[jax.Array, ...]:
        y = jax.lax.cond(jax.lax.axis_index(axes) == 0, call, nothing, *operands)
        return tuple(_sum(yi, axes) for yi in y)

    spec = jax.sharding.PartitionSpec()
    return jax.shard_map(on_a_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _sum(y: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The sum over devices of which only one has bits that are set, exact: as integers, which XLA adds on all."""
    if jnp.iscomplexobj(y):
        return jax.lax.complex(_sum(y.real, axes), _sum(y.imag, axes))
    if y.dtype == jnp.bool_:
        return _sum(y.astype(jnp.uint8), axes) != 0
    bits = jax.lax.bitcast_convert_type(y, f"uint{8 * y.dtype.itemsize}")
    wide = bits if bits.dtype.itemsize >= 4 else bits.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(jax.lax.psum(wide, axes).astype(bits.dtype), y.dtype)
