"""What users are told when they are wrong."""

from __future__ import annotations

import re
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t2j_autodiff
import torch
from common import raises, warns
from t2j_autodiff import (
    ArgumentError,
    DepthError,
    NonDifferentiableError,
    PerformanceWarning,
    T2jError,
    TransformError,
    module2jax,
    torch2jax,
)

X = jnp.arange(3.0) + 1


def cube(x):
    return (x**3).sum()


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd, lambda f: jax.jit(jax.grad(f))])
def test_depth_0_is_forward_only(transform):
    f = torch2jax(cube, depth=0)
    assert float(f(X)) == 36
    with raises(DepthError, what=("cube", "`depth=0`", "forward only"), remedy="`depth=1`"):
        transform(f)(X)


@pytest.mark.parametrize(("depth", "order"), [(1, 2), (2, 3), (3, 4)])
def test_beyond_depth(depth, order):
    f = torch2jax(cube, depth=depth)
    g = f
    for _ in range(depth):
        g = (lambda g: lambda x: jax.grad(g)(x).sum())(g)
    g(X)
    with raises(DepthError, what=(f"`depth={depth}`", f"of order {order}"), remedy=f"`depth={order}`"):
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
    with raises(ArgumentError, what="`depth`", expected="non-negative integer", got=repr(depth)):
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
    ((name, value),) = options.items()
    with raises(ArgumentError, what=f"`{name}`", expected=re.compile("."), got=str(value)):
        torch2jax(cube, **options)


def test_an_unknown_option():
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        torch2jax(cube, order=2)


def test_an_integer_argument_is_jaxs_error():
    f = torch2jax(lambda i: i.float().sum())
    with pytest.raises(TypeError, match="grad requires real- or complex-valued inputs"):
        jax.grad(f)(jnp.arange(3))


BOTH_REASONS = re.compile(r"(?s)Forward mode failed:.*Double backward failed:.*reverse mode")


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
    f = torch2jax(OnceDifferentiable.apply)
    x = jnp.ones(257)  # more outputs than rows of a Jacobian are computed for
    np.testing.assert_allclose(jax.grad(lambda x: f(x).sum())(x), np.exp(x), rtol=1e-6)
    with raises(NonDifferentiableError, anywhere=BOTH_REASONS):
        jax.jvp(f, (x,), (x,))


def test_a_second_derivative_that_torch_cannot_do():
    # Autograd would return zero.
    f = torch2jax(lambda x: OnceDifferentiable.apply(x).sum())
    with pytest.raises(NonDifferentiableError, match="once_differentiable"):
        jax.grad(lambda x: jax.grad(f)(x).sum())(X)


def test_a_nonlinear_function_cannot_be_transposed():
    with raises(TransformError, what=("not linear", "args[0]"), expected="f(0) = 0", remedy="`jax.vjp`"):
        jax.linear_transpose(torch2jax(lambda x: x * x), X)(X)


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


@pytest.mark.parametrize("transform", [jax.jacfwd, lambda f: jax.jit(jax.jacfwd(f))])
def test_a_batch_of_pushforwards_that_torch_lacks_is_an_error_on_request(transform):
    f = torch2jax(lambda x: torch.cdist(x[:, None], torch.tensor([[-3.0], [4.0]])).sum(), vmap_method="vmap")
    with raises(Exception, what="no forward mode", remedy='`vmap_method="auto"`'):
        jax.block_until_ready(transform(f)(X))


@pytest.mark.parametrize("mask", [(True,), ({"a": True}, False), (True, (True, False))], ids=str)
def test_a_mask_that_does_not_match(mask):
    f = torch2jax(lambda p, x: (p["w"] * x).sum(), nondiff_mask=mask)
    with raises(ArgumentError, what="`nondiff_mask`", expected="tree of bools"):
        f({"w": X}, X)


def test_a_position_without_an_array():
    with raises(ArgumentError, what=("`nondiff_argnums`", "position 3"), expected="args[0]", got="3"):
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
    with raises(t2j_autodiff.ExportError, what="forward call"):
        jax.export.export(jax.jit(jax.grad(f)))(X)


