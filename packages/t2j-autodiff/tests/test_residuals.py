"""How often the forward runs, what is kept for the backward, and what becomes of it."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import T2jWarning, _residuals, checkpoint_policy, clear_residuals, torch2jax
from t2j_core.testing import live_functions

N = 5000  # more elements than a function that is run again may have
X = jnp.linspace(-1, 1, N)


@pytest.fixture(autouse=True)
def nothing_kept():
    clear_residuals()
    yield
    clear_residuals()


class Counted:
    """A torch function that counts its runs on data."""

    def __init__(self):
        self.runs = 0

    def __call__(self, x):
        self.runs += not x.is_meta
        return torch.tanh(x).exp().sum()


def in_jnp(x):
    return jnp.exp(jnp.tanh(x)).sum()


def run_twice(x, f):
    _, pull = jax.vjp(f, x)
    return pull(jnp.float32(1))[0] + pull(jnp.float32(1))[0]


def through_scan(x, f, wrap=lambda f: f):
    step = wrap(lambda c, _: (c * 0.9 + f(c) / N, None))
    return jax.grad(lambda x: jax.lax.scan(step, x, length=5)[0].sum())(x)


RUNS = {
    "value_and_grad": (lambda x, f: jax.value_and_grad(f)(x), 1),
    "jitted value_and_grad": (lambda x, f: jax.jit(jax.value_and_grad(f))(x), 1),
    "jitted grad": (lambda x, f: jax.jit(jax.grad(f))(x), 1),
    "value of value_and_grad": (lambda x, f: jax.jit(lambda x: jax.value_and_grad(f)(x)[0])(x), 1),
    "pullback twice": (run_twice, 2),
    "grad of scan": (through_scan, 5),
    "grad of scan of checkpoint": (lambda x, f: through_scan(x, f, jax.checkpoint), 10),
    "checkpoint": (lambda x, f: jax.jit(jax.grad(jax.checkpoint(f)))(x), 1),  # the value is not used
    "checkpoint with policy": (
        lambda x, f: jax.jit(jax.value_and_grad(jax.checkpoint(f, policy=checkpoint_policy)))(x),
        1,
    ),
    "same grad twice": (lambda x, f: jax.jit(lambda x: jax.grad(f)(x) + jax.grad(f)(x))(x), 1),
    "vmap of grad": (lambda x, f: jax.jit(jax.vmap(jax.grad(f)))(jnp.stack([x, x])), 1),
    "grad of vmap": (lambda x, f: jax.jit(jax.grad(lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])).sum()))(x), 1),
}


@pytest.mark.parametrize("name", RUNS)
def test_how_often_the_forward_runs(name):
    call, expected = RUNS[name]
    counted = Counted()
    f = torch2jax(counted)
    result = jax.block_until_ready(call(X, f))
    for mine, other in zip(jax.tree.leaves(result), jax.tree.leaves(call(X, in_jnp)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)
    assert counted.runs == expected
    assert not _residuals._kept


def test_many_cotangents_use_one_graph():
    runs = []

    def fn(x):
        if not x.is_meta:
            runs.append(1)
        return torch.tanh(x).view(4, -1).sum(1)

    jacobian = jax.jacrev(torch2jax(fn))(X)
    np.testing.assert_allclose(jacobian, jax.jacrev(lambda x: jnp.tanh(x).reshape(4, -1).sum(1))(X), atol=1e-5)
    assert len(runs) == 1


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
def test_all_ways_agree(residuals):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(784, 3))
    torch.manual_seed(0)
    images = torch.randn(2, 1, 16, 16)
    f = torch2jax(lambda x: torch.log_softmax(model(x), -1)[:, 0].sum(), residuals=residuals)
    leaf = images.clone().requires_grad_()
    torch.log_softmax(model(leaf), -1)[:, 0].sum().backward()
    got = jax.jit(jax.grad(f))(jnp.asarray(images.numpy()))
    np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")  # torch's word on `.item()`
def test_what_cannot_be_traced_keeps_its_graph():
    def fn(x):
        return x.sin().sum() * x[0].item()

    f = torch2jax(fn, output_shapes=jax.ShapeDtypeStruct((), jnp.float32), residuals="graph")
    with pytest.warns(match="cannot be traced"):
        gradient = jax.grad(f)(X)
    np.testing.assert_allclose(gradient, np.cos(X) * X[0], rtol=1e-4, atol=1e-6)
    assert "kept autograd graph" in f.explain()


def test_graphs_are_freed_by_the_backward_and_by_request():
    saved = []

    class Saves(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            kept = x * 2
            saved.append(weakref.ref(kept))
            ctx.kept = kept
            return kept.clone()

        @staticmethod
        def backward(ctx, g):
            return g * 2

    f = torch2jax(lambda x: Saves.apply(x).sum())
    jax.grad(f)(X)
    gc.collect()
    assert not _residuals._kept
    assert saved[-1]() is None
    _, pull = jax.vjp(f, X)
    assert len(_residuals._kept) == 1
    assert saved[-1]() is not None
    assert clear_residuals() == 1
    gc.collect()
    assert saved[-1]() is None
    np.testing.assert_array_equal(pull(jnp.float32(1))[0], np.full(N, 2.0))  # runs the forward again


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(_residuals, "residual_bytes", 10 * 4 * N)
    f = torch2jax(lambda x: torch.tanh(x).exp().sum())
    pulls = [jax.vjp(f, X * k)[1] for k in range(20)]
    assert _residuals._kept_bytes <= 10 * 4 * N
    assert 0 < len(_residuals._kept) < 20
    for k, pull in enumerate(pulls):
        expected = jax.grad(in_jnp)(X * k)
        np.testing.assert_allclose(pull(jnp.float32(1))[0], expected, rtol=1e-4, atol=1e-5)


def test_forward_mode_alone_stops_keeping():
    f = torch2jax(lambda x: torch.tanh(x).exp().sum())
    push = jax.jit(lambda x: jax.jvp(f, (x,), (x,)))
    for _ in range(3):
        jax.block_until_ready(push(X))
    assert not _residuals._kept
    assert float(push(X)[1]) == pytest.approx(float(jax.jvp(in_jnp, (X,), (X,))[1]), rel=1e-4)
    np.testing.assert_allclose(jax.grad(f)(X), jax.grad(in_jnp)(X), rtol=1e-4, atol=1e-6)


class KeepsItsArgument(torch.autograd.Function):
    """Stores an input without `save_for_backward`."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.x


