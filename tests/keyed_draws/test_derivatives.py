"""Derivatives and batches draw from a key on the device what the value draws."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import module2jax, torch2jax
from t2j_core._infer.rng import seeded
from t2j_core._random import generators
from t2j_core.extend import Keys
from torch.utils.checkpoint import checkpoint


@functools.cache
def the_key() -> jax.Array:
    """A key; made late, because this file is imported before the devices are chosen."""
    return jax.random.key(3)


RESIDUALS = ["auto", "recompute", "graph"]


def drop(x):
    return torch.nn.functional.dropout(x, 0.5)


def same(a, b):
    np.testing.assert_array_equal(a, b)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("residuals", RESIDUALS)
@pytest.mark.parametrize("n", [64, 6000])  # run again, and kept
def test_one_mask_for_everything(drawn, residuals, n):
    x = jnp.ones(n)
    f = torch2jax(lambda x: drop(x) * x, rng=True, residuals=residuals, depth=2)
    mask = f(the_key(), x)
    assert len(drawn) == 1
    assert set(np.unique(mask)) == {0.0, 2.0}
    loss = lambda x: f(the_key(), x).sum()
    for wrap in (lambda g: g, jax.jit, jax.checkpoint):
        same(wrap(f)(the_key(), x), mask)
        same(wrap(jax.grad(loss))(x), 2 * mask)
        same(jax.grad(wrap(loss))(x), 2 * mask)
        same(jax.jvp(wrap(lambda x: f(the_key(), x)), (x,), (x,))[1], 2 * mask)
    same(jax.jvp(jax.grad(loss), (x,), (x,))[1], 2 * mask)
    y, pull = jax.vjp(lambda x: f(the_key(), x), x)
    same(y, mask)
    for _ in range(2):  # the second time the forward runs again
        same(pull(jnp.ones(n))[0], 2 * mask)


@pytest.mark.parametrize("residuals", RESIDUALS)
def test_gradients_against_differences(drawn, residuals):
    def f(w, x):
        return (torch.tanh(drop(x @ w)) * torch.randn(4, 5) + torch.rand_like(x)).pow(2).sum()

    wrapped = torch2jax(f, rng=True, residuals=residuals)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        w, x, v = (jnp.asarray(rng.normal(size=shape)) for shape in ((5, 5), (4, 5), (5, 5)))
        value = lambda w: wrapped(the_key(), w, x)
        difference = (value(w + 1e-5 * v) - value(w - 1e-5 * v)) / 2e-5
        np.testing.assert_allclose(jnp.vdot(jax.grad(value)(w), v), difference, rtol=1e-7)
        np.testing.assert_allclose(jax.jvp(value, (w,), (v,))[1], difference, rtol=1e-7)


@pytest.mark.parametrize("residuals", RESIDUALS)
def test_gradients_against_torch_on_the_same_mask(drawn, residuals):
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 2))
    apply, variables = module2jax(model, train=True, rng=True, residuals=residuals)
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    loss = lambda p: apply(the_key(), {"params": p, "buffers": {}}, jnp.asarray(x)).sum()
    gradients = jax.jit(jax.grad(loss))(variables["params"])
    noise = drawn[-1].to(torch.float32)  # 1 with probability 0.5, and in place since divided by it
    noise = noise / noise.max()
    expected = model[2](model[0](torch.tensor(x)) * noise * 2).sum()
    for (name, _), gradient in zip(
        model.named_parameters(), torch.autograd.grad(expected, list(model.parameters())), strict=True
    ):
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
def test_batches_of_keys(drawn, jitted):
    f = torch2jax(lambda x: drop(x) * x, rng=True)
    keys, xs = jax.random.split(the_key(), 3), jnp.ones((3, 600)) * jnp.arange(1.0, 4.0)[:, None]

    def modes(key, x):
        g = lambda x: f(key, x)
        return g(x), jax.grad(lambda x: g(x).sum())(x), jax.jvp(g, (x,), (x,))[1]

    got = (jax.jit if jitted else lambda g: g)(jax.vmap(modes))(keys, xs)
    for i in range(3):
        for mine, other in zip(got, modes(keys[i], xs[i]), strict=True):
            same(mine[i], other)
    same(jax.grad(lambda xs: jax.vmap(f)(keys, xs).sum())(xs), got[1])
    assert drawn


@pytest.mark.parametrize("method", ["auto", "vmap", "sequential"])
def test_one_key_for_a_batch(drawn, method):
    f = torch2jax(drop, rng=True, vmap_method=method)
    xs = jnp.stack([jnp.ones(600), 2 * jnp.ones(600)])
    alone = [f(the_key(), x) for x in xs]
    for i in range(2):
        same(jax.vmap(f, (None, 0))(the_key(), xs)[i], alone[i])
        same(jax.vmap(jax.grad(lambda x: f(the_key(), x).sum()))(xs)[i], alone[0])
    assert drawn


def test_different_numbers_in_one_batch(drawn):
    f = torch2jax(drop, rng=True, vmap_randomness="different")
    batch = jax.vmap(f, (0, None))(jax.random.split(the_key(), 3), jnp.ones(600))
    assert len({np.asarray(row).tobytes() for row in batch}) == 3
    same(batch, jax.vmap(f, (0, None))(jax.random.split(the_key(), 3), jnp.ones(600)))
    rows = jax.vmap(f, (None, 0))(the_key(), jnp.ones((3, 600)))
    assert len({np.asarray(row).tobytes() for row in rows}) == 3


# --- forwards that run again in the backward --------------------------------------------------------------------------


def layers(x, segment):
    for _ in range(2):
        x = segment(lambda x: torch.sin(drop(x)) * torch.rand_like(x), x)
    return x


def checkpointed(f, x):
    return checkpoint(f, x, use_reentrant=False)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("residuals", ["auto", "recompute"])
@pytest.mark.parametrize("n", [64, 6000])
def test_checkpoints_draw_the_same_numbers_again(drawn, residuals, n):
    plain = torch2jax(lambda x: layers(x, lambda f, x: f(x)), rng=True)
    again = torch2jax(lambda x: layers(x, checkpointed), rng=True, residuals=residuals)
    x = jnp.linspace(0.1, 1, n)
    same(again(the_key(), x), plain(the_key(), x))
    expected = jax.grad(lambda x: plain(the_key(), x).sum())(x)
    for wrap in (lambda g: g, jax.jit):
        for _ in range(2):
            same(wrap(jax.grad(lambda x: again(the_key(), x).sum()))(x), expected)
    keys = jax.random.split(the_key(), 3)
    gradients = lambda f: jax.vmap(jax.grad(lambda x, key: f(key, x).sum()), (None, 0))(x, keys)
    same(gradients(again), gradients(plain))
    assert drawn


@pytest.mark.parametrize("residuals", ["auto", "recompute"])
def test_second_derivatives_of_checkpoints(drawn, residuals):
    plain = torch2jax(lambda x: layers(x, lambda f, x: f(x)), rng=True, depth=2)
    again = torch2jax(lambda x: layers(x, checkpointed), rng=True, depth=2, residuals=residuals)
    x = jnp.linspace(0.1, 1, 64)
    gradient = lambda f: lambda x: jax.grad(lambda x: f(the_key(), x).sum())(x).sum()
    np.testing.assert_allclose(jax.grad(gradient(again))(x), jax.grad(gradient(plain))(x), rtol=1e-5, atol=1e-6)


def fallen_back(x):
    y = torch.rand_like(x)
    return x * y * (torch.empty_like(x).uniform_() if x.is_meta else torch.empty_like(x).cauchy_())


@pytest.mark.parametrize("n", [64, 6000])
def test_checkpoints_fall_back_again(drawn, n):
    plain = torch2jax(fallen_back, rng=True)
    again = torch2jax(lambda x: checkpointed(fallen_back, x), rng=True)
    x = jnp.linspace(0.1, 1, n)
    for f in (plain, again):
        np.testing.assert_allclose(jax.grad(lambda x: f(the_key(), x).sum())(x) * x, plain(the_key(), x), rtol=1e-5)
    assert drawn


def test_the_generators_are_as_they_were(drawn):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    f = torch2jax(lambda x: layers(x, checkpointed), rng=True)
    jax.block_until_ready(jax.grad(lambda x: f(the_key(), x).sum())(jnp.ones(6000)))
    assert torch.equal(torch.get_rng_state(), state)


def test_more_keys_than_a_place_can_name(drawn, monkeypatch):
    """As where many examples of a batch run one after another in one derivative."""
    monkeypatch.setattr(generators, "_MOST_KEYS", 3)
    draw = seeded(lambda: torch.rand(4), on_device=True)
    keys = [torch.tensor([word, 7]) for word in range(6)]
    alone = [draw(key) for key in keys]
    with Keys():
        same([draw(key) for key in keys], alone)
    assert len(drawn) == 12
