"""`torch.autograd.grad` without what it does for arguments of other kinds, which takes as long as a small backward."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch.autograd.graph import GradientEdge, _engine_run_backward
from torch.overrides import has_torch_function

_NO_CONTEXT = contextlib.nullcontext()


def engine_grad(
    y: Sequence[torch.Tensor],
    x: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    *,
    create_graph: bool,
    around: contextlib.AbstractContextManager[object] = _NO_CONTEXT,
) -> Sequence[torch.Tensor | None]:
    """`torch.autograd.grad(y, x, cotangents, allow_unused=True, create_graph=create_graph)` in the context `around`.

    Only tensors of torch's own class, outside of function modes, take the short way. The engine would broadcast a
    cotangent of another shape (`validate_outputs` in torch/csrc/autograd/engine.cpp, torch 2.6 to 2.15).
    """
    if has_torch_function((*y, *x)) or any(ct.shape != t.shape for t, ct in zip(y, cotangents, strict=True)):
        with around:
            return torch.autograd.grad(y, x, cotangents, allow_unused=True, create_graph=create_graph)
    with around:
        return _engine_run_backward(
            tuple(y), tuple(cotangents), create_graph, create_graph, tuple(x), True, accumulate_grad=False
        )


def engine_grad_of_edges(
    edges: Sequence[GradientEdge],
    x: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    *,
    retain_graph: bool,
    at_once: bool = False,
    around: contextlib.AbstractContextManager[object] = _NO_CONTEXT,
) -> Sequence[torch.Tensor | None]:
    """`torch.autograd.grad(edges, x, cotangents, allow_unused=True, ...)` in the context `around`.

    `at_once` is its `is_grads_batched`.

    The cotangents have the shapes of the tensors that the edges lead to.
    """
    if at_once or has_torch_function(tuple(x)):
        with around:
            return torch.autograd.grad(
                edges, x, cotangents, allow_unused=True, retain_graph=retain_graph, is_grads_batched=at_once
            )
    with around:
        return _engine_run_backward(
            tuple(edges), tuple(cotangents), retain_graph, False, tuple(x), True, accumulate_grad=False
        )