def test_a_function_that_stores_its_argument():
    f = torch2jax(lambda x: KeepsItsArgument.apply(x).sum())
    step = jax.jit(lambda x: x - 0.1 * jax.grad(f)(x), donate_argnums=0)
    x = X + 0
    for _ in range(3):
        x = step(x)
    np.testing.assert_allclose(x, X * 0.8**3, rtol=1e-5)
    assert "keeps its arguments" in f.explain()


def test_donated_inputs_are_not_referred_to():
    f = torch2jax(lambda x: (x * torch.sin(x)).sum())
    step = jax.jit(lambda x: x - 0.1 * jax.grad(f)(x), donate_argnums=0)
    g = jax.grad(lambda x: (x * jnp.sin(x)).sum())
    x, expected = X + 0, X
    for _ in range(5):
        x, expected = step(x), expected - 0.1 * g(expected)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-6)


def test_a_loop_invariant_gradient():
    f = torch2jax(lambda x: torch.tanh(x).exp().sum())

    @jax.jit
    def total(x):
        return jax.lax.fori_loop(0, 5, lambda _, c: c + jax.grad(f)(x), jnp.zeros_like(x))

    np.testing.assert_allclose(total(X), 5 * jax.grad(in_jnp)(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [8, N])  # one that is run again, unless it is random, and one that is not
def test_unseeded_dropout_has_one_mask(n):
    f = torch2jax(lambda x: torch.nn.functional.dropout(x, 0.5))
    y, pull = jax.vjp(f, jnp.ones(n))
    np.testing.assert_array_equal(pull(jnp.ones(n))[0], y)


def test_unseeded_randomness_that_is_drawn_again_warns():
    f = torch2jax(lambda x: torch.nn.functional.dropout(x, 0.5).sum(), residuals="recompute")
    with pytest.warns(T2jWarning, match="draws random numbers.*`rng=True`"):
        jax.grad(f)(X)


def test_nothing_of_a_dropped_function_stays():
    gc.collect()
    before = live_functions()
    for k in range(200):
        f = torch2jax(lambda x, k=k: (x * k).sin().sum())
        jax.block_until_ready(jax.jit(jax.grad(f))(X[:8]))
        jax.block_until_ready(jax.vmap(jax.grad(f))(X[:8].reshape(2, 4)))
        del f
    jax.clear_caches()
    gc.collect()
    assert live_functions() <= before + 2


def test_explain():
    f = torch2jax(lambda x: torch.tanh(x).exp().sum())
    assert "was not called yet" in f.explain()
    jax.grad(f)(X)
    assert "reverse mode: kept autograd graph" in f.explain()
    assert "forward mode: torch.func.jvp" in f.explain()
    assert "vmap: auto" in f.explain()


def test_large_tangents_stay_in_forward_mode():
    # Regression: looking at the memory of torch's symbolic zeros raised, and forward mode was given up.
    f = torch2jax(lambda x: torch.tanh(x).square().sum())
    x = jnp.linspace(-1, 1, 1 << 19)
    push = jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (x,))[1])
    expected = jax.jvp(jax.grad(lambda x: jnp.square(jnp.tanh(x)).sum()), (x,), (x,))[1]
    for _ in range(3):
        np.testing.assert_allclose(push(x), expected, rtol=1e-3, atol=1e-5)
    assert "forward mode: torch.func.jvp" in f.explain()
