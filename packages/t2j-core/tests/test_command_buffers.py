"""`command_buffer=True`: which calls XLA may capture in a CUDA graph, and what a call site does about a capture.

Programs are lowered for CUDA here, which needs no GPU. Captures are pretended; tests/cuda_fake has them on a stand-in
for CUDA, and tests/cuda_aot shows what XLA makes of the programs.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import raises
from t2j_core import CommandBufferError, PerformanceWarning, TensorMutationError, _compat, torch2jax
from t2j_core._run import capture
from t2j_core._run.capture import CapturedTarget
from t2j_core._run.redirect import Redirected

CPU = torch.device("cpu")
ORDINARY, CAPTURED = "t2j_torch_call", "t2j_torch_call_captured"
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)

pytestmark = pytest.mark.skipif(not _compat.has_command_buffers, reason="jax before 0.10")


def f(x):
    return torch.sin(x) + 1


def targets(function, *args, platforms=("cuda",)):
    """The targets of the calls in a program."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()
    return re.findall(r"@(t2j_\w+)\(", text)


# --- which calls ---------------------------------------------------------------------------------------------------


def test_elsewhere_it_changes_nothing():
    g = torch2jax(f, command_buffer=True)
    for h in (g, jax.jit(g)):
        np.testing.assert_allclose(h(X), np.sin(X) + 1, rtol=1e-6)
    assert targets(g, X, platforms=("cpu",)) == [ORDINARY]
    assert targets(g, X, platforms=("rocm",)) == [ORDINARY]


def test_a_call_of_a_program_for_cuda_may_be_captured():
    assert targets(torch2jax(f, command_buffer=True), X) == [CAPTURED]
    assert targets(torch2jax(f), X) == [ORDINARY]


def test_each_call_of_a_loop_and_of_two_layers_may_be():
    g = torch2jax(f, command_buffer=True)
    assert targets(lambda x: g(jnp.cos(g(x))), X) == [CAPTURED, CAPTURED]
    assert targets(lambda x: jax.lax.scan(lambda c, _: (g(c), None), x, length=3)[0], X) == [CAPTURED]


def test_a_program_for_several_platforms_has_one_handler():
    assert set(targets(torch2jax(f, command_buffer=True), X, platforms=("cpu", "cuda"))) == {ORDINARY}


def test_an_exported_program_has_the_ordinary_handler():
    """Another process may have a version of t2j that lacks the other one."""
    g = torch2jax(f, command_buffer=True, name="tests.exported with a command buffer")
    export = jax.export.export(
        jax.jit(g), platforms=["cuda"], disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(ORDINARY)]
    )
    text = export(jnp.asarray(X)).mlir_module()
    assert ORDINARY in text
    assert CAPTURED not in text


def keeps(x):
    keeps.last = torch.sin(x)
    return keeps.last


def branches(x):
    return x if x.sum() > 0 else -x


