"""Functions that write into an argument or keep it, in batches whose examples run one after another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import TensorEscapeError, TensorMutationError, torch2jax

X = np.arange(6, dtype=np.float32).reshape(3, 2)
kept: list[object] = []


def writes(x):
    x.mul_(2)
    return (x * x).sum()


def writes_unseen(x):
    x.data.mul_(2)
    return (x * x).sum()


def keeps(x):
    kept.append(x)
    return (x * x).sum()


def keeps_numpy(x):
    kept.append(x.detach().numpy())
    return (x * x).sum()


BATCHES = {"vmap": jax.vmap, "vmap of grad": lambda f: jax.vmap(jax.grad(f))}
ERRORS = {writes: TensorMutationError, writes_unseen: TensorMutationError, keeps: TensorEscapeError}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("f", ERRORS)
def test_a_checked_call_raises_and_names_the_function_of_the_user(f, batch):
    x = jnp.asarray(X)
    with pytest.raises(ERRORS[f], match=rf"^{f.__name__} (changes|keeps) args\[0\]"):
        BATCHES[batch](torch2jax(f, arguments="check", vmap_method="sequential"))(x).block_until_ready()
    np.testing.assert_array_equal(x, X)


def test_a_checked_call_that_keeps_a_numpy_array():
    with pytest.raises(TensorEscapeError, match="keeps_numpy keeps"):
        jax.vmap(torch2jax(keeps_numpy, arguments="check", vmap_method="sequential"))(jnp.asarray(X))


def test_a_checked_batch_of_a_function_that_does_neither():
    f = torch2jax(lambda x: x.clone().mul_(2).sum(), arguments="check", vmap_method="sequential")
    np.testing.assert_allclose(jax.vmap(f)(jnp.asarray(X)), 2 * X.sum(1))
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(jnp.asarray(X)), np.full(X.shape, 2))
    same = torch2jax(lambda x: x.view(-1), arguments="check", vmap_method="sequential")
    np.testing.assert_array_equal(jax.vmap(same)(jnp.asarray(X)), X)


@pytest.mark.filterwarnings("ignore::t2j_core.T2jWarning")
@pytest.mark.parametrize("f", [writes, writes_unseen, keeps, keeps_numpy])
def test_results_are_right_and_what_is_kept_stays(f):
    kept.clear()
    x = jnp.asarray(X)
    g = torch2jax(f, vmap_method="sequential")
    factor = 4 if f in (writes, writes_unseen) else 1
    for _ in range(3):
        np.testing.assert_allclose(jax.vmap(g)(x), factor * (X * X).sum(1))
    np.testing.assert_array_equal(x, X)
    examples = [np.asarray(t) for t in kept if not (isinstance(t, torch.Tensor) and t.is_meta)]
    assert all(any(np.array_equal(e, row) for row in X) for e in examples[-9:])