def test_the_deprecated_name():
    with warns(DeprecationWarning, what=("`torch2jax_with_vjp`", "`torch2jax`")):
        f = t2j_autodiff.torch2jax_with_vjp(cube, depth=1)
    np.testing.assert_allclose(jax.grad(f)(X), 3 * X**2, rtol=1e-6)


def of_order(f, n):
    for _ in range(n):
        f = (lambda g: lambda x: jax.grad(g)(x).sum())(f)
    return f


@pytest.mark.parametrize(
    "wrap", [lambda g: g, jax.jit, jax.vmap, jax.checkpoint], ids=["eager", "jit", "vmap", "remat"]
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_text_of_a_depth_error(depth, wrap):
    f = torch2jax(cube, depth=depth)
    x = X[None] if wrap is jax.vmap else X
    assert wrap(of_order(f, depth))(x).shape == x.shape[:-1]
    needed = f"of order {depth + 1}" if depth else "cannot be differentiated"
    remedy = (f"`depth={depth + 1}`", "`depth=None`", "`jax.lax.stop_gradient`")
    with raises(DepthError, what=("cube", f"`depth={depth}`", needed), remedy=remedy) as caught:
        wrap(of_order(f, depth + 1))(x)
    assert len(str(caught.value).splitlines()) == 2
    assert isinstance(caught.value, TransformError)
    assert wrap(of_order(f, depth))(x).shape == x.shape[:-1]  # the failure leaves nothing behind


SECOND = {
    "hessian": jax.hessian,
    "jacrev": lambda f: jax.jacrev(jax.jacrev(f)),
    "jacfwd": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (x,)),
    "reverse over forward": lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (x,))[1]),
    "batch": lambda f: lambda x: jax.vmap(jax.hessian(f))(x[None]),
}


@pytest.mark.parametrize("name", SECOND)
def test_every_way_to_a_second_derivative_counts(name):
    with raises(DepthError, what=("`depth=1`", "of order 2"), remedy="`depth=2`"):
        SECOND[name](torch2jax(cube, depth=1))(X)
    SECOND[name](torch2jax(cube, depth=2))(X)


def test_what_needs_no_second_derivative_needs_no_depth():
    f = torch2jax(cube, depth=1)
    np.testing.assert_allclose(jax.jacrev(lambda x: jnp.stack([f(x), f(2 * x)]))(X)[1], 24 * X**2, rtol=1e-6)
    # The pullback is linear: its derivative along the cotangent is no derivative of the function.
    pullback = lambda ct: jax.vjp(f, X)[1](ct)[0]
    np.testing.assert_allclose(jax.jvp(pullback, (1.0,), (2.0,))[1], 6 * X**2, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda ct: pullback(ct).sum())(1.0), (3 * X**2).sum(), rtol=1e-6)


def test_depth_none_has_no_limit():
    f = torch2jax(lambda x: (x**5).sum(), depth=None)
    np.testing.assert_allclose(jax.grad(of_order(f, 4))(X), np.full(3, 120.0), rtol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jax.jacfwd(f),
        lambda f: lambda x: jax.jvp(f, (x,), (x,)),
        lambda f: jax.jit(jax.jacfwd(f)),
        lambda f: jax.hessian(lambda x: f(x).sum()),
    ],
    ids=["jacfwd", "jvp", "jit", "hessian"],
)
@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")
def test_what_has_no_forward_mode(transform):
    f = torch2jax(lambda x: OnceDifferentiable.apply(x).repeat(129))
    x = jnp.array([0.0, 1.0])
    assert np.isfinite(jax.grad(lambda x: f(x).sum())(x)).all()
    with raises(Exception, anywhere=BOTH_REASONS):
        jax.block_until_ready(transform(f)(x))
    assert isinstance(t2j_autodiff.last_error(), NonDifferentiableError)
    assert np.isfinite(jax.grad(lambda x: f(x).sum())(x)).all()


