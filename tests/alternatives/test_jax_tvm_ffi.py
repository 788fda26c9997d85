"""`jax-tvm-ffi` 0.1: a function registered as an FFI target, which gets arguments and results as torch tensors."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable
from typing import Any

import attempts
import jax
import jax.numpy as jnp
import pytest
import torch
from attempts import SIZE, agree, like, x, z
from jax.sharding import AxisType

NUMBERS = itertools.count()


def target(write: Callable, platform: str = "cpu") -> str:
    """Register a function of the arguments and results, and return its name."""
    import jax_tvm_ffi  # it may not be installed
    import tvm_ffi

    name = f"t2j_alternatives.{next(NUMBERS)}"
    function = tvm_ffi.convert_func(write, tensor_cls=torch.Tensor)
    jax_tvm_ffi.register_ffi_target(name, function, ["args", "rets"], platform=platform, pass_owned_tensor=True)
    return name


def call(fn: Callable, *args: Any, **options: Any) -> Any:
    def write(*tensors: torch.Tensor) -> None:
        tensors[-1].copy_(fn(*tensors[:-1]))

    return jax.ffi.ffi_call(target(write), like(args[0]), **options)(*args)


def test_the_version():
    assert importlib.metadata.version("jax_tvm_ffi").startswith("0.1.")


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

    def write(x: torch.Tensor, out: torch.Tensor) -> None:
        seen.append(out.data_ptr())
        torch.sin(x, out=out)

    y = jax.jit(jax.ffi.ffi_call(target(write), like(x(SIZE))))(x(SIZE))
    agree(y, jnp.sin(x(SIZE)))
    assert seen[-1] == y.unsafe_buffer_pointer()


def test_output_shapes():
    """declared"""
    with pytest.raises(TypeError, match="result_shape_dtypes"):
        jax.ffi.ffi_call(target(lambda x, out: None))


def test_reverse_mode():
    """by hand"""
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda x: call(torch.sin, x).sum())(x(3))
    attempts.reverse_mode_by_hand(call)


def test_forward_mode():
    """by hand"""
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.jvp(lambda x: call(torch.sin, x), (x(3),), (x(3),))
    attempts.forward_mode_by_hand(call)


def test_complex_gradients():
    """no complex arrays"""
    with pytest.raises(jax.errors.JaxRuntimeError, match="Unsupported XLA data type C64"):
        jax.block_until_ready(call(torch.square, z()))


def test_vmap():
    """as `vmap_method` says"""
    attempts.vmap_as_its_method_says(call)


def test_parameters_of_modules():
    """by hand"""
    layer = torch.nn.Linear(3, 3)
    names = [name for name, _ in layer.named_parameters()]
    params = [jnp.asarray(p.detach().numpy()) for p in layer.parameters()]
    apply = lambda x, *tensors: torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), x).detach()
    agree(jax.jit(lambda params, x: call(apply, x, *params))(params, x(2, 3)), x(2, 3) @ params[0].T + params[1])


def test_random_numbers():
    """by hand"""
    attempts.random_numbers_by_hand(call)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays(kind):
    """gathered on every device"""
    assert attempts.shapes_on_4_devices(call, kind) == [(8, 3)] * 4
    assert attempts.shapes_on_4_devices(call, kind, in_shard_map=True) == [(2, 3)] * 4


def test_a_kept_argument():
    """an error"""
    kept: list[torch.Tensor] = []
    with pytest.raises(jax.errors.JaxRuntimeError, match="Leaked temp owned tensors"):
        jax.block_until_ready(call(lambda t: kept.append(t) or t, x(SIZE)))


@pytest.mark.filterwarnings("error")
def test_a_written_argument():
    """changes the JAX array, unnoticed"""
    a = x(SIZE)
    jax.block_until_ready(jax.jit(lambda x: call(lambda t: t.add_(1), x))(a))
    agree(a, x(SIZE) + 1)


def test_exceptions():
    """its message"""

    def fails(t: torch.Tensor) -> None:
        raise KeyError("mine")

    with pytest.raises(jax.errors.JaxRuntimeError, match="'mine'") as caught:
        jax.block_until_ready(call(fails, x(3)))
    assert "KeyError" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.usefixtures("no_compiler")
def test_compiles_cpp():
    """no"""
    agree(jax.jit(lambda x: call(torch.sin, x))(x(7)), jnp.sin(x(7)))


def test_tpu():
    """no"""
    with pytest.raises(ValueError, match="Unsupported platform: tpu"):
        target(lambda x, out: None, platform="tpu")
