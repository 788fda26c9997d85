"""Arguments are lent: what a function writes or keeps is a copy, and no memory is read after XLA has freed it."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from t2j_core import (
    ArgumentError,
    PerformanceWarning,
    Size,
    T2jWarning,
    TensorEscapeError,
    TensorMutationError,
    _compat,
    j2t,
    last_error,
    module2jax,
    t2j,
    torch2jax,
)
from t2j_core._lowering import native
from t2j_core._run import comparing
from t2j_core._run.comparing import digest
from t2j_core.testing import assert_nothing_escaped, collect, counters, live_functions
from test_faults import JaxError, check_intact, check_text
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

N = 1 << 14
UNCHECKED = 5  # calls, after which one comes whose arguments are not checked
ONE = jax.block_until_ready(jnp.ones(1))  # where the inputs are there, JAX runs a call at once and raises at once
x = jnp.arange(6.0).reshape(2, 3)
here = np.arange(6.0, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def _intact():
    yield
    with pytest.raises(ZeroDivisionError):  # the last error keeps the frames it went through, and what they hold
        torch2jax(lambda t: 1 / 0, output_shapes=Size(1))(ONE)
    assert_nothing_escaped()
    check_intact()


@pytest.fixture(autouse=True, scope="module")
def _quick_collector():
    """Every escape runs the collector, which would look at all of JAX and PyTorch each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def churn() -> None:
    """Use memory again that may have been freed."""
    for size in (N, N // 2):
        arrays = [jnp.full((size,), -1.0) for i in range(30)]
        tensors = [torch.full((size,), -2.0) for i in range(30)]
        del arrays, tensors


# --- in-place changes that only the real call shows -------------------------------------------------------------------


def write_index(t):
    t[0, 0] = 7


def write_all(t):
    t[...] = 7


WRITES = {
    "add_": lambda t: t.add_(1),
    "index": write_index,
    "ellipsis": write_all,
    "augmented": lambda t: t.__iadd__(1),
    "view": lambda t: t.view(-1)[1:].mul_(2),
    "transposed": lambda t: t.T.mul_(2),
    "unbind": lambda t: t.unbind()[1].zero_(),
    "expanded_row": lambda t: t[0].fill_(3),
    "out": lambda t: torch.add(t, 1, out=t),
    "out_of_a_view": lambda t: torch.add(t[0], 1, out=t[1]),
    "detached": lambda t: t.detach().add_(1),
    "copy_": lambda t: t.copy_(t + 1),
    "foreach": lambda t: torch._foreach_add_([t], 1.0),
    "relu": lambda t: torch.nn.functional.relu(t, inplace=True),
    "scatter": lambda t: t.scatter_(0, torch.zeros(1, 3, dtype=torch.int64), 1.0),
    "no_grad": lambda t: torch.no_grad()(t.add_)(1),
    "random": lambda t: t.normal_(),
    "sort": lambda t: torch.sort(t, 0, out=(t, torch.empty(0, dtype=torch.int64))),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_a_function_that_writes_gets_a_copy(name, jitted):
    def function(first, tree):
        WRITES[name](tree["w"])
        return first + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    call = jax.jit(f) if jitted else f
    array = x * 1
    with pytest.warns(PerformanceWarning, match=r"function changes args\[1\]\['w'\] in place"):
        call(x, {"v": x, "w": array})
    for _ in range(5):
        np.testing.assert_array_equal(call(x, {"v": x, "w": array}), here + 1)
        np.testing.assert_array_equal(array, here)
    assert "args[1]['w']: copied at every call, because the function writes into it" in f.explain()


@pytest.mark.parametrize("name", WRITES)
def test_a_change_that_begins_later_is_told_and_does_not_happen_again(name):
    flag = []

    def function(first, tree):
        if flag:
            WRITES[name](tree["w"])
        return first + 1

    for jitted in (False, True):
        f = torch2jax(function, output_shapes=Size(2, 3))
        call = jax.jit(f) if jitted else f
        flag.clear()
        for _ in range(UNCHECKED):
            np.testing.assert_array_equal(call(x, {"v": x, "w": x * 1}), here + 1)
        flag.append(1)
        with pytest.raises((TensorMutationError, *JaxError)) as info:
            jax.block_until_ready(call(x, {"v": x, "w": x * 1}))
        assert isinstance(last_error(), TensorMutationError)
        check_text(last_error(), "args[1]['w']", "f32[2,3]", "HAS BEEN CHANGED", "clone()", "mutable_argnums")
        if not jitted:
            assert info.value is last_error()
        array = x * 1
        for _ in range(5):
            np.testing.assert_array_equal(call(x, {"v": x, "w": array}), here + 1)
        np.testing.assert_array_equal(array, here)


def write_by_dlpack(t):
    torch.from_dlpack(torch.utils.dlpack.to_dlpack(t)).fill_(5)


def write_in_inference_mode(t):
    with torch.inference_mode():
        t.detach().view(-1).data.mul_(3)


SILENT = {  # what torch's version counter does not show
    "data": lambda t: t.data.add_(3),
    "numpy": lambda t: t.numpy().__setitem__(0, 5.0),
    "numpy_of_a_view": lambda t: t[1:].numpy().fill(5),
    "memoryview": lambda t: memoryview(t.numpy()).__setitem__((0, 0), 5.0),
    "dlpack": write_by_dlpack,
    "storage": lambda t: t.untyped_storage().fill_(1),
    "inference_mode": write_in_inference_mode,
    "batch_norm": lambda t: torch.nn.functional.batch_norm(torch.rand(4, 3), t[0], t[1], training=True),
    "instance_norm": lambda t: torch.nn.functional.instance_norm(torch.rand(1, 3, 4), t[0], t[1]),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", SILENT)
def test_a_change_that_torch_does_not_count(name, jitted):
    def function(t, u):
        SILENT[name](t)
        return t + u

    f = torch2jax(function, output_shapes=Size(2, 3))
    call = jax.jit(f) if jitted else f
    array, other = x + 1, x * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerformanceWarning)
        for _ in range(9):
            torch.manual_seed(0)
            want = function(torch.tensor(here + 1), torch.tensor(here * 2))
            torch.manual_seed(0)
            np.testing.assert_allclose(call(array, other), want, rtol=1e-6)
            np.testing.assert_array_equal(array, here + 1)
            np.testing.assert_array_equal(other, here * 2)


@pytest.mark.parametrize("name", SILENT)
def test_such_a_change_that_begins_later_ends_at_the_next_check(name):
    flag = []

    def function(t):
        if flag:
            SILENT[name](t)
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    call = jax.jit(f)
    for _ in range(7):
        call(x * 1)
    flag.append(1)
    with pytest.warns(T2jWarning, match="ARRAYS OF EARLIER CALLS MAY HAVE BEEN CHANGED"):
        call(x * 1)  # the eighth
    array = x * 1
    for _ in range(10):
        call(array)
    np.testing.assert_array_equal(array, here)


def test_numbers_that_differ_from_themselves_are_not_changed_by_being_read():
    nans = jnp.array([[jnp.nan, -0.0, jnp.inf]] * 2)
    f = torch2jax(lambda t: t + 0, output_shapes=Size(2, 3))
    for _ in range(5):
        np.testing.assert_array_equal(f(nans), nans)
    assert "lent, not copied" in f.explain()


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "bfloat16", "complex64", "float8_e5m2"])
def test_a_change_of_other_dtypes(dtype):
    array = jnp.ones(5, dtype)

    def function(t):
        t.view(torch.uint8).numpy()[:] = 0
        return t.view(torch.uint8).sum()

    f = torch2jax(function, output_shapes=jax.ShapeDtypeStruct((), jnp.int32))
    with pytest.warns(PerformanceWarning, match="in place"):
        assert int(f(array)) == 0
    assert int(f(array)) == 0
    assert (array == jnp.ones(5, dtype)).all()


