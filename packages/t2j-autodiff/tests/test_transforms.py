"""Derivatives and batches under JAX's transformations, judged by the same function in `jnp`."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t2j_autodiff
import torch
from common import agree_with_types
from t2j_autodiff import clear_residuals, torch2jax

lax = jax.lax


def torch_f(x, y):
    return torch.sin(x) * y + x * (x * y).sum()


def jnp_f(x, y):
    return jnp.sin(x) * y + x * (x * y).sum()


def torch_busy(x, y):  # too many operations to be run again rather than recorded
    for _ in range(13):
        x = x * 1.0
    return torch_f(x, y)


def torch_g(x):
    """From three numbers to one."""
    for _ in range(13):
        x = x * 1.0
    return torch.exp(0.3 * x).prod() + (x**3).sum()


def jnp_g(x):
    return jnp.exp(0.3 * x).prod() + (x**3).sum()


MODES = {
    "quick": (torch_f, "auto"),
    "auto": (torch_busy, "auto"),
    "recompute": (torch_busy, "recompute"),
    "graph": (torch_busy, "graph"),
}
HOW = {
    "quick": "recompute (few operations on small tensors)",
    "auto": "kept autograd graph",
    "recompute": "recompute",
    "graph": "array (12 bytes) from a traced graph",
}


@functools.cache
def wrapped(mode, **options):
    fn, residuals = MODES[mode]
    return torch2jax(fn, residuals=residuals, **options)


def array(*shape, start=-1.0, stop=1.0):
    return jnp.asarray(np.linspace(start, stop, int(np.prod(shape)), dtype=np.float32).reshape(shape))


X, Y, W = array(3), array(3, start=0.5, stop=1.5), array(3, start=2.0, stop=-0.7)
XS, YS = array(2, 3), array(2, 3, start=1.5, stop=-0.5)
XSS, YSS = array(2, 4, 3), array(4, 3, start=0.2, stop=0.9)


def agree(got, expected, tolerance=2e-5):
    agree_with_types(got, expected, tolerance)


# --- the table ----------------------------------------------------------------------------------------------------


def loss(f):
    """A loss whose cotangents differ from number to number."""
    return lambda x, y: (f(x, y) * W).sum()


def pulled(f, *cotangents):
    y, pull = jax.vjp(f, X, Y)
    return y, [pull(ct) for ct in cotangents]


def pushed(f, *tangents):
    y, push = jax.linearize(f, X, Y)
    return y, [push(*t) for t in tangents]


def transposed_pullback(f):
    _, pull = jax.vjp(f, X, Y)
    return jax.linear_transpose(pull, W)((Y, X))


def transposed_pushforward(f):
    _, push = jax.linearize(f, X, Y)
    return jax.linear_transpose(push, X, Y)(W)


def transposed_twice(f):
    _, push = jax.linearize(f, X, Y)
    pull = jax.linear_transpose(push, X, Y)
    return jax.linear_transpose(pull, W)((Y, X))


def vjp_of_pullback(f):
    _, pull = jax.vjp(f, X, Y)
    answer, again = jax.vjp(pull, W)
    return answer, again((Y, X))


def jvp_of_pullback(f):
    _, pull = jax.vjp(f, X, Y)
    return jax.jvp(pull, (W,), (Y,))


def vmapped_pullback(f):
    _, pull = jax.vjp(f, X, Y)
    return jax.vmap(pull)(YSS)


def vmapped_pushforward(f):
    _, push = jax.linearize(f, X, Y)
    return jax.vmap(push, in_axes=(0, None))(YSS, W)


def pullback_of_vmap_vmapped(f):
    _, pull = jax.vjp(jax.vmap(f), XS, YS)
    return jax.vmap(pull)(XSS[:, :2])


def with_aux(f):
    return jax.value_and_grad(lambda x, y: (f(x, y).sum(), {"aux": f(y, x)}), argnums=(0, 1), has_aux=True)(X, Y)


def vjp_with_aux(f):
    y, pull, aux = jax.vjp(lambda x: (f(x, Y), f(Y, x)), X, has_aux=True)
    return y, pull(W), aux


def hvp_forward_over_reverse(f):
    return jax.jvp(jax.grad(loss(f), argnums=(0, 1)), (X, Y), (W, X))


def hvp_reverse_over_forward(f):
    return jax.grad(lambda x: jax.jvp(functools.partial(loss(f), y=Y), (x,), (W,))[1])(X)


def hvp_reverse_over_reverse(f):
    return jax.grad(lambda x: jnp.vdot(jax.grad(loss(f))(x, Y), W))(X)


def norm_of_gradient(f):
    return jax.value_and_grad(lambda x, y: (jax.grad(loss(f))(x, y) ** 2).sum(), argnums=(0, 1))(X, Y)


TRANSFORMS = {
    "forward": lambda f: f(X, Y),
    "composed": lambda f: jax.grad(loss(lambda x, y: f(f(x, y), f(y, x))))(X, Y),
    "grad": lambda f: jax.grad(loss(f))(X, Y),
    "grad argnums": lambda f: [jax.grad(loss(f), argnums=n)(X, Y) for n in (1, (0,), (0, 1), (1, 0))],
    "grad of equal arguments": lambda f: jax.grad(lambda x: loss(f)(x, x))(X),
    "value_and_grad": lambda f: jax.value_and_grad(loss(f), argnums=(1, 0))(X, Y),
    "has_aux": with_aux,
    "vjp has_aux": vjp_with_aux,
    "vjp": lambda f: pulled(f, W),
    "vjp called twice": lambda f: pulled(f, W, Y),
    "vjp of zero": lambda f: pulled(f, jnp.zeros(3)),
    "jvp": lambda f: jax.jvp(f, (X, Y), (Y, W)),
    "jvp in one argument": lambda f: jax.jvp(lambda y: f(X, y), (Y,), (W,)),
    "linearize": lambda f: pushed(f, (Y, W)),
    "linearize called twice": lambda f: pushed(f, (Y, W), (W, X)),
    "transposed pushforward": transposed_pushforward,
    "transposed pullback": transposed_pullback,
    "transposed twice": transposed_twice,
    "vjp of a pullback": vjp_of_pullback,
    "jvp of a pullback": jvp_of_pullback,
    "vmapped pullback": vmapped_pullback,
    "vmapped pushforward": vmapped_pushforward,
    "vmapped pullback of vmap": pullback_of_vmap_vmapped,
    "jacfwd": lambda f: jax.jacfwd(f, argnums=(0, 1))(X, Y),
    "jacrev": lambda f: jax.jacrev(f, argnums=(0, 1))(X, Y),
    "hessian": lambda f: jax.hessian(f, argnums=(0, 1))(X, Y),
    "jacrev of jacrev": lambda f: jax.jacrev(jax.jacrev(f))(X, Y),
    "jacfwd of jacfwd": lambda f: jax.jacfwd(jax.jacfwd(f))(X, Y),
    "jacrev of jacfwd": lambda f: jax.jacrev(jax.jacfwd(f, argnums=1))(X, Y),
    "hvp forward over reverse": hvp_forward_over_reverse,
    "hvp reverse over forward": hvp_reverse_over_forward,
    "hvp reverse over reverse": hvp_reverse_over_reverse,
    "norm of the gradient": norm_of_gradient,
    "jvp of jvp": lambda f: jax.jvp(lambda x: jax.jvp(f, (x, Y), (Y, W)), (X,), (W,)),
    "linearize of grad": lambda f: jax.linearize(jax.grad(loss(f)), X, Y)[1](W, X),
    "vmap": lambda f: jax.vmap(f)(XS, YS),
    "vmap of the first": lambda f: jax.vmap(f, in_axes=(0, None))(XS, Y),
    "vmap of the second": lambda f: jax.vmap(f, in_axes=(None, 0))(X, YS),
    "vmap along another axis": lambda f: jax.vmap(f, in_axes=(1, 0))(XS.T, YS),
    "vmap along the last axis": lambda f: jax.vmap(f, in_axes=(-1, None))(XS.T, Y),
    "vmap out_axes": lambda f: (
        jax.vmap(f, out_axes=1)(XS, YS),
        jax.vmap(f, in_axes=(0, -1), out_axes=-1)(XS, YS.T),
    ),
    "vmap of a dict": lambda f: jax.vmap(lambda d: f(d["x"], d["y"]), in_axes=({"x": 0, "y": None},))(
        {"x": XS, "y": Y}
    ),
    "vmap nested": lambda f: jax.vmap(jax.vmap(f), in_axes=(0, None))(XSS, YSS),
    "vmap nested crosswise": lambda f: jax.vmap(jax.vmap(f, in_axes=(None, 0)), in_axes=(0, None))(XS, YSS),
    "vmap nested, other axes": lambda f: jax.vmap(jax.vmap(f, in_axes=(1, None)), in_axes=(0, 0), out_axes=1)(
        XSS.swapaxes(1, 2), YS
    ),
    "vmap of size 1": lambda f: jax.vmap(f)(XS[:1], YS[1:]),
    "vmap of size 0": lambda f: jax.vmap(f)(XS[:0], YS[:0]),
    "vmap with a named axis": lambda f: jax.vmap(lambda x: f(x - lax.pmean(x, "i"), Y), axis_name="i")(XS),
    "vmap of grad": lambda f: jax.vmap(jax.grad(loss(f), argnums=(0, 1)))(XS, YS),
    "vmap of grad, one alike": lambda f: jax.vmap(jax.grad(loss(f), argnums=(0, 1)), in_axes=(0, None))(XS, Y),
    "vmap of grad of what is alike": lambda f: jax.vmap(jax.grad(loss(f)), in_axes=(None, 0))(X, YS),
    "vmap of grad, other axes": lambda f: jax.vmap(jax.grad(loss(f)), in_axes=(-1, 0), out_axes=1)(XS.T, YS),
    "vmap of grad, size 1": lambda f: jax.vmap(jax.grad(loss(f)), in_axes=(0, None))(XS[:1], Y),
    "vmap of grad, size 0": lambda f: jax.vmap(jax.grad(loss(f), argnums=(0, 1)), in_axes=(0, None))(XS[:0], Y),
    "grad of vmap": lambda f: jax.grad(lambda x, y: jax.vmap(f)(x, y).sum(), argnums=(0, 1))(XS, YS),
    "grad of vmap, one alike": lambda f: jax.grad(
        lambda x, y: (jax.vmap(f, in_axes=(0, None), out_axes=1)(x, y) * XS.T).sum(), argnums=(0, 1)
    )(XS, Y),
    "grad of vmap of size 0": lambda f: jax.grad(
        lambda x, y: jax.vmap(f, in_axes=(0, None))(x, y).sum(), argnums=(0, 1)
    )(XS[:0], Y),
    "grad of vmap of vmap": lambda f: jax.grad(
        lambda x, y: (jax.vmap(jax.vmap(f), in_axes=(0, None))(x, y) ** 2).sum(), argnums=(0, 1)
    )(XSS, YSS),
    "grad of vmap of grad": lambda f: jax.grad(lambda x: (jax.vmap(jax.grad(loss(f)))(x, YS) ** 2).sum())(XS),
    "vmap of value_and_grad": lambda f: jax.vmap(jax.value_and_grad(loss(f)), in_axes=(0, None))(XS, Y),
    "vmap of vmap of grad": lambda f: jax.vmap(jax.vmap(jax.grad(loss(f), argnums=(0, 1))), in_axes=(0, None))(
        XSS, YSS
    ),
    "vmap of grad of vmap": lambda f: jax.vmap(
        jax.grad(lambda x, y: (jax.vmap(f, in_axes=(None, 0))(x, y) * YSS).sum(), argnums=(0, 1)), in_axes=(0, None)
    )(XS, YSS),
    "vmap of jvp": lambda f: jax.vmap(lambda x, t: jax.jvp(f, (x, Y), (t, W)))(XS, YS),
    "vmap of jvp of tangents": lambda f: jax.vmap(lambda t: jax.jvp(f, (X, Y), (t, W))[1], out_axes=1)(YS),
    "jvp of vmap": lambda f: jax.jvp(jax.vmap(f, in_axes=(0, None)), (XS, Y), (YS, W)),
    "vmap of jacrev": lambda f: jax.vmap(jax.jacrev(f, argnums=(0, 1)))(XS, YS),
    "vmap of jacfwd": lambda f: jax.vmap(jax.jacfwd(f, argnums=(0, 1)), in_axes=(0, None))(XS, Y),
    "jacrev of vmap": lambda f: jax.jacrev(jax.vmap(f))(XS, YS),
    "jacrev of vmap, one alike": lambda f: jax.jacrev(jax.vmap(f, in_axes=(0, None)), argnums=1)(XS, Y),
    "jacfwd of vmap": lambda f: jax.jacfwd(jax.vmap(f))(XS, YS),
    "vmap of hessian": lambda f: jax.vmap(jax.hessian(loss(f)))(XS, YS),
    "hessian of vmap": lambda f: jax.hessian(lambda x: jax.vmap(loss(f), in_axes=(0, None))(x, Y))(XS),
    "vmap of linearize": lambda f: jax.vmap(lambda x, t: jax.linearize(f, x, Y)[1](t, W))(XS, YS),
}


# --- control flow and wrappers ------------------------------------------------------------------------------------


def scan(f, x, y, **options):
    return lax.scan(lambda c, a: (0.5 * f(c, a), f(a, c)), x, y, **options)


def grad_of_scan(f, **options):
    def objective(x, y):
        last, all_of_them = scan(f, x, y, **options)
        return (last * W).sum() + (all_of_them * YSS).sum()

    return jax.value_and_grad(objective, argnums=(0, 1))(X, YSS)


def scan_of_grad(f):
    return lax.scan(lambda c, a: (c - 0.1 * jax.grad(loss(f))(c, a), jax.grad(loss(f), argnums=1)(c, a)), X, YSS)


def grad_of_scan_of_grad(f):
    def objective(x):
        return (lax.scan(lambda c, a: (c - 0.1 * jax.grad(loss(f))(c, a), None), x, YS)[0] * W).sum()

    return jax.value_and_grad(objective)(X)


def while_under_jvp(f):
    def run(x, y):
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 0.5 * f(c[1], y)), (0, x))[1]

    return jax.jvp(run, (X, Y), (W, X))


def while_under_jacfwd_and_vmap(f):
    def run(n, x):
        return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, 0.5 * f(c[1], Y)), (0, x))[1]

    return jax.vmap(jax.jacfwd(run, argnums=1))(jnp.arange(1, 3), XS)


def fori_under_grad(f):
    return jax.grad(lambda x, y: (lax.fori_loop(0, 3, lambda _, c: 0.5 * f(c, y), x) * W).sum(), argnums=(0, 1))(X, Y)


def fori_of_one_gradient(f):
    return lax.fori_loop(0, 3, lambda i, c: c + i.astype(jnp.float32) * jax.grad(loss(f))(X, Y), Y)


def cond_under_grad(f):
    def objective(p, x, y):
        return (lax.cond(p, lambda: f(x, y), lambda: x * y) * W).sum()

    return [jax.jit(jax.grad(objective, argnums=(1, 2)))(jnp.asarray(p), X, Y) for p in (True, False)]


def vmap_of_cond_under_grad(f):
    def objective(x, y):
        return (lax.cond(x[0] > 0, lambda: f(x, y), lambda: x * y) * W).sum()

    return jax.vmap(jax.grad(objective, argnums=(0, 1)), in_axes=(0, None))(XS, Y)


def switch_under_grad(f):
    branches = [f, lambda x, y: f(y, x), lambda x, y: x]

    def objective(i, x, y):
        return (lax.switch(i, branches, x, y) * W).sum()

    return [jax.jit(jax.grad(objective, argnums=(1, 2)))(jnp.asarray(i), X, Y) for i in range(3)]


def within_custom_vjp(f):
    @jax.custom_vjp
    def tripled(x, y):
        return f(x, y)

    tripled.defvjp(lambda x, y: (f(x, y), jax.vjp(f, x, y)[1]), lambda pull, ct: pull(3.0 * ct))
    return jax.value_and_grad(loss(tripled), argnums=(0, 1))(X, Y), jax.vmap(jax.grad(loss(tripled)))(XS, YS)


def within_custom_jvp(f):
    @jax.custom_jvp
    def tripled(x, y):
        return f(x, y)

    @tripled.defjvp
    def _(primals, tangents):
        y, dy = jax.jvp(f, primals, tangents)
        return y, 3.0 * dy

    return (
        jax.value_and_grad(loss(tripled), argnums=(0, 1))(X, Y),
        jax.jvp(tripled, (X, Y), (Y, W)),
        jax.vmap(jax.grad(loss(tripled)))(XS, YS),
    )


def checkpointed(f, **options):
    return lambda x, y: jax.checkpoint(lambda x, y: jnp.cos(f(2.0 * x, y)), **options)(x, y)


def grad_of_checkpoint(f, **options):
    g = loss(checkpointed(f, **options))
    return jax.value_and_grad(g, argnums=(0, 1))(X, Y), jax.vmap(jax.grad(g), in_axes=(0, None))(XS, Y)


def hessian_of_checkpoint(f, **options):
    return jax.hessian(loss(checkpointed(f, **options)))(X, Y)


def grad_of_scan_of_checkpoint(f, **options):
    step = jax.checkpoint(lambda c, a: (0.5 * f(c, a), c), **options)
    return jax.value_and_grad(lambda x, y: (lax.scan(step, x, y)[0] * W).sum(), argnums=(0, 1))(X, YSS)


POLICIES = {
    "": {},
    ", kept by t2j": {"policy": t2j_autodiff.checkpoint_policy},
    ", all kept": {"policy": jax.checkpoint_policies.everything_saveable},
    ", none kept": {"policy": jax.checkpoint_policies.nothing_saveable},
    ", equal calls merged": {"prevent_cse": False},
}
TRANSFORMS |= {
    "scan": lambda f: scan(f, X, YSS),
    "grad of scan": grad_of_scan,
    "grad of scan, reversed and unrolled": lambda f: grad_of_scan(f, reverse=True, unroll=2),
    "jvp of scan": lambda f: jax.jvp(lambda x, y: scan(f, x, y), (X, YSS), (W, YSS)),
    "vmap of grad of scan": lambda f: jax.vmap(jax.grad(lambda x: (scan(f, x, YSS)[0] * W).sum()))(XS),
    "scan of grad": scan_of_grad,
    "grad of scan of grad": grad_of_scan_of_grad,
    "while under jvp": while_under_jvp,
    "vmap of jacfwd of while": while_under_jacfwd_and_vmap,
    "grad of fori": fori_under_grad,
    "fori of one gradient": fori_of_one_gradient,
    "cond under grad": cond_under_grad,
    "vmap of grad of cond": vmap_of_cond_under_grad,
    "switch under grad": switch_under_grad,
    "map of grad": lambda f: lax.map(lambda x: jax.grad(loss(f))(x, Y), XS),
    "grad of map": lambda f: jax.grad(lambda x: (lax.map(lambda row: f(row, Y), x) * YS).sum())(XS),
    "custom_vjp": within_custom_vjp,
    "custom_jvp": within_custom_jvp,
    "equal gradients": lambda f: (jax.grad(loss(f))(X, Y), jax.grad(loss(f))(X, Y), jax.grad(loss(f), 1)(X, Y)),
    "value and gradient apart": lambda f: (loss(f)(X, Y), jax.grad(loss(f))(X, Y)),
    **{f"grad of checkpoint{k}": functools.partial(grad_of_checkpoint, **v) for k, v in POLICIES.items()},
    **{
        f"{name} of checkpoint{k}": functools.partial(program, **POLICIES[k])
        for name, program in (("hessian", hessian_of_checkpoint), ("grad of scan", grad_of_scan_of_checkpoint))
        for k in ("", ", kept by t2j", ", none kept")
    },
}


@functools.cache
def expected_of(name):
    return jax.jit(lambda: TRANSFORMS[name](jnp_f))()


@pytest.mark.thinned(9)
@pytest.mark.parametrize("mode", ["auto", "recompute", "graph"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_jnp_gives_in_one_program(name, mode):
    # The arrays are closed over, so they are constants of the program. XLA folds what it can, but no torch call.
    got = jax.jit(lambda: TRANSFORMS[name](wrapped(mode)))()
    agree(got, expected_of(name))


EAGER = [
    "forward",
    "composed",
    "has_aux",
    "vjp called twice",
    "jvp",
    "linearize called twice",
    "transposed pullback",
    "vmapped pullback",
    "hvp forward over reverse",
    "hvp reverse over reverse",
    "vmap nested crosswise",
    "vmap of grad, one alike",
    "vmap of vmap of grad",
    "grad of vmap, one alike",
    "vmap of hessian",
    "grad of scan",
    "while under jvp",
    "grad of checkpoint, kept by t2j",
    "custom_jvp",
    "equal gradients",
]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", EAGER)
def test_what_jnp_gives_call_by_call(name):
    mode = ("auto", "quick")[EAGER.index(name) % 2]
    agree(TRANSFORMS[name](wrapped(mode)), expected_of(name))


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_are_what_they_say(mode):
    fn, residuals = MODES[mode]
    f = torch2jax(fn, residuals=residuals)
    assert f.explain() == f"{fn.__name__} was not called yet."
    jax.jit(jax.grad(loss(f)))(X, Y)
    jax.jit(lambda: jax.jvp(f, (X, Y), (Y, W)))()
    (reverse,) = [line for line in f.explain().splitlines() if line.startswith("  reverse mode: ")]
    assert HOW[mode] in reverse
    assert "forward mode: torch.func.jvp" in f.explain()
    assert "vmap: not used so far" in f.explain()


@pytest.mark.parametrize("mode", MODES)
def test_a_program_runs_again_and_again(mode):
    step = jax.jit(jax.value_and_grad(loss(wrapped(mode)), argnums=(0, 1)))
    reference = jax.jit(jax.value_and_grad(loss(jnp_f), argnums=(0, 1)))
    clear_residuals()
    for k in range(5):
        agree(step(X + k, Y), reference(X + k, Y))
    assert clear_residuals() == 0


@pytest.mark.parametrize("mode", MODES)
def test_under_jit_of_parts(mode):
    f = wrapped(mode)

    def program(f):
        value, pull = jax.vjp(jax.jit(f), X, Y)
        return value, jax.jit(pull)(W), jax.jit(jax.grad(jax.jit(loss(f))))(X, Y), jax.grad(jax.jit(loss(f)))(X, Y)

    agree(program(f), program(jnp_f))


@pytest.mark.parametrize("mode", ["auto", "recompute", "graph"])
def test_without_jit(mode):
    with jax.disable_jit():
        agree(jax.value_and_grad(loss(wrapped(mode)))(X, Y), jax.value_and_grad(loss(jnp_f))(X, Y))
        agree(jax.vmap(jax.grad(loss(wrapped(mode))))(XS, YS), jax.vmap(jax.grad(loss(jnp_f)))(XS, YS))
        agree(TRANSFORMS["grad of scan"](wrapped(mode)), expected_of("grad of scan"))


# --- high orders --------------------------------------------------------------------------------------------------


WAYS = {
    "by the first": lambda f: jax.grad(lambda x, y: f(x, y).sum(), 0),
    "by the second": lambda f: jax.grad(lambda x, y: f(x, y).sum(), 1),
    "along the first": lambda f: lambda x, y: jax.jvp(lambda x: f(x, y), (x,), (y,)),
    "along the second": lambda f: lambda x, y: jax.jvp(lambda y: f(x, y), (y,), (x,)),
    "a batch of the first": lambda f: lambda x, y: jax.vmap(f, (0, None))(jnp.stack([x, y, x + y]), y),
    "a batch of the second": lambda f: lambda x, y: jax.vmap(f, (None, 0))(x, jnp.stack([x, y, x + y])),
    "gradients of a batch of the first": lambda f: (
        lambda x, y: jax.vmap(jax.grad(lambda x, y: f(x, y).sum(), (0, 1)), (0, None))(jnp.stack([x, y, x + y]), y)
    ),
    "gradients of a batch of the second": lambda f: (
        lambda x, y: jax.vmap(jax.grad(lambda x, y: f(x, y).sum(), (0, 1)), (None, 0))(x, jnp.stack([x, y, x + y]))
    ),
    "jacobians of a batch": lambda f: lambda x, y: jax.vmap(jax.jacrev(f), (0, None))(jnp.stack([x, y]), y),
    "by one of two tangents": lambda f: lambda x, y: jax.grad(lambda t: jax.jvp(f, (x, y), (y, t))[1].sum())(x),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
def test_one_function_is_transformed_in_all_ways(residuals):
    f = torch2jax(torch_busy, residuals=residuals)
    x, y = jnp.linspace(0.1, 1, 3), jnp.linspace(-1, 0.5, 3)
    for way in WAYS.values():
        agree_with_types(way(f)(x, y), way(jnp_f)(x, y))


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("residuals", "jitted"), [("auto", True), ("auto", False), ("recompute", True), ("graph", True)]
)
def test_six_gradients(residuals, jitted):
    def run(f):
        for _ in range(6):
            f = jax.grad(f)
        return jax.jit(f) if jitted else f

    def h(sin, exp):
        return lambda x: sin(2 * x) * exp(x) + x**7

    f = torch2jax(h(torch.sin, torch.exp), residuals=residuals, depth=None)
    with jax.enable_x64(True):
        x = jnp.asarray(0.4)
        agree(run(f)(x), jax.jit(run(h(jnp.sin, jnp.exp)))(x), 1e-9)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("residuals", ["auto", "graph"])
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jax.jacfwd(jax.jacrev(jax.jacfwd(f))),
        lambda f: lambda x: jax.vmap(jax.jacrev(jax.hessian(f)))(jnp.stack([x, 2 * x])),
        lambda f: jax.hessian(lambda x: jax.vmap(jax.grad(f))(jnp.stack([x, x * x])).sum()),
    ],
    ids=["fwd rev fwd", "vmap rev hessian", "hessian vmap grad"],
)
def test_third_derivatives(residuals, transform):
    f = torch2jax(torch_g, residuals=residuals, depth=3)
    agree(jax.jit(transform(f))(Y), jax.jit(transform(jnp_g))(Y), 1e-4)


# --- functions without forward mode -------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """Has no `jvp`, so its forward mode is its reverse mode, transposed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient * ctx.saved_tensors[0] ** 2


