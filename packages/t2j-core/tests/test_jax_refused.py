"""JAX inside a torch function is refused, whatever is called and however often."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from helpers import JaxError, here, x
from t2j_core import JaxInsideTorchError, Size, j2t, last_error, module2jax, torch2jax

pytestmark = pytest.mark.usefixtures("intact")

cached = jax.jit(lambda a: a + 1)
closed_over = jnp.ones(3)


OPERATIONS = {
    "numpy_like": lambda t: jnp.sin(1.0),
    "on_an_array": lambda t: closed_over + 1,
    "comparison": lambda t: bool((closed_over == 1).all()),
    "jitted": lambda t: jax.jit(lambda: jnp.ones(3))(),
    "jitted_before": lambda t: cached(closed_over),
    "gradient": lambda t: jax.grad(lambda a: (a * a).sum())(closed_over),
    "key": lambda t: jax.random.key(0),
    "random": lambda t: jax.random.normal(jax.random.PRNGKey(0)),
    "index": lambda t: closed_over[0],
    "vmap": lambda t: jax.vmap(jnp.sin)(closed_over),
    "loop": lambda t: jax.lax.fori_loop(0, 2, lambda i, v: v, 0),
    "wrapped": lambda t: inner(closed_over),
    "wrapped_on_the_argument": lambda t: inner(t),
    "wrapped_module": lambda t: apply(variables, closed_over),
}


inner = torch2jax(torch.cos)


apply, variables = module2jax(torch.nn.Linear(3, 3))


def warm_up():
    cached(closed_over)
    inner(closed_over)
    inner(closed_over)
    apply(variables, closed_over)


@pytest.mark.parametrize("name", OPERATIONS)
def test_jax_inside_the_function_is_refused_at_inference(name):
    warm_up()
    f = torch2jax(lambda t: (OPERATIONS[name](t), t)[1])
    for call in (f, f, jax.jit(f)):
        with raises(JaxInsideTorchError, what=("<lambda> calls JAX", "deadlock"), remedy="arguments"):
            call(x)
    np.testing.assert_array_equal(jnp.sin(jnp.zeros(3)), np.zeros(3))


@pytest.mark.parametrize("name", OPERATIONS)
def test_jax_inside_the_function_is_refused_at_the_call(name):
    """However often it is tried."""
    warm_up()
    f = torch2jax(lambda t: (OPERATIONS[name](t), t)[1], output_shapes=Size(2, 3))
    g = jax.jit(f)
    for call in (f, f, f, f, g, g, g, g):
        with pytest.raises((JaxInsideTorchError, *JaxError)) as info:
            jax.block_until_ready(call(x))
        assert isinstance(last_error(), JaxInsideTorchError)
        assert "JaxInsideTorchError" in str(info.value) or info.value is last_error()
    np.testing.assert_array_equal(cached(closed_over), np.full(3, 2))


def test_jax_inside_that_is_caught_does_no_harm():
    def function(t):
        try:
            jnp.sin(1.0)
        except JaxInsideTorchError:
            return t + 1
        return t

    np.testing.assert_array_equal(torch2jax(function)(x), here + 1)


def test_what_only_reads_a_jax_array_is_fine():
    constant = jnp.arange(3.0)
    f = torch2jax(lambda t: t + j2t(constant) + torch.from_numpy(np.array(constant)))
    for call in (f, f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), here + 2 * np.arange(3))


def test_after_a_refusal_jax_works_on_every_thread():
    f = torch2jax(lambda t: (jnp.sin(1.0), t)[1], output_shapes=Size(2, 3))

    def work(_):
        for _ in range(3):
            with contextlib.suppress(JaxInsideTorchError):
                f(x)
        return float(jnp.sum(jax.jit(lambda a: a + 1)(jnp.ones(3))))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [6.0] * 8