def run_with_little_room(code):
    """Run code in a process that has no room for copies of arguments."""
    environment = {**os.environ, "T2J_CHECKED_BYTES": "1000"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_argument_too_large_to_be_copied_is_compared_by_a_digest():
    run_with_little_room("""
        import jax, jax.numpy as jnp
        from t2j_core import Size, last_error, torch2jax

        def function(t):
            if writes:
                t.numpy()[t.shape[0] // 2] = 5
            return t + 1

        f = jax.jit(torch2jax(function, output_shapes=Size(1000)))
        writes, x = False, jnp.zeros(1000)
        for _ in range(3):
            assert (f(x) == 1).all()
        writes = True
        try:
            f(x)  # the fourth
        except Exception:
            assert "HAS BEEN CHANGED" in str(last_error())
        else:
            raise SystemExit("not noticed")
        x = jnp.zeros(1000)
        for _ in range(6):
            assert f(x)[500] == 6
        assert (x == 0).all()
    """)


@pytest.mark.parametrize("size", [1, 7, 8, 9, (1 << 24) + 5])
def test_a_digest_shows_every_bit_and_every_move(size):
    numbers = lambda tensor: tuple(digest(tensor).tolist())
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    seen = {numbers(data)}
    for place in {0, size // 2, size - 1}:
        for bit in (1, 128):
            other = data.clone()
            other[place] ^= bit
            seen.add(numbers(other))
    assert len(seen) == 1 + 2 * len({0, size // 2, size - 1})
    words = torch.arange(min(size, 1000))
    assert size == 1 or numbers(words) != numbers(words.flip(0))
    assert numbers(words) == numbers(words.clone())


def test_a_large_argument_that_is_kept_is_moved():
    run_with_little_room("""
        import warnings
        import jax.numpy as jnp
        from t2j_core import Size, T2jWarning, torch2jax

        kept = []
        f = torch2jax(lambda t: kept.append(t) or t + 1, output_shapes=Size(1000))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for i in range(4):
                x = jnp.full(1000, float(i))
                assert (f(x) == i + 1).all()
                x.delete()
        others = [jnp.full(1000, 9.0) for _ in range(30)]
        assert [float(t.mean()) for t in kept] == [0, 1, 2, 3]
        assert [w.category for w in told] == [T2jWarning]
    """)


def test_what_is_not_a_change():
    def reads(t):
        t.requires_grad_()
        (t * t).sum().backward()
        u = t.detach().clone()
        u.add_(1)
        t.data  # noqa: B018
        with torch.no_grad():
            t.view(-1), t.numpy().sum(), t.tolist(), list(t), repr(t), t.storage_offset()
        return t.grad + u

    for f in (torch2jax(reads), torch2jax(reads, output_shapes=Size(2, 3))):
        for call in (f, f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), 3 * here + 1)


def test_only_the_shape_of_the_tensor_object_changes():
    def function(t):
        t.unsqueeze_(0)
        return t + 1

    with pytest.warns(UserWarning, match=r"changes args\[0\] in place"):
        np.testing.assert_array_equal(torch2jax(function)(x)[0], here + 1)
    np.testing.assert_array_equal(x, here)


def test_another_tensor_put_in_the_place_of_the_argument():
    def function(t):
        t.data = torch.ones(3)
        return t + 1

    f = torch2jax(function, output_shapes=Size(3))
    for call in (f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), [2, 2, 2])
    np.testing.assert_array_equal(x, here)


def test_a_changed_array_given_twice():
    def function(t, u):
        t.add_(1)
        return t + u

    with pytest.warns(UserWarning, match=r"changes args\[0\] in place"):
        f = torch2jax(function, x, x)
    for call in (f, jax.jit(f), jax.jit(lambda a: f(a, a))):
        out = call(x) if call is not f and call.__name__ == "<lambda>" else call(x, x)
        np.testing.assert_array_equal(out, 2 * here + 1)
    np.testing.assert_array_equal(x, here)


def test_the_arguments_memory_cannot_be_resized_or_taken():
    for action in (
        lambda t: t.untyped_storage().resize_(0),
        lambda t: t.resize_(100),
        lambda t: t.untyped_storage().resize_(10_000),
    ):

        def function(t, action=action):
            action(t)
            return t + 1

        with pytest.raises((RuntimeError, TensorMutationError)):
            torch2jax(function, output_shapes=Size(2, 3))(x)
    np.testing.assert_array_equal(x, here)


# --- tensors that outlive the call ------------------------------------------------------------------------------------

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
    with pytest.warns(T2jWarning, match=r"function keeps args\[0\], or something that refers to it"):
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


POINTERS = {
    "numpy": lambda t: t.numpy(),
    "numpy_of_a_view": lambda t: t[:100].numpy(),
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


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", ["numpy", "memoryview", "numpy_of_a_view"])
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
    check_text(last_error(), "args[0]", "NumPy", 'arguments="copy"')
    churn()
    box.clear()
    for _ in range(3):
        np.testing.assert_array_equal(call(jnp.ones(N)), np.full(N, 2.0))
    churn()
    assert len(box) == 3
    for kept in box:
        np.testing.assert_array_equal(np.asarray(kept)[:10], np.ones(10))


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_argument_is_an_error_where_that_is_asked_for(name):
    flag, box = [1], []

    def function(t):
        if flag:
            box.append(KEPT[name][0](t))
        return t + 1

    f = torch2jax(function, output_shapes=Size(N), arguments="check")
    for _ in range(3):
        with pytest.raises(TensorEscapeError) as info:
            f(jnp.arange(float(N)))
        check_text(info.value, "function", "args[0]", "clone()", "detach()")
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
        with pytest.raises(TensorMutationError, match=r"function changes args\[0\] in place"):
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


def test_an_argument_kept_by_a_call_that_also_raises():
    box = []

    def function(t):
        box.append(t)
        raise KeyError("kept and raised")

    for jitted in (False, True):
        f = torch2jax(function, output_shapes=Size(N))
        a = jnp.arange(float(N))
        with pytest.raises((KeyError, *JaxError)):
            jax.block_until_ready((jax.jit(f) if jitted else f)(a))
        assert isinstance(last_error(), KeyError)
        a.delete()
    churn()
    for kept in box:
        np.testing.assert_array_equal(kept.numpy(), np.arange(N))


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


def test_the_caches_of_an_autocast_around_the_call_keep_nothing():
    def function(t):
        t.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (t @ t.mT).float().detach() + 0 * t.detach()

    f = torch2jax(function, output_shapes=Size(3, 3))
    with torch.autocast("cpu", dtype=torch.float16):
        for _ in range(4):
            np.testing.assert_array_equal(f(jnp.ones((3, 3))), np.full((3, 3), 3.0))
    assert_nothing_escaped()


@pytest.mark.parametrize("keep", [lambda t: t, lambda t: t.numpy(), lambda t: t[1:]], ids=["tensor", "numpy", "view"])
def test_a_large_result_that_the_function_keeps_and_writes(keep):
    """The function's cache is no alias of what JAX got."""
    kept = []

    def function(t):
        y = torch.sin(t)
        for old in kept:
            old[:] = 7
        if not t.is_meta:
            kept.append(keep(y))
        return y

    f = torch2jax(function)
    results = [f(jnp.full(1 << 19, float(i))) for i in range(4)]
    for i, result in enumerate(results):
        np.testing.assert_allclose(result, np.sin(np.full(1 << 19, float(i), np.float32)), rtol=1e-5)


@pytest.mark.parametrize("same_program", [True, False])
def test_a_pointer_to_a_large_result_that_is_kept_later_is_an_error_once(same_program, monkeypatch):
    # Torch before 2.10 copies results once its compiler is loaded, which another test may have done.
    monkeypatch.setattr(_compat, "dynamo_is_loaded", lambda: False)
    flag, kept = [], []

    def function(t):
        y = t * 2
        if flag:
            kept.append(y.numpy())
        return y

    wrapped = torch2jax(function)
    f = jax.jit(wrapped) if same_program else jax.jit(lambda t: wrapped(t))
    size = 1 << 19
    for i in range(UNCHECKED):
        np.testing.assert_array_equal(f(jnp.full(size, float(i))), np.full(size, 2.0 * i))
    f = f if same_program else jax.jit(lambda t: wrapped(t))
    flag.append(1)
    with pytest.raises((TensorEscapeError, *JaxError)):
        jax.block_until_ready(f(jnp.full(size, 1.0)))
    check_text(last_error(), "function keeps output", 'outputs="copy"')
    kept.clear()
    results = [f(jnp.full(size, float(i))) for i in range(3)]
    for array in kept:
        array.fill(77)
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, np.full(size, 2.0 * i))


# --- no false alarms --------------------------------------------------------------------------------------------------


def cycle(t):
    a = {}
    a["self"], a["t"] = a, t
    return t + 1


def recursive_closure(t):
    def down(n):
        return t + 1 if n == 0 else down(n - 1)

    return down(3)


def caught_exception(t):
    saved = None
    try:
        raise ValueError(t)
    except ValueError as error:
        saved = error
    return saved.args[0] + 1


def stored_traceback(t):
    try:
        raise ValueError("x")
    except ValueError as error:
        error.back = error
    return t + 1


def dropped_graph(t):
    v = torch.ones(2, 3, requires_grad=True)
    y = v * t
    return (torch.autograd.grad(y.sum(), v, create_graph=True)[0] + 1).detach()


def graph_returned(t):
    return torch.nn.Parameter(torch.ones(3)) * t + 1


def finished_generator(t):
    return sum(u for u in (t, torch.ones(3)))


def unfinished_generator(t):
    next(v for v in (t, t))
    return t + 1


def joined_thread(t):
    out = []
    thread = threading.Thread(target=lambda: out.append(t + 1))
    thread.start()
    thread.join()
    return out[0]


def cached_in_the_call(t):
    cache = functools.lru_cache(lambda: t)
    return cache() + 1


def returned_view(t):
    return t.expand(1, 2, 3)[0] + 1


def weakly(t):
    reference = weakref.ref(t)
    return reference() + 1


FINE = [
    cycle,
    recursive_closure,
    caught_exception,
    stored_traceback,
    dropped_graph,
    graph_returned,
    finished_generator,
    unfinished_generator,
    joined_thread,
    cached_in_the_call,
    returned_view,
    weakly,
]


@pytest.mark.parametrize("function", FINE)
def test_no_false_alarm(function):
    for f in (torch2jax(function), torch2jax(function, output_shapes=Size(2, 3))):
        for call in (f, f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), here + 1)


@pytest.mark.parametrize("function", [cycle, recursive_closure, caught_exception])
def test_no_false_alarm_without_the_collector(function):
    """A cycle is only found by the collector, which some programs switch off."""
    gc.disable()
    try:
        f = torch2jax(function, output_shapes=Size(2, 3))
        for call in (f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), here + 1)
    finally:
        gc.enable()


