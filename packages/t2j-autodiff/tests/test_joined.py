"""A forward and its pushforward as one call of a compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _counted import Counted, in_jnp
from common import agree
from t2j_autodiff import clear_residuals, torch2jax

X = jnp.linspace(-1, 1, 5000)  # more elements than a function that is run again may have
V = jnp.cos(X)


def calls(function, *args):
    """How many calls of torch a compiled program makes."""
    return jax.jit(function).lower(*args).compile().as_text().count('custom_call_target="t2j_torch_call"')


def pushed(f):
    return lambda x, v: jax.jvp(f, (x,), (v,))


def runs(counted, function, *args):
    """How often a program runs the function, once it is settled how."""
    compiled = jax.jit(function)
    for _ in range(4):
        jax.block_until_ready(compiled(*args))
    before = counted.runs
    jax.block_until_ready(compiled(*args))
    return counted.runs - before


@pytest.mark.parametrize("used", [(0, 1), (1,)])
def test_one_run_for_value_and_tangent(used):
    counted = Counted()
    choose = lambda f: lambda x, v: [y for i, y in enumerate(pushed(f)(x, v)) if i in used]
    f = torch2jax(counted)
    agree(jax.jit(choose(f))(X, V), choose(in_jnp)(X, V))
    assert runs(counted, choose(f), X, V) == 1
    assert calls(choose(f), X, V) == 1
    agree(jax.jit(choose(f))(2 * X, V), choose(in_jnp)(2 * X, V))


def test_a_chain_and_a_scan():
    f, g = torch2jax(lambda x: torch.tanh(x).exp()), lambda x: jnp.exp(jnp.tanh(x))
    chain = lambda f: pushed(lambda x: f(f(2 * x)).sum() * f(x))
    agree(jax.jit(chain(f))(X, V), chain(g)(X, V))
    assert calls(chain(f), X, V) == 3
    scan = lambda f: pushed(lambda x: jax.lax.scan(lambda c, _: (f(0.5 * c), c[0]), x, length=3))
    agree(jax.jit(scan(f))(X, V), scan(g)(X, V))


def test_a_value_that_is_used_before_the_pushforward():
    def early(f):
        def both(x, v):
            y, push = jax.linearize(f, x)
            return jnp.sin(y), push(v * jnp.sin(y)), y

        return both

    counted = Counted()
    f = torch2jax(counted)
    for _ in range(4):
        agree(jax.jit(early(f))(X, V), early(in_jnp)(X, V))
    assert calls(early(f), X, V) == 2


def test_two_pushforwards_of_one_forward():
    def twice(f):
        def both(x, v):
            y, push = jax.linearize(f, x)
            return push(v), push(2 * v), y

        return both

    f = torch2jax(Counted())
    for _ in range(4):
        agree(jax.jit(twice(f))(X, V), twice(in_jnp)(X, V))


def test_a_pushforward_and_a_pullback_of_one_forward():
    def both_ways(f):
        def both(x, v):
            y, push = jax.linearize(f, x)
            return push(v), jax.linear_transpose(push, x)(y), y

        return both

    f = torch2jax(Counted())
    for _ in range(4):
        agree(jax.jit(both_ways(f))(X, V), both_ways(in_jnp)(X, V))


def test_a_pushforward_at_other_operands_than_those_of_its_forward():
    """JAX makes none, and the value would be the function's at the operands of the pushforward."""
    forward, pushforward = (
        eqn for eqn in jax.make_jaxpr(pushed(torch2jax(Counted())))(X, V).eqns if "fn" in eqn.params
    )

    @jax.jit
    def elsewhere(x, v):
        y, residual = forward.primitive.bind(x, **forward.params)
        return y, pushforward.primitive.bind(x + 1, residual, v, **pushforward.params)[0]

    for _ in range(4):
        y, dy = elsewhere(X, V)
    agree(y, in_jnp(X))
    agree(dy, pushed(in_jnp)(X + 1, V)[1])


def test_a_function_that_asks_whether_it_is_differentiated():
    f = torch2jax(lambda x: torch.sin(x) + x.requires_grad)
    for _ in range(4):
        agree(jax.jit(pushed(f))(X, V), (jnp.sin(X) + 1, jnp.cos(X) * V))


