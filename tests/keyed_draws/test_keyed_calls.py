"""Calls that draw from a key on the device: the same numbers wherever they run, and torch's generators as they were."""

from __future__ import annotations

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import module2jax, torch2jax
from t2j_core._base.turns import turns
from t2j_core._random import generators, sampler
from t2j_core.extend import DispatchMode


@functools.cache
def the_key() -> jax.Array:
    """A key; made late, because this file is imported before the devices are chosen."""
    return jax.random.key(3)


X = np.ones(600, np.float32)
MIXED = [torch.rand_like, torch.randn_like, lambda x: torch.nn.functional.dropout(x, 0.5)]


def mixed(x):
    return sum(f(x) for f in MIXED)


def same(a, b):
    np.testing.assert_array_equal(a, b)


def test_the_same_key_gives_the_same_numbers_everywhere(drawn):
    f = torch2jax(mixed, rng=True)
    expected = f(the_key(), X)
    assert len(drawn) == 3
    assert len(np.unique(expected)) > 500
    same(f(the_key(), X), expected)
    same(jax.jit(f)(the_key(), X), expected)
    same(jax.jit(lambda x: f(jax.random.key(3), x))(X), expected)
    same(jax.jit(lambda k, x: f(k, x) + f(k, x))(the_key(), X), 2 * expected)
    same(jax.lax.map(lambda k: f(k, X), jax.random.split(the_key(), 2))[1], f(jax.random.split(the_key(), 2)[1], X))
    assert bool((f(jax.random.key(4), X) != expected).all())


def test_the_same_key_gives_the_same_numbers_after_export(drawn):
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialise")
    f = torch2jax(mixed, rng=True, name="keyed mixed")
    checks = [jax.export.DisabledSafetyCheck.custom_call("t2j_torch_call")]
    key = jax.random.key_data(the_key())
    exported = jax.export.export(jax.jit(f), disabled_checks=checks)(key, X).serialize()
    torch2jax(mixed, rng=True, name="keyed mixed")  # what another process does, which infers nothing
    same(jax.export.deserialize(exported).call(key, X), torch2jax(mixed, rng=True)(the_key(), X))


def test_the_host_does_not_read_the_key(drawn, monkeypatch):
    f = torch2jax(mixed, rng=True)
    f(the_key(), X)
    monkeypatch.setattr("t2j_core._infer.rng.seed_of", None)
    f(jax.random.key(4), X)


def test_modules(drawn):
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.LayerNorm(8))
    apply, variables = module2jax(model, train=True, rng=True)
    x = jnp.ones((4, 5))
    first = apply(the_key(), variables, x)
    assert len(drawn) == 1
    same(jax.jit(apply)(the_key(), variables, x), first)
    assert bool((apply(jax.random.key(4), variables, x) != first).any())


def test_recurrent_dropout_and_attention(drawn):
    lstm = torch.nn.LSTM(4, 4, 2, dropout=0.5)
    attend = lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
    for f in (lambda x: lstm(x)[0], attend):
        f = torch2jax(f, rng=True)
        x = jnp.ones((1, 3, 4))
        same(f(the_key(), x), jax.jit(f)(the_key(), x))
        assert bool((f(jax.random.key(4), x) != f(the_key(), x)).any())
    assert drawn


@pytest.mark.parametrize(
    "f", [torch.rand_like, lambda x: torch.rand(x.shape), lambda x: mixed(x) * 2], ids=["rand_like", "rand", "sum"]
)
def test_large_results_lie_in_the_memory_of_xla(drawn, f):
    x = jnp.ones(1 << 19)
    call = jax.jit(torch2jax(f, rng=True, outputs="auto"))
    copied = np.asarray(torch2jax(f, rng=True, outputs="copy")(the_key(), x))
    for _ in range(3):  # the first call records which operation makes the result, the others replace it
        same(call(the_key(), x), copied)


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_the_generators_are_as_they_were(drawn, fails):
    def f(x):
        y = mixed(x)
        if fails and not x.is_meta:
            raise ValueError("mine")
        return y

    torch.manual_seed(0)
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match="mine"):
            torch2jax(f, rng=True)(the_key(), X)
    else:
        torch2jax(f, rng=True)(the_key(), X).block_until_ready()
    assert len(drawn) == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.initial_seed() == 0


def test_states_that_the_function_saves_give_the_same_numbers_again(drawn):
    def f(x):
        a = torch.rand_like(x)
        with torch.random.fork_rng():
            b = torch.rand_like(x)
        c = torch.rand_like(x)
        state = torch.get_rng_state()
        d = torch.rand_like(x)
        torch.set_rng_state(state)
        return a, b, c, d, torch.rand_like(x)

    a, b, c, d, e = torch2jax(f, rng=True)(the_key(), X)
    same(b, c)
    same(d, e)
    assert bool((a != b).all() and (c != d).all())
    assert len(drawn) == 5


