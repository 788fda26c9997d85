"""Arguments are lent: what a function keeps is a copy, and no memory is read after XLA has freed it."""

from __future__ import annotations

import functools
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from common import raises, warns
from helpers import UNCHECKED, JaxError, N, check_whole, churn, here, x
from t2j_core import ArgumentError, Size, T2jWarning, TensorEscapeError, TensorMutationError, last_error, torch2jax
from t2j_core.testing import counters

pytestmark = pytest.mark.usefixtures("nothing_escaped")

w = torch.ones(N, requires_grad=True)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t, weight):
        ctx.save_for_backward(t)
        return t * weight

    @staticmethod
    def backward(ctx, grad):
        (t,) = ctx.saved_tensors
        return None, grad * t


class AttributeProduct(Product):
    @staticmethod
    def forward(ctx, t, weight):
        ctx.kept = t
        return t * weight

    @staticmethod
    def backward(ctx, grad):
        return None, grad * ctx.kept


class Subclass(torch.Tensor):
    pass


def gradient(output):
    return torch.autograd.grad(output.sum(), w, retain_graph=True)[0]


def hooked(t):
    y = w * 1
    y.register_hook(lambda grad: grad * t)
    return y


def in_a_generator(t):
    def items():
        u = t
        yield 0
        yield u

    generator = items()
    next(generator)
    return functools.cache(lambda: next(generator))


def in_a_thread_local(t):
    store = threading.local()
    store.t = t
    return store


class Slots:
    __slots__ = ("t",)


def in_slots(t):
    holder = Slots()
    holder.t = t
    return holder


def checkpointed(t):
    product = lambda a, b: torch.sin(a) * 0 + a * b
    return torch.utils.checkpoint.checkpoint(product, t, w, use_reentrant=False)


def as_gradient(t):
    leaf = torch.zeros(N, requires_grad=True)
    leaf.grad = t
    return leaf


KEPT = {  # how it is kept, how to read it
    "tensor": (lambda t: t, lambda k: k),
    "view": (lambda t: t[:], lambda k: k),
    "reshaped": (lambda t: t.view(2, -1), lambda k: k.reshape(-1)),
    "tail": (lambda t: t[1:], lambda k: torch.cat([torch.zeros(1), k])),
    "unbound": (lambda t: t.unbind(), torch.stack),
    "complex_view": (lambda t: torch.view_as_complex(t.view(-1, 2)), lambda k: torch.view_as_real(k).reshape(-1)),
    "bytes_view": (lambda t: t.view(torch.uint8), lambda k: k.view(torch.float32)),
    "detached": (lambda t: t.detach(), lambda k: k),
    "subclass": (lambda t: t.as_subclass(Subclass), lambda k: k.as_subclass(torch.Tensor)),
    "parameter": (lambda t: torch.nn.Parameter(t), lambda k: k),
    "leaf": (lambda t: t.requires_grad_(), lambda k: k),
    "graph": (lambda t: t * w, gradient),
    "deep_graph": (lambda t: functools.reduce(lambda y, _: y + 0, range(300), t * w), gradient),
    "custom_graph": (lambda t: Product.apply(t, w), gradient),
    "graph_with_an_attribute": (lambda t: AttributeProduct.apply(t, w), gradient),
    "checkpoint": (checkpointed, gradient),
    "hook": (hooked, gradient),
    "gradient": (as_gradient, lambda k: k.grad),
    "exception": (lambda t: ValueError(t), lambda k: k.args[0]),
    "closure": (lambda t: lambda: t, lambda k: k()),
    "partial": (lambda t: functools.partial(torch.add, t), lambda k: k(0)),
    "method": (lambda t: t.add, lambda k: k(0)),
    "generator": (in_a_generator, lambda k: k()),
    "dict": (lambda t: {"a": [(t,)]}, lambda k: k["a"][0][0]),
    "slots": (in_slots, lambda k: k.t),
    "thread_local": (in_a_thread_local, lambda k: k.t),
    "storage": (lambda t: t.untyped_storage(), lambda k: torch.tensor([], dtype=torch.float32).set_(k)),
    "module": (lambda t: torch.nn.ParameterList([t]), lambda k: k[0]),
}


def check_kept(box, name):
    want = np.arange(N, dtype=np.float32)
    if name == "tail":
        want = np.where(want < 1, 0, want)
    for kept in box:
        np.testing.assert_array_equal(KEPT[name][1](kept).detach().numpy(), want)


