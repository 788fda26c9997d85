"""Kept graphs where memory is short: a limit on each device, and what an out-of-memory error does."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import PerformanceWarning, clear_residuals, torch2jax
from t2j_autodiff._base import config
from t2j_autodiff._residuals.store import GraphStore, Shelf, kept_graphs
from t2j_core import last_error

N = 5000
X = jnp.linspace(-1, 1, N)
CPU, GPUS = torch.device("cpu"), [torch.device("cuda", i) for i in range(2)]


@pytest.fixture(autouse=True)
def nothing_kept():
    clear_residuals()
    config.residual_limit.cache_clear()
    yield
    clear_residuals()
    config.residual_limit.cache_clear()


# --- limits ----------------------------------------------------------------------------------------------------------


def keep(kept, shelf, **sizes):
    nbytes = {{"cpu": CPU, "first": GPUS[0], "second": GPUS[1]}[name]: size for name, size in sizes.items()}
    return kept.keep(shelf, object(), nbytes)


def test_each_device_has_a_limit_of_its_own():
    kept = GraphStore(lambda device: 100)
    shelf = Shelf(kept)
    numbers = [keep(kept, shelf, **{name: 60}) for name in ("first", "second", "cpu")]
    assert list(shelf) == numbers
    newer = keep(kept, shelf, second=60)
    assert list(shelf) == [numbers[0], numbers[2], newer]
    assert [kept.nbytes(device) for device in (CPU, *GPUS)] == [60, 60, 60]


def test_the_oldest_graphs_are_freed_first():
    kept = GraphStore(lambda device: 130)
    shelf = Shelf(kept)
    numbers = [keep(kept, shelf, cpu=60) for _ in range(4)]
    assert list(shelf) == numbers[2:]


def test_a_graph_on_two_devices_counts_on_both():
    kept = GraphStore(lambda device: 100)
    shelf = Shelf(kept)
    both, first = keep(kept, shelf, first=10, cpu=70), keep(kept, shelf, first=10)
    assert [kept.nbytes(device) for device in (CPU, *GPUS)] == [70, 20, 0]
    host = keep(kept, shelf, cpu=70)
    assert list(shelf) == [first, host]
    assert both not in shelf
    assert [kept.nbytes(device) for device in (CPU, *GPUS)] == [70, 10, 0]


def test_the_graphs_of_one_device_are_freed():
    kept = GraphStore(lambda device: 100)
    shelf, other = Shelf(kept), Shelf(kept)
    keep(kept, shelf, first=10)
    keep(kept, other, first=10, cpu=10)
    second = keep(kept, other, second=10)
    assert kept.free(GPUS[0]) == 2
    assert kept.free(GPUS[0]) == 0
    assert (dict(shelf), list(other), len(kept)) == ({}, [second], 1)
    assert [kept.nbytes(device) for device in (CPU, *GPUS)] == [0, 0, 10]
    del other
    assert (len(kept), kept.nbytes(GPUS[1])) == (0, 0)


def test_the_limit_is_half_of_the_memory_of_the_device(monkeypatch):
    memory = {0: 80 << 30, 1: 24 << 30}
    asked = []

    def properties(device):
        asked.append(device.index)
        return types.SimpleNamespace(total_memory=memory[device.index])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(config, "residual_bytes", None)
    assert [config.residual_limit(device) for device in (*GPUS, *GPUS)] == [40 << 30, 12 << 30] * 2
    assert asked == [0, 1]
    assert config.residual_limit(CPU) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def test_a_limit_in_the_environment_counts_for_every_device(monkeypatch):
    monkeypatch.setattr(config, "residual_bytes", 7)
    assert [config.residual_limit(device) for device in (CPU, *GPUS)] == [7, 7, 7]


def test_a_limit_that_is_no_number_is_refused():
    program = """if True:
        import os
        for text in ("-1", "1e9", "all"):
            os.environ["T2J_RESIDUAL_BYTES"] = text
            try:
                import t2j_autodiff
            except Exception as error:
                print(error)
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for text in ("-1", "1e9", "all"):
        assert f"T2J_RESIDUAL_BYTES must be a non-negative integer.\n  Got: {text!r}" in run.stdout


