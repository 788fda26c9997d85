"""Inside the user's `jax.shard_map`: as it stands, with and without `check_vma`, against jnp."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
import t2j_autodiff
import torch
from helpers import W, X, agree, collectives, in_jnp, in_torch, mesh_of, put, use
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from t2j_dist import module2jax, torch2jax

both = pytest.mark.parametrize("check_vma", [True, False])

PROGRAMS = {
    "plain": lambda f, x, w: f(x, w),
    "vmap": lambda f, x, w: jax.vmap(f, (0, None))(x, w),
    "vmap of grad": lambda f, x, w: jax.vmap(jax.grad(lambda x, w: f(x, w).sum()), (0, None))(x, w),
    "scan": lambda f, x, w: jax.lax.scan(lambda c, s: (c + f(x, w * s).sum(-1), s), x[:, 0] * 0, jnp.arange(3.0))[0],
    "remat": lambda f, x, w: jax.checkpoint(f)(x, w),
    "grad of the shard": lambda f, x, w: jax.grad(lambda x: (f(x, w) ** 2).sum())(x),
}


def of_shards(f, name, check_vma, mesh):
    program = functools.partial(PROGRAMS[name], f)
    return jax.shard_map(program, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=check_vma)


@pytest.mark.thinned(5)
@both
@pytest.mark.parametrize("specs", [None, P("data")])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, check_vma, specs):
    mesh = mesh_of("Auto", data=8)
    f = torch2jax(in_torch, depth=3, out_specs=specs)
    for transform in (
        lambda g: g,
        lambda g: jax.grad(lambda x, w: (g(x, w) ** 2).sum(), (0, 1)),
        lambda g: lambda x, w: jax.jvp(g, (x, w), (x, 2 * w)),
    ):
        ours, theirs = (transform(of_shards(g, name, check_vma, mesh)) for g in (f, in_jnp))
        agree(jax.jit(ours)(X, W), jax.jit(theirs)(X, W))
        assert collectives(ours, X, W) == collectives(theirs, X, W)


@both
def test_data_parallel_gradients_inside(check_vma):
    mesh = mesh_of("Auto", data=8)

    def step(f):
        def shard(w, x):
            return jax.value_and_grad(lambda w: jax.lax.pmean((f(x, w) ** 2).mean(), "data"))(w)

        out = (P(), P()) if check_vma else (P(), P("data"))
        return jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("data")), out_specs=out, check_vma=check_vma)

    agree(jax.jit(step(torch2jax(in_torch)))(W, X), jax.jit(step(in_jnp))(W, X))


def column_then_row(first, second, check_vma, mesh):
    """A feed-forward block: its hidden layer is split over the model axis, the batch over the data axis."""

    def shard(x, a, b):
        return jax.lax.psum(second(first(x, a), b), "model")

    specs = (P("data"), P(None, "model"), P("model"))
    return jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=check_vma)


@both
def test_tensor_parallel(check_vma):
    mesh = mesh_of("Auto")
    a, b = jax.random.normal(jax.random.key(0), (3, 8)), jax.random.normal(jax.random.key(1), (8, 3))
    ours = column_then_row(torch2jax(in_torch), torch2jax(torch.matmul), check_vma, mesh)
    theirs = column_then_row(in_jnp, jnp.matmul, check_vma, mesh)
    x, a, b = put(X, mesh, "data"), put(a, mesh, None, "model"), put(b, mesh, "model")
    loss = lambda g: jax.value_and_grad(lambda x, a, b: (g(x, a, b) ** 2).mean(), (0, 1, 2))
    agree(jax.jit(loss(ours))(x, a, b), jax.jit(loss(theirs))(x, a, b))
    assert collectives(loss(ours), x, a, b) == collectives(loss(theirs), x, a, b)


@both
def test_fully_sharded_parameters(check_vma):
    mesh = mesh_of("Auto", data=4)
    w = jax.random.normal(jax.random.key(0), (4, 3))

    def step(f):
        def shard(w, x):
            full = jax.lax.all_gather(w, "data", tiled=True)
            return jax.lax.psum((f(x, full.T) ** 2).sum(), "data")

        return jax.shard_map(shard, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P(), check_vma=check_vma)

    ours, theirs = jax.grad(step(torch2jax(in_torch))), jax.grad(step(in_jnp))
    w, x = put(w, mesh, "data"), put(X, mesh, "data")
    agree(jax.jit(ours)(w, x), jax.jit(theirs)(w, x))
    assert collectives(ours, w, x) == collectives(theirs, w, x)
    assert "reduce-scatter" in collectives(ours, w, x) or not check_vma


@both
@pytest.mark.parametrize("gradient", [False, True])
def test_a_batch_of_shard_maps_over_another_axis(check_vma, gradient):
    mesh = mesh_of("Auto")
    xs = put(jnp.stack([X, 2 * X]), mesh, "model", "data")

    def program(f):
        sharded = jax.shard_map(f, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=check_vma)
        batch = jax.vmap(sharded, (0, None), spmd_axis_name="model")
        return jax.grad(lambda xs, w: (batch(xs, w) ** 2).sum(), (0, 1)) if gradient else batch

    ours, theirs = program(torch2jax(in_torch)), program(in_jnp)
    agree(jax.jit(ours)(xs, W), jax.jit(theirs)(xs, W))
    assert "all-gather" not in collectives(ours, xs, W)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_batch_of_sharded_calls_over_another_axis(gradient):
    mesh = mesh_of("Auto")
    xs = put(jnp.stack([X, 2 * X]), mesh, "model", "data")
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh)

    def program(f, **options):
        batch = jax.vmap(f, (0, None), **options)
        return jax.grad(lambda xs, w: (batch(xs, w) ** 2).sum(), (0, 1)) if gradient else batch

    ours = program(f, spmd_axis_name="model")
    agree(jax.jit(ours)(xs, W), program(in_jnp)(jnp.stack([X, 2 * X]), W))
    assert set(collectives(ours, xs, W)) <= {"all-reduce"}


BATCHES = {
    "vmap": lambda f: jax.vmap(f, (0, None)),
    "out axis": lambda f: jax.vmap(f, (0, None), out_axes=1),
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1)), (0, None)),
    "grad of vmap": lambda f: jax.grad(lambda x, w: (jax.vmap(f, (0, None))(x, w) ** 2).sum(), (0, 1)),
    "vmap of hessian": lambda f: jax.vmap(jax.hessian(lambda x, w: (f(x, w) ** 2).sum()), (0, None)),
    "hvp of vmap": lambda f: (
        lambda x, w: jax.jvp(jax.grad(lambda w: (jax.vmap(f, (0, None))(x, w) ** 2).sum()), (w,), (2 * w,))
    ),
    "nested": lambda f: lambda x, w: jax.vmap(jax.vmap(f, (None, 0)), (0, None))(x, jnp.stack([w, 2 * w, 3 * w])),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("options", [{}, {"residuals": "recompute"}, {"vmap_method": "sequential"}], ids=str)
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_over_an_explicit_axis_is_not_gathered(name, options, in_context):
    mesh = mesh_of("Explicit")
    x, w = put(X, mesh, "data"), put(W, mesh)
    f = torch2jax(in_torch, depth=3, **options)
    with use(mesh if in_context else None):
        ours = BATCHES[name](f)
        agree(jax.jit(ours)(x, w), BATCHES[name](in_jnp)(X, W))
        assert set(collectives(ours, x, w)) <= {"all-reduce"}


def test_a_batch_over_two_explicit_axes():
    mesh = mesh_of("Explicit")
    x, w = put(X, mesh, ("data", "model")), put(W, mesh)
    with use(mesh):
        y = jax.jit(jax.vmap(torch2jax(in_torch), (0, None)))(x, w)
    agree(y, in_jnp(X, W))
    assert y.sharding.spec[0] == ("data", "model")


def test_partly_manual():
    mesh = mesh_of("Auto")
    f = torch2jax(in_torch, in_specs=(P("data", None), P(None, "model")), out_specs=P("data", "model"))
    inside = jax.shard_map(f, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"})
    y = jax.jit(inside)(put(X, mesh, "data"), put(W, mesh))
    agree(y, in_jnp(X, W))


@both
def test_modules(check_vma):
    mesh = mesh_of("Auto", data=8)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    apply, variables = module2jax(module, train=False)

    def step(params, buffers, x):
        return jax.lax.pmean((apply({"params": params, "buffers": buffers}, x) ** 2).mean(), "data")

    sharded = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=check_vma)
    variables = jax.device_put(variables, NamedSharding(mesh, P()))
    value, gradient = jax.jit(jax.value_and_grad(sharded))(variables["params"], variables["buffers"], X)
    leaves = dict(module.eval().named_parameters())
    loss = (module(torch.from_numpy(jax.device_get(X).copy())) ** 2).mean()
    expected = torch.autograd.grad(loss, list(leaves.values()))
    agree(value, loss.detach().numpy())
    agree([gradient[name] for name in leaves], [g.numpy() for g in expected])


@pytest.mark.thinned(2)
@pytest.mark.skipif(not hasattr(jax.core.ShapedArray, "mat"), reason="jax before 0.10 has no reduced values")
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("wrap", [torch2jax, t2j_autodiff.torch2jax], ids=["dist", "autodiff"])
def test_gradients_of_reduced_operands_are_not_summed_yet(wrap, jitted):
    # Regression: JAX refused the gradient of a call whose operands are all reduced.
    mesh, reduced = mesh_of("Explicit", data=8), P(None, None, reduced={"data"})

    def of(f):
        return lambda x, c, w: f(x, w) * f(c, w).sum()

    def gradients(program):
        found = jax.grad(lambda *args: (program(*args) ** 2).sum(), (0, 1, 2))
        return jax.jit(found) if jitted else found

    with use(mesh):
        specs = P("data"), reduced, reduced
        sharded = jax.shard_map(of(wrap(in_torch)), in_specs=specs, out_specs=P("data"))
        ours = gradients(sharded)(*(jax.reshard(x, spec) for x, spec in zip((X, X[:2], W), specs, strict=True)))
        assert ["U:data" in str(jax.typeof(x)) for x in ours] == [False, True, True]
        agree([jax.reshard(x, P()) for x in ours], gradients(of(in_jnp))(X, X[:2], W))
