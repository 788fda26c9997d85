"""`jax.pure_callback`: a function of NumPy arrays, which passes them to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attempts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from attempts import SIZE, agree, like, x, z
from jax.sharding import AxisType

# `pure_callback` passes read-only arrays, and torch warns about the first one.
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writ")


def call(fn: Callable, *args: Any, **options: Any) -> Any:
    def run(*arrays: jax.Array) -> np.ndarray:
        return fn(*(torch.from_numpy(np.asarray(array)) for array in arrays)).numpy()

    return jax.pure_callback(run, like(args[0]), *args, **options)


def test_any_pytorch_code():
    """yes"""
    agree(jax.jit(lambda x: call(attempts.doubled, x))(x(3)), 2 * x(3))


def test_arguments_without_a_copy():
    """no"""
    seen, a = [], x(SIZE)
    jax.block_until_ready(jax.jit(lambda x: call(lambda t: seen.append(t.data_ptr()) or t.clone(), x))(a))
    assert seen[-1] != a.unsafe_buffer_pointer()


def test_large_results_without_a_copy():
    """no"""
    kept: list[torch.Tensor] = []
    y = jax.jit(lambda x: call(lambda t: kept.append(t * 2) or kept[-1], x))(x(SIZE))
    agree(y, 2 * x(SIZE))
    assert kept[-1].data_ptr() != y.unsafe_buffer_pointer()


def test_output_shapes():
    """declared"""
    with pytest.raises(TypeError, match="result_shape_dtypes"):
        jax.pure_callback(np.sin)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Incorrect output shape"):
        jax.block_until_ready(jax.pure_callback(lambda a: np.zeros(4, "float32"), like(x(3)), x(3)))


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

    def run(params: dict[str, jax.Array], x: jax.Array) -> np.ndarray:
        tensors = jax.tree.map(lambda array: torch.from_numpy(np.asarray(array)), (params, x))
        return torch.func.functional_call(layer, *tensors).detach().numpy()

    y = jax.jit(lambda params, x: jax.pure_callback(run, like(x), params, x))(params, x(2, 3))
    agree(y, x(2, 3) @ params["weight"].T + params["bias"])


def test_random_numbers():
    """by hand"""
    attempts.random_numbers_by_hand(call)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays(kind):
    """gathered on one device"""
    assert attempts.shapes_on_4_devices(call, kind) == [(8, 3)]
    assert attempts.shapes_on_4_devices(call, kind, in_shard_map=True) == [(2, 3)] * 4


def test_a_kept_argument():
    """safe: it is a copy"""
    kept: list[torch.Tensor] = []
    a = x(SIZE)
    jax.block_until_ready(jax.jit(lambda x: call(lambda t: kept.append(t) or t.clone(), x))(a))
    b = jax.jit(lambda a: a + 7, donate_argnums=0)(a)  # it may reuse the memory of `a`
    agree(kept[-1].numpy(), x(SIZE))
    agree(b, x(SIZE) + 7)


def test_a_written_argument():
    """safe: it is a copy"""
    a = x(SIZE)
    agree(jax.jit(lambda x: call(lambda t: t.add_(1), x))(a), x(SIZE) + 1)
    agree(a, x(SIZE))
    with pytest.raises(jax.errors.JaxRuntimeError, match="read-only"):  # NumPy refuses; torch has only warned
        jax.block_until_ready(jax.pure_callback(lambda a: np.asarray(a).__iadd__(1), like(a), a))


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
