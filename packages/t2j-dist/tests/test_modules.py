"""Variables of modules on meshes: whole, split by specs, and split by `jax.shard_map`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import raises
from helpers import agree, mesh_of, put, use
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from t2j_core import ArgumentError
from t2j_dist import module2jax, t2j

LAYER = torch.nn.Linear(6, 16)
X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
EXPECTED = LAYER(torch.from_numpy(X)).detach().numpy()
SPLIT = {"params": {"weight": P("data"), "bias": P("data")}, "buffers": {}}


def test_variables_follow_other_arguments_to_a_mesh():
    mesh = mesh_of("Auto", data=8)
    apply, variables = module2jax(LAYER)
    inside = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")))
    agree(inside(variables, X), EXPECTED)
    agree(inside(variables, put(X, mesh, "data")), EXPECTED)
    with_specs, _ = module2jax(LAYER, in_specs=(P(), P("data")), out_specs=P("data"), mesh=mesh)
    agree(with_specs(variables, put(X, mesh, "data")), EXPECTED)
    weight = variables["params"]["weight"]
    assert jax.jit(lambda w, x: x @ w.T)(weight, put(X, mesh, "data")).sharding.spec == P("data")


def test_variables_follow_to_an_explicit_mesh():
    mesh = mesh_of("Explicit", data=8)
    with use(mesh):
        apply, variables = module2jax(LAYER, in_specs=(P(), P("data")), out_specs=P("data"))
        agree(jax.jit(apply)(variables, put(X, mesh, "data")), EXPECTED)


def test_arrays_over_tensors_go_where_new_arrays_go():
    device = jax.devices()[3]
    array = t2j(torch.ones(3))
    with jax.default_device(device):
        assert (array + jnp.ones(3)).devices() == {device}
        assert (t2j(torch.ones(3)) + jnp.ones(3)).devices() == {device}
    moved = jax.device_put(array, device)
    assert (moved + array).devices() == {device}


def test_variables_that_specs_split():
    # Each device has some of the outputs: the layer sees a part of the weight.
    mesh = mesh_of("Auto", data=8)
    apply, variables = module2jax(LAYER, in_specs=(SPLIT, P()), out_specs=P(None, "data"), mesh=mesh)
    for call in (apply, jax.jit(apply)):
        agree(call(variables, X), EXPECTED)
    with raises(ArgumentError, what="['bias']", expected="(16,)", got="(8,)"):
        apply({"params": {**variables["params"], "bias": jnp.ones(8)}, "buffers": {}}, X)


def test_variables_that_shard_map_splits():
    mesh = mesh_of("Auto", data=8)
    apply, variables = module2jax(LAYER)
    inside = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=(SPLIT, P()), out_specs=P(None, "data")))
    agree(inside(jax.device_put(variables, NamedSharding(mesh, P())), X), EXPECTED)


def test_a_shape_that_no_split_explains():
    mesh = mesh_of("Auto", data=8)
    apply, variables = module2jax(torch.nn.Linear(6, 3))
    wrong = {"params": {**variables["params"], "bias": jnp.ones(1)}, "buffers": {}}
    inside = jax.shard_map(apply, mesh=mesh, in_specs=(P(), P()), out_specs=P())
    with raises(ArgumentError, what="['bias']", expected="(3,)", got="(1,)"):
        jax.jit(inside)(wrong, X)


def test_copies():
    layer = torch.nn.Linear(64, 64)
    _, variables = module2jax(layer, copy=True)
    before = layer.weight.detach().clone().numpy()
    torch.nn.init.zeros_(layer.weight)
    agree(variables["params"]["weight"], before)
