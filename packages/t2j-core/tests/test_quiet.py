"""Warnings of a function come from its calls, and not from the runs that infer its outputs."""

from __future__ import annotations

import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import Size, torch2jax


def warns(t):
    warnings.warn("from the function")
    return t + 1


def warns_of_values(t):
    if not bool((t == 5).all()):
        warnings.warn("not all are 5")
    return t + 1


def warns_in_cpp(t):
    torch.linalg.svd(t, out=tuple(torch.empty(n) for n in (1, 1, 1)))  # resizes what is not empty
    return t + 1


def texts(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_each_call_warns_as_in_torch(wrap):
    f = wrap(torch2jax(warns))
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            f(jnp.ones(3)).block_until_ready()
        assert texts(caught) == ["from the function"]


def test_tracing_alone_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(torch2jax(warns), jnp.ones(3))


def test_made_up_values_are_no_reason_to_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(torch2jax(warns_of_values)(jnp.full(3, 5.0)), [6, 6, 6])
    assert texts(caught) == []


def test_a_warning_of_torch_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(torch2jax(warns_in_cpp), jnp.ones((2, 2)))


def test_warnings_that_are_errors_are_raised_by_the_call():
    f = torch2jax(warns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="from the function"):
            f(jnp.ones(3))


def test_what_is_shown_once_is_shown_by_the_call():
    namespace = {"__name__": "a_module_of_its_own"}
    exec("import warnings\ndef once(t):\n    warnings.warn('once')\n    return t + 1", namespace)
    f = torch2jax(namespace["once"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        jax.eval_shape(f, jnp.ones(3))
        assert texts(caught) == []
        for _ in range(3):
            f(jnp.ones(3))
    assert texts(caught) == ["once"]


def test_what_the_function_catches_itself():
    seen = []

    def catches(t):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("inside")
        seen.append(texts(caught))
        return t + 1

    torch2jax(catches)(jnp.ones(3))
    assert seen[0] == seen[-1] == ["inside"]


def test_other_threads_warn_meanwhile():
    inside, done = threading.Event(), threading.Event()

    def waits(t):
        if t.is_meta:
            inside.set()
            assert done.wait(60)
        return t + 1

    def other():
        assert inside.wait(60)
        warnings.warn("from another thread")
        done.set()

    thread = threading.Thread(target=other)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread.start()
        torch2jax(waits)(jnp.ones(3))
        thread.join()
    assert texts(caught) == ["from another thread"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_filters_are_as_they_were(fails):
    def function(t):
        if fails:
            raise ValueError("no")
        return t + 1

    before = list(warnings.filters)
    try:
        torch2jax(function)(jnp.ones(3))
    except ValueError:
        assert fails
    assert warnings.filters == before


def test_a_function_that_resets_the_filters():
    def resets(t):
        warnings.resetwarnings()
        return t + 1

    with warnings.catch_warnings():
        np.testing.assert_array_equal(torch2jax(resets)(jnp.ones(3)), [2, 2, 2])


def test_a_copy_of_the_filters_that_another_thread_puts_back_hides_nothing():
    copied = []

    def function(t):
        copied.append(list(warnings.filters))
        return t + 1

    torch2jax(function)(jnp.ones(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filters[:] = [entry for entry in copied[0] if entry not in warnings.filters] + warnings.filters
        torch2jax(warns, output_shapes=Size(3))(jnp.ones(3))
    assert texts(caught) == ["from the function"]
