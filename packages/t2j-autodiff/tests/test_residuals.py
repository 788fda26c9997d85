"""How often the forward runs, what is kept for the backward, and what becomes of it."""

from __future__ import annotations

import operator
import threading
import time
import types
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _counted import Counted, in_jnp
from common import ALL, check_message
from t2j_autodiff import PerformanceWarning, T2jWarning, checkpoint_policy, clear_residuals, torch2jax
from t2j_autodiff._base.decisions import Decisions
from t2j_autodiff._base.options import DiffOptions
from t2j_autodiff._batching.batch_axes import NO_AXES
from t2j_autodiff._residuals import tracing
from t2j_autodiff._residuals.protocol import DifferentiatedFunction
from t2j_autodiff._residuals.store import kept_graphs
from t2j_autodiff._residuals.traced import TracedFunction
from t2j_core import OutputError, _compat, j2t
from t2j_core.extend import Leaf
from t2j_core.testing import assert_nothing_escaped, collect, live_functions

N = 5000  # more elements than a function that is run again may have
X = jnp.linspace(-1, 1, N)
CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(not _compat.can_compile, reason="torch before 2.9 does not compile functions")


@pytest.fixture(autouse=True)
def nothing_kept():
    clear_residuals()
    yield
    clear_residuals()


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
    assert not kept_graphs


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


PARTS = {
    "a part": (lambda x: x[1:] * x[:-1], lambda x: x[1:] * x[:-1]),
    "a conjugate": (lambda x: x.conj() * x**2, lambda x: x.conj() * x**2),
    "numbers of another dtype": (
        lambda x: torch.view_as_real(x)[:, 1] ** 2 * torch.view_as_real(x)[:, 0],
        lambda x: x.imag**2 * x.real,
    ),
}


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_an_operand_that_are_saved(name, residuals):
    function, wanted = PARTS[name]
    f, x = torch2jax(function, residuals=residuals), jax.lax.complex(X, X[::-1] ** 2)
    loss = lambda f: lambda x: f(x).real.sum()
    expected = jax.grad(loss(wanted))(x)
    for _ in range(3):  # what is saved by hooks, on copies and on windows
        np.testing.assert_allclose(jax.grad(loss(f))(x), expected, rtol=1e-5, atol=1e-5)


def test_a_traced_graph_runs_where_its_operands_are():
    def f(x):
        return ((x * torch.arange(6.0, device=x.device)).sin().sum() + torch.zeros((), device=x.device),)

    vector, number = (Leaf(shape, np.dtype(np.float32), torch.float32) for shape in ((6,), ()))
    traced = TracedFunction.of(
        DifferentiatedFunction(f, [vector], [number], (0,), (0,), Decisions("f", DiffOptions()), "f")
    )
    forward = traced.forward(f, f, NO_AXES)
    pullback = traced.pullback((0,), (0,), NO_AXES, recompute=None)
    for device in ("cpu", "meta"):  # in place of a GPU
        x, ct = torch.ones(6, device=device), torch.ones((), device=device)
        y, *saved = forward(x)
        (g,) = pullback(x, *saved, ct)
        assert {t.device.type for t in (y, g, *saved)} == {device}
        if device == "cpu":
            torch.testing.assert_close(y, f(x)[0])
            torch.testing.assert_close(g, torch.arange(6.0) * torch.arange(6.0).cos())


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
    collect(passes=2)
    assert not kept_graphs
    assert saved[-1]() is None
    _, pull = jax.vjp(f, X)
    assert len(kept_graphs) == 1
    assert saved[-1]() is not None
    assert clear_residuals() == 1
    collect(passes=2)
    assert saved[-1]() is None
    np.testing.assert_array_equal(pull(jnp.float32(1))[0], np.full(N, 2.0))  # runs the forward again


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(kept_graphs, "limit", lambda device: 10 * 4 * N)
    f = torch2jax(lambda x: torch.tanh(x).exp().sum())
    pulls = [jax.vjp(f, X * k)[1] for k in range(20)]
    assert kept_graphs.nbytes(CPU) <= 10 * 4 * N
    assert 0 < len(kept_graphs) < 20
    for k, pull in enumerate(pulls):
        expected = jax.grad(in_jnp)(X * k)
        np.testing.assert_allclose(pull(jnp.float32(1))[0], expected, rtol=1e-4, atol=1e-5)


