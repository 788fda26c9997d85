"""Forwards that are recorded on windows: every call is as if it had been recorded with hooks."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from common import agree, raises, warns
from t2j_autodiff import (
    T2jWarning,
    clear_residuals,
    module2jax,
    torch2jax,
)
from t2j_autodiff._residuals import autograd, window_policy, windows
from t2j_core.testing import assert_nothing_escaped

pytestmark = pytest.mark.skipif(not windows.can_make_windows, reason="torch before 2.10 records with hooks")

N = 5000  # more elements than a function that is run again may have
X = jnp.linspace(-1, 1, N)
ON_COPIES, ON_WINDOWS = 3, 6  # calls whose forwards are recorded so; calls 1, 2, 4 and 8 have hooks


@pytest.fixture
def on_windows(monkeypatch):
    """A list with one item for each recording without hooks."""
    recorded, record_on = [], autograd.record_on

    def counting(*arguments):
        recorded.append(1)
        return record_on(*arguments)

    monkeypatch.setattr(autograd, "record_on", counting)
    yield recorded
    clear_residuals()


def operations(x):
    return torch.tanh(x * x).exp() * x.sin()


def operations_in_jnp(x):
    return jnp.exp(jnp.tanh(x * x)) * jnp.sin(x)


def hooked(x, hook):
    """`operations`, whose backward calls `hook` with the operand that its graph has saved."""
    h = torch.tanh(x * x)
    if h.requires_grad:
        node = h.grad_fn.next_functions[0][0]
        h.register_hook(lambda _: hook(node._saved_self))
    return h.exp() * x.sin()


class OnceOnWindows:
    """A function that does something else in one call, which is recorded on windows."""

    def __init__(self, otherwise, usual=operations, call=ON_WINDOWS):
        self.call = call
        self.otherwise = otherwise
        self.usual = usual
        self.kept = []
        self.runs = 0

    def __call__(self, x):
        if not x.is_meta:
            self.runs += 1
            if self.runs == self.call:
                return self.otherwise(x, self.kept).sum()
        return self.usual(x).sum()


def run_until_on_windows(fn):
    """A differentiable function whose next forward is recorded on windows."""
    f = torch2jax(fn)
    for k in range(1, fn.call):
        agree(jax.grad(f)(X * k), jax.grad(lambda x: operations_in_jnp(x).sum())(X * k))
    assert fn.runs == fn.call - 1
    return f


EXPECTED = jax.grad(lambda x: operations_in_jnp(x).sum())(X)


# --- values -----------------------------------------------------------------------------------------------------------


def test_most_forwards_are_recorded_on_windows(on_windows):
    f = jax.jit(jax.value_and_grad(torch2jax(lambda x: (operations(x) + 1).sum())))
    for k in range(1, 20):
        agree(f(X * k / 9), jax.value_and_grad(lambda x: (operations_in_jnp(x) + 1).sum())(X * k / 9))
    assert len(on_windows) == 14  # not 1, 2, 4, 8, 16


def test_a_loop_has_the_memory_of_each_iteration(on_windows):
    def through(f):
        return jax.jit(jax.grad(lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(f(c)), None), x, length=12)[0].sum()))

    ours = through(torch2jax(operations))
    for k in range(2):
        agree(ours(X + k), through(operations_in_jnp)(X + k))
    assert on_windows


def test_training_in_a_donating_loop(on_windows):
    model = torch.nn.Sequential(torch.nn.Linear(64, 200), torch.nn.Tanh(), torch.nn.Linear(200, 3))
    apply, variables = module2jax(model)
    inputs = jax.random.normal(jax.random.key(0), (40, 64))

    def step(variables):
        grads = jax.grad(lambda v: (apply(v, inputs) ** 2).mean())(variables)
        return jax.tree.map(lambda v, g: v - 0.1 * g, variables, grads)

    ours, optimizer = jax.tree.map(jnp.copy, variables), torch.optim.SGD(model.parameters(), 0.1)
    donating = jax.jit(step, donate_argnums=0)
    for _ in range(12):
        ours = donating(ours)
        optimizer.zero_grad()
        model(torch.from_numpy(np.array(inputs))).square().mean().backward()
        optimizer.step()
    agree(ours["params"], {name: p.detach() for name, p in model.named_parameters()})
    assert on_windows


def test_checkpoints(on_windows):
    f = torch2jax(lambda x: torch.utils.checkpoint.checkpoint(operations, x, use_reentrant=False).sum())
    for k in range(1, 8):
        agree(jax.grad(f)(X * k), jax.grad(lambda x: operations_in_jnp(x).sum())(X * k))
    assert len(on_windows) > 2


def test_several_graphs_wait_at_a_time(on_windows):
    f = torch2jax(lambda x: operations(x).sum())
    for _ in range(6):
        jax.grad(f)(X)
    pulls = [jax.vjp(f, X * k)[1] for k in range(8)]
    for k in reversed(range(8)):
        agree(pulls[k](jnp.float32(1))[0], jax.grad(lambda x: operations_in_jnp(x).sum())(X * k))
    assert len(on_windows) > 6


def test_threads_share_a_function(on_windows):
    f = jax.jit(jax.grad(torch2jax(lambda x: operations(x).sum())))
    expected = [jax.grad(lambda x: operations_in_jnp(x).sum())(X * k) for k in range(4)]
    wrong = []

    def work(k):
        for _ in range(12):
            if not np.allclose(f(X * k), expected[k], atol=1e-4):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert on_windows


@pytest.mark.skipif(jax.device_count() < 2, reason="one device")
def test_devices_share_a_function(on_windows):
    f = jax.jit(jax.grad(torch2jax(lambda x: operations(x).sum())))
    for k in range(10):
        rows = [jax.device_put(X * (k + d), device) for d, device in enumerate(jax.devices())]
        for d, got in enumerate([f(row) for row in rows]):
            agree(got, jax.grad(lambda x: operations_in_jnp(x).sum())(X * (k + d)))
    assert on_windows


class Transparent(torch.autograd.Function):
    """A square, whose gradient for 1 is the saved tensor itself."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x * x).sum() / 2

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0]


