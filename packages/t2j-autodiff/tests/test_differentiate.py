"""Second derivatives by reverse mode over reverse mode, against forward mode over reverse mode."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from common import agree, raises
from t2j_autodiff import NonDifferentiableError, clear_residuals, module2jax, torch2jax
from t2j_core import PerformanceWarning

X = jax.random.normal(jax.random.key(0), (4, 3))


def close(got, expected, tolerance=1e-3):
    agree(got, expected, tolerance)


def many(h):
    for _ in range(14):
        h = torch.tanh(h)
    return h


NORMS = {
    "batch": (torch.nn.BatchNorm1d(3), (4, 3)),
    "instance": (torch.nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (2, 3, 5)),
    "group": (torch.nn.GroupNorm(3, 6), (2, 6, 4)),
    "layer": (torch.nn.LayerNorm(3), (4, 3)),
}


def writes_when_it_evaluates(module):
    """Whether torch writes into running statistics without training, as the InstanceNorm of torch 2.6 does."""
    module = copy.deepcopy(module).eval()
    before = [b._version for b in module.buffers()]
    module(torch.ones(2, 3, 5))
    return before != [b._version for b in module.buffers()]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_normalisation(name, train):
    module, shape = NORMS[name]
    if name == "instance" and writes_when_it_evaluates(module):
        warnings.filterwarnings("ignore", ".*changes args.*running_.* in place", PerformanceWarning)
    apply, variables = module2jax(module, train=train)
    x = jax.random.normal(jax.random.key(1), shape)

    def penalty(params, x):
        return (jax.grad(lambda x: (apply({**variables, "params": params}, x) ** 3).sum())(x) ** 2).sum()

    for argument in (0, 1):
        mine = jax.grad(penalty, argument)(variables["params"], x)
        close(mine, jax.jacfwd(penalty, argument)(variables["params"], x), 5e-3)


LABELS = torch.tensor([0, 1, 2, 1])
TARGETS = torch.linspace(0, 1, 12).view(4, 3)
LOSSES = {
    "cross entropy": lambda x, w: F.cross_entropy(x, LABELS, weight=w),
    "smoothed": lambda x, w: F.cross_entropy(x, LABELS, weight=w, label_smoothing=0.1),
    "nll": lambda x, w: F.nll_loss(x.log_softmax(-1), LABELS, weight=w),
    "bce": lambda x, w: F.binary_cross_entropy_with_logits(x, TARGETS, pos_weight=w),
    "fractional pooling": lambda x, r: (
        F.fractional_max_pool2d(x.repeat(2, 3)[None, None], 2, (3, 3), _random_samples=r[:2].view(1, 1, 2)).pow(3).sum()
    ),
}


@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")  # torch loops over some pooling itself
@pytest.mark.parametrize("name", LOSSES)
def test_what_takes_an_argument_that_torch_cannot_differentiate(name):
    f, w = torch2jax(LOSSES[name]), jnp.array([0.3, 0.6, 0.9])
    gradient = jax.grad(f)
    close(jax.jacrev(gradient)(X, w), jax.jacfwd(gradient)(X, w))


def under_autocast(w, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x @ w).float().square().sum()


def test_autocast():
    w, x = jnp.ones((4, 2)), jnp.ones((3, 4))
    expected = jax.hessian(lambda w: ((x @ w) ** 2).sum())(w)
    f = torch2jax(under_autocast)
    close(jax.hessian(f)(w, x), expected, 0.05)
    close(jax.jacrev(jax.grad(f))(w, x), expected, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around the call, which does not see it
        close(jax.hessian(torch2jax(under_autocast))(w, x), expected, 0.05)


@pytest.mark.parametrize("causal", [False, True])
def test_checkpointed_attention(causal):
    def attend(q):
        return F.scaled_dot_product_attention(q, q, q, is_causal=causal)

    checkpointed = torch2jax(lambda q: torch.utils.checkpoint.checkpoint(attend, q, use_reentrant=False).pow(2).sum())
    plain = torch2jax(lambda q: attend(q).pow(2).sum())
    q = jax.random.normal(jax.random.key(0), (1, 2, 4, 8))
    for transform in (
        lambda f: jax.grad(lambda q: (jax.grad(f)(q) ** 2).sum())(q),
        lambda f: jax.jvp(jax.grad(f), (q,), (jnp.cos(q),))[1],
    ):
        close(transform(checkpointed), transform(plain))


class Detached(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach().clone()
        return x.detach() ** 3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.x**2 * g.detach()


@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")
@pytest.mark.parametrize(
    "transform",
    [
        jax.hessian,
        lambda f: jax.jacrev(jax.grad(f)),
        lambda f: jax.grad(lambda x: (jax.grad(f)(x) ** 2).sum()),
        lambda f: lambda x: jax.vmap(jax.hessian(f))(x[None]),
    ],
    ids=["hessian", "jacrev of grad", "grad of grad", "vmap of hessian"],
)
def test_a_backward_that_is_cut_off_is_not_silently_constant(transform):
    f = torch2jax(lambda x: Detached.apply(x).sum())
    close(jax.grad(f)(X), 3 * X**2)
    with raises(NonDifferentiableError, anywhere="cut off"):
        transform(f)(X)


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
def test_empty_operands(residuals):
    f = torch2jax(lambda x, a, b: many((x @ a.mT) @ b.mT).sum(), residuals=residuals)
    operands = jnp.ones((4, 8)), jnp.zeros((0, 8)), jnp.zeros((10, 0))
    for argument, x in enumerate(operands):
        close(jax.grad(f, argument)(*operands), jnp.zeros_like(x))
    close(jax.grad(lambda x: (jax.grad(f)(x, *operands[1:]) ** 2).sum())(operands[0]), jnp.zeros((4, 8)))


def test_an_empty_operand_does_not_stop_the_graph_from_being_kept():
    f = torch2jax(lambda x, a, b: many((x @ a.mT) @ b.mT).sum())
    jax.grad(f)(jnp.ones((4, 8)), jnp.zeros((0, 8)), jnp.zeros((10, 0)))
    assert "kept autograd graph" in f.explain()


class KeepsAClosure(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, y):
        for _ in range(20):
            y = g(y)
        ctx.g = g
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, ct):
        return None, ct * ctx.saved_tensors[0]


def test_a_context_that_keeps_a_closure_over_an_argument():
    fn = lambda p, y: KeepsAClosure.apply(lambda z: torch.tanh(p @ z), y).sum()
    f, arguments = torch2jax(fn), (0.5 * jnp.eye(3), jnp.ones(3))
    expected = jax.grad(torch2jax(fn, residuals="recompute"), 1)(*arguments)
    for _ in range(3):
        close(jax.grad(f, 1)(*arguments), expected)
    assert "recompute (the function keeps its arguments in the graph)" in f.explain()


class Watched(torch.autograd.Function):
    contexts: list = []

    @staticmethod
    def forward(ctx, x):
        Watched.contexts.append(weakref.ref(ctx))
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


def test_a_graph_that_is_dropped_is_freed_although_results_were_saved():
    # `tanh` saves its own result, which refers to the node that saves it.
    clear_residuals()
    _, pull = jax.vjp(torch2jax(lambda x: many(Watched.apply(x))), X)
    assert clear_residuals() == 1
    gc.collect()
    assert Watched.contexts
    assert all(context() is None for context in Watched.contexts)
    close(pull(jnp.ones_like(X))[0].shape, X.shape)
