"""An escape moves what was lent, not the user's tensors over the same memory; other calls and threads go on."""

from __future__ import annotations

import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import UNCHECKED, N, churn, here, x
from t2j_core import Size, T2jWarning, j2t, module2jax, t2j, torch2jax
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

pytestmark = pytest.mark.usefixtures("nothing_escaped")

w = torch.ones(N, requires_grad=True)


@pytest.mark.filterwarnings("ignore:f keeps")
def test_another_thread_may_let_go_a_moment_later():
    # So do the threads of torch's autograd, of which each GPU has one.
    def f(t):
        held, taken = [t], threading.Event()

        def hold():
            taken.set()
            time.sleep(0.0005)
            held.clear()

        threading.Thread(target=hold).start()
        taken.wait()
        return t + 1

    g = jax.jit(torch2jax(f, output_shapes=Size((2, 3))))
    for _ in range(20):
        np.testing.assert_array_equal(g(x), here + 1)


@pytest.mark.parametrize("begins", [0, UNCHECKED])
def test_another_thread_may_hold_an_argument_for_long(begins):
    flag, leave, sums, threads = [], threading.Event(), [], []

    def function(t):
        taken = threading.Event()

        def work(u):
            taken.set()
            leave.wait(60)
            sums.append(float(u.sum()))

        if flag:
            threads.append(threading.Thread(target=work, args=(t,)))
            threads[-1].start()
            taken.wait(60)
        return t + 1

    f = torch2jax(function, output_shapes=Size(N))
    for _ in range(begins):
        f(jnp.ones(N))
    flag.append(1)
    with pytest.warns(T2jWarning, match="keeps args"):
        f(jnp.ones(N))
    churn()
    leave.set()
    for thread in threads:
        thread.join()
    assert sums == [N]


@pytest.mark.parametrize("origin", ["torch", "numpy", "module"])
def test_memory_that_torch_owns_stays_where_it_is(origin):
    """An escape moves what was lent, and nothing of the user's that lies over the same memory."""
    box = []
    if origin == "module":
        module = torch.nn.Linear(1 << 10, 1 << 10, bias=False)
        owner = module.weight.detach()
        keeps = torch.nn.Module.register_forward_pre_hook
        keeps(module, lambda m, args: box.append(m.weight) if not args[0].is_meta else None)
        apply, variables = module2jax(module, output_shapes=Size(1, 1 << 10))
        array = variables["params"]["weight"]
        ones = jax.block_until_ready(jnp.ones((1, 1 << 10)))
        call = lambda: apply(variables, ones)
    else:
        owner = torch.randn(1 << 20) if origin == "torch" else torch.from_numpy(np.random.randn(1 << 20).astype("f"))
        array = jax.block_until_ready(t2j(owner))
        keeping = torch2jax(lambda t: box.append(t) or t + 1, output_shapes=Size(1 << 20))
        call = lambda: keeping(array)
    shared = array.unsafe_buffer_pointer() == owner.data_ptr()
    address, want = owner.data_ptr(), owner.numpy().copy()
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", T2jWarning)
            call()
    assert len(box) == 2
    churn()
    others = [torch.full_like(owner, 7.0) for _ in range(10)]
    assert owner.data_ptr() == address
    assert (array.unsafe_buffer_pointer() == owner.data_ptr()) == shared
    np.testing.assert_array_equal(np.asarray(array), want)
    np.testing.assert_array_equal(owner.numpy(), want)
    for kept in box:
        np.testing.assert_array_equal(kept.detach().numpy(), want)
    del others


def test_storages_that_only_weak_references_refer_to_stay_dead():
    """Regression: before torch 2.10 the search for an escaped tensor found them, and freed them twice."""
    kept = []
    f = torch2jax(lambda t: kept.append(t) or t + 1, output_shapes=Size(N))
    dead = []
    for _ in range(100):
        tensor = torch.ones(3)
        dead.append(StorageWeakRef(tensor.untyped_storage()))
        del tensor
    with pytest.warns(T2jWarning, match="keeps"):
        f(jax.block_until_ready(jnp.ones(N)))
    others = [torch.ones(3) for _ in range(100)]  # perhaps where a storage was that is freed by mistake
    assert all(weak.expired() for weak in dead)
    del others


def test_tensors_without_data_are_passed_over_in_silence():
    with FakeTensorMode():
        fake = torch.ones(3)
    kept = []

    def keep(x):
        kept.append(x)
        return x + 1

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch2jax(keep)(jnp.ones(3))
    assert [w.category for w in warned] == [T2jWarning]
    assert kept[-1].tolist() == [1.0, 1.0, 1.0]
    assert fake.shape == (3,)


def test_a_tensor_over_the_array_that_the_caller_holds_stays():
    """`j2t` keeps the array alive by itself; it has nothing to do with the call."""
    box = []
    a = jnp.arange(float(N))
    mine = j2t(a)
    address = mine.data_ptr()
    with pytest.warns(T2jWarning, match="keeps"):
        torch2jax(lambda t: box.append(t) or t + 1, output_shapes=Size(N))(a)
    assert mine.data_ptr() == address == a.unsafe_buffer_pointer()
    del a
    churn()
    np.testing.assert_array_equal(mine.numpy(), np.arange(N))
    np.testing.assert_array_equal(box[0].numpy(), np.arange(N))


def test_an_escape_beside_another_running_call_over_the_same_array():
    """The other call's tensors are lent too, and in use."""
    a = jnp.arange(float(N))
    inside, done, box = threading.Event(), threading.Event(), []
    addresses = []

    def slow(t):
        addresses.append(t.data_ptr())
        inside.set()
        done.wait(20)
        addresses.append(t.data_ptr())
        return t * 2

    results = []
    f = torch2jax(slow, output_shapes=Size(N))
    thread = threading.Thread(target=lambda: results.append(np.asarray(f(a))))
    thread.start()
    assert inside.wait(20)
    try:
        with pytest.warns(T2jWarning, match="keeps"):
            torch2jax(lambda t: box.append(t) or t + 1, output_shapes=Size(N))(a)
    finally:
        done.set()
        thread.join()
    assert addresses[0] == addresses[1]
    np.testing.assert_array_equal(results[0], 2 * np.arange(N))
    np.testing.assert_array_equal(box[0].numpy(), np.arange(N))
