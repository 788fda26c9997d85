"""Random objects that a torch function returns where a tensor is wanted, and what the call must make of each.

    python -m fuzz.outputs --seed 0 --count 1000

in `tests/`. A call either has the values of the tensor, or raises; nothing reads memory that the tensor does not show.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from t2j_core import torch2jax
from t2j_core.testing import assert_nothing_escaped

SHAPE = (2, 3)
DTYPES = (torch.float32, torch.int32, torch.complex64, torch.bool, torch.bfloat16)
WRONG_DTYPES = (*DTYPES, torch.float64, torch.int64, torch.float16)


class Subclass(torch.Tensor):
    """A tensor of a class of the user's own."""


def base(r: random.Random, dtype: torch.dtype) -> torch.Tensor:
    """Memory with more elements than the result has, at an odd place."""
    values = torch.arange(64) % r.choice((2, 7, 64))
    storage = (values * (1 + 2j) if dtype.is_complex else values).to(dtype)
    return storage[r.choice((0, 1, 3)) :]


def view(r: random.Random, dtype: torch.dtype) -> torch.Tensor:
    """A view of the right shape and dtype, with any strides."""
    t = base(r, dtype)
    kind = r.choice(("strided", "expanded", "transposed", "whole", "windows"))
    if kind == "strided":
        return t.as_strided(SHAPE, (r.randrange(9), r.randrange(9)), r.randrange(20))
    if kind == "expanded":
        return t[r.randrange(9)].expand(SHAPE)
    if kind == "transposed":
        return t[:6].reshape(SHAPE[::-1]).mT
    if kind == "windows":
        return t.unfold(0, 3, 2)[r.randrange(5) :][:2]
    return t[:6].reshape(SHAPE)


def right(r: random.Random, dtype: torch.dtype) -> Any:
    """A tensor with the right values, of any kind."""
    t = view(r, dtype)
    kind = r.choice(("plain", "plain", "conjugated", "negated", "differentiable", "parameter", "subclass"))
    if kind == "conjugated":
        return t.conj()
    if kind == "negated" and dtype == torch.float32:
        return torch.complex(t, t).conj().imag
    if kind == "differentiable" and (dtype.is_floating_point or dtype.is_complex):
        return t.detach().requires_grad_()
    if kind == "parameter":
        return torch.nn.Parameter(t, requires_grad=False)
    if kind == "subclass":
        return t.as_subclass(Subclass)
    return t


def wrong(r: random.Random, dtype: torch.dtype) -> Any:
    """An object that is not a tensor of the right shape and dtype with values."""
    t = view(r, dtype)
    return r.choice(
        (
            lambda: t[..., :2],
            lambda: t[None],
            lambda: t.reshape(-1),
            lambda: torch.empty(0, dtype=dtype),
            lambda: t.to(r.choice([d for d in WRONG_DTYPES if d not in (dtype, widened(dtype))])),
            lambda: t.to("meta"),
            lambda: t.reshape(-1).as_strided((2, 3, 1), (1, 1, 1)),
            lambda: None,
            lambda: t.tolist(),
            lambda: (t,),
            lambda: object,
            lambda: 1.5,
        )
    )()


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype of 64 bits that JAX shortens to this one."""
    wide = {torch.float32: torch.float64, torch.int32: torch.int64, torch.complex64: torch.complex128}
    return wide.get(dtype, dtype)


def values(t: torch.Tensor) -> np.ndarray:
    """What a tensor shows."""
    t = t.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
    return (t.float() if t.dtype == torch.bfloat16 else t).numpy()


class Returned:
    """A compiled call for each dtype, whose function returns what is in `next`."""

    def __init__(self) -> None:
        self.next: Any = None
        self._calls: dict[torch.dtype, Any] = {}

    def __call__(self, dtype: torch.dtype, returned: Any) -> np.ndarray:
        """The result for what the function returns."""
        if dtype not in self._calls:
            leaf = jax.ShapeDtypeStruct(SHAPE, jnp.dtype(str(dtype).removeprefix("torch.")))
            self._calls[dtype] = jax.jit(torch2jax(lambda x: self.next, output_shapes=leaf, has_side_effect=True))
        self.next = returned
        try:
            got = jax.block_until_ready(self._calls[dtype](jnp.ones(2)))
        finally:
            self.next = None
        return np.asarray(got.astype(jnp.float32) if got.dtype == jnp.bfloat16 else got)


def run_one(r: random.Random, call: Returned) -> bool:
    """Return one object. Whether it was a right one."""
    dtype, is_right = r.choice(DTYPES), r.random() < 0.6
    returned = (right if is_right else wrong)(r, dtype)
    try:
        got = call(dtype, returned)
    except Exception as error:
        assert not is_right, f"{type(error).__name__}: {error}"
        return False
    assert is_right, f"no error for {type(returned).__name__} {getattr(returned, 'shape', '')}"
    np.testing.assert_array_equal(got, values(returned))
    return True


def run(seed: int, count: int) -> int:
    """Return objects of a seed, and count the right ones."""
    call, found = Returned(), 0
    for number in range(count):
        try:
            found += run_one(random.Random(f"{seed} {number}"), call)
        except AssertionError as error:
            raise AssertionError(f"object {number} of seed {seed}: {error}") from error
    del call
    assert_nothing_escaped()
    return found


def main() -> None:
    """Return objects from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    print(f"{options.count} objects of seed {options.seed}: {run(options.seed, options.count)} right")


if __name__ == "__main__":
    main()