def test_a_gradient_that_is_an_operand(on_windows):
    f = torch2jax(lambda x: Transparent.apply(x) + operations(x.detach()).sum())
    for k in range(1, 8):
        agree(jax.grad(f)(X * k), X * k)
    assert len(on_windows) > 2


def test_a_result_that_is_an_operand(on_windows):
    f = torch2jax(lambda x: (x.view(50, -1), operations(x).sum()))
    for k in range(1, 8):
        (same, _), pull = jax.vjp(f, X * k)
        agree(same, (X * k).reshape(50, -1))
        agree(pull((jnp.ones_like(same), jnp.float32(0)))[0], jnp.ones(N))
    assert len(on_windows) > 2


def test_a_sparse_gradient_whose_indices_are_an_operand(on_windows):
    apply, variables = module2jax(torch.nn.Embedding(400, 20, sparse=True))
    for k in range(1, 9):
        index = jnp.arange(k, k + 300)
        grads = jax.grad(lambda v, i: (apply(v, i) ** 2).sum())(variables, index)
        weight = variables["params"]["weight"]
        agree(grads["params"]["weight"], jax.grad(lambda w, i: (w[i] ** 2).sum())(weight, index))


@pytest.mark.parametrize("dtype", ["bool", "int32", "bfloat16", "float8_e4m3fn"])
def test_operands_of_other_dtypes(dtype):
    f = torch2jax(lambda x, other: (operations(x) * other.to(torch.float32)).sum())
    for k in range(1, 8):
        other = (X * k > 0).astype(dtype)
        expected = jax.grad(lambda x, y: (operations_in_jnp(x) * y.astype("float32")).sum())(X * k, other)
        agree(jax.grad(f)(X * k, other), expected)


def test_complex_operands(on_windows):
    f = torch2jax(lambda z: (z * z.conj() * z).abs().sum())
    for k in range(1, 8):
        z = jax.lax.complex(X * k, X[::-1])
        agree(jax.grad(f)(z), jax.grad(lambda z: jnp.abs(z * z.conj() * z).sum())(z), rtol=1e-3)
    assert len(on_windows) > 2


