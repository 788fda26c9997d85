"""What the nodes of torch's graphs are, and tensors that some of its kernels take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.overrides
import torch.utils._pytree


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """Scaled dot product attention in plain operations: its fast kernels lack forward mode and second derivatives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]):
        yield


def is_once_differentiable(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph behind `results` has a backward that was marked with `once_differentiable`.

    Such a backward is cut off from what it came from, so that autograd takes its derivative for zero.
    """
    return any(type(node).__name__ == "Error" for node in _nodes(t.grad_fn for t in results))


def has_own_jvp(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph behind `results` has an `autograd.Function` that defines its forward mode."""
    classes = (getattr(type(node), "_forward_cls", None) for node in _nodes(t.grad_fn for t in results))
    return any(cls is not None and cls.jvp is not torch.autograd.Function.jvp for cls in classes)


def has_function(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph behind `results` has an `autograd.Function`."""
    return any(hasattr(type(node), "_forward_cls") for node in _nodes(t.grad_fn for t in results))


def has_old_function(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph behind `results` has an `autograd.Function` whose forward gets the context."""
    classes = (getattr(type(node), "_forward_cls", None) for node in _nodes(t.grad_fn for t in results))
    default = torch.autograd.Function.setup_context
    return any(cls is not None and cls.setup_context is default for cls in classes)


def conj(tensor: torch.Tensor) -> torch.Tensor:
    """The conjugate as numbers: of torch's own two, `vmap` cannot batch what follows one, nor the other itself."""
    if not tensor.is_complex():
        return tensor
    tensor = tensor.resolve_conj()
    return torch.complex(tensor.real, -tensor.imag)


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a level of `torch.func`."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """What is inside of the wrappers of `torch.func`, which do not tell that it is a symbolic zero."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def materialised(tensor: torch.Tensor) -> torch.Tensor:
    """Torch's symbolic zeros as numbers, and sparse gradients dense; any other tensor as it is."""
    if tensor.layout != torch.strided:  # as those of `nn.Embedding(sparse=True)`
        return tensor.to_dense()
    if not unwrapped(tensor)._is_zerotensor():
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _nodes(roots: Iterable[Any]) -> Iterator[Any]:
    """The nodes of a graph."""
    queue, seen = list(roots), set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        queue += [edge for edge, _ in node.next_functions]