def test_forward_mode_alone_stops_keeping():
    f = torch2jax(lambda x: torch.tanh(x).exp().sum())
    push = jax.jit(lambda x: jax.jvp(f, (x,), (x,)))
    for _ in range(3):
        jax.block_until_ready(push(X))
    assert not kept_graphs
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
@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_unseeded_dropout_has_one_mask(n):
    f = torch2jax(lambda x: torch.nn.functional.dropout(x, 0.5))
    y, pull = jax.vjp(f, jnp.ones(n))
    np.testing.assert_array_equal(pull(jnp.ones(n))[0], y)


def test_unseeded_randomness_that_is_drawn_again_warns():
    f = torch2jax(lambda x: torch.nn.functional.dropout(x, 0.5).sum(), residuals="recompute")
    with pytest.warns(T2jWarning, match="draws random numbers.*`rng=True`"):
        jax.grad(f)(X)


@pytest.mark.parametrize("derivative", [jax.grad, jax.hessian, lambda f: lambda x: jax.jvp(f, (x,), (x,))])
def test_random_numbers_that_another_thread_draws_do_not_warn(derivative):
    def torch_fn(x):  # while it runs, somebody else makes a layer, say
        thread = threading.Thread(target=torch.rand, args=(1,))
        thread.start()
        thread.join()
        return x.sin().sum()

    f = torch2jax(torch_fn, output_shapes=(), residuals="recompute")
    with warnings.catch_warnings():
        warnings.simplefilter("error", T2jWarning)
        jax.block_until_ready(derivative(f)(X[:8]))


def test_nothing_of_a_dropped_function_stays():
    collect(passes=2)
    before = live_functions()
    for k in range(40):
        f = torch2jax(lambda x, k=k: (x * k).sin().sum())
        jax.block_until_ready(jax.jit(jax.grad(f))(X[:8]))
        jax.block_until_ready(jax.vmap(jax.grad(f))(X[:8].reshape(2, 4)))
        del f
    collect(passes=2)
    assert live_functions() == before


def test_explain():
    f = torch2jax(lambda x: torch.tanh(x).exp().sum())
    assert "was not called yet" in f.explain()
    jax.grad(f)(X)
    assert "reverse mode: kept autograd graph" in f.explain()
    assert "forward mode: torch.func.jvp" in f.explain()
    assert "vmap: not used so far" in f.explain()


def test_large_tangents_stay_in_forward_mode():
    # Regression: looking at the memory of torch's symbolic zeros raised, and forward mode was given up.
    f = torch2jax(lambda x: torch.tanh(x).square().sum())
    x = jnp.linspace(-1, 1, 1 << 19)
    push = jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (x,))[1])
    expected = jax.jvp(jax.grad(lambda x: jnp.square(jnp.tanh(x)).sum()), (x,), (x,))[1]
    for _ in range(3):
        np.testing.assert_allclose(push(x), expected, rtol=1e-3, atol=1e-5)
    assert "forward mode: torch.func.jvp" in f.explain()


def rows(x):
    """Twelve outputs."""
    return torch.tanh(x).view(12, -1).sum(1)


class CountedSlow:
    """Counts its runs on data."""

    def __init__(self, fn):
        self.fn = fn
        self.runs = 0

    def __call__(self, x):
        if not x.is_meta:
            self.runs += 1
            time.sleep(0.001)
        return self.fn(x)


def test_jacrev_of_twelve_outputs_runs_once():
    counted = CountedSlow(rows)
    x = jnp.linspace(-1, 1, 12 * 500)
    jacobian = jax.jit(jax.jacrev(torch2jax(counted)))(x)
    expected = jax.jacrev(lambda x: jnp.tanh(x).reshape(12, -1).sum(1))(x)
    np.testing.assert_allclose(jacobian, expected, atol=1e-5)
    assert counted.runs == 1
    assert not kept_graphs


def test_the_value_alone_runs_once_and_keeps_nothing(monkeypatch):
    kept = []
    keep = kept_graphs.keep
    monkeypatch.setattr(kept_graphs, "keep", lambda *graph: kept.append(1) or keep(*graph))
    counted = Counted()
    f = torch2jax(counted)
    jax.block_until_ready(jax.jit(lambda x: jax.value_and_grad(f)(x)[0])(X))
    assert counted.runs == 1
    assert not kept


