"""Forward mode is compared with reverse mode at first: what that finds, what it must not be disturbed by, its cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax

X = jnp.linspace(0.1, 1.0, 12).reshape(4, 3)
T = jnp.cos(X)
OWN = "forward mode: torch.func.jvp"


def pushed(f, x=X):
    return jax.jvp(f, (x,), (jnp.cos(x),))[1]


class RoundsStraightThrough(torch.autograd.Function):
    """Its two modes are different on purpose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g

    @staticmethod
    def jvp(ctx, t):
        return 3 * t


def test_the_jvp_of_a_function_of_the_users_is_kept():
    f = torch2jax(lambda x: RoundsStraightThrough.apply(x) * 2)
    np.testing.assert_allclose(pushed(f), 6 * T, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(f)(X[0]), 6 * jnp.eye(3), rtol=1e-6)
    np.testing.assert_allclose(jax.jacrev(f)(X[0]), 2 * jnp.eye(3), rtol=1e-6)
    assert OWN in f.explain()


def quarter_precision(x):
    with torch.autocast("cpu"):
        return torch.tanh(x @ x.mT).float().sum(0)


@pytest.mark.parametrize(
    "fn",
    [
        quarter_precision,
        lambda x: (x.bfloat16().exp() / 3).float() ** 2,
        lambda x: (x.double() + 1e6) - 1e6,
        lambda x: x.clamp(0.1, 1.0),
        lambda x: torch.relu(x - x[0]).sqrt(),
        lambda x: x * float("inf"),
        lambda x: x.detach(),
        lambda x: (x - x).exp(),
        lambda x: torch.where(x > 2, x / 0, 0.0 * x),
        lambda x: torch.complex(x, x**2).exp(),
    ],
)
def test_no_false_alarm_is_an_error(fn):
    f = torch2jax(fn)
    results = pushed(f), jax.jit(lambda: pushed(f))(), jax.vmap(lambda t: jax.jvp(f, (X,), (t,))[1])(T[None])[0]
    expected = torch.func.jvp(fn, (torch.tensor(np.asarray(X)),), (torch.tensor(np.asarray(T)),))[1]
    for got in results:
        finite = np.isfinite(expected.numpy())
        np.testing.assert_allclose(np.asarray(got)[finite], expected.numpy()[finite], rtol=3e-2, atol=1e-5)
    assert OWN in f.explain() or not finite.all()


@pytest.mark.filterwarnings("ignore::t2j_core.T2jWarning")
def test_both_modes_draw_the_same_random_numbers():
    f = torch2jax(lambda x: torch.nn.functional.dropout(x, 0.5))
    assert set(np.unique(np.round(pushed(f) / T, 4)).tolist()) == {0.0, 2.0}
    assert OWN in f.explain()


class Counted:
    def __init__(self):
        self.runs = 0

    def __call__(self, x):
        self.runs += not x.is_meta
        return torch.tanh(x).exp()


@pytest.mark.parametrize("transform", [lambda f: lambda x: pushed(f, x), jax.jacfwd])
def test_the_comparison_costs_two_runs_once(transform):
    counted = Counted()
    f = torch2jax(counted, output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    g = jax.jit(transform(f))
    runs = []
    for k in range(1, 5):
        before = counted.runs
        jax.block_until_ready(g(k * X[0]))
        runs.append(counted.runs - before)
    usual = runs[-1]
    assert runs[1:] == [usual] * 3
    assert runs[0] <= usual + 2


def test_zeros_say_nothing_and_are_compared_no_more_than_three_times():
    counted = Counted()
    f = torch2jax(lambda x: counted(x) * 0, output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    runs = []
    for k in range(1, 7):
        before = counted.runs
        jax.block_until_ready(pushed(f, k * X[0]))
        runs.append(counted.runs - before)
    assert runs[3] == runs[4] == runs[5] <= runs[0] - 1


def test_only_the_direction_that_moves_is_wrong():
    """The comparison moves all inputs, whatever the tangents of the first call are."""

    def fn(x):
        a, b = x[0], x[1]
        return (b if b.requires_grad else b.detach()) * a

    f = torch2jax(fn)
    x = jnp.array([2.0, 3.0])
    along = lambda t: float(jax.jvp(f, (x,), (jnp.array(t),))[1])
    assert along([1.0, 0.0]) == pytest.approx(3)
    assert along([0.0, 1.0]) == pytest.approx(2)
    np.testing.assert_allclose(jax.jacfwd(torch2jax(fn))(x), [3, 2], rtol=1e-5)
