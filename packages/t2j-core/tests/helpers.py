"""Inputs and checks of the tests of faults: each fault is a typed error, and everything works afterwards."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import Message
from t2j_core import torch2jax
from t2j_core.testing import collect, counters

# JAX's fast path for calls of a compiled function raises ValueError where the slow one raises its own type, with
# `jax.pure_callback` too; the text is the same.
JaxError = (jax.errors.JaxRuntimeError, ValueError)

x = jnp.arange(6.0).reshape(2, 3)
here = np.arange(6.0, dtype=np.float32).reshape(2, 3)

_probe = torch2jax(lambda t, u: (t * 2 + u, t.sum()))
_jitted_probe = jax.jit(_probe)

N = 1 << 14
UNCHECKED = 5  # calls, after which one comes whose arguments are not checked


def check_intact() -> None:
    """The process is as before: nothing borrowed, nothing in flight, torch's state the default, calls work."""
    if counters()["escaped_calls"]:
        collect(passes=2)
    assert counters()["escaped_calls"] == 0
    patience = time.monotonic() + 60
    while counters()["calls_in_flight"]:  # a call whose result nobody waited for, or a program that XLA frees
        assert time.monotonic() < patience
        time.sleep(0.001)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch.get_default_dtype() == torch.float32
    for call in (_probe, _jitted_probe):
        doubled, total = call(x, x)
        np.testing.assert_array_equal(doubled, 3 * here)
        assert float(total) == 15


def check_whole(error: BaseException, *parts: str) -> None:
    """The text says what is wrong, what came, and at last what to do; and it names `parts`."""
    text = str(error)
    message = Message.of(text)
    assert message.what.strip(), text
    assert message.got.strip(), text
    assert message.remedy.strip().endswith((".", ")", "`")), f"no remedy in {text!r}"
    for part in parts:
        assert part in text, text


def churn() -> None:
    """Use memory again that may have been freed."""
    for size in (N, N // 2):
        arrays = [jnp.full((size,), -1.0) for i in range(30)]
        tensors = [torch.full((size,), -2.0) for i in range(30)]
        del arrays, tensors


# --- odd functions ----------------------------------------------------------------------------------------------------


def raising(kind, *args, **kwargs):
    """A torch function that raises."""

    def function(t):
        raise kind(*args, **kwargs)

    return function


def only_when(flag, function):
    """Raises at the real call while the flag is set; the outputs are declared, so there is no other run."""

    def guarded(t):
        if flag:
            function(t)
        return t + 1

    return guarded


def observe(t):
    """What the function sees of torch's state: as numbers, so that nothing escapes."""
    v = torch.ones(2, 3, requires_grad=True)
    y = (v * v * t).sum()
    (grad,) = torch.autograd.grad(y, v)  # 2 t
    product = t @ torch.ones(3, 2)
    seen = [
        torch.is_grad_enabled(),
        not torch.is_inference_mode_enabled(),
        not torch.is_autocast_enabled("cpu"),
        torch.zeros(1).device == t.device,
        product.dtype == torch.float32,
        not torch.empty(0).is_inference(),
        y.requires_grad,
        bool(torch._C._len_torch_function_stack() == 0),
    ]
    return grad, product, torch.tensor([float(value) for value in seen])


# --- odd objects ------------------------------------------------------------------------------------------------------


def freed(t):
    """A tensor whose memory has been taken away."""
    y = t + 1
    y.untyped_storage().resize_(0)
    return y


class BadEq:
    """Hashable; comparing raises."""

    def __hash__(self):
        return 1

    def __eq__(self, other):
        raise RuntimeError("cannot be compared")

    def __call__(self, t):
        return t + 1


class Simple(torch.Tensor):
    """A subclass with memory."""


class Wrapper(torch.Tensor):
    """A subclass without memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        take = lambda v: v.inner if isinstance(v, Wrapper) else v
        return func(*map(take, args), **(kwargs or {}))