# --- out of memory ---------------------------------------------------------------------------------------------------


def in_jnp(x):
    return jnp.exp(jnp.tanh(x)).sum()


def check(gradient, x=X):
    np.testing.assert_allclose(gradient, jax.grad(in_jnp)(x), rtol=1e-4, atol=1e-5)


class Short:
    """A torch function that is out of memory `failures` times, where autograd records it."""

    def __init__(self, failures=0, error=torch.OutOfMemoryError):
        self.failures, self.error = failures, error
        self.recorded = self.runs = 0
        self.allocated = []

    def __call__(self, x):
        self.runs += not x.is_meta
        y = torch.tanh(x)
        if y.requires_grad and not x.is_meta:
            self.recorded += 1
            if self.failures:
                self.failures -= 1
                self.allocated.append(weakref.ref(y))
                raise self.error("CUDA out of memory.")
        return y.exp().sum()


def explained(f):
    return [line.strip() for line in f.explain().splitlines() if "kept autograd graph" in line or "recompute" in line]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_recording_without_memory_frees_the_graphs_that_wait_and_is_repeated(error):
    other = torch2jax(lambda x: torch.tanh(x).exp().sum())
    waiting = [jax.vjp(other, X * k)[1] for k in range(3)]
    short = Short(1, error)
    f = torch2jax(short)
    _, pull = jax.vjp(f, X)
    assert short.recorded == 2
    assert short.allocated[0]() is None
    assert len(kept_graphs) == 1
    check(pull(jnp.float32(1))[0])
    assert short.runs == 2
    for k, late in enumerate(waiting):
        check(late(jnp.float32(1))[0], X * k)
    assert explained(f) == explained(other)


def test_a_call_without_memory_keeps_no_graph_and_the_next_one_does():
    short = Short(1)
    f = torch2jax(short)
    _, pull = jax.vjp(f, X)
    assert not kept_graphs
    check(pull(jnp.float32(1))[0])  # runs the forward again
    assert short.runs == 3
    assert "except in calls that ran out of memory (1)" in explained(f)[0]
    check(jax.grad(f)(X))
    assert short.runs == 4


def test_a_second_recording_without_memory_keeps_no_graph():
    other = torch2jax(lambda x: torch.tanh(x).exp().sum())
    _, waiting = jax.vjp(other, X)
    short = Short(2)
    f = torch2jax(short)
    _, pull = jax.vjp(f, X)
    assert (short.recorded, short.runs) == (3, 3)  # the value alone is recorded too, and keeps nothing
    assert not kept_graphs
    check(pull(jnp.float32(1))[0])
    check(waiting(jnp.float32(1))[0])


def test_the_run_without_a_graph_has_the_memory_of_the_recordings_that_failed():
    class Watching(Short):
        def __call__(self, x):
            if not x.is_meta:
                alive.append([y() is not None for y in self.allocated])
            return super().__call__(x)

    alive, short = [], Watching(2)
    _, pull = jax.vjp(torch2jax(short), X)
    assert alive == [[], [False], [False, False]]
    check(pull(jnp.float32(1))[0])


def test_graphs_of_other_devices_wait_on(monkeypatch):
    monkeypatch.setattr(kept_graphs, "limit", lambda device: 1 << 30)
    shelf = Shelf(kept_graphs)
    number = kept_graphs.keep(shelf, object(), {GPUS[0]: 10})
    short = Short(1)
    _, pull = jax.vjp(torch2jax(short), X)
    assert (short.recorded, short.runs) == (2, 2)  # there was nothing to free: the second is the value alone
    assert list(shelf) == [number]
    check(pull(jnp.float32(1))[0])


class ShortBackward(torch.autograd.Function):
    failures = runs = 0

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        ShortBackward.runs += 1
        if ShortBackward.failures:
            ShortBackward.failures -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return g * (1 - y * y)


