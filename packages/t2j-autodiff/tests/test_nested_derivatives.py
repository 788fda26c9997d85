"""Second derivatives by every nesting of the two modes, alone and in batches, against the same function in jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from t2j_autodiff import NonDifferentiableError, module2jax, torch2jax
from t2j_autodiff._workarounds.norms import DecomposedNorms
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")

X = jnp.array([[0.3, 0.9, 0.5], [1.0, 0.2, 0.7], [0.4, 0.8, 1.1], [0.6, 1.2, 0.1]])
T = jnp.cos(3 * X)

NESTINGS = {
    "ff": lambda f, x, t: jax.jvp(lambda x: jax.jvp(f, (x,), (t,))[1], (x,), (jnp.sin(x),))[1],
    "rf": lambda f, x, t: jax.grad(lambda x: jax.jvp(f, (x,), (t,))[1])(x),
    "fr": lambda f, x, t: jax.jvp(jax.grad(f), (x,), (t,))[1],
    "rr": lambda f, x, t: jax.grad(lambda x: (jax.grad(f)(x) * t).sum())(x),
    "FF": lambda f, x, t: jax.jacfwd(jax.jacfwd(f))(x),
    "RF": lambda f, x, t: jax.jacrev(jax.jacfwd(f))(x),
    "FR": lambda f, x, t: jax.jacfwd(jax.jacrev(f))(x),
    "RR": lambda f, x, t: jax.jacrev(jax.jacrev(f))(x),
    "vmap of fr": lambda f, x, t: jax.vmap(lambda t: jax.jvp(jax.grad(f), (x,), (t,))[1])(jnp.stack([t, x])),
    "vmap of ff": lambda f, x, t: jax.vmap(lambda x: jax.jvp(jax.jacfwd(f), (x,), (t,))[1])(jnp.stack([x, t * 2])),
}


def weights(shape):
    return jnp.linspace(0.3, 1.0, int(np.prod(shape))).reshape(shape)


def check(fn, reference, nesting, *, jitted=False, tolerance=2e-3):
    """Compare both functions, whose outputs are weighted so that none of their derivatives cancel."""
    f = torch2jax(fn)
    w = weights(jax.eval_shape(reference, X).shape)
    run = jax.jit if jitted else lambda f: f
    got = run(lambda x, t: NESTINGS[nesting](lambda x: (f(x) * w).sum(), x, t))(X, T)
    expected = jax.jit(lambda x, t: NESTINGS[nesting](lambda x: (reference(x) * w).sum(), x, t))(X, T)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * float(jnp.abs(expected).max() + 0.1))


def standard(x, axes):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5)


def with_statistics(x):
    scale = 1 / jnp.sqrt(x.var(-1) + 1e-5)
    return standard(x, -1), x.mean(-1), scale


def weight_norm(w):
    return w * (jnp.exp(w[:, :1]) / jnp.sqrt((w**2).sum(1, keepdims=True)))


NORMS = {
    "layer_norm": (lambda x: F.layer_norm(x, (3,), x[0], x[1]), lambda x: standard(x, -1) * x[:1] + x[1:2]),
    "native_layer_norm": (
        lambda x: torch.ops.aten.native_layer_norm.default(x, [3], x[0], x[1], 1e-5)[0],
        lambda x: standard(x, -1) * x[:1] + x[1:2],
    ),
    "group_norm": (
        lambda x: F.group_norm(x.reshape(2, 6), 2, x[:2].reshape(6)),
        lambda x: standard(x.reshape(2, 2, 3), -1).reshape(2, 6) * x[:2].reshape(1, 6),
    ),
    "native_group_norm": (
        lambda x: torch.cat([y.flatten() for y in torch.native_group_norm(x[None], None, None, 1, 4, 3, 2, 1e-5)]),
        lambda x: jnp.concatenate([y.flatten() for y in with_statistics(x.reshape(2, 6))]),
    ),
    "instance_norm": (
        lambda x: F.instance_norm(x.reshape(2, 2, 3), weight=x[0, :2]),
        lambda x: standard(x.reshape(2, 2, 3), -1) * x[0, :2].reshape(1, 2, 1),
    ),
    "batch_norm": (
        lambda x: F.batch_norm(x, None, None, x[0], x[1], training=True),
        lambda x: standard(x, 0) * x[:1] + x[1:2],
    ),
    "weight_norm": (lambda x: torch._weight_norm(x, x[:, :1].exp(), 0), weight_norm),
}


@pytest.mark.thinned(9)
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("name", NORMS)
def test_normalisation(name, nesting):
    check(*NORMS[name], nesting)


def masked(x, indices, padding):
    return jnp.where((indices == padding)[:, None], jax.lax.stop_gradient(x[indices]), x[indices])


INDICES = np.array([0, 1, 3, 1, 0])


def asks(x):
    w = x if x.requires_grad else x.detach()
    return w.sin() * 2 + x


def without_gradients(x):
    with torch.no_grad():
        s = x.sin()
    return s * x**2


def detached(x):
    return jax.lax.stop_gradient(jnp.sin(x)) * x**2


OTHERS = {
    "asks requires_grad": (asks, lambda x: jnp.sin(x) * 2 + x),
    "no_grad": (without_gradients, detached),
    "detach": (lambda x: x.detach().sin() * x**2, detached),
    "nothing moves": (lambda x: x.detach().sin() * x, lambda x: jax.lax.stop_gradient(jnp.sin(x)) * x),
    "padding": (
        lambda x: F.embedding(torch.from_numpy(INDICES), x, padding_idx=1).sin(),
        lambda x: jnp.sin(masked(x, INDICES, 1)),
    ),
    "solve": (
        lambda x: torch.linalg.solve(x[:3] + 2 * torch.eye(3), x[3]),
        lambda x: jnp.linalg.solve(x[:3] + 2 * jnp.eye(3), x[3]),
    ),
    "logcumsumexp": (lambda x: x.logcumsumexp(0).sin(), lambda x: jnp.sin(jax.lax.cumlogsumexp(x))),
    "ldexp": (lambda x: torch.ldexp(x, torch.tensor(2)).sin(), lambda x: jnp.sin(4 * x)),
    "masked attention": (
        lambda x: F.scaled_dot_product_attention(x[None], 2 * x[None], x[None], torch.ones(4, 4).tril().bool())[0],
        lambda x: jax.nn.softmax(jnp.where(jnp.tri(4) > 0, 2 * x @ x.T / 3**0.5, -jnp.inf), -1) @ x,
    ),
    "glu": (lambda x: F.glu(x.reshape(3, 4)), lambda x: jax.nn.glu(x.reshape(3, 4))),
    "scatter_reduce": (
        lambda x: torch.scatter_reduce(x[2:], 0, torch.tensor([[0, 1, 0], [1, 1, 0]]), x[:2], "prod"),
        lambda x: jnp.stack(
            [
                x[2] * jnp.stack([x[0, 0], jnp.ones(()), x[0, 2] * x[1, 2]]),
                x[3] * jnp.stack([x[1, 0], x[0, 1] * x[1, 1], jnp.ones(())]),
            ]
        ),
    ),
}


@pytest.mark.thinned(9)
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("name", OTHERS)
def test_what_forward_mode_of_torch_gets_wrong(name, nesting):
    check(*OTHERS[name], nesting)


@pytest.mark.parametrize("nesting", ["ff", "rf", "FF", "RF"])
@pytest.mark.parametrize("pair", [NORMS["layer_norm"], OTHERS["asks requires_grad"], OTHERS["detach"]])
def test_under_jit(pair, nesting):
    check(*pair, nesting, jitted=True)


@pytest.mark.parametrize("function", [F.embedding, torch.embedding])
def test_weighted_embeddings_have_one_derivative(function):
    indices = torch.from_numpy(INDICES)
    given = (indices,) if function is F.embedding else ()
    f = torch2jax(lambda w: function(*given, w, *(() if given else (indices,)), padding_idx=3, scale_grad_by_freq=True))
    jacobian = jax.jacrev(f)(X)
    assert jnp.abs(jacobian).max() == 0.5
    assert f(X).tolist() == X[INDICES].tolist()
    np.testing.assert_allclose(jax.jacfwd(f)(X), jacobian, atol=1e-6)
    np.testing.assert_allclose(jax.jvp(f, (X,), (T,))[1], jnp.tensordot(jacobian, T, 2), atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_plain_norms_return_and_write_what_those_of_torch_do(dtype, autocast):
    x, w = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype), torch.linspace(0.5, 1, 6)
    w = w.to(dtype)

    def run():
        mean, var = torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)
        results = [
            F.batch_norm(x, mean, var, w, w, True, 0.2),
            F.batch_norm(x, mean, var, w, w, False),
            F.instance_norm(x, mean, var, w, w, True, 0.2),
            F.instance_norm(x, mean, var, w, w, False),
            F.group_norm(x, 3, w, w),
            F.layer_norm(x, (6, 5)),
            torch.layer_norm(x.mT, (6,), w, w, 1e-3),
            torch.ops.aten.native_layer_norm(x.mT, (6,), w, w, 1e-3)[0],
            torch.native_batch_norm(x, w, w, mean, var, True, 0.2, 1e-5)[0],
            torch.native_group_norm(x, w, w, 4, 6, 5, 2, 1e-5)[0],
            torch._weight_norm(x[0], w[:, None], 0),
        ]
        return [*results, mean, var]

    with torch.autocast("cpu", enabled=autocast):
        expected = run()
        with DecomposedNorms():
            got = run()
    for a, b in zip(got, expected, strict=True):
        loose = {"rtol": 0.05, "atol": 0.05} if dtype is torch.bfloat16 else {}
        torch.testing.assert_close(a, b, **loose)


def test_gradients_of_weights_through_batches_of_tangents():
    """As losses of physics-informed networks, where weights have no batch axis."""
    layers = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.LayerNorm(5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    apply, variables = module2jax(layers, depth=3)
    points = jnp.linspace(-1, 1, 12).reshape(6, 2)

    def network(v, x):
        v = v["params"]
        h = x @ v["0.weight"].T + v["0.bias"]
        return (jnp.tanh(standard(h, -1) * v["1.weight"] + v["1.bias"]) @ v["3.weight"].T + v["3.bias"])[0]

    def loss(network):
        def laplacian(v, x):
            return jnp.trace(jax.jacfwd(jax.jacfwd(lambda x: network(v, x)))(x))

        return lambda v: (jax.vmap(laplacian, (None, 0))(v, points) ** 2).mean()

    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        expected = jax.jit(jax.grad(loss(network)))(variables)
    finally:
        jax.config.update("jax_numpy_rank_promotion", "raise")
    got = jax.jit(jax.grad(loss(lambda v, x: apply(v, x)[0])))(variables)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2 * float(jnp.abs(b).max()))


# What torch has no forward mode of, or none of its derivative, but a second derivative in reverse mode.
ROUNDABOUT = {
    "glu": (lambda x: F.glu(x * x, 0), lambda x: x[:2] ** 2 * jax.nn.sigmoid(x[2:] ** 2)),
    "checkpoint": (
        lambda x: checkpoint(lambda x: (x * x).sin(), x, use_reentrant=False) ** 2,
        lambda x: jnp.sin(x * x) ** 2,
    ),
    "sparse": (lambda x: (x * x).to_sparse().to_dense().sin(), lambda x: jnp.sin(x * x)),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("nesting", ["ff", "rf", "fr", "RR", "vmap of fr", "vmap of ff"])
@pytest.mark.parametrize("name", ROUNDABOUT)
def test_second_derivatives_by_way_of_reverse_mode(name, nesting):
    check(*ROUNDABOUT[name], nesting)


LABELS, SEVERAL = torch.tensor([0, 1, 2, 0]), torch.tensor([[0, 1, -1]] * 4)
ROWS, STARTS = torch.tensor([0, 1, 3, 1]), torch.tensor([0, 2])


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.cdist(x, x[:2] + 1),
        F.pdist,
        lambda x: F.multi_margin_loss(x, LABELS),
        lambda x: F.multilabel_margin_loss(x, SEVERAL),
        lambda x: F.embedding_bag(ROWS, x, STARTS, mode="sum").sin(),
        F.hardsigmoid,
    ],
)
@pytest.mark.parametrize("nesting", ["rf", "fr", "rr", "RR"])
def test_there_is_a_second_derivative_where_torch_has_one(fn, nesting):
    """Of `cdist` and `pdist` since torch 2.15."""
    f = torch2jax(fn)
    x, t = (torch.from_numpy(np.array(a)) for a in (X, T))
    try:
        expected = torch.autograd.functional.hessian(lambda x: fn(x).sum(), x)
    except RuntimeError:
        with pytest.raises(NonDifferentiableError, match="is not implemented"):
            NESTINGS[nesting](lambda x: f(x).sum(), X, T)
        return
    expected = expected if nesting == "RR" else torch.tensordot(expected, t, 2)
    got = NESTINGS[nesting](lambda x: f(x).sum(), X, T)
    if nesting == "fr" and fn is F.pdist and jnp.isnan(got).all():
        pytest.xfail("the derivative of `_pdist_double_backward` is NaN in torch 2.15")
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
