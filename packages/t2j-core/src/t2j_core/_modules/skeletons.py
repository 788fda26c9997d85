"""Skeletons: copies of a module without the data of its variables, one for each call that runs at a time."""

from __future__ import annotations

import collections
import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch

from .. import _compat
from .._base.errors import ArgumentError, describe
from .deep_copy import deep_copy
from .in_use import current_use
from .parts import parts
from .skeleton import Skeleton, Variables


class Skeletons:
    """Skeletons of one module. Each call has one for itself: threads that swap variables of a shared one would race.

    They are copies of a copy that is never called, so that each starts with the state that the module had when it was
    wrapped, whatever happens to the module or to other skeletons.
    """

    def __init__(self, module: torch.nn.Module, train: bool | None) -> None:
        with _compat.default_torch_state(("cpu",)):
            self.pristine, self._empty = _copy_without_data(module)
        if train is not None:  # None: submodules keep their modes, such as a frozen BatchNorm
            self.pristine.train(train)
        self._pristine_ids = frozenset(map(id, parts(self.pristine)))
        self._free: collections.deque[Skeleton] = collections.deque([self._make()], maxlen=64)

    def _make(self) -> Skeleton:
        with _compat.default_torch_state(("cpu",)):  # without modes of this call, such as that of fake tensors
            return Skeleton(deep_copy(self.pristine, dict(self._empty)), self._pristine_ids)

    def call(
        self, variables: Variables, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, mutable: bool = False
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """The output of the module with these variables, and its buffers afterwards."""
        try:
            skeleton = self._free.pop()
        except IndexError:
            skeleton = self._make()
        use, is_kept = current_use(), False
        before = skeleton.references() if use is not None else []
        try:
            result = skeleton.call(variables, args, kwargs, mutable=mutable)
            is_kept = use is not None and any(map(operator.gt, skeleton.references(), before))
            return result
        finally:
            if use is not None and is_kept:
                use.keep(functools.partial(self._take_back, skeleton))
            else:
                self._take_back(skeleton)

    def _take_back(self, skeleton: Skeleton) -> None:
        if skeleton.empty():
            self._free.append(skeleton)


def _copy_without_data(module: torch.nn.Module) -> tuple[torch.nn.Module, dict[int, Any]]:
    """A copy of `module` whose variables hold no data, and a memo that lets further copies share these."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    shared = {id(empty): empty for empty in memo.values()}
    for part in parts(module):
        # `deepcopy` refuses tensors with autograd history: caches, and what hooks such as `weight_norm` compute.
        if isinstance(part, torch.Tensor) and id(part) not in memo and (not part.is_leaf or part.is_inference()):
            memo[id(part)] = part.detach().clone()
    try:
        return deep_copy(module, memo), shared
    except Exception as error:
        raise ArgumentError(
            describe(
                f"The module {type(module).__name__} cannot be copied ({type(error).__name__}: {error}).",
                expected="a module that `copy.deepcopy` accepts",
                remedy="Wrap a function that calls the module with `torch2jax` instead.",
            )
        ) from error
