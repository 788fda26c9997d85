"""A `TorchFn` as the program for its eager calls knows it: by weak reference, because it owns that program."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from .._signature import serialise
from .call_site import CallSite
from .redirect import Redirected
from .registry import claim_weakly, new_id
from .torch_fn import TorchFn


class WeakFn:
    """A `TorchFn` by weak reference.

    A program refers to its functions from C++, where Python's garbage collector sees no cycle. `in_flight` keeps the
    function alive until a program that has been started has run.
    """

    def __init__(self, fn: TorchFn) -> None:
        self._reference = weakref.ref(fn)
        self.id: int = new_id()
        claim_weakly(self)

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
            raise serialise.forgotten(self.id)
        return fn

    def call_site(self, *, is_captured: bool = False) -> CallSite:
        """As `TorchFn.call_site`, with a target and a signature that do not own the function.

        Programs of eager calls have no calls that are captured.
        """
        site, signature = self.fn.call_site(), WeakSignature(self)
        lending = site.lending.with_signature(signature)
        return site._replace(target=WeakTarget(self), signature=signature, lending=lending)


class WeakTarget:
    """The target of a `WeakFn`."""

    def __init__(self, weak: WeakFn) -> None:
        self._weak = weak

    def __call__(self, *tensors: torch.Tensor) -> Any:
        fn = self._weak.fn  # for as long as the call takes
        return fn.target(*tensors)

    def give_up(self) -> None:
        """As `Redirected.give_up`."""
        target = self._weak.fn.target
        if isinstance(target, Redirected):
            target.give_up()


class WeakSignature:
    """The signature of a `WeakFn`: it may hold constants that own the function."""

    def __init__(self, weak: WeakFn) -> None:
        self._weak = weak
        self.name = weak.fn.signature.name

    def __getattr__(self, name: str) -> object:
        return getattr(self._weak.fn.signature, name)


def strong(fn: TorchFn | WeakFn) -> TorchFn:
    """The function itself."""
    return fn.fn if isinstance(fn, WeakFn) else fn
