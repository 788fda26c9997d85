"""`compile=True`: the values are those of plain torch, and of the function as it is where it cannot be compiled."""

from __future__ import annotations

import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises, run_python
from t2j_core import ArgumentError, PerformanceWarning, T2jWarning, _compat, module2jax, torch2jax
from t2j_core._base import progress

pytestmark = pytest.mark.skipif(not _compat.can_compile, reason="torch before 2.9 does not compile functions")

X = jnp.arange(4.0)
T = torch.arange(4.0)
DECLARED = jax.ShapeDtypeStruct((4,), jnp.float32)


def check(f, *args, **options):
    """Compare a compiled function with plain torch, eagerly and in a program."""
    compiled = torch2jax(f, compile=True, **options)
    expected = f(*(torch.from_numpy(np.array(a)) for a in args))
    for results in (compiled(*args), jax.jit(compiled)(*args)):
        for result, value in zip(jax.tree.leaves(results), torch.utils._pytree.tree_leaves(expected), strict=True):
            np.testing.assert_allclose(
                result, np.asarray(value.detach().resolve_conj().resolve_neg()), rtol=1e-5, atol=1e-6
            )
    assert "  compiled: " in compiled.explain()
    return compiled


def check_fallback(f, *args, reason, **options):
    """Compare a function that cannot be compiled with plain torch; one warning says why, and where."""
    g = torch2jax(f, compile=True, **options)
    with pytest.warns(PerformanceWarning, match=reason) as caught:
        y = g(*args)
        jax.jit(g)(*args)
    assert len(caught) == 1
    np.testing.assert_allclose(y, f(*(torch.from_numpy(np.array(a)) for a in args)), rtol=1e-5)
    assert "not compiled: " in g.explain()


def test_results_are_written_in_place_and_unused_operands_stay_where_they_are():
    def f(x, y, z):
        h = torch.tanh(x @ y)
        return {"a": h @ y, "b": (h * 2, x), "c": h.sum(), "d": x[1:], "e": (h > 0), "f": h.argmax()}

    a, b = jnp.ones((3, 3)) / 3, jnp.eye(3) + 1
    compiled = check(f, a, b, X)
    assert "args[2]: not handed over" in compiled.explain()
    assert "written in place by compiled code" in compiled.explain()
    assert (
        "tensor<4xf32>"
        not in [line for line in jax.jit(compiled).lower(a, b, X).as_text().split("\n") if "custom_call" in line][0]
    )


def test_shapes_and_dtypes_of_all_kinds():
    def f(i, z, h, e):
        return i + 1, torch.fft.fft(z).conj(), z.conj().imag, z.mT.conj()[1:], h * 2, e.sum(0), torch.zeros(()), e

    check(f, jnp.arange(3), jnp.array([[1 + 2j, 3j], [4j, 5]]), jnp.ones(3, jnp.float16), jnp.zeros((2, 0)))


def test_tensors_that_the_function_refers_to_are_read_at_every_call():
    w, literal = torch.nn.Parameter(torch.ones(4)), [1.0, 2.0, 3.0, 4.0]
    f = lambda x: x * w + torch.tensor(literal)
    g = check(f, X)
    with torch.no_grad():
        w.add_(1)
    np.testing.assert_allclose(g(X), f(T).detach())
    w.data = torch.full((4,), 7.0)
    np.testing.assert_allclose(g(X), f(T).detach())
    w.data = torch.ones(1)
    with raises(ArgumentError, what="refers to has changed", expected="[4]", got="[1]"):
        g(X)


def test_a_module_with_tied_weights_autocast_and_buffers():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
            self.b = self.a

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                x = self.b(torch.relu(self.a(x)))
            return self.norm(x.float())

    module = Tied()
    x = jnp.arange(12.0).reshape(3, 4)
    plain, variables = module2jax(module, train=True, mutable=True)
    compiled, _ = module2jax(module, train=True, mutable=True, compile=True)
    y, expected = jax.jit(compiled)(variables, x), jax.jit(plain)(variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-5), y, expected)
    assert "  compiled: " in compiled.explain()


def test_random_numbers_are_those_of_the_function_as_it_is():
    f = lambda x: torch.nn.functional.dropout(x + torch.rand_like(x), 0.5)
    plain, compiled = torch2jax(f, rng=True), torch2jax(f, rng=True, compile=True)
    state = torch.get_rng_state()
    for seed in (1, 2, 1):
        key = jax.random.key(seed)
        np.testing.assert_allclose(compiled(key, X), plain(key, X), rtol=1e-6)
    assert torch.equal(state, torch.get_rng_state())
    assert "  compiled: " in compiled.explain()