def test_inference_mode(drawn):
    def f(x):
        with torch.inference_mode():
            y = torch.nn.functional.dropout(x, 0.5)
        return y.clone()

    same(
        torch2jax(f, rng=True)(the_key(), X),
        torch2jax(lambda x: torch.nn.functional.dropout(x, 0.5), rng=True)(the_key(), X),
    )


# --- falling back -----------------------------------------------------------------------------------------------------


def other_at_runtime(x):
    """Inference sees no operation without a kernel."""
    a = torch.rand_like(x)
    b = torch.empty_like(x).uniform_() if x.is_meta else torch.empty_like(x).cauchy_()
    return a, b, torch.rand_like(x)


def test_an_operation_without_a_kernel_draws_from_a_seed_and_so_do_those_after_it(drawn):
    f = torch2jax(other_at_runtime, rng=True)
    state = torch.get_rng_state()
    first = f(the_key(), X)
    assert len(drawn) == 1
    for again in (f(the_key(), X), jax.jit(f)(the_key(), X)):
        for one, other in zip(first, again, strict=True):
            same(one, other)
    for one, other in zip(first, f(jax.random.key(4), X), strict=True):
        assert bool((one != other).all())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seeds", [False, True])
def test_the_lock_of_all_devices_is_taken_for_seeds_only(drawn, seeds):
    found = []

    def try_lock():
        found.append(turns.acquire(blocking=False))
        if found[-1]:
            turns.release()

    def f(x):
        y = torch.rand_like(x)
        if x.is_meta:
            return y
        y = y + torch.empty_like(x).cauchy_() if seeds else y
        thread = threading.Thread(target=try_lock)
        thread.start()
        thread.join()
        return y

    torch2jax(f, rng=True)(the_key(), X).block_until_ready()
    assert found == [not seeds]


def test_threads_do_not_disturb_each_other(drawn):
    seeds = torch2jax(other_at_runtime, rng=True)
    f = torch2jax(lambda x: sum(torch.rand_like(x) for _ in range(20)), rng=True)
    keys = list(jax.random.split(the_key(), 4))
    run = lambda key: [np.asarray(y) for y in (f(key, X), *seeds(key, X))]
    expected, got = [run(key) for key in keys], [[] for _ in keys]
    barrier = threading.Barrier(4)

    def work(i):
        barrier.wait()
        got[i] = [run(keys[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, runs in enumerate(got):
        assert len(runs) == 5
        for numbers in runs:
            for one, other in zip(numbers, expected[i], strict=True):
                same(one, other)


class _Hidden:
    """Draws where no dispatch mode sees it, as an extension or a CUDA graph does."""

    def __call__(self, x):
        if x.is_meta:
            return torch.rand_like(x)
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes():
            return torch.rand_like(x)


def test_hidden_draws_come_from_a_seed(drawn):
    f = torch2jax(_Hidden(), rng=True)
    first = f(the_key(), X)
    same(f(the_key(), X), first)
    same(jax.jit(f)(the_key(), X), first)
    assert bool((f(jax.random.key(4), X) != first).all())


def test_more_draws_than_positions(drawn, monkeypatch):
    monkeypatch.setattr(generators, "_MOST_POSITIONS", 4)
    f = torch2jax(lambda x: torch.stack([torch.rand_like(x) for _ in range(6)]), rng=True)
    rows = f(the_key(), X)
    same(f(the_key(), X), rows)
    assert len(np.unique(rows)) > 0.99 * rows.size
    assert bool((f(jax.random.key(4), X) != rows).all())


def test_a_mode_of_the_function_sees_what_it_draws(drawn):
    class Mode(DispatchMode):
        def handle(self, func, args, kwargs):
            seen.append(func)
            return self.operate(func, args, kwargs)

    def f(x):
        with Mode():
            return torch.rand_like(x)

    seen = []
    same(torch2jax(f, rng=True)(the_key(), X), torch2jax(torch.rand_like, rng=True)(the_key(), X))
    assert torch.ops.aten.rand_like.default in seen


def test_an_environment_variable_chooses_seeds(drawn, monkeypatch):
    monkeypatch.setattr(sampler, "config", dataclasses.replace(sampler.config, keys_on_device=0))
    f = torch2jax(lambda x: torch.nn.functional.dropout(x, 0.5), rng=True)
    jax.block_until_ready(f(the_key(), X))
    assert not drawn
