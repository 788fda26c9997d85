"""How a compiled program finds its function: by number, or by name in another process."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Protocol

from .._signature import serialise
from .._signature.signature import Signature
from .call_site import CallSite


class Callee(Protocol):
    """What a call site can run: a `TorchFn`, or a `WeakFn`."""

    id: int

    def call_site(self, *, is_captured: bool = False) -> CallSite:
        """What the native call site is built from; `is_captured` says that XLA may capture its calls."""
        ...


class NamedCallee(Callee, Protocol):
    """A `TorchFn`, which other processes may find by name."""

    serialised: str  # its name and signature as text; empty if it has no name


_ids = itertools.count(1)
# No lock: a signal handler or a finalizer may run in the middle of each of these functions and call them again.
_by_id: weakref.WeakValueDictionary[int, Callee] = weakref.WeakValueDictionary()
_weak_by_id: weakref.WeakValueDictionary[int, Callee] = weakref.WeakValueDictionary()
_by_call: weakref.WeakValueDictionary[str, Callee] = weakref.WeakValueDictionary()
_by_name: dict[str, Callable[[Signature], Callee]] = {}


def new_id() -> int:
    """A number for a function without a name, or for a `WeakFn`. No other one in this process has it."""
    return next(_ids)


def claim_weakly(weak: Callee) -> None:
    """Have call sites that are compiled for `weak` find it."""
    _weak_by_id[weak.id] = weak


def claim(fn: NamedCallee) -> None:
    """Have call sites that are compiled next find `fn`, even if another function has its name and signature."""
    if fn.serialised:
        _by_call[fn.serialised] = fn
    else:
        _by_id[fn.id] = fn


def register_name(name: str, build: Callable[[Signature], Callee]) -> None:
    """Have programs from other processes find a function by name. The newest registration of a name counts."""
    _by_name[name] = build
    for call in _calls():
        if serialise.name_of(call) == name:
            _by_call.pop(call, None)


def _calls() -> list[str]:
    while True:
        try:
            return list(_by_call.keys())
        except RuntimeError:  # another thread or a finalizer has changed it meanwhile
            continue


def resolve(number: int, call: str, is_captured: bool) -> CallSite:
    """What a compiled program's call site runs. Called by the native part, once per executable."""
    fn: Callee | None = _by_call.get(call) if call else _by_id.get(number) or _weak_by_id.get(number)
    if fn is None and call:
        name = serialise.name_of(call)
        build = _by_name.get(name)
        if build is None:
            raise serialise.unregistered(name, call)
        fn = build(serialise.decode(call))
    if fn is None:
        raise serialise.forgotten(number)
    return fn.call_site(is_captured=is_captured)


def live_count() -> int:
    """How many torch functions are registered, named ones included."""
    return len(_by_id) + len(_by_call)