def test_many_cotangents_use_one_graph_on_windows(on_windows):
    f = torch2jax(lambda x: operations(x).view(4, -1).sum(1))
    for k in range(1, 8):
        agree(jax.jacrev(f)(X * k), jax.jacrev(lambda x: operations_in_jnp(x).reshape(4, -1).sum(1))(X * k))
    assert len(on_windows) > 2


# Errors have any class here: where an eager call runs behind the caller, JAX raises one of its own.
# --- what a function keeps, writes or frees ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", [ON_COPIES, ON_WINDOWS])
def test_a_function_that_replaces_the_data_of_its_argument(on_windows, call):
    def otherwise(x, kept):
        x.data = x.detach().clone()
        return operations(x)

    f = run_until_on_windows(OnceOnWindows(otherwise, call=call))
    for k in range(3):
        agree(jax.grad(f)(X * (k + 1)), jax.grad(lambda x: operations_in_jnp(x).sum())(X * (k + 1)))


@pytest.mark.parametrize("call", [ON_COPIES, ON_WINDOWS])
@pytest.mark.parametrize(
    "keep",
    [
        lambda x: x,
        lambda x: x[3:],
        lambda x: x.detach(),
        lambda x: x.data,
        lambda x: x.untyped_storage(),
        lambda x: operations(x[3:]).grad_fn,
    ],
    ids=["itself", "a view", "detached", "data", "its storage", "a part of the graph"],
)
def test_what_escapes_a_forward_has_memory_of_its_own(on_windows, keep, call):
    def otherwise(x, kept):
        kept.append(keep(x))
        return operations(x)

    fn = OnceOnWindows(otherwise, call=call)
    f = run_until_on_windows(fn)
    _, pull = jax.block_until_ready(jax.vjp(f, X + 0))
    has_values(fn.kept[0])
    agree(pull(jnp.float32(1))[0], EXPECTED)
    for k in range(3):
        jax.block_until_ready(jax.grad(f)(X * k))
    has_values(fn.kept[0])


def has_values(kept):
    if isinstance(kept, torch.UntypedStorage):
        kept = torch.empty(0).set_(kept)
    if isinstance(kept, torch.Tensor):
        agree(kept.detach(), X[-len(kept) :])


def test_a_function_that_keeps_its_argument_again_is_warned_of(on_windows):
    def keeping(x, kept):
        kept.append(x)
        return operations(x)

    fn = OnceOnWindows(keeping)
    f = run_until_on_windows(fn)
    jax.block_until_ready(jax.grad(f)(X + 0))
    fn.call = fn.runs + 1
    with warns(T2jWarning, what="keeps args[0]"):
        jax.block_until_ready(jax.grad(f)(X + 0))


def test_what_escapes_from_a_graph_on_copies_that_is_freed(on_windows):
    fn = OnceOnWindows(lambda x, kept: (kept.append(x.detach()), operations(x))[1], call=ON_COPIES)
    f = run_until_on_windows(fn)
    jax.block_until_ready(jax.vjp(f, X))
    clear_residuals()
    others = [torch.zeros(N) for _ in range(20)]
    agree(fn.kept[0], X)
    assert len(others) == 20


def test_a_graph_that_is_kept_can_be_run_after_one_on_copies_is_freed(on_windows):
    fn = OnceOnWindows(lambda x, kept: (kept.extend([x, operations(x).sum()]), operations(x))[1], call=ON_COPIES)
    f = run_until_on_windows(fn)
    jax.block_until_ready(jax.vjp(f, X + 0))
    clear_residuals()
    x, y = fn.kept
    agree(torch.autograd.grad(y, x), [EXPECTED])


class SineOfArray(torch.autograd.Function):
    """A sine whose backward reads the memory of its operand by address."""

    @staticmethod
    def forward(ctx, x):
        ctx.array = x.detach().numpy()
        return torch.from_numpy(np.sin(ctx.array))

    @staticmethod
    def backward(ctx, g):
        return g * torch.from_numpy(np.cos(ctx.array))


