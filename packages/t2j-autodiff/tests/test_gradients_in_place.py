"""`outputs="auto"` in the backward of a kept graph: the node that makes a large gradient writes it where JAX wants it.

Wherever a call differs from the recorded one, gradients are still those of torch, bit by bit.
"""

from __future__ import annotations

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax
from torch.utils._python_dispatch import TorchDispatchMode

F = torch.nn.functional
SIDE = 600  # 600 x 600 floats: 1.4 MB, above the size from which "auto" avoids copies
CALLS = 4

redirects = pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "ignore_compile_internals"),
    reason="torch before 2.10 cannot compile under a dispatch mode, so results are copied once that is loaded",
)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gradients(function, *arrays):
    """What torch computes for all floating operands."""
    tensors = [torch.from_numpy(np.array(a)) for a in arrays]
    leaves = [t.requires_grad_() for t in tensors if t.is_floating_point()]
    return [g.detach().numpy() for g in torch.autograd.grad(function(*tensors), leaves, materialize_grads=True)]


def check(function, *arguments_of_calls):
    """Compare the gradients of calls with torch's. Errors in kept graphs would show only in that they are given up."""
    f = torch2jax(function, output_shapes=jax.ShapeDtypeStruct((), jnp.float32))
    floats = tuple(i for i, a in enumerate(arguments_of_calls[0]) if a.dtype == np.float32)
    gradient = jax.jit(jax.grad(f, floats))
    for arguments in arguments_of_calls:
        got, expected = gradient(*map(jnp.asarray, arguments)), gradients(function, *arguments)
        for a, b in zip(got, expected, strict=True):
            assert np.asarray(a).tobytes() == b.tobytes()
    assert "kept autograd graph" in f.explain()


def weights_and_inputs(call):
    return normal(call, 8, SIDE), normal(10 + call, SIDE, SIDE), normal(20 + call, SIDE, SIDE)


# --- the copy is really avoided ---------------------------------------------------------------------------------------


class Product(torch.autograd.Function):
    """A product that notes where its gradients lie, and how many dispatch modes are on."""

    seen: list[tuple[int, int]] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        of_w = x.T @ g
        Product.seen.append((of_w.data_ptr(), torch._C._len_torch_dispatch_stack()))
        return g @ w.T, of_w


def seen_in(function, *arguments):
    """The gradients of a call, where those of the products lay, and how many modes were on in each product."""
    Product.seen.clear()
    got = function(*arguments)
    jax.block_until_ready(got)
    addresses, modes = zip(*Product.seen, strict=True)
    return [g.unsafe_buffer_pointer() for g in got], [*addresses], [*modes]


@redirects
def test_gradients_are_written_in_place_from_the_second_call():
    function = torch2jax(lambda x, w, u: Product.apply(Product.apply(x, w).tanh(), u).square().sum())
    arguments = [jnp.asarray(a) for a in weights_and_inputs(0)]
    gradient = jax.jit(jax.grad(function, (1, 2))).lower(*arguments).compile()
    seen_in(gradient, *arguments)
    for _ in range(CALLS):
        got, addresses, _ = seen_in(gradient, *arguments)
        assert got == addresses[::-1]  # the backward begins at the last


@redirects
def test_a_mode_is_on_only_where_a_large_gradient_is_produced():
    def function(x, w, small):
        return Product.apply(Product.apply(x, w)[:, :2].tanh(), small).square().sum()

    arguments = [jnp.asarray(a) for a in (normal(0, 8, SIDE), normal(1, SIDE, SIDE), normal(2, 2, 2))]
    gradient = jax.jit(jax.grad(torch2jax(function), (1, 2))).lower(*arguments).compile()
    seen_in(gradient, *arguments)
    got, addresses, modes = seen_in(gradient, *arguments)
    assert modes == [0, 1]
    assert got[0] == addresses[1]


# --- right values ----------------------------------------------------------------------------------------------------

