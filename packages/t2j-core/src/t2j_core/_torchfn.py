"""`TorchFn`: a torch function with its signature, as compiled programs know it; and how they find it again."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _compat, _export
from ._config import config
from ._dtypes import row_of_jax, row_of_torch
from ._errors import OutputError, describe
from ._hooks import BufferSpec, CallSite
from ._lending import BORROW, Lending
from ._orphans import Origin
from ._pytree import PyTreeDef, Static, is_flat, merger, plain
from ._redirect import Redirected
from ._signature import Leaf, Signature
from ._trees import order

_ids = itertools.count(1)
# Without a lock: a signal handler or a finalizer may run in the middle of each of these functions and call them again.
_by_id: weakref.WeakValueDictionary[int, TorchFn | WeakFn] = weakref.WeakValueDictionary()
_by_call: weakref.WeakValueDictionary[str, TorchFn] = weakref.WeakValueDictionary()
_by_name: dict[str, Callable[[Signature], TorchFn]] = {}

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
        self.key: str = ""
        if name is not None:
            self.key, self.reason_not_exportable = _export.encode(name, signature)
        self.id: int = 0 if self.key else next(_ids)
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
        flat = self.is_flat or (is_flat(signature.key) and signature.outputs.single)
        return flat and unchanged and same_results and not self.pass_results

    def flat(self) -> Callable[..., tuple[Any, ...]]:
        """The function on one tensor per operand, each of its torch dtype: a tuple of tensors."""
        call, signature = self.call, self.signature
        if self.is_flat:
            return call
        merge = merger(signature.key)
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

    def description(self) -> CallSite:
        """What the native call site is built from."""
        return CallSite(
            target=self.target,
            signature=self.signature,
            lending=self.lending,
            operands=tuple(_buffer(*pair) for pair in zip(self.signature.operands, self.passes, strict=True)),
            results=tuple(_buffer(leaf, BORROW) for leaf in self.signature.outputs.leaves),
            returns_tensor=self.target is self.call and not self.is_flat,
            pass_results=self.pass_results,
            may_keep_results=self.outputs == "auto" and self.pass_results,
            checks_always=self.lending.arguments == "check",
        )


# --- programs that the function itself owns ------------------------------------------------------------------------


class WeakFn:
    """A `TorchFn` as the program for its eager binds knows it: by weak reference, because it owns that program.

    A program refers to its functions from C++, where Python's garbage collector sees no cycle. `in_flight` keeps the
    function alive until a program that has been started has run.
    """

    def __init__(self, fn: TorchFn) -> None:
        self._reference = weakref.ref(fn)
        self.id: int = next(_ids)
        _by_id[self.id] = self

    def __repr__(self) -> str:
        return f"<WeakFn {self.id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """A serialised program has no use for it."""
        return object, ()

    @property
    def fn(self) -> TorchFn:
        """The function, which is alive while somebody can call it."""
        fn = self._reference()
        if fn is None:
            raise _export.forgotten(self.id)
        return fn

    def description(self) -> CallSite:
        """As `TorchFn.description`, with a target and a signature that do not own the function."""
        site, signature = self.fn.description(), WeakSignature(self)
        return site._replace(target=WeakTarget(self), signature=signature, lending=site.lending.of(signature))


class WeakTarget:
    """The target of a `WeakFn`."""

    def __init__(self, weak: WeakFn) -> None:
        self._weak = weak

    def __call__(self, *tensors: torch.Tensor) -> Any:
        fn = self._weak.fn  # for as long as the call takes
        return fn.target(*tensors)

    def give_up(self) -> None:
        """As `Redirected.give_up`."""
        fn: Any = self._weak.fn
        fn.target.give_up()


class WeakSignature:
    """The signature of a `WeakFn`: it may hold constants that own the function."""

    def __init__(self, weak: WeakFn) -> None:
        self._weak = weak
        self.name = weak.fn.signature.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weak.fn.signature, name)


def strong(fn: TorchFn | WeakFn) -> TorchFn:
    """The function itself."""
    return fn.fn if isinstance(fn, WeakFn) else fn


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


def _buffer(leaf: Leaf, how: int) -> BufferSpec:
    row = row_of_jax(leaf.dtype)
    code, bits = wire(leaf) or (row.code, row.bits)
    return BufferSpec(row.short, code, bits, leaf.shape, how)


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


# --- finding a function again -------------------------------------------------------------------------------------


def claim(fn: TorchFn) -> None:
    """Let call sites that are compiled next find `fn`, even if another function has its name and signature."""
    if fn.key:
        _by_call[fn.key] = fn
    else:
        _by_id[fn.id] = fn


def register_name(name: str, build: Callable[[Signature], TorchFn]) -> None:
    """Let programs from other processes find a function by name. The newest registration of a name counts."""
    _by_name[name] = build
    for key in _calls():
        if _export.name_of(key) == name:
            _by_call.pop(key, None)


def _calls() -> list[str]:
    while True:
        try:
            return list(_by_call.keys())
        except RuntimeError:  # another thread or a finalizer has changed it meanwhile
            continue


def resolve(number: int, call: str) -> CallSite:
    """What a compiled program's call site runs. Called by the native part, once per executable."""
    fn: TorchFn | WeakFn | None = _by_call.get(call) if call else _by_id.get(number)
    if fn is None and call:
        name = _export.name_of(call)
        build = _by_name.get(name)
        if build is None:
            raise _export.unregistered(name, call)
        fn = build(_export.decode(call))
    if fn is None:
        raise _export.forgotten(number)
    return fn.description()


def live_count() -> int:
    """How many torch functions are registered, named ones included."""
    return sum(isinstance(fn, TorchFn) for fn in list(_by_id.values())) + len(_by_call)
