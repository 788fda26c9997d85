"""Forward mode is right or an error: against reverse mode, or the same function in jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import agree, raises
from t2j_autodiff import NonDifferentiableError, module2jax, torch2jax
from t2j_autodiff._derivatives import jvp_checks

pytestmark = pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")

X = jnp.linspace(0.1, 1.0, 12).reshape(4, 3)
T = jnp.cos(X)


class Detached(torch.autograd.Function):
    """No part of its backward is seen by autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach().clone()
        return x.detach() ** 3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.x**2 * g.detach()


class ThroughNumPy(Detached):
    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy(3 * ctx.x.numpy() ** 2 * g.numpy(force=True))


class HalfDetached(Detached):
    """Its derivative is wrong, but not zero."""

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.x**2 * g.detach() + ctx.x**2 * g


class WithVmapRule(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g.detach()


CUT = [Detached, ThroughNumPy, HalfDetached, WithVmapRule]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("function", CUT)
@pytest.mark.parametrize("jitted", [False, True])
def test_a_backward_that_autograd_does_not_see(function, jitted):
    f = torch2jax(function.apply)
    wrap = jax.jit if jitted else lambda f: f
    agree(wrap(lambda x, t: jax.jvp(f, (x,), (t,))[1])(X, T), 3 * X**2 * T)
    agree(wrap(jax.jacfwd(lambda x: f(x).sum()))(X), 3 * X**2)
    agree(wrap(jax.vmap(jax.jacfwd(lambda x: f(x).sum())))(X), 3 * X**2)
    agree(jax.jvp(jax.vmap(f), (X,), (T,))[1], 3 * X**2 * T)
    assert "rows of the Jacobian" in f.explain()


@pytest.mark.parametrize("function", CUT)
def test_too_many_outputs_for_rows_are_an_error(function):
    f, x = torch2jax(function.apply), jnp.linspace(0.1, 1.0, 300)
    with raises(NonDifferentiableError, anywhere=("Forward mode failed:", "contradicts the backward")):
        jax.jvp(f, (x,), (x,))


def test_rows_of_complex_outputs():
    class Conjugate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.z = z.detach().clone()
            return z * z + 2 * z.conj()

        @staticmethod
        def backward(ctx, g):
            g = g.detach()
            return 2 * ctx.z.conj() * g + 2 * g.conj()

    z, t = jax.lax.complex(X[0], X[1]), jax.lax.complex(T[0], -T[1])
    agree(jax.jvp(torch2jax(Conjugate.apply), (z,), (t,))[1], 2 * z * t + 2 * jnp.conj(t))


def test_no_random_number_of_the_user_is_drawn():
    f = torch2jax(Detached.apply)
    state = torch.get_rng_state()
    jax.jvp(f, (X,), (T,))
    jax.jvp(f, (X,), (T,))
    jax.jvp(torch2jax(lambda x: (x, x.detach())), (X,), (T,))
    assert torch.equal(state, torch.get_rng_state())


LABELS = torch.tensor([0, 1, 2, 0])
LOSSES = {
    "multi_margin": lambda x: F.multi_margin_loss(x, LABELS, reduction="none"),
    "multilabel_margin": lambda x: F.multilabel_margin_loss(x, torch.tensor([[0, 1, -1]] * 4)),
    "ctc": lambda x: F.ctc_loss(
        x.log_softmax(-1)[:, None], torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])
    ),
    "cdist": lambda x: torch.cdist(x, x[:2] + 1),
    "pdist": F.pdist,
    "embedding_bag": lambda x: F.embedding_bag(torch.tensor([[0, 1]]), x, mode="max"),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", LOSSES)
def test_what_has_neither_forward_mode_nor_double_backward(name):
    f = torch2jax(LOSSES[name])
    jacobian = jax.jacrev(f)(X)
    agree(jax.jvp(f, (X,), (T,))[1], jnp.tensordot(jacobian, T, 2))
    agree(jax.jit(jax.jacfwd(f))(X), jacobian)
    pushed = jax.vmap(lambda t: jax.jvp(f, (X,), (t,))[1])(jnp.stack([T, 2 * T]))
    agree(pushed[1], jnp.tensordot(jacobian, 2 * T, 2))


