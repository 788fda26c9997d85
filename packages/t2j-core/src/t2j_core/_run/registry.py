"""How a compiled program finds its function again: by number, or by name in another process."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._signature import serialise
from .._signature.signature import Signature

if TYPE_CHECKING:
    from .torch_fn import TorchFn
    from .weak_fn import WeakFn

_ids = itertools.count(1)
# Without a lock: a signal handler or a finalizer may run in the middle of each of these functions and call them again.
_by_id: weakref.WeakValueDictionary[int, TorchFn] = weakref.WeakValueDictionary()
_weak_by_id: weakref.WeakValueDictionary[int, WeakFn] = weakref.WeakValueDictionary()
_by_call: weakref.WeakValueDictionary[str, TorchFn] = weakref.WeakValueDictionary()
_by_name: dict[str, Callable[[Signature], TorchFn]] = {}


def new_id() -> int:
    """The number of a function that has no name, or of a `WeakFn`. It is never used again in this process."""
    return next(_ids)


def claim_weakly(weak: WeakFn) -> None:
    """Let call sites that are compiled for `weak` find it."""
    _weak_by_id[weak.id] = weak


def claim(fn: TorchFn) -> None:
    """Let call sites that are compiled next find `fn`, even if another function has its name and signature."""
    if fn.serialised:
        _by_call[fn.serialised] = fn
    else:
        _by_id[fn.id] = fn


def register_name(name: str, build: Callable[[Signature], TorchFn]) -> None:
    """Let programs from other processes find a function by name. The newest registration of a name counts."""
    _by_name[name] = build
    for key in _calls():
        if serialise.name_of(key) == name:
            _by_call.pop(key, None)


def _calls() -> list[str]:
    while True:
        try:
            return list(_by_call.keys())
        except RuntimeError:  # another thread or a finalizer has changed it meanwhile
            continue


def resolve(number: int, call: str) -> tuple[Any, ...]:
    """What a compiled program's call site runs. Called by the native part, once per executable."""
    fn: TorchFn | WeakFn | None = _by_call.get(call) if call else _by_id.get(number) or _weak_by_id.get(number)
    if fn is None and call:
        name = serialise.name_of(call)
        build = _by_name.get(name)
        if build is None:
            raise serialise.unregistered(name, call)
        fn = build(serialise.decode(call))
    if fn is None:
        raise serialise.forgotten(number)
    return fn.description()


def live_count() -> int:
    """How many torch functions are registered, named ones included."""
    return len(_by_id) + len(_by_call)
