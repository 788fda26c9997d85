"""What users are told when they are wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t2j_autodiff
import torch
from t2j_autodiff import ArgumentError, DepthError, NonDifferentiableError, TransformError, torch2jax

X = jnp.arange(3.0) + 1


def cube(x):
    return (x**3).sum()


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd, lambda f: jax.jit(jax.grad(f))])
def test_depth_0_is_forward_only(transform):
    f = torch2jax(cube, depth=0)
    assert float(f(X)) == 36
    with pytest.raises(
        DepthError, match=r"(?s)cube was wrapped with `depth=0` \(forward only\).*Wrap it with `depth=1`"
    ):
        transform(f)(X)


@pytest.mark.parametrize(("depth", "order"), [(1, 2), (2, 3), (3, 4)])
def test_beyond_depth(depth, order):
    f = torch2jax(cube, depth=depth)
    g = f
    for _ in range(depth):
        g = (lambda g: lambda x: jax.grad(g)(x).sum())(g)
    g(X)
    with pytest.raises(
        DepthError, match=f"(?s)`depth={depth}`, and this needs a derivative of order {order}.*`depth={order}`"
    ):
        jax.grad(g)(X)


def test_hessian_needs_depth_2():
    with pytest.raises(DepthError):
        jax.hessian(torch2jax(cube, depth=1))(X)
    np.testing.assert_allclose(jax.hessian(torch2jax(cube))(X), jnp.diag(6 * X), rtol=1e-6)


def test_stop_gradient_is_the_other_remedy():
    f = torch2jax(lambda x, y: (x * y).sum(), depth=0)
    gradient = jax.grad(lambda x: x.sum() * f(jax.lax.stop_gradient(x), X))(X)
    np.testing.assert_allclose(gradient, np.full(3, 14.0))


@pytest.mark.parametrize("depth", [-1, True, 1.0, "2"])
def test_depth_must_be_a_count(depth):
    with pytest.raises(ArgumentError, match=r"(?s)`depth` is not valid.*Expected: a non-negative integer"):
        torch2jax(cube, depth=depth)


@pytest.mark.parametrize(
    "options",
    [
        {"residuals": "live"},
        {"vmap_method": "loop"},
        {"vmap_randomness": "random"},
        {"vmap_chunk_size": 0},
        {"vmap_chunk_size": True},
        {"nondiff_argnums": -1},
        {"nondiff_argnums": "x"},
        {"outputs": "nowhere"},
        {"mutable_argnums": -1},
    ],
    ids=str,
)
def test_options_are_checked(options):
    (name,) = options
    with pytest.raises(ArgumentError, match=rf"(?s)`{name}`.*Expected:.*Got: "):
        torch2jax(cube, **options)


def test_an_unknown_option():
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        torch2jax(cube, order=2)


def test_an_integer_argument_is_jaxs_error():
    f = torch2jax(lambda i: i.float().sum())
    with pytest.raises(TypeError, match="grad requires real- or complex-valued inputs"):
        jax.grad(f)(jnp.arange(3))


class OnceDifferentiable(torch.autograd.Function):
    """Neither forward mode nor a second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.exp()


def test_forward_mode_that_torch_cannot_do_gives_both_reasons():
    f = torch2jax(lambda x: OnceDifferentiable.apply(x).sum())
    np.testing.assert_allclose(jax.grad(f)(X), np.exp(X), rtol=1e-6)
    message = r"(?s)Forward mode failed:.*Double backward failed:.*Use reverse mode"
    with pytest.raises(NonDifferentiableError, match=message):
        jax.jvp(f, (X,), (X,))


def test_a_second_derivative_that_torch_cannot_do():
    # Autograd would answer zero.
    f = torch2jax(lambda x: OnceDifferentiable.apply(x).sum())
    with pytest.raises(NonDifferentiableError, match="once_differentiable"):
        jax.grad(lambda x: jax.grad(f)(x).sum())(X)


def test_a_nonlinear_function_cannot_be_transposed():
    with pytest.raises(TransformError, match=r"(?s)not known to be linear.*Use `jax.vjp`"):
        jax.linear_transpose(torch2jax(lambda x: x * 2), X)(X)


def test_core_alone_names_this_package():
    f = t2j_autodiff.torch2jax_without_vjp(cube)
    with pytest.raises(TransformError, match="t2j-autodiff"):
        jax.grad(f)(X)


def test_what_vmap_cannot_batch_is_an_error_on_request():
    f = torch2jax(
        lambda x: x * x.sum().item(), output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32), vmap_method="vmap"
    )
    with pytest.raises(RuntimeError, match="item"):
        jax.vmap(f)(jnp.ones((2, 3)))


@pytest.mark.parametrize(
    "mask", [("yes", False), (1.5, False), (True,), ({"a": True}, False), (True, (True, False))], ids=str
)
def test_a_mask_that_does_not_match(mask):
    f = torch2jax(lambda p, x: (p["w"] * x).sum(), nondiff_mask=mask)
    with pytest.raises(
        ArgumentError, match=r"(?s)`nondiff_mask` does not match the arguments.*Expected: a tree of bools"
    ):
        f({"w": X}, X)


def test_a_position_without_an_array():
    with pytest.raises(ArgumentError, match=r"(?s)`nondiff_argnums` names position 3.*args\[0\]"):
        torch2jax(cube, nondiff_argnums=3)(X)


class Failing(torch.autograd.Function):
    """A backward that raises."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        raise ZeroDivisionError("in the backward")


def test_an_exception_in_the_backward_keeps_its_type():
    f = torch2jax(lambda x: Failing.apply(x).sum())
    with pytest.raises(ZeroDivisionError, match="in the backward"):
        jax.grad(f)(X)
    with pytest.raises(Exception, match=r"(?s)ZeroDivisionError: in the backward"):
        jax.block_until_ready(jax.jit(jax.grad(f))(X))
    assert isinstance(t2j_autodiff.last_error(), ZeroDivisionError)


def test_an_exception_in_the_forward_keeps_its_type():
    def fn(x):
        if not x.is_meta:
            raise KeyError("mine")
        return x.sum()

    f = torch2jax(fn)
    for transform in (jax.grad, jax.jacfwd):
        with pytest.raises(KeyError, match="mine"):
            transform(f)(X)


def test_nan_of_constants_does_not_leak():
    poison = jnp.array([jnp.nan, jnp.inf, -jnp.inf])
    f = torch2jax(lambda x, c: (x * torch.nan_to_num(c, 1.0, 1.0, 1.0)).sum(), nondiff_argnums=1)
    gx, gc = jax.grad(f, (0, 1))(X, poison)
    np.testing.assert_array_equal(gx, np.ones(3))
    np.testing.assert_array_equal(gc, np.zeros(3))


def test_derivatives_are_not_exported():
    f = torch2jax(cube, name="cube of the errors test")
    with pytest.raises(t2j_autodiff.ExportError, match="only forward calls can be"):
        jax.export.export(jax.jit(jax.grad(f)))(X)


def test_the_deprecated_name():
    with pytest.warns(DeprecationWarning, match="`torch2jax_with_vjp` is now `torch2jax`"):
        f = t2j_autodiff.torch2jax_with_vjp(cube, depth=1)
    np.testing.assert_allclose(jax.grad(f)(X), 3 * X**2, rtol=1e-6)
