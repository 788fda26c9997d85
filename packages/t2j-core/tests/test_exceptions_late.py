"""Exceptions that show only when a result is awaited, as on a GPU."""

from __future__ import annotations

import functools
import weakref

import jax
import numpy as np
import pytest
from helpers import JaxError, here, only_when, raising, x
from t2j_core import Size, last_error, torch2jax
from t2j_core._lowering import primitive
from t2j_core.testing import collect

pytestmark = pytest.mark.usefixtures("intact")


class Late:
    """A result whose error shows when it is awaited, as on a GPU."""

    nbytes = 0

    def __init__(self, error):
        self.error = error

    def is_ready(self):
        return False

    def block_until_ready(self):
        raise self.error


def late(call, awaited):
    """`call` as XLA runs it on a GPU: it returns although the function has raised on this thread."""

    def dispatched(*arrays):
        try:
            return call(*arrays)
        except JaxError as error:
            return [Late(error) for _ in range(awaited)]

    return dispatched


@pytest.mark.parametrize("results", [0, 1, 2])
@pytest.mark.parametrize("kind", [KeyError, SystemExit, RuntimeError])
def test_an_error_that_shows_when_a_result_is_awaited(monkeypatch, results, kind):
    kind = type("Late" + kind.__name__, (kind,), {})  # which weak references may lead to
    flag, errors = [], []
    f = torch2jax(only_when(flag, raising(kind, "late")), output_shapes=Size(2, 3))
    f(x)
    (fn,) = f.builder.signatures.values()  # private: what XLA's CPU client does not do must be put where XLA is called
    call_primitive = functools.partial(primitive.torch_call, fn=fn)
    call_primitive(x)
    for owner, name in ((f._routes, "_positional"), (fn, "jitted")):
        monkeypatch.setattr(owner, name, late(getattr(owner, name), results))
    for call in (f, call_primitive):
        flag.append(1)
        for _ in range(3):
            with pytest.raises(kind, match="late") as info:
                call(x)
            assert last_error() is info.value
            errors.append(weakref.ref(info.value))
        flag.clear()
        np.testing.assert_array_equal(jax.tree.leaves(call(x))[0], here + 1)
    with pytest.raises(KeyError):
        torch2jax(raising(KeyError, "newest"), output_shapes=Size(2, 3))(x)  # only the newest is kept
    del info
    collect(passes=2)
    assert [reference() for reference in errors] == [None] * len(errors)


def test_a_call_that_does_not_raise_does_not_wait(monkeypatch):
    f = torch2jax(lambda t: t + 1)
    f(x)
    with pytest.raises(KeyError):
        torch2jax(raising(KeyError, "another"), output_shapes=Size(2, 3))(x)
    monkeypatch.setattr(f._routes, "_positional", lambda *arrays: [Late(ValueError("waited"))])
    f(x)
