"""The variables of a module: their names, shapes and dtypes, and the errors for those that do not fit."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Mapping

import jax
import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .._base.dtypes import AnyDType, canonical, dtype_j2t, dtype_t2j
from .._base.errors import ArgumentError, DTypeError, describe
from .._base.text import listed

NUMBERS = (bool, int, float, complex)
Number = bool | int | float | complex
_WHAT = {"params": "parameter", "buffers": "buffer"}
_TREE = '{"params": {...}, "buffers": {...}}'


class Layout:
    """The names, shapes and dtypes of a module's variables."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = type(module).__name__
        self.tensors: dict[str, dict[str, torch.Tensor]] = {
            "params": _without_data(module.named_parameters()),
            "buffers": _without_data(module.named_buffers()),
        }
        every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        first: dict[int, str] = {}
        self._tied = {name: first.setdefault(id(tensor), name) for name, tensor in every}

    def check(self, variables: object) -> None:
        """Raise `ArgumentError` if a variable is missing, unknown, or does not fit."""
        if not isinstance(variables, Mapping):
            what = f"The first argument of {self.module} must be its variables: `apply(variables, *args)`."
            raise _no_variables(what, variables)
        self.check_some(variables)
        for part, tensors in self.tensors.items():
            given = variables.get(part, {})
            for name, tensor in tensors.items():
                if name not in given:
                    raise missing(part, name, self.module, f"{len(given)} of {len(tensors)} {part}")
                if not isinstance(given[name], NUMBERS) and not _may_stand_for(given[name].dtype, tensor):
                    remedy = f"Convert it: `array.astype({dtype_t2j(tensor.dtype).name!r})`."
                    got = str(given[name].dtype)
                    raise self._misfit(part, name, "of a wrong dtype", str(tensor.dtype), got, remedy)

    def check_some(self, variables: object) -> None:
        """Raise `ArgumentError` if a variable is unknown or does not fit; some may be missing."""
        if not isinstance(variables, Mapping):
            raise _no_variables(f"`variables` must be variables of {self.module}.", variables)
        for part, values in variables.items():
            if not isinstance(values, Mapping):
                raise _no_variables(f"`variables[{part!r}]` is not a part of a module's variables.", values)
            for name, value in values.items():
                self._check(part, name, value)
            if part not in self.tensors:
                raise self._unknown(part, None)

    def _check(self, part: str, name: str, value: object) -> None:
        tensor = self.tensors.get(part, {}).get(name)
        if tensor is None:
            raise self._unknown(part, name)
        is_number = isinstance(value, NUMBERS)
        if isinstance(value, jax.ShapeDtypeStruct):
            raise self._misfit(part, name, "a description, which holds no data,", "an array", type(value).__name__)
        if not is_number and not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise self._misfit(part, name, "neither an array nor a number", "an array or a number", _got(value))
        if is_number and not _holds(tensor.dtype, value):
            raise self._misfit(part, name, "a number of a wrong kind", f"{tensor.dtype}", type(value).__name__)
        expected, got = tuple(tensor.shape), tuple(getattr(value, "shape", ()))
        if expected != got and not _may_be_shard(got, expected):
            remedy = "Pass variables of this module, as `module2jax` returns them."
            if got[1:] == expected:
                remedy = "To use several sets of variables, map over them: `jax.vmap(apply, in_axes=(0, None))`."
            raise self._misfit(part, name, "of a wrong shape", f"shape {expected}", f"shape {got}", remedy)

    def _misfit(self, part: str, name: str, what: str, expected: str, got: str, remedy: str = "") -> ArgumentError:
        return ArgumentError(
            describe(
                f"`variables[{part!r}][{name!r}]` is {what} in {self.module}.",
                expected=expected,
                got=got,
                remedy=remedy or "Pass variables of this module, as `module2jax` returns them.",
            )
        )

    def _unknown(self, part: str, name: str | None) -> ArgumentError:
        path = f"variables[{part!r}]" + ("" if name is None else f"[{name!r}]")
        return ArgumentError(
            describe(
                f"`{path}` is not a variable of {self.module}.",
                expected=_TREE if part not in self.tensors else self._names(part),
                got=repr(part if name is None else name),
                remedy=self._advice(part, name),
            )
        )

    def _names(self, part: str) -> str:
        names = listed(map(repr, self.tensors[part]))
        return f"names of the module's {_WHAT[part]}s: {names}" if names else f"no {_WHAT[part]}s"

    def _advice(self, part: str, name: str | None) -> str:
        if name is not None and self._tied.get(name, name) != name:
            return f"It is tied to {self._tied[name]!r}: pass it under that name only."
        for other, tensors in self.tensors.items():
            if name in tensors:
                return f"It is a {_WHAT[other]}: pass it as `variables[{other!r}][{name!r}]`."
        names = list(self.tensors.get(part, self.tensors))
        for full in names:
            if full.startswith(f"{name}."):
                return f"Names are flat, as in torch: {full!r}."
        close = difflib.get_close_matches(str(name if part in self.tensors else part), names, 1)
        return f"Use the name {close[0]!r}." if close else "Leave it out."


