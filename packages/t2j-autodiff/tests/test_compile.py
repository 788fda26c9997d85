"""`compile=True`: derivatives and batches are those of the function as it is, in every transformation of JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import agree
from t2j_autodiff import PerformanceWarning, module2jax, torch2jax
from t2j_core import _compat

pytestmark = pytest.mark.skipif(not _compat.can_compile, reason="torch before 2.9 does not compile functions")

X = jnp.linspace(-1, 1, 6).reshape(2, 3)
W = jnp.linspace(0.5, 1.5, 12).reshape(3, 4)


def same(use, f, *args, rtol=1e-4, **options):
    """Compare a use of a function with and without `compile=True`. What was not compiled has warned, an error here."""
    plain, compiled = torch2jax(f, **options), torch2jax(f, compile=True, **options)
    agree(use(compiled, *args), use(plain, *args), rtol)
    return compiled


def layer(x, w):
    h = torch.tanh(x @ w)
    return (h * h).sum(-1), h


def loss(f):
    return lambda x, w: sum(jnp.sum(y * y) for y in f(x, w))


def through_scan(f):
    return lambda x, w: jax.lax.scan(lambda c, xi: (c + loss(f)(xi[None], w), None), 0.0, x)[0]


USES = {
    "grad": lambda f, x, w: jax.jit(jax.value_and_grad(loss(f), (0, 1)))(x, w),
    "eager grad of one": lambda f, x, w: jax.grad(loss(f), 1)(x, w),
    "vmap of grad": lambda f, x, w: jax.jit(jax.vmap(jax.grad(loss(f), (0, 1)), (0, None)))(x[:, None], w),
    "grad of vmap": lambda f, x, w: jax.jit(jax.grad(lambda w: jax.vmap(loss(f), (0, None))(x[:, None], w).sum()))(w),
    "scan": lambda f, x, w: jax.jit(jax.grad(through_scan(f), 1))(x, w),
    "checkpoint": lambda f, x, w: jax.jit(jax.grad(jax.checkpoint(loss(f)), 1))(x, w),
    "jvp": lambda f, x, w: jax.jvp(loss(f), (x, w), (x, w)),
    "forward over reverse": lambda f, x, w: jax.jvp(jax.grad(loss(f)), (x, w), (x, w)),
    "reverse over reverse": lambda f, x, w: jax.grad(lambda x: jax.grad(loss(f), 1)(x, w).sum())(x),
    "jacobian": lambda f, x, w: jax.jacrev(lambda x: f(x, w)[1])(x),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("use", USES)
def test_transformations(use):
    compiled = same(USES[use], layer, X, W)
    if use not in ("jvp", "forward over reverse"):
        assert "compiled: " in compiled.explain()


def test_what_was_compiled_is_explained():
    f = torch2jax(layer, compile=True)
    jax.jit(jax.grad(loss(f), 1))(X, W)
    text = f.explain()
    assert "compiled: forward(layer)" in text and "vjp(layer)" in text
    assert "from a compiled graph" in text and "not compiled" not in text


# --- kinds of functions -----------------------------------------------------------------------------------------------


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, ct):
        return ct * 20


def mixed(x, w):
    table, index = w.T.contiguous(), torch.tensor([1, 0, 3])
    y = x.clone()
    y[0] *= 2  # in place
    z = torch.complex(x, y).conj()
    attention = torch.nn.functional.scaled_dot_product_attention(x[None], x[None], y[None])
    with torch.autocast("cpu", torch.bfloat16):
        half = x @ w
    parts = [Twice.apply(x), table[index].sum(), (z * z).abs(), attention, half.float(), x.mT, w.double().sum().float()]
    return tuple(p.sum() for p in parts), index.sum(), x > 0


def test_functions_of_many_kinds():
    def use(f, x, w):
        def real(x, w):
            parts, *rest = f(x, w)
            return sum(map(jnp.sum, parts)), rest

        return jax.jit(jax.value_and_grad(real, (0, 1), has_aux=True))(x, w)

    same(use, mixed, X, W, rtol=2e-2)


def test_what_is_saved_may_lie_in_memory_in_any_way():
    def f(x, w):
        h = torch.tanh(x @ w)
        image = torch.sin(w.reshape(1, 3, 2, 2)).contiguous(memory_format=torch.channels_last)
        convolved = torch.nn.functional.conv2d(image, torch.ones(2, 3, 1, 1))  # is saved as it lies
        return (
            torch.sin(h[:, ::2]),
            torch.cos(h.mT),
            torch.exp(image) * image,
            torch.sin(h[0]).expand(3, 4),
            convolved**3,
        )

    same(USES["grad"], f, X, W)


def test_gradients_of_complex_numbers():
    use = lambda f, z: jax.grad(lambda z: jnp.abs(f(z)).sum())(z)
    same(use, lambda z: z * z.conj() * 1j, jnp.array([1 + 2j, 3j]))


@pytest.mark.parametrize("options", [{"residuals": "graph"}, {"compile": True}])
def test_a_recurrent_module(options):
    """oneDNN's layers keep nothing for a backward where grad mode is off."""
    module = torch.nn.LSTM(3, 1)
    plain, variables = module2jax(module)
    other, _ = module2jax(module, **options)
    gradient = lambda apply: jax.grad(lambda v: apply(v, X[:1])[0].sum())(variables)
    agree(gradient(other), gradient(plain))


