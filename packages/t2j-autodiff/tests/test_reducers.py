"""Torch functions where XLA applies a function to single numbers inside of a kernel: a custom call ends the process."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from t2j_autodiff import TransformError, torch2jax

X = jnp.arange(1.0, 4.0)
add, sin = torch2jax(torch.add), torch2jax(torch.sin)


def reduced(f, x=X):
    return jax.lax.reduce(x, jnp.float32(0), f, (0,))


REDUCERS = {
    "reduce": lambda: reduced(add),
    "jit": lambda: jax.jit(lambda x: reduced(add, x))(X),
    "vmap": lambda: jax.vmap(lambda x: reduced(add, x))(X[None]),
    "of a jitted function": lambda: reduced(jax.jit(add)),
    "beside a plain call": lambda: jax.jit(lambda x: add(x[0], x[1]) + reduced(add, x))(X),
    "of pairs": lambda: jax.lax.reduce((X, X), (X[0], X[0]), lambda a, b: (add(a[0], b[0]), a[1]), (0,)),
    "reduce_window": lambda: jax.lax.reduce_window(X, jnp.float32(0), add, (2,), (1,), "VALID"),
    "apply": lambda: X.at[1].apply(sin),
    "apply to some": lambda: X.at[jnp.array([0, 2])].apply(sin),
}


@pytest.mark.parametrize("name", REDUCERS)
def test_a_reducer_is_refused(name):
    with raises(TransformError, what=re.compile(r"`(jax\.lax\.reduce|x\.at)")):
        REDUCERS[name]()


REMEDIES = {
    "frompyfunc": lambda f: jnp.frompyfunc(f, 2, 1, identity=0.0).reduce(X),
    "associative_scan": lambda f: jax.lax.associative_scan(f, X)[-1],
    "scan": lambda f: jax.lax.scan(lambda c, x: (f(c, x), None), jnp.float32(0), X)[0],
    "functools": lambda f: functools.reduce(f, X),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_reduces_with_a_torch_function(name):
    np.testing.assert_allclose(np.asarray(REMEDIES[name](add)), 6.0)


def test_the_derivative_of_a_reduction_is_made_of_other_operations():
    np.testing.assert_allclose(np.asarray(jax.grad(functools.partial(reduced, add))(X)), 1.0)