@pytest.mark.parametrize("returns", ["integers", "operand", "constant"])
def test_results_of_all_kinds(returns):
    def in_torch(x, n):
        other = {"integers": (x * 4).long(), "operand": x, "constant": torch.ones(3)}[returns]
        return other, torch.sin(x) * n, n + 1

    def same(x, n):
        other = {"integers": (x * 4).astype(jnp.int32), "operand": x, "constant": jnp.ones(3)}[returns]
        return other, jnp.sin(x) * n.astype(jnp.float32), n + 1

    both = lambda f: lambda x, v: jax.jvp(lambda x: f(x, jnp.arange(5000)), (x,), (v,))
    f = torch2jax(in_torch)
    for _ in range(4):
        (y, dy), (z, dz) = jax.jit(both(f))(X, V), both(same)(X, V)
        agree(y, z)
        agree((dy[0], dy[1]) if returns != "integers" else dy[1], (dz[0], dz[1]) if returns != "integers" else dz[1])
    assert calls(both(f), X, V) == 1


class OnlyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_a_function_without_forward_mode():
    f = torch2jax(lambda x: OnlyBackward.apply(x).sin())
    for _ in range(4):
        agree(jax.jit(pushed(f))(X, V), pushed(lambda x: jnp.sin(x**2))(X, V))


def test_a_function_whose_tangents_torch_loses():
    """`scatter_reduce_jvp` returns nothing for "prod", which `torch.func.jvp` takes for zero."""
    indices = torch.arange(5000) // 2
    f = torch2jax(lambda x, y: torch.scatter_reduce(torch.ones(2500), 0, indices, x, "prod") + y.sum())
    same = lambda x, y: x[::2] * x[1::2] + y.sum()
    for into in (lambda f: lambda y: f(X, y), lambda f: lambda x: f(x, X)):  # the first settles what concerns values
        compiled = jax.jit(pushed(into(f)))
        for _ in range(4):
            agree(compiled(X, V), pushed(into(same))(X, V))


def test_an_exception_of_forward_mode_after_it_was_settled():
    fails = []

    def fn(x):
        if fails and torch.autograd.forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError("no forward mode")
        return torch.sin(x)

    compiled = jax.jit(pushed(torch2jax(fn)))
    for fails_now in ([], [], [], [], [1], [1]):
        fails[:] = fails_now
        agree(compiled(X, V), pushed(jnp.sin)(X, V))


def test_the_value_of_a_function_with_a_side_effect_is_that_of_its_call():
    seen = []

    def fn(x):
        seen.append(len(seen))
        return torch.sin(x) + len(seen)

    f = torch2jax(fn, has_side_effect=True, output_shapes=jax.ShapeDtypeStruct((5000,), jnp.float32))
    compiled = jax.jit(pushed(f))
    for _ in range(4):
        seen.clear()
        y, dy = jax.block_until_ready(compiled(X, V))
        agree((y, dy), (jnp.sin(X) + 1, jnp.cos(X) * V))


BATCHES = {
    "vmap of jvp": lambda f: jax.vmap(pushed(f)),
    "jvp of vmap": lambda f: pushed(jax.vmap(f)),
    "vmap over tangents": lambda f: lambda x, v: jax.vmap(pushed(f), (None, 0))(x[0], v),
    "grad of jvp": lambda f: jax.grad(lambda x, v: sum(pushed(f)(x[0], v[0]))),
    "jvp of grad": lambda f: lambda x, v: pushed(jax.grad(f))(x[0], v[0]),
    "jvp of jvp": lambda f: lambda x, v: jax.jvp(lambda x: pushed(f)(x, v[0]), (x[0],), (v[0],)),
    "jvp of a checkpoint": lambda f: lambda x, v: pushed(jax.checkpoint(f))(x[0], v[0]),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", BATCHES)
def test_with_other_transformations(name):
    x, v = jnp.stack([X, 2 * X]), jnp.stack([V, X])
    f = torch2jax(Counted())
    for _ in range(4):
        agree(jax.jit(BATCHES[name](f))(x, v), BATCHES[name](in_jnp)(x, v), rtol=1e-3)


def test_no_graph_is_kept_for_it():
    clear_residuals()
    f = torch2jax(Counted())
    jax.block_until_ready(jax.jit(jax.grad(f))(X))
    compiled = jax.jit(pushed(f))
    for _ in range(3):
        jax.block_until_ready(compiled(X, V))
    assert clear_residuals() == 0


def test_a_random_function_has_the_tangent_of_its_value():
    f = torch2jax(lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)), rng=True)
    compiled = jax.jit(lambda key, x, v: jax.jvp(lambda x: f(key, x), (x,), (v,)))
    for seed in range(5):
        y, dy = compiled(jax.random.key(seed), jnp.ones(5000), jnp.ones(5000))
        np.testing.assert_array_equal(y, dy)
