"""A copy of a module without the data of its variables, which runs with the variables of one call at a time."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .snapshot import Snapshot
from .variables import as_tensor, missing

Variables = Mapping[str, Mapping[str, Any]]


class _Variable(NamedTuple):
    """A parameter or buffer, under its first name."""

    part: str
    name: str
    empty: torch.Tensor


class _Slot(NamedTuple):
    """A place in a module that refers to a variable."""

    holder: Any  # `_parameters` or `_buffers` of a submodule, or another container
    key: Any
    variable: int  # index in `Skeleton._variables`


def _value(holder: Mapping[str, torch.Tensor | None], key: str, before: torch.Tensor) -> torch.Tensor:
    """A buffer after a call; as it was before if the module has removed it, or registered a parameter in its place."""
    if key not in holder:
        return before
    value = holder[key]
    return before if value is None else value


def _filled(value: object, by_id: Mapping[int, int], tensors: Sequence[torch.Tensor]) -> object:
    """A tuple with the tensors of a call in the place of variables: `self.weights = (self.a, self.b)`."""
    if id(value) in by_id:
        return tensors[by_id[id(value)]]
    is_named = isinstance(value, tuple) and "_fields" in vars(type(value))
    if not isinstance(value, tuple) or not (type(value) is tuple or is_named):
        return value
    parts = [_filled(part, by_id, tensors) for part in tuple.__iter__(value)]
    kind: Any = type(value)
    return kind(*parts) if is_named else tuple(parts)


_PARTS = ("params", "buffers")  # in the order of the variables


def _picker(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """A function that takes the values of several names from a dict, in C where there are more than one."""
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda values: [values[name] for name in names]


_dtype: Callable[[Any], torch.dtype] = operator.attrgetter("dtype")


def _have(dtypes: Sequence[torch.dtype], values: Sequence[Any]) -> bool:
    try:
        return list(map(_dtype, values)) == dtypes
    except AttributeError:  # a number
        return False


class Skeleton:
    """A module without data, for one call at a time."""

    def __init__(self, module: torch.nn.Module, shared: frozenset[int]) -> None:
        self.module = module
        self._modules = list(module.modules())
        self._variables: list[_Variable] = []
        self._written: set[int] = set()  # buffers of submodules in training mode, such as running statistics
        self._slots = self._find_slots("params", "_parameters")
        self._count_of_parameters = len(self._variables)  # they come first, then the buffers
        self._slots += self._find_slots("buffers", "_buffers")
        self._buffers = [slot for slot in self._slots if self._variables[slot.variable].part == "buffers"]
        self._dtypes = [variable.empty.dtype for variable in self._variables]
        names = {part: [v.name for v in self._variables if v.part == part] for part in _PARTS}
        self._pickers = [(part, _picker(some)) for part, some in names.items() if some]
        # `_parameters` of TorchScript is a view of a C++ object, which a snapshot does not restore.
        self._foreign = [slot for slot in self._slots if not isinstance(slot.holder, dict)]
        self._recurrent = [m for m in self._modules if hasattr(m, "_flat_weights_names")]
        self._snapshot = Snapshot(module, shared)
        self._by_id = {id(variable.empty): index for index, variable in enumerate(self._variables)}
        self._slots += self._find_references()
        self._tuples = list(self._snapshot.tuples(self._by_id))

    def _find_slots(self, part: str, attribute: str) -> list[_Slot]:
        slots = []
        known: dict[int, int] = {}  # a tied tensor has the name under which it is found first
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

    def call(
        self, variables: Variables, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, mutable: bool
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """The output of the module with these variables, and its buffers afterwards."""
        self._snapshot.class_level.begin()
        tensors = self._tensors(variables, mutable, (variables, args, kwargs))
        for holder, key, index in self._slots:
            holder[key] = tensors[index]
        for holder, key, value in self._tuples:
            holder[key] = _filled(value, self._by_id, tensors)
        for module in self._recurrent:  # recurrent layers such as LSTM keep a second list of their weights
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]  # type: ignore
        output = self._snapshot.apart(self.module(*args, **kwargs))
        return output, {self._variables[i].name: _value(holder, key, tensors[i]) for holder, key, i in self._buffers}

    def _tensors(self, variables: Variables, mutable: bool, call: object) -> list[torch.Tensor]:
        tensors = self._given(variables)
        if not _have(self._dtypes, tensors):
            wanted = zip(tensors, self._dtypes, strict=True)
            tensors = [t if _have([dtype], [t]) else as_tensor(t, dtype, call) for t, dtype in wanted]
        first = self._count_of_parameters
        if mutable:  # new values of buffers do not depend on old ones in derivatives, as in torch
            tensors[first:] = [t.detach() for t in tensors[first:]]
        for index in self._written:
            tensors[index] = tensors[index].clone()
        for tensor in tensors[:first]:
            tensor._is_param = True  # `isinstance(tensor, torch.nn.Parameter)`, by torch's `_ParameterMeta`
        return tensors

    def _given(self, variables: Variables) -> list[Any]:
        try:
            return [value for part, pick in self._pickers for value in pick(variables[part])]
        except KeyError:
            absent = next(v for v in self._variables if v.name not in variables.get(v.part, {}))
            raise missing(absent.part, absent.name, type(self.module).__name__) from None

    def empty(self) -> bool:
        """Remove the variables, and the state that the call has left. False if the skeleton is to be discarded."""
        for holder, key, index in self._foreign:
            holder[key] = self._variables[index].empty
        return self._snapshot.restore()

    def references(self) -> list[int]:
        """The reference counts of the submodules. An autograd graph that will run one in its backward adds to them."""
        return list(map(sys.getrefcount, self._modules))
