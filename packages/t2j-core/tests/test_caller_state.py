"""The thread state of torch around a call: the function does not see the caller's, and the caller's is as before."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import here, observe, x
from t2j_core import Size, torch2jax
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("intact")


class Counting(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class Named(TorchFunctionMode):
    """Notes its name at each operation."""

    def __init__(self, name, names):
        super().__init__()
        self.name, self.names = name, names

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(self.name)
        return func(*args, **(kwargs or {}))


class Dispatching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def fake_mode():
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def several():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"), Counting(), Dispatching():
        yield


CONTEXTS = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast_off": lambda: torch.autocast("cpu", enabled=False),
    "device": lambda: torch.device("meta"),
    "default_device": default_device,
    "function_mode": Counting,
    "dispatch_mode": Dispatching,
    "fake_mode": fake_mode,
    "several": several,
    "disabled_subclasses": torch._C.DisableTorchFunctionSubclass,
    "saved_tensors_hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t * 0, lambda t: t),
}


def state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._is_torch_function_enabled(),
    )


untold = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="torch before 2.7 does not tell whether a thread has such hooks",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=untold) if name == "saved_tensors_hooks" else name for name in CONTEXTS]
)
def test_the_callers_state_does_not_reach_the_function(name):
    """Neither at inference nor at a call, eagerly or under jit; and it is as before afterwards."""
    f = torch2jax(observe)
    g = jax.jit(f)
    declared = torch2jax(observe, output_shapes=(Size(2, 3), Size(2, 2), Size(8)))
    for call in (f, declared, f, g, f, g, declared):
        with CONTEXTS[name]():
            before = state()
            grad, product, seen = call(x)
            assert state() == before
        np.testing.assert_array_equal(seen, np.ones(8))
        np.testing.assert_array_equal(grad, 2 * here)
        np.testing.assert_array_equal(product, here @ np.ones((3, 2), np.float32))


def test_modes_of_the_caller_keep_their_order():
    f, names = torch2jax(lambda t: t + 1), []
    with Named("outer", names), Named("inner", names):
        for _ in range(3):  # the first call also infers
            f(x)
            names.clear()
            torch.ones(1) + 1
            assert names == ["inner", "outer"] * 2


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_callers_state_is_restored_after_an_exception(name):
    flag = []

    def function(t):
        if flag:
            raise KeyError("in a context")
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    with CONTEXTS[name]():
        before = state()
        np.testing.assert_array_equal(f(x), here + 1)
        flag.append(1)
        for _ in range(2):
            with pytest.raises(KeyError):
                f(x)
            assert state() == before
        flag.clear()
        np.testing.assert_array_equal(f(x), here + 1)
        with pytest.raises(ZeroDivisionError):
            torch2jax(lambda t: 1 / 0)(x)
        assert state() == before


@pytest.mark.parametrize(
    "transform",
    [
        lambda g: torch.func.grad(lambda r: g(r).sum()),
        lambda g: torch.func.vmap(g),
        lambda g: lambda r: torch.func.jvp(g, (r,), (r,))[1],
        lambda g: lambda r: torch.func.vjp(g, r)[1](r)[0],
        lambda g: torch.func.functionalize(g),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_call_beside_a_transformation_of_functorch(transform):
    """The call has no part in the transformation: it is a constant there."""
    f = torch2jax(observe)
    for _ in range(2):
        out = transform(lambda r: r * torch.from_numpy(np.array(f(x)[0])))(torch.ones(2, 3))
        assert out.shape[-1] == 3


def test_modes_see_none_of_the_calls_operations():
    f = torch2jax(observe)
    for mode in (Counting(), Dispatching()):
        with mode:
            for _ in range(3):
                f(x)
        assert mode.calls == 0


def test_torch_functions_that_change_the_thread_do_not_change_later_calls():
    def function(t):
        seen = torch.tensor([float(torch.is_grad_enabled()), float(torch.is_autocast_enabled("cpu"))])
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", True)
        return seen

    f = torch2jax(function, output_shapes=Size(2))
    try:
        for call in (f, f, f, jax.jit(f), jax.jit(f)):
            np.testing.assert_array_equal(call(x), [1, 0])
        np.testing.assert_array_equal(torch2jax(observe)(x)[2], np.ones(8))
    finally:
        torch.set_grad_enabled(True)
        torch.set_autocast_enabled("cpu", False)


def test_the_callers_gradient_mode_is_restored_after_every_call():
    def function(t):
        torch.set_grad_enabled(False)
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    after = []
    try:
        for _ in range(5):
            f(x)
            after.append(torch.is_grad_enabled())
    finally:
        torch.set_grad_enabled(True)
    assert after == [True] * 5


def test_a_level_of_forward_mode_that_a_failing_function_leaves_open(caplog):
    def function(t):
        torch.autograd.forward_ad.enter_dual_level()
        raise ValueError("after it has entered the level")

    f = torch2jax(function, output_shapes=Size(2, 3))
    for _ in range(2):
        with pytest.raises(ValueError, match="entered the level"):
            f(x)
        assert torch.autograd.forward_ad._current_level == -1
    assert "function left a level of forward mode open" in caplog.text


def test_a_function_that_leaves_a_mode_behind():
    left = []

    def function(t):
        mode = Counting()
        mode.__enter__()
        left.append(mode)
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    try:
        for _ in range(4):
            np.testing.assert_array_equal(f(x), here + 1)
    finally:
        while torch._C._len_torch_function_stack():
            torch.overrides._pop_mode()
    np.testing.assert_array_equal(torch2jax(observe)(x)[2], np.ones(8))


def test_the_default_dtype_of_torch_may_change():
    f = torch2jax(lambda t: torch.ones(3) * t)
    try:
        for dtype in (torch.float32, torch.float64, torch.float16, torch.float32):
            torch.set_default_dtype(dtype)
            out = f(jnp.arange(3.0))
            assert out.dtype == jnp.float32
            np.testing.assert_array_equal(out, np.arange(3))
            np.testing.assert_array_equal(torch2jax(lambda t: t * torch.ones(3))(jnp.arange(3.0)), np.arange(3))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_inference_leaves_the_generators_of_torch_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    f = torch2jax(lambda t: t + torch.rand(3).sum())
    jax.eval_shape(f, x)
    assert torch.equal(torch.rand(3), want)