MODELS = {
    "linear layers": lambda x, w, u: F.linear(F.linear(x, w).relu(), u).square().sum(),
    "functions of the user": lambda x, w, u: Product.apply(Product.apply(x, w).tanh(), u).square().sum(),
    "a weight that is used twice": lambda x, w, u: ((x @ w).tanh() @ w @ u).square().sum(),
    "a weight that is used by two nodes at once": lambda x, w, u: ((x @ w) * (x.sin() @ w)).sum() + u.sum(),
    "elementwise": lambda x, w, u: (w * u).sin().sum() + x.sum(),
    "transposed": lambda x, w, u: (x @ w.T @ u.T).square().sum(),
    "one gradient for two": lambda x, w, u: (w + u).square().sum() + x.sum(),
    "a slice": lambda x, w, u: (x @ w[:, 3:] @ u[3:]).square().sum(),
    "unused": lambda x, w, u: (x @ w).square().sum(),
    "checkpoint": lambda x, w, u: torch.utils.checkpoint.checkpoint(_layers, x, w, u, use_reentrant=False),
}


def _layers(x, w, u):
    return ((x @ w).tanh() @ u).square().sum()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_torch(name):
    check(MODELS[name], *map(weights_and_inputs, range(CALLS)))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}], ids=str)
def test_the_gradient_of_an_embedding(options):
    def function(table, indices):
        return F.embedding(indices, table, **options).sin().sum()

    indices = np.random.default_rng(0).integers(0, 9, (4, 30)).astype(np.int32)
    check(function, *((normal(call, 5000, 64), indices + call) for call in range(CALLS)))


# --- calls that differ -----------------------------------------------------------------------------------------------

BRANCHES = {
    "another node": (lambda x, w, u: (x @ w @ u).sum(), lambda x, w, u: ((x @ w @ u).sin() + w[:8]).sum()),
    "a shorter graph": (lambda x, w, u: ((x @ w).sin().cos() @ u).sum(), lambda x, w, u: (x * w[:8]).sum()),
    "a longer graph": (lambda x, w, u: (x * w[:8]).sum(), lambda x, w, u: ((x @ w).sin().cos() @ u).sum()),
    "another order": (lambda x, w, u: (x @ w @ u).sum(), lambda x, w, u: (x @ u @ w).sum()),
    "another place": (lambda x, w, u: (x @ (w * u)).sum(), lambda x, w, u: (x @ (u * w.sin())).sum()),
    "another shape": (lambda x, w, u: (w * u).sum(), lambda x, w, u: (w.repeat(2, 1) * u.repeat(2, 1)).sum()),
    "nothing": (lambda x, w, u: (x @ w @ u).sum(), lambda x, w, u: x.sum()),
    "used twice": (lambda x, w, u: (w * u).sum(), lambda x, w, u: (w * u * w * u).sum()),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", BRANCHES)
def test_control_flow_that_changes_between_calls(name):
    branches = BRANCHES[name]

    def function(flag, *tensors):
        return branches[int(flag)](*tensors)

    for flags in ([0, 0, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0, 1]):
        check(function, *((np.int32(flag), *weights_and_inputs(call)) for call, flag in enumerate(flags)))


def test_a_backward_that_raises():
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w, flag):
            ctx.save_for_backward(x, w)
            ctx.raises = bool(flag)
            return x @ w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            of_w = x.T @ g
            if ctx.raises:
                raise ZeroDivisionError("the backward")
            return g @ w.T, of_w, None

    def function(x, w, flag):
        return Raises.apply(x, w, flag).square().sum()

    f = torch2jax(function, output_shapes=jax.ShapeDtypeStruct((), jnp.float32))
    x, w, _ = weights_and_inputs(0)
    expected = gradients(function, x, w, np.bool_(False))
    for raises in (False, False, True, False, True, False):
        if raises:
            with pytest.raises((ZeroDivisionError, jax.errors.JaxRuntimeError), match="the backward"):
                jax.block_until_ready(jax.grad(f, (0, 1))(x, w, raises))
        else:
            for a, b in zip(jax.grad(f, (0, 1))(x, w, raises), expected, strict=True):
                np.testing.assert_array_equal(a, b)
        assert torch._C._len_torch_dispatch_stack() == 0


