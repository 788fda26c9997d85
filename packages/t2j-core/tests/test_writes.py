"""Arguments are lent: what a function writes is a copy, and a change of the array itself is an error."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import warns
from helpers import UNCHECKED, JaxError, check_whole, here, x
from t2j_core import PerformanceWarning, Size, T2jWarning, TensorMutationError, last_error, torch2jax

pytestmark = pytest.mark.usefixtures("nothing_escaped")


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


@pytest.mark.thinned(3)
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_a_function_that_writes_gets_a_copy(name, jitted):
    def function(first, tree):
        WRITES[name](tree["w"])
        return first + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    call = jax.jit(f) if jitted else f
    array = x * 1
    with warns(PerformanceWarning, what="function changes args[1]['w']"):
        call(x, {"v": x, "w": array})
    for _ in range(5):
        np.testing.assert_array_equal(call(x, {"v": x, "w": array}), here + 1)
        np.testing.assert_array_equal(array, here)
    assert "args[1]['w']: copied at every call, because the function writes into it" in f.explain()


@pytest.mark.thinned(3)
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
        check_whole(last_error(), "args[1]['w']", "f32[2,3]", "HAS BEEN CHANGED", "clone()", "mutable_argnums")
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


@pytest.mark.thinned(3)
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
    with warns(T2jWarning, what=("function changes args[0]", "EARLIER CALLS")):
        call(x * 1)  # the eighth
    array = x * 1
    for _ in range(10):
        call(array)
    np.testing.assert_array_equal(array, here)


@pytest.mark.parametrize(("begins", "kind"), [(2, PerformanceWarning), (4, T2jWarning)])
def test_the_third_call_is_the_first_that_is_lent_its_arguments(begins, kind):
    calls = []

    def function(t):
        calls.append(1)
        if len(calls) == begins:
            SILENT["data"](t)
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    for _ in range(begins - 1):
        f(x * 1)
    with warns(kind, times=1, what="function changes args[0]") as told:
        f(x * 1)
    assert ("EARLIER CALLS" in str(told[0].message)) == (begins == 4)


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


def test_only_the_shape_of_the_tensor_object_changes():
    def function(t):
        t.unsqueeze_(0)
        return t + 1

    with warns(PerformanceWarning, what="changes args[0]"):
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

    with warns(PerformanceWarning, what="changes args[0]"):
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