def test_transposition_of_an_affine_function_after_linearize_works():
    f = torch2jax(lambda x: 2 * x + 1)
    _, push = jax.linearize(f, X)
    np.testing.assert_array_equal(jax.linear_transpose(push, X)(X)[0], 2 * X)
    with raises(TransformError, what=("not linear", "args[0]", "at zero"), remedy="`jax.vjp`"):
        jax.jit(lambda ct: jax.linear_transpose(f, X)(ct))(X)


MASKS = [(True,), ({"a": True}, False), (True, (True, False)), (True, False, True), ((), False), {"w": True}]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_masks_that_do_not_match_name_the_arguments(mask):
    f = torch2jax(lambda p, x: (p["w"] * x).sum(), nondiff_mask=mask)
    with raises(ArgumentError, what=("`nondiff_mask`", "<lambda>"), expected="tree of bools", got="PyTreeDef"):
        jax.jit(jax.grad(f))({"w": X}, X)


@pytest.mark.parametrize(
    "mask",
    [
        ("yes", False),
        (1.5, False),
        (None, False),
        (X, False),
    ],
    ids=["str", "float", "None", "array"],
)
def test_masks_of_something_else_than_bools(mask):
    with raises(ArgumentError, what="`nondiff_mask`"):
        jax.grad(torch2jax(lambda p, x: (p * x).sum(), nondiff_mask=mask))(X, X)


def test_masks_that_match():
    def fn(p, x):
        return (p["a"] * p["b"] * x).sum()

    p = {"a": X, "b": 2 * X}
    zero, same = np.zeros(3), 2 * X**2
    for mask, expected in (
        (({"a": True, "b": False}, False), ((zero, X * X), same)),
        ((True, False), ((zero, zero), same)),
        ((False, True), ((2 * X * X, X * X), zero)),
        (True, ((zero, zero), zero)),
        ([False, True], ((2 * X * X, X * X), zero)),
    ):
        gp, gx = jax.grad(torch2jax(fn, nondiff_mask=mask), (0, 1))(p, X)
        np.testing.assert_allclose(gp["a"], expected[0][0])
        np.testing.assert_allclose(gp["b"], expected[0][1])
        np.testing.assert_allclose(gx, expected[1])


@pytest.mark.parametrize(
    ("mask", "constant"),
    [((False, False, True), 1), ((True, False, False), 0), (False, None)],
    ids=["last", "first", "-"],
)
def test_masks_beside_constants(mask, constant):
    f = torch2jax(lambda x, scale, y: (x * scale * y).sum(), nondiff_mask=mask)
    y = X + 1
    for i, (got, expected) in enumerate(zip(jax.grad(lambda x, y: f(x, 2.0, y), (0, 1))(X, y), (2 * y, 2 * X))):
        np.testing.assert_allclose(got, np.zeros(3) if i == constant else expected)


@pytest.mark.parametrize("number", [1, 7, (0, 2)])
def test_positions_without_arrays(number):
    f = torch2jax(lambda x, *, k: (x * k).sum(), nondiff_argnums=number)
    with raises(ArgumentError, what=("`nondiff_argnums`", re.compile(r"position \d")), expected=re.compile(".")):
        f(X, k=X)


class Moments(NamedTuple):
    first: Any
    second: Any


def test_positions_of_arguments_whose_fields_have_names():
    f = torch2jax(lambda x, moments: (x * moments.first * moments.second).sum(), nondiff_argnums=1)
    gx, gm = jax.grad(f, (0, 1))(X, Moments(X, 2 * X))
    np.testing.assert_allclose(gx, 2 * X * X)
    np.testing.assert_array_equal(gm, Moments(0 * X, 0 * X))


