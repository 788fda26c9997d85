"""`rng=True` on a GPU: the numbers come from the key in device memory, and nothing waits for it."""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from t2j_autodiff import module2jax, torch2jax
from t2j_core._random import sampler
from t2j_core._random.distributions import Bernoulli
from torch.utils.checkpoint import checkpoint

sys.path.append(str(Path(__file__).parents[1] / "keyed_draws"))
sys.path.append(str(Path(__file__).parents[1] / "cuda_aot"))

import philox_reference as reference
from random_bits_cases import EXACT, ROUNDED
from test_gpu import CALLS, _waits

pytestmark = pytest.mark.gpu


@functools.cache
def the_key() -> jax.Array:
    """A key; made late, because this file is imported before the devices are chosen."""
    return jax.random.key(3)


N = 1 << 20


@pytest.fixture(autouse=True)
def _on_the_gpu(gpu):
    if sampler.sampler_of("cuda") is None:
        pytest.skip("Triton does not work here")


def same(a, b):
    np.testing.assert_array_equal(a, b)


def mixed(x):
    return F.dropout(x, 0.5) * torch.rand_like(x) + torch.randn(x.shape, device=x.device)


# --- the kernel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [(1, 2), (1, 2, 3, 0xFFFFFFFF)], ids=str)
@pytest.mark.parametrize("distribution, dtype", [*EXACT, *ROUNDED], ids=str)
def test_the_kernel_draws_what_the_reference_draws(distribution, dtype, key):
    words = torch.tensor(key, dtype=torch.uint32)
    got, expected = torch.empty(3, 701, dtype=dtype, device="cuda"), torch.empty(3, 701, dtype=dtype)
    sampler._fill(got, words.cuda(), 7, distribution)
    reference.fill(expected, words, 7, distribution)
    rounding = 0 if (distribution, dtype) in EXACT else {torch.float64: 1e-12, torch.bfloat16: 1e-2}.get(dtype, 2e-5)
    np.testing.assert_allclose(got.cpu().double(), expected.double(), rtol=rounding, atol=rounding)


