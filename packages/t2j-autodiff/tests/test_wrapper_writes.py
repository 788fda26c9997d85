"""Functions that write into tensors and modules while `torch.func` transforms them."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax

pytestmark = pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")

X = jnp.array([[0.5, 2.0], [1.0, 4.0]])
V = X * 0.5 + 0.1


def module():
    torch.manual_seed(0)
    m = torch.nn.Linear(2, 2)
    m.register_buffer("kept", torch.ones(2))
    return m


def moves(m, x):
    y = m(x).sin().sum()
    m.to(y)
    return y * m.weight.sum() * m.kept.sum()


def sets_data(m, x):
    m.kept.data = x.sin()
    return (m.kept * x).sum() + m(x).sum()


def sets_parameter(m, x):
    m.bias.data = x.sin()
    return (m.bias * x**2).sum()


def writes(m, x):
    m.kept.copy_(x.sin())
    y = (m.kept.clone() * x).sum() + m(x).sum()
    m.kept.detach_()  # else it keeps the graph
    return y


FUNCTIONS = [moves, sets_data, sets_parameter, writes]


def one_by_one(fn, derive):
    return np.stack([derive(lambda z: fn(copy.deepcopy(module()), z), torch.tensor(np.array(row))) for row in X])


def gradient(f, x):
    x.requires_grad_()
    return torch.autograd.grad(f(x), x)[0].numpy()


WAYS = {
    "grad": lambda f: np.stack([jax.grad(f)(x) for x in X]),
    "vmap(grad)": lambda f: jax.vmap(jax.grad(f))(X),
    "grad(vmap)": lambda f: jax.grad(lambda x: jax.vmap(f)(x).sum())(X),
}
PUSHES = {
    "jvp": lambda f: np.stack([jax.jvp(f, (x,), (v,))[1] for x, v in zip(X, V, strict=True)]),
    "jvp(vmap)": lambda f: jax.jvp(jax.vmap(f), (X,), (V,))[1],
    "vmap(jvp)": lambda f: jax.vmap(lambda x, v: jax.jvp(f, (x,), (v,))[1])(X, V),
}
SECOND = {
    "hessian": lambda f: np.stack([jax.hessian(f)(x) for x in X]),
    "vmap(hessian)": lambda f: jax.vmap(jax.hessian(f))(X),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("way", [*WAYS, *PUSHES, *SECOND])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_derivatives(fn, way):
    m = module()
    f = torch2jax(lambda x: fn(m, x))
    wanted = one_by_one(fn, gradient)
    if way in PUSHES:
        wanted = (wanted * np.array(V)).sum(1)
    elif way in SECOND:
        wanted = one_by_one(fn, lambda f, x: torch.autograd.functional.hessian(f, x).numpy())
    for _ in range(2):  # the first run is watched
        got = {**WAYS, **PUSHES, **SECOND}[way](f)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", [*WAYS, *PUSHES, *SECOND])
def test_a_module_is_as_it_was(way):
    m = module()
    before = copy.deepcopy(m.state_dict())
    parameters = list(m.parameters())
    f = torch2jax(lambda x: moves(m, x))
    for _ in range(2):
        {**WAYS, **PUSHES, **SECOND}[way](f)
    assert all(now is then for now, then in zip(m.parameters(), parameters, strict=True))
    assert all(np.array_equal(value.numpy(), before[name].numpy()) for name, value in m.state_dict().items())


def test_a_module_that_is_converted_for_a_part_of_the_function():
    m = module()

    def fn(x):
        y = m.double()(x.double()).sin().sum()
        m.float()
        return y.to(x.dtype)

    f = torch2jax(fn)
    plain = module()
    wanted = np.stack([gradient(lambda z: plain(z).sin().sum(), torch.tensor(np.array(row))) for row in X])
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(X), wanted, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(jax.jacfwd(f))(X), wanted, rtol=1e-5)
    assert m.weight.dtype == torch.float32
