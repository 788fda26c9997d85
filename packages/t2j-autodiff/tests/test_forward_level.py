"""Torch has one level of forward mode for all threads: nobody waits for one that stays open, and no tangent is lost."""

from __future__ import annotations

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t2j_core
import torch
from common import warns
from t2j_autodiff import _compat, torch2jax
from t2j_core import T2jWarning
from torch.autograd import forward_ad

X = jnp.linspace(0.1, 1, 4)


@pytest.fixture(autouse=True)
def level_is_closed():
    yield
    assert not _compat.forward_level_is_open()
    assert _compat.forward_nesting() == 0


def pushed(f):
    return jax.jvp(f, (X,), (jnp.ones(4),))[1]


def check(f=None):
    np.testing.assert_allclose(pushed(f or torch2jax(lambda t: t**3)), 3 * X**2, rtol=1e-5)


def test_a_level_that_was_left_open_by_hand():
    forward_ad.enter_dual_level()
    try:
        check()
        check()
    finally:
        _compat.close_forward_level()


def leave_open(t):
    forward_ad.enter_dual_level()
    return t * 2


def test_a_function_that_leaves_the_level_open_is_told_and_works():
    f = torch2jax(leave_open)
    with warns(T2jWarning, what=("leave_open", "forward mode")):
        assert f(X).tolist() == (2 * X).tolist()
    for _ in range(2):
        assert f(X).tolist() == (2 * X).tolist()
    check()
    _compat.close_forward_level()


def test_a_function_that_leaves_the_level_open_without_inference_is_named(caplog):
    def leaves_open(t):
        forward_ad.enter_dual_level()
        return t * 2

    f = torch2jax(leaves_open, output_shapes=jax.ShapeDtypeStruct((4,), np.float32))
    assert f(X).tolist() == (2 * X).tolist()
    assert "leaves_open left a level of forward mode open" in caplog.text
    assert not _compat.forward_level_is_open()
    check()


def test_a_function_that_leaves_the_level_open_later_is_named_the_second_time(caplog, monkeypatch):
    monkeypatch.setitem(t2j_core._compat.torch_state._levels, "are_watched", False)
    calls = []

    def leaves_open_later(t):
        calls.append(None)
        if len(calls) > 2:
            forward_ad.enter_dual_level()
        return t * 2

    f = torch2jax(leaves_open_later, output_shapes=jax.ShapeDtypeStruct((4,), np.float32))
    g = torch2jax(torch.sin)
    for call in (g, f, f, f):
        call(X).block_until_ready()
    g(X).block_until_ready()
    assert "A torch function that ran before sin left a level of forward mode open" in caplog.text
    for _ in range(2):
        caplog.clear()
        assert f(X).tolist() == (2 * X).tolist()
        assert "leaves_open_later left a level of forward mode open" in caplog.text
        g(X).block_until_ready()
        assert "ran before" not in caplog.text


def test_inside_a_level_of_the_callers():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        check()
        assert forward_ad.unpack_dual(dual * 3).tangent.tolist() == [3, 3]


def test_another_thread_that_stays_in_its_own_forward_mode():
    inside, finish, found = threading.Event(), threading.Event(), []

    def slow(t):
        inside.set()
        finish.wait(60)
        return t**2

    def work():
        found.append(torch.func.jvp(slow, (torch.ones(3),), (torch.ones(3),))[1].tolist())

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(60)
    check()  # which the other thread does not let in before its own is over
    finish.set()
    thread.join()
    assert found == [[2, 2, 2]]


def test_another_thread_that_closes_the_level_meanwhile():
    """The tangents are gone then, so the function runs again."""
    runs, inside, leave, closed = [], threading.Event(), threading.Event(), threading.Event()
    is_settled = []

    def work():
        with forward_ad.dual_level():
            inside.set()
            leave.wait(60)
        closed.set()

    def cube(t):
        if is_settled:
            runs.append(1)
            leave.set()
            closed.wait(60)
        return t**3

    f = torch2jax(cube, output_shapes=jax.ShapeDtypeStruct((4,), jnp.float32))
    check(f)  # from now on tangents are not compared with reverse mode, which would find that they are gone
    is_settled.append(True)
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(60)
    check(f)
    thread.join()
    assert len(runs) >= 2


def test_the_level_is_closed_after_every_call(caplog):
    f = torch2jax(lambda t: t**3)
    push = jax.jit(lambda x: jax.jvp(f, (x,), (jnp.ones(4),))[1])
    for _ in range(3):  # the first call of a program is in torch's default state, whatever it was before
        np.testing.assert_allclose(push(X), 3 * X**2, rtol=1e-5)
        assert not _compat.forward_level_is_open()
    assert caplog.text == ""


def test_a_signal_handler_in_the_middle_of_forward_mode():
    g = torch2jax(lambda t: t**3)
    check(g)
    handled = []

    def interrupted(t):
        y = t**2
        if not t.is_meta and not handled:
            signal.raise_signal(signal.SIGUSR1)
        return y * t

    f = torch2jax(interrupted)
    handled.append(None)
    check(f)  # which compiles: while a program runs for the first time it refuses JAX
    handled.clear()
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(pushed(g)))
    try:
        check(f)
    finally:
        signal.signal(signal.SIGUSR1, before)
    np.testing.assert_allclose(handled[0], 3 * X**2, rtol=1e-5)


def test_inside_of_a_torch_func_jvp():
    def f(t):
        check()
        return t**2

    assert torch.func.jvp(f, (torch.ones(3),), (torch.ones(3),))[1].tolist() == [2, 2, 2]
