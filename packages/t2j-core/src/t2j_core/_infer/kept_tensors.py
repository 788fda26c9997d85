"""Tensors without data that a function keeps from the run which inferred its outputs, and uses in a real call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .._base.errors import T2jError, describe


def keeps_tensor(name: str) -> str:
    """The warning for a function that keeps such a tensor."""
    return (
        f"{name} keeps a tensor that it computed from its arguments while t2j inferred its outputs; that tensor holds "
        "no data. Declare the outputs with `output_shapes=`, and the function is not run before its first call."
    )


class _RefuseMeta(_compat.DispatchMode):
    """Raises if an operation takes a meta tensor, because some operations of torch read its memory.

    torch 2.13: on a CPU `torch.mm` of a tensor with data and a meta tensor returns uninitialised memory.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def handle(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = torch_tree.tree_leaves((args, kwargs))
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


def refusing_kept(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`fn`, which raises if it uses a tensor without data."""

    @functools.wraps(fn)
    def run(*args: object, **kwargs: object) -> Any:
        with _RefuseMeta(name):
            return fn(*args, **kwargs)

    return run
