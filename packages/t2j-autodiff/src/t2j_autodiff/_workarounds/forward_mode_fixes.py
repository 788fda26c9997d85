"""Forward mode that agrees with reverse mode about `no_grad`, embeddings and custom operators.

Observed with torch 2.13:

- `torch.no_grad` does not stop forward mode (https://github.com/pytorch/pytorch/issues/78961). In JAX the two modes
  agree, so here it does.
- A custom operator with a backward from `torch.library.register_autograd` returns results without tangents:
  `autograd_impl` in torch/_library/autograd.py calls the backward's `autograd.Function` only where an argument
  requires a gradient. Here it raises, as torch's own operators without forward mode do.
- Embeddings: see `embeddings`. Writes to tensors outside a level: see `wrapper_writes`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree

from .. import _compat
from .embeddings import decomposed_embedding, is_special_embedding
from .wrapper_writes import WrapperWrites


class _ForwardModeFixes(WrapperWrites):
    def run_function(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_special_embedding(func, args, kwargs):
            return decomposed_embedding(func, args, kwargs)
        result = func(*args, **kwargs)
        if func is torch._C._set_grad_enabled:
            torch._C._set_fwd_grad_enabled(args[0])
        elif _is_custom_operator(func) and _loses_tangents((args, kwargs), result):
            raise NotImplementedError(f"The custom operator {func} has no forward mode.")
        return result


def _loses_tangents(given: object, result: object) -> bool:
    if not torch._C._is_fwd_grad_enabled():  # under `no_grad` no result has a tangent
        return False
    return any(map(_compat.has_tangent, _inexact(given))) and not all(map(_compat.has_tangent, _inexact(result)))


def _is_custom_operator(func: Callable[..., Any]) -> bool:
    is_operator = isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    return is_operator and not str(func).startswith(("aten.", "prims."))


def _inexact(tree: object) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [t for t in leaves if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())]


@contextlib.contextmanager
def forward_mode_fixes() -> Iterator[None]:
    """Within, forward mode differs from torch's as this module says."""
    before = torch._C._is_fwd_grad_enabled()
    try:
        with _ForwardModeFixes():
            yield
    finally:
        torch._C._set_fwd_grad_enabled(before)
