"""Programs for eight GPUs: one call for each, and only the collectives that the same program in jnp has."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
import t2j_autodiff
import t2j_dist
import torch
from h100 import COUNT, aval, mesh_of, program
from jax.sharding import PartitionSpec as P

ROWS, N = 64 * COUNT, 128  # a shard has more elements than are computed again in a backward without asking
X, W = aval(ROWS, N, spec=P("data")), aval(N, N, spec=P())
SPECS = {"in_specs": (P("data"), P()), "out_specs": P("data")}


def layer(x, w):
    return torch.tanh(x @ w)


def in_jnp(x, w):
    return jnp.tanh(x @ w)


def sharded(function, **options):
    return jax.shard_map(function, mesh=mesh_of(), **SPECS, **options)


WRAPPED = {
    "shard_map": lambda **options: sharded(t2j_autodiff.torch2jax(layer, **options)),
    "shard_map, check_vma=False": lambda **options: sharded(t2j_autodiff.torch2jax(layer, **options), check_vma=False),
    "t2j_dist": lambda **options: t2j_dist.torch2jax(layer, mesh=mesh_of(), **SPECS, **options),
}


@functools.cache
def of_jnp(transform, **options):
    return program(transform(sharded(in_jnp, **options)), X, W)


TRANSFORMS = {
    "forward": (lambda f: f, 1),
    "gradient of the weights": (lambda f: jax.value_and_grad(lambda x, w: (f(x, w) ** 2).sum(), 1), 2),
    "gradient of the batch": (lambda f: jax.grad(lambda x, w: (f(x, w) ** 2).sum(), 0), 2),
    "tangent": (lambda f: lambda x, w: jax.jvp(lambda x: f(x, w), (x,), (x,)), 1),
}
every_wrapper = pytest.mark.parametrize("wrapped", WRAPPED)


@every_wrapper
@pytest.mark.parametrize("name", TRANSFORMS)
def test_collectives_are_those_of_jax(wrapped, name):
    transform, calls = TRANSFORMS[name]
    options = {"check_vma": False} if "False" in wrapped else {}
    found = program(transform(WRAPPED[wrapped]()), X, W)
    assert found.collectives == of_jnp(transform, **options).collectives
    assert len(found.calls) == calls
    assert not found.moves
    assert all(f"f32[{ROWS // COUNT},{N}]" in call.text for call in found.calls)


@every_wrapper
@pytest.mark.parametrize("residuals", ["recompute", "graph"])
def test_residuals_stay_on_their_device(wrapped, residuals):
    transform, calls = TRANSFORMS["gradient of the weights"]
    options = {"check_vma": False} if "False" in wrapped else {}
    found = program(transform(WRAPPED[wrapped](residuals=residuals)), X, W)
    assert found.collectives == of_jnp(transform, **options).collectives
    assert len(found.calls) == calls


@every_wrapper
def test_two_layers_hand_shards_over(wrapped):
    f = WRAPPED[wrapped]()
    found = program(lambda x, w: f(f(x, w), w), X, W)
    first, second = found.calls
    assert found.operand(second, 0) == first
    assert not found.collectives


def test_a_plain_call_of_a_sharded_array_gathers_it():
    """What `docs` warn of: nothing splits a call that is outside of `jax.shard_map`."""
    f = t2j_autodiff.torch2jax(layer)
    assert program(f, X, W).collectives == {"all-gather": 1}
    assert not program(f, aval(ROWS, N, spec=P()), W).collectives


def test_a_batch_stays_on_its_device():
    f = t2j_dist.torch2jax(layer)
    args = aval(COUNT, ROWS, N, spec=P("data")), W
    batch = jax.shard_map(jax.vmap(f, (0, None)), mesh=mesh_of(), **SPECS)
    found = program(batch, *args)
    assert len(found.calls) == 1
    assert not found.collectives
    assert not found.moves
