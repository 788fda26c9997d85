"""Operations that write into XLA's buffer in a way of t2j, not by an `.out` overload: their bits are torch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import torch2jax
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
ROWS, WIDTH = 3000, 100  # 1.2 MB of float32

redirects = pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "ignore_compile_internals"),
    reason="torch before 2.10 cannot compile under a dispatch mode, so results are copied once that is loaded",
)


def embedding_gradient(*, rows=ROWS, padding=-1, scale=False):
    return lambda grad, indices: aten.embedding_dense_backward(grad, indices, rows, padding, scale)


def gradient_and_indices(dtype, *shape, most=ROWS, width=WIDTH):
    rng = np.random.default_rng(sum(shape))
    grad = torch.from_numpy(rng.normal(size=(*shape, width))).to(dtype)
    return grad, torch.from_numpy(rng.integers(0, most, shape).astype(np.int32))


def run(function, *tensors, calls=3):
    """The bits of each call are those of torch; returns the line of `explain()` about the output."""
    expected = function(*tensors)
    f = torch2jax(function)
    for _ in range(calls):
        got = f(*(jnp.from_dlpack(t.contiguous()) for t in tensors))
        assert got.dtype == jnp.from_dlpack(expected).dtype
        assert np.asarray(got).tobytes() == np.asarray(jnp.from_dlpack(expected)).tobytes()
    return next(line for line in f.explain().splitlines() if "output:" in line)


@redirects
@pytest.mark.parametrize("options", [{}, {"padding": 0}, {"padding": ROWS - 1}, {"padding": ROWS}], ids=str)
@pytest.mark.parametrize("most", [ROWS, 2])
def test_the_gradient_of_an_embedding_is_written_in_place(options, most):
    tensors = gradient_and_indices(torch.float32, 50, 7, most=most)
    assert "written in place by aten.embedding_dense_backward" in run(embedding_gradient(**options), *tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_of_short_floats_are_rounded_as_torch_does(dtype):
    tensors = gradient_and_indices(dtype, 400, most=3, width=2 * WIDTH)
    assert "copied" in run(embedding_gradient(), *tensors)


def test_a_gradient_scaled_by_frequency():
    tensors = gradient_and_indices(torch.float32, 400, most=3)
    assert "copied" in run(embedding_gradient(scale=True), *tensors)


def test_the_gradient_of_an_embedding_in_double_precision():
    with jax.enable_x64(True):
        run(embedding_gradient(), *gradient_and_indices(torch.float64, 400, most=3))


@pytest.mark.parametrize("outside", [-1, ROWS])
def test_indices_outside_the_table_are_ignored_as_in_torch(outside):
    grad, indices = gradient_and_indices(torch.float32, 9)
    indices[3] = outside
    run(embedding_gradient(), grad, indices)


def test_an_embedding_that_nobody_uses():
    run(embedding_gradient(), *gradient_and_indices(torch.float32, 0))


def test_padding_and_scale_that_change_between_calls():
    options = [{}, {"padding": 1}, {"scale": True}, {}, {"padding": 1}]
    functions = [embedding_gradient(**each) for each in options]
    grad, indices = gradient_and_indices(torch.float32, 400, most=3)
    f = torch2jax(
        lambda k, *tensors: functions[int(k)](*tensors), output_shapes=jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    )
    for k, function in enumerate(functions):
        got = f(jnp.int32(k), jnp.from_dlpack(grad), jnp.from_dlpack(indices))
        np.testing.assert_array_equal(np.asarray(got), function(grad, indices).numpy())


@redirects
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", torch.relu),
        ("clone", lambda t: t.T.contiguous()),
        ("clone", lambda t: t[:1].expand(ROWS, WIDTH).clone()),
        ("_to_copy", lambda t: t.int()),
        ("_to_copy", lambda t: t.T.to(torch.bfloat16, memory_format=torch.contiguous_format)),
    ],
)
def test_an_operation_without_an_overload_that_writes(name, function):
    tensor = torch.randn(3 * ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    tensor[0, :4] = torch.tensor([-0.0, 0.0, torch.nan, torch.inf])
    assert f"written in place by aten.{name}" in run(function, tensor)


@redirects
def test_an_overload_that_torch_generated_is_not_used():
    # It makes the result elsewhere and copies it.
    assert torch.Tag.generated in aten.roll.out.tags
    tensor = torch.arange(ROWS * WIDTH, dtype=torch.float32).reshape(ROWS, WIDTH)
    assert "aten.roll.default cannot write into given memory" in run(lambda t: t.roll(1, 0), tensor)
