"""`has_side_effect=True` in programs of several devices: a call has its effect once, or once per shard."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t2j_autodiff
import t2j_core
import t2j_dist
import torch
from common import raises
from helpers import mesh_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

X = np.arange(8, dtype=np.float32)
MESH = mesh_of("Auto", d=4)


def counted(package=t2j_autodiff, fn=lambda x: x + 1, **options):
    """A function whose calls can be counted, already inferred."""
    calls = []
    f = package.torch2jax(lambda *x: calls.append(0) or fn(*x), has_side_effect=True, **options)
    return f, calls


def on(mesh, spec):
    return jax.device_put(jnp.asarray(X), NamedSharding(mesh, spec))


def scanned(f):
    return lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=1)[0]


TRANSFORMS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "cond": lambda f: jax.jit(lambda x: jax.lax.cond(x[0] < 1, f, lambda x: x, x)),
    "scan": lambda f: jax.jit(scanned(f)),
    "checkpoint": lambda f: jax.jit(jax.checkpoint(f)),
    "vmap": lambda f: jax.jit(jax.vmap(f)),
    "vmap of cond": lambda f: jax.jit(jax.vmap(lambda x: jax.lax.cond(x < 100, f, lambda x: x, x))),
}


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_call_on_replicated_arrays_has_its_effect_once(name, kind):
    f, calls = counted()
    g, x = TRANSFORMS[name](f), on(mesh_of(kind, d=4), P())
    np.testing.assert_array_equal(g(x), X + 1)
    calls.clear()
    np.testing.assert_array_equal(g(x), X + 1)
    assert len(calls) == 1


@pytest.mark.parametrize("package", [t2j_core, t2j_autodiff, t2j_dist])
def test_arrays_that_are_split_are_gathered(package):
    f, calls = counted(package)
    x = on(MESH, P("d"))
    jax.block_until_ready(f(x))
    calls.clear()
    np.testing.assert_array_equal(f(x), X + 1)
    assert len(calls) == 1


def test_the_mesh_of_a_context():
    f, calls = counted()
    with jax.set_mesh(MESH) if hasattr(jax, "set_mesh") else MESH:
        g = jax.jit(f, in_shardings=NamedSharding(MESH, P()))
        jax.block_until_ready(g(X))
        calls.clear()
        np.testing.assert_array_equal(g(X), X + 1)
    assert len(calls) == 1


def test_on_shards_each_has_the_effect():
    f, calls = counted()
    for g in (
        jax.jit(jax.shard_map(f, mesh=MESH, in_specs=P("d"), out_specs=P("d"))),
        t2j_dist.torch2jax(f.fn, has_side_effect=True, in_specs=(P("d"),), out_specs=P("d"), mesh=MESH),
    ):
        jax.block_until_ready(g(jnp.asarray(X)))
        calls.clear()
        np.testing.assert_array_equal(g(jnp.asarray(X)), X + 1)
        assert len(calls) == 4


def test_a_result_that_nobody_uses():
    f, calls = counted()
    g = jax.jit(lambda x: (f(x), 2 * x)[1])
    jax.block_until_ready(g(on(MESH, P())))
    calls.clear()
    np.testing.assert_array_equal(g(on(MESH, P())), 2 * X)
    assert len(calls) == 1


def test_gradients():
    f, _ = counted(fn=lambda x: torch.sin(torch.ones(8, 8) @ x).sum())
    want = jax.grad(lambda x: jnp.sin(jnp.ones((8, 8)) @ x).sum())(jnp.asarray(X))
    for transform in (jax.grad, lambda f: jax.grad(jax.checkpoint(f))):
        np.testing.assert_allclose(jax.jit(transform(f))(on(MESH, P())), want, rtol=1e-4)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float8_e5m2", "float32", "complex64"]
)
def test_results_of_every_dtype_arrive_unchanged(dtype):
    values = np.array([0, -0.0, 1, 5, np.inf, np.nan] if "float" in dtype else [0, 1, 0, 5]).astype(jnp.dtype(dtype))
    f, _ = counted(fn=lambda x: (x.clone(), x.clone()))
    x = jax.device_put(jnp.asarray(values), NamedSharding(MESH, P()))
    for y in f(x):
        assert y.dtype == values.dtype
        assert np.asarray(y).tobytes() == values.tobytes()


def test_a_program_that_is_manual_in_part_is_refused():
    f, _ = counted()
    mesh = mesh_of("Auto", a=2, b=2)
    g = jax.shard_map(f, mesh=mesh, in_specs=P("a"), out_specs=P("a"), axis_names={"a"})
    with raises(t2j_core.ShardingError, what=("`has_side_effect=True`", "`jax.shard_map`", "some")):
        jax.jit(g)(jnp.asarray(X))


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad, lambda f: jax.jit(jax.grad(f))])
def test_a_refusal_names_the_function_of_the_user_where_it_is_differentiated(transform):
    def total(x):
        return (x * x).sum()

    f = t2j_autodiff.torch2jax(total, has_side_effect=True)
    mesh = mesh_of("Auto", a=2, b=2)
    step = lambda x: transform(f)(x) * jnp.ones(2)
    g = jax.shard_map(step, mesh=mesh, in_specs=P(None), out_specs=P("a"), axis_names={"a"})
    with raises(t2j_core.ShardingError, what=re.compile("^total .*`has_side_effect=True`")):
        jax.jit(g)(jnp.ones(2))


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad])
def test_sharded_operands_of_a_derivative_are_named_as_the_user_does(transform):
    def total(rows):
        return (rows * rows).sum()

    x = on(mesh_of("Explicit", d=4), P("d"))
    with raises(t2j_core.ShardingError, what=re.compile(r"^args\[0\] of total ")):
        transform(t2j_autodiff.torch2jax(total))(x)