def test_bad_constants_reach_neither_gradients_nor_tangents():
    poison = jnp.array([jnp.nan, jnp.inf, -jnp.inf])
    for options in ({"nondiff_argnums": 1}, {"nondiff_mask": (False, True)}):
        f = torch2jax(lambda x, c: (x**2 * torch.nan_to_num(c, 1.0, 1.0, 1.0)).sum(), **options)
        gx, gc = jax.jit(jax.grad(f, (0, 1)))(X, poison)
        np.testing.assert_array_equal(gx, 2 * X)
        np.testing.assert_array_equal(gc, np.zeros(3))
        _, tangent = jax.jvp(f, (X, poison), (X, poison))
        np.testing.assert_array_equal(tangent, 2 * (X * X).sum())
        gx, gc = jax.vmap(jax.grad(f, (0, 1)))(X[None], poison[None])
        np.testing.assert_array_equal(gc, np.zeros((1, 3)))
        np.testing.assert_array_equal(jax.hessian(f)(X, poison), 2 * np.eye(3))


def test_a_failing_backward_is_reported_in_every_mode():
    f = torch2jax(lambda x: Failing.apply(x).sum())
    for transform in (jax.grad, jax.jacrev, lambda f: lambda x: jax.vjp(f, x)[1](jnp.float32(1))):
        with pytest.raises(ZeroDivisionError, match="in the backward"):
            transform(f)(X)
    for _ in range(2):  # compiled and run, and run again
        with pytest.raises(Exception, match=r"(?s)ZeroDivisionError: in the backward.*Raised in the torch function"):
            jax.block_until_ready(jax.jit(jax.grad(f))(X))
    assert float(f(X)) == 12


@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")
def test_a_failing_backward_of_a_batch():
    f = torch2jax(lambda x: Failing.apply(x).sum())
    for call in (jax.vmap(jax.grad(f)), jax.grad(lambda x: jax.vmap(f)(x).sum())):
        with pytest.raises(ZeroDivisionError, match="in the backward"):
            call(X[None])


@pytest.mark.parametrize("n", [3, 5000])
def test_a_backward_of_a_wrong_shape(n):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g[:2]

    with pytest.raises(RuntimeError, match=r"(?s)returned an invalid gradient .*shape"):
        jax.grad(torch2jax(lambda x: Wrong.apply(x).sum()))(jnp.ones(n))


def test_a_failing_rule_of_forward_mode_is_told():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x**2

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

        @staticmethod
        def jvp(ctx, t):
            raise LookupError("in the jvp")

    f = torch2jax(lambda x: Fails.apply(x).sum())
    np.testing.assert_array_equal(jax.jvp(f, (X,), (X,))[1], 2 * (X * X).sum())
    assert "transposed reverse mode (LookupError: in the jvp)" in f.explain()


def test_an_unbatchable_function_with_method_vmap_fails_under_jit_too():
    f = torch2jax(
        lambda x: x * float(x.sum()), output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32), vmap_method="vmap"
    )
    with pytest.raises(Exception, match=r"(?s)item.*Raised in the torch function vmap\("):
        jax.block_until_ready(jax.jit(jax.vmap(f))(jnp.ones((2, 3))))
    with pytest.raises(RuntimeError, match="item"):
        jax.vmap(jax.grad(lambda x: f(x).sum()))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(f(X), X * 6)


def test_the_deprecated_name_takes_every_option():
    with pytest.warns(DeprecationWarning) as record:
        f = t2j_autodiff.torch2jax_with_vjp(
            lambda x, c: (x * c).sum(), torch.ones(3), torch.ones(3), depth=2, nondiff_argnums=(1,), use_torch_vjp=False
        )
    assert record[0].filename == __file__
    gx, gc = jax.jit(jax.grad(f, (0, 1)))(X, 2 * X)
    np.testing.assert_array_equal(gx, 2 * X)
    np.testing.assert_array_equal(gc, np.zeros(3))