def vjp_twice_jitted(x, f):
    def both(x):
        _, pull = jax.vjp(f, x)
        return pull(jnp.float32(1))[0] + pull(jnp.float32(2))[0]

    return jax.jit(both)(x)


def grad_under_cond(x, f):
    return jax.jit(lambda x: jax.grad(lambda x: jax.lax.cond(x.sum() > 9, lambda x: x.sum(), f, x))(x))(x)


def grad_of_map(x, f):
    return jax.jit(jax.grad(lambda x: jax.lax.map(f, jnp.stack([x, 2 * x, 3 * x])).sum()))(x)


def linearized(x, f):
    y, push = jax.linearize(f, x)
    return y, push(x), push(2 * x)


def in_while(x, f):
    return jax.jit(
        lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jax.grad(f)(c[1])), (0, x))[1]
    )(x)


MORE_RUNS = {
    "two pulls in one program": (vjp_twice_jitted, 2),
    "grad of cond": (grad_under_cond, 1),
    "grad of map": (grad_of_map, 3),
    "grad in while": (in_while, 3),
    "vmap of vmap of grad": (
        lambda x, f: jax.jit(jax.vmap(jax.vmap(jax.grad(f))))(jnp.stack([x] * 4).reshape(2, 2, N)),
        1,
    ),
    "grad of vmap of vmap": (
        lambda x, f: jax.jit(jax.grad(lambda x: jax.vmap(jax.vmap(f))(x).sum()))(jnp.stack([x] * 4).reshape(2, 2, N)),
        1,
    ),
    "vmap of value_and_grad of one input": (
        lambda x, f: jax.jit(jax.vmap(jax.value_and_grad(lambda s, x: f(s * x)), (0, None)))(jnp.arange(3.0), x),
        1,
    ),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", MORE_RUNS)
def test_how_often_the_forward_runs_in_programs(name):
    call, expected = MORE_RUNS[name]
    counted = Counted()
    f = torch2jax(counted)
    for k in (1, 2):  # the second time the program is compiled already
        result = jax.block_until_ready(call(X / k, f))
        for mine, other in zip(jax.tree.leaves(result), jax.tree.leaves(call(X / k, in_jnp)), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-2)
        assert counted.runs == k * expected
        assert not kept_graphs


def test_nothing_is_left_after_many_gradients():
    f = torch2jax(Counted())
    eager, jitted, batch = jax.grad(f), jax.jit(jax.grad(f)), jax.jit(jax.vmap(jax.grad(f)))
    for k in range(100):
        eager(X * k)
        jitted(X * k)
    jax.block_until_ready(batch(jnp.stack([X, X])))
    assert not kept_graphs
    assert kept_graphs.nbytes(CPU) == 0
    assert_nothing_escaped()


class Watched(torch.autograd.Function):
    """Its graph holds a tensor that `made` refers to weakly."""

    made: list = []

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x * 2
        Watched.made.append(weakref.ref(ctx.kept))
        return ctx.kept.clone()

    @staticmethod
    def backward(ctx, g):
        return g * 2


def watched_alive():
    collect(passes=2)
    return sum(reference() is not None for reference in Watched.made)


@pytest.mark.parametrize(
    "use",
    [
        lambda f: jax.grad(f)(X),
        lambda f: jax.jit(jax.grad(f))(X),
        lambda f: jax.jit(lambda x: jax.vjp(f, x)[0])(X),
        lambda f: jax.jacrev(lambda x: jnp.stack([f(x), f(2 * x)]))(X),
        lambda f: jax.jit(jax.grad(lambda x: jax.lax.scan(lambda c, _: (c + f(c), None), x, length=3)[0].sum()))(X),
        lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(X),
        lambda f: jax.jvp(jax.grad(f), (X,), (X,)),
        lambda f: jax.grad(lambda x: jax.grad(f)(x).sum())(X),
        lambda f: jax.linearize(f, X)[1](X),
    ],
    ids=["grad", "jitted grad", "value of vjp", "jacrev", "scan", "jvp", "hvp", "double backward", "linearize"],
)
@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")  # vmap knows no rule for this Function
def test_every_use_frees_its_graphs(use):
    Watched.made = []
    jax.block_until_ready(use(torch2jax(lambda x: Watched.apply(x).sum())))
    assert Watched.made
    assert not kept_graphs
    assert watched_alive() == 0


def test_a_failing_backward_frees_its_graph():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.kept = x * 2
            Watched.made.append(weakref.ref(ctx.kept))
            return ctx.kept.clone()

        @staticmethod
        def backward(ctx, g):
            raise ZeroDivisionError("on purpose")

    Watched.made = []
    f = torch2jax(lambda x: Fails.apply(x).sum())
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        jax.grad(f)(X)
    assert not kept_graphs
    assert watched_alive() == 0


def test_the_number_of_one_function_is_nothing_to_another():
    # Two pullbacks called in the other order, of two functions and of one function at two points.
    f, g = torch2jax(Counted()), torch2jax(lambda x: (x**3).sum().exp())
    pulls = [jax.vjp(h, x)[1] for h, x in ((f, X), (g, X), (f, 2 * X), (g, X / 2))]
    assert len(kept_graphs) == 4
    results = [pull(jnp.float32(1))[0] for pull in reversed(pulls)]
    assert not kept_graphs
    same = [jax.grad(h)(x) for h, x in ((in_jnp, X), (g_in_jnp, X), (in_jnp, 2 * X), (g_in_jnp, X / 2))]
    for mine, other in zip(results, reversed(same), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


def g_in_jnp(x):
    return jnp.exp((x**3).sum())


def test_a_forged_number_is_not_used():
    f, g = torch2jax(Counted()), torch2jax(lambda x: (x**2).sum())
    _, pull_f = jax.vjp(f, X)
    _, pull_g = jax.vjp(g, X)
    numbers = [leaf for leaf in jax.tree.leaves(pull_f) if getattr(leaf, "dtype", None) == jnp.int32]
    forged = jax.tree.map(lambda leaf: numbers[0] if getattr(leaf, "dtype", None) == jnp.int32 else leaf, pull_g)
    np.testing.assert_allclose(forged(jnp.float32(1))[0], 2 * X, rtol=1e-6)
    np.testing.assert_allclose(pull_f(jnp.float32(1))[0], jax.grad(in_jnp)(X), rtol=1e-4, atol=1e-5)


def test_a_bound_of_nothing_keeps_nothing_and_stays_right(monkeypatch):
    monkeypatch.setattr(kept_graphs, "limit", lambda device: 0)
    counted = Counted()
    f = torch2jax(counted)
    np.testing.assert_allclose(jax.jit(jax.grad(f))(X), jax.grad(in_jnp)(X), rtol=1e-4, atol=1e-5)
    assert counted.runs == 2
    assert not kept_graphs
    assert kept_graphs.nbytes(CPU) == 0


def test_scan_beyond_the_bound(monkeypatch):
    monkeypatch.setattr(kept_graphs, "limit", lambda device: 3 * 4 * N * 2)
    f = torch2jax(Counted())

    def through(f):
        return jax.grad(lambda x: jax.lax.scan(lambda c, _: (c * 0.9 + f(c) / N, None), x, length=8)[0].sum())

    np.testing.assert_allclose(jax.jit(through(f))(X), through(in_jnp)(X), rtol=1e-4, atol=1e-4)
    assert not kept_graphs
    assert kept_graphs.nbytes(CPU) == 0


def test_loop_invariant_gradients_and_equal_ones():
    counted = Counted()
    f = torch2jax(counted)

    @jax.jit
    def both(x):
        loop = jax.lax.fori_loop(0, 5, lambda i, c: c + jax.grad(f)(x) * i.astype(jnp.float32), jnp.zeros_like(x))
        return loop, jax.grad(f)(x), jax.value_and_grad(f)(x)

    loop, gradient, (value, again) = both(X)
    expected = jax.grad(in_jnp)(X)
    np.testing.assert_allclose(loop, 10 * expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, in_jnp(X), rtol=1e-5)
    assert not kept_graphs


def test_a_reverse_mode_after_forward_mode_keeps_graphs_again():
    counted = Counted()
    f = torch2jax(counted)
    push = jax.jit(lambda x: jax.jvp(f, (x,), (x,)))
    for _ in range(2):
        jax.block_until_ready(push(X))
    jax.grad(f)(X)
    counted.runs = 0
    jax.block_until_ready(jax.grad(f)(X))
    assert counted.runs == 1
    assert not kept_graphs


def test_the_graph_refers_to_no_memory_of_jax():
    f = torch2jax(lambda x, y: (x * torch.sin(y) * x).sum() + (x.view(50, -1) @ y.view(50, -1).T).sum())
    x, y = jnp.linspace(-1, 1, N), jnp.linspace(0, 2, N)
    _, pull = jax.vjp(f, x + 0, y + 0)
    (graph,) = kept_graphs.values()
    assert not graph.saved.operands
    weights = [weakref.ref(leaf) for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]
    results = pull(jnp.float32(1))
    del pull, graph
    collect(passes=2)
    assert all(reference() is None for reference in weights)
    expected = jax.grad(
        lambda x, y: (x * jnp.sin(y) * x).sum() + (x.reshape(50, -1) @ y.reshape(50, -1).T).sum(), (0, 1)
    )
    for mine, other in zip(results, expected(x, y), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-3)


def test_inputs_deleted_between_forward_and_backward():
    # The pullback holds the arrays that it needs; what it does not need may be donated and overwritten.
    f = torch2jax(lambda x: torch.tanh(x).exp().sum())
    big = jnp.linspace(-1, 1, 1 << 18)
    expected = np.asarray(jax.grad(in_jnp)(big))

    @jax.jit
    def forward(x):
        return jax.vjp(f, x)

    overwrite = jax.jit(lambda x: x * 0 + 7, donate_argnums=0)
    y, pull = forward(big)
    overwrite(big)
    np.testing.assert_allclose(jax.jit(lambda pull: pull(jnp.float32(1))[0])(pull), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [6])
def test_donation_in_a_long_loop_of_large_arrays(steps):
    f = torch2jax(lambda w, x: ((x @ w).relu() ** 2).mean())

    def same(w, x):
        return (jax.nn.relu(x @ w) ** 2).mean()

    def train(f):
        def step(w, x):
            value, g = jax.value_and_grad(f)(w, x)
            return w - 0.1 * g, value

        return jax.jit(step, donate_argnums=0)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32))
    w, other = jnp.ones((128, 96)) / 50, jnp.ones((128, 96)) / 50
    mine, theirs = train(f), train(same)
    for _ in range(steps):
        w, value = mine(w, x)
        other, expected = theirs(other, x)
        np.testing.assert_allclose(value, expected, rtol=1e-3)
    np.testing.assert_allclose(w, other, rtol=1e-3, atol=1e-4)


