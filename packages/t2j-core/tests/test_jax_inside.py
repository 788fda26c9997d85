"""Whom an error is about: the function, a finalizer in the middle of it, or a program that runs within a call."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from t2j_core import JaxInsideTorchError, torch2jax


class Cycle:
    """Found by the garbage collector alone."""

    def __init__(self):
        self.me = self


class Finalized(Cycle):
    def __del__(self):
        jnp.sin(1.0)


def finalized():
    Finalized()


def finalized_by_callback():
    weakref.finalize(Cycle(), lambda: jnp.sin(1.0))


REFERENCES = []


class Owner:
    def notice(self, _):
        jnp.sin(1.0)


def referred_to(callback):
    def make():
        REFERENCES.append(weakref.ref(Cycle(), callback))

    return make


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (finalized, "Finalized.__del__"),
        (finalized_by_callback, "of `weakref.finalize`"),
        (referred_to(lambda _: jnp.sin(1.0)), "of `weakref.ref`"),
        (referred_to(lambda *_, **__: jnp.sin(1.0)), "of `weakref.ref`"),
        (referred_to(Owner().notice), "of `weakref.ref`"),
    ],
)
def test_a_finalizer_is_not_the_function(make, named, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda entry: seen.append(repr(entry.exc_value)))
    monkeypatch.setattr(sys, "excepthook", lambda _, error, __: seen.append(repr(error)))

    def fn(x):
        make()
        gc.collect()
        return 2 * x

    np.testing.assert_array_equal(torch2jax(fn)(jnp.ones(2)), [2, 2])
    assert seen
    assert all(error.startswith(f"JaxInsideTorchError('A finalizer ({named}") for error in seen)


def test_a_callback_of_an_argument_is_not_the_function(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda entry: seen.append(repr(entry.exc_value)))
    monkeypatch.setattr(sys, "excepthook", lambda _, error, __: seen.append(repr(error)))

    def fn(x):
        REFERENCES.append(weakref.ref(x, lambda _: jnp.sin(1.0)))
        return 2 * x

    np.testing.assert_array_equal(torch2jax(fn, output_shapes=jax.ShapeDtypeStruct((2,), np.float32))(jnp.ones(2)), 2)
    assert seen
    assert all(error.startswith("JaxInsideTorchError('A finalizer (of `weakref.ref`)") for error in seen)


def test_a_function_that_is_handed_a_live_reference_is_named():
    def uses_jax(x, reference):
        return jnp.sin(1.0) * x

    live = Cycle()
    reference = weakref.ref(live)
    with raises(JaxInsideTorchError, what="fn calls JAX", remedy="arguments"):
        torch2jax(lambda x: uses_jax(x, reference), name="fn")(jnp.ones(2))


def test_the_function_in_a_finalizer_is_named():
    seen = []

    class Caller(Cycle):
        def __del__(self):
            with raises(JaxInsideTorchError, what="uses_jax calls JAX", remedy="arguments"):
                torch2jax(uses_jax)(jnp.ones(2))
            seen.append(True)

    def uses_jax(x):
        return torch.asarray(np.asarray(jnp.sin(1.0))) * x

    Caller()
    gc.collect()
    assert seen == [True]


class Flattened:
    """A pytree without leaves; whoever flattens it runs a program that fails."""


def flatten(_):
    with contextlib.suppress(Exception):
        jax.block_until_ready(failing(jnp.ones(2)))
    return (), None


def bad(x):
    raise ValueError("bad")


failing = jax.jit(torch2jax(bad, output_shapes=(2,)))
jax.tree_util.register_pytree_node(Flattened, flatten, lambda *_: Flattened())


@pytest.mark.parametrize("args", [(), (Flattened(),)], ids=["output", "argument"])
def test_a_failing_program_within_a_call_is_not_the_call(args):
    f = torch2jax(lambda x, *_: Flattened())
    for _ in range(2):
        assert isinstance(f(jnp.ones(2), *args), Flattened)
