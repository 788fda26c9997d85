"""Whether calls work at all: values, threads, streams, order, errors."""

from __future__ import annotations

import math
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from _device import DEVICE, close, delay, error_of, normal
from _questions import IS_GPU, check, question
from t2j_autodiff import last_error, module2jax, torch2jax
from t2j_core import environment_info, t2j, testing

LARGE = 1 << 20  # elements
IN_PLACE = 1 << 25 if IS_GPU else LARGE  # a result of so many is written directly into XLA's memory


@question(60)
def versions() -> dict[str, Any]:
    """Versions of everything, and what does not fit together."""
    return environment_info()


@question(60)
def a_call() -> dict[str, Any]:
    """Values, and where a function runs: device, thread, XLA's stream."""
    caller = threading.get_ident()
    seen: list[tuple[str, bool, int | None]] = []

    def sine(x: torch.Tensor) -> torch.Tensor:
        stream = torch.cuda.current_stream().cuda_stream if IS_GPU else None
        seen.append((x.device.type, threading.get_ident() == caller, stream))
        return torch.sin(x)

    f, x = jax.jit(torch2jax(sine, output_shapes=jax.ShapeDtypeStruct((8,), jnp.float32))), normal(8)
    for _ in range(3):
        close(f(x), jnp.sin(x))
    check(all(device == DEVICE.type for device, *_ in seen), "runs on another device", seen)
    own = torch.cuda.current_stream().cuda_stream if IS_GPU else None
    return {"device, on the caller's thread, stream": seen, "torch's own stream": own}


@question(30)
def a_result_over_an_argument() -> str:
    """XLA on GPUs (jax 0.11) fuses a call with slices: its result may lie on its argument, and not where it should."""
    sine = torch2jax(lambda x, out: torch.sin(x, out=out), outputs="out")
    double = torch2jax(lambda x: x.mul_(2), mutable_argnums=0)
    x = normal(8, 4096)
    before = np.array(x)
    close(jax.jit(lambda x: x.at[3].set(sine(x[3])))(x), x.at[3].set(jnp.sin(x[3])))
    close(jax.jit(lambda x: double(x[3]))(x), 2 * before[3])
    close(jax.jit(lambda x: jax.lax.scan(lambda c, row: (c, double(row)), 0, x)[1])(x), 2 * before)
    check(bool((np.array(x) == before).all()), "the argument has changed")
    return "right"


@question(20)
def an_unaligned_tensor() -> bool:
    """A tensor that does not begin at 16 bytes becomes an array, and XLA computes with it. Tells if it was copied."""
    tensor = torch.arange(9.0, device=DEVICE)[1:]
    array = t2j(tensor)
    close(jnp.sin(array), torch.sin(tensor))
    close(torch2jax(torch.sin)(tensor), torch.sin(tensor))
    return array.unsafe_buffer_pointer() != tensor.data_ptr()


@question(30)
def weights_of_an_lstm() -> int:
    """They are views of one tensor, and XLA takes them as arguments."""
    lstm = torch.nn.LSTM(3, 5).to(DEVICE)
    _, variables = module2jax(lstm)
    doubled = jax.jit(lambda v: jax.tree.map(lambda leaf: 2 * leaf, v))(variables)["params"]
    close(doubled, {name: 2 * weight for name, weight in lstm.named_parameters()})
    return len(doubled)


@question(30)
def a_kept_result() -> str:
    """A function that keeps its result, which may lie in XLA's memory, can be called again."""
    kept: dict[str, torch.Tensor] = {}

    def f(x: torch.Tensor) -> torch.Tensor:
        kept["last"] = y = torch.sin(x)
        return y

    g = jax.jit(torch2jax(f, output_shapes=jax.ShapeDtypeStruct((IN_PLACE,), jnp.float32)))
    for number in range(3):
        y, expected = g(jnp.full(IN_PLACE, float(number))), math.sin(number)
        check(bool(jnp.allclose(y, expected)), f"the result of call {number} is wrong")
        check(bool((kept["last"] - expected).abs().max() < 1e-5), f"what call {number} kept is wrong")
    return "right three times"


@question(40)
def work_of_torch_before_a_call() -> str:
    """A call reads weights that torch is still writing when the call is queued."""
    weight = torch.zeros(LARGE, device=DEVICE)
    f, x = jax.jit(torch2jax(lambda x: x + weight)), jnp.zeros(LARGE)
    wrong = []
    for number in range(1, 20):
        delay()
        weight.add_(1)
        wrong += [number] * (not bool((f(x) == number).all()))
    check(not wrong, "wrong calls", wrong)
    return "right 19 times"


@question(40)
def work_of_torch_after_a_call() -> str:
    """Torch reads what a call has written that is still running."""
    counter = torch.zeros(LARGE, device=DEVICE)

    def count(x: torch.Tensor) -> torch.Tensor:
        delay()
        counter.add_(1)
        return x + 0

    f = jax.jit(torch2jax(count, has_side_effect=True, output_shapes=jax.ShapeDtypeStruct((4,), jnp.float32)))
    x = jnp.zeros(4)
    for number in range(1, 6):
        x = f(x)
        if not IS_GPU:
            x.block_until_ready()  # on the CPU torch has no stream that could wait
        check(counter.sum().item() == number * LARGE, f"call {number} was not waited for")
    return "right 5 times"


class OwnError(Exception):
    """An exception of a user."""


@question(40)
def an_exception() -> dict[str, str]:
    """It keeps its type, and the calls after it are right."""
    fails: list[bool] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        if fails:
            raise OwnError("of the function")
        return 2 * x

    f = torch2jax(double)
    calls = {"eager": f, "jit": jax.jit(f), "jit of grad": jax.jit(jax.grad(lambda x: f(x).sum()))}
    x, found = normal(8), {}
    for name, run in calls.items():
        expected = np.asarray(run(x))
        fails.append(True)
        found[name] = error_of(lambda run=run: run(x))
        check(isinstance(last_error(), OwnError), f"{name}: the last error is", repr(last_error()))
        fails.clear()
        close(run(x), expected)
    check(found["eager"].startswith("OwnError"), "the error of the eager call", found["eager"])
    testing.assert_nothing_escaped()
    return found
