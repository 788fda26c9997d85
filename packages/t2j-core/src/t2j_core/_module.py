"""`module2jax`: an `nn.Module` as a pure function of its parameters and buffers."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np
import torch

from ._convert import j2t, t2j
from ._dtypes import canonical, dtype_t2j
from ._errors import ArgumentError, describe
from ._keywords import Keywords
from ._wrap import TorchFunction, signature_of, torch2jax

Variables = dict[str, dict[str, Any]]


def module2jax(
    module: torch.nn.Module, *, train: bool | None = None, mutable: bool = False, **options: Unpack[Keywords]
) -> tuple[TorchFunction[...], Variables]:
    """An `nn.Module` as a pure JAX function and its variables.

    Args:
      module: any module; it is not changed. Tied parameters stay tied: they appear once, under their first name.
      train: run in training (True) or evaluation (False) mode; None keeps the mode the module is in.
      mutable: also return the new buffers, such as the running statistics of BatchNorm. Without it changes of
        buffers are dropped. Derivatives do not flow through the buffers of a call to those of the call before.
      **options: those of `torch2jax`. With `rng=True` a JAX key comes first: `apply(key, variables, x)`.

    Returns:
      `(apply, variables)`: `variables` is `{"params": {name: array}, "buffers": {name: array}}`, over the module's own
      memory where that is aligned to 64 bytes (weights mapped from a safetensors file are not, and are copied once), so
      do not train the module with torch afterwards, in place;
      `apply(variables, *args, **kwargs)` calls the module with them and returns its output, or `(output, buffers)` if
      `mutable`. Calls may run on several devices or threads at once.

    Raises:
      ArgumentError: if `module` is not a module, or cannot be copied.

    >>> import jax, jax.numpy as jnp, torch
    >>> apply, variables = module2jax(torch.nn.Linear(3, 2))
    >>> jax.jit(apply)(variables, jnp.ones((4, 3))).shape
    (4, 2)
    """
    call, variables = functional(module, train=train, mutable=mutable)
    return torch2jax(call, **options), variables


def functional(
    module: torch.nn.Module, *, train: bool | None = None, mutable: bool = False
) -> tuple[Callable[..., Any], Variables]:
    """The torch function behind `module2jax`, which takes the variables first, and the variables as JAX arrays."""
    if not isinstance(module, torch.nn.Module):
        raise ArgumentError(
            describe(
                "`module2jax` takes a module.",
                expected="torch.nn.Module",
                got=type(module).__name__,
                remedy="Wrap a function with `torch2jax`.",
            )
        )
    pool = _Pool(module, train)
    variables = {
        "params": {name: t2j(tensor) for name, tensor in module.named_parameters()},
        "buffers": {name: t2j(tensor) for name, tensor in module.named_buffers()},
    }

    def call(variables: Mapping[str, Mapping[str, torch.Tensor]], /, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(variables, Mapping):
            what = f"The first argument of {type(module).__name__} must be its variables: `apply(variables, *args)`."
            raise _not_variables(what, variables)
        if mutable:  # the state of a step is no function of the parameters of the step before, nor is it in torch
            buffers = {name: tensor.detach() for name, tensor in variables.get("buffers", {}).items()}
            variables = {**variables, "buffers": buffers}
        output, buffers = pool.call(variables, args, kwargs)
        return (output, buffers) if mutable else output

    call.__signature__ = signature_of(module, "variables")  # type: ignore[attr-defined]
    call.__name__ = type(module).__name__
    call.made_by = "module2jax"  # type: ignore[attr-defined]  # for `repr`
    call.__doc__ = f"The module {type(module).__name__} as a function of its variables and arguments."
    return call, variables


def load_variables(module: torch.nn.Module, variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write variables back into the module they came from, so that `state_dict()` saves them.

    Args:
      module: the module that was given to `module2jax`, or one of the same architecture.
      variables: `{"params": {...}, "buffers": {...}}` of concrete JAX arrays; either part may be missing.

    Raises:
      ArgumentError: for a name or shape the module does not have; nothing is written then.

    >>> import jax, torch
    >>> layer = torch.nn.Linear(1, 1)
    >>> apply, variables = module2jax(layer)
    >>> load_variables(layer, jax.tree.map(jax.numpy.ones_like, variables))
    >>> layer.bias.tolist()
    [1.0]
    """
    owned: dict[str, dict[str, torch.Tensor]] = {
        "params": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
    }
    pairs = []
    for part, tensors in variables.items():
        if not isinstance(tensors, Mapping):
            raise _not_variables(f"`variables[{part!r}]` is not a part of a module's variables.", tensors)
        for name, array in tensors.items():
            target = owned.get(part, {}).get(name)
            if target is None or tuple(target.shape) != np.shape(array):
                raise ArgumentError(
                    describe(
                        f"`variables[{part!r}][{name!r}]` does not fit the module {type(module).__name__}.",
                        expected="a variable of the module" if target is None else f"shape {tuple(target.shape)}",
                        got=f"shape {np.shape(array)}",
                        remedy="Pass variables of this module, as `module2jax` returns them.",
                    )
                )
            tensor = j2t(array) if isinstance(array, jax.Array) else torch.as_tensor(np.asarray(array))
            pairs.append((target, tensor))
    for target, tensor in pairs:  # memory of its own: the module's may be that of arrays of `module2jax`
        target.data = tensor.detach().to(target.device, target.dtype, copy=True)


