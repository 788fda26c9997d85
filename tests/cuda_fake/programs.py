"""Programs of JAX whose calls of torch go through executables of the fake GPU. JAX computes the rest on the CPU."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from t2j_autodiff._residuals.store import kept_graphs
from t2j_core._run.torch_fn import TorchFn

from .executables import STREAM, Executable, device_memory

_runs = itertools.count(1)


def new_run() -> int:
    """A number of an execution of a program, which no other has."""
    return next(_runs)


class Program:
    """A traced function, without what JAX drops. There is no compiler: nothing else is dropped, merged or moved."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        self._tree = jax.tree.structure(shapes)
        self._jaxpr, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars), instantiate=True)
        self._consts = traced.consts
        pairs = iter(_pairs(function, *args))
        self._executables: dict[int, Executable] = {}
        for equation in _calls(self._jaxpr):
            pair = next(pairs)
            attributes = {} if pair is None else {"pair": pair}
            self._executables[id(equation)] = Executable(equation.params["fn"], **attributes)
        assert next(pairs, "none") == "none"

    @property
    def executables(self) -> list[Executable]:
        """The calls, in their order."""
        return list(self._executables.values())

    @property
    def is_paired(self) -> bool:
        """Whether some calls are a forward and its derivative, and know of each other."""
        return any("pair" in executable.attributes for executable in self.executables)

    def __call__(self, *args: Any, stream: int = STREAM, device: int = 0) -> Any:
        """Run it once, all on one stream."""
        where = {"stream": stream, "device": device, "run_id": new_run()}
        results = self._run(self._jaxpr, self._consts, jax.tree.leaves(args), where)
        return jax.tree.unflatten(self._tree, results)

    def _run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], where: dict[str, int]) -> list[Any]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        read = lambda atom: atom.val if hasattr(atom, "val") else values[atom]
        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            outputs = self._run_equation(equation, inputs, where)
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _run_equation(self, equation: Any, inputs: Sequence[Any], where: dict[str, int]) -> Sequence[Any]:
        if id(equation) in self._executables:
            operands = [device_memory(np.asarray(x)) for x in inputs]
            results = self._executables[id(equation)](operands, **where)
            _write_number(equation.params["fn"], results)
            return results
        if (inner := _inner(equation)) is not None:
            return self._run(inner.jaxpr, inner.consts, inputs, where)
        outputs = equation.primitive.bind(*inputs, **equation.params)
        return outputs if equation.primitive.multiple_results else [outputs]


def _write_number(fn: TorchFn, results: Sequence[np.ndarray]) -> None:
    """Write the number of a kept graph where the kernel that does nothing should have written it."""
    if fn.hidden and fn.ticket is None and len(kept_graphs) and results[-1].dtype == np.int32:
        results[-1][...] = list(kept_graphs._shelves)[-1]


def _inner(equation: Any) -> Any:
    return next((equation.params[name] for name in ("jaxpr", "call_jaxpr") if name in equation.params), None)


def _calls(jaxpr: Any) -> Iterator[Any]:
    """The calls of torch, in their order."""
    for equation in jaxpr.eqns:
        if isinstance(equation.params.get("fn"), TorchFn):
            yield equation
        elif (inner := _inner(equation)) is not None:
            yield from _calls(inner.jaxpr)


def _pairs(function: Callable[..., Any], *args: Any) -> list[int | None]:
    """The numbers of the pairs that a program for CUDA has, by call."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"t2j_torch_call\(.*?mhlo.backend_config = \{(.*?)\}", text)
    numbers = [re.search(r"pair = (\d+)", call) for call in calls]
    return [number and int(number[1]) for number in numbers]