def test_a_custom_operator_is_called():
    with torch.library._scoped_library("t2j_test_compile", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CPU")
        library.impl("twice", torch.empty_like, "Meta")
        check(lambda x: torch.ops.t2j_test_compile.twice(x) + 1, X)


# --- what is not compiled ---------------------------------------------------------------------------------------------


def seeds(x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return x + torch.rand(4)


def seeds_otherwise(x):
    state = torch.default_generator.get_state()
    torch.default_generator.set_state(state)
    torch.default_generator.manual_seed(3)
    return x + torch.rand(4)


def through_numpy(x):
    return torch.from_numpy(np.sort(x.numpy()))


def sets_state(x):
    state = torch.get_rng_state()
    first = torch.rand(4)
    torch.set_rng_state(state)
    return x + first - torch.rand(4)


def own_generator(x):
    return x + torch.rand(4, generator=torch.Generator().manual_seed(5))


def fails_to_trace(x):
    if not torch.compiler.is_exporting() and type(x) is not torch.Tensor:
        raise RuntimeError("only plain tensors")
    return x * 2


@pytest.mark.parametrize(
    "f, reason",
    [
        (seeds, "it seeds torch's generators.*in line .*torch.manual_seed"),
        (seeds_otherwise, "it seeds torch's generators"),
        (through_numpy, r"numpy.*test_compile.py: `return torch.from_numpy\(np.sort"),
        (own_generator, "it uses a Generator of its own|generator"),
        (fails_to_trace, "only plain tensors"),
    ],
)
def test_what_cannot_be_traced_runs_as_it_is(f, reason):
    check_fallback(f, X, reason=reason)


def test_python_that_looks_at_values_runs_as_it_is():
    f = lambda x: x * 2 if x.sum() > 3 else x
    check_fallback(f, X, reason="depends on values", output_shapes=DECLARED)


def test_conversions_to_half_precision_round():
    def f(x):
        half = x.bfloat16()
        return x.bfloat16().float(), x.half().float(), (half + 1).float(), half * 3 - 1

    x = jnp.array([1.2345678, 1e-3, 70000.0, 3.14159] * 5)
    y, expected = torch2jax(f, compile=True)(x), torch2jax(f)(x)
    for a, b in zip(y, expected, strict=True):
        np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))


def test_max_pooling_is_compiled_in_a_fresh_process():
    run_python(
        """
        import jax.numpy as jnp, torch, warnings
        from t2j_core import torch2jax
        warnings.simplefilter("error")
        y = torch2jax(torch.nn.MaxPool2d(2), compile=True)(jnp.arange(16.0).reshape(1, 4, 4))
        assert y.tolist() == [[[5.0, 7.0], [13.0, 15.0]]]
        """
    )


def test_functions_that_catch_what_is_refused():
    def values(x):
        try:
            return x * x.sum().item()
        except Exception:
            return x

    def seeds_if_it_can(x):
        try:
            torch.manual_seed(0)
        except Exception:
            return x
        return x * torch.rand(4)

    check_fallback(values, X, reason="depends on values.*item", output_shapes=DECLARED)
    check_fallback(seeds_if_it_can, X, reason="seeds torch's generators", output_shapes=DECLARED)


class OfUser(torch.nn.Parameter):
    pass


@pytest.mark.parametrize(
    "write",
    [
        lambda t, x: t.add_(1),
        lambda t, x: torch.add(torch.zeros(4), 1, out=t),
        lambda t, x: torch._foreach_add_([t], 1.0),
        lambda t, x: t.detach()[:].add_(1),
        lambda t, x: t[:].copy_(torch.ones_like(x)),
        lambda t, x: t.__setitem__(slice(None), torch.ones_like(x)),
    ],
)
@pytest.mark.parametrize("of", [torch.zeros, lambda n: OfUser(torch.zeros(n), requires_grad=False)])
def test_writes_into_tensors_that_a_function_refers_to(write, of):
    t = of(4)

    def f(x):
        write(t, x)
        return x + t

    g = torch2jax(f, compile=True, output_shapes=DECLARED)
    with pytest.warns(PerformanceWarning, match="writes into a tensor that it refers to.*in line"):
        np.testing.assert_allclose(g(X), T + 1)  # tracing has not written