def test_windows_are_not_learnt_from_another_graph_than_that_with_hooks(on_windows):
    otherwise = []
    f = torch2jax(lambda x: (SineOfArray.apply(x) if otherwise and not x.is_meta else torch.sin(x)).sum())
    for k in range(1, 5):
        otherwise[:] = [True] * (k == ON_COPIES)
        agree(jax.grad(f)(X * k), jnp.cos(X * k))
    otherwise.append(True)
    summed = lambda f: lambda x: jax.lax.scan(lambda c, _: (c + 1, f(c)), x, length=3)[1].sum()  # calls 5, 6 and 7
    agree(jax.jit(jax.grad(summed(f)))(X), jax.grad(summed(lambda x: jnp.sin(x).sum()))(X))
    assert on_windows


class SineOfSaved(torch.autograd.Function):
    """A sine whose graph looks at the end of the forward as that of `SineOfArray`: nodes and references are as many."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.detach())
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        return g * torch.cos(ctx.saved_tensors[0])


@pytest.mark.parametrize("checked", [8, 16, 32])
def test_what_looks_the_same_on_windows_is_found_at_the_next_call_with_hooks(on_windows, checked):
    def fn(x):
        if x.is_meta:
            return x.sin().sum()
        runs.append(1)
        return (SineOfArray if len(runs) >= checked - 1 else SineOfSaved).apply(x).sum()

    runs, rows = [], [X * k / 9 for k in range(1, checked + 1)]  # which stay alive, as does the address in an array
    f = torch2jax(fn)
    for x in rows:
        agree(jax.grad(f)(x), jnp.cos(x))
    assert on_windows
    summed = lambda f: lambda x: jax.lax.scan(lambda c, _: (c + 1, f(c)), x, length=5)[1].sum()
    agree(jax.jit(jax.grad(summed(f)))(X), jax.grad(summed(lambda x: jnp.sin(x).sum()))(X))
    assert "keeps its arguments in the graph" in f.explain()


def test_what_escapes_in_place_of_a_saved_tensor(on_windows):
    weight = torch.ones(N - 1, requires_grad=True)
    fn = OnceOnWindows(
        lambda x, kept: (kept.append(x[1:].detach()), x * 2)[1],
        usual=lambda x: (weight * x[1:].detach()).sum() + x,
    )
    f = torch2jax(fn)
    for k in range(1, fn.call):
        jax.block_until_ready(jax.grad(f)(X * k))
    _, pull = jax.vjp(f, X + 0)
    jax.block_until_ready(pull)
    assert fn.kept and fn.runs == fn.call
    del pull
    clear_residuals()
    agree(fn.kept[0], X[1:])


def test_a_numpy_array_over_an_operand_is_refused():
    fn = OnceOnWindows(lambda x, kept: kept.append(x.detach().numpy()) or operations(x))
    f = run_until_on_windows(fn)
    with raises(Exception, anywhere=("keeps args[0]", "cannot move")):
        jax.block_until_ready(jax.grad(f)(X))
    fn.kept.clear()
    assert_nothing_escaped()


@pytest.mark.parametrize("call", [ON_COPIES, ON_WINDOWS])
def test_a_graph_that_is_kept_cannot_be_run_between_forward_and_backward(on_windows, call):
    def otherwise(x, kept):
        kept.append(operations(x))
        return kept[0]

    fn = OnceOnWindows(otherwise, call=call)
    f = run_until_on_windows(fn)
    value, pull = jax.block_until_ready(jax.vjp(f, X))
    assert fn.runs == call
    with pytest.raises(RuntimeError):
        fn.kept[0].sum().backward()
    agree(pull(jnp.float32(1))[0], EXPECTED)
    agree(value, operations_in_jnp(X).sum())


@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_that_is_kept_can_be_run_after_the_call(on_windows, fails):
    def otherwise(x, kept):
        kept.extend([x, operations(x).sum()])
        if fails:
            raise ValueError("once")
        return operations(x)

    fn = OnceOnWindows(otherwise)
    f = run_until_on_windows(fn)
    agree(jax.grad(f)(X + 0), EXPECTED)
    x, y = fn.kept
    agree(torch.autograd.grad(y, x), [EXPECTED])


def test_a_numpy_array_in_a_reference_cycle_does_not_count_as_kept(on_windows):
    def otherwise(x, kept):
        cycle = [x.detach().numpy()]
        cycle.append(cycle)
        return operations(x)

    f = run_until_on_windows(OnceOnWindows(otherwise))
    agree(jax.grad(f)(X + 0), EXPECTED)
    agree(jax.grad(f)(X + 0), EXPECTED)


def test_a_graph_that_is_kept_does_not_refer_to_memory_of_xla(on_windows):
    def otherwise(x, kept):
        h = x.sin()
        kept.append(h.grad_fn)
        return torch.tanh(x * x).exp() * h

    fn = OnceOnWindows(otherwise)
    f = run_until_on_windows(fn)
    x = X + 0
    _, pull = jax.block_until_ready(jax.vjp(f, x))
    leaf = fn.kept[0].next_functions[0][0].variable
    assert leaf.data_ptr() != x.unsafe_buffer_pointer()
    assert not leaf.any()
    del leaf
    agree(pull(jnp.float32(1))[0], EXPECTED)


def test_a_backward_that_fails_after_a_hook_has_kept_an_operand(on_windows):
    def failing(kept, tensor):
        kept.append(tensor.detach())
        raise ValueError("once")

    fn = OnceOnWindows(lambda x, kept: hooked(x, lambda t: failing(kept, t)), lambda x: hooked(x, lambda _: None))
    f = run_until_on_windows(fn)
    agree(jax.grad(f)(X + 0), EXPECTED)
    jax.block_until_ready(jax.grad(f)(X * 3))
    agree(fn.kept[0], X)


def test_an_intermediate_result_is_changed_between_forward_and_backward(on_windows):
    def otherwise(x, kept):
        kept.append(torch.tanh(x * x))  # which `tanh` saves
        return kept[0].exp() * x.sin()

    fn = OnceOnWindows(otherwise)
    f = run_until_on_windows(fn)
    _, pull = jax.block_until_ready(jax.vjp(f, X))
    with torch.no_grad():
        fn.kept[0].zero_()
    agree(pull(jnp.float32(1))[0], EXPECTED)


def test_a_function_that_frees_a_part_of_its_graph(on_windows):
    def otherwise(x, kept):
        h = torch.tanh(x * x)
        kept.append(torch.autograd.grad(h.sum(), x)[0])
        return h.exp() * x.sin()

    f = run_until_on_windows(OnceOnWindows(otherwise))
    agree(jax.grad(f)(X), EXPECTED)


def test_what_a_hook_keeps_in_the_backward_has_memory_of_its_own(on_windows):
    fn = OnceOnWindows(lambda x, kept: hooked(x, kept.append), lambda x: hooked(x, lambda _: None))
    f = run_until_on_windows(fn)
    agree(jax.grad(f)(X + 0), EXPECTED)
    assert fn.runs == ON_WINDOWS
    jax.block_until_ready(jax.grad(f)(X * 3))
    agree(fn.kept[0].detach(), X)


@pytest.mark.parametrize("fails", [False, True])
def test_a_function_that_writes_into_its_argument_is_seen(on_windows, fails):
    def otherwise(x, kept):
        with torch.no_grad():
            x[:2] = 7
        if fails:  # and is run again, on what it has written
            raise ValueError("once")
        return operations(x)

    f = run_until_on_windows(OnceOnWindows(otherwise))
    with raises(Exception, anywhere="changed args[0] in place"):
        jax.block_until_ready(jax.grad(f)(X + 0))


@pytest.mark.parametrize("call", [ON_COPIES, ON_WINDOWS])
@pytest.mark.parametrize("keep", [lambda x: x, lambda x: x[3:], torch.detach], ids=["itself", "a view", "detached"])
def test_a_checked_function_that_keeps_its_argument_raises_in_that_call(on_windows, keep, call):
    fn = OnceOnWindows(lambda x, kept: (kept.append(keep(x)), operations(x))[1], call=call)
    f = torch2jax(fn, arguments="check")
    for k in range(1, call):
        agree(jax.grad(f)(X * k), jax.grad(lambda x: operations_in_jnp(x).sum())(X * k))
    with raises(Exception, anywhere="keeps args[0], or something that refers to it, beyond the call"):
        jax.block_until_ready(jax.vjp(f, X + 0))
    assert fn.runs == call
    agree(jax.grad(f)(X), EXPECTED)
    assert not on_windows


def test_a_function_that_writes_in_a_call_with_hooks_is_seen(on_windows):
    def otherwise(x, kept):
        with torch.no_grad():
            x[:2] = 7
        return operations(x)

    f = torch2jax(OnceOnWindows(otherwise, call=8))
    for _ in range(3):
        jax.block_until_ready(jax.grad(f)(X))
    jitted = jax.jit(jax.grad(f))
    for _ in range(4):
        jax.block_until_ready(jitted(X))
    with raises(Exception, anywhere="changed args[0] in place"):  # an unchecked call
        jax.block_until_ready(jitted(X + 0))


def test_where_no_window_can_be_made_hooks_are_used(monkeypatch):
    def refuse(tensors):
        raise BufferError("no DLPack")

    monkeypatch.setattr(windows.extend, "Windows", refuse)
    f = torch2jax(lambda x: operations(x).sum())
    for _ in range(6):
        agree(jax.grad(f)(X), EXPECTED)
    assert "kept autograd graph" in f.explain()


@pytest.mark.parametrize("is_large", [False, True], ids=["at the limit", "beyond it"])
def test_operands_that_together_take_more_than_the_limit_are_recorded_with_hooks(monkeypatch, on_windows, is_large):
    """A closed window shows memory of `MOST_BYTES`, so none may be larger."""
    monkeypatch.setattr(window_policy, "MOST_BYTES", 2 * X.nbytes - is_large)
    f = torch2jax(lambda x, y: (operations(x) * y.cos()).sum())
    for k in range(1, 8):
        expected = jax.grad(lambda x, y: (operations_in_jnp(x) * jnp.cos(y)).sum(), argnums=(0, 1))(X * k, X)
        agree(jax.grad(f, argnums=(0, 1))(X * k, X), expected)
    assert bool(on_windows) is not is_large
    assert "kept autograd graph" in f.explain()


def test_a_function_that_gives_its_argument_other_memory(on_windows):
    def otherwise(x, kept):
        y = operations(x)
        kept.append(x.data)
        x.data = torch.zeros(N)
        return y

    fn = OnceOnWindows(otherwise)
    f = run_until_on_windows(fn)
    with raises(Exception, anywhere=("keeps an argument", "cannot move")):
        jax.block_until_ready(jax.grad(f)(X))
    fn.kept.clear()
    assert_nothing_escaped()


def test_a_function_that_fails_after_it_has_kept_its_argument(on_windows):
    def otherwise(x, kept):
        kept.append(x)
        raise ValueError("once")

    fn = OnceOnWindows(otherwise)
    f = run_until_on_windows(fn)
    agree(jax.grad(f)(X + 0), EXPECTED)
    agree(fn.kept[0].detach(), X)


def test_a_function_with_several_graphs_runs_seldom_again(on_windows):
    runs = []

    def fn(x):
        runs.extend([1] * (not x.is_meta))
        return operations(x[:] if x.requires_grad and len(runs) % 2 else x).sum()

    f = torch2jax(fn)
    for k in range(20):
        agree(jax.grad(f)(X * k / 9), jax.grad(lambda x: operations_in_jnp(x).sum())(X * k / 9))
    assert on_windows
    assert len(runs) <= 20 + 3


def test_a_graph_that_is_freed_while_it_waits(on_windows):
    f = torch2jax(lambda x: operations(x).sum())
    for k in range(1, ON_WINDOWS + 3):
        _, pull = jax.vjp(f, X * k)
        clear_residuals()
        agree(pull(jnp.float32(1))[0], jax.grad(lambda x: operations_in_jnp(x).sum())(X * k))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (x.data * x.sin()).sum(),
        lambda x: (torch.from_numpy(x.detach().numpy()) * x.sin()).sum(),
    ],
    ids=["data", "NumPy"],
)
def test_what_is_never_recorded_on_windows(on_windows, fn):
    f = torch2jax(fn)
    for k in range(1, 8):
        x = torch.from_numpy(np.array(X * k)).requires_grad_()
        fn(x).backward()
        agree(jax.grad(f)(X * k), x.grad, rtol=1e-3)
    assert not on_windows
