"""The example of the predecessor for several devices: as it was, and through `module2jax`.

As it was means: with another import line, the names of the devices changed and the numbers made small.
"""

from __future__ import annotations

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import agree, in_torch, mesh_of, put, use
from jax import shard_map
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from t2j_dist import module2jax, torch2jax, torch2jax_with_vjp, torch2jax_without_vjp, tree_t2j
from torch import nn

WIDE, REPEATS = 64, 3


def _setattr(mod, key, delim: str = "."):
    if delim not in key:
        setattr(mod, key, None)
    else:
        key, key_remaining = key.split(delim, 1)
        _setattr(getattr(mod, key), key_remaining, delim=delim)


def _strip_model(model):
    for key in dict(model.named_parameters()).keys():
        _setattr(model, key, delim=".")


@pytest.fixture
def mesh():
    devices = jax.devices("cpu")
    mesh = jax.make_mesh((len(devices),), ("x",), devices=devices)
    with use(mesh):
        yield mesh


def test_the_example_for_several_devices(mesh):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDE, 32), nn.SiLU(), nn.Linear(32, 16)).to("cpu")
    judge = copy.deepcopy(model)
    params = dict(model.named_parameters())
    [p.requires_grad_(False) for p in params.values()]
    _strip_model(model)

    def call_model_torch(x, params):
        ys = []
        for _ in range(REPEATS):
            local_model_skeleton = copy.deepcopy(model)
            ys.append(torch.func.functional_call(local_model_skeleton, params, x))
        return sum(ys)

    params_sharding = NamedSharding(mesh, P())  # fully replicated
    batch_sharding = NamedSharding(mesh, P("x", None))  # sharded along batch

    x = jax.jit(
        lambda: jax.random.normal(jax.random.key(0), (128, WIDE)),
        out_shardings=batch_sharding,
    )()

    params = jax.tree.map(lambda p: jax.device_put(p, params_sharding), tree_t2j(params))

    @jax.jit
    @functools.partial(shard_map, in_specs=(batch_sharding.spec, P()), out_specs=batch_sharding.spec)
    def fwd_fn(x, params):
        return torch2jax(call_model_torch, x, params, output_shapes=x[:, :16])(x, params)

    y = fwd_fn(x, params)
    expected = REPEATS * judge(torch.from_numpy(np.array(x)))
    agree(y, expected.detach().numpy())
    assert y.sharding.spec[0] == "x"


def test_the_same_through_module2jax(mesh):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDE, 32), nn.SiLU(), nn.Linear(32, 16))
    apply, variables = module2jax(model, in_specs=(P(), P("x")), out_specs=P("x"))
    variables = jax.device_put(variables, NamedSharding(mesh, P()))
    x = put(jax.random.normal(jax.random.key(0), (128, WIDE)), mesh, "x")
    expected = REPEATS * model(torch.from_numpy(np.array(x)))
    y = jax.jit(lambda variables, x: sum(apply(variables, x) for _ in range(REPEATS)))(variables, x)
    agree(y, expected.detach().numpy())
    assert y.sharding.spec[0] == "x"


def test_output_sharding_spec():
    mesh = mesh_of("Auto", data=8)
    x, w = put(jnp.ones((16, 3)), mesh, "data"), put(jnp.ones((3, 4)), mesh)
    expected = np.tanh(np.full((16, 4), 3.0))
    for wrap in (torch2jax, torch2jax_without_vjp):
        f = wrap(
            in_torch, x, w, output_shapes=jax.ShapeDtypeStruct((16, 4), jnp.float32), output_sharding_spec=P("data")
        )
        y = jax.jit(f)(x, w)
        agree(y, expected)
        assert y.sharding.spec == P("data")
    with pytest.warns(DeprecationWarning, match="is now `torch2jax`"):
        f = torch2jax_with_vjp(in_torch, x, w, output_sharding_spec=NamedSharding(mesh, P("data")))
    agree(jax.jit(jax.grad(lambda w: f(x, w).sum()))(w), np.full((3, 4), 16 * (1 - np.tanh(3.0) ** 2)), atol=1e-3)


def test_the_name_of_the_predecessor_for_forward_calls_has_no_derivative():
    from t2j_dist import T2jError

    f = torch2jax_without_vjp(torch.sin)
    agree(f(jnp.ones(3)), jnp.sin(jnp.ones(3)))
    with pytest.raises(T2jError):
        jax.grad(lambda x: f(x).sum())(jnp.ones(3))


def test_copies_keep_the_specs():
    f = torch2jax(torch.sin, in_specs=P("x"), out_specs=P("x"), mesh=mesh_of("Auto", x=1))
    for other in (copy.copy(f), copy.deepcopy(f)):
        assert repr(other) == repr(f)
        np.testing.assert_allclose(other(jnp.zeros(2)), np.zeros(2))
    unbound = torch2jax(torch.sin, out_specs=P("x"))
    assert repr(pickle.loads(pickle.dumps(unbound))) == repr(unbound)
