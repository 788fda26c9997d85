"""What a function keeps of its results is no alias of what JAX got."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import UNCHECKED, JaxError, check_whole
from t2j_core import Size, TensorEscapeError, _compat, last_error, torch2jax

pytestmark = pytest.mark.usefixtures("nothing_escaped")


@pytest.mark.parametrize("keep", [lambda t: t, lambda t: t.numpy(), lambda t: t[1:]], ids=["tensor", "numpy", "view"])
def test_a_large_result_that_the_function_keeps_and_writes(keep):
    """The function's cache is no alias of what JAX got."""
    kept = []

    def function(t):
        y = torch.sin(t)
        for old in kept:
            old[:] = 7
        if not t.is_meta:
            kept.append(keep(y))
        return y

    f = torch2jax(function)
    results = [f(jnp.full(1 << 19, float(i))) for i in range(4)]
    for i, result in enumerate(results):
        np.testing.assert_allclose(result, np.sin(np.full(1 << 19, float(i), np.float32)), rtol=1e-5)


@pytest.mark.parametrize("same_program", [True, False])
def test_a_pointer_to_a_large_result_that_is_kept_later_is_an_error_once(same_program, monkeypatch):
    # Torch before 2.10 copies results once its compiler is loaded, which another test may have done.
    monkeypatch.setattr(_compat, "dynamo_is_loaded", lambda: False)
    flag, kept = [], []

    def function(t):
        y = t * 2
        if flag:
            kept.append(y.numpy())
        return y

    wrapped = torch2jax(function)
    f = jax.jit(wrapped) if same_program else jax.jit(lambda t: wrapped(t))
    size = 1 << 19
    for i in range(UNCHECKED):
        np.testing.assert_array_equal(f(jnp.full(size, float(i))), np.full(size, 2.0 * i))
    f = f if same_program else jax.jit(lambda t: wrapped(t))
    flag.append(1)
    with pytest.raises((TensorEscapeError, *JaxError)):
        jax.block_until_ready(f(jnp.full(size, 1.0)))
    check_whole(last_error(), "function keeps output", 'outputs="copy"')
    kept.clear()
    results = [f(jnp.full(size, float(i))) for i in range(3)]
    for array in kept:
        array.fill(77)
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, np.full(size, 2.0 * i))


def test_results_stay_when_the_function_changes_what_it_returned():
    state = torch.zeros(3)

    def function(t):
        state.add_(1)
        return state

    f = torch2jax(function, output_shapes=Size(3))
    results = [f(jnp.ones(3)) for _ in range(4)]
    assert [float(r[0]) for r in results] == [1, 2, 3, 4]


def test_results_that_are_copied_together_keep_their_bits():
    names = ("float32", "float8_e5m2", "uint16", "uint32", "uint64", "bool", "complex64", "bfloat16", "int64")
    sources = [torch.arange(6).to(getattr(torch, name)).reshape(2, 3) for name in names for _ in range(2)]
    sources = [s.requires_grad_() if s.dtype == torch.float32 else s for s in sources]
    with jax.enable_x64(True):
        results = torch2jax(lambda: tuple(sources), outputs="copy")()
    for mine, other in zip(results, sources, strict=True):
        assert np.asarray(mine).tobytes() == other.detach().view(torch.uint8).numpy().tobytes()