def mlp(x):
    w = torch.linspace(-1, 1, 40 * 30).view(40, 30)
    return torch.tanh(torch.tanh(x @ w) @ w.T).sum(0)


def conv(x):
    return torch.nn.functional.conv1d(x[:, None], torch.linspace(-1, 1, 12).view(3, 1, 4), stride=2).relu().sum((0, 2))


def softmax(x):
    return torch.log_softmax(x, -1)[:, :5].mean(0)


def parts(x):
    a, b = x.unbind(1)[:2]
    return (a * b).sin() + x.chunk(2, 1)[1].prod(1)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("fn", [mlp, conv, softmax, parts])
def test_a_traced_graph_answers_as_a_kept_one(fn):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 40)).astype(np.float32))
    v = jnp.cos(x)
    first = None
    for residuals in ("auto", "recompute", "graph"):
        f = torch2jax(fn, residuals=residuals)

        @jax.jit
        def everything(x, f=f):
            loss = lambda x: (f(x) ** 2).sum()
            xs = jnp.stack([x, 2 * x])
            return (
                jax.value_and_grad(loss)(x),
                jax.jacrev(f)(x),
                jax.jvp(f, (x,), (v,)),
                jax.vmap(jax.grad(loss))(xs),
                jax.grad(lambda xs: jax.vmap(loss)(xs).sum())(xs),
                jax.jvp(jax.grad(loss), (x,), (v,))[1],
                jax.grad(jax.checkpoint(loss))(x),
            )

        got = everything(x)
        first = first or got
        for mine, other in zip(jax.tree.leaves(got), jax.tree.leaves(first), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
        if residuals == "graph":
            assert "from a traced graph" in f.explain()
            assert not kept_graphs


def test_two_pulls_on_a_traced_graph_run_the_function_once():
    counted = CountedSlow(rows)
    f = torch2jax(counted, residuals="graph")
    x = jnp.linspace(-1, 1, 6000)
    y, pull = jax.vjp(f, x)
    ran = counted.runs  # tracing itself runs it on fake tensors
    a, b = pull(jnp.ones(12))[0], pull(2 * jnp.ones(12))[0]
    np.testing.assert_allclose(2 * a, b, rtol=1e-6)
    np.testing.assert_allclose(a, 1 - jnp.tanh(x) ** 2, rtol=1e-4, atol=1e-6)
    assert counted.runs == ran


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_norms_of_weights_are_saved_in_single_precision(dtype, compiled):
    # Regression: those of float16 are in float16 where torch traces, and in float32 where it runs.
    v, g = jnp.asarray([[1, 2, 3], [4, 5, 7]], dtype), jnp.asarray([[1], [-2]], dtype)
    take = lambda v, g: (torch._weight_norm(v, g, 0) * torch.arange(6, dtype=v.dtype).reshape(2, 3)).sum()
    given = [j2t(a).clone().requires_grad_() for a in (v, g)]
    f = torch2jax(take, residuals="graph", compile=compiled)
    gradients = jax.jit(jax.grad(f, (0, 1)))(v, g)
    for mine, other in zip(gradients, torch.autograd.grad(take(*given), given), strict=True):
        np.testing.assert_allclose(mine.astype(jnp.float32), other.float(), rtol=1e-2, atol=1e-2)
    assert f"from a {'compiled' if compiled else 'traced'} graph" in f.explain()


@torch.library.custom_op("t2j_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * 2, x.new_full((1,), 2.0)


@doubled.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), x.new_empty((1,), dtype=torch.float16)


doubled.register_autograd(
    lambda ctx, ct, _: ct * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output[1]),
)


