"""Calls without t2j-autodiff, in a process that cannot import it."""

from __future__ import annotations

import json

import pytest
from common import run_python

OPTIONS = {"depth": 2, "vmap_method": "auto", "nondiff_argnums": 0}

PRELUDE = """
import sys
sys.modules["t2j_autodiff"] = None  # as if it were not installed
import jax, jax.numpy as jnp, numpy as np, torch
from jax.sharding import PartitionSpec as P
from t2j_dist import torch2jax, torch2jax_without_vjp, module2jax
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
x = jnp.arange(16.0)
"""


def test_forward_calls():
    program = """
f = torch2jax(torch.sin, in_specs=P("data"), out_specs=P("data"), mesh=mesh)
np.testing.assert_allclose(f(x), np.sin(x), rtol=1e-6)
np.testing.assert_allclose(jax.jit(f)(x), np.sin(x), rtol=1e-6)
g = torch2jax_without_vjp(torch.sin, x, output_sharding_spec=P("data"), in_specs=P("data"), mesh=mesh)
np.testing.assert_allclose(g(x), np.sin(x), rtol=1e-6)
h = torch2jax(torch.sin, depth=0)
np.testing.assert_allclose(h(x), np.sin(x), rtol=1e-6)
apply, variables = module2jax(torch.nn.Linear(1, 1))
assert apply(variables, x[:, None]).shape == (16, 1)
print("right")
"""
    assert run_python(PRELUDE + program).stdout.endswith("right\n")


@pytest.fixture(scope="module")
def refusals():
    """For what needs t2j-autodiff, the type and the text of the exception."""
    program = f"""
import functools, json
f = torch2jax(torch.sin, in_specs=P("data"), out_specs=P("data"), mesh=mesh)
attempts = {{name: functools.partial(torch2jax, torch.sin, **{{name: value}}) for name, value in {OPTIONS}.items()}}
attempts["no limit"] = functools.partial(torch2jax, torch.sin, depth=None)
attempts["grad"] = lambda: jax.grad(lambda x: f(x).sum())(x)
refusals = {{}}
for name, attempt in attempts.items():
    try:
        attempt()
    except Exception as error:
        refusals[name] = [type(error).__name__, str(error)]
print(json.dumps(refusals))
"""
    return json.loads(run_python(PRELUDE + program).stdout.splitlines()[-1])


@pytest.mark.parametrize("attempt", [*OPTIONS, "no limit"])
def test_options_for_derivatives_name_the_extra(refusals, attempt):
    kind, text = refusals[attempt]
    assert kind == "ImportError"
    assert "\n" not in text
    assert (attempt if attempt in OPTIONS else "depth") in text
    assert 'pip install "t2j-dist[autodiff]"' in text


def test_differentiating_names_the_package(refusals):
    assert "t2j-autodiff" in refusals["grad"][1]
