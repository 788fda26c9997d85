"""`compile=True` on a mesh: the function of a shard is compiled once, for all devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from helpers import agree, mesh_of, put
from jax.sharding import PartitionSpec as P
from t2j_dist import module2jax, torch2jax

X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


def test_the_gradient_of_a_sharded_call():
    layer = torch.nn.Linear(6, 3)
    mesh, specs = mesh_of("Auto", data=8), {"in_specs": (P(), P("data")), "out_specs": P("data")}
    plain, variables = module2jax(layer, **specs)
    compiled, _ = module2jax(layer, compile=True, mesh=mesh, **specs)
    gradient = lambda apply: jax.jit(jax.grad(lambda v, x: (apply(v, x) ** 2).sum()))
    got = gradient(compiled)(variables, put(X, mesh, "data"))
    local, _ = module2jax(layer)
    agree(got["params"]["weight"], gradient(local)(variables, jnp.asarray(X))["params"]["weight"])
    assert "compiled: forward(Linear)" in compiled.explain() and "not compiled" not in compiled.explain()


def test_every_device_runs_what_was_compiled_once():
    runs = []

    def f(x):
        runs.append(tuple(x.shape))
        return torch.tanh(x) * 2

    mesh = mesh_of("Auto", data=8)
    g = torch2jax(f, in_specs=P("data"), out_specs=P("data"), mesh=mesh, compile=True)
    call = jax.jit(g)
    agree(call(put(X, mesh, "data")), np.tanh(X) * 2)
    assert set(runs) == {(2, 6)}
    traced = len(runs)
    agree(call(put(X + 1, mesh, "data")), np.tanh(X + 1) * 2)
    agree(g(put(X, mesh, "data")), np.tanh(X) * 2)
    assert len(runs) == traced