@pytest.mark.thinned(6)
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("begins", [0, UNCHECKED])
@pytest.mark.parametrize("name", KEPT)
def test_a_kept_argument_has_memory_of_its_own(name, begins, jitted):
    flag, box = [], []

    def function(t):
        if flag:
            box.append(KEPT[name][0](t))
        return t + 1

    f = torch2jax(function, output_shapes=Size(N))
    call = jax.jit(f) if jitted else f
    for _ in range(begins):
        call(jnp.arange(float(N)))
    flag.append(1)
    with warns(T2jWarning, what="function keeps args[0]"):
        jax.block_until_ready(call(jnp.arange(float(N))))
    for _ in range(4):
        a = jnp.arange(float(N))
        np.testing.assert_array_equal(call(a), np.arange(N) + 1)
        a.delete()
        del a
    churn()
    check_kept(box, name)
    flag.clear()
    np.testing.assert_array_equal(call(jnp.zeros(N)), np.ones(N))
    check_kept(box, name)
    assert len(box) == 5
    assert counters()["escaped_calls"] == 0
    assert "args[0]: copied at every call, because the function keeps it" in f.explain()


kept_beside = []


def beside(others, kept):
    kept_beside.append(others)
    return kept


POINTERS = {
    "numpy": lambda t: t.numpy(),
    "numpy_of_a_view": lambda t: t[:100].numpy(),
    "numpy_of_one_view_of_many": lambda t: beside(t.unbind(), t[:100].numpy()),
    "memoryview": lambda t: memoryview(t.numpy()),
    "numpy_by_dlpack": lambda t: np.from_dlpack(t),
    "capsule": lambda t: torch.utils.dlpack.to_dlpack(t),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("keep", POINTERS.values(), ids=POINTERS)
def test_a_kept_pointer_leads_to_memory_of_its_own(keep, jitted):
    box = []
    f = torch2jax(lambda t: box.append(keep(t)) or t + 1, output_shapes=Size(N))
    call = jax.jit(f) if jitted else f
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", T2jWarning)
        for i in range(4):
            a = jnp.full(N, float(i))
            np.testing.assert_array_equal(call(a), np.full(N, i + 1.0))
            a.delete()
    churn()
    for i, kept in enumerate(box):
        array = torch.from_dlpack(kept) if type(kept).__name__ == "PyCapsule" else np.asarray(kept)
        np.testing.assert_array_equal(array, np.full(len(array), float(i)))
    kept_beside.clear()


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", ["numpy", "memoryview", "numpy_of_a_view", "numpy_of_one_view_of_many"])
def test_a_pointer_that_is_kept_later_is_an_error(name, jitted):
    """It cannot be moved, so it is not read here; letting go of it is safe."""
    flag, box = [], []

    def function(t):
        if flag:
            box.append(POINTERS[name](t))
        return t + 1

    f = torch2jax(function, output_shapes=Size(N))
    call = jax.jit(f) if jitted else f
    for _ in range(UNCHECKED):
        call(jnp.ones(N))
    flag.append(1)
    with pytest.raises((TensorEscapeError, *JaxError)):
        jax.block_until_ready(call(jnp.ones(N)))
    assert isinstance(last_error(), TensorEscapeError)
    check_whole(last_error(), "args[0]", "NumPy", 'arguments="copy"')
    churn()
    box.clear()
    kept_beside.clear()
    for _ in range(3):
        np.testing.assert_array_equal(call(jnp.ones(N)), np.full(N, 2.0))
    churn()
    assert len(box) == 3
    for kept in box:
        np.testing.assert_array_equal(np.asarray(kept)[:10], np.ones(10))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", KEPT)
def test_a_kept_argument_is_an_error_where_that_is_asked_for(name):
    flag, box = [1], []

    def function(t):
        if flag:
            box.append(KEPT[name][0](t))
        return t + 1

    f = torch2jax(function, output_shapes=Size(N), arguments="check")
    for _ in range(3):
        with raises(TensorEscapeError, what=("function", "args[0]"), remedy=("clone()", "detach()")):
            f(jnp.arange(float(N)))
    churn()
    check_kept(box, name)
    flag.clear()
    np.testing.assert_array_equal(f(jnp.zeros(N)), np.ones(N))
    assert "args[0]: checked at every call" in f.explain()


def test_a_written_argument_is_an_error_where_that_is_asked_for():
    flag = []

    def function(t):
        if flag:
            t.data.add_(1)
        return t * 1

    f = torch2jax(function, output_shapes=Size(2, 3), arguments="check")
    array = x * 1
    for _ in range(UNCHECKED):
        np.testing.assert_array_equal(f(array), here)
    flag.append(1)
    for _ in range(2):
        with raises(TensorMutationError, what="function changes args[0]", expected="f32[2,3]", got="it was a copy"):
            f(array)
    np.testing.assert_array_equal(array, here)


def test_arguments_that_are_always_copied_may_be_written_and_kept():
    box = []

    def function(t):
        box.append(t)
        t.data.add_(1)
        return t * 2

    f = torch2jax(function, output_shapes=Size(2, 3), arguments="copy")
    array = x * 1
    for call in (f, f, jax.jit(f)):
        np.testing.assert_array_equal(call(array), 2 * (here + 1))
    np.testing.assert_array_equal(array, here)
    assert [kept.tolist() for kept in box] == [(here + 1).tolist()] * 3
    assert 'args[0]: copied at every call, because of `arguments="copy"`' in f.explain()
    with pytest.raises(ArgumentError, match="`arguments`"):
        torch2jax(function, arguments="lend")


def test_the_warning_comes_once_for_each_argument_of_a_function():
    box = []
    f = torch2jax(lambda t, u: box.append((t, u)) or t + u, output_shapes=Size(3))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            f(jnp.ones(3), jnp.ones(3))
            jax.jit(lambda a: f(a, a) * 2)(jnp.ones(3))
    texts = sorted(str(w.message) for w in told)
    assert [w.category for w in told] == [T2jWarning] * 2
    assert "<lambda> keeps args[0]" in texts[0]
    assert "<lambda> keeps args[1]" in texts[1]
    assert all(w.filename == __file__ for w in told)


@pytest.mark.parametrize("arguments", ["auto", "copy", "check"])
def test_an_argument_lies_in_memory_as_a_new_tensor_at_every_call(arguments):
    """An image with one channel is no channels-last one: convolutions would return such."""
    seen = []
    shape = (2, 1, 4, 4)
    f = torch2jax(
        lambda t: seen.append((t.stride(), t._is_view())) or t.sum(), output_shapes=Size(), arguments=arguments
    )
    for _ in range(UNCHECKED):
        f(jnp.ones(shape))
    assert set(seen) == {(torch.ones(shape).stride(), False)}


def test_an_empty_argument_may_be_kept():
    box = []
    f = torch2jax(lambda t, u: box.append(t) or u + 1, output_shapes=Size(3))
    for _ in range(3):
        np.testing.assert_array_equal(f(jnp.ones((0, 4)), jnp.ones(3)), [2, 2, 2])
    assert [kept.shape for kept in box] == [(0, 4)] * 3


def test_an_argument_that_is_given_other_memory_while_its_own_is_kept():
    """No tensor leads to the lent memory any more, except one that only the function knows."""
    flag, box = [], []

    def function(t):
        if flag:
            box.append(t.detach())
            t.data = torch.zeros(N)
        return t + 1

    f = torch2jax(function, output_shapes=Size(N))
    for _ in range(UNCHECKED):
        f(jnp.ones(N))
    flag.append(1)
    with pytest.raises(TensorEscapeError):
        f(jnp.ones(N))
    box.clear()


def test_several_arguments_of_which_one_is_kept():
    box = []

    def function(a, b, c):
        box.append(b["w"][2:])
        return a + c

    f = torch2jax(function, output_shapes=Size(N))
    arrays = [jnp.full((N,), float(i)) for i in range(3)]
    with pytest.warns(T2jWarning, match=r"args\[1\]\['w'\]"):
        f(arrays[0], {"w": arrays[1]}, arrays[2])
    for i in (0, 2, 1):
        arrays[i].delete()
    churn()
    assert box[0].eq(1).all()


@pytest.mark.parametrize("begins", [0, UNCHECKED])
def test_an_argument_kept_by_a_call_that_also_raises(begins):
    box, calls = [], []

    def function(t):
        calls.append(1)
        if len(calls) <= begins:
            return t + 1
        box.append(t)
        raise KeyError("kept and raised")

    for jitted in (False, True):
        f = torch2jax(function, output_shapes=Size(N))
        call = jax.jit(f) if jitted else f
        a = jnp.arange(float(N))
        calls.clear()
        for _ in range(begins):
            call(a)
        with pytest.raises((KeyError, *JaxError)):
            jax.block_until_ready(call(a))
        assert isinstance(last_error(), KeyError)
        a.delete()
    churn()
    for kept in box:
        np.testing.assert_array_equal(kept.numpy(), np.arange(N))


def test_an_argument_kept_from_call_to_call():
    """The usual mistake: a cache of the previous input."""
    state = {}

    def function(t):
        previous = state.get("previous")
        state["previous"] = t
        return t if previous is None else t - previous

    f = torch2jax(function, output_shapes=Size(N))
    with pytest.warns(T2jWarning, match="keeps args"):
        np.testing.assert_array_equal(f(jnp.ones(N)), np.ones(N))
    for i in range(4):
        np.testing.assert_array_equal(f(jnp.full(N, i + 2.0)), np.ones(N))
