"""Functions that keep a tensor from the run without data that inferred their outputs, and use it later."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .._base.errors import T2jError, describe


def keeps_state(name: str) -> str:
    """What is said of a function that keeps such a tensor."""
    return (
        f"{name} keeps a tensor that it computed from its arguments while t2j inferred its outputs; that tensor holds "
        "no data. Declare the outputs with `output_shapes=`, and the function is not run before its first call."
    )


class _Refuse(_compat.DispatchMode):
    """Raises where an operation takes a tensor without data: some of torch's read its memory, which is nowhere.

    On a CPU `torch.mm` of a tensor with data and one on the meta device returns whatever is in the result's memory
    (torch 2.13).
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = torch_tree.tree_leaves((args, kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in leaves):
            raise T2jError(
                describe(
                    f"{self._name} uses a tensor that it kept while t2j inferred its outputs, and which holds no data.",
                    expected="a function that computes what it needs from its arguments at every call",
                    got=f"a tensor on the meta device, in `{func}`",
                    remedy="Do not keep what depends on arguments (or variables of a module) in globals or caches; or "
                    "declare the outputs with `output_shapes=`, so that the function is not run before its first call.",
                )
            )
        return self.operate(func, args, kwargs)


def refusing(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`call`, which raises where it uses a tensor without data."""

    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _Refuse(name):
            return call(*args, **kwargs)

    return run
