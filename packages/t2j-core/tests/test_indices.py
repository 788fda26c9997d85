"""The 32-bit indices of JAX, where torch has 64-bit ones: misread by gathers and scatters, refused by others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from t2j_core import torch2jax
from t2j_core._compat import TAKES_INT32_IN_GATHER

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
WIDE = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
INDEX = np.array([2, 0, 3, 3], np.int32)
WIDE_INDEX = np.random.default_rng(2).integers(0, 4, 64).astype(np.int32)

FUNCTIONS = {
    "gather": lambda x, i: x.gather(0, i[:, None].expand(len(i), x.shape[1])),
    "torch.gather": lambda x, i: torch.gather(x, dim=0, index=i[:, None].expand(-1, x.shape[1])),
    "three axes": lambda x, i: x[:, :, None].contiguous().gather(0, i[:, None, None].expand(-1, x.shape[1], 1)),
    "bfloat16": lambda x, i: x.bfloat16().gather(0, i[:, None].expand(len(i), x.shape[1])).float(),
    "int32 data": lambda x, i: x.int().gather(0, i[:, None].expand(len(i), x.shape[1])),
    "scatter_add": lambda x, i: torch.zeros(4, x.shape[1]).scatter_add(0, i[:, None].expand_as(x), x),
    "scatter_add_": lambda x, i: torch.zeros(4, x.shape[1]).scatter_add_(0, i[:, None].expand_as(x), x),
    "scatter_reduce": lambda x, i: torch.zeros(4, x.shape[1]).scatter_reduce(0, i[:, None].expand_as(x), x, "amax"),
}


def in_int64(f, x, i):
    return f(torch.tensor(x), torch.tensor(i, dtype=torch.int64)).numpy()


@pytest.mark.thinned(3)
@pytest.mark.parametrize("declared", [False, True], ids=["inferred", "declared"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_expanded_index(name, declared):
    f = FUNCTIONS[name]
    for x, i in ((X, INDEX), (WIDE, WIDE_INDEX)):
        want = in_int64(f, x, i)
        g = torch2jax(f, output_shapes=jax.ShapeDtypeStruct(want.shape, want.dtype) if declared else None)
        for call in (g, jax.jit(g)):
            y = call(jnp.asarray(x), jnp.asarray(i))
            np.testing.assert_allclose(np.asarray(y), want, rtol=1e-6)
            assert y.dtype == want.dtype


def test_a_function_without_such_an_index_runs_as_it_is():
    modes = []

    def f(x, i):
        modes.append(torch._C._len_torch_function_stack())
        return x.gather(0, i)

    x, i = jnp.asarray(X[:, 0]), jnp.asarray(INDEX)
    np.testing.assert_array_equal(torch2jax(f)(x, i), X[INDEX, 0])
    assert modes[-1] == (0 if TAKES_INT32_IN_GATHER else 1)


UNIQUE = np.array([2, 0, 3, 1], np.int32)
WHOLE = np.random.default_rng(3).integers(0, 4, (4, 6)).astype(np.int32)


def assigned(x, i):
    y = x.clone()
    y[i] = 0
    return y


REFUSED = {  # by torch, with an int32 index
    "take": (lambda x, i: torch.take(x, i), INDEX),
    "take, a method": (lambda x, i: x.take(index=i), INDEX),
    "put": (lambda x, i: x.put(i, torch.ones(4)), UNIQUE),
    "put_": (lambda x, i: x.clone().put_(i, torch.ones(4)), UNIQUE),
    "take_along_dim": (lambda x, i: torch.take_along_dim(x, i, 0), WHOLE),
    "take_along_dim by names": (lambda x, i: torch.take_along_dim(input=x, indices=i, dim=0), WHOLE),
    "take_along_dim under vmap": (lambda x, i: torch.vmap(lambda r, j: r.take_along_dim(j[None], 0))(x, i), INDEX),
    "index_copy": (lambda x, i: torch.zeros(4, 6).index_copy(0, i, x), UNIQUE),
    "index_copy_": (lambda x, i: torch.zeros(4, 6).index_copy_(0, i, x), UNIQUE),
    "index_fill": (lambda x, i: x.index_fill(0, i, 0.0), INDEX),
    "one_hot": (lambda x, i: F.one_hot(i, num_classes=5), INDEX),
    "cross_entropy": (lambda x, i: F.cross_entropy(x, i), INDEX),
    "CrossEntropyLoss": (lambda x, i: torch.nn.CrossEntropyLoss(label_smoothing=0.1)(x, target=i), INDEX),
    "nll_loss": (lambda x, i: F.nll_loss(x.log_softmax(1), i), INDEX),
    "multi_margin_loss": (lambda x, i: F.multi_margin_loss(x, i), INDEX),
    "multilabel_margin_loss": (lambda x, i: F.multilabel_margin_loss(x, i), WHOLE),
    "max_unpool1d": (lambda x, i: F.max_unpool1d(x[None], i[None] * 0 + torch.arange(6), 2), WHOLE),
    "max_unpool1d, int32": (lambda x, i: F.max_unpool1d(x[None], i[None] % 2 + 2 * torch.arange(6).int(), 2), WHOLE),
    "tensor_split": (lambda x, i: [part.sum() for part in torch.tensor_split(x, i)], np.array([1, 3], np.int32)),
    "16 bits": (lambda x, i: x[i], INDEX.astype(np.int16)),
    "16 bits among others": (lambda x, i: x[i, 2], INDEX.astype(np.int16)),
    "16 bits, assigned": (assigned, INDEX.astype(np.int16)),
    "unsigned": (lambda x, i: x.index_select(0, i), INDEX.astype(np.uint32)),
    "16 bits in an embedding": (lambda x, i: F.embedding(i, x), INDEX.astype(np.int16)),
    "16 bits in torch.embedding": (lambda x, i: torch.embedding(x, i), INDEX.astype(np.int16)),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("declared", [False, True], ids=["inferred", "declared"])
@pytest.mark.parametrize("name", REFUSED)
def test_an_index_that_torch_refuses_for_its_width(name, declared):
    f, i = REFUSED[name]
    want = jax.tree.map(lambda t: t.numpy(), f(torch.tensor(X), torch.tensor(i.astype(np.int64))))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), want) if declared else None
    g = torch2jax(f, output_shapes=shapes)
    for call in (g, jax.jit(g)):
        got = call(jnp.asarray(X), jnp.asarray(i))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_targets_that_are_probabilities_or_bytes_are_left_as_they_are():
    f = torch2jax(lambda x, p, i: (F.cross_entropy(x, p), F.cross_entropy(x, i), x[i > 1].sum()))
    p, i = np.full((4, 6), 1 / 6, np.float32), INDEX.astype(np.uint8)
    want = [F.cross_entropy(*map(torch.tensor, (X, t))) for t in (p, i)] + [torch.tensor(X[INDEX > 1].sum())]
    np.testing.assert_allclose(f(X, p, i), torch.stack(want), rtol=1e-6)


def test_an_index_that_torch_takes_costs_nothing():
    modes = []

    def f(x, i):
        modes.append(torch._C._len_torch_function_stack())
        return x[i] + F.embedding(i, x)

    torch2jax(f)(jnp.asarray(X), jnp.asarray(INDEX))
    assert modes[-1] == 0
