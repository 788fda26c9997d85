"""Forward mode that loses no tangent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.overrides
import torch.utils._pytree

from .._compat.forward_levels import has_tangent
from .embeddings import is_special_embedding, plain_embedding
from .level_writes import is_idle_write, is_unchanged


class _FaithfulForwardMode(torch.overrides.TorchFunctionMode):
    """Mends four things of torch's forward mode.

    `torch.no_grad` does not stop it, and JAX's two modes must agree. A custom operator whose backward comes from
    `torch.library.register_autograd` loses tangents without a word: `torch._library.autograd.make_autograd_impl` goes
    through its backward only for arguments that require gradients. The derivative of an embedding does not know of
    `padding_idx` and `scale_grad_by_freq` (`embedding` in tools/autograd/derivatives.yaml). And a level of `torch.func`
    breaks tensors outside of it (`_level_writes`).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_special_embedding(func, args, kwargs or {}):
            return plain_embedding(func, args, kwargs or {})
        if is_idle_write(func, args):
            return None
        result = func(*args, **(kwargs or {}))
        if is_unchanged(args, result):
            return args[0]
        if func is torch._C._set_grad_enabled:
            torch._C._set_fwd_grad_enabled(args[0])
        elif _is_custom_operator(func) and _loses_tangents((args, kwargs), result):
            raise NotImplementedError(f"The custom operator {func} has no forward mode.")
        return result


def _loses_tangents(given: Any, result: Any) -> bool:
    if not torch._C._is_fwd_grad_enabled():  # as it should
        return False
    return any(map(has_tangent, _inexact(given))) and not all(map(has_tangent, _inexact(result)))


def _is_custom_operator(func: Any) -> bool:
    is_operator = isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    return is_operator and not str(func).startswith(("aten.", "prims."))


def _inexact(tree: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [t for t in leaves if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())]


@contextlib.contextmanager
def faithful_forward_mode() -> Iterator[None]:
    """Within, what runs under `torch.no_grad` has no tangents, and operators that would lose tangents raise."""
    before = torch._C._is_fwd_grad_enabled()
    try:
        with _FaithfulForwardMode():
            yield
    finally:
        torch._C._set_fwd_grad_enabled(before)