class _Slot(NamedTuple):
    """A place in a skeleton where a variable goes."""

    holder: dict[str, Any]  # `_parameters` or `_buffers` of a submodule
    attribute: str
    part: str
    name: str
    empty: torch.Tensor
    training: bool


class _Skeleton:
    """A copy of a module without data, for one call at a time."""

    def __init__(self, module: torch.nn.Module, train: bool | None) -> None:
        memo: dict[int, Any] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            empty = torch.empty_like(tensor, device="meta", requires_grad=False)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = torch.nn.Parameter(empty, requires_grad=False) if is_parameter else empty
        for tensor in (value for m in module.modules() for value in vars(m).values()):
            if isinstance(tensor, torch.Tensor) and not tensor.is_leaf:  # as hooks such as `weight_norm` compute
                memo[id(tensor)] = tensor.detach().clone()
        try:
            self.module = copy.deepcopy(module, memo)
        except Exception as error:
            raise ArgumentError(
                describe(
                    f"The module {type(module).__name__} cannot be copied ({type(error).__name__}: {error}).",
                    expected="a module that `copy.deepcopy` accepts",
                    remedy="Wrap a function that calls the module with `torch2jax` instead.",
                )
            ) from error
        if train is not None:  # otherwise submodules keep modes of their own, such as a frozen BatchNorm
            self.module.train(train)
        self._slots = self._find_slots()
        self._recurrent = [m for m in self.module.modules() if hasattr(m, "_flat_weights_names")]
        places = [place for m in self.module.modules() for place in (vars(m), m._buffers) if isinstance(place, dict)]
        self._before = [(place, dict(place)) for place in places]

    def _find_slots(self) -> list[_Slot]:
        slots = []
        for part, attribute in (("params", "_parameters"), ("buffers", "_buffers")):
            first_name: dict[int, str] = {}  # a tied tensor goes by the name it is met with first
            for prefix, module in self.module.named_modules():
                holder = getattr(module, attribute)
                for key, tensor in holder.items():
                    if tensor is not None:
                        name = first_name.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                        slots.append(_Slot(holder, key, part, name, tensor, module.training))
        return slots

    def call(self, variables: Mapping[str, Mapping[str, torch.Tensor]], args: Any, kwargs: Any) -> tuple[Any, Any]:
        private: dict[str, torch.Tensor] = {}
        for slot in self._slots:
            if slot.name not in variables.get(slot.part, {}):
                raise _missing(slot, type(self.module).__name__)
            tensor = _restored(variables[slot.part][slot.name], slot.empty.dtype)
            if slot.part == "buffers" and slot.training:  # such as running statistics
                tensor = private.setdefault(slot.name, tensor.clone())
            slot.holder[slot.attribute] = tensor
        for module in self._recurrent:  # LSTM and its kin keep a second list of their weights
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]  # type: ignore
        output = self.module(*args, **kwargs)
        buffers = {s.name: s.holder[s.attribute] for s in self._slots if s.part == "buffers"}
        return output, buffers

    def empty(self) -> None:
        """What the module has noted of a call is gone with it, such as attention weights and their graph."""
        for slot in self._slots:
            slot.holder[slot.attribute] = slot.empty
        for place, before in self._before:
            place.update(before)
            if len(place) > len(before):
                for name in place.keys() - before.keys():
                    del place[name]

    def references(self) -> list[int]:
        """How many there are to each submodule. A graph that will run one in its backward adds to them."""
        return [sys.getrefcount(m) for m in self.module.modules()]


