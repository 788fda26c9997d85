"""Copies of a module without the data of its variables, which run with the variables of one call at a time."""

from __future__ import annotations

import collections
import functools
import operator
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .. import _compat
from .._base.errors import ArgumentError, describe
from .deep_copy import deep_copy
from .in_use import current_use
from .parts import parts
from .snapshot import Snapshot
from .variables import as_tensor, missing

Variables = Mapping[str, Mapping[str, Any]]


class _Variable(NamedTuple):
    """A parameter or buffer, under its first name."""

    part: str
    name: str
    empty: torch.Tensor


class _Slot(NamedTuple):
    """A place in a module where a variable goes."""

    holder: Any  # `_parameters` or `_buffers` of a submodule, or another container that refers to the variable
    key: Any
    variable: int  # its number


class Skeletons:
    """Skeletons of one module. Threads never share one: swapping variables of a shared module is a race.

    They are copies of a copy that is never called, so that each begins with the state of the module at wrap time,
    whatever happens to the module or to other skeletons.
    """

    def __init__(self, module: torch.nn.Module, train: bool | None) -> None:
        with _compat.default_torch_state(("cpu",)):
            self.pristine, self._empty = _copy_without_data(module)
        if train is not None:  # otherwise submodules keep modes of their own, such as a frozen BatchNorm
            self.pristine.train(train)
        self._pristine_ids = frozenset(map(id, parts(self.pristine)))
        self._free: collections.deque[_Skeleton] = collections.deque([self._make()], maxlen=64)

    def _make(self) -> _Skeleton:
        with _compat.default_torch_state(("cpu",)):  # a mode of the call, such as fake tensors, is not for the next
            return _Skeleton(deep_copy(self.pristine, dict(self._empty)), self._pristine_ids)

    def call(self, variables: Variables, args: Any, kwargs: Any, *, mutable: bool = False) -> tuple[Any, Any]:
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

    def _take_back(self, skeleton: _Skeleton) -> None:
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
        # What hooks such as `weight_norm` compute, and caches, can be copied by `deepcopy` only without their history.
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


def _value(holder: Any, key: str, before: torch.Tensor) -> torch.Tensor:
    """A buffer after a call; as it was if the module has removed it, or put a parameter in its place."""
    if key not in holder or holder[key] is None:
        return before
    value: torch.Tensor = holder[key]
    return value


def _filled(value: Any, by_id: Mapping[int, int], tensors: Sequence[torch.Tensor]) -> Any:
    """A tuple with the tensors of a call in the place of variables: `self.weights = (self.a, self.b)`."""
    if id(value) in by_id:
        return tensors[by_id[id(value)]]
    is_named = isinstance(value, tuple) and "_fields" in vars(type(value))
    if type(value) is not tuple and not is_named:
        return value
    parts = [_filled(part, by_id, tensors) for part in tuple.__iter__(value)]
    return type(value)(*parts) if is_named else tuple(parts)


class _Skeleton:
    """A module without data, for one call at a time."""

    def __init__(self, module: torch.nn.Module, shared: frozenset[int]) -> None:
        self.module = module
        self._modules = list(module.modules())
        self._variables: list[_Variable] = []
        self._written: set[int] = set()  # buffers of submodules in training mode, such as running statistics
        self._slots = self._find_slots("params", "_parameters")
        self._parameters = len(self._variables)  # the first so many are parameters, the others buffers
        self._slots += self._find_slots("buffers", "_buffers")
        self._buffers = [slot for slot in self._slots if self._variables[slot.variable].part == "buffers"]
        # `_parameters` of TorchScript is a view of what C++ has, and in no snapshot.
        self._foreign = [slot for slot in self._slots if not isinstance(slot.holder, dict)]
        self._recurrent = [m for m in self._modules if hasattr(m, "_flat_weights_names")]
        self._snapshot = Snapshot(module, shared)
        self._by_id = {id(variable.empty): index for index, variable in enumerate(self._variables)}
        self._slots += self._find_references()
        self._tuples = list(self._snapshot.tuples(self._by_id))

    def _find_slots(self, part: str, attribute: str) -> list[_Slot]:
        slots = []
        known: dict[int, int] = {}  # a tied tensor goes by the name it is met with first
        for prefix, module in self.module.named_modules():
            for key, tensor in getattr(module, attribute).items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    known[id(tensor)] = len(self._variables)
                    self._variables.append(_Variable(part, f"{prefix}.{key}" if prefix else key, tensor))
                slots.append(_Slot(getattr(module, attribute), key, known[id(tensor)]))
                if part == "buffers" and module.training:
                    self._written.add(known[id(tensor)])
        return slots

    def _find_references(self) -> list[_Slot]:
        """Where other containers refer to variables: `self.weights = [self.a, self.b]`."""
        holders = {id(slot.holder) for slot in self._slots}
        places = self._snapshot.places(self._by_id)
        return [_Slot(container, key, self._by_id[i]) for container, key, i in places if id(container) not in holders]

    def call(self, variables: Variables, args: Any, kwargs: Any, *, mutable: bool) -> tuple[Any, Any]:
        """Run the module."""
        self._snapshot.class_level.begin()
        tensors = self._tensors(variables, mutable, (variables, args, kwargs))
        for holder, key, index in self._slots:
            holder[key] = tensors[index]
        for holder, key, value in self._tuples:
            holder[key] = _filled(value, self._by_id, tensors)
        for module in self._recurrent:  # LSTM and its kin keep a second list of their weights
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]  # type: ignore
        output = self._snapshot.apart(self.module(*args, **kwargs))
        return output, {self._variables[i].name: _value(holder, key, tensors[i]) for holder, key, i in self._buffers}

    def _tensors(self, variables: Variables, mutable: bool, call: Any) -> list[torch.Tensor]:
        tensors = []
        for part, name, empty in self._variables:
            try:
                tensor = variables[part][name]
            except KeyError:
                raise missing(part, name, type(self.module).__name__) from None
            if getattr(tensor, "dtype", None) is not empty.dtype:
                tensor = as_tensor(tensor, empty.dtype, call)
            if mutable and part == "buffers":  # their new values are no function of the old ones, nor are they in torch
                tensor = tensor.detach()
            tensors.append(tensor)
        for index in self._written:
            tensors[index] = tensors[index].clone()
        for tensor in tensors[: self._parameters]:
            tensor._is_param = True  # `isinstance(tensor, torch.nn.Parameter)`, by torch's `_ParameterMeta`
        return tensors

    def empty(self) -> bool:
        """What the module has noted of a call is gone with it. False if the skeleton is of no more use."""
        for holder, key, index in self._foreign:
            holder[key] = self._variables[index].empty
        return self._snapshot.restore()

    def references(self) -> list[int]:
        """How many there are to each submodule. A graph that will run one in its backward adds to them."""
        return list(map(sys.getrefcount, self._modules))