def test_an_operator_whose_fake_kernel_is_wrong_is_named():
    f = torch2jax(lambda x: doubled(x)[0].sum(), residuals="graph")
    with pytest.raises(OutputError) as caught:
        jax.grad(f)(X)
    expected, got = "torch.float16 of shape (1,)", "torch.float32 of shape (1,)"
    check_message(
        str(caught.value), what="t2j_tests.doubled.default", expected=expected, got=got, remedy='residuals="auto"'
    )
    gradient = jax.grad(torch2jax(lambda x: doubled(x)[0].sum(), residuals="auto"))(X)
    np.testing.assert_array_equal(gradient, np.full(N, 2.0))


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")  # torch's word on `.item()`
def test_what_cannot_be_traced_warns_once_and_is_right():
    f = torch2jax(
        lambda x: x.sin().sum() * (1.0 if x[0].item() > 0 else 2.0),
        output_shapes=jax.ShapeDtypeStruct((), jnp.float32),
        residuals="graph",
    )
    gradient = jax.jit(jax.grad(f))
    with pytest.warns(PerformanceWarning, match="cannot be traced") as record:
        np.testing.assert_allclose(gradient(X), 2 * np.cos(X), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradient(-X), np.cos(X), rtol=1e-4, atol=1e-6)
    assert len(record) == 1


