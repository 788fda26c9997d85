"""Tracing: the user's function runs once on tensors without data, and its operations become a graph."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule

from .. import _compat
from .._base.dtypes import row_of_jax
from .._infer.apart import apart
from .._infer.traced_ahead import traced_ahead
from .._signature.signature import Leaf
from .refusals import NotCompiledError

Function = Callable[..., Sequence[torch.Tensor]]


def trace(
    name: str, f: Function, x: Sequence[torch.Tensor], *, joint: bool = False, decomposes: bool = True
) -> GraphModule:
    """The operations of `f` on the fake tensors `x`; with its backward if `joint`.

    Its results share no memory with anything. Random numbers come from the state that torch's generators have when the
    graph runs, keys do not seed them. It `decomposes` operations as the compiler wants them. Raises any exception.
    """
    with _traced(name, decomposes=decomposes) as decompositions:
        return _compat.trace_ahead(_separate(f), x, decompositions, joint=joint)


def fake_tensors(leaves: Sequence[Leaf], device: torch.device, mode: Any = None) -> list[torch.Tensor]:
    """Tensors without data, of the dtypes that JAX stores."""
    with mode or _compat.fixed_shapes():
        return [torch.empty(leaf.shape, dtype=row_of_jax(leaf.dtype).torch, device=device) for leaf in leaves]


@contextlib.contextmanager
def _traced(name: str, *, decomposes: bool) -> Iterator[_compat.Decompositions | None]:
    with (
        apart(name),
        traced_ahead(),
        _compat.without_addresses(),
        _compat.without_onednn(),
        _compat.refusing_seeds(_seeds),
        _compat.for_compiler() if decomposes else contextlib.nullcontext() as decompositions,
    ):
        torch.default_generator.manual_seed(secrets.randbits(63))  # `apart` restores the state
        yield decompositions


def _seeds() -> Exception:
    return NotCompiledError("it seeds torch's generators, or changes their state")


def _separate(f: Function) -> Function:
    """`f`, whose results share no memory with its operands or each other, and which writes only into what it makes."""

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results: list[torch.Tensor] = []
        seed = torch.default_generator.initial_seed()
        with _Refuses():
            for t in f(*x):
                t = t.resolve_conj().resolve_neg()  # the compiler ignores the flags of lazy views
                shares = t._is_view() or any(t is other for other in (*x, *results))
                results.append(t.clone() if shares else t)
        if torch.default_generator.initial_seed() != seed:
            raise _seeds()
        return tuple(results)

    return run


class _Refuses(_compat.DispatchMode):
    """Refuses what a graph cannot do again: Python that takes values, writes into tensors that the function refers to.

    A trace would make such a write itself, once or twice.
    """

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _depends_on_values(func, args):
            raise NotCompiledError(f"what it does depends on values (by `{func}`)")
        schema = getattr(func, "_schema", None)  # higher-order operators have none
        if schema is not None and schema.is_mutable:
            given = (*args, *kwargs.values())
            for argument, value in zip(schema.arguments, given, strict=False):
                if argument.is_write and type(value) in (torch.Tensor, torch.nn.Parameter):
                    raise NotCompiledError("it writes into a tensor that it refers to")
        return func(*args, **kwargs)


def _depends_on_values(func: OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether Python gets values of tensors from an operation, or a tensor whose shape depends on them."""
    tags = getattr(func, "tags", ())
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