@pytest.mark.parametrize("function", [cycle, recursive_closure, caught_exception])
def test_no_false_alarm_while_another_thread_collects(function):
    """Then `gc.collect()` of this thread does nothing."""
    f = torch2jax(function, output_shapes=Size(2, 3))
    np.testing.assert_array_equal(f(x), here + 1)
    collecting = threading.Event()

    def linger(phase, info):
        if phase == "start" and threading.current_thread() is other:
            collecting.set()
            time.sleep(0.2)

    other = threading.Thread(target=gc.collect)
    gc.callbacks.append(linger)
    try:
        other.start()
        collecting.wait()
        assert gc.collect() == 0
        np.testing.assert_array_equal(f(x), here + 1)
    finally:
        gc.callbacks.remove(linger)
        other.join()


def test_a_call_amid_the_collection_of_its_own_thread():
    f = torch2jax(lambda t: t + 1, output_shapes=Size(2, 3))
    results = []

    def call(phase, info):
        if phase == "start":
            results.append(f(x))

    gc.callbacks.append(call)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(call)
    np.testing.assert_array_equal(results[0], here + 1)


def test_a_tensor_of_its_own_may_be_kept():
    box = []

    def function(t):
        box.extend([t.clone(), t + 1, (t * w[:6].view(2, 3)).detach()])
        return box[-2]

    f = torch2jax(function, output_shapes=Size(2, 3))
    for call in (f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), here + 1)
    churn()
    assert all(np.array_equal(kept.numpy(), want) for kept, want in zip(box, [here, here + 1, here] * 2, strict=True))