def test_hundreds_of_functions_leave_none_behind():
    collect(passes=2)
    before = live_functions()
    x = X[:4]
    for k in range(2000 if ALL else 400):
        f = torch2jax(lambda x, k=k: (x * k).sum(), output_shapes=jax.ShapeDtypeStruct((), jnp.float32))
        jax.eval_shape(jax.grad(f), x)
        if k % 100 == 0:  # compiling takes what it takes
            jax.block_until_ready(jax.grad(f)(x))
            jax.block_until_ready(jax.vmap(jax.grad(f))(x[None]))
    del f
    collect(passes=2)
    assert live_functions() == before


@pytest.mark.parametrize("n", [8, N])  # quick, and kept
@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_unseeded_randomness_agrees_with_its_value(n):
    keep = 0.75
    f = torch2jax(lambda x: x * (torch.rand_like(x) < keep) / keep)
    x = jnp.linspace(1, 2, n)
    gradient = jax.jit(jax.value_and_grad(lambda x: (lambda y: (y.sum(), y))(f(x)), has_aux=True))
    masks = set()
    for _ in range(3):
        (_, y), g = gradient(x)
        np.testing.assert_allclose(g, y / x, rtol=1e-6)
        masks.add(np.asarray(g).tobytes())
    assert len(masks) > 1
    ys, pull = jax.vjp(f, x)
    np.testing.assert_allclose(pull(jnp.ones(n))[0], ys / x, rtol=1e-6)


