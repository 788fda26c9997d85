"""Compiled programs own their functions; when the last program goes, so does the function."""

from __future__ import annotations

import functools
import sys
import weakref

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import run_python
from t2j_core import _compat, module2jax, torch2jax
from t2j_core._run.nbytes_behind import nbytes_behind
from t2j_core.testing import assert_nothing_escaped, collect, counters, live_functions

X = jnp.ones(4)


class Scale:
    """A callable that can be watched."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, t):
        return t * self.factor


def baseline() -> tuple[int, int]:
    collect(passes=2)
    return live_functions(), counters()["live_sites"]


@pytest.mark.parametrize(("jitted", "n"), [(False, 50), (True, 100)], ids=["eager", "jit"])
def test_hundreds_of_functions_leave_nothing(jitted, n):
    torch2jax(Scale(1.0))(X)
    before = baseline()
    functions = []
    for i in range(n):
        scale = Scale(float(i))
        functions.append(weakref.ref(scale))
        f = torch2jax(scale)
        out = (jax.jit(f) if jitted else f)(X)
        assert out[0] == i
    del scale, f, out
    collect(passes=2)
    assert sum(reference() is not None for reference in functions) == 0
    assert baseline() == before
    assert_nothing_escaped()


HALF_CLEARED = """
    import gc, weakref
    import numpy as np, torch
    from t2j_core._run.nbytes_behind import nbytes_behind

    class Part:
        pass

    class Finalized:
        def __del__(self):
            references.append(weakref.ref(self.part))

    references, measured = [], []
    part = Part()
    part.tensor, part.array, part.finalized = torch.ones(3), np.zeros(1), Finalized()
    part.finalized.part = part
    # The collector does not know NumPy's arrays, so this runs when it has taken away the tensor, and not yet the rest.
    watch = weakref.ref(part.array, lambda _: measured.append(nbytes_behind(references[0]())))
    del part
    gc.collect()
    print(measured)