REFUSED = {
    "a side effect": (lambda: torch2jax(f, has_side_effect=True, command_buffer=True), "side effect"),
    "a key": (lambda: torch2jax(torch.nn.functional.dropout, rng=True, command_buffer=True), "it draws from a key"),
    "random numbers": (lambda: torch2jax(torch.rand_like, command_buffer=True), "without a key"),
    "state": (lambda: torch2jax(keeps, command_buffer=True), "from one call to the next"),
    "values": (lambda: torch2jax(branches, command_buffer=True), "may read values"),
    "no elements": (lambda: torch2jax(lambda x: x[:0], command_buffer=True), "no output has elements"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_captured_runs_as_without_the_option(case):
    make, reason = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what else is told of these functions
        g = make()
        args = (jax.random.key(0), X) if case == "a key" else (X,)
        found = jax.eval_shape(g, *args)
    assert found.dtype == jnp.float32
    with pytest.warns(PerformanceWarning, match="cannot be in a command buffer") as caught:
        assert targets(lambda *a: g(*a) if case != "values" else g(*a) * 1, *args) == [ORDINARY]
    assert any(reason in str(w.message) for w in caught)
    assert f"in no command buffer, because {g.explain().split('because ')[1].splitlines()[0]}" in g.explain()
    assert reason in g.explain()


def test_users_are_told_once():
    g = torch2jax(f, has_side_effect=True, command_buffer=True)
    with pytest.warns(PerformanceWarning, match="command buffer"):
        targets(g, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets(g, X)


def test_explain_says_that_it_may_be():
    g = torch2jax(f, command_buffer=True)
    g(X)
    assert "in a command buffer on CUDA" in g.explain()
    h = torch2jax(f)
    h(X)
    assert "command buffer" not in h.explain()


# --- the call site -------------------------------------------------------------------------------------------------


def site_of(function, *args, **options):
    """The call site of a captured call."""
    g = torch2jax(function, command_buffer=True, **options)
    jax.eval_shape(g, *args)  # a call would learn what the warm-up is to find
    (fn,) = g.builder.signatures.values()
    return fn.call_site(is_captured=True)


def test_each_site_has_memory_of_its_own():
    g = torch2jax(f, command_buffer=True)
    g(X)
    (fn,) = g.builder.signatures.values()
    assert fn.call_site(is_captured=True).target is not fn.call_site(is_captured=True).target


def test_results_are_copied_and_not_redirected(monkeypatch):
    large = np.ones(1 << 19, np.float32)
    g = torch2jax(f, command_buffer=True)
    g(large)
    (fn,) = g.builder.signatures.values()
    assert isinstance(fn.target, Redirected)
    site = fn.call_site(is_captured=True)
    assert (site.pass_results, site.may_keep_results) == (False, False)
    monkeypatch.setattr(_compat, "is_capturing", lambda device: False)
    (result,) = site.target(torch.from_numpy(large))
    assert torch.equal(result, f(torch.from_numpy(large)))


def test_out_is_passed_on():
    site = site_of(lambda x, out: torch.sin(x, out=out), X, outputs="out")
    assert site.pass_results
    assert site.target.warm_up(CPU) == ()


@pytest.fixture
def warmed():
    """Warms up the site of a function on the CPU."""
    return lambda function, *args, **options: site_of(function, *args, **options).target.warm_up(CPU)


def test_it_is_warmed_up_on_zeros_of_the_right_dtypes(warmed):
    seen = []

    def note(x, i):
        seen.append((x.dtype, x.shape, bool((x == 0).all()), i.dtype))
        return x + i.sum()

    i = np.arange(2, dtype=np.int16)
    assert warmed(note, X.astype(jnp.bfloat16), i, output_shapes=jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)) == ()
    assert seen == [(torch.bfloat16, (3, 4), True, torch.int16)]


WRITES = {
    "with a version": lambda x: x.add_(1),
    "without one": lambda x: x.data.add_(1),
    "by NumPy": lambda x: torch.from_numpy(x.numpy()).add_(1),
    "nothing but zeros": lambda x: x.data.mul_(2),
    "statistics": lambda x: F.batch_norm(torch.ones(3, 4), x[0], torch.ones(4), training=True, momentum=0.0),
}


@pytest.mark.parametrize("how", WRITES)
def test_what_it_writes_into_is_copied_at_every_call(how, warmed):
    def function(y, x):
        WRITES[how](x)
        return x + y

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert warmed(function, X, X, output_shapes=jax.ShapeDtypeStruct((3, 4), jnp.float32)) == (1,)


def test_statistics_that_are_only_read_are_not_copied(warmed):
    assert warmed(lambda x, m, v: F.batch_norm(x, m, v), X, X[0], X[0]) == ()


def test_the_warm_up_leaves_what_a_closure_refers_to_as_it_was(warmed):
    layer, count = torch.nn.BatchNorm1d(4), torch.zeros(())
    before = [t.clone() for t in layer.buffers()]

    def function(x):
        count.add_(1)
        return layer(x).detach()

    assert warmed(function, X, output_shapes=jax.ShapeDtypeStruct((3, 4), jnp.float32)) == ()
    assert all(map(torch.equal, layer.buffers(), before))
    assert count == 0


def test_writes_are_errors_where_the_user_wants_that(warmed):
    def function(x):
        x.data.add_(1)
        return x * 1

    g = torch2jax(
        function, command_buffer=True, arguments="check", output_shapes=jax.ShapeDtypeStruct((3, 4), "float32")
    )
    jax.eval_shape(g, X)
    (fn,) = g.builder.signatures.values()
    with raises(TensorMutationError, what="args[0]"):
        fn.call_site(is_captured=True).target.warm_up(CPU)


def test_what_may_be_written_may_be_captured(warmed):
    def update(x):
        x.add_(1)
        return x

    assert warmed(update, X, mutable_argnums=0) == ()


@pytest.mark.parametrize("what", ["argument", "view of one", "result", "between"])
def test_a_function_that_keeps_something_is_refused(what, warmed):
    """Each execution would write into what it has kept."""
    kept = []

    def function(x):
        middle = torch.sin(x)
        result = middle + 1
        kept[:] = [{"argument": x, "view of one": x[1:], "result": result, "between": middle}[what]]
        return result

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = site_of(function, X, output_shapes=jax.ShapeDtypeStruct((3, 4), jnp.float32)).target
    with raises(CommandBufferError, what="keeps a tensor of the call", remedy="without `command_buffer=True`"):
        target.warm_up(CPU)


def test_garbage_is_not_kept(warmed):
    def function(x):
        cycle = [torch.sin(x)]
        cycle.append(cycle)
        return cycle[0] + 1

    assert warmed(function, X) == ()


def test_a_constant_of_the_closure_may_be_returned(warmed):
    weight = torch.ones(3, 4)
    assert warmed(lambda x: (weight, weight + x), X) == ()


def test_an_error_on_zeros_says_why_there_are_zeros(warmed):
    def function(x):
        if not bool(x.any()):
            raise ValueError("mine")
        return x * 1

    with raises(
        CommandBufferError, what=("fails on zeros", "ValueError: mine"), remedy="without `command_buffer=True`"
    ):
        warmed(function, X, output_shapes=jax.ShapeDtypeStruct((3, 4), jnp.float32))


def test_too_little_memory_is_no_fault_of_the_function(warmed):
    def function(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        warmed(function, X, output_shapes=jax.ShapeDtypeStruct((3, 4), jnp.float32))


# --- in a capture --------------------------------------------------------------------------------------------------


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(_compat, "is_capturing", lambda device: True)


def held(function):
    """The addresses of the memory that a target holds after a captured call, and its results."""
    target = CapturedTarget(function, None, (), ())
    results = [t.clone() for t in target(torch.ones(3, 4))]
    target.hold_outside()  # as at the end of a call
    return {storage.data_ptr() for storage in target._outside.values()}, results, target


@pytest.mark.parametrize("is_used", [True, False], ids=["used", "returned"])
def test_memory_of_a_closure_stays_as_long_as_the_site(capturing, is_used):
    """The graph refers to it, also after the user has replaced it."""
    weights = {"w": torch.full((3, 4), 2.0)}
    addresses, (result,), target = held(lambda x: (torch.sin(x) * weights["w"] if is_used else weights["w"],))
    address = weights["w"].data_ptr()
    weights["w"] = torch.zeros(3, 4)
    assert addresses == {address}
    torch.testing.assert_close(result, torch.full((3, 4), 2 * math.sin(1) if is_used else 2.0))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_all_parts_of_a_sparse_matrix_stay(layout, capturing):
    matrix = torch.eye(3).to_sparse(layout=layout)
    addresses, (result,), _ = held(lambda x: (matrix @ x,))
    assert len(addresses) == (2 if layout == torch.sparse_coo else 3)
    torch.testing.assert_close(result, torch.ones(3, 4))


def test_memory_of_the_call_is_not_held(capturing):
    addresses, *_ = held(lambda x: (torch.sin(x)[1:].add_(1).view(-1) * x[0, 0],))
    assert not addresses


class Named:
    name = "layer"


def test_an_operation_that_cannot_be_captured_is_named(capturing):
    def wait(x):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    target = CapturedTarget(wait, Named(), (), ())
    with raises(CommandBufferError, what=("layer", "not permitted when stream is capturing"), expected="no `.item()`"):
        target(torch.ones(1))


class Speechless(Exception):
    def __str__(self):
        raise AssertionError("it has no text")


def test_an_exception_without_a_text_stays_what_it_is(capturing):
    def fail(x):
        raise Speechless

    with pytest.raises(Speechless):
        CapturedTarget(fail, Named(), (), ())(torch.ones(1))


def test_exceptions_of_the_user_stay_what_they_are(capturing):
    def fail(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        CapturedTarget(fail, Named(), (), ())(torch.ones(1))


@pytest.fixture
def stream(monkeypatch):
    """Notes what happens to streams and to pools of memory, in order."""
    notes = []

    class Pool:
        def __init__(self, device):
            self.device = device
            notes.append(("made", device))

        @contextlib.contextmanager
        def in_use(self):
            notes.append("begin")
            yield
            notes.append("end")

    for name in ("enter_unordered", "order_in", "leave", "restore"):
        monkeypatch.setattr(capture, name, lambda *a, name=name: notes.append(name) or name)
    monkeypatch.setattr(_compat, "Pool", Pool)
    return notes


def test_a_capture_has_no_events_and_memory_of_its_own(stream, capturing):
    target = CapturedTarget(f, Named(), (), ())
    target.enter(7, 0).close()
    assert stream == ["enter_unordered", ("made", 0), "begin", "end", "restore"]
    del stream[:]
    target.enter(7, 0).close()
    target.enter(7, 1).close()
    assert stream == [
        *("enter_unordered", "begin", "end", "restore"),
        "enter_unordered",
        ("made", 1),
        "begin",
        "end",
        "restore",
    ]


def test_outside_of_a_capture_streams_are_ordered_as_in_any_call(stream, monkeypatch):
    monkeypatch.setattr(_compat, "is_capturing", lambda device: False)
    CapturedTarget(f, Named(), (), ()).enter(7, 0).close()
    assert stream == ["enter_unordered", "order_in", "leave"]


def test_the_stream_is_restored_if_the_first_event_fails(stream, monkeypatch):
    def fail(entered):
        raise RuntimeError("the event failed")

    monkeypatch.setattr(_compat, "is_capturing", lambda device: False)
    monkeypatch.setattr(capture, "order_in", fail)
    with pytest.raises(RuntimeError, match="the event failed"):
        CapturedTarget(f, Named(), (), ()).enter(7, 0)
    assert stream == ["enter_unordered", "restore"]