def test_a_backward_without_memory_frees_the_graphs_that_wait_and_runs_the_forward_again():
    short = Short()
    f = torch2jax(lambda x: short(ShortBackward.apply(x)))
    expected = jax.grad(lambda x: in_jnp(jnp.tanh(x)))(X)
    _, waiting = jax.vjp(f, X)
    _, pull = jax.vjp(f, X)
    ShortBackward.failures = 1
    runs = short.runs
    np.testing.assert_allclose(pull(jnp.float32(1))[0], expected, rtol=1e-4, atol=1e-5)
    assert short.runs == runs + 1
    assert not kept_graphs
    assert "except in calls that ran out of memory (1)" in explained(f)[0]
    np.testing.assert_allclose(waiting(jnp.float32(1))[0], expected, rtol=1e-4, atol=1e-5)
    runs = short.runs
    np.testing.assert_allclose(jax.grad(f)(X), expected, rtol=1e-4, atol=1e-5)  # from a kept graph
    assert short.runs == runs + 1


def test_a_batch_of_cotangents_without_memory_is_pulled_back_one_by_one():
    f = torch2jax(lambda x: ShortBackward.apply(x) * 2)
    cotangents = jnp.stack([jnp.ones(N), jnp.full(N, 2.0)])
    expected = jax.vmap(jax.vjp(lambda x: jnp.tanh(x) * 2, X)[1])(cotangents)[0]
    for failures, backwards in ((0, 1), (1, 1 + 2), (0, 1)):
        _, pull = jax.vjp(f, X)
        ShortBackward.failures, ShortBackward.runs = failures, 0
        np.testing.assert_allclose(jax.vmap(pull)(cotangents)[0], expected, rtol=1e-4, atol=1e-5)
        assert ShortBackward.runs == backwards


class ShortOnData:
    """A torch function that is out of memory once for each entry of `failures`, and notes whether `vmap` runs it."""

    def __init__(self):
        self.failures, self.in_batch = [], []

    def __call__(self, x):
        if not x.is_meta:
            self.in_batch.append(torch._C._functorch.maybe_get_level(x) >= 0)
            if self.failures:
                raise self.failures.pop()("CUDA out of memory.")
        return torch.tanh(x).exp().sum()

    def wrapped(self):
        return torch2jax(self, output_shapes=jax.ShapeDtypeStruct((), jnp.float32))


def test_a_recording_of_a_batch_without_memory_is_repeated():
    _, waiting = jax.vjp(torch2jax(lambda x: torch.tanh(x).exp().sum()), X)
    short = ShortOnData()
    f = short.wrapped()
    batch = jnp.stack([X, X / 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short.failures.append(torch.OutOfMemoryError)
        gradients = jax.vmap(jax.grad(f))(batch)
    assert short.in_batch == [True, True]
    check(waiting(jnp.float32(1))[0])
    for gradient, x in zip(gradients, batch, strict=True):
        check(gradient, x)


def test_a_batch_without_memory_runs_one_by_one_this_time():
    short = ShortOnData()
    f = jax.vmap(short.wrapped())
    batch = jnp.stack([X, X / 2])
    short.failures.append(torch.OutOfMemoryError)
    with pytest.warns(PerformanceWarning, match="vmap_chunk_size"):
        result = f(batch)
    np.testing.assert_allclose(result, jax.vmap(in_jnp)(batch), rtol=1e-4)
    assert short.in_batch == [True, False, False]
    f(batch).block_until_ready()
    assert short.in_batch[3:] == [True]


def test_forward_mode_without_memory_raises_and_is_tried_again():
    short = ShortOnData()
    f = short.wrapped()
    jax.jvp(f, (X,), (X,))
    how = f.explain()
    short.failures += [torch.OutOfMemoryError] * 5
    with pytest.raises(torch.OutOfMemoryError):
        jax.jvp(f, (X,), (X,))
    short.failures.clear()
    np.testing.assert_allclose(jax.jvp(f, (X,), (X,)), jax.jvp(in_jnp, (X,), (X,)), rtol=1e-4)
    assert f.explain() == how


def test_a_function_that_needs_too_much_raises_the_error_of_torch():
    def f(x):
        if not x.is_meta and x.sum() > -1e9:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x.sum()

    f = torch2jax(f, output_shapes=jax.ShapeDtypeStruct((), jnp.float32))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        jax.vjp(f, X)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="^RESOURCE_EXHAUSTED: "):
        jax.block_until_ready(jax.jit(jax.value_and_grad(f))(X))
    assert type(last_error()) is torch.OutOfMemoryError
