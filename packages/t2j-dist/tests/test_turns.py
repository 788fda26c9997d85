"""Calls on small tensors take turns on CPUs, because they are quicker so; no call waits for ever."""

from __future__ import annotations

import contextlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import mesh_of
from jax.sharding import PartitionSpec as P
from t2j_core import Size, _native
from t2j_dist import torch2jax

SMALL, LARGE = jnp.arange(8.0), jnp.arange(20_000.0)
LONG = 60.0  # seconds; a test that waits so long fails


@contextlib.contextmanager
def patience():
    before = _native.set_turn_patience(10 * LONG)
    try:
        yield
    finally:
        _native.set_turn_patience(before)


@pytest.fixture
def patient():
    with patience():
        yield


def on_two_devices(f, **options):
    mesh = mesh_of("Auto", data=2)
    return jax.jit(torch2jax(f, in_specs=P("data"), out_specs=P("data"), mesh=mesh, **options))


def meeting(f, **options):
    """A jitted `f` whose calls end only where two of them run at the same time."""
    barrier = threading.Barrier(2, timeout=LONG)

    def meets(x):
        if not x.is_meta:
            barrier.wait()
        return f(x)

    return on_two_devices(meets, **options)


def check_meeting(f, x, **options):
    expected = np.concatenate([f(torch.from_numpy(part)) for part in np.split(np.array(x), 2)])
    g = meeting(f, **options)
    for _ in range(5):
        np.testing.assert_allclose(g(x), expected, rtol=1e-6)
    return g


def test_calls_on_small_tensors_run_one_after_another(patient):
    running, seen = [], []

    def f(x):
        running.append(None)
        for _ in range(5):
            x = x + 1
            time.sleep(0.001)  # lets the other thread in
        seen.append(len(running))
        running.pop()
        return x

    g = on_two_devices(f)
    for _ in range(5):
        np.testing.assert_array_equal(g(SMALL), SMALL + 5)
    assert set(seen) == {1}


def test_calls_that_wait_for_each_other_take_no_turns_any_more():
    g = check_meeting(lambda x: x + 1, SMALL)
    with patience():
        np.testing.assert_array_equal(g(SMALL), SMALL + 1)


TABLE = torch.arange(10_000.0)


@torch.library.custom_op("t2j_test_turns::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x):
    return torch.empty_like(x)


@pytest.mark.parametrize(
    "f, x, options",
    [
        (lambda x: x + 1, LARGE, {}),
        (lambda x: x + TABLE.sum(), SMALL, {}),
        (lambda x: x.expand(4096, 4).sum(0), SMALL, {}),
        (twice, SMALL, {}),
        (lambda x: x + 1, SMALL, {"has_side_effect": True}),
        (lambda x: x + 1, SMALL, {"output_shapes": Size(8)}),
    ],
    ids=["large argument", "large table", "large in between", "foreign operation", "side effect", "not inferred"],
)
def test_other_calls_run_beside_each_other(patient, f, x, options):
    check_meeting(f, x, **options)


def test_an_exception_ends_a_turn(patient):
    def fails(x):
        if not x.is_meta:
            raise KeyError("mine")
        return x + 1

    with pytest.raises(jax.errors.JaxRuntimeError, match="mine"):
        jax.block_until_ready(on_two_devices(fails)(SMALL))
    np.testing.assert_array_equal(on_two_devices(lambda x: x + 1)(SMALL), SMALL + 1)


def test_large_batches_of_a_function_on_small_tensors_run_beside_each_other(patient):
    barrier, is_compiled = threading.Barrier(2, timeout=LONG), threading.Event()

    def meets(x):
        if is_compiled.is_set():
            barrier.wait()
        return x + 1

    batch = jax.vmap(torch2jax(meets))
    f = jax.jit(jax.shard_map(batch, mesh=mesh_of("Auto", data=2), in_specs=P("data"), out_specs=P("data")))
    for _ in range(5):
        np.testing.assert_array_equal(f(jnp.ones((4096, 4))), np.full((4096, 4), 2))
        is_compiled.set()


def test_threads_of_xla_keep_their_thread_state():
    """Else `threading.local` data would be made anew in each call."""
    made, threads = [], set()

    class Local(threading.local):
        def __init__(self):
            made.append(None)

    local = Local()

    def f(x):
        local.seen = True
        threads.add(threading.get_ident())
        return x + 1

    g = on_two_devices(f)
    for _ in range(50):
        jax.block_until_ready(g(SMALL))
    assert len(made) <= len(threads) + 1