class OldCube(torch.autograd.Function):
    """Cannot be used inside `torch.func` at all."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient * ctx.saved_tensors[0] ** 2


TWICE = {
    "jvp": lambda f: jax.jvp(f, (X,), (W,)),
    "jvp of jvp": lambda f: jax.jvp(lambda x: jax.jvp(f, (x,), (W,)), (X,), (Y,)),
    "jvp of jvp along itself": lambda f: jax.jvp(lambda x: jax.jvp(f, (x,), (x,)), (X,), (Y,)),
    "grad of jvp": lambda f: jax.grad(lambda x: (jax.jvp(f, (x,), (W,))[1] * Y).sum())(X),
    "jvp of grad": lambda f: jax.jvp(jax.grad(lambda x: (f(x) * Y).sum()), (X,), (W,)),
    "jacfwd of jacfwd": lambda f: jax.jacfwd(jax.jacfwd(f))(X),
    "jacrev of jacfwd": lambda f: jax.jacrev(jax.jacfwd(f))(X),
    "jacfwd of jacrev": lambda f: jax.jacfwd(jax.jacrev(f))(X),
    "jacrev of jacrev": lambda f: jax.jacrev(jax.jacrev(f))(X),
}


@pytest.mark.filterwarnings("ignore:`torch.func.vmap` cannot batch apply:t2j_autodiff.PerformanceWarning")
@pytest.mark.parametrize("residuals", ["auto", "graph"])
@pytest.mark.parametrize("cube", [Cube, OldCube])
def test_forward_mode_of_a_function_without_it(cube, residuals):
    # Regression: a tangent that does not depend on the primal gave a second derivative of zero.
    f = torch2jax(cube.apply, residuals=residuals)
    got, expected = (
        jax.jit(lambda g: {k: p(g) for k, p in TWICE.items()}, static_argnums=0)(g) for g in (f, lambda x: x**3)
    )
    agree(got, expected)
    assert "transposed reverse mode" in f.explain()


# --- how often torch runs -----------------------------------------------------------------------------------------


class Counted:
    """`torch_busy`, which counts its runs on real tensors and the backwards through it."""

    def __init__(self, residuals="auto", **options):
        self.forwards = self.backwards = 0
        self.f = torch2jax(self.run, residuals=residuals, name=None, **options)

    def run(self, x, y):
        if x.device.type == "meta":  # the inference of the outputs
            return torch_busy(x, y)
        self.forwards += 1
        out = torch_busy(x, y)
        if out.requires_grad:
            out.register_hook(self.count_backward)
        return out

    def count_backward(self, gradient):
        self.backwards += 1
        return gradient

    def counts(self):
        found, self.forwards, self.backwards = (self.forwards, self.backwards), 0, 0
        return found


STEPS = {
    "value_and_grad": (lambda f: jax.value_and_grad(loss(f), argnums=(0, 1))(X, Y), (1, 1)),
    "grad": (lambda f: jax.grad(loss(f))(X, Y), (1, 1)),
    "value": (lambda f: loss(f)(X, Y), (1, 0)),
    "value of value_and_grad": (lambda f: jax.value_and_grad(loss(f))(X, Y)[0], (1, 0)),
    "value of vjp": (lambda f: jax.vjp(f, X, Y)[0], (1, 0)),
    "vjp called twice": (lambda f: pulled(f, W, Y), (2, 2)),
    "equal gradients": (lambda f: (jax.grad(loss(f))(X, Y), jax.grad(loss(f))(X, Y)), (1, 1)),
    "grad of checkpoint kept by t2j": (
        lambda f: jax.value_and_grad(loss(checkpointed(f, policy=t2j_autodiff.checkpoint_policy)))(X, Y),
        (1, 1),
    ),
    "grad of checkpoint": (lambda f: jax.value_and_grad(loss(checkpointed(f)))(X, Y), (2, 1)),
    "scan of 4": (grad_of_scan, (8, 8)),
    "scan of 4, kept by t2j": (
        lambda f: grad_of_scan_of_checkpoint(f, policy=t2j_autodiff.checkpoint_policy),
        (4, 4),
    ),
    "gradient in a loop": (scan_of_grad, (8, 8)),
    "not taken": (lambda f: jax.grad(lambda x: lax.cond(x.sum() > 9, lambda: loss(f)(x, Y), lambda: 0.0))(X), (0, 0)),
}


@pytest.mark.parametrize("name", STEPS)
def test_how_often_torch_runs(name):
    program, expected = STEPS[name]
    counted = Counted()
    step = jax.jit(lambda: program(counted.f))
    clear_residuals()
    for _ in range(5):
        jax.block_until_ready(step())
        assert counted.counts() == expected
    assert clear_residuals() == 0


@pytest.mark.parametrize("batch", [1, 5])
def test_a_batch_is_one_run(batch):
    counted = Counted()
    xs = jnp.broadcast_to(X, (batch, 3))
    step = jax.jit(jax.vmap(jax.value_and_grad(loss(counted.f)), in_axes=(0, None)))
    for _ in range(3):
        jax.block_until_ready(step(xs, Y))
        runs = counted.counts()[0]
    assert runs == 2  # it asks for `requires_grad`, so that no graph of a batch is kept
    jacobian = jax.jit(jax.jacrev(counted.f))
    for _ in range(3):
        jax.block_until_ready(jacobian(X, Y))
        assert counted.counts()[0] == 1


def test_recompute_runs_it_again():
    counted = Counted("recompute")
    step = jax.jit(jax.value_and_grad(loss(counted.f)))
    for _ in range(3):
        jax.block_until_ready(step(X, Y))
        assert counted.counts() == (2, 1)


def test_a_traced_graph_runs_no_python():
    calls = []

    def traced(x, y):
        calls.append(type(x).__name__)
        return torch_busy(x, y)

    step = jax.jit(jax.value_and_grad(loss(torch2jax(traced, residuals="graph")), argnums=(0, 1)))
    lowered = step.lower(X, Y).compile()
    assert calls
    calls.clear()
    for _ in range(3):
        agree(lowered(X, Y), jax.value_and_grad(loss(jnp_f), argnums=(0, 1))(X, Y))
    assert calls == []


def test_forward_mode_keeps_no_graphs():
    counted = Counted()
    push = jax.jit(lambda t: jax.jvp(counted.f, (X, Y), (t, W)))
    clear_residuals()
    for _ in range(4):
        jax.block_until_ready(push(X))
    assert clear_residuals() == 0
    agree(jax.jit(jax.grad(loss(counted.f)))(X, Y), jax.grad(loss(jnp_f))(X, Y))


def test_a_pullback_that_is_never_called_can_be_cleared_and_called_after_all():
    f = wrapped("auto")
    clear_residuals()
    value, pull = jax.vjp(f, X, Y)
    agree(value, jnp_f(X, Y))
    assert clear_residuals() == 1
    agree(pull(W), jax.vjp(jnp_f, X, Y)[1](W))
    agree(pull(Y), jax.vjp(jnp_f, X, Y)[1](Y))
    assert clear_residuals() == 0


def test_pullbacks_in_any_order():
    f = wrapped("auto")
    inputs = [X + k for k in range(3)]
    pulls = [jax.vjp(f, x, Y)[1] for x in inputs]
    for k in (2, 0, 1):
        agree(pulls[k](W), jax.vjp(jnp_f, inputs[k], Y)[1](W))


# --- donation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_donation(mode):
    f = wrapped(mode)

    def step(f, x, y):
        value, grad = jax.value_and_grad(loss(f))(x, y)
        return x - 0.1 * grad, value

    train = jax.jit(functools.partial(step, f), donate_argnums=0)
    x, reference = X + 0, X
    for _ in range(3):
        given = x
        x, value = train(x, Y)
        reference, expected = jax.jit(functools.partial(step, jnp_f))(reference, Y)
        agree((x, value), (reference, expected))
        assert given.is_deleted()


# --- solvers ------------------------------------------------------------------------------------------------------


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("transform", "residuals"),
    [
        (jax.value_and_grad, "auto"),
        (jax.value_and_grad, "recompute"),
        (jax.value_and_grad, "graph"),
        (jax.jacfwd, "auto"),
        (jax.hessian, "auto"),
        (jax.hessian, "graph"),
    ],
)
def test_custom_linear_solve(transform, residuals):
    torch_solve = torch2jax(torch.linalg.solve, residuals=residuals)
    torch_matvec = torch2jax(torch.mv, residuals=residuals)
    a = jnp.asarray([[2.0, 0.3], [0.3, 1.0]])
    b = jnp.asarray([1.0, -2.0])

    def objective(matvec, solve, p, q):
        matrix = a * p + q * jnp.eye(2)
        x = lax.custom_linear_solve(
            lambda v: matvec(matrix, v), b * q, solve=lambda _, v: solve(matrix, v), symmetric=True
        )
        return jnp.sin(x).sum()

    p, q = jnp.asarray(1.5), jnp.asarray(0.4)
    got = jax.jit(transform(functools.partial(objective, torch_matvec, torch_solve), argnums=(0, 1)))(p, q)
    expected = jax.jit(transform(functools.partial(objective, jnp.matmul, jnp.linalg.solve), argnums=(0, 1)))(p, q)
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x)), expected))
    agree(got, expected)


# --- functions of several outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
def test_cotangents_of_some_outputs(residuals):
    def both(sin, cos, f):
        return lambda x, y: (f(x, y), {"sin": sin(x), "cos": cos(y) * x})

    f = torch2jax(both(torch.sin, torch.cos, torch_busy), residuals=residuals)
    g = both(jnp.sin, jnp.cos, jnp_f)
    objectives = [
        lambda out: out[0].sum(),
        lambda out: out[1]["sin"].sum(),
        lambda out: (out[1]["cos"] * out[0]).sum(),
        lambda out: sum(leaf.sum() for leaf in jax.tree.leaves(out)),
    ]

    def program(h):
        grads = [
            jax.value_and_grad(lambda x, y: objective(h(x, y)), argnums=argnums)(X, Y)
            for objective in objectives
            for argnums in (0, 1, (0, 1))
        ]
        return grads, jax.jacrev(h)(X, Y), jax.jacfwd(h, argnums=1)(X, Y)

    agree(jax.jit(program, static_argnums=0)(f), jax.jit(program, static_argnums=0)(g))


# --- meshes -------------------------------------------------------------------------------------------------------

SHARDED = """
    import jax, jax.numpy as jnp, numpy as np, torch
    from t2j_autodiff import torch2jax

    P = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")

    def torch_busy(x, w):
        for _ in range(13):
            x = x * 1.0
        return torch.sin(x) @ w

    def jnp_f(x, w):
        return jnp.sin(x) @ w

    x = jnp.asarray(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))
    w = jnp.asarray(np.linspace(2, 3, 6, dtype=np.float32).reshape(3, 2))
    assert len(jax.devices()) == 2

    def programs(f, check_vma):
        local = jax.shard_map(f, mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i"), check_vma=check_vma)
        def total(x, w):
            return jax.lax.psum((f(x, w) ** 2).sum(), "i")
        summed = jax.shard_map(total, mesh=mesh, in_specs=(P("i"), P()), out_specs=P(), check_vma=check_vma)
        def objective(x, w):
            return (local(x, w) ** 2).sum()
        yield "grad of shard_map", jax.value_and_grad(objective, argnums=(0, 1))
        yield "grad of shard_map of psum", jax.value_and_grad(summed, argnums=(0, 1))
        yield "hvp", lambda x, w: jax.jvp(jax.grad(objective, argnums=(0, 1)), (x, w), (x + 1, w * 2))
        def inner(x, w):
            gx, gw = jax.grad(lambda x, w: (f(x, w) ** 2).sum(), argnums=(0, 1))(x, w)
            return gx, gw if check_vma else jax.lax.psum(gw, "i")
        yield "shard_map of grad", jax.shard_map(
            inner, mesh=mesh, in_specs=(P("i"), P()), out_specs=(P("i"), P()), check_vma=check_vma
        )

    answers = {}
    for residuals in ("auto", "graph"):
        f = torch2jax(torch_busy, residuals=residuals)
        for check_vma in (True, False):
            for (name, got), (_, expected) in zip(programs(f, check_vma), programs(jnp_f, check_vma)):
                if residuals == "graph" and name != "hvp":
                    continue
                if (name, check_vma) not in answers:
                    answers[name, check_vma] = jax.jit(expected)(x, w)
                a, b = jax.jit(got)(x, w), answers[name, check_vma]
                assert jax.tree.structure(a) == jax.tree.structure(b)
                for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
                    np.testing.assert_allclose(np.asarray(p), np.asarray(q), rtol=2e-5, atol=2e-5, err_msg=name)
                print("ok", residuals, check_vma, name)
        print(f.explain())
"""


@pytest.fixture(scope="module")
def elsewhere():
    """What a process of its own prints that has two devices and takes every warning for an error."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SHARDED)],
        env={**environment, "NPROC": "64"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_shard_map_over_two_devices(elsewhere):
    assert elsewhere.count("ok") == 2 * 4 + 2


def test_warnings_of_torch_itself_do_not_change_how_derivatives_are_computed(elsewhere):
    # Regression: torch's first forward mode warns of `torch.jit.script`, and was given up where warnings are errors.
    assert "forward mode: torch.func.jvp" in elsewhere
    assert "transposed" not in elsewhere
