"""The outputs of one run, and the errors for what JAX arrays cannot hold."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
import types
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping

import jax
import numpy as np
import torch

from .._base.dtypes import aval_text
from .._base.errors import DTypeError, OutputError, describe
from .._signature.call_tree import Static
from .._signature.containers import as_pytree
from .._signature.signature import Leaf, Outputs, output_leaf
from .call import Call
from .indices import LongIndices, are_narrow
from .quiet import quiet


def one_run(call: Call, tensors: list[torch.Tensor]) -> Outputs:
    """Run a function on tensors, and describe its outputs. Raises `OutputError` for what JAX arrays cannot hold."""
    args, kwargs = call.call_tree.merger()(tensors)
    versions = [t._version for t in tensors]
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        long = stack.enter_context(LongIndices(misread=False)) if are_narrow(t.dtype for t in tensors) else None
        returned = call.fn(*args, **kwargs)
    _check_containers(call.name, returned, ())
    items, tree = jax.tree.flatten(as_pytree(returned))
    mutated = tuple(i for i, t in enumerate(tensors) if t._version != versions[i])
    statics = tuple(None if isinstance(item, torch.Tensor) else _static_output(call.name, item) for item in items)
    results = [item for item in items if isinstance(item, torch.Tensor)]
    as_results = tuple((i, j) for i in mutated for j, r in enumerate(results) if _same_memory(r, tensors[i]))
    paths = Outputs(tree, (), statics).paths()
    leaves = tuple(_leaf(call.name, path, tensor) for path, tensor in zip(paths, results, strict=True))
    needs = True if long is not None and long.has_met_refused else None
    return Outputs(tree, leaves, statics, mutated, as_results, is_declared=False, needs_long_indices=needs)


def _check_containers(name: str, item: object, outer: tuple[int, ...]) -> None:
    """Refuse what JAX cannot flatten: containers that contain themselves, generators, coroutines."""
    if id(item) in outer:
        what, remedy = "a container that contains itself", "Return the tensors in tuples, lists and dicts."
    elif isinstance(item, (Iterator, Awaitable, AsyncIterator)):
        what, remedy = "something that would run after the call", "Return a tuple of the values: `tuple(generator)`."
        if not isinstance(item, Iterator):
            remedy = "Run it inside the function, such as by `asyncio.run(...)`, and return its result."
        if inspect.iscoroutine(item):
            item.close()
    else:
        for part in _parts(item):
            _check_containers(name, part, (*outer, id(item)))
        return
    text = f"{name} returns {what}."
    raise OutputError(describe(text, expected="a finite tree of tensors", got=type(item).__name__, remedy=remedy))


def _parts(item: object) -> Iterable[object]:
    if isinstance(item, Mapping):
        return item.values()
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return [getattr(item, field.name, None) for field in dataclasses.fields(item)]
    return item if isinstance(item, (list, tuple)) else ()


_DENSE = {
    "quantised": "Return `tensor.dequantize()`.",
    "nested": "Return `tensor.to_padded_tensor(0.0, output_size=...)`, of a size that does not depend on values.",
    "sparse": "Return `tensor.to_dense()`.",
}


def _leaf(name: str, path: str, tensor: torch.Tensor) -> Leaf:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else "sparse"
        raise OutputError(
            describe(
                f"{name} returns a {kind} tensor, which JAX arrays cannot hold.",
                expected="a dense tensor",
                got=f"{tensor.dtype}, {tensor.layout}",
                remedy=_DENSE[kind],
            )
        )
    try:
        return output_leaf(tuple(tensor.shape), tensor.dtype)
    except DTypeError as error:
        raise DTypeError(f"{path} of {name}: {error}") from None


def _static_output(name: str, item: object) -> Static:
    if isinstance(item, (np.ndarray, np.generic, jax.Array)):
        raise OutputError(
            describe(
                f"{name} returns a {type(item).__name__} where a tensor is needed.",
                expected="torch tensors, and constants such as numbers or strings",
                got=f"{type(item).__name__} {aval_text(item.shape, item.dtype)}",
                remedy="Return `torch.as_tensor(value)`.",
            )
        )
    place = _place_of_tensors(item)
    if place is not None:
        kind = type(item).__name__
        raise OutputError(
            describe(
                f"{name} returns tensors inside a {kind}, which is not a pytree.",
                expected="tensors in tuples, lists, dicts, dataclasses or registered pytrees",
                got=f"{kind}, with a tensor as its `{place}`",
                remedy="Call the model with `use_cache=False`, or return the tensors of the cache that you need."
                if "Cache" in kind
                else "Return one of these, or register the class with `jax.tree_util.register_pytree_node` or "
                "`torch.utils._pytree.register_pytree_node`.",
            )
        )
    return Static.of(item)


def _place_of_tensors(item: object) -> str | None:
    """Where there is a tensor in an object, or in the objects it holds: `layers[0].keys`."""
    seen: dict[int, object] = {}
    rest: collections.deque[tuple[object, str]] = collections.deque([(item, "")])
    while rest and len(seen) < _MOST_PARTS:
        part, place = rest.popleft()
        if isinstance(part, torch.Tensor):
            return place.removeprefix(".")
        if id(part) in seen or isinstance(part, (type, types.ModuleType, torch.nn.Module)):
            continue
        seen[id(part)] = part
        if isinstance(part, (set, frozenset, list, tuple)):
            rest.extend((inner, f"{place}[{i}]") for i, inner in enumerate(part))
        elif isinstance(part, dict):
            rest.extend((inner, f"{place}[{key!r}]") for key, inner in part.items())
        else:
            rest.extend((inner, f"{place}.{name}") for name, inner in getattr(part, "__dict__", {}).items())
    return None


_MOST_PARTS = 1000


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = a is b or (a._is_view() and a._base is b)
    return same and a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
