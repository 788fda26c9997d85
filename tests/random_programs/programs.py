"""Random programs: a pytree of arguments, a few operations, a pytree of outputs, and options to wrap it with.

A program is the same function of tensors and of JAX arrays. It is drawn from any `random.Random`: one with a seed for
a soak, one of hypothesis for a property test, which shrinks what it has drawn.
"""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from operations import OPERATIONS, as_inexact

Pair = namedtuple("Pair", ["left", "right"])

SHAPES = ((3,), (), (2, 3), (1,), (0,), (1, 2), (2, 0))
DTYPES = ("float32", "float32", "float32", "int32", "bfloat16", "complex64", "bool", "float16", "uint8")
CONSTANTS = (2, 2.0, True, 1, 1.0, 0.0, -0.0, "sum", "keep", 3)
OFTEN = ("distances", "weight norm") * 4  # torch's own derivatives or batches of them are wrong
LARGEST = 64  # elements of one value: a step that makes more is left out


@dataclass(frozen=True)
class Step:
    """An operation on values so far. `constant` is the place of an argument that says how, if there is one."""

    operation: str
    operands: tuple[int, ...]
    constant: int | None = None


@dataclass(frozen=True)
class Program:
    """A function of pytrees. Its arguments are in `args` and `kwargs`, whose leaves are arrays and constants."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    steps: tuple[Step, ...]
    outputs: Any  # a tree of places among the values
    writes: frozenset[int] = frozenset()  # leaves that the torch function writes into
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The outputs, and what the function has seen of its arguments."""
        leaves = jax.tree.leaves((args, kwargs))
        values = [self._written(leaf, i) for i, leaf in enumerate(leaves) if is_array(leaf)]
        constants = [leaf for leaf in leaves if not is_array(leaf)]
        for step in self.steps:
            values.append(run_step(step, values, constants))
        seen = tuple(map(description, leaves))
        return {"out": jax.tree.map(lambda place: values[place], self.outputs), "seen": seen}

    def _written(self, leaf: Any, place: int) -> Any:
        if place not in self.writes:
            return leaf
        return leaf.mul_(0.5) if isinstance(leaf, torch.Tensor) else leaf * 0.5

    @property
    def leaves(self) -> list[Any]:
        """The leaves of the arguments."""
        return jax.tree.leaves((self.args, self.kwargs))

    def with_leaves(self, leaves: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the same tree with other leaves."""
        args, kwargs = jax.tree.unflatten(jax.tree.structure((self.args, self.kwargs)), leaves)
        return args, kwargs

    @property
    def constant_leaves(self) -> set[int]:
        """The leaves that the options make constants to differentiation."""
        numbers = self.options.get("nondiff_argnums", ())
        marks = [jax.tree.map(lambda _, n=n: n in numbers, arg) for n, arg in enumerate(self.args)]
        mask = self.options.get("nondiff_mask")
        if mask is not None:
            marks = jax.tree.map(lambda m, part: jax.tree.map(lambda _: m, part), mask, self.args)
        return {i for i, is_constant in enumerate(jax.tree.leaves(tuple(marks))) if is_constant}


def is_array(leaf: Any) -> bool:
    """Whether a leaf is data, of either library."""
    return isinstance(leaf, (jax.Array, torch.Tensor, np.ndarray))


def description(leaf: Any) -> str:
    """What a function knows of an argument without its data; the sign of a zero too."""
    if is_array(leaf):
        return str(leaf.dtype).removeprefix("torch.")
    return f"{type(leaf).__name__} {leaf}"


def run_step(step: Step, values: list[Any], constants: list[Any]) -> Any:
    """The value of a step. One that would be too large is the first operand."""
    operands = [values[place] for place in step.operands]
    result = OPERATIONS[step.operation](*operands)
    if np.prod(result.shape) > LARGEST:
        result = as_inexact(operands[0])
    if step.constant is None or not constants:
        return result
    constant = constants[step.constant % len(constants)]
    if isinstance(constant, str):
        return result.sum() if constant == "sum" else result
    return result * constant


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw_program(r: random.Random, *, dtypes: tuple[str, ...] = DTYPES) -> Program:
    """A program of one to four arguments and up to four steps."""
    dtype = r.choice(dtypes)
    args = tuple(draw_tree(r, dtype, depth=2) for _ in range(r.randint(1, 3)))
    kwargs = {name: draw_tree(r, dtype, depth=1) for name in r.sample(("scale", "w"), r.randint(0, 1))}
    if not any(map(is_inexact, jax.tree.leaves((args, kwargs)))):
        args = (draw_array(r, "float32"), *args)
    leaves = jax.tree.leaves((args, kwargs))
    count = sum(map(is_array, leaves))
    steps = tuple(draw_step(r, count + i) for i in range(r.randint(1, 4)))
    places = [count + len(steps) - 1, *(r.randrange(count + len(steps)) for _ in range(r.randint(0, 2)))]
    written = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]
    writes = frozenset(r.sample(written, 1) if r.random() < 0.15 else ())
    options = draw_options(r, args, written)
    if options.get("vmap_method") == "vmap" and (writes or any(OPERATIONS[step.operation].is_once for step in steps)):
        options["vmap_method"] = "auto"  # "vmap" raises where torch batches no writes, and has no forward mode to batch
    return Program(args, kwargs, steps, draw_container(r, places), writes, options)


def draw_tree(r: random.Random, dtype: str, depth: int) -> Any:
    """An array, a constant, None, or a container of them."""
    kind = r.choice(("array", "array", "container", "constant", "array", "none"))
    if kind == "container" and depth:
        return draw_container(r, [draw_tree(r, dtype, depth - 1) for _ in range(r.randint(1, 3))])
    if kind == "constant":
        return r.choice(CONSTANTS)
    if kind == "none":
        return None
    return draw_array(r, dtype if r.random() < 0.7 else r.choice(("float32", "int32", "bool")))


def draw_container(r: random.Random, items: list[Any]) -> Any:
    """A container of some items."""
    kind = r.choice((list, tuple, dict, Pair))
    if kind is dict:
        return dict(zip("cab", items, strict=False))
    if kind is Pair:
        return Pair(items[0], items[-1])
    return kind(items)


def draw_array(r: random.Random, dtype: str) -> jax.Array:
    """Values between -2 and 2, none near 0, where some of the operations have no derivative."""
    shape = r.choice(SHAPES)
    generator = np.random.default_rng(r.randrange(8))
    values = generator.uniform(0.2, 2, shape) * generator.choice([-1, 1], shape)
    if dtype.startswith("complex"):
        values = values + 1j * generator.normal(size=shape)
    if dtype in ("uint8", "bool"):
        values = np.abs(values) * (values > 0)
    return jnp.asarray(np.asarray(values).astype(jnp.dtype(dtype)))


def draw_step(r: random.Random, count: int) -> Step:
    """An operation on some of the `count` values there are, rather the last ones."""
    name = r.choice((*OPERATIONS, *OFTEN))
    operands = tuple(count - 1 - min(r.randrange(count), r.randrange(count)) for _ in range(OPERATIONS[name].arity))
    return Step(name, operands, r.randrange(8) if r.random() < 0.4 else None)


def draw_options(r: random.Random, args: tuple[Any, ...], inexact: list[int]) -> dict[str, Any]:
    """Options of `torch2jax`, most of them left out."""
    choices = {
        "residuals": ("auto", "recompute", "graph"),
        "vmap_method": ("auto", "vmap", "sequential"),
        "vmap_chunk_size": (None, 1, 2),
        "arguments": ("auto", "copy"),
        "outputs": ("auto", "copy"),
        "depth": (None, 3),
    }
    options = {"depth": None} | {name: r.choice(choices[name]) for name in r.sample(tuple(choices), r.randint(0, 2))}
    if inexact and r.random() < 0.5:
        options |= draw_constants(r, args)
    return options


def draw_constants(r: random.Random, args: tuple[Any, ...]) -> dict[str, Any]:
    """Which arguments are constants to differentiation: by position, argument by argument, or leaf by leaf."""
    kind = r.choice(("positions", "arguments", "leaves"))
    if kind == "positions":
        with_arrays = [n for n, arg in enumerate(args) if any(map(is_array, jax.tree.leaves(arg)))]
        return {"nondiff_argnums": tuple(r.sample(with_arrays, min(1, len(with_arrays))))}
    if kind == "arguments":
        return {"nondiff_mask": tuple(r.random() < 0.5 for _ in args)}
    return {"nondiff_mask": jax.tree.map(lambda _: r.random() < 0.5, args)}


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array that has derivatives."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


# --- other arguments of one program -----------------------------------------------------------------------------------


def variants(program: Program) -> Iterator[list[Any]]:
    """Leaves of further calls: other constants, integers as tensors of two dtypes, NumPy arrays; at last the same."""
    leaves = program.leaves
    if not all(map(is_array, leaves)):
        yield [other_constant(leaf) for leaf in leaves]
    if any(map(is_integer, leaves)):
        yield [torch.from_numpy(np.array(leaf)).to(torch.int64) if is_integer(leaf) else leaf for leaf in leaves]
        yield [torch.from_numpy(np.array(leaf)) if is_integer(leaf) else leaf for leaf in leaves]
    yield [np.asarray(leaf) if is_array(leaf) else leaf for leaf in leaves]
    yield leaves


def other_constant(leaf: Any) -> Any:
    """A constant of equal value that is not the same, or another constant."""
    if is_array(leaf):
        return leaf
    if isinstance(leaf, str):
        return "keep" if leaf == "sum" else "sum"
    if leaf == 0:
        return -leaf
    return float(leaf) if type(leaf) is not float else int(leaf)


def is_integer(leaf: Any) -> bool:
    """Whether a leaf is an int32 array."""
    return is_array(leaf) and leaf.dtype == jnp.int32