def test_a_module_with_buffers():
    module = torch.nn.BatchNorm1d(3)

    def step(apply):
        def f(params):
            y, buffers = apply({"params": params, "buffers": variables["buffers"]}, X)
            return (y**3).sum(), buffers

        return jax.jit(jax.value_and_grad(f, has_aux=True))(variables["params"])

    plain, variables = module2jax(module, train=True, mutable=True)
    compiled, _ = module2jax(module, train=True, mutable=True, compile=True)
    agree(step(compiled), step(plain))


# --- random numbers ---------------------------------------------------------------------------------------------------


def noisy(x):
    return torch.nn.functional.dropout(x, 0.5) * torch.rand_like(x)


DECLARED = jax.ShapeDtypeStruct((2,), jnp.float32)
ONES = jnp.ones(40)
KEY = jax.random.key(3)


@pytest.mark.parametrize("residuals", ["auto", "graph", "recompute"])
def test_the_backward_has_the_mask_of_the_forward(residuals):
    f = torch2jax(noisy, rng=True, compile=residuals != "graph", residuals=residuals)
    y, gradient = jax.jit(jax.value_and_grad(lambda x: f(KEY, x).sum()))(ONES)
    agree(gradient, f(KEY, ONES))
    agree(gradient, torch2jax(noisy, rng=True)(KEY, ONES))


def test_each_example_of_a_batch_of_keys_draws_its_own_numbers():
    plain, compiled = torch2jax(noisy, rng=True), torch2jax(noisy, rng=True, compile=True)
    keys, x = jax.random.split(KEY, 3), jnp.ones((3, 40))
    use = lambda f: jax.vmap(jax.value_and_grad(lambda k, x: f(k, x).sum(), 1))(keys, x)
    agree(use(compiled), use(plain))
    assert len(np.unique(np.asarray(use(compiled)[0]))) == 3
    agree(jax.vmap(compiled, (None, 0))(KEY, x), jax.vmap(plain, (None, 0))(KEY, x))


# --- what is not compiled ---------------------------------------------------------------------------------------------


def asks(x):
    return x * 3 if x.is_leaf and x.requires_grad else x * 2


def takes_a_value(x):
    return x * x.sum().item()


@pytest.mark.parametrize("f, factor", [(asks, 3.0), (takes_a_value, 2.0)])
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_a_derivative_that_cannot_be_traced(f, factor):
    g = torch2jax(f, compile=True, output_shapes=DECLARED)
    with pytest.warns(PerformanceWarning, match="g cannot|cannot be compiled.*derivative") as caught:
        gradient = jax.jit(jax.grad(lambda x: g(x).sum()))(jnp.ones(2))
    assert len(caught) == 1
    agree(gradient, jnp.full(2, factor))
    _, tangent = jax.jit(lambda x: jax.jvp(g, (x,), (x,)))(jnp.ones(2))
    agree(tangent, jax.jvp(torch2jax(f, output_shapes=DECLARED), (jnp.ones(2),), (jnp.ones(2),))[1])
    assert "compiled: jvp" not in g.explain()
    assert "compiled graph" not in g.explain()


def test_examples_that_run_one_after_another():
    options = {"vmap_method": "sequential"}
    use = lambda f: jax.vmap(jax.value_and_grad(lambda x, y: (f(x, y) ** 2).sum()), (0, None))(X, X[0])
    plain, compiled = torch2jax(torch.mul, **options), torch2jax(torch.mul, compile=True, **options)
    agree(use(compiled), use(plain))
    agree(jax.vmap(jax.vmap(compiled), (None, 0))(X[0], X), X[:1] * X)
    assert "not compiled" not in compiled.explain()


@pytest.mark.parametrize(
    "use",
    [
        lambda f, x: jax.vjp(f, x)[0],
        lambda f, x: jax.jit(jax.vmap(f))(x),
        lambda f, x: jax.jvp(f, (x,), (x,)),
        lambda f, x: jax.jit(jax.grad(lambda x: f(x).sum()))(x),
    ],
)
def test_what_a_function_asks_about_torch(use):
    same(use, lambda x: x * (2 if torch.is_grad_enabled() else 3), X)
    same(use, lambda x: x * (2 if torch.compiler.is_compiling() else 3), X)


@pytest.mark.thinned(5)
@pytest.mark.parametrize(
    "f",
    [
        torch.sgn,
        lambda x: torch.sgn(x) * x,
        lambda x: torch.sgn(x[1:]).sum() + x,
        lambda x: torch.view_as_real(torch.sgn(torch.complex(x, x))),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, lambda f: jax.jit(jax.vmap(f))])
def test_derivatives_that_are_zero(transform, f):
    """Autograd makes symbolic zeros of some, which have no memory."""
    use = lambda f, x: transform(jax.grad(lambda x: f(x).sum()))(x)
    assert "compiled graph" in same(use, f, X + 0.1).explain()


@pytest.mark.parametrize("options", [{"compile": True}, {"residuals": "graph"}])
def test_functions_that_look_at_values_unless_torch_compiles(options):
    """As transformers does with masks."""

    def f(x, mask):
        return x**2 if not torch.compiler.is_compiling() and mask.all() else torch.where(mask, x**2, 0)

    g = torch2jax(f, output_shapes=jax.ShapeDtypeStruct(X.shape, X.dtype), **options)
    for mask in (X > -2, X > 0):
        gradient = jax.jit(jax.grad(lambda x, mask: g(x, mask).sum()))
        np.testing.assert_allclose(gradient(X, mask), jnp.where(mask, 2 * X, 0))
    assert "graph" in g.explain().partition("reverse mode")[2]
