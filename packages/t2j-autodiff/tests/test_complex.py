"""Derivatives of complex functions follow JAX's convention, judged by the same function in `jnp`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t2j_autodiff
import torch
from common import agree_with_types
from jax.test_util import check_grads
from t2j_autodiff import torch2jax

Z = jnp.asarray([[0.6 - 0.9j, -0.3 + 0.7j], [1.1 + 0.4j, 0.8 + 1.2j]], jnp.complex64)
V = jnp.asarray([[-0.2 + 0.5j, 1.3 + 0.1j], [0.7 - 0.6j, -0.4 - 0.8j]], jnp.complex64)
R = jnp.asarray([[0.5, -1.2], [0.9, 1.4]], jnp.float32)
S = jnp.asarray([[-0.7, 0.3], [1.6, -0.1]], jnp.float32)

# name -> (torch, jnp, arguments, holomorphic)
FUNCTIONS = {
    "exp": (torch.exp, jnp.exp, (Z,), True),
    "sin": (torch.sin, jnp.sin, (Z,), True),
    "power": (lambda z: z**3 + 2j * z, lambda z: z**3 + 2j * z, (Z,), True),
    "reciprocal": (lambda z: 1j / z, lambda z: 1j / z, (Z,), True),
    "inv": (torch.linalg.inv, jnp.linalg.inv, (Z,), True),
    "matmul": (lambda z, w: z @ w, lambda z, w: z @ w, (Z, V), True),
    "fft": (torch.fft.fft, jnp.fft.fft, (Z,), True),
    "transposed": (lambda z: (z * z).mT, lambda z: (z * z).mT, (Z,), True),
    "conj": (lambda z: z.conj(), jnp.conj, (Z,), False),
    "conj of a square": (lambda z: (z * z).conj() * 1j, lambda z: jnp.conj(z * z) * 1j, (Z,), False),
    "adjoint": (lambda z: z.mH @ z, lambda z: z.mT.conj() @ z, (Z,), False),
    "z times |z|": (lambda z: z * z.abs(), lambda z: z * jnp.abs(z).astype(z.dtype), (Z,), False),
    "re + 3 i im": (
        lambda z: torch.complex(z.real, 3 * z.imag),
        lambda z: jax.lax.complex(z.real, 3 * z.imag),
        (Z,),
        False,
    ),
    "|z|^2": (lambda z: (z * z.conj()).real, lambda z: (z * jnp.conj(z)).real, (Z,), False),
    "abs": (torch.abs, jnp.abs, (Z,), False),
    "angle": (torch.angle, jnp.angle, (Z,), False),
    "re + 3 im": (lambda z: z.real + 3 * z.imag, lambda z: z.real + 3 * z.imag, (Z,), False),
    "real of a product": (lambda z, w: (z * w).real, lambda z, w: (z * w).real, (Z, V), False),
    "irfft": (lambda z: torch.fft.irfft(z, n=3), lambda z: jnp.fft.irfft(z, n=3), (Z,), False),
    "complex": (
        lambda x: torch.complex(torch.sin(x), torch.cos(x) * x),
        lambda x: jax.lax.complex(jnp.sin(x), jnp.cos(x) * x),
        (R,),
        False,
    ),
    "exp of i x": (lambda x: torch.exp(1j * x), lambda x: jnp.exp(jax.lax.complex(jnp.zeros_like(x), x)), (R,), False),
    "rfft": (torch.fft.rfft, jnp.fft.rfft, (R,), False),
    "fft of reals": (torch.fft.fft, jnp.fft.fft, (R,), False),
    "real scale": (
        lambda x, z: torch.sin(x) * torch.exp(z),
        lambda x, z: _mixed(jnp.sin(x), jnp.exp(z)),
        (R, Z),
        False,
    ),
    "polar": (
        lambda x, z: torch.polar(x * x, z.imag) + z,
        lambda x, z: _mixed(x * x, jnp.exp(jax.lax.complex(jnp.zeros_like(x), z.imag))) + z,
        (R, Z),
        False,
    ),
    "several": (
        lambda x, z: {"a": z * z * x, "b": (z.abs(), x * x)},
        lambda x, z: {"a": _mixed(x, z * z), "b": (jnp.abs(z), x * x)},
        (R, Z),
        False,
    ),
}
HOLOMORPHIC = [name for name, row in FUNCTIONS.items() if row[3]]


def _mixed(x, z):
    """A real number times a complex one, of which the strict promotion of the tests knows nothing."""
    return x.astype(z.dtype) * z


def busy(fn):
    """`fn`, by way of too many operations to be run again rather than recorded."""

    def run(first, *rest):
        for _ in range(13):
            first = first * 1.0
        return fn(first, *rest)

    return run


def wrapped(name, residuals):
    return torch2jax(busy(FUNCTIONS[name][0]), residuals=residuals)


def like(arrays, seed=0):
    """Arrays like `arrays` with other numbers."""
    generator = np.random.default_rng(seed)

    def one(a):
        numbers = generator.normal(size=a.shape)
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            numbers = numbers + 1j * generator.normal(size=a.shape)
        return jnp.asarray(numbers, a.dtype)

    return jax.tree.map(one, arrays)


def agree(got, expected, tolerance=3e-5):
    agree_with_types(got, expected, tolerance)


def real_loss(f):
    """A real loss whose cotangents are complex wherever the outputs are."""

    def loss(*x):
        leaves = jax.tree.leaves(f(*x))
        weighted = [leaf * w for leaf, w in zip(leaves, like(leaves, 5), strict=True)]
        return sum((leaf.real + 0.5 * (leaf * jnp.conj(leaf)).real - leaf.imag).sum() for leaf in weighted)

    return loss


def batch(x):
    return tuple(jnp.stack([a, 2 * a, -a]) for a in x)


def first_order(f, x):
    y, pull = jax.vjp(f, *x)
    argnums = tuple(range(len(x)))
    return {
        "value": y,
        "vjp": [pull(like(y, 1)), pull(like(y, 2))],
        "jvp": jax.jvp(f, x, like(x, 3)),
        "linearize": jax.linearize(f, *x)[1](*like(x, 4)),
        "grad": jax.value_and_grad(real_loss(f), argnums)(*x),
        "grad of one": jax.grad(real_loss(f), argnums[-1])(*x),
    }


def batched(f, x):
    argnums = tuple(range(len(x)))
    y, pull = jax.vjp(f, *x)
    return {
        "vmap": jax.vmap(f)(*batch(x)),
        "grads": jax.vmap(jax.grad(real_loss(f), argnums))(*batch(x)),
        "grads of one": jax.vmap(jax.grad(real_loss(f), argnums), in_axes=(0, *(None for _ in x[1:])))(
            *batch(x)[:1], *x[1:]
        ),
        "pullbacks": jax.vmap(pull)(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), like(y, 1))),
        "pushforwards": jax.vmap(lambda *t: jax.jvp(f, x, t)[1])(*batch(x)),
    }


def second_order(f, x):
    argnums = tuple(range(len(x)))
    grad = jax.grad(real_loss(f), argnums)
    y, pull = jax.vjp(f, *x)
    return {
        "jvp of grad": jax.jvp(grad, x, like(x, 3)),
        "vjp of grad": jax.vjp(grad, *x)[1](like(x, 4)),
        "jvp of jvp": jax.jvp(lambda *a: jax.jvp(f, a, like(x, 6))[1], x, like(x, 7)),
        "vjp of jvp": jax.vjp(lambda *a: jax.jvp(f, a, like(x, 6))[1], *x)[1](like(y, 8)),
        "vjp of pullback": jax.vjp(pull, like(y, 8))[1](like(x, 9)),
        "transposed pullback": jax.linear_transpose(pull, y)(like(x, 9)),
        "vmap of vjp of grad": jax.vmap(lambda *a: jax.vjp(grad, *a)[1](like(x, 4)))(*batch(x)),
    }


def holomorphic(f, x):
    scalar = lambda *a: f(*a).sum()
    return {
        "grad": jax.grad(scalar, holomorphic=True)(*x),
        "grad of grad": jax.grad(lambda *a: jax.grad(scalar, holomorphic=True)(*a).sum(), holomorphic=True)(*x),
        "jacrev": jax.jacrev(f, holomorphic=True)(*x),
        "jacfwd": jax.jacfwd(f, holomorphic=True)(*x),
        "vmap": jax.vmap(jax.grad(scalar, holomorphic=True))(*batch(x)),
    }


NEW_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)


@functools.cache
def expected_of(program, name):
    _, fn, x, _ = FUNCTIONS[name]
    return jax.jit(lambda *x: program(fn, x))(*x)  # jax 0.6 folds constants wrongly


NOT_TRACED = pytest.mark.xfail(
    NEW_TORCH,
    strict=True,
    raises=t2j_autodiff.PerformanceWarning,
    reason="PyTorch does not trace the inverse of a complex matrix",
)
LOOPED = pytest.mark.xfail(
    strict=True,
    raises=jax.errors.JaxRuntimeError,
    reason="PyTorch's traced backward has negative views, which torch.func.vmap cannot batch: a loop and a warning",
)


def cases(modes, looped=(), every=1):
    """(name, residuals) for every function: with each mode of a list, or with those of a tuple in turn.

    Of a list, the first mode is for all functions, and the others are for every `every`-th one.
    """
    found = []
    for k, name in enumerate(FUNCTIONS):
        each = modes if k % every == 0 else modes[:1]
        for mode in each if isinstance(modes, list) else [modes[k % len(modes)]]:
            marks = [LOOPED] * (mode == "graph" and name in looped) + [NOT_TRACED] * (mode == "graph" and name == "inv")
            found.append(pytest.param(name, mode, marks=marks, id=f"{name}-{mode}"))
    return found


@pytest.mark.thinned(5)
@pytest.mark.parametrize(("name", "residuals"), cases(["auto", "graph"], every=2))
def test_first_derivatives(name, residuals):
    got = jax.jit(lambda: first_order(wrapped(name, residuals), FUNCTIONS[name][2]))()
    agree(got, expected_of(first_order, name))


@pytest.mark.thinned(5)
@pytest.mark.parametrize(("name", "residuals"), cases(("graph", "recompute", "auto")))
def test_batches(name, residuals):
    got = jax.jit(lambda: batched(wrapped(name, residuals), FUNCTIONS[name][2]))()
    agree(got, expected_of(batched, name))


@pytest.mark.thinned(7)
@pytest.mark.parametrize(("name", "residuals"), cases(("auto", "recompute", "graph"), looped=("conj",)))
def test_second_derivatives(name, residuals):
    got = jax.jit(lambda: second_order(wrapped(name, residuals), FUNCTIONS[name][2]))()
    agree(got, expected_of(second_order, name), 2e-4)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_holomorphic_functions(name):
    residuals = ("auto", "recompute", "graph")[HOLOMORPHIC.index(name) % 3]
    f, x = wrapped(name, residuals), FUNCTIONS[name][2]
    agree(jax.jit(lambda: holomorphic(f, x))(), expected_of(holomorphic, name), 1e-4)


@pytest.mark.parametrize("name", ["conj", "adjoint", "abs", "real scale", "rfft", "inv"])
def test_call_by_call(name):
    f, x = wrapped(name, "auto"), FUNCTIONS[name][2]
    y, pull = jax.vjp(f, *x)
    expected = expected_of(first_order, name)
    agree([pull(like(y, 1)), pull(like(y, 2))], expected["vjp"])
    agree(jax.jvp(f, x, like(x, 3)), expected["jvp"])


@pytest.mark.thinned(3)
@pytest.mark.parametrize("mode", ["fwd", "rev"])
@pytest.mark.parametrize("name", ["inv", "conj", "|z|^2", "re + 3 i im", "complex", "real scale"])
def test_numerical_derivatives(name, mode):
    with jax.enable_x64(True):
        x = tuple(a.astype(jnp.complex128 if a.dtype == jnp.complex64 else jnp.float64) for a in FUNCTIONS[name][2])
        f = wrapped(name, "auto")
        assert all(leaf.dtype in (jnp.float64, jnp.complex128) for leaf in jax.tree.leaves(jax.eval_shape(f, *x)))
        check_grads(jax.jit(f), x, order=2, modes=[mode], rtol=1e-5, atol=1e-5)


def test_a_real_operand_has_a_real_gradient_and_a_complex_one_a_complex_gradient():
    f = torch2jax(lambda x, z: (x * z).abs().sum())
    real, complex_ = jax.grad(f, argnums=(0, 1))(R, Z)
    assert (real.dtype, complex_.dtype) == (jnp.float32, jnp.complex64)


def test_the_gradient_is_that_of_jax_and_not_that_of_torch():
    # For a real loss, JAX's gradient is the conjugate of torch's.
    weigh = lambda z: z.real + 3 * z.imag
    got = jax.grad(torch2jax(weigh))(jnp.asarray(1 + 2j, jnp.complex64))
    z = torch.tensor(1 + 2j, requires_grad=True)
    weigh(z).backward()
    assert complex(got) == complex(jax.grad(weigh)(jnp.asarray(1 + 2j, jnp.complex64))) == 1 - 3j
    assert complex(z.grad) == 1 + 3j
