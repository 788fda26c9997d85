"""Functions that ask something of their values are inferred on made-up values that meet it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.distributions as D
from common import raises
from t2j_core import DataDependentShapeError, dtype_t2j, torch2jax
from t2j_core._infer.made_up_constrained import constrained
from t2j_core._signature.signature import leaf_of

S = jnp.array([[2, 0.5, 0.1], [0.5, 1.5, 0.2], [0.1, 0.2, 1]])
P, X, Z = jnp.array([0.2, 0.3, 0.5]), jnp.array([0.3, -0.2, 0.9]), jnp.zeros(3)
LOW, HIGH, HALF = jnp.float32(-1.5), jnp.float32(2.5), jnp.float32(0.5)


def checked(condition):
    def fn(x):
        if not condition(x):
            raise ValueError(f"found invalid values: {x}")
        return 2 * x

    return fn


CASES = {
    "covariance": (lambda m, c, x: D.MultivariateNormal(m, c).log_prob(x), Z, S, X),
    "precision": (lambda m, c, x: D.MultivariateNormal(m, precision_matrix=c).log_prob(x), Z, S, X),
    "triangle": (lambda m, c, x: D.MultivariateNormal(m, scale_tril=c).log_prob(x), Z, jnp.tril(S), X),
    "batch": (lambda m, c, x: D.MultivariateNormal(m, c).log_prob(x), Z, jnp.stack([S, 2 * S]), X),
    "factor": (lambda c, x: D.MultivariateNormal(torch.zeros(3), torch.linalg.cholesky(c)).log_prob(x), jnp.diag(P), X),
    "wishart": (lambda n, c, x: D.Wishart(n, c).log_prob(x), jnp.float32(5), S, 3 * S),
    "interval": (lambda a, b, x: D.Uniform(a, b).log_prob(x), LOW, HIGH, HALF),
    "interval, value first": (lambda x, a, b: D.Uniform(a, b).log_prob(x), HALF, LOW, HIGH),
    "interval, upper first": (lambda b, a: D.Uniform(a, b).entropy(), HIGH, LOW),
    "dirichlet": (lambda a, x: D.Dirichlet(a).log_prob(x), 3 * P, P),
    "one hot": (lambda p, x: D.OneHotCategorical(p).log_prob(x), P, jnp.array([0.0, 1, 0])),
    "classes": (lambda p, i: D.Categorical(p).log_prob(i), P, jnp.int32(1)),
    "correlations": (lambda a, x: D.LKJCholesky(3, a).log_prob(x), HALF, jnp.eye(3)),
    "mixture": (
        lambda p, m, c, x: D.MixtureSameFamily(D.Categorical(p), D.MultivariateNormal(m, c)).log_prob(x),
        P[:2] * 2,
        jnp.stack([Z, X]),
        jnp.stack([S, S]),
        X,
    ),
    "probabilities": (checked(lambda p: abs(p.sum() - 1) < 1e-5 and p.min() >= 0), P),
    "direction": (checked(lambda x: abs(x.norm() - 1) < 1e-5), X / jnp.linalg.norm(X)),
    "rotation": (checked(lambda r: torch.allclose(r @ r.mT, torch.eye(3))), jnp.eye(3)[::-1]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_meet_what_is_asked_of_them(name):
    fn, *args = CASES[name]
    expected = fn(*(torch.tensor(np.array(arg)) for arg in args))
    np.testing.assert_allclose(jax.jit(torch2jax(fn))(*args), expected, rtol=1e-5)


def test_a_dtype_that_depends_on_values():
    def score(p, classes):
        counts = classes.bool().sum()
        return p.sum() if 0 < counts < len(classes) else torch.zeros((), dtype=torch.int32)

    with raises(
        DataDependentShapeError, what=("dtypes of score", "args[1]: i32[3]"), got="(f32[])", remedy="result.to(x.dtype)"
    ):
        torch2jax(score)(P, jnp.array([0, 1, 0]))


@pytest.mark.parametrize("shape", [(), (0,), (0, 0), (2, 0), (1, 1), (2, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16, torch.int8, torch.bool])
def test_values_of_any_shape(shape, dtype):
    operands = [leaf_of(shape, dtype_t2j(dtype), dtype)] * 2
    for make in constrained(operands):
        for value in make():
            assert (value.shape, value.dtype, value.is_contiguous()) == (shape, dtype, True)


def test_the_values_of_an_eager_call_serve_where_none_that_is_made_up_does():
    traces = []

    def fn(x, n):
        traces.append(type(x))
        if abs(x[0] - 0.123) > 1e-3:
            raise ValueError(f"found invalid values: {x}")
        return 2 * x[: int(n)]

    x, n = jnp.array([0.123, 5]), jnp.int32(1)
    with pytest.raises(ValueError, match="found invalid"):
        jax.jit(torch2jax(fn))(x, n)
    f = torch2jax(fn)
    np.testing.assert_allclose(f(x, n), [0.246])
    np.testing.assert_allclose(jax.jit(f)(x, n), [0.246])
    count = len(traces)
    np.testing.assert_allclose(f(x, n), [0.246])
    assert len(traces) == count + 1
    with pytest.raises(DataDependentShapeError):
        f(x, jnp.int32(2))
    with pytest.raises(ValueError, match="found invalid"):
        f(x + 1, n)


def test_an_eager_call_whose_own_values_fail_too():
    calls = []

    def fn(x):
        calls.append(x)
        raise ValueError(f"never: {x}")

    with pytest.raises(ValueError, match="never") as error:
        torch2jax(fn)(X)
    assert "inferred the outputs" in "".join(error.value.__notes__)
    assert calls[-1].tolist() == pytest.approx(X.tolist())