"""


def test_what_the_collector_takes_apart_can_be_measured():
    """Regression: beside a thread whose collector freed programs, a call that was traced crashed on Python 3.11."""
    assert run_python(HALF_CLEARED).stdout == "[0]\n"


HOLDERS = (lambda t: lambda: t, lambda t: functools.partial(max, t), lambda t: Scale(t).__call__)


@pytest.mark.parametrize("hold", HOLDERS)
def test_tensors_behind_a_function_are_measured(hold):
    assert nbytes_behind(hold([{"a": torch.ones(3)}])) == 12


def test_wrapping_alone_leaves_nothing():
    before = baseline()
    references = []
    for i in range(100):
        scale = Scale(float(i))
        references.append(weakref.ref(scale))
        torch2jax(scale, X)
    del scale
    collect(passes=2)
    assert not any(reference() for reference in references)
    assert baseline() == before


def test_several_signatures_of_one_function_leave_nothing():
    before = baseline()
    scale = Scale(2.0)
    reference = weakref.ref(scale)
    f = torch2jax(scale)
    for n in range(1, 20):
        f(jnp.ones(n))
        f(*(jnp.ones(n),))
        jax.jit(f)(jnp.ones(n))
    assert live_functions() == before[0] + 19
    del scale, f
    collect(passes=2)
    assert reference() is None
    assert baseline() == before


def watched():
    """A wrapped function, and a reference that tells whether what it wraps is alive."""
    scale = Scale(2.0)
    return torch2jax(scale), weakref.ref(scale)


def check(program) -> None:
    assert np.asarray(jax.tree.leaves(program(X))[0]).tolist() == [2, 2, 2, 2]


def test_a_jitted_function_keeps_what_its_dropped_wrapper_wraps():
    f, alive = watched()
    jitted = jax.jit(f)
    check(jitted)
    del f
    collect(passes=2)
    check(jitted)
    assert np.asarray(jitted(jnp.ones((2, 4)))).tolist() == [[2] * 4] * 2  # traced anew
    del jitted
    collect(passes=2)
    assert alive() is None


def test_a_compiled_program_keeps_it():
    jax.clear_caches()  # which drops programs of other tests
    before = baseline()
    f, alive = watched()
    compiled = jax.jit(f).lower(X).compile()
    del f
    jax.clear_caches()
    collect(passes=2)
    check(compiled)
    assert counters()["live_sites"] == before[1] + 1
    del compiled
    collect(passes=2)
    assert alive() is None
    assert baseline() == before


def test_a_lowered_program_keeps_it_until_it_is_compiled():
    f, alive = watched()
    lowered = jax.jit(f).lower(X)
    del f
    jax.clear_caches()
    collect(passes=2)
    assert alive() is not None
    compiled = lowered.compile()
    check(compiled)
    del lowered
    collect(passes=2)
    check(compiled)
    del compiled
    collect(passes=2)
    assert alive() is None


def test_a_jaxpr_keeps_it():
    f, alive = watched()
    jaxpr = jax.make_jaxpr(f)(X)
    del f
    jax.clear_caches()
    collect(passes=2)
    assert alive() is not None
    evaluate = jax.extend.core.jaxpr_as_fun(jaxpr)
    check(evaluate)
    check(jax.jit(evaluate))
    del jaxpr, evaluate
    collect(passes=2)
    assert alive() is None


def test_a_traced_program_keeps_it():
    f, alive = watched()
    traced = jax.jit(f).trace(X)
    del f
    collect(passes=2)
    check(traced.lower().compile())
    del traced
    collect(passes=2)
    assert alive() is None


def test_an_outer_program_keeps_it(monkeypatch):
    f, alive = watched()

    def make(inner):
        return jax.jit(lambda x: jax.lax.fori_loop(0, 1, lambda _, c: inner(c), x))

    program = make(f)
    check(program)
    del f
    collect(passes=2)
    check(program)
    del program
    collect(passes=2)
    if _compat.jax_caches.cache_of_loops():  # jax 0.6: the function goes once enough of them have lost their wrapper
        monkeypatch.setattr("t2j_core._run.orphans._patience", {"count": 1, "bytes": 1 << 40})
        torch2jax(torch.sin)(X)
        collect(passes=2)
    assert alive() is None


def test_an_argument_is_not_kept():
    f, _ = watched()
    x = jnp.arange(5.0)
    reference = weakref.ref(x)
    f(x)
    del x
    collect(passes=2)
    assert reference() is None


def test_a_tensor_argument_is_not_kept():
    f, _ = watched()
    tensor = torch.ones(4)
    reference = weakref.ref(tensor)
    f(tensor)
    del tensor
    collect(passes=2)
    assert reference() is None


def test_a_result_is_not_kept():
    f, _ = watched()
    for n in (4, 1 << 19):
        out = f(jnp.ones(n))
        reference = weakref.ref(out)
        del out
        collect(passes=2)
        assert reference() is None


def test_the_memory_of_results_is_freed():
    import resource

    f = torch2jax(lambda t: t + 1)
    x = jnp.zeros(1 << 20)
    for _ in range(5):
        f(x).block_until_ready()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):  # 400 MB if nothing were freed
        f(x).block_until_ready()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < (100 << 10 if sys.platform != "darwin" else 100 << 20)


def test_a_module_is_freed():
    module = torch.nn.Linear(4, 4)
    alive = weakref.ref(module)
    apply, variables = module2jax(module)
    apply(variables, jnp.ones((2, 4)))
    jax.jit(apply)(variables, jnp.ones((2, 4)))
    del module, apply, variables
    collect(passes=2)
    assert alive() is None


def test_a_failing_function_is_freed():
    class Fail:
        def __call__(self, t):
            raise ValueError("no")

    before = baseline()
    fail = Fail()
    alive = weakref.ref(fail)
    with pytest.raises(ValueError, match="no"):
        torch2jax(fail)(X)
    del fail
    sys.last_value = sys.last_exc = None
    collect(passes=2)
    assert alive() is None
    assert baseline() == before


class Model:
    """An object that keeps a wrapper of its own method."""

    def __init__(self) -> None:
        self.weight = torch.full((4,), 2.0)
        self.call = torch2jax(self.forward)

    def forward(self, t):
        return t * self.weight


def test_an_object_that_wraps_its_own_method_is_freed_if_it_was_never_called():
    model = Model()
    alive = weakref.ref(model)
    del model
    collect(passes=2)
    assert alive() is None


def test_an_object_that_wraps_its_own_method_stays_until_jaxs_caches_are_cleared():
    # The README's rule: the program that the wrapper compiled owns the function, which owns the wrapper.
    model = Model()
    alive = weakref.ref(model)
    check(model.call)
    del model
    collect(passes=2)
    assert alive() is not None
    jax.clear_caches()
    collect(passes=2)
    assert alive() is None


def test_an_object_whose_wrapper_is_kept_outside_is_freed():
    class Outside:
        def forward(self, t):
            return t * 2

    model = Outside()
    alive = weakref.ref(model)
    call = torch2jax(model.forward)
    check(call)
    del model, call
    collect(passes=2)
    assert alive() is None


def test_dropped_wrappers_are_freed_but_for_those_with_a_name():
    before, sites = baseline()
    references = []
    for i in range(20):
        scale = Scale(1.0)
        references.append(weakref.ref(scale))
        f = torch2jax(scale, name=None if i % 2 else f"dropped{i}")
        np.testing.assert_array_equal(f(X), X)
        np.testing.assert_array_equal(jax.jit(lambda a, f=f: f(a) * 2)(X), 2 * X)
        del f, scale
    collect(passes=2)
    assert sum(reference() is not None for reference in references) <= 10  # names stay registered
    assert live_functions() - before <= 10
    assert counters()["live_sites"] - sites <= 10
