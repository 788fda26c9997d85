"""What a user tries with every library. `call(fn, *args)` calls a torch function from JAX through the library.

The function of `call` returns a tensor like its first argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Call = Callable[..., Any]
SIZE = 1 << 16  # 256 KiB of float32


# An operator of an extension: PyTorch does not see what it does.
EXTENSION = torch.library.Library("t2j_alternatives", "DEF")
EXTENSION.define("doubled(Tensor x) -> Tensor")
EXTENSION.impl("doubled", lambda x: torch.from_numpy(x.numpy() * 2), "CPU")
EXTENSION.impl("doubled", torch.empty_like, "Meta")
doubled = torch.ops.t2j_alternatives.doubled


def like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def x(*shape: int) -> jax.Array:
    return jnp.linspace(0.1, 1, int(np.prod(shape)), dtype=jnp.float32).reshape(shape)


def z() -> jax.Array:
    """Complex numbers."""
    return jnp.array([1 + 2j, -0.5 + 1j, 2 - 1j], dtype=jnp.complex64)


def agree(mine: Any, other: Any) -> None:
    np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=1e-5, atol=1e-6)


def with_pullback(call: Call, fn: Callable, pullback: Callable) -> Callable:
    """`fn` of one argument, with a reverse rule by hand: a `jax.custom_vjp` whose `pullback(x, ct)` is torch too."""
    f = jax.custom_vjp(lambda x: call(fn, x))
    f.defvjp(lambda x: (f(x), x), lambda x, ct: (call(pullback, x, ct),))
    return f


def sine_with_tangents(call: Call) -> Callable:
    """`torch.sin`, with forward rules by hand: its derivative `torch.cos` is called likewise, and has a rule too."""
    sine, cosine = (jax.custom_jvp(functools.partial(call, fn)) for fn in (torch.sin, torch.cos))
    sine.defjvp(lambda xs, ts: (sine(*xs), cosine(*xs) * ts[0]))
    cosine.defjvp(lambda xs, ts: (cosine(*xs), -sine(*xs) * ts[0]))
    return sine


def reverse_mode_by_hand(call: Call) -> None:
    f = with_pullback(call, torch.sin, lambda x, ct: torch.cos(x) * ct)
    agree(jax.jit(jax.grad(lambda x: f(x).sum()))(x(3)), jnp.cos(x(3)))


def forward_mode_by_hand(call: Call) -> None:
    f = sine_with_tangents(call)
    agree(jax.jvp(f, (x(3),), (x(3),))[1], jnp.cos(x(3)) * x(3))
    agree(jax.jit(jax.hessian(lambda x: f(x).sum()))(x(3)), jnp.diag(-jnp.sin(x(3))))


def complex_gradients_by_hand(call: Call) -> None:
    f = with_pullback(call, torch.square, lambda z, ct: 2 * z * ct)
    loss = lambda f: lambda z: jnp.abs(f(z)).sum()
    agree(jax.jit(jax.grad(loss(f)))(z()), jax.grad(loss(jnp.square))(z()))


def random_numbers_by_hand(call: Call) -> None:
    """The words of a JAX key seed a generator of torch."""

    def draw(x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
        return x + torch.rand(x.shape, generator=generator)

    f = jax.jit(lambda key, x: call(draw, x, jax.random.key_data(key)))
    first, again, other = (np.asarray(f(jax.random.key(seed), x(3))) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.any(first == other)


def mesh_of(kind: AxisType) -> Mesh:
    return jax.make_mesh((4,), ("x",), axis_types=(kind,), devices=jax.devices()[:4])


def put(array: jax.Array, mesh: Mesh) -> jax.Array:
    """The array, split along its first axis."""
    return jax.device_put(array, NamedSharding(mesh, P("x")))


def shapes_on_4_devices(call: Call, kind: AxisType, *, in_shard_map: bool = False) -> list[tuple[int, ...]]:
    """The shapes that the torch function sees, call by call, of an array of shape (8, 3) on four devices."""
    seen = []

    def fn(x: torch.Tensor) -> torch.Tensor:
        if not x.is_meta:
            seen.append(tuple(x.shape))
        return torch.sin(x)

    f, mesh = lambda x: call(fn, x), mesh_of(kind)
    if in_shard_map:
        f = jax.shard_map(f, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    with jax.set_mesh(mesh):
        agree(jax.block_until_ready(jax.jit(f)(put(x(8, 3), mesh))), jnp.sin(x(8, 3)))
    return seen


def vmap_as_its_method_says(call: Call) -> None:
    """Without `vmap_method` an error; "sequential" runs one example at a time, "broadcast_all" the batch at once."""
    runs: list[tuple[int, ...]] = []
    f = lambda x, **options: call(lambda t: runs.append(tuple(t.shape)) or torch.sin(t), x, **options)
    with pytest.raises(NotImplementedError, match="vmap_method"):
        jax.vmap(f)(x(4, 3))
    for method, seen in (("sequential", [(3,)] * 4), ("broadcast_all", [(4, 3)])):
        runs.clear()
        agree(jax.vmap(lambda x, method=method: f(x, vmap_method=method))(x(4, 3)), jnp.sin(x(4, 3)))
        assert runs == seen
