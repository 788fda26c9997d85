"""`jax.experimental.buffer_callback`: a function of buffers, which passes them to torch and writes into others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attempts
import jax
import jax.numpy as jnp
import pytest
import torch
from attempts import SIZE, agree, like, x, z
from jax.experimental.buffer_callback import buffer_callback
from jax.sharding import AxisType


def call(fn: Callable, *args: Any, **options: Any) -> Any:
    def write(_context: object, out: Any, *buffers: Any) -> None:
        torch.from_dlpack(out).copy_(fn(*map(torch.from_dlpack, buffers)))

    return buffer_callback(write, like(args[0]), **options)(*args)


def test_any_pytorch_code():
    """yes"""
    agree(jax.jit(lambda x: call(attempts.doubled, x))(x(3)), 2 * x(3))


def test_arguments_without_a_copy():
    """yes"""
    seen, a = [], x(SIZE)
    jax.block_until_ready(jax.jit(lambda x: call(lambda t: seen.append(t.data_ptr()) or t, x))(a))
    assert seen[-1] == a.unsafe_buffer_pointer()


def test_large_results_without_a_copy():
    """you write into them"""
    seen = []

    def write(_context: object, out: Any, x: Any) -> None:
        seen.append(torch.from_dlpack(out).data_ptr())
        torch.sin(torch.from_dlpack(x), out=torch.from_dlpack(out))

    y = jax.jit(buffer_callback(write, like(x(SIZE))))(x(SIZE))
    agree(y, jnp.sin(x(SIZE)))
    assert seen[-1] == y.unsafe_buffer_pointer()
    with pytest.raises(jax.errors.JaxRuntimeError, match="must not return any values"):
        jax.block_until_ready(buffer_callback(lambda _context, out, x: torch.from_dlpack(x), like(x(3)))(x(3)))


def test_output_shapes():
    """declared"""
    with pytest.raises(TypeError, match="result_shape_dtypes"):
        buffer_callback(lambda _context, out, x: None)


def test_reverse_mode():
    """by hand"""
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(lambda x: call(torch.sin, x).sum())(x(3))
    attempts.reverse_mode_by_hand(call)


def test_forward_mode():
    """by hand"""
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.jvp(lambda x: call(torch.sin, x), (x(3),), (x(3),))
    attempts.forward_mode_by_hand(call)


def test_complex_gradients():
    """by hand"""
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(lambda z: jnp.abs(call(torch.square, z)).sum())(z())
    attempts.complex_gradients_by_hand(call)


def test_vmap():
    """as `vmap_method` says"""
    attempts.vmap_as_its_method_says(call)


def test_parameters_of_modules():
    """by hand"""
    layer = torch.nn.Linear(3, 3)
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in layer.named_parameters()}

    def write(_context: object, out: Any, params: Any, x: Any) -> None:
        tensors = jax.tree.map(torch.from_dlpack, (params, x))
        torch.from_dlpack(out).copy_(torch.func.functional_call(layer, *tensors).detach())

    y = jax.jit(buffer_callback(write, like(x(2, 3))))(params, x(2, 3))
    agree(y, x(2, 3) @ params["weight"].T + params["bias"])


def test_random_numbers():
    """by hand"""
    attempts.random_numbers_by_hand(call)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays(kind):
    """gathered on every device"""
    assert attempts.shapes_on_4_devices(call, kind) == [(8, 3)] * 4
    assert attempts.shapes_on_4_devices(call, kind, in_shard_map=True) == [(2, 3)] * 4


@pytest.mark.filterwarnings("error")
def test_a_kept_argument():
    """changes, unnoticed"""
    kept: list[torch.Tensor] = []
    a = x(SIZE)
    jax.block_until_ready(jax.jit(lambda x: call(lambda t: kept.append(t) or t, x))(a))
    agree(kept[-1].numpy(), x(SIZE))
    b = jax.block_until_ready(jax.jit(lambda a: a + 7, donate_argnums=0)(a))  # it reuses the memory of `a`
    agree(kept[-1].numpy(), x(SIZE) + 7)
    del b


@pytest.mark.filterwarnings("error")
def test_a_written_argument():
    """changes the JAX array, unnoticed"""
    a = x(SIZE)
    jax.block_until_ready(jax.jit(lambda x: call(lambda t: t.add_(1), x))(a))
    agree(a, x(SIZE) + 1)


def test_exceptions():
    """its text"""

    def fails(t: torch.Tensor) -> None:
        raise KeyError("mine")

    with pytest.raises(jax.errors.JaxRuntimeError, match="KeyError: 'mine'") as caught:
        jax.block_until_ready(call(fails, x(3)))
    assert caught.value.__cause__ is None


@pytest.mark.usefixtures("no_compiler")
def test_compiles_cpp():
    """no"""
    agree(jax.jit(lambda x: call(torch.sin, x))(x(7)), jnp.sin(x(7)))


def test_tpu():
    """no"""
    with pytest.raises(ValueError, match="not supported on tpu"):
        jax.jit(lambda x: call(torch.sin, x)).trace(x(3)).lower(lowering_platforms=("tpu",))
