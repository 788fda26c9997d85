"""The rounds of a soak: each makes random calls of one kind, and judges their values by `jnp`."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import t2j_autodiff
import t2j_dist
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from judged_programs import agree, check, draw_case
from operations import OPERATIONS

Function = Callable[..., Any]

ONE_BY_ONE = ("sin", "tanh", "square", "affine", "root", "doubled")
ROWS = 8  # of an array that is split over devices: one for each


def program(r: random.Random) -> None:
    """A random program through random transformations."""
    check(draw_case(r))


# --- functions of rows and weights ------------------------------------------------------------------------------------


def draw_function(r: random.Random) -> Function:
    """A function that treats each row of an array alike, of tensors and of JAX arrays."""
    names = [r.choice(ONE_BY_ONE) for _ in range(r.randint(1, 3))]

    def run(x: Any, w: Any) -> Any:
        for name in names:
            x = OPERATIONS[name](x)
        return x * w + x.sum(-1)[..., None]

    return run


def draw_rows(r: random.Random) -> tuple[jax.Array, jax.Array]:
    """Rows, and weights for them."""
    generator = np.random.default_rng(r.randrange(2**32))
    columns = r.choice((1, 3, 5))
    x, w = generator.uniform(-1, 1, (ROWS, columns)), generator.uniform(-1, 1, columns)
    return jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)


def gradient(f: Function) -> Function:
    """The gradients of a number."""
    return jax.grad(lambda x, w: (f(x, w) ** 2).sum(), argnums=(0, 1))


FORMS: dict[str, Callable[[Function], Function]] = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "gradient": lambda f: jax.jit(gradient(f)),
    "eager gradient": gradient,
    "batch": lambda f: jax.jit(jax.vmap(f, (0, None))),
    "pushforward": lambda f: jax.jit(lambda x, w: jax.jvp(f, (x, w), (x, w))),
    "loop": lambda f: jax.jit(lambda x, w: jax.lax.scan(lambda c, _: (f(c, w) * 0.1, c.sum()), x, None, length=3)),
}


def draw_form(r: random.Random) -> Callable[[Function], Function]:
    """How a function is called."""
    return FORMS[r.choice(tuple(FORMS))]


def same(got: Any, expected: Any) -> None:
    """Raise `AssertionError` unless the leaves of two trees are close."""
    agree(jax.tree.leaves(got), jax.tree.leaves(expected), 1e-3)


# --- rounds -----------------------------------------------------------------------------------------------------------


def errors(r: random.Random) -> None:
    """Calls that raise, between calls that do not."""
    fn, form, (x, w) = draw_function(r), draw_form(r), draw_rows(r)
    is_armed = threading.Event()

    def sometimes(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if is_armed.is_set():
            raise LookupError("on purpose")
        return fn(x, w)

    call, expected = form(t2j_autodiff.torch2jax(sometimes)), form(fn)(x, w)
    for _ in range(r.randint(2, 6)):
        same(call(x, w), expected)
        is_armed.set()
        try:
            jax.block_until_ready(call(x, w))
        except Exception as error:
            assert "on purpose" in str(error), error
        else:
            raise AssertionError("nothing was raised")
        is_armed.clear()
    same(call(x, w), expected)


def interrupts(r: random.Random) -> None:
    """Calls that SIGINT interrupts, between calls that it does not."""
    fn, (x, w) = draw_function(r), draw_rows(r)
    is_armed = threading.Event()

    def interrupted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if is_armed.is_set():
            signal.raise_signal(signal.SIGINT)
        return fn(x, w)

    call = r.choice((FORMS["eager"], FORMS["jit"]))(t2j_autodiff.torch2jax(interrupted))
    expected = fn(x, w)
    for _ in range(r.randint(1, 4)):
        same(call(x, w), expected)
        is_armed.set()
        assert is_interrupted(lambda: call(x, w))
        is_armed.clear()
    same(call(x, w), expected)


def is_interrupted(call: Callable[[], Any]) -> bool:
    """Whether `KeyboardInterrupt` is raised in a call, or right after its error: JAX's fast path has its own errors."""
    try:
        try:
            jax.block_until_ready(call())
        except Exception as error:
            assert "KeyboardInterrupt" in str(error), error
        time.sleep(0)  # a pending signal is handled here at the latest
    except KeyboardInterrupt:
        return True
    return False