def _missing(slot: _Slot, module: str) -> ArgumentError:
    return ArgumentError(
        describe(
            f"`variables[{slot.part!r}][{slot.name!r}]` is missing in a call of {module}.",
            expected='{"params": {...}, "buffers": {...}} with every parameter and buffer of the module',
            remedy='Pass `{**variables, "params": params}`, where `variables` is what `module2jax` returned.',
        )
    )


def _not_variables(what: str, got: Any) -> ArgumentError:
    return ArgumentError(
        describe(
            what,
            expected='{"params": {...}, "buffers": {...}}',
            got=f"an array of shape {tuple(got.shape)}" if hasattr(got, "shape") else type(got).__name__,
            remedy='Pass `variables` as `module2jax` returned them, or `{**variables, "params": params}`.',
        )
    )


def _restored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Undo the narrowing to 32 bits that JAX does while x64 is off; any other dtype is the user's choice."""
    narrowed = tensor.dtype != dtype and dtype_t2j(tensor.dtype) == canonical(dtype_t2j(dtype))
    return tensor.to(dtype) if narrowed else tensor


class _Pool:
    """Skeletons that are not in use. Threads never share one: swapping variables of a shared module is a race."""

    def __init__(self, module: torch.nn.Module, train: bool | None) -> None:
        self._module, self._train = module, train
        self._free = collections.deque([_Skeleton(module, train)], maxlen=64)

    def call(self, variables: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            skeleton = self._free.pop()
        except IndexError:
            skeleton = _Skeleton(self._module, self._train)
        use, is_kept = _context.use, False
        before = skeleton.references() if use is not None else []
        try:
            answer = skeleton.call(variables, args, kwargs)
            is_kept = use is not None and any(map(operator.gt, skeleton.references(), before))
            return answer
        finally:
            if use is not None and is_kept:
                use.keep(functools.partial(self._take_back, skeleton))
            else:
                self._take_back(skeleton)

    def _take_back(self, skeleton: _Skeleton) -> None:
        skeleton.empty()
        self._free.append(skeleton)


class ModuleUse:
    """How modules are used in a context; see `modules_in_use`."""

    def __init__(self, until: contextlib.ExitStack | None) -> None:
        self._until = until
        self.is_kept = False  # results refer to a module, whose code their backward may run

    def keep(self, take_back: Callable[[], None]) -> None:
        """Note that results refer to a module, and let it have its variables for as long as the context allows."""
        self.is_kept = True
        if self._until is None:
            take_back()
        else:
            self._until.callback(take_back)


class _Context(threading.local):
    use: ModuleUse | None = None


_context = _Context()


@contextlib.contextmanager
def modules_in_use(*, until_the_end: bool) -> Iterator[ModuleUse]:
    """Watch the modules that are called within. Those that results refer to keep their variables `until_the_end`.

    A backward may run code of a module once more (`torch.utils.checkpoint` does), and must find the variables there.
    """
    if _context.use is not None:  # a derivative of a derivative
        yield _context.use
        return
    with contextlib.ExitStack() as until:
        _context.use = ModuleUse(until if until_the_end else None)
        try:
            yield _context.use
        finally:
            _context.use = None