def test_functions_that_write():
    counter = torch.zeros(4)

    def counts(x):
        counter.add_(1)
        return x + counter

    g = torch2jax(counts, compile=True, output_shapes=DECLARED)
    with pytest.warns(PerformanceWarning, match="writes into a tensor that it refers to.*counter.add_"):
        np.testing.assert_allclose(g(X), T + 1)  # tracing has not counted
    check_fallback(lambda x: x * 1, X, reason="side effect", has_side_effect=True)
    with pytest.warns(PerformanceWarning, match="changes args") as caught:
        check(lambda x: x.add_(1), X)
    assert len(caught) == 1
    with pytest.warns(PerformanceWarning, match="changes args|mutat"):
        np.testing.assert_allclose(torch2jax(lambda x: x.add_(1), compile=True, output_shapes=DECLARED)(X), T + 1)


def test_functions_that_write_by_other_ways():
    state = torch.zeros(4)
    foreach = lambda x: (torch._foreach_add_([state], 1), x * 1)[1]
    out = lambda x: torch.add(x, 1, out=state) * 1
    for f in (foreach, out):
        state.zero_()
        g = torch2jax(f, compile=True, output_shapes=DECLARED)
        with pytest.warns(PerformanceWarning, match="writes into a tensor that it refers to"):
            y = g(X)
        np.testing.assert_allclose(y, T if f is foreach else T + 1)
        np.testing.assert_allclose(state, torch.ones(4) if f is foreach else T + 1)


@pytest.mark.filterwarnings("ignore:.*keeps:t2j_core.T2jWarning")
@pytest.mark.parametrize("kept_of", [lambda x: x, torch.sin])
def test_functions_that_keep_tensors_run_as_they_are(kept_of):
    kept = []

    def f(x):
        kept.append(kept_of(x))
        return x * 2

    g = torch2jax(f, compile=True, output_shapes=DECLARED)
    with pytest.warns(PerformanceWarning, match="keeps tensors"):
        np.testing.assert_allclose(g(X), T * 2)
    np.testing.assert_allclose(kept[-1], kept_of(T))


def test_arrays_over_a_tensor_that_the_function_refers_to():
    t = torch.full((4,), 3.0)
    check_fallback(lambda x: x * torch.from_numpy(t.numpy()), X, reason="by `numpy`", output_shapes=DECLARED)
    check_fallback(lambda x: x * float(np.asarray(t)[0]), X, reason="by `__array__`", output_shapes=DECLARED)
    check_fallback(lambda x: x * t.tolist()[0], X, reason="by `tolist`", output_shapes=DECLARED)


class KeepsItsResult(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.y = x * w
        return ctx.y

    @staticmethod
    def backward(ctx, g):
        return g, g


def test_what_a_function_sees_of_grad_mode():
    w = torch.nn.Parameter(torch.full((4,), 3.0))
    check(lambda x: x * torch.is_grad_enabled(), X)
    check(lambda x: x * (2 if (w * x).requires_grad else 3), X)
    check(lambda x: x * torch.autograd.grad((w**2).sum(), w)[0], X)
    check(lambda x: KeepsItsResult.apply(x, w) * 2, X)
    check(torch.no_grad()(lambda x: x * torch.is_grad_enabled()), X)


def test_functions_that_ask_whether_torch_compiles():
    check(lambda x: x * (2 if torch.compiler.is_compiling() else 3), X)


def hides_nothing(mask):
    """As in transformers: a trace cannot ask the mask."""
    is_traced = torch.compiler.is_compiling()
    is_traced |= False
    return not is_traced and bool(mask.all())


def test_functions_that_look_at_values_unless_torch_compiles():
    def f(x, mask):
        return x * 2 if hides_nothing(mask) else torch.where(mask, x * 2, 0)

    for mask in (X > -1, X > 1):
        check(f, X, mask, output_shapes=DECLARED)
    assert torch.compiler.is_compiling() is False


def test_other_threads_do_not_compile_while_one_traces():
    seen = []

    def ask():
        seen.append((bool(torch.compiler.is_compiling()), torch.compiler.is_compiling() | False))

    def f(x):
        if torch.compiler.is_compiling():
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
            return x * 2
        return x * (2 if x.sum() > 0 else 2)

    check(f, X, output_shapes=DECLARED)
    assert seen and not any(map(any, seen))


def test_torch_compiles_on_another_thread_meanwhile(monkeypatch):
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", False)  # restored at the end
    with _compat.said_to_compile():
        found, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, True
    assert torch.compiler.is_compiling() is True  # the other has not ended
    torch.compiler._is_compiling_flag = found
    assert not torch.compiler.is_compiling()


def test_a_state_that_the_function_sets():
    plain, compiled = torch2jax(sets_state, rng=True), torch2jax(sets_state, rng=True, compile=True)
    key = jax.random.key(1)
    with pytest.warns(PerformanceWarning, match="changes their state"):
        np.testing.assert_allclose(compiled(key, X), plain(key, X))


def test_numbers_that_are_drawn_without_a_key():
    g = torch2jax(lambda x: x + torch.rand_like(x), compile=True, output_shapes=DECLARED)
    with pytest.warns(T2jWarning, match="without a key"):
        first = g(X)
    assert not np.allclose(first, g(X))


def test_without_a_compiler_functions_run_as_they_are(tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with config.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),)}):
        check_fallback(lambda x: x * 7.25 + 3, X, reason="ompiler|no-such")


