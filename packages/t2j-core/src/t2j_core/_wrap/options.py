"""The options of `torch2jax`, checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from numbers import Integral
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args

import jax
import numpy as np

from .._base.errors import ArgumentError, describe
from .._base.public import closest
from .._run.call_options import CallOptions
from .._signature.declared import declared_outputs

Arguments = Literal["auto", "copy", "check"]
Results = Literal["auto", "copy", "out"]


class OptionGroup(Protocol):
    """A dataclass whose fields are options."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


_Group = TypeVar("_Group", bound=OptionGroup)


@dataclass(frozen=True)
class Options:
    """How a function is wrapped; see `torch2jax`, whose options these fields are."""

    output_shapes: Any = None
    mutable_argnums: Any = ()
    rng: bool = False
    arguments: Arguments = "auto"
    outputs: Results = "auto"
    has_side_effect: bool = False
    name: str | None = None
    compile: bool = False
    command_buffer: bool = False

    def __post_init__(self) -> None:
        """Check the options, and bring `mutable_argnums` and bools to one form."""
        check_choice("arguments", self.arguments, get_args(Arguments))
        check_choice("outputs", self.outputs, get_args(Results))
        for name in ("rng", "has_side_effect", "compile", "command_buffer"):
            object.__setattr__(self, name, checked_bool(name, getattr(self, name)))
        _check_name(self.name)
        object.__setattr__(self, "mutable_argnums", argument_numbers("mutable_argnums", self.mutable_argnums))
        if self.output_shapes is not None:
            _check_tree("output_shapes", self.output_shapes)
            declared_outputs(self.output_shapes, ())

    def for_calls(self) -> CallOptions:
        """The options that calls need when they run."""
        return CallOptions(**{field.name: getattr(self, field.name) for field in fields(CallOptions)})


def taken(kind: type[_Group], options: Mapping[str, Any]) -> _Group:
    """The dataclass `kind` from those of the options that are its fields."""
    return kind(**{name: options[name] for name in option_names(kind) if name in options})


def option_names(*kinds: type[OptionGroup]) -> tuple[str, ...]:
    """The options that are fields of dataclasses."""
    return tuple(option.name for kind in kinds for option in fields(kind))


def check_options(function: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise what Python raises for an option that does not exist; `public` makes an `ArgumentError` of it."""
    for name in options:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument '{name}'")


def check_choice(option: str, given: object, choices: Sequence[str | None]) -> None:
    """Raise unless an option is one of some words."""
    if not (given is None or isinstance(given, str)) or given not in choices:
        *most, last = ("None" if choice is None else f'"{choice}"' for choice in choices)
        close = closest(given, [choice for choice in choices if choice]) if isinstance(given, str) else None
        remedy = "Choose one." if close is None else f'Did you mean "{close}"?'
        raise refused(option, f"{', '.join(most)} or {last}", given, remedy, what="unknown")


def checked_bool(option: str, given: object) -> bool:
    """A bool of Python or NumPy as a Python bool."""
    if not isinstance(given, (bool, np.bool_)):
        raise refused(option, "True or False", given, f"Pass `{option}=True` or `{option}=False`.")
    return bool(given)


def checked_integer(option: str, given: object, least: int, expected: str, remedy: str) -> int | None:
    """An integer of Python or NumPy that is at least `least`, as a Python int; or None."""
    if given is None:
        return None
    if isinstance(given, (bool, np.bool_)) or not isinstance(given, Integral) or int(given) < least:
        raise refused(option, expected, given, remedy)
    return int(given)


def checked_examples(args: tuple[Any, ...], kwargs: object) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """`*example_args` and `example_kw`; None if there are none."""
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        raise refused("example_kw", "a dict of the keyword arguments", kwargs, "Pass `example_kw={name: example}`.")
    return (args, dict(kwargs or {})) if args or kwargs else None


def refused(option: str, expected: str, given: object, remedy: str, what: str = "not valid") -> ArgumentError:
    """The error for a value that is not valid for an option."""
    try:
        got = repr(given)
    except Exception:  # it is the user's
        got = type(given).__name__
    return ArgumentError(describe(f"`{option}` is {what}.", expected=expected, got=got[:200], remedy=remedy))


def _check_name(name: object) -> None:
    if name is None:
        return
    try:
        if isinstance(name, str) and name.encode():
            return
    except UnicodeEncodeError:  # a half of a surrogate pair
        pass
    raise refused("name", "a text that is not empty, or None", name, 'Pass `name="my_function"`.')


def _check_tree(option: str, tree: object) -> None:
    try:
        jax.tree.structure(tree)
    except Exception as error:  # such as a dict whose keys have no order
        raise refused(option, "a pytree", tree, "Use tuples, lists and dicts with keys of one type.") from error


def argument_numbers(option: str, given: object) -> tuple[int, ...]:
    """Positions of arguments as a tuple, from one number or several."""
    numbers: tuple[Any, ...] = (given,)
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping)):
        with contextlib.suppress(Exception):  # an array without axes
            numbers = tuple(given)
    if any(isinstance(n, (bool, np.bool_)) or not isinstance(n, Integral) or int(n) < 0 for n in numbers):
        raise ArgumentError(
            describe(
                f"`{option}` must be positions of arguments.",
                expected="non-negative integers",
                got=repr(given),
                remedy="Count positional arguments from 0.",
            )
        )
    return tuple(map(int, numbers))


def are_at(option: str, numbers: Sequence[int], paths: Sequence[str], name: str) -> list[bool]:
    """For each path of an array, whether it is in an argument at one of the positions. Every position must have one."""
    owners = [path.split("]")[0] + "]" for path in paths]
    for number in numbers:
        if f"args[{number}]" not in owners:
            raise ArgumentError(
                describe(
                    f"`{option}` names position {number}, but {name} has no array there.",
                    expected=f"a position of an array among {', '.join(paths) or 'no arrays'}",
                    got=number,
                    remedy="Correct the position, and pass that argument by position.",
                )
            )
    chosen = {f"args[{number}]" for number in numbers}
    return [owner in chosen for owner in owners]
