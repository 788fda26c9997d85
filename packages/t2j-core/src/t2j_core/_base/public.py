"""`public`: public functions name a misspelt option in their errors, and leave their frames out of tracebacks."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from .caught import Caught
from .errors import ArgumentError, describe

_F = TypeVar("_F", bound=Callable[..., Any])

WRAPPERS = ("torch2jax", "module2jax")  # of all packages; each adds options
ADDED_BY = {
    "t2j-autodiff": (
        *("depth", "nondiff_argnums", "nondiff_mask", "use_zeros", "use_torch_vjp"),
        *("residuals", "vmap_method", "vmap_randomness", "vmap_chunk_size"),
    ),
    "t2j-dist": ("out_specs", "in_specs", "mesh", "output_sharding_spec", "lock"),
}
OF_MODULES = ("train", "mutable", "copy")  # options of `module2jax` alone


def public(options: Sequence[str] = (), *, parameters: Sequence[inspect.Parameter] = ()) -> Callable[[_F], _F]:
    """Decorate a public function whose options are keyword-only.

    `options` names those that its `**options` takes. `parameters` are such options too, which its signature shows.
    Annotations in the signature are types, not their texts: `help` shows the values of a `Literal`.
    """
    options = [*options, *(parameter.name for parameter in parameters)]

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def run(*args: object, **kwargs: object) -> object:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                misused = _misused(function, options, args, kwargs) if isinstance(error, TypeError) else None
                caught = Caught(misused or error)
            raise caught.taken_for_user()

        run.__signature__ = _with_parameters(function, parameters)  # type: ignore[attr-defined]
        return cast("_F", run)

    return decorate


def _misused(
    function: Callable[..., Any], more: Sequence[str], args: Sequence[object], kwargs: Mapping[str, object]
) -> ArgumentError | None:
    """The error for an option that does not exist, or for a missing first argument."""
    options = list(dict.fromkeys((*options_of(function), *more)))
    first = next(iter(inspect.signature(function).parameters))
    name = function.__name__
    for given in kwargs:
        if given not in options and given != first:
            return ArgumentError(
                describe(
                    f"{name}() got an unexpected keyword argument '{given}'.",
                    expected=", ".join(options),
                    got=given,
                    remedy=_remedy(name, given, options),
                )
            )
    if not args and first not in kwargs:
        return ArgumentError(
            describe(
                f"`{name}` was called without its first argument `{first}`.",
                expected=f"`{name}({first}, ...)`",
                got=f"options alone: {', '.join(kwargs)}" if kwargs else "no argument",
                remedy=f"As a decorator with options write `@functools.partial({name}, ...)`.",
            )
        )
    if name == "module2jax" and len(args) > 1:
        return ArgumentError(
            describe(
                "`module2jax` takes the module alone, and options by name.",
                expected="`module2jax(module, ...)`",
                got=f"{len(args)} arguments",
                remedy="Pass arguments of the module to the function that it returns: `apply(variables, x)`.",
            )
        )
    return None


def _with_parameters(function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> inspect.Signature:
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if not parameters or p.kind is not p.VAR_KEYWORD]
    return signature.replace(parameters=[*own, *parameters])


def options_of(function: Callable[..., Any]) -> list[str]:
    """The names of a function's options."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _remedy(function: str, given: str, options: Sequence[str]) -> str:
    for package, added in ADDED_BY.items():
        if function in WRAPPERS and given in added:
            module = package.replace("-", "_")
            return f"Install {package} and change one import: `from {module} import {function}`."
    if function == "torch2jax" and given in OF_MODULES:
        return "It is an option of `module2jax`: wrap the module with that."
    close = closest(given, options)
    return "Leave it out." if close is None else f"Did you mean `{close}`?"


def closest(given: str, known: Sequence[str]) -> str | None:
    """The known word that is most like a misspelt one; None if none is similar."""
    found = difflib.get_close_matches(given.lower(), [word.lower() for word in known], 1, 0.6)
    return next((word for word in known if found and word.lower() == found[0]), None)
