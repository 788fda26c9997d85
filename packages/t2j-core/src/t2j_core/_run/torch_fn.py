"""`TorchFn`: a torch function with its signature, as compiled programs know it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import _compat
from .._base.config import config
from .._base.dtypes import row_of_jax, row_of_torch
from .._base.errors import OutputError, describe
from .._signature import serialise
from .._signature.call_tree import PyTreeDef, Static
from .._signature.containers import plain
from .._signature.reordered import order
from .._signature.signature import Leaf, Signature
from .lending import BORROW, Lending
from .orphans import Origin
from .redirect import Redirected
from .registry import claim, new_id

_UINT8 = (1, 8)


class TorchFn:
    """A torch function for one signature. Primitives carry it as a parameter; it hashes by identity.

    `call` takes the arguments of the signature; or, if `is_flat`, one tensor per operand, and answers a tuple of
    tensors. `rules` is where a sister package puts what JAX's transformations need; None in core.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        signature: Signature,
        *,
        outputs: str = "copy",
        arguments: str = "auto",
        told: set[str] | None = None,
        passes: Sequence[int] | None = None,
        aliases: dict[int, int] | None = None,
        has_side_effect: bool = False,
        name: str | None = None,
        is_flat: bool = False,
        rules: Any = None,
    ) -> None:
        self.call = call
        self.origin: Origin = Origin(call)
        self.is_flat = is_flat
        self.signature = signature
        self.outputs = outputs
        self.lending: Lending = Lending(signature, passes, arguments, set() if told is None else told)
        self.aliases: dict[int, int] = dict(aliases or {})
        self.has_side_effect = has_side_effect
        self.rules = rules
        self.hidden: int = 0  # how many of the last results are kept for a backward, and seen by no user
        self.ticket: int | None = None  # the operand by which it finds what another call has left on the host
        self.jitted: Any = None  # the compiled form for eager binds, made when first needed; it may not own `self`
        self.pass_results: bool = outputs == "out"
        if outputs == "auto" and any(o.nbytes >= config.auto_output_bytes for o in signature.outputs.leaves):
            self.pass_results = not self.aliases
        self.target: Callable[..., Any] = self._target()
        self.reason_not_exportable: str | None = "it has no `name=`"
        self.serialised: str = ""
        if name is not None:
            self.serialised, self.reason_not_exportable = serialise.encode(name, signature)
        self.id: int = 0 if self.serialised else new_id()
        claim(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Programs carry their functions so as to keep them alive, but a serialised one finds its own by name."""
        return object, ()

    def __repr__(self) -> str:
        return f"<TorchFn {self.signature}>"

    @property
    def passes(self) -> tuple[int, ...]:
        """How each operand is handed over, as far as it is known now."""
        return self.lending.passes

    # What the handler calls: one tensor per operand (and per result buffer) -> a tensor, or a tuple of them.

    @property
    def _is_direct(self) -> bool:
        signature = self.signature
        unchanged = all(
            wire(leaf) is None and row_of_jax(leaf.dtype).torch == leaf.torch_dtype for leaf in signature.operands
        )
        same_results = all(wire(leaf) is None for leaf in signature.outputs.leaves)
        flat = self.is_flat or (signature.call_tree.is_positional and signature.outputs.single)
        return flat and unchanged and same_results and not self.pass_results

    def flat(self) -> Callable[..., tuple[Any, ...]]:
        """The function on one tensor per operand, each of its torch dtype: a tuple of tensors."""
        call, signature = self.call, self.signature
        if self.is_flat:
            return call
        merge = signature.call_tree.merger()
        orders: dict[PyTreeDef, tuple[int, ...]] = {}

        def run(*tensors: torch.Tensor, **extra: Any) -> tuple[Any, ...]:
            args, kwargs = merge(tensors)
            return tuple(_flatten_results(signature, call(*args, **kwargs, **extra), orders))

        return run

    def _target(self) -> Callable[..., Any]:
        if self._is_direct:
            return self.call
        call, outputs = self.flat(), self.signature.outputs
        arrive = _conversions(self.signature.operands)
        depart = [i for i, leaf in enumerate(outputs.leaves) if wire(leaf) is not None]

        def run(*tensors: torch.Tensor, **extra: Any) -> tuple[Any, ...]:
            data = list(tensors)
            for index, convert in arrive:
                data[index] = convert(data[index])
            results = call(*data, **extra)
            if depart:
                results = tuple(r.view(torch.uint8) if i in depart else r for i, r in enumerate(results))
            return results

        if not self.pass_results:
            return run
        n = len(self.signature.operands)
        if self.outputs == "out":

            def run_out(*tensors: torch.Tensor) -> tuple[Any, ...]:
                buffers = list(tensors[n:])
                for index in depart:
                    buffers[index] = buffers[index].view(outputs.leaves[index].torch_dtype)
                return run(*tensors[:n], out=outputs.unflatten(buffers))

            return run_out
        return Redirected(run, outputs.leaves, config.auto_output_bytes)

    def description(self) -> tuple[Any, ...]:
        """What the native call site is built from."""
        operands = tuple(
            (*_dlpack(leaf), leaf.shape, how) for leaf, how in zip(self.signature.operands, self.passes, strict=True)
        )
        results = tuple((*_dlpack(leaf), leaf.shape, BORROW) for leaf in self.signature.outputs.leaves)
        flags = (
            self.target is self.call and not self.is_flat,
            self.pass_results,
            self.outputs == "auto" and self.pass_results,
            self.lending.arguments == "check",
        )
        return self.target, self.signature, self.lending, operands, results, *flags


def _flatten_results(signature: Signature, answer: Any, orders: dict[PyTreeDef, tuple[int, ...]]) -> list[Any]:
    """The tensors of an answer, after its tree and constants were compared with the signature.

    `orders` remembers trees that are like that of the signature but for their containers.
    """
    import jax

    outputs = signature.outputs
    if outputs.single and isinstance(answer, torch.Tensor):
        return [answer]
    items, tree = jax.tree.flatten(plain(answer))
    if tree != outputs.tree:
        if tree not in orders:
            orders[tree] = order(signature, tree)
        items = [items[place] for place in orders[tree]]
    tensors = []
    for item, static in zip(items, outputs.statics, strict=True):
        if static is None:
            tensors.append(item)
        elif isinstance(item, torch.Tensor) or Static.of(item) != static:
            raise OutputError(
                describe(
                    f"{signature.name} returned a constant that differs from the one it returned when JAX traced it.",
                    expected=f"{static.kind.__name__}",
                    got=f"another {type(item).__name__}",
                    remedy="Return values that change from call to call as tensors: `torch.tensor(value)`.",
                )
            )
    return tensors


def wire(leaf: Leaf) -> tuple[int, int] | None:
    """Torch before 2.10 has no float8 in its DLPack: such arrays cross as bytes. None for all others."""
    if _compat.torch_exchange_api() is None and str(leaf.dtype).startswith("float8"):
        return _UINT8
    return None


def _dlpack(leaf: Leaf) -> tuple[int, int]:
    row = row_of_jax(leaf.dtype)
    return wire(leaf) or (row.code, row.bits)


def _conversions(operands: Sequence[Leaf]) -> list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]]:
    steps: list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = []
    for index, leaf in enumerate(operands):
        stored = row_of_jax(leaf.dtype).torch
        if wire(leaf) is not None:
            steps.append((index, operator.methodcaller("view", stored)))
        if leaf.torch_dtype != stored:
            row_of_torch(leaf.torch_dtype)
            steps.append((index, operator.methodcaller("to", leaf.torch_dtype)))
    return steps