def test_more_than_32_bits_of_elements():
    n = (1 << 32) + 1024
    if torch.cuda.mem_get_info()[0] < 2 * n:
        pytest.skip("needs 8 GiB")
    words, out = torch.tensor([5, 6], dtype=torch.uint32), torch.empty(n, dtype=torch.bool, device="cuda")
    sampler._fill(out, words.cuda(), 0, Bernoulli(0.5))
    bits = reference.words(words, 0, (n - 1024) // 4, 256).reshape(-1)
    same(out[-1024:].cpu(), bits < 1 << 31)


# --- calls ------------------------------------------------------------------------------------------------------------


def _program(kind):
    x, f = jnp.ones((64, N // 64)), torch2jax(mixed, rng=True)
    if kind == "forward":
        return jax.jit(f), (the_key(), x)
    if kind == "gradient":
        return jax.jit(jax.grad(lambda key, x: f(key, x).sum(), 1)), (the_key(), x)
    if kind == "batch of keys":
        return jax.jit(jax.vmap(f)), (jax.random.split(the_key(), 64), x)
    if kind == "scan":
        steps = lambda keys, x: jax.lax.scan(lambda c, key: (f(key, c), None), x, keys)[0]
        return jax.jit(steps), (jax.random.split(the_key(), 3), x)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.5)).cuda()
    apply, variables = module2jax(model, train=True, rng=True)
    return jax.jit(apply), (the_key(), variables, jnp.ones((8, 64)))


@pytest.mark.parametrize("kind", ["forward", "gradient", "batch of keys", "scan", "module"])
def test_nothing_waits_for_a_key(kind):
    f, args = _program(kind)
    assert _waits(f, args) == _waits(jax.jit(lambda x: jnp.sin(x) + 1), (jnp.ones(N),))


def test_an_operation_without_a_kernel_waits_once():
    f = jax.jit(torch2jax(lambda x: torch.empty_like(x).cauchy_() + torch.empty_like(x).cauchy_(), rng=True))
    base = _waits(jax.jit(lambda x: jnp.sin(x) + 1), (jnp.ones(N),))
    assert len(_waits(f, (the_key(), jnp.ones(N)))) == len(base) + CALLS


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
def test_one_mask_for_everything(residuals):
    f, x = torch2jax(lambda x: F.dropout(x, 0.5) * x, rng=True, residuals=residuals), jnp.ones(N)
    mask = f(the_key(), x)
    assert set(np.unique(mask)) == {0.0, 2.0}
    assert abs(float(mask.mean()) - 1) < 5 / np.sqrt(N)
    loss = lambda x: f(the_key(), x).sum()
    for wrap in (lambda g: g, jax.jit, jax.checkpoint):
        same(wrap(f)(the_key(), x), mask)
        same(jax.grad(wrap(loss))(x), 2 * mask)
        same(jax.jvp(wrap(lambda x: f(the_key(), x)), (x,), (x,))[1], 2 * mask)
    keys = jax.random.split(the_key(), 2)
    same(jax.vmap(f, (0, None))(keys, x)[1], f(keys[1], x))
    assert 0.4 < float((f(keys[0], x) == mask).mean()) < 0.6


def test_checkpoints_draw_the_same_numbers_again():
    plain = torch2jax(lambda x: torch.sin(mixed(x)), rng=True)
    again = torch2jax(lambda x: checkpoint(lambda x: torch.sin(mixed(x)), x, use_reentrant=False), rng=True)
    x = jnp.linspace(0.1, 1, N)
    same(again(the_key(), x), plain(the_key(), x))
    for _ in range(3):
        np.testing.assert_allclose(*(jax.grad(lambda x: f(the_key(), x).sum())(x) for f in (again, plain)), rtol=1e-5)


def test_attention_with_dropout_draws_from_a_seed():
    attend = torch2jax(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), rng=True)
    x = jnp.ones((1, 4, 64, 64), jnp.float16)
    same(attend(the_key(), x), jax.jit(attend)(the_key(), x))
    assert bool((attend(the_key(), x) != attend(jax.random.key(4), x)).any())


def test_compiled_functions_draw_from_the_key():
    f = torch2jax(torch.compile(mixed), rng=True)
    x = jnp.ones(N)
    same(f(the_key(), x), jax.jit(f)(the_key(), x))
    assert bool((f(the_key(), x) != f(jax.random.key(4), x)).mean() > 0.9)


def test_a_cuda_graph_draws_from_a_seed():
    state = {}

    def f(x):
        if x.is_meta:
            return torch.rand_like(x)
        if not state:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            state["out"], state["graph"] = torch.empty(x.shape, device=x.device), torch.cuda.CUDAGraph()
            with torch.cuda.stream(side), torch.cuda.graph(state["graph"], stream=side):
                state["out"].uniform_()
            torch.cuda.current_stream().wait_stream(side)
        state["graph"].replay()
        return state["out"].clone()

    call, x = torch2jax(f, rng=True), jnp.ones(N)
    rows = [np.asarray(call(jax.random.key(i), x)) for i in (0, 1, 0, 1)]
    same(rows[0], rows[2])
    same(rows[1], rows[3])
    assert (rows[0] != rows[1]).mean() > 0.9


def test_the_generators_are_as_they_were():
    torch.cuda.manual_seed(5)
    state, cpu = torch.cuda.get_rng_state(), torch.get_rng_state()
    jax.block_until_ready(torch2jax(mixed, rng=True)(the_key(), jnp.ones(N)))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), cpu)


def test_threads_do_not_disturb_each_other():
    f, x = torch2jax(lambda x: sum(torch.rand_like(x) for _ in range(20)), rng=True), jnp.ones(1000)
    keys = list(jax.random.split(the_key(), 4))
    expected, got = [np.asarray(f(key, x)) for key in keys], [[] for _ in keys]
    threads = [
        threading.Thread(target=lambda i=i: got[i].extend(np.asarray(f(keys[i], x)) for _ in range(10)))
        for i in range(len(keys))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, rows in enumerate(got):
        assert len(rows) == 10
        for row in rows:
            same(row, expected[i])
