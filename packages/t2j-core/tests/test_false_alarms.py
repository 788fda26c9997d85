"""Functions that write and keep nothing are not accused of it."""

from __future__ import annotations

import functools
import gc
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import N, churn, here, x
from t2j_core import Size, torch2jax
from t2j_core.testing import assert_nothing_escaped

pytestmark = pytest.mark.usefixtures("nothing_escaped")


def test_numbers_that_differ_from_themselves_are_not_changed_by_being_read():
    nans = jnp.array([[jnp.nan, -0.0, jnp.inf]] * 2)
    f = torch2jax(lambda t: t + 0, output_shapes=Size(2, 3))
    for _ in range(5):
        np.testing.assert_array_equal(f(nans), nans)
    assert "lent, not copied" in f.explain()


def test_what_is_not_a_change():
    def reads(t):
        t.requires_grad_()
        (t * t).sum().backward()
        u = t.detach().clone()
        u.add_(1)
        t.data  # noqa: B018
        with torch.no_grad():
            t.view(-1), t.numpy().sum(), t.tolist(), list(t), repr(t), t.storage_offset()
        return t.grad + u

    for f in (torch2jax(reads), torch2jax(reads, output_shapes=Size(2, 3))):
        for call in (f, f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), 3 * here + 1)


w = torch.ones(N, requires_grad=True)


def test_the_caches_of_an_autocast_around_the_call_keep_nothing():
    def function(t):
        t.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (t @ t.mT).float().detach() + 0 * t.detach()

    f = torch2jax(function, output_shapes=Size(3, 3))
    with torch.autocast("cpu", dtype=torch.float16):
        for _ in range(4):
            np.testing.assert_array_equal(f(jnp.ones((3, 3))), np.full((3, 3), 3.0))
    assert_nothing_escaped()


def cycle(t):
    a = {}
    a["self"], a["t"] = a, t
    return t + 1


def recursive_closure(t):
    def down(n):
        return t + 1 if n == 0 else down(n - 1)

    return down(3)


def caught_exception(t):
    saved = None
    try:
        raise ValueError(t)
    except ValueError as error:
        saved = error
    return saved.args[0] + 1


def stored_traceback(t):
    try:
        raise ValueError("x")
    except ValueError as error:
        error.back = error
    return t + 1


def dropped_graph(t):
    v = torch.ones(2, 3, requires_grad=True)
    y = v * t
    return (torch.autograd.grad(y.sum(), v, create_graph=True)[0] + 1).detach()


def graph_returned(t):
    return torch.nn.Parameter(torch.ones(3)) * t + 1


def finished_generator(t):
    return sum(u for u in (t, torch.ones(3)))


def unfinished_generator(t):
    next(v for v in (t, t))
    return t + 1


def joined_thread(t):
    out = []
    thread = threading.Thread(target=lambda: out.append(t + 1))
    thread.start()
    thread.join()
    return out[0]


def cached_in_the_call(t):
    cache = functools.lru_cache(lambda: t)
    return cache() + 1


def returned_view(t):
    return t.expand(1, 2, 3)[0] + 1


def weakly(t):
    reference = weakref.ref(t)
    return reference() + 1


FINE = [
    cycle,
    recursive_closure,
    caught_exception,
    stored_traceback,
    dropped_graph,
    graph_returned,
    finished_generator,
    unfinished_generator,
    joined_thread,
    cached_in_the_call,
    returned_view,
    weakly,
]


@pytest.mark.parametrize("function", FINE)
def test_no_false_alarm(function):
    for f in (torch2jax(function), torch2jax(function, output_shapes=Size(2, 3))):
        for call in (f, f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), here + 1)


@pytest.mark.parametrize("function", [cycle, recursive_closure, caught_exception])
def test_no_false_alarm_without_the_collector(function):
    """A cycle is only found by the collector, which some programs switch off."""
    gc.disable()
    try:
        f = torch2jax(function, output_shapes=Size(2, 3))
        for call in (f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), here + 1)
    finally:
        gc.enable()


@pytest.mark.parametrize("function", [cycle, recursive_closure, caught_exception])
def test_no_false_alarm_while_another_thread_collects(function):
    """Then `gc.collect()` of this thread does nothing."""
    f = torch2jax(function, output_shapes=Size(2, 3))
    np.testing.assert_array_equal(f(x), here + 1)
    collecting = threading.Event()

    def linger(phase, info):
        if phase == "start" and threading.current_thread() is other:
            collecting.set()
            time.sleep(0.2)

    other = threading.Thread(target=gc.collect)
    gc.callbacks.append(linger)
    try:
        other.start()
        collecting.wait()
        assert gc.collect() == 0
        np.testing.assert_array_equal(f(x), here + 1)
    finally:
        gc.callbacks.remove(linger)
        other.join()


def test_a_call_amid_the_collection_of_its_own_thread():
    f = torch2jax(lambda t: t + 1, output_shapes=Size(2, 3))
    results = []

    def call(phase, info):
        if phase == "start":
            results.append(f(x))

    gc.callbacks.append(call)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(call)
    np.testing.assert_array_equal(results[0], here + 1)


def test_a_tensor_of_its_own_may_be_kept():
    box = []

    def function(t):
        box.extend([t.clone(), t + 1, (t * w[:6].view(2, 3)).detach()])
        return box[-2]

    f = torch2jax(function, output_shapes=Size(2, 3))
    for call in (f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), here + 1)
    churn()
    assert all(np.array_equal(kept.numpy(), want) for kept, want in zip(box, [here, here + 1, here] * 2, strict=True))
