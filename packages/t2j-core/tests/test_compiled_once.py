"""What a first call compiles is what later calls of its signature run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import compiles
from t2j_core import module2jax, torch2jax

x = jnp.arange(3.0)
here = np.arange(3, dtype=np.float32)


def total(*args, **kwargs):
    leaves = [leaf for leaf in jax.tree.leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    return sum(torch.sin(leaf).sum() for leaf in leaves if leaf.is_floating_point())


CALLS = {
    "array": lambda f: f(x),
    "two arrays": lambda f: f(x, x),
    "keyword": lambda f: f(x, y=x),
    "keyword alone": lambda f: f(y=x),
    "tree": lambda f: f({"a": x, "b": [x, (x,)]}),
    "NumPy": lambda f: f(here),
    "NumPy of 64 bits": lambda f: f(here.astype(np.float64)),
    "NumPy number": lambda f: f(x, np.float32(3)),
    "tensor": lambda f: f(torch.arange(3.0)),
    "tensor of 64 bits": lambda f: f(torch.arange(3.0, dtype=torch.float64)),
    "all of them": lambda f: f(x, here, torch.arange(3.0)),
    "number": lambda f: f(x, 2.0),
    "number first": lambda f: f(2.0, x),
    "text": lambda f: f(x, mode="sum"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_signature_is_compiled_once(name):
    for _ in range(2):  # the second wrapper as the first
        runs = []
        f = torch2jax(lambda *args, runs=runs, **kwargs: (runs.append(1), total(*args, **kwargs))[1])
        assert compiles(lambda f=f: CALLS[name](f)) == [1, 0, 0]
        assert len(runs) == 1 + 3  # one without data


@pytest.mark.parametrize("first", ["NumPy", "array"])
def test_arrays_of_numpy_and_jax_share_a_compiled_form(first):
    f = torch2jax(torch.sin)
    arguments = (here, x) if first == "NumPy" else (x, here)
    results = []
    assert compiles(lambda: results.append(np.asarray(f(arguments[len(results)]))), times=2) == [1, 0]
    np.testing.assert_array_equal(*results)


def test_a_key_a_module_and_no_argument():
    seeded = torch2jax(lambda t: t + torch.rand(3), rng=True)
    apply, variables = module2jax(torch.nn.Linear(3, 2))
    key = jax.random.key(0)
    for call in (lambda: seeded(key, x), lambda: apply(variables, x), torch2jax(lambda: torch.zeros(3))):
        assert compiles(call) == [1, 0, 0]


def test_examples_are_inferred_once():
    runs = []
    f = torch2jax(lambda t: (runs.append(t.device.type), t.sin())[1], torch.ones(3))
    assert runs == ["meta"]
    assert compiles(lambda: f(x), times=1) == [1]
    assert runs == ["meta", "cpu"]
