"""What a call does about sharding: the table of the README, on Explicit and on Auto mesh axes, against jnp."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from helpers import TRANSFORMS, W, X, agree, collectives, in_jnp, in_torch, mesh_of, put, use
from jax.sharding import PartitionSpec as P
from t2j_core.testing import collect, live_functions
from t2j_dist import ShardingError, Size, torch2jax

both_kinds = pytest.mark.parametrize("kind", ["Auto", "Explicit"])
with_and_without_context = pytest.mark.parametrize("in_context", [False, True])


class Shapes:
    """A torch function that notes the shapes it was called with."""

    def __init__(self, fn):
        self.fn, self.seen = fn, set()

    def __call__(self, x, *rest):
        if x.device.type == "cpu":
            self.seen.add(tuple(x.shape))
        return self.fn(x, *rest)


@both_kinds
@with_and_without_context
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_both_specs(kind, in_context, wrap):
    mesh = mesh_of(kind)
    spy = Shapes(in_torch)
    f = torch2jax(spy, in_specs=(P("data"), P()), out_specs=P("data"))
    with use(mesh if in_context else None):
        y = wrap(f)(put(X, mesh, "data"), put(W, mesh))
    agree(y, in_jnp(X, W))
    assert y.sharding.spec[0] == "data"
    assert spy.seen == {(4, 3)}


@both_kinds
@with_and_without_context
def test_only_out_specs_eagerly(kind, in_context):
    mesh = mesh_of(kind)
    spy = Shapes(in_torch)
    f = torch2jax(spy, out_specs=P("data"))
    with use(mesh if in_context else None):
        for _ in range(2):
            y = f(put(X, mesh, "data"), put(W, mesh))
            agree(y, in_jnp(X, W))
            assert y.sharding.spec[0] == "data"
    assert spy.seen == {(4, 3)}


def test_eager_calls_with_other_shardings_are_split_otherwise():
    mesh = mesh_of("Auto")
    spy = Shapes(lambda x: x.cos())
    f = torch2jax(spy, out_specs=P(("data", "model")))
    agree(f(put(X, mesh, ("data", "model"))), jnp.cos(X))
    assert spy.seen == {(2, 3)}
    g = torch2jax(spy, out_specs=P("data", None))
    agree(g(put(X, mesh, "data")), jnp.cos(X))
    other = mesh_of("Auto", data=8)
    agree(g(put(X, other, "data")), jnp.cos(X))
    assert spy.seen == {(2, 3), (4, 3)}
    agree(g(X), jnp.cos(X))  # on one device there is no mesh
    assert (16, 3) in spy.seen


def test_eager_calls_differ_by_the_sharding_of_any_argument():
    mesh = mesh_of("Auto")
    f = torch2jax(torch.add, out_specs=P("data"))
    x, y = put(X, mesh, "data"), X[:4]
    agree(f(x, x), 2 * X)
    agree(f(x, put(y, mesh)), X + jnp.tile(y, (4, 1)))  # each shard gets the whole of it
    agree(f(x, x), 2 * X)


@with_and_without_context
def test_only_out_specs_under_jit_on_explicit_axes(in_context):
    mesh = mesh_of("Explicit")
    f = torch2jax(in_torch, out_specs=P("data"))
    x, w = put(X, mesh, "data"), put(W, mesh)
    with use(mesh if in_context else None):
        agree(jax.jit(f)(x, w), in_jnp(X, W))
        assert collectives(f, x, w) == {}


def test_only_out_specs_under_jit_on_auto_axes_says_what_is_missing():
    mesh = mesh_of("Auto")
    f = torch2jax(in_torch, out_specs=P("data"))
    operands = (re.compile(r"args\[0\]: (f|float)32\[16,3\]"), re.compile(r"args\[1\]: (f|float)32\[3,4\]"))
    with raises(ShardingError, what="`out_specs`", expected="`in_specs`", got=operands, remedy="`in_specs=`"):
        jax.jit(f)(put(X, mesh, "data"), put(W, mesh))


def test_sharded_examples_say_what_in_specs_does_not():
    mesh = mesh_of("Auto")
    spy = Shapes(in_torch)
    x, w = put(X, mesh, "data"), put(W, mesh)
    f = torch2jax(spy, x, w, output_sharding_spec=P("data"))
    agree(jax.jit(f)(x, w), in_jnp(X, W))
    assert spy.seen == {(4, 3)}
    assert collectives(f, x, w) == {}


def test_the_sharding_in_a_shape_struct_is_an_example_too():
    mesh = mesh_of("Auto")
    x, w = put(X, mesh, "data"), put(W, mesh)
    like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
    f = torch2jax(in_torch, like(x), like(w), out_specs=P("data"))
    agree(jax.jit(f)(x, w), in_jnp(X, W))


def test_the_arrays_of_an_eager_call_come_before_the_examples():
    mesh = mesh_of("Auto")
    spy = Shapes(lambda x: x + 1)
    f = torch2jax(spy, put(X, mesh, "data"), out_specs=P("data"))
    agree(jax.jit(f)(put(X, mesh, "data")), X + 1)
    assert spy.seen == {(4, 3)}
    agree(f(put(X, mesh_of("Auto", data=8), "data")), X + 1)
    assert spy.seen == {(4, 3), (2, 3)}


@both_kinds
def test_operands_that_arrive_otherwise_are_moved(kind):
    mesh = mesh_of(kind)
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"))
    with use(mesh):
        for x in (put(X, mesh), put(X, mesh, "model"), put(X, mesh, ("data", "model")), X):
            agree(jax.jit(f)(x, put(W, mesh)), in_jnp(X, W))
            agree(f(x, W), in_jnp(X, W))


@pytest.mark.thinned(5)
@pytest.mark.parametrize("kinds", [("Explicit", "Auto"), ("Auto", "Explicit")])
@with_and_without_context
@pytest.mark.parametrize("rows", ["data", "model", ("data", "model")])
def test_a_mesh_with_axes_of_both_kinds(kinds, in_context, rows):
    mesh = mesh_of(*kinds)
    f = torch2jax(in_torch, in_specs=(P(rows), P()), out_specs=P(rows), mesh=mesh)
    loss = lambda fn: lambda x, w: (fn(x, w) ** 2).sum()
    with use(mesh if in_context else None):
        for x, w in ((X, W), (put(X, mesh, "data"), put(W, mesh, None, "model")), (put(X, mesh, "model"), W)):
            agree(f(x, w), in_jnp(X, W))
            agree(jax.jit(jax.grad(loss(f), (0, 1)))(x, w), jax.grad(loss(in_jnp), (0, 1))(X, W))


@both_kinds
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_operands_that_are_specified_as_replicated_are_gathered(kind, wrap):
    mesh = mesh_of(kind)
    spy = Shapes(in_torch)
    f = torch2jax(spy, in_specs=P(), out_specs=P())
    agree(wrap(f)(put(X, mesh, "data"), put(W, mesh, None, "model")), in_jnp(X, W))
    assert spy.seen == {(16, 3)}
    g = torch2jax(lambda *, x: x + 1, in_specs=(), out_specs=P())
    agree(wrap(g)(x=put(X, mesh, "data")), X + 1)


@both_kinds
@with_and_without_context
def test_examples_without_shardings_leave_the_sharding_open(kind, in_context):
    mesh = mesh_of(kind)
    x, w = put(X, mesh, "data"), put(W, mesh)
    like = jax.ShapeDtypeStruct
    for examples in ((torch.zeros(16, 3), torch.zeros(3, 4)), (like((16, 3), X.dtype), like((3, 4), W.dtype))):
        with use(mesh if in_context else None):
            f = torch2jax(in_torch, *examples, out_specs=P("data"))
            agree(f(x, w), in_jnp(X, W))
            if kind == "Explicit":
                agree(jax.jit(f)(x, w), in_jnp(X, W))


@both_kinds
def test_lists_of_arrays_have_lists_of_specs(kind):
    mesh = mesh_of(kind)
    f = torch2jax(
        lambda d: [d["xs"][0] + 1, (d["xs"][1].T,)],
        in_specs=({"xs": [P("data"), P("model")]},),
        out_specs=[P("data"), (P(None, "model"),)],
        mesh=mesh,
    )
    with raises(ShardingError, what=("output", "differs"), remedy="`out_specs`"):
        f({"xs": [X, X]})
    g = torch2jax(
        lambda d: [d["xs"][0] + 1, (d["xs"][1].T,)],
        in_specs=({"xs": [P("data"), P("data")]},),
        out_specs=[P("data"), (P(None, "data"),)],
        output_shapes=[(16, 3), ((3, 16),)],
        mesh=mesh,
    )
    agree(g({"xs": [X, X]}), [X + 1, (X.T,)])


def test_an_explicit_operand_without_specs_is_refused_with_three_ways_out():
    mesh = mesh_of("Explicit")
    f = torch2jax(in_torch)
    with raises(ShardingError, remedy=("jax.shard_map", "jax.reshard", "t2j_dist.torch2jax")):
        jax.jit(f)(put(X, mesh, "data"), put(W, mesh))


def test_auto_axes_without_specs_are_a_plain_call():
    mesh = mesh_of("Auto")
    spy = Shapes(in_torch)
    agree(jax.jit(torch2jax(spy))(put(X, mesh, "data"), put(W, mesh)), in_jnp(X, W))
    assert spy.seen == {(16, 3)}


def test_without_a_mesh_it_is_a_plain_call():
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"))
    agree(f(X, W), in_jnp(X, W))
    agree(jax.jit(jax.grad(lambda x: f(x, W).sum()))(X), jax.grad(lambda x: in_jnp(x, W).sum())(X))


@both_kinds
def test_a_mesh_of_ones_own(kind):
    spy = Shapes(in_torch)
    f = torch2jax(spy, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh_of(kind))
    y = f(X, W)
    agree(y, in_jnp(X, W))
    assert y.sharding.spec[0] == "data"
    assert spy.seen == {(4, 3)}


def test_the_mesh_may_change_between_calls():
    spy = Shapes(in_torch)
    f = torch2jax(spy, in_specs=(P("data"), P()), out_specs=P("data"))
    for size, rows in ((8, 2), (4, 4), (2, 8), (8, 2)):
        mesh = mesh_of("Auto", data=size)
        with use(mesh):
            agree(jax.jit(f)(X, W), in_jnp(X, W))
            agree(f(put(X, mesh, "data"), put(W, mesh)), in_jnp(X, W))
        assert (rows, 3) in spy.seen
    assert spy.seen == {(2, 3), (4, 3), (8, 3)}


@pytest.mark.thinned(7)
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(("kind", "specs"), [("Auto", "both"), ("Explicit", "both"), ("Explicit", "out")])
def test_every_transformation(kind, name, specs):
    if name == "jacrev" and (0, 8) <= jax.__version_info__ < (0, 9):
        pytest.skip("jax 0.8 has no jacrev of its own shard_map either: it cannot batch psum_invariant")
    mesh = mesh_of(kind)
    x, w = put(X, mesh, "data"), put(W, mesh)
    in_specs = (P("data"), P()) if specs == "both" else None
    f = torch2jax(in_torch, in_specs=in_specs, out_specs=P("data"), depth=3)
    transform = TRANSFORMS[name]
    with use(mesh):
        agree(jax.jit(transform(f))(w, x), transform(in_jnp)(W, X))


@both_kinds
@pytest.mark.parametrize("name", ["value_and_grad", "jvp", "hvp, forward over reverse", "remat"])
def test_the_collectives_are_those_of_jnp(kind, name):
    mesh = mesh_of(kind)
    x, w = put(X, mesh, "data"), put(W, mesh)
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"), depth=3)
    with use(mesh):
        ours, theirs = collectives(TRANSFORMS[name](f), w, x), collectives(TRANSFORMS[name](in_jnp), w, x)
    assert ours == theirs
    assert set(ours) == {"all-reduce"}


def test_the_sum_over_devices_is_taken_once():
    mesh = mesh_of("Auto")
    x, w = put(X, mesh, "data"), put(W, mesh)
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"))
    gradient = lambda w, x: jax.grad(lambda w: f(x, w).sum())(w)
    agree(jax.jit(gradient)(w, x), jax.grad(lambda w: in_jnp(X, w).sum())(W))
    assert collectives(gradient, w, x) == {"all-reduce": 1}
    assert collectives(lambda w, x: f(x, w), w, x) == {}


def test_a_weight_that_is_split_along_another_axis():
    mesh = mesh_of("Auto")
    f = torch2jax(in_torch, in_specs=(P("data"), P(None, "model")), out_specs=P("data", "model"))
    x, w = put(X, mesh, "data"), put(W, mesh, None, "model")
    loss = lambda f: lambda x, w: (f(x, w) ** 2).sum()
    agree(jax.jit(jax.grad(loss(f), (0, 1)))(x, w), jax.grad(loss(in_jnp), (0, 1))(X, W))
    assert jax.jit(f)(x, w).sharding.spec == P("data", "model")
    assert collectives(f, x, w) == {}


@pytest.mark.parametrize("rows", [4, 16])
def test_trees_keywords_and_constants(rows):
    mesh = mesh_of("Auto")

    def fn(batch, params, *, power, scale):
        y = batch["x"] @ params["w"] + params["b"] * scale
        return {"y": y**power, "n": batch["n"] + 1}, "constant", (y.sum(-1),)

    f = torch2jax(
        fn,
        in_specs=({"x": P("data"), "n": P("data")}, P()),
        out_specs=({"y": P("data"), "n": P("data")}, P(), (P("data"),)),
    )
    batch = {"x": put(X[:rows], mesh, "data"), "n": put(jnp.arange(rows), mesh, "data")}
    params = {"w": W, "b": jnp.ones(4)}
    (first, text, (last,)) = f(batch, params, power=2, scale=jnp.asarray(3.0))
    y = X[:rows] @ W + 3
    agree(first, {"y": y**2, "n": jnp.arange(rows) + 1})
    agree(last, y.sum(-1))
    assert text == "constant"
    one_spec = torch2jax(fn, in_specs=({"x": P("data"), "n": P("data")}, P()), out_specs=P("data"), mesh=mesh)
    agree(one_spec(batch, params, power=1, scale=jnp.asarray(0.0))[2][0], (X[:rows] @ W).sum(-1))


@pytest.mark.parametrize(
    "declared", [lambda: jax.ShapeDtypeStruct((16, 4), jnp.float32), lambda: (16, 4), lambda: X @ W]
)
def test_declared_outputs_are_global(declared):
    mesh = mesh_of("Auto")
    calls = []

    def fn(x, w):
        calls.append(x.device.type)
        return torch.tanh(x @ w)

    f = torch2jax(fn, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh, output_shapes=declared())
    compiled = jax.jit(f).lower(X, W).compile()
    assert calls == []
    agree(compiled(X, W), in_jnp(X, W))
    inside = jax.shard_map(f, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    agree(jax.jit(inside)(X, W), in_jnp(X, W))
    agree(torch2jax(fn, in_specs=(P("data"), P()), out_specs=P("data"), output_shapes=declared())(X, W), in_jnp(X, W))


def test_torch_tensors_and_their_dtypes():
    mesh = mesh_of("Auto")
    f = torch2jax(
        lambda i, x: torch.nn.functional.one_hot(i, 4) * x,
        in_specs=(P("data"), P("data")),
        out_specs=P("data"),
        mesh=mesh,
    )
    index, x = torch.arange(16) % 4, torch.full((16, 1), 2.0)
    expected = (torch.nn.functional.one_hot(index, 4) * x).numpy()
    agree(f(index, x), expected)  # arrays over tensors follow the mesh, as new arrays of JAX do
    g = torch2jax(
        lambda i, x: torch.nn.functional.one_hot(i, 4) * x,
        index,
        x,
        in_specs=(P("data"), P("data")),
        out_specs=P("data"),
        mesh=mesh,
    )
    agree(g(jnp.asarray(index.numpy()), jnp.asarray(x.numpy())), expected)


def test_randomness_is_of_each_shard():
    mesh = mesh_of("Auto")
    f = torch2jax(
        lambda x: torch.nn.functional.dropout(x, 0.5),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        mesh=mesh,
        rng=True,
    )
    x = jnp.ones((16, 64))
    key = jax.random.key(3)
    y = np.asarray(f(key, x)).reshape(4, 4, 64)
    assert len({shard.tobytes() for shard in y}) == 4
    np.testing.assert_array_equal(f(key, x), y.reshape(16, 64))
    gradient = jax.jit(jax.grad(lambda x: (f(key, x)).sum()))(x)
    np.testing.assert_array_equal(gradient, y.reshape(16, 64))
    agree(jax.jit(f)(jax.random.key_data(key), x), y.reshape(16, 64))


def test_declared_outputs_on_another_mesh():
    f = torch2jax(torch.cos, out_specs=P("data"), output_shapes=Size(16, 3))
    for devices in (8, 4, 8):
        agree(f(put(X, mesh_of("Auto", data=devices), "data")), jnp.cos(X))


def test_a_constant_in_front_of_a_sharded_array():
    f = torch2jax(lambda w, scale, x: scale * (x @ w), in_specs=(P(), P(), P("data")), out_specs=P("data"))
    mesh = mesh_of("Auto")
    with use(mesh):
        y = f(put(W, mesh), 2.0, put(X, mesh, "data"))
    agree(y, 2 * (X @ W))
    assert y.sharding.spec[0] == "data"


def test_randomness_over_two_axes():
    spec = P(("data", "model"))
    f = torch2jax(torch.rand_like, in_specs=(P(), spec), out_specs=spec, mesh=mesh_of("Auto"), rng=True)
    shards = np.asarray(f(jax.random.key(0), jnp.ones((16, 64)))).reshape(8, -1)
    assert len({shard.tobytes() for shard in shards}) == 8


@pytest.mark.parametrize("devices", [2, 4])
def test_one_spec_for_all_is_not_for_the_key(devices):
    mesh = mesh_of("Auto", data=devices)
    f = torch2jax(torch.rand_like, in_specs=P("data"), out_specs=P("data"), mesh=mesh, rng=True)
    shards = np.asarray(f(jax.random.key(0), jnp.ones((8, 16)))).reshape(devices, -1)
    assert len({shard.tobytes() for shard in shards}) == devices


def test_export_and_serialise():
    mesh = mesh_of("Auto")
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh, name="test_dist_export")
    custom_call = jax.export.DisabledSafetyCheck.custom_call("t2j_torch_call")
    exported = jax.export.export(jax.jit(f), disabled_checks=[custom_call])(X, W)
    again = jax.export.deserialize(exported.serialize())
    agree(jax.jit(again.call)(put(X, mesh, "data"), put(W, mesh)), in_jnp(X, W))


def test_nothing_of_a_dropped_function_stays():
    mesh = mesh_of("Auto")
    x, w = put(X, mesh, "data"), put(W, mesh)
    collect(passes=2)
    before = live_functions()
    for k in range(20):
        f = torch2jax(lambda x, w, k=k: torch.tanh(x @ w) * k, out_specs=P("data"), output_shapes=(16, 4))
        jax.block_until_ready(f(x, w))
        g = torch2jax(lambda x, w, k=k: torch.tanh(x @ w) * k, in_specs=(P("data"), P()), out_specs=P("data"))
        jax.block_until_ready(jax.jit(jax.grad(lambda w, g=g: g(x, w).sum()))(w))
        del f, g
    collect(passes=2)
    assert live_functions() == before


def test_jax_keeps_its_configuration():
    names = ("jax_use_shardy_partitioner", "jax_threefry_partitionable")
    before = {name: getattr(jax.config, name, None) for name in names}
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh_of("Auto"))
    jax.block_until_ready(jax.jit(f)(X, W))
    assert {name: getattr(jax.config, name, None) for name in names} == before