def _without_data(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in named}


def _may_be_shard(got: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether, within `jax.shard_map`, an array may be a part of a variable that is split over mesh axes."""
    sizes = _compat.mesh_axis_sizes()
    if not sizes or len(got) != len(whole):
        return False
    counts = {math.prod(some) for n in range(len(sizes) + 1) for some in itertools.combinations(sizes, n)}
    return all(any(size * count == full for count in counts) for size, full in zip(got, whole, strict=True))


def _may_stand_for(given: AnyDType, expected: torch.Tensor) -> bool:
    """Whether an array's dtype is of the kind of a variable's. Its width is the user's choice."""
    try:
        dtype = dtype_j2t(given)
    except DTypeError:  # which has an error of its own
        return True
    if dtype.is_complex or expected.is_complex():
        return expected.is_complex()
    return dtype.is_floating_point or not expected.is_floating_point() or expected.dim() == 0


def _holds(dtype: torch.dtype, number: object) -> bool:
    """Whether a number is of the kind of a dtype, or of a lesser one."""
    if dtype.is_complex:
        return True
    if dtype.is_floating_point:
        return not isinstance(number, complex)
    return isinstance(number, bool) if dtype == torch.bool else isinstance(number, int)


def as_tensor(value: torch.Tensor | Number, dtype: torch.dtype, call: object) -> torch.Tensor:
    """A variable in the dtype of its module, if it is a number or an array that JAX has narrowed.

    Any other dtype is the user's choice. But a number that passes a `jax.jit` has a dtype of JAX's choice.
    """
    if isinstance(value, NUMBERS):
        tensors = (leaf for leaf in torch_tree.tree_leaves(call) if isinstance(leaf, torch.Tensor))
        device = next((tensor.device for tensor in tensors), None)
        return torch.full((), value, dtype=dtype, device=device)
    is_narrowed = dtype_t2j(value.dtype) == canonical(dtype_t2j(dtype))
    is_integer = value.dim() == 0 and not (value.is_floating_point() or value.is_complex()) and dtype.is_floating_point
    return value.to(dtype) if is_narrowed or is_integer else value


def missing(part: str, name: str, module: str, got: str | None = None) -> ArgumentError:
    """The error for a variable that was not passed."""
    return ArgumentError(
        describe(
            f"`variables[{part!r}][{name!r}]` is missing in a call of {module}.",
            expected=f"{_TREE} with every parameter and buffer of the module",
            got=got,
            remedy='Pass `{**variables, "params": params}`, where `variables` is what `module2jax` returned.',
        )
    )


def _no_variables(what: str, got: object) -> ArgumentError:
    return ArgumentError(
        describe(
            what,
            expected=_TREE,
            got=_got(got),
            remedy='Pass `variables` as `module2jax` returned them, or `{**variables, "params": params}`.',
        )
    )


def _got(value: object) -> str:
    return f"an array of shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