def test_results_stay_when_the_function_changes_what_it_returned():
    state = torch.zeros(3)

    def function(t):
        state.add_(1)
        return state

    f = torch2jax(function, output_shapes=Size(3))
    results = [f(jnp.ones(3)) for _ in range(4)]
    assert [float(r[0]) for r in results] == [1, 2, 3, 4]


def test_dropped_wrappers_are_freed():
    collect(passes=2)
    before, sites = live_functions(), counters()["live_sites"]
    references = []

    class Model:
        def __call__(self, t):
            return t + 1

    for i in range(20):
        model = Model()
        references.append(weakref.ref(model))
        f = torch2jax(model, name=None if i % 2 else f"dropped{i}")
        np.testing.assert_array_equal(f(x), here + 1)
        np.testing.assert_array_equal(jax.jit(lambda a, f=f: f(a) * 2)(x), 2 * here + 2)
        del f, model
    collect(passes=2)
    alive = sum(reference() is not None for reference in references)
    assert alive <= 10, "functions without a name must go; names stay registered"
    assert live_functions() - before <= 10
    assert counters()["live_sites"] - sites <= 10


@pytest.mark.parametrize("differs_at", [None, 0, 5, 99])
def test_blocks_are_compared_as_the_whole_is(monkeypatch, differs_at):
    monkeypatch.setattr(comparing, "_BLOCK", 7)
    first, second = torch.arange(25.0), torch.arange(25.0)
    if differs_at is not None:
        second.view(torch.uint8)[differs_at] ^= 1
    same = differs_at is None
    assert comparing.has_same_bits(first, second.untyped_storage()) == same
    assert bool(comparing._are_same(*map(comparing.bytes_of, (first, second)))) == same
    assert not comparing.has_same_bits(first, torch.ones(3))
    assert not bool(comparing._are_same(first.view(torch.uint8), torch.ones(3, dtype=torch.uint8)))


def test_results_that_are_copied_together_keep_their_bits():
    names = ("float32", "float8_e5m2", "uint16", "uint32", "uint64", "bool", "complex64", "bfloat16", "int64")
    sources = [torch.arange(6).to(getattr(torch, name)).reshape(2, 3) for name in names for _ in range(2)]
    destinations = [torch.zeros_like(source) for source in sources]
    native._copy_all(destinations, [s.requires_grad_() if s.dtype == torch.float32 else s for s in sources])
    for mine, other in zip(destinations, sources, strict=True):
        assert mine.detach().view(torch.uint8).tolist() == other.detach().view(torch.uint8).tolist()
