"""A dropped function goes with all that it owns, whatever was computed with it, and without `jax.clear_caches`."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import checkpoint_policy, clear_residuals, module2jax, torch2jax
from t2j_autodiff._residuals.store import kept_graphs
from t2j_core._run import orphans
from t2j_core.testing import collect, counters, live_functions

X = jnp.linspace(0, 1, 64)


def loss(apply):
    return lambda params: apply({"params": params}, X).sum()


def linearize(apply, params):
    _, push = jax.linearize(loss(apply), params)
    push(params)


def fail(apply, params):
    with pytest.raises(Exception, match="size mismatch|shape|multipl"):
        jax.grad(loss(apply))({"weight": jnp.ones((3, 3))})


TRANSFORMS = {
    "grad": lambda f, p: jax.grad(loss(f))(p),
    "vmap": lambda f, p: jax.vmap(lambda x: f({"params": p}, x))(jnp.ones((3, 64))),
    "jvp": lambda f, p: jax.jvp(loss(f), (p,), (p,)),
    "a vjp without its pullback": lambda f, p: jax.vjp(loss(f), p),
    "linearize": linearize,
    "hessian": lambda f, p: jax.hessian(lambda x: (f({"params": p}, x) ** 2).sum())(X),
    "jacfwd": lambda f, p: jax.jacfwd(lambda x: f({"params": p}, x))(X),
    "jacrev": lambda f, p: jax.jacrev(lambda x: f({"params": p}, x))(X),
    "checkpoint": lambda f, p: jax.grad(jax.checkpoint(loss(f)))(p),
    "checkpoint with a policy": lambda f, p: jax.grad(jax.checkpoint(loss(f), policy=checkpoint_policy))(p),
    "vmap of grad": lambda f, p: jax.vmap(jax.grad(lambda x: f({"params": p}, x).sum()))(jnp.ones((3, 64))),
    "grad of vmap": lambda f, p: jax.grad(lambda p: jax.vmap(lambda x: f({"params": p}, x))(jnp.ones((3, 64))).sum())(
        p
    ),
    "jit of grad": lambda f, p: jax.jit(jax.grad(loss(f)))(p),
    "a failure": fail,
}


class Linear(torch.nn.Linear):
    """A layer that autograd records: more operations and elements than a function that is run again may have."""

    def forward(self, x):
        for _ in range(15):
            x = torch.sin(x)
        return super().forward(x)


def cases():
    for name, transform in TRANSFORMS.items():
        older = jax.__version_info__ < (0, 7) and name.startswith("checkpoint")
        marks = [pytest.mark.skip(reason="jax before 0.7 keeps what it has traced for `jax.checkpoint`")] * older
        yield pytest.param(transform, id=name, marks=marks)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("transform", list(cases()))
def test_eager_transformations_let_go_of_a_module_and_its_weights(transform):
    collect(passes=2)
    before = live_functions(), counters()["live_sites"]
    module = Linear(64, 64, bias=False)
    apply, variables = module2jax(module)
    alive = [weakref.ref(thing) for thing in (module, module.weight, apply)]
    transform(apply, variables["params"])
    del module, apply, variables
    collect(passes=2)
    assert [reference() for reference in alive] == [None] * 3
    assert (live_functions(), counters()["live_sites"]) == before


@pytest.mark.filterwarnings("ignore:.*draws random numbers")
def test_a_dropped_function_frees_the_graphs_that_wait_for_its_pullbacks():
    clear_residuals()
    f = torch2jax(lambda t: Linear(64, 64).requires_grad_(False)(t).sin().sum())
    pullback = jax.vjp(f, X)[1]
    assert len(kept_graphs) == 1
    del f, pullback
    collect(passes=2)
    assert len(kept_graphs) == 0
    assert kept_graphs.nbytes(torch.device("cpu")) == 0


def test_a_function_lives_until_a_program_that_was_started_has_run():
    # The batch waits for its operand, which takes a while; if it does not, nothing is tested, and nothing fails.
    slow = jax.jit(lambda a: jax.lax.fori_loop(0, 300, lambda _, b: b @ a, a))
    identity = jnp.eye(300)

    def start():
        batch = jax.vmap(torch2jax(lambda t: t + 1))
        jax.block_until_ready(batch(slow(identity)))
        return batch(slow(identity))

    y = start()
    gc.collect()
    np.testing.assert_array_equal(y, np.eye(300, dtype=np.float32) + 1)


def test_a_pullback_outlives_its_wrapper():
    f = torch2jax(lambda t: torch.sin(t).sum())
    pullback = jax.vjp(f, X)[1]
    del f
    collect(passes=2)
    np.testing.assert_allclose(pullback(jnp.ones(()))[0], jnp.cos(X), rtol=1e-5)


def test_a_jitted_derivative_outlives_its_wrapper():
    gradient = jax.jit(jax.grad(torch2jax(lambda t: torch.sin(t).sum())))
    jaxpr = jax.make_jaxpr(jax.grad(torch2jax(lambda t: torch.cos(t).sum())))(X)
    collect(passes=2)
    np.testing.assert_allclose(gradient(X), jnp.cos(X), rtol=1e-5)
    np.testing.assert_allclose(jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, X)[0], -jnp.sin(X), rtol=1e-5)


CONTROL_FLOW = {
    "scan": lambda f, x: jax.lax.scan(lambda c, _: (f(c), None), x, None, 3),
    "cond": lambda f, x: jax.lax.cond(x[0] < 1, f, lambda c: c, x),
    "while_loop": lambda f, x: jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, f(c[1])), (0, x)),
    "grad of scan": lambda f, x: jax.grad(lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, 3)[0].sum())(x),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("control_flow", CONTROL_FLOW.values(), ids=CONTROL_FLOW)
def test_of_functions_in_eager_control_flow_only_a_few_stay(control_flow, monkeypatch):
    """JAX keeps their programs in a cache of 4,096."""
    orphans._without_wrapper.clear()  # functions of other tests, which programs of theirs may keep
    monkeypatch.setitem(orphans._patience, "count", orphans._MOST)
    alive = []
    for i in range(24):
        module = torch.nn.Linear(4, 4)
        alive.append(weakref.ref(module))
        control_flow(torch2jax(lambda t, module=module: module(t)), jnp.ones(4) * i)
        gc.collect()
    del module
    collect(passes=2)
    assert sum(reference() is not None for reference in alive) < 20


def test_one_large_function_in_eager_control_flow_goes_when_the_next_is_made(monkeypatch):
    monkeypatch.setattr("t2j_core._run.orphans._MOST_BYTES", 1 << 10)
    monkeypatch.setattr("t2j_core._run.orphans._patience", {"count": 1000, "bytes": 1 << 10})
    module = torch.nn.Linear(64, 64)
    alive = weakref.ref(module)
    f = torch2jax(lambda t, module=module: module(t))
    CONTROL_FLOW["scan"](f, X)
    del module, f
    collect(passes=2)
    torch2jax(torch.sin)(X)
    collect(passes=2)
    assert alive() is None


def test_programs_of_the_users_own_are_no_orphans(monkeypatch):
    """They are looked for in JAX's cache ever less often."""
    monkeypatch.setattr("t2j_core._run.orphans._patience", {"count": 1, "bytes": 1 << 40})
    cleared = []
    monkeypatch.setattr("t2j_core._compat.forget_eager_primitives", lambda: cleared.append(1))
    programs = [jax.jit(lambda x: torch2jax(torch.sin)(x)) for _ in range(40)]
    for program in programs:
        np.testing.assert_allclose(program(X), jnp.sin(X), rtol=1e-5)
    assert 1 <= len(cleared) <= 6
