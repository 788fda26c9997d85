"""Calls without t2j-autodiff, in a process that cannot import it."""

from __future__ import annotations

import subprocess
import textwrap

import pytest
from common import run_python

PRELUDE = """
import sys
sys.modules["t2j_autodiff"] = None  # as if it were not installed
import jax, jax.numpy as jnp, numpy as np, torch
from jax.sharding import PartitionSpec as P
import t2j_dist
from t2j_dist import torch2jax, torch2jax_without_vjp, module2jax
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
x = jnp.arange(16.0)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return run_python(PRELUDE + textwrap.dedent(program), check=False)


def test_forward_calls():
    done = run("""
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
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")


@pytest.mark.parametrize("option", ["depth=2", "depth=None", 'vmap_method="auto"', "nondiff_argnums=0"])
def test_options_for_derivatives_name_the_extra(option):
    done = run(f"torch2jax(torch.sin, {option})")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert option.split("=")[0] in last
    assert 'pip install "t2j-dist[autodiff]"' in last


def test_differentiating_names_the_package():
    done = run("""
        f = torch2jax(torch.sin, in_specs=P("data"), out_specs=P("data"), mesh=mesh)
        jax.grad(lambda x: f(x).sum())(x)
    """)
    assert done.returncode == 1
    assert "t2j-autodiff" in done.stderr