@torch.library.custom_op("t2j_tests::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


cube.register_fake(torch.empty_like)
cube.register_autograd(
    lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def test_a_custom_operator_does_not_lose_tangents():
    # Under plain `torch.func.jvp` it does: its backward is skipped for arguments that do not require gradients.
    f = torch2jax(lambda x: cube(x) + x)
    agree(jax.jvp(f, (X,), (T,))[1], (3 * X**2 + 1) * T)
    agree(jax.vmap(jax.jacfwd(lambda x: f(x).sum()))(X), 3 * X**2 + 1)
    agree(jnp.diagonal(jax.hessian(lambda x: f(x).sum())(X[0])), 6 * X[0])


def test_a_way_that_is_taken_only_where_gradients_are_required():
    def fn(x):
        return torch.sin(x) if x.requires_grad else torch.sin(x.detach())

    f = torch2jax(fn)
    agree(jax.jvp(f, (X,), (T,))[1], jnp.cos(X) * T)
    agree(jax.vmap(jax.jacfwd(lambda x: f(x).sum()))(X), jnp.cos(X))


def test_an_operation_of_torch_that_loses_its_tangent():
    # `scatter_reduce_jvp` returns nothing for "prod", which `torch.func.jvp` takes for zero.
    indices = torch.tensor([[0, 1, 0], [2, 2, 1]])
    f = torch2jax(lambda x: torch.scatter_reduce(x, 0, indices, torch.full((2, 3), 2.0), "prod"))
    jacobian = jax.jacrev(f)(X)
    agree(jax.jvp(f, (X,), (T,))[1], jnp.tensordot(jacobian, T, 2))
    agree(jax.jacfwd(f)(X), jacobian)


def test_what_is_constant_stays_in_forward_mode():
    f = torch2jax(lambda x: (x.sum(), x.detach() * 2, torch.ones(3)))
    for _ in range(5):
        moved = jax.jvp(f, (X,), (T,))[1]
        for got, expected in zip(moved, (T.sum(), jnp.zeros_like(X), jnp.zeros(3)), strict=True):
            agree(got, expected)
    agree(jax.jacfwd(torch2jax(torch.sign))(X[0]), np.zeros((3, 3)))
    assert "forward mode: torch.func.jvp" in f.explain()


def energy(x):
    return jnp.cos(x).prod() + (x**4).sum()


def force(x):
    x.requires_grad_(True)
    return torch.autograd.grad(torch.cos(x).prod() + (x**4).sum(), x, create_graph=True)[0]


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "transform",
    [
        jax.jacfwd,
        jax.jacrev,
        lambda f: jax.jit(jax.jacfwd(jax.jacfwd(f))),
        lambda f: jax.hessian(lambda x: f(x).sum()),
        lambda f: lambda x: jax.vmap(jax.jacfwd(f))(jnp.stack([x, 2 * x])),
        lambda f: lambda x: jax.grad(lambda x: jax.vmap(f)(x).sum())(jnp.stack([x, 2 * x])),
    ],
    ids=["jacfwd", "jacrev", "jacfwd twice", "hessian", "vmap of jacfwd", "grad of vmap"],
)
def test_a_function_that_differentiates_inside(transform):
    agree(transform(torch2jax(force))(X[0]), transform(jax.grad(energy))(X[0]), 1e-3)


def test_an_encoder_layer_in_eval_mode():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    apply, variables = module2jax(layer, train=False)
    x = jax.random.normal(jax.random.key(0), (2, 1, 4, 8))
    loss = lambda x: (apply(variables, x) ** 2).sum()
    push = lambda x: jax.jvp(loss, (x,), (jnp.cos(x),))[1]
    expected = [(jax.grad(loss)(row) * jnp.cos(row)).sum() for row in x]
    agree(push(x[0]), expected[0], 1e-3)
    agree(jax.vmap(push)(x), jnp.stack(expected), 1e-3)


W = torch.linspace(0.5, 1.5, 4)
OF_FLOAT = {  # torch's tangent of the result has the dtype of the weight
    "group_norm": lambda x: F.group_norm(x, 2, W, W),
    "layer_norm": lambda x: F.layer_norm(x, (6,), torch.ones(6)),
    "batch_norm": lambda x: F.batch_norm(x, W, W, W, W),
    "batch_norm in training": lambda x: F.batch_norm(x, None, None, W, W, training=True),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", OF_FLOAT)
def test_a_norm_under_autocast_may_be_the_result(name):
    def norm(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return OF_FLOAT[name](x.bfloat16())

    f, x = torch2jax(norm), jnp.sin(jnp.arange(48.0)).reshape(2, 4, 6)
    t = jnp.cos(x)
    push = lambda x, t: jax.jvp(f, (x,), (t,))[1]
    expected = jnp.tensordot(jax.jacrev(lambda x: f(x).astype(jnp.float32))(x), t, 3)
    for got in (push(x, t), jax.jit(push)(x, t), jax.vmap(push)(x[None], t[None])[0], jax.linearize(f, x)[1](t)):
        assert got.dtype == jnp.bfloat16
        agree(got.astype(jnp.float32), expected, 0.05)
    slope = jax.grad(lambda x: jnp.sum(f(x).astype(jnp.float32) ** 3))
    agree(jax.jvp(slope, (x,), (t,))[1], jax.grad(lambda x: jnp.sum(slope(x) * t))(x), 0.1)


# --- gradients that a hook changes ---------------------------------------------------------------------------------


def hooked(change, f):
    def run(x):
        y = 2 * x
        if y.requires_grad:
            y.register_hook(change)
        return f(y)

    return torch2jax(run)


def to_points(y):
    """Without a forward mode, and without a double backward."""
    return torch.cdist(y, torch.tensor([[1.0, 2, 3], [3, 1, 2]])).sum(0)


NOT_LINEAR = {
    "clamp at 1": lambda g: g.clamp(-1, 1),
    "clamp at 1e-4": lambda g: g.clamp(-1e-4, 1e-4),
    "clamp at 1e-7": lambda g: g.clamp(-1e-7, 1e-7),
    "normalise": lambda g: g / g.norm(),
    "sign": torch.sign,
}


def ways_forward(f):
    yield jax.jvp(f, (X,), (T,))[1]
    yield jax.jvp(f, (X,), (100 * T,))[1] / 100
    yield jax.jit(lambda x: jax.jvp(f, (x,), (T,))[1])(X)
    yield jax.vmap(lambda t: jax.jvp(f, (X,), (t,))[1])(T[None])[0]
    yield jnp.tensordot(jax.jacfwd(f)(X), T, 2)


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_a_gradient_that_is_clamped_leaves_forward_mode_that_of_the_values(name):
    f = hooked(NOT_LINEAR[name], torch.sin)
    for got in ways_forward(f):
        agree(got, 2 * jnp.cos(2 * X) * T)
    ones = torch.full((4, 3), 1.0)
    agree(jax.grad(lambda x: f(x).sum())(X), 2 * NOT_LINEAR[name](torch.cos(2 * torch.tensor(np.asarray(X))) * ones))


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_a_gradient_that_is_clamped_is_not_transposed(name):
    f = hooked(NOT_LINEAR[name], to_points)
    try:
        got = jax.jvp(f, (X,), (T,))[1]
    except NonDifferentiableError as error:
        assert "a hook clamps or normalises the gradient" in str(error)
        return
    # torch 2.15 has a double backward of `cdist`, and what it is transposed at is not clamped.
    assert name == "clamp at 1"
    agree(got, jax.jvp(torch2jax(lambda x: to_points(2 * x)), (X,), (T,))[1], 1e-3)


@pytest.mark.parametrize("f", [torch.sin, to_points])
def test_a_gradient_that_is_scaled_is_the_derivative_in_both_modes(f):
    half = hooked(lambda g: g / 2, f)
    expected = jnp.tensordot(jax.jacrev(half)(X), T, 2)
    for got in ways_forward(half):
        agree(got, expected, 1e-3)


def test_rounding_that_looks_like_a_contradiction_does_not_lead_to_nan(monkeypatch):
    """The transposed double backward of `logcumsumexp`, which takes the place of forward mode, is NaN (torch 2.13)."""
    strict = jvp_checks.agree
    monkeypatch.setattr(jvp_checks, "agree", lambda *sides, loosely=False: loosely and strict(*sides, loosely=True))
    monkeypatch.setattr(jvp_checks, "_is_rounding", lambda *_: False)
    f = torch2jax(lambda x: torch.logcumsumexp(x, 0))
    weighted = lambda f: lambda x: (f(x) * jnp.sin(9 * X)).sum()
    got = jax.jvp(jax.grad(weighted(f)), (X,), (T,))[1]
    agree(got, jax.jvp(jax.grad(weighted(lambda x: jax.lax.cumlogsumexp(x, axis=0))), (X,), (T,))[1], 1e-4)