def drops(r: random.Random) -> None:
    """Modules that are wrapped, differentiated and dropped."""
    for _ in range(r.randint(1, 4)):
        width = r.choice((2, 5))
        module = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.LayerNorm(width))
        apply, variables = t2j_autodiff.module2jax(module)
        x = np.random.default_rng(r.randrange(2**32)).normal(size=(4, 3)).astype(np.float32)
        value, found = jax.value_and_grad(lambda v, x, apply=apply: (apply(v, x) ** 2).sum())(variables, jnp.asarray(x))
        loss = (module(torch.from_numpy(x)) ** 2).sum()
        loss.backward()
        same(value, jnp.asarray(loss.item(), jnp.float32))
        for name, parameter in module.named_parameters():
            same(found["params"][name], jnp.asarray(parameter.grad.numpy()))


def escapes(r: random.Random) -> None:
    """A function that keeps what it was lent, which has the same values for ever."""
    fn, (x, w) = draw_function(r), draw_rows(r)
    kept: list[torch.Tensor] = []

    def keeps(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu" and not isinstance(x, torch._subclasses.FakeTensor):
            kept.append(x.view(-1))
        return fn(x, w)

    call = jax.jit(t2j_autodiff.torch2jax(keeps, output_shapes=jax.eval_shape(fn, x, w)))
    values = [x * (k + 1) for k in range(r.randint(2, 6))]
    for value in values:
        same(call(value, w), fn(value, w))
    expected = [np.asarray(value).reshape(-1) for value in values]
    del values, value
    assert len(kept) == len(expected)
    for tensor, wanted in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), wanted)


def threads(r: random.Random) -> None:
    """One wrapped function in several threads at once."""
    fn, (x, w) = draw_function(r), draw_rows(r)
    f = t2j_autodiff.torch2jax(fn)
    calls = [(form(f), form(fn)(x, w)) for form in (draw_form(r) for _ in range(4))]
    failures: list[BaseException] = []

    def run(call: Function, expected: Any) -> None:
        try:
            for _ in range(4):
                same(call(x, w), expected)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=run, args=call) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def devices(r: random.Random) -> None:
    """A function on all devices, in one of the ways there are."""
    fn, (x, w) = draw_function(r), draw_rows(r)
    kind = r.choice(("specs", "shard_map", "sharded arrays", "pmap"))
    # A call on whole arrays is not split along Explicit axes by itself: that is an error.
    axis_types = (AxisType.Auto if kind == "sharded arrays" else r.choice((AxisType.Auto, AxisType.Explicit)),)
    mesh = jax.make_mesh((len(jax.devices()),), ("rows",), axis_types=axis_types)
    split, whole = PartitionSpec("rows"), PartitionSpec()
    local = t2j_autodiff.torch2jax(fn)
    form = r.choice((FORMS["eager"], FORMS["jit"], FORMS["gradient"]))
    if kind == "specs":
        f = t2j_dist.torch2jax(fn, in_specs=(split, whole), out_specs=split, mesh=mesh)
    elif kind == "shard_map":
        f = jax.shard_map(local, mesh=mesh, in_specs=(split, whole), out_specs=split)
    else:
        f = jax.pmap(local, in_axes=(0, None)) if kind == "pmap" else local
    placed = jax.device_put(x, NamedSharding(mesh, split)), jax.device_put(w, NamedSharding(mesh, whole))
    same(form(f)(*((x, w) if kind == "pmap" else placed)), form(fn)(x, w))  # pmap takes no arrays on another mesh


ROUNDS: dict[str, tuple[Callable[[random.Random], None], int]] = {
    "program": (program, 6),
    "errors": (errors, 2),
    "interrupts": (interrupts, 1),
    "drops": (drops, 2),
    "escapes": (escapes, 1),
    "threads": (threads, 2),
    "devices": (devices, 4),
}
"""What a round does, and how often it comes, relative to the others."""


def draw_round(r: random.Random) -> str:
    """The name of a round."""
    return r.choices(tuple(ROUNDS), [weight for _, weight in ROUNDS.values()])[0]
