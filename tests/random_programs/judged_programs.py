"""Judges a wrapped program by the same program in `jnp`: plain calls of each kind, and through transformations."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import t2j_autodiff
from hypothesis import strategies as st
from operations import OPERATIONS
from programs import DTYPES, Program, description, draw_program, is_array, is_inexact, variants
from transformations import Arrays, Function, draw_names, transformed

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # jax before 0.8
RANDOMS = st.randoms(use_true_random=True)
"""Draws of equal probability. Those that hypothesis could shrink repeat: of 600, six were Jacobians of distances."""
TOLERANCES = {"bfloat16": 8e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Case:
    """A program, and the transformations that it goes through."""

    program: Program
    names: tuple[str, ...]
    seed: int
    declares: bool
    """Whether the outputs are declared, by `output_shapes`."""
    is_wide: bool
    """Whether 64-bit numbers are enabled."""

    @functools.cached_property
    def tolerance(self) -> float:
        """How far results may be apart, relative to the largest."""
        dtypes = {str(leaf.dtype) for leaf in self.program.leaves if is_array(leaf)}
        return max(TOLERANCES.get(dtype, 5e-4) for dtype in dtypes)


def draw_case(r: random.Random) -> Case:
    """A program and its transformations."""
    is_wide = r.random() < 0.15
    with enable_x64(is_wide):
        program = draw_program(r, dtypes=("float64", "complex128") if is_wide else DTYPES)
    inexact = [leaf for leaf in program.leaves if is_inexact(leaf)]
    are_real = not any(map(jnp.iscomplexobj, inexact))
    is_coarse = any(leaf.dtype.itemsize == 2 for leaf in inexact)
    is_once = is_coarse or any(OPERATIONS[step.operation].is_once for step in program.steps)
    names = draw_names(r, most_derivatives=1 if is_once else 2, are_real=are_real)
    if r.random() < 0.7:  # else every operation of JAX is compiled alone, which takes longer
        names = [*(name for name in names if name != "jit"), "jit"]
    return Case(program, tuple(names), r.randrange(100), r.random() < 0.25, is_wide)


def check(case: Case) -> None:
    """Raise `AssertionError` where the wrapped program differs from the one in `jnp`."""
    program = case.program
    arrays = [leaf for leaf in program.leaves if is_array(leaf)]
    before = [np.array(x) for x in arrays]
    with warnings.catch_warnings(), enable_x64(case.is_wide):
        # What a program may be warned of: it writes into an argument, it has only constants, its batch loops.
        warnings.simplefilter("ignore")
        expected = Expected(program)
        wrapped = wrap(case, expected(program.leaves))
        check_plain(case, wrapped, expected)
        check_transformed(case, wrapped, arrays)
    for x, value in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(np.asarray(x), value, "an argument has changed")


def wrap(case: Case, expected: Any) -> Any:
    """The program as a JAX function. Where its outputs are declared, they are arrays only."""
    program = case.program
    if not case.declares:
        return t2j_autodiff.torch2jax(program.__call__, **program.options)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), {"out": expected})
    # Without a run of inference nothing tells that derivatives must not record on an argument that is written.
    options = {**program.options, **({"arguments": "copy"} if program.writes else {})}
    run = lambda *args, **kwargs: {"out": program(*args, **kwargs)["out"]}
    return t2j_autodiff.torch2jax(run, output_shapes=shapes, **options)


class Expected:
    """The outputs of a program in `jnp`. Calls that differ only in who holds the arrays have the same."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._found: dict[tuple[str, ...], Any] = {}

    def __call__(self, leaves: list[Any]) -> Any:
        """The outputs for arguments with these leaves."""
        as_jax = [jnp.asarray(leaf) if is_array(leaf) else leaf for leaf in leaves]
        key = tuple(map(description, as_jax))
        if key not in self._found:
            run = of_arrays(self._program, self._program, leaves)
            self._found[key] = jax.jit(run)([leaf for leaf in as_jax if is_array(leaf)])
        return self._found[key]


def check_plain(case: Case, wrapped: Any, expected: Callable[[list[Any]], Any]) -> None:
    """The first call, and calls with other constants, dtypes and kinds of arrays, of one wrapped function."""
    program = case.program
    for leaves in [program.leaves] if case.declares else [program.leaves, *variants(program)]:
        args, kwargs = program.with_leaves([x.copy() if isinstance(x, np.ndarray) else x for x in leaves])
        got, wanted = wrapped(*args, **kwargs), expected(leaves)
        assert jax.tree.structure(got["out"]) == jax.tree.structure(wanted)
        agree(jax.tree.leaves(got["out"]), jax.tree.leaves(wanted), case.tolerance)
        if not case.declares:
            assert got["seen"] == tuple(map(description, leaves)), "what the function has seen"


def check_transformed(case: Case, wrapped: Any, xs: Arrays) -> None:
    """The transformed function, twice, so that a compiled program is used again."""
    program = case.program
    function, reference = (
        transformed(flat(of_arrays(program, run, program.leaves)), case.names, case.seed)
        for run in (wrapped, constant_where_told(program))
    )
    expected = jax.jit(reference)(xs)
    for _ in range(2):
        agree(function(xs), expected, case.tolerance * (1 + len(case.names)))


def of_arrays(program: Program, function: Any, leaves: list[Any]) -> Callable[[Arrays], Any]:
    """A function of the arguments of a program as one of their arrays. The constants are among these leaves."""

    def run(arrays: Arrays) -> Any:
        rest = iter(arrays)
        args, kwargs = program.with_leaves([next(rest) if is_array(leaf) else leaf for leaf in leaves])
        return function(*args, **kwargs)["out"]

    return run


def flat(function: Callable[[Arrays], Any]) -> Function:
    """A function that returns a list of arrays."""
    return lambda arrays: jax.tree.leaves(function(arrays))


def constant_where_told(program: Program) -> Any:
    """The program in `jnp`, in which the arguments that options call constants have no derivative."""
    places = program.constant_leaves

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        stopped = [jax.lax.stop_gradient(x) if i in places and is_array(x) else x for i, x in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(tree, stopped)
        return program(*args, **kwargs)

    return run


def agree(got: Arrays, expected: Arrays, tolerance: float) -> None:
    """Raise `AssertionError` unless results have the same shapes and dtypes, and close values."""
    assert len(got) == len(expected)
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"result {k}"
        if a.dtype == jax.dtypes.float0 or not a.size:
            continue
        kind = np.complex128 if np.iscomplexobj(a) else np.float64
        a, b = np.asarray(a).astype(kind), np.asarray(b).astype(kind)
        finite = np.abs(b[np.isfinite(b)])
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, finite.max(initial=0)), err_msg=f"result {k}")