def test_warnings_point_at_the_users_line():
    f = torch2jax(lambda x: x * float(x.sum()), output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        jax.block_until_ready(jax.vmap(f)(jnp.ones((2, 3))))
    assert [w.category for w in record] == [PerformanceWarning]
    assert '`vmap_method="sequential"`' in str(record[0].message)


FAULTS = {
    "depth": lambda: torch2jax(cube, depth=-1),
    "depth of float": lambda: torch2jax(cube, depth=2.0),
    "residuals": lambda: torch2jax(cube, residuals="all"),
    "vmap_method": lambda: torch2jax(cube, vmap_method="legacy"),
    "vmap_randomness": lambda: torch2jax(cube, vmap_randomness=True),
    "vmap_chunk_size": lambda: torch2jax(cube, vmap_chunk_size=-3),
    "vmap_chunk_size of float": lambda: torch2jax(cube, vmap_chunk_size=2.0),
    "nondiff_argnums": lambda: torch2jax(cube, nondiff_argnums=-1),
    "nondiff_argnums of float": lambda: torch2jax(cube, nondiff_argnums=0.0),
    "nondiff_argnums out of range": lambda: torch2jax(cube, nondiff_argnums=4)(X),
    "nondiff_mask": lambda: torch2jax(cube, nondiff_mask=(True, False))(X),
    "module2jax": lambda: t2j_autodiff.module2jax(cube),
    "linear_transpose": lambda: jax.linear_transpose(torch2jax(cube), X)(jnp.float32(1)),
    "DepthError": lambda: jax.grad(torch2jax(cube, depth=0))(X),
    "without_vjp": lambda: jax.grad(t2j_autodiff.torch2jax_without_vjp(cube))(X),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_layout_of_every_message(name):
    with pytest.raises(T2jError) as caught:
        FAULTS[name]()
    first, *middle, remedy = str(caught.value).splitlines()
    assert "`" in first
    assert first.endswith((".", ")."))
    assert remedy.endswith(".")
    assert not remedy.startswith(" ")
    assert [line.split(":")[0] for line in middle] in ([], ["  Expected"], ["  Got"], ["  Expected", "  Got"])
    if isinstance(caught.value, ArgumentError):
        assert len(middle) == 2
    assert "Array(" not in str(caught.value)


# --- inputs that torch does not differentiate with respect to ------------------------------------------------------

BATCH = jnp.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize("derivative", [jax.grad, lambda f, **_: lambda v: jax.jvp(f, (v,), (of_ones(v),))])
@pytest.mark.parametrize("layers", [[], [torch.nn.Linear(3, 3)]])
def test_the_variables_of_a_batch_norm_have_no_derivative(derivative, layers):
    apply, variables = module2jax(torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(3)).eval())
    loss = lambda v: apply(v, BATCH).sum()
    with raises(NonDifferentiableError, what="`running_mean`", remedy='`variables["params"]`'):
        derivative(loss, allow_int=True)(variables)
    of_params = jax.grad(lambda p: apply({**variables, "params": p}, BATCH).sum())(variables["params"])
    assert {leaf.shape for leaf in jax.tree.leaves(of_params)} >= {(3,)}


def of_ones(tree):
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: jnp.ones_like(x) if is_float(x) else np.zeros(x.shape, jax.dtypes.float0), tree)


def test_weights_of_a_loss_have_no_derivative():
    f = torch2jax(lambda x, w: torch.nn.functional.cross_entropy(x, torch.tensor([0, 2]), weight=w))
    jax.grad(f)(BATCH, jnp.ones(3))
    with raises(NonDifferentiableError, what=("`nll_loss_forward`", "`weight`")):
        jax.grad(f, 1)(BATCH, jnp.ones(3))


@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")
@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
def test_a_declared_function_that_writes_into_what_is_differentiated(residuals):
    write = lambda x: torch.sin(x.mul_(0.5)).sum()
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(RuntimeError, match="leaf Variable") as caught:
        jax.grad(torch2jax(write, output_shapes=scalar, residuals=residuals))(X)
    assert any('`arguments="copy"`' in note for note in caught.value.__notes__)
    f = torch2jax(write, output_shapes=scalar, residuals=residuals, arguments="copy")
    np.testing.assert_allclose(jax.grad(f)(X), 0.5 * jnp.cos(0.5 * X), rtol=1e-6)
