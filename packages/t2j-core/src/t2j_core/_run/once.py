"""A call with a side effect in a program of several devices: the first device runs it, and tells the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._signature.signature import Leaf


def on_first_device(call: Callable[..., Any], results: Sequence[Leaf], mesh: Any) -> Callable[..., Any]:
    """`call` on whole operands, run by the first device of `mesh` alone.

    XLA refuses a custom call with a side effect that all devices would run ("side-effect HLO cannot have a replicated
    sharding"), and its partitioner Shardy drops the sharding that puts one on a single device, unless it is a callback
    of JAX's own. So the call goes into a program per device.
    """
    axes = tuple(mesh.axis_names)

    def nothing(*_: Any) -> list[Any]:
        return [jnp.zeros(leaf.shape, leaf.dtype) for leaf in results]

    def on_a_device(*operands: Any) -> tuple[Any, ...]:
        y = jax.lax.cond(jax.lax.axis_index(axes) == 0, call, nothing, *operands)
        return tuple(_sum(yi, axes) for yi in y)

    spec = jax.sharding.PartitionSpec()
    return jax.shard_map(on_a_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _sum(y: Any, axes: tuple[str, ...]) -> Any:
    """The sum over devices of which one alone has something, to the bit: as integers, that XLA adds everywhere."""
    if jnp.iscomplexobj(y):
        return jax.lax.complex(_sum(y.real, axes), _sum(y.imag, axes))
    if y.dtype == jnp.bool_:
        return _sum(y.astype(jnp.uint8), axes) != 0
    bits = jax.lax.bitcast_convert_type(y, f"uint{8 * y.dtype.itemsize}")
    wide = bits if bits.dtype.itemsize >= 4 else bits.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(jax.lax.psum(wide, axes).astype(bits.dtype), y.dtype)