@pytest.mark.parametrize("residuals", ["auto", "recompute"])
def test_forward_mode_that_draws_again_warns(residuals):
    f = torch2jax(lambda x: torch.nn.functional.dropout(x, 0.5).sum(), residuals=residuals)
    with pytest.warns(T2jWarning, match="draws random numbers.*`rng=True`"):
        jax.block_until_ready(jax.jvp(f, (X,), (X,)))


def test_a_function_that_requires_gradients_of_an_argument_itself():
    # Regression: the kept graph held the argument, which was refused as kept. Force fields are written so.
    def forces(w, positions):
        energy = torch.tanh(positions.requires_grad_() @ w).square().sum()
        return positions, torch.autograd.grad(energy, positions, create_graph=True)[0]

    def expected(w, positions):
        return positions, jax.grad(lambda x: (jnp.tanh(x @ w) ** 2).sum())(positions)

    f = torch2jax(forces)
    w, positions = jnp.asarray(np.random.default_rng(0).normal(size=(80, 80))).astype(np.float32) / 9, jnp.ones((4, 80))
    for argnums in (0, 1, (0, 1)):
        loss = lambda *a, f=f: sum((y**2).sum() for y in f(*a))
        mine = jax.jit(jax.value_and_grad(loss, argnums))(w, positions)
        reference = jax.value_and_grad(lambda *a: loss(*a, f=expected), argnums)(w, positions)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(reference), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert "kept autograd graph" in f.explain()


def test_numbers_from_the_generator_of_a_gpu_warn_too(monkeypatch):
    generator = torch.Generator()  # in place of one
    seen = types.SimpleNamespace(**{**vars(_compat), "torch_gpus": lambda: [0]})  # by what looks at states, not by all
    monkeypatch.setattr("t2j_core._infer.draws._compat", seen)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    f = torch2jax(lambda x: x * torch.rand(N, generator=generator), residuals="recompute")
    with pytest.warns(T2jWarning, match="draws random numbers"):
        jax.block_until_ready(jax.grad(lambda x: f(x).sum())(X))


@pytest.mark.parametrize("residuals", ["auto", "recompute"])
def test_an_intermediate_that_is_overwritten_after_it_was_saved(residuals):
    # Regression: the kept graph computed with the new values. Torch raises.
    def overwrites(x):
        y = torch.sigmoid(x)
        y += x
        return y.square().sum()

    x = np.ones((80, 80), np.float32)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        overwrites(torch.from_numpy(x).requires_grad_()).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        jax.grad(torch2jax(overwrites, residuals=residuals))(jnp.asarray(x))


_LIBRARY = torch.library.Library("t2j_residuals", "DEF")


def _with_a_state_of_its_own():
    _LIBRARY.define("noisy(Tensor x, float dropout_p=0.) -> (Tensor out, Tensor rng_state)")
    return torch.ops.t2j_residuals.noisy.default


@pytest.mark.parametrize(
    ("operation", "place"),
    [
        (torch.ops.aten._scaled_dot_product_efficient_attention.default, {2: True, 3: True}),
        (torch.ops.aten._scaled_dot_product_flash_attention.default, {6: True, 7: True}),
        (torch.ops.aten._scaled_dot_product_cudnn_attention.default, {6: True, 7: True}),
        (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default, {}),
        (torch.ops.aten.native_layer_norm.default, {}),
        (_with_a_state_of_its_own(), {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_attention_without_dropout_saves_about_it_is_no_residual(operation, place):
    def results(**options):
        graph = torch.fx.Graph()
        call = graph.call_function(operation, (), options)
        return [graph.call_function(operator.getitem, (call, k)) for k in range(len(operation._schema.returns))]

    assert {k: True for k, node in enumerate(results()) if tracing.is_of_no_dropout(node)} == place
    if place:
        with pytest.raises(NotImplementedError, match="dropout"):
            tracing.is_of_no_dropout(results(dropout_p=0.1)[max(place)])
