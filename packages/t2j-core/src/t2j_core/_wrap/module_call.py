"""The torch function behind `module2jax`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._modules.skeletons import Skeletons
from .._modules.variables import Layout
from .python_signature import signature_of


@dataclass(frozen=True)
class ModuleOptions:
    """The options of `module2jax` that `torch2jax` lacks."""

    train: bool | None = None
    mutable: bool = False
    copy: bool = False


class ModuleCall:
    """A module as a function of its variables and arguments. It is immutable, so that a copy of it is itself.

    It can be pickled where the module can, and without the data of the variables, of which it has none.
    """

    def __init__(self, module: torch.nn.Module, options: ModuleOptions, is_in_its_mode: bool = False) -> None:
        self._skeletons = Skeletons(module, None if is_in_its_mode else options.train)
        self._mutable = options.mutable
        self.__name__: str = type(module).__name__
        self.__doc__: str | None = f"The module {self.__name__} as a function of its variables and arguments."
        self.__signature__: inspect.Signature = signature_of(module, "variables")
        # Attributes, not methods: `functools.wraps` passes them on.
        self.t2j_made_by = "module2jax", options  # for `repr`
        self.t2j_check_arguments = functools.partial(_check, Layout(module))

    def __call__(self, variables: Mapping[str, Mapping[str, Any]], /, *args: Any, **kwargs: Any) -> Any:
        output, buffers = self._skeletons.call(variables, args, kwargs, mutable=self._mutable)
        return (output, buffers) if self._mutable else output

    def __reduce__(self) -> tuple[Any, ...]:
        return ModuleCall, (self._skeletons.pristine, self.t2j_made_by[1], True)

    def __copy__(self) -> ModuleCall:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleCall:
        return self


def _check(layout: Layout, /, *args: Any, **_: object) -> None:
    if args:
        layout.check(args[0])