# --- when it is compiled ----------------------------------------------------------------------------------------------


def test_shapes_alone_compile_nothing_and_the_import_does_not_load_the_compiler():
    calls = []
    g = torch2jax(lambda x: calls.append(0) or x * 2, X, compile=True)
    calls.clear()
    assert jax.eval_shape(g, X).shape == (4,)
    assert not calls and "to be compiled at its first call" in g.explain()
    run_python("import sys, t2j_core; assert not any('torch._inductor' in m for m in sys.modules)")


def test_threads_compile_a_function_once():
    runs, traced = [], threading.Barrier(2)

    def f(x):
        runs.append(0)
        return torch.sin(x) * 3

    g = torch2jax(f, compile=True, output_shapes=DECLARED)
    results = []

    def call():
        traced.wait()
        results.append(jax.jit(g)(X))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for result in results:
        np.testing.assert_allclose(result, torch.sin(T) * 3, rtol=1e-6)
    alone = len(runs)
    runs.clear()
    torch2jax(f, compile=True, output_shapes=DECLARED)(X)
    assert alone == len(runs)


def test_progress_is_logged(caplog, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with caplog.at_level(logging.INFO, "t2j_core"):
        torch2jax(lambda x: torch.cos(x), compile=True)(X)
    texts = [record.getMessage() for record in caplog.records]
    assert any("compiling <lambda> has taken" in text for text in texts)
    assert any("compiling <lambda> took" in text for text in texts)


def test_the_option_is_checked():
    with raises(ArgumentError, what="`compile` is not valid", expected="True or False", got="'yes'"):
        torch2jax(torch.sin, compile="yes")
    assert "compile=True" in repr(torch2jax(torch.sin, compile=True))


def test_a_named_function_can_still_be_exported():
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialise")
    f = torch2jax(lambda x, y: torch.sin(x), name="compiled_sine", compile=True)
    checks = [jax.export.DisabledSafetyCheck.custom_call("t2j_torch_call")]
    exported = jax.export.export(jax.jit(f), disabled_checks=checks)(X, X)
    np.testing.assert_allclose(f(X, X), torch.sin(T), rtol=1e-6)
    np.testing.assert_allclose(exported.call(X, X), torch.sin(T), rtol=1e-6)


@pytest.mark.filterwarnings("ignore::t2j_core.T2jWarning")
def test_an_operand_that_an_operator_writes_is_named_although_others_are_not_handed_over():
    with torch.library._scoped_library("t2j_test_writes", "FRAGMENT") as library:
        library.define("sneaky(Tensor x) -> Tensor")
        library.impl("sneaky", lambda x: x.add_(1) * 1, "CPU")
        library.impl("sneaky", torch.empty_like, "Meta")
        g = torch2jax(lambda x, y: torch.ops.t2j_test_writes.sneaky(y), compile=True)
        np.testing.assert_allclose(g(X, X), T + 1)
        assert "args[1]: copied at every call" in g.explain() and "args[0]: not handed over" in g.explain()
        np.testing.assert_allclose(X, T)


def test_a_tensor_that_the_function_refers_to_is_returned():
    w = torch.ones(4)
    g = torch2jax(lambda x: (x, w, w[1:]), compile=True)
    w.add_(1)
    for result, value in zip(g(X), (T, w, w[1:]), strict=True):
        np.testing.assert_allclose(result, value)


def test_an_older_torch_does_not_compile(monkeypatch):
    monkeypatch.setattr(_compat, "can_compile", False)
    check_fallback(torch.sin, X, reason=r"cannot be compiled \(torch 2.9 or newer compiles functions")
