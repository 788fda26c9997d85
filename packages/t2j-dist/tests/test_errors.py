"""Every wrong spec is a typed error at trace time that says what to do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import torch
from common import raises
from helpers import W, X, agree, in_jnp, in_torch, mesh_of, put, use
from jax.sharding import PartitionSpec as P
from t2j_dist import ArgumentError, OutputError, ShardingError, torch2jax

WRONG = {
    "does not divide": (
        dict(in_specs=(P("data"), P()), out_specs=P("data")),
        (X[:6], W),
        dict(what="args[0]", expected="multiple of 4", got="[6, 3]"),
    ),
    "does not divide over two axes": (
        dict(in_specs=(P(("data", "model")), P()), out_specs=P(("data", "model"))),
        (X[:12], W),
        dict(what="args[0]", expected="multiple of 8", got="[12, 3]"),
    ),
    "unknown axis": (
        dict(in_specs=(P("rows"), P()), out_specs=P("rows")),
        (X, W),
        dict(what="specs of fn", expected="'data': 4", got='"rows"'),
    ),
    "too long": (
        dict(in_specs=(P("data", None, None), P()), out_specs=P("data")),
        (X, W),
        dict(what="args[0]", expected="at most 2", got="[16, 3]"),
    ),
    "axis twice": (
        dict(in_specs=(P("data", "data"), P()), out_specs=P("data")),
        (X, W),
        dict(what="args[0]", expected="axis once"),
    ),
    "in_specs of another tree": (
        dict(in_specs=(P("data"),), out_specs=P("data")),
        (X, W),
        dict(what="`in_specs`", expected=("one spec", "prefix")),
    ),
    "out_specs of another tree": (
        dict(in_specs=(P("data"), P()), out_specs=(P("data"), P())),
        (X, W),
        dict(what="`out_specs`", expected=("one spec", "prefix")),
    ),
    "output spec too long": (
        dict(in_specs=(P("data"), P()), out_specs=P("data", None, None)),
        (X, W),
        dict(what="output", expected="at most 2", got="[4, 4] of a shard"),
    ),
    "axis twice in an output spec": (
        dict(in_specs=(P("data"), P()), out_specs=P("data", "data")),
        (X, W),
        dict(what="output", expected="axis once", got="[4, 4] of a shard"),
    ),
    "output said to be replicated": (
        dict(in_specs=(P("data"), P()), out_specs=P()),
        (X, W),
        dict(what=("output", "differs", '"data"'), expected='"data"', remedy=("`out_specs`", "`jax.lax.psum`")),
    ),
    "no operand is split": (
        dict(in_specs=(P(), P()), out_specs=P("data")),
        (X, W),
        dict(what=("output", '"data"', "no operand"), expected='"data"', remedy=("`in_specs`", "`out_specs`")),
    ),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_specs(name, wrap, kind):
    options, args, parts = WRONG[name]
    mesh = mesh_of(kind)
    calls = []

    def fn(x, w):
        calls.append(x.device.type)
        return in_torch(x, w)

    f = torch2jax(fn, **options)
    with use(mesh):
        for _ in range(2):
            with raises(ShardingError, **parts):
                wrap(f)(*args)
        assert "cpu" not in calls
        right = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"))
        agree(wrap(right)(put(X, mesh, "data"), put(W, mesh)), in_jnp(X, W))


def test_declared_outputs_that_do_not_divide():
    f = torch2jax(in_torch, in_specs=P(), out_specs=P("data"), output_shapes=(6, 4), mesh=mesh_of("Auto"))
    with raises(ShardingError, what="output", expected="multiple of 4", got="[6, 4]"):
        f(X, W)


def test_declared_outputs_of_a_shard_are_checked_when_it_runs():
    f = torch2jax(
        in_torch, in_specs=(P("data"), P()), out_specs=P("data"), output_shapes=(64, 4), mesh=mesh_of("Auto"), depth=0
    )
    with raises((OutputError, jax.errors.JaxRuntimeError), what="wrong output", expected="f32[16,4]"):
        jax.block_until_ready(f(X, W))


NO_SPECS = ["data", ("data",), 3, P(P.UNCONSTRAINED), [P("data"), "data"]]
NO_SPECS += [P("data", unreduced={"model"}), P("data", reduced={"model"})]


@pytest.mark.parametrize("specs", NO_SPECS, ids=str)
def test_what_is_no_spec(specs):
    with raises(ShardingError, what="`out_specs`", expected="`jax.sharding.PartitionSpec`"):
        torch2jax(in_torch, out_specs=specs)
    with raises(ShardingError, what="`in_specs`", expected="`jax.sharding.PartitionSpec`"):
        torch2jax(in_torch, out_specs=P("data"), in_specs=specs)


def test_in_specs_alone():
    with raises(ArgumentError, what=("`in_specs`", "`mesh`"), expected="`out_specs`", remedy="`out_specs=`"):
        torch2jax(in_torch, in_specs=(P("data"), P()))
    with raises(ArgumentError, what=("`in_specs`", "`mesh`"), expected="`out_specs`", remedy="`out_specs=`"):
        torch2jax(in_torch, mesh=mesh_of("Auto"))


def test_two_names_for_one_option():
    with raises(ArgumentError, what=("`out_specs`", "`output_sharding_spec`"), remedy="`out_specs`"):
        torch2jax(in_torch, out_specs=P(), output_sharding_spec=P())


def test_an_unknown_option():
    with pytest.raises(TypeError, match="unexpected keyword argument 'out_spec'"):
        torch2jax(in_torch, out_spec=P())


def test_another_mesh_than_that_of_the_call():
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh_of("Auto", data=8))
    with use(mesh_of("Auto")), raises(ShardingError, what="in_torch", expected="'data': 8", got="'data': 4"):
        f(X, W)
    agree(f(X, W), in_jnp(X, W))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_arrays_of_another_mesh(kind):
    here, there = mesh_of(kind), mesh_of(kind, row=8)
    f = torch2jax(lambda x, y: x + y, out_specs=P("data"))
    with raises(ShardingError, what="args[1] of <lambda>", expected="'data': 4", got="{'row': 8}"):
        f(put(X, here, "data"), put(X, there, "row"))
    g = torch2jax(lambda x: x + 1, out_specs=P("data"), mesh=here)
    with raises(ShardingError, what="args[0] of <lambda>", expected="'data': 4", got="{'data': 8}"):
        g(put(X, mesh_of(kind, data=8), "data"))
    agree(g(put(X, here, "data")), X + 1)


def test_what_is_no_mesh():
    mesh = mesh_of("Auto")
    for wrong in (jax.sharding.NamedSharding(mesh, P()), "data", jax.devices()):
        with raises(ArgumentError, what="`mesh`", expected="`jax.sharding.Mesh`", got=repr(wrong)):
            torch2jax(in_torch, out_specs=P("data"), mesh=wrong)


@pytest.mark.parametrize("lock", [None, 3, "yes"])
def test_what_is_no_lock(lock):
    with raises(ArgumentError, what="`lock`", expected="threading.Lock", got=repr(lock)):
        torch2jax(in_torch, lock=lock)


def test_wrong_specs_are_found_with_examples_when_wrapping():
    mesh = mesh_of("Auto")
    with raises(ShardingError, what="args[0]", expected="multiple of 4"):
        torch2jax(in_torch, X[:6], W, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh)
    with raises(ShardingError, what="`out_specs`", expected="prefix"):
        torch2jax(in_torch, X, W, in_specs=(P("data"), P()), out_specs=(P(), P()), mesh=mesh)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_an_exception_of_the_function_on_one_shard(wrap):
    def fn(x):
        if x.device.type == "cpu" and float(x[0, 0]) == 4.0:
            raise ArithmeticError("the shard that begins with 4")
        return x + 1

    f = torch2jax(fn, in_specs=P("data"), out_specs=P("data"), mesh=mesh_of("Auto"), output_shapes=(16, 1))
    x = jnp.arange(16.0)[:, None]
    with pytest.raises((ArithmeticError, jax.errors.JaxRuntimeError), match="the shard that begins with 4"):
        jax.block_until_ready(wrap(f)(x))
    agree(wrap(f)(x + 100), x + 101)


def test_a_nan_on_one_shard_stays_there():
    f = torch2jax(torch.log, in_specs=P("data"), out_specs=P("data"), mesh=mesh_of("Auto"))
    x = jnp.ones(16).at[5].set(jnp.nan)
    assert jnp.isnan(f(x)).tolist() == [i == 5 for i in range(16)]
