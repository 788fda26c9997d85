"""What `torch.func.vmap` breaks without an error, against plain torch on one example after another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import warns
from t2j_autodiff import PerformanceWarning, torch2jax

pytestmark = [
    pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning"),
    pytest.mark.filterwarnings("ignore:index_reduce.. is in beta"),
]

TIES = jnp.array([[1.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 1.0]])
UNTIED = jnp.array([[1.0, 2.0, 3.0, 0.0], [3.0, 4.0, 5.0, 1.0]])


def reduce_index(mode):
    return lambda x: x.cos().index_reduce_(0, torch.tensor([0, 0, 1, 1]), x, mode)


FUNCTIONS = {
    "max": torch.max,
    "max method": lambda x: x.max(),
    "max operator": lambda x: torch.ops.aten.max(x),
    "min": lambda x: x.min(),
    "median": lambda x: x.median(),
    "nanmedian": torch.nanmedian,
    "select_scatter": lambda x: x.new_zeros(2, 4).select_scatter(x, 0, -1) * torch.arange(8.0).reshape(2, 4),
    "index_reduce prod": reduce_index("prod"),
    "index_reduce amax": reduce_index("amax"),
}


def gradients(fn, x):
    leaves = [torch.tensor(np.array(row), requires_grad=True) for row in x]
    return np.stack([torch.autograd.grad(fn(leaf).sum(), leaf)[0].numpy() for leaf in leaves])


def along(gradient, x):
    return (gradient * np.array(x)).sum(1)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_batches_and_batches_of_derivatives(name):
    fn = FUNCTIONS[name]
    wanted = gradients(fn, TIES)
    sums = lambda y: y.reshape(2, -1).sum(1)
    for _ in range(2):
        f = torch2jax(fn)
        np.testing.assert_allclose(jax.grad(lambda x, f=f: jax.vmap(f)(x).sum())(TIES), wanted, rtol=1e-5)
        np.testing.assert_allclose(jax.vmap(jax.grad(lambda x, f=f: f(x).sum()))(TIES), wanted, rtol=1e-5)
        pushed = jax.jvp(jax.vmap(f), (TIES,), (TIES,))[1]
        np.testing.assert_allclose(sums(pushed), along(wanted, TIES), rtol=1e-5)


@pytest.mark.parametrize("name", ["max", "median"])
def test_ties_that_come_later(name):
    fn = FUNCTIONS[name]
    f = torch2jax(fn)
    for x in (UNTIED, TIES):
        wanted = gradients(fn, x)
        np.testing.assert_allclose(jax.jvp(jax.vmap(f), (x,), (x,))[1], along(wanted, x), rtol=1e-5)
        np.testing.assert_allclose(jax.grad(lambda x: jax.vmap(f)(x).sum())(x), wanted, rtol=1e-5)


def test_an_axis_is_left_alone():
    fn = lambda x: x.reshape(2, 2).max(1).values * torch.tensor([1.0, 3.0])
    f = torch2jax(fn)
    np.testing.assert_allclose(jax.grad(lambda x: jax.vmap(f)(x).sum())(TIES), gradients(fn, TIES))


@pytest.mark.filterwarnings("error::t2j_autodiff.PerformanceWarning")
def test_the_largest_number_of_a_batch_takes_no_turns():
    f = torch2jax(lambda x: (x - x.max()).exp().sum())
    assert np.isfinite(jax.grad(lambda x: jax.vmap(f)(x).sum())(TIES)).all()


def test_a_batch_that_has_no_backward_is_reported_once():
    f = torch2jax(FUNCTIONS["index_reduce amax"])
    with warns(PerformanceWarning, times=1, anywhere=("differentiate a batch", "one after another")):
        for _ in range(2):
            jax.grad(lambda x: jax.vmap(f)(x).sum())(TIES)
    assert "its derivatives: examples one after another, because PyTorch cannot differentiate" in f.explain()


def test_shared_operands_get_the_sum_of_all_gradients():
    fn = lambda x, w: (x * w).index_reduce_(0, torch.tensor([0, 0, 1, 1]), x * w, "amax")
    f = torch2jax(fn)
    w = jnp.arange(1.0, 5)
    got = jax.grad(lambda w: jax.vmap(f, (0, None))(TIES, w).sum())(w)
    t = torch.tensor(np.array(w), requires_grad=True)
    total = sum(fn(torch.tensor(np.array(row)), t).sum() for row in TIES)
    np.testing.assert_allclose(got, torch.autograd.grad(total, t)[0], rtol=1e-5)


def test_second_derivatives_of_examples_that_take_turns():
    fn = lambda x: (x**2).index_reduce_(0, torch.tensor([0, 0, 1, 1]), x**3, "mean").sum()
    f = torch2jax(fn)
    hvp = jax.jvp(jax.grad(lambda x: jax.vmap(f)(x).sum()), (UNTIED,), (UNTIED,))[1]
    rows = [torch.autograd.functional.hvp(fn, torch.tensor(np.array(r)), torch.tensor(np.array(r)))[1] for r in UNTIED]
    np.testing.assert_allclose(hvp, np.stack([r.numpy() for r in rows]), rtol=1e-4)


def test_sparse_gradients():
    w, indices = jnp.arange(12.0).reshape(2, 3, 2), torch.tensor([0, 2, 0])
    f = torch2jax(lambda w: F.embedding(indices, w, sparse=True).square().sum())
    wanted = 2 * w * jnp.array([2.0, 0.0, 1.0]).reshape(1, 3, 1)
    np.testing.assert_allclose(jax.grad(lambda w: jax.vmap(f)(w).sum())(w), wanted)
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(w), wanted)


SECOND = {
    "hessian": lambda f: jax.vmap(jax.hessian(f))(UNTIED),
    "reverse over reverse": lambda f: jax.vmap(jax.jacrev(jax.jacrev(f)))(UNTIED),
    "forward over forward": lambda f: jax.vmap(jax.jacfwd(jax.jacfwd(f)))(UNTIED),
    "reverse over forward": lambda f: jax.vmap(jax.jacrev(jax.jacfwd(f)))(UNTIED),
}


@pytest.mark.parametrize("name", SECOND)
def test_data_is_a_constant_of_all_derivatives(name):
    fn = lambda x: (x.data.sin() * x**2).sum()
    wanted = [torch.autograd.functional.hessian(fn, torch.tensor(np.array(row))) for row in UNTIED]
    f = torch2jax(fn)
    for _ in range(2):
        np.testing.assert_allclose(SECOND[name](f), np.stack([h.numpy() for h in wanted]), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif("linear_cross_entropy" not in vars(F), reason="this torch has no such loss")
def test_a_loss_that_computes_its_gradient_in_the_forward():
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)
    weight, target = torch.linspace(-1, 1, 20).reshape(5, 4), torch.tensor([0, 3, 4, 1])
    fn = lambda x: F.linear_cross_entropy(x.sin()[:, None] * weight[:4], weight, target, options=options)
    f = torch2jax(fn)
    np.testing.assert_allclose(jax.grad(lambda x: jax.vmap(f)(x).sum())(TIES), gradients(fn, TIES), rtol=1e-4)