# --- hooks of the user -----------------------------------------------------------------------------------------------


def _hooked(register):
    def function(x, w, u):
        y = x @ w
        register(y, w)
        return (y.tanh() @ u).square().sum()

    return function


HOOKS = {
    "of a leaf": lambda y, w: w.register_hook(lambda g: g * 2),
    "of a leaf, in place": lambda y, w: w.register_hook(lambda g: [g.mul_(2), None][1]),
    "of a result": lambda y, w: y.register_hook(lambda g: g * 2 + (g.T @ g).sum()),
    "before a node": lambda y, w: y.grad_fn.register_prehook(lambda g: (g[0] + (g[0].T @ g[0])[:8],)),
    "after a node": lambda y, w: y.grad_fn.register_hook(lambda i, g: (i[0], i[1] @ i[1])),
    "after a node, swapped": lambda y, w: y.grad_fn.register_hook(lambda i, g: (i[0], i[1].T)),
}


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.filterwarnings("ignore:.*non-full backward hook")
def test_hooks_that_change_gradients(name):
    check(_hooked(HOOKS[name]), *map(weights_and_inputs, range(CALLS)))


def test_a_hook_that_keeps_a_gradient():
    kept = []

    def function(x, w):
        if w.requires_grad:
            w.register_hook(kept.append)
        return (x @ w).square().sum()

    f = torch2jax(function)
    gradient = jax.jit(jax.grad(f, 1))
    results, expected = [], []
    for call in range(CALLS):
        x, w, _ = weights_and_inputs(call)
        results.append(np.array(gradient(x, w)))
        y = torch.from_numpy(x) @ torch.from_numpy(w)
        expected.append((torch.from_numpy(x).T @ (2 * y)).numpy())
    for result, g, wanted in zip(results, kept[-CALLS:], expected, strict=True):
        np.testing.assert_array_equal(result, wanted)
        np.testing.assert_array_equal(g, wanted)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", [torch.matmul, Product.apply], ids=["at once", "one after another"])
def test_many_cotangents_of_one_forward(product):
    def function(x, w):
        return product(x, w).tanh()

    x, w = normal(0, 3, SIDE), normal(1, SIDE, SIDE)
    cotangents = normal(2, 4, 3, SIDE)
    f = torch2jax(function)
    pullback = jax.jit(lambda x, w, cts: jax.vmap(jax.vjp(f, x, w)[1])(cts))
    leaves = [torch.from_numpy(a).requires_grad_() for a in (x, w)]
    expected = [torch.autograd.grad(function(*leaves), leaves, torch.from_numpy(ct)) for ct in cotangents]
    for _ in range(CALLS):
        for a, rows in zip(pullback(x, w, cotangents), zip(*expected, strict=True), strict=True):
            np.testing.assert_allclose(a, torch.stack(rows).numpy(), rtol=1e-4, atol=1e-4)


def test_a_batch_of_examples():
    f = torch2jax(MODELS["linear layers"])
    x, w, u = weights_and_inputs(0)
    xs = np.stack([x, 2 * x])
    gradient = jax.jit(jax.vmap(jax.grad(f, (1, 2)), (0, None, None)))
    for _ in range(CALLS):
        got = gradient(xs, w, u)
        for k, each in enumerate(xs):
            for a, b in zip(got, gradients(MODELS["linear layers"], each, w, u)[1:], strict=True):
                np.testing.assert_allclose(a[k], b, rtol=1e-3, atol=1e-2)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_calls_in_several_threads():
    model = MODELS["linear layers"]
    gradient = jax.jit(jax.grad(torch2jax(model), (0, 1, 2)))
    arguments = [weights_and_inputs(call) for call in range(4)]
    expected = [gradients(model, *each) for each in arguments]
    jax.block_until_ready([gradient(*arguments[0]) for _ in range(2)])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, wanted in zip(pool.map(lambda each: gradient(*each), arguments), expected, strict=True):
                for a, b in zip(got, wanted, strict=True):
                    np.testing.assert_array_equal(a, b)
