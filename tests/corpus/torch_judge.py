"""What native torch makes of a task: values, derivatives and batches, on copies of the module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as torch_tree
from agreement import inexact, is_inexact, leaves_of
from corpus_case import TorchTask
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = list[torch.Tensor]
STEP = 1e-6  # of central differences in float64
SHRINK = 0.97  # the factor of the second example; a scaled matrix stays symmetric, positive and of full rank


def noise(like: Sequence[torch.Tensor], seed: int) -> Tensors:
    """Random tensors of the same shapes and dtypes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in like]


class Native:
    """The task in native torch. A call is a list of the tensors among the arguments."""

    def __init__(self, task: TorchTask, mutable: bool = False) -> None:
        self.mutable = mutable
        self.fn = copy.deepcopy(task.fn) if isinstance(task.fn, torch.nn.Module) else task.fn
        leaves, self._spec = torch_tree.tree_flatten((task.args, task.kwargs))
        self._leaves = leaves
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self.inputs: Tensors = [leaves[i].detach() for i in self._places]
        self.names = list(dict(self.fn.named_parameters())) if isinstance(self.fn, torch.nn.Module) else []

    def arguments(self, inputs: Sequence[Any]) -> Any:
        """`(args, kwargs)` with other tensors or arrays."""
        leaves = list(self._leaves)
        for i, value in zip(self._places, inputs, strict=True):
            leaves[i] = value
        return torch_tree.tree_unflatten(leaves, self._spec)

    def examples(self) -> list[Tensors]:
        """Two examples of a batch: the inputs, and scaled ones, or the same ones if torch refuses the scaled."""
        return [self.inputs, self._scaled]

    @cached_property
    def _scaled(self) -> Tensors:
        scaled = [t * SHRINK if is_inexact(t) else t for t in self.inputs]
        try:
            shapes = [y.shape for y in self.values(scaled)]
        except Exception:
            return self.inputs
        return scaled if shapes == [y.shape for y in self.expected] else self.inputs

    def run(self, inputs: Tensors, fn: Any = None) -> Tensors:
        """The outputs, with the buffers that a mutable module has afterwards."""
        fn = copy.deepcopy(self.fn) if fn is None and self.mutable else fn or self.fn
        args, kwargs = self.arguments(inputs)
        outputs = fn(*args, **kwargs)
        return leaves_of((outputs, dict(fn.named_buffers()) if self.mutable else None))

    def values(self, inputs: Tensors) -> Tensors:
        """The outputs, without a graph."""
        torch.manual_seed(0)
        with torch.no_grad():
            return [y.clone() for y in self.run([t.clone() for t in inputs])]

    @cached_property
    def expected(self) -> Tensors:
        """The outputs of the task's own arguments."""
        return self.values(self.inputs)

    def wide(self) -> Native:
        """The same task in double precision."""
        return Native(TorchTask(in_double(self.fn), *self.arguments(in_double(self.inputs))), self.mutable)

    # --- derivatives, with respect to the parameters and to the inputs that can have one ---

    def leaves(self, inputs: Tensors) -> tuple[Any, Tensors, Tensors]:
        """The function, its inputs, and what is differentiated: parameters and inputs that require gradients."""
        fn = copy.deepcopy(self.fn) if isinstance(self.fn, torch.nn.Module) else self.fn
        copies = [t.clone().requires_grad_() if is_inexact(t) else t.clone() for t in inputs]
        params = dict(fn.named_parameters()) if self.names else {}
        for p in params.values():
            p.requires_grad_()
        return fn, copies, [*params.values(), *inexact(copies)]

    def moving(self) -> Tensors:
        """The primals of `leaves`."""
        return [t.detach() for t in self.leaves(self.inputs)[2]]

    def vjp(self, inputs: Tensors, cotangents: Tensors, create_graph: bool = False) -> tuple[Tensors, Tensors]:
        """What is differentiated, and the pullback in JAX's convention: torch's is its conjugate."""
        fn, copies, moving = self.leaves(inputs)
        torch.manual_seed(0)
        outputs = inexact(self.run([t.view_as(t) for t in copies], fn))
        pairs = [(y, ct.conj()) for y, ct in zip(outputs, cotangents, strict=True) if y.requires_grad]
        if not pairs:
            return moving, [torch.zeros_like(t) for t in moving]
        ys, cts = zip(*pairs, strict=True)
        grads = torch.autograd.grad(ys, moving, cts, allow_unused=True, create_graph=create_graph)
        return moving, [torch.zeros_like(t) if g is None else g.conj() for t, g in zip(moving, grads, strict=True)]

    def hvp(self, cotangents: Tensors, vectors: Tensors) -> Tensors:
        """The product of the Hessian of the weighted sum of the outputs with a vector."""
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            moving, grads = self.vjp(self.inputs, cotangents, create_graph=True)
        pairs = [(g, v) for g, v in zip(grads, vectors, strict=True) if g.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in moving]
        gs, vs = zip(*pairs, strict=True)
        products = torch.autograd.grad(gs, moving, vs, allow_unused=True)
        return [torch.zeros_like(t) if p is None else p for t, p in zip(moving, products, strict=True)]

    def hvp_by_differences(self, cotangents: Tensors, vectors: Tensors) -> Tensors:
        """The same by central differences of gradients, which needs `wide`."""

        def gradient(step: float) -> Tensors:
            fn, copies, moving = self.leaves(self.inputs)
            with torch.no_grad():
                for t, v in zip(moving, vectors, strict=True):
                    t += step * v
            outputs = inexact(self.run(copies, fn))
            loss = sum((y * ct).sum() for y, ct in zip(outputs, cotangents, strict=True))
            grads = torch.autograd.grad(loss, moving, allow_unused=True)
            return [torch.zeros_like(t) if g is None else g for t, g in zip(moving, grads, strict=True)]

        pairs = zip(gradient(STEP), gradient(-STEP), vectors, strict=True)
        return [((a - b) / (2 * STEP)).to(v.dtype) for a, b, v in pairs]

    def jvp(self, tangents: Tensors) -> Tensors:
        """The pushforward, by torch's forward mode."""
        fn = copy.deepcopy(self.fn) if isinstance(self.fn, torch.nn.Module) else self.fn
        count = len(self.names)

        def moved(*moving: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rest = iter(moving[count:])
            inputs = [next(rest) if is_inexact(t) else t.clone() for t in self.inputs]
            args, kwargs = self.arguments(inputs)
            if not self.names:
                return tuple(inexact(leaves_of(fn(*args, **kwargs))))
            variables = dict(fn.named_buffers()) if self.mutable else {}
            variables = {name: b.clone() for name, b in variables.items()}
            params = dict(zip(self.names, moving[:count], strict=True))
            outputs = torch.func.functional_call(fn, params | variables, args, kwargs)
            return tuple(inexact(leaves_of((outputs, variables if self.mutable else None))))

        torch.manual_seed(0)
        primals = tuple(t.clone() for t in self.moving())
        return list(torch.func.jvp(moved, primals, tuple(tangents))[1])


def in_double(value: Any) -> Any:
    """A copy in double precision, where that makes a difference."""
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, list):
        return list(map(in_double, value))
    if isinstance(value, torch.Tensor) and is_inexact(value):
        return value.to(torch.complex128 if value.is_complex() else torch.float64)
    return value
