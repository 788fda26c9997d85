"""`torch.func.vmap` and `torch.func.vjp` of flat functions.

They do what `vmap_impl` in torch/_functorch/vmap.py and `_vjp_with_argnums` in torch/_functorch/eager_transforms.py do
(torch 2.6 to 2.13), but for the trees of arguments and results: taking those apart takes longer than a small function.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction
from torch._C import _functorch
from torch._functorch.eager_transforms import _autograd_grad, enable_inplace_requires_grad
from torch._functorch.vmap import lazy_load_decompositions  # type: ignore[attr-defined]
from torch.autograd.graph import disable_saved_tensors_hooks


@functools.cache
def _load_decompositions() -> None:
    """What `torch.func.vmap` calls each time, once: it takes as long as a small operation."""
    lazy_load_decompositions()


def flat_vmap(f: FlatFunction, dims: Sequence[int | None], size: int, randomness: str) -> FlatFunction:
    """`torch.func.vmap(f, dims, randomness=randomness)` for `size` examples."""

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _load_decompositions()
        try:
            level = _functorch._vmap_increment_nesting(size, randomness)
            examples = [
                t if d is None else _functorch._add_batch_dim(t, d, level) for t, d in zip(x, dims, strict=True)
            ]
            return tuple([_functorch._remove_batch_dim(_tensor(t), level, size, 0) for t in f(*examples)])
        finally:
            _functorch._vmap_decrement_nesting()

    return run


def _tensor(t: object) -> torch.Tensor:
    if not isinstance(t, torch.Tensor):
        raise TypeError(
            f"`torch.func.vmap` takes a function that returns tensors, and this one returns a {type(t).__name__}."
        )
    return t


def flat_vjp(
    f: FlatFunction, x: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The pullback of `torch.func.vjp(f, *x)` at `cotangents`, each of which may have another dtype than its result."""
    with disable_saved_tensors_hooks("`torch.func.vjp` does not support saved tensor hooks."):
        try:
            level = _functorch._grad_increment_nesting()
            with torch.enable_grad():
                inputs = [_functorch._wrap_for_grad(t, level) for t in x]
                with enable_inplace_requires_grad(True):
                    for t in inputs:
                        t.requires_grad_()
                y = f(*inputs)
                dtypes = [t.dtype for t in y]
        finally:
            _functorch._grad_decrement_nesting()
    given = [ct.to(dtype) for ct, dtype in zip(cotangents, dtypes, strict=True)]
    return _autograd_grad(y, inputs, given, retain_graph=True, create_graph=torch.is_grad_enabled())
