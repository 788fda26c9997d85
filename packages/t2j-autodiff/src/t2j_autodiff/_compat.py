"""What is outside the compatibility promises of JAX and torch. Every use of it is here.

All of it is the same in every supported version: what differs is in t2j-core's file of this name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import torch
import torch.overrides
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from t2j_core.extend import DispatchMode, hide_frames, torch_gpus
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

hide_frames(__file__)

Zero = ad.Zero


def is_zero(tangent: object) -> bool:
    """Whether a tangent or cotangent is zero symbolically."""
    return type(tangent) is Zero


def zero_tangent(primal: Any) -> Any:
    """The symbolic zero tangent of a value: float0 for integers."""
    return Zero(jax.typeof(primal).to_tangent_aval())


def zero_cotangent(primal: Any) -> Any:
    """The symbolic zero cotangent of a linear operand."""
    return Zero(primal.aval)


def in_transform() -> bool:
    """Whether a transformation of `torch.func` is running on this thread."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@functools.cache
def prepare_forward_mode() -> None:
    """Import what torch imports when forward mode is first used, without the warnings of its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def in_forward_mode() -> bool:
    """Whether this thread is inside of a `torch.func.jvp`."""
    return any(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def forward_nesting() -> int:
    """How many calls of `torch.func.jvp` run, on all threads. The first of them opens the level, unless it is open."""
    return eager_transforms.JVP_NESTING


def count_forward_nesting(change: int) -> None:
    """Let `torch.func.jvp` take the level for one that is open, or not any more. No thread runs between."""
    eager_transforms.JVP_NESTING += change


def forward_level_is_open() -> bool:
    """Whether the one level of forward mode that all threads share is open."""
    return forward_ad._current_level >= 0


def open_forward_level() -> None:
    """Open the level of forward mode."""
    forward_ad.enter_dual_level()


def close_forward_level() -> None:
    """Close the level of forward mode. Every tangent is gone from then on."""
    if forward_level_is_open():  # otherwise a function has closed it
        forward_ad.exit_dual_level()


def forward_canary() -> Callable[[], bool]:
    """A function that tells whether the level has been open all the time since."""
    one = torch.ones(1)
    try:
        dual = forward_ad.make_dual(one, one, level=0)
    except RuntimeError:  # it was closed just now
        return lambda: False
    return lambda: forward_ad.unpack_dual(dual, level=0).tangent is not None


class _NoGradInForwardMode(torch.overrides.TorchFunctionMode):
    """Lets `torch.no_grad` stop forward mode too, which by itself it does not: JAX's two modes must agree."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch._C._set_grad_enabled:
            torch._C._set_fwd_grad_enabled(args[0])
        return result


@contextlib.contextmanager
def no_grad_stops_forward_mode() -> Iterator[None]:
    """Within, what runs under `torch.no_grad` has no tangents."""
    before = torch._C._is_fwd_grad_enabled()
    try:
        with _NoGradInForwardMode():
            yield
    finally:
        torch._C._set_fwd_grad_enabled(before)


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
    queue, seen = [t.grad_fn for t in results], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "Error":
            return True
        seen.add(node)
        queue += [edge for edge, _ in node.next_functions]
    return False


def conj(tensor: torch.Tensor) -> torch.Tensor:
    """The conjugate as numbers: of torch's own two, `vmap` cannot batch what follows one, nor the other itself."""
    if not tensor.is_complex():
        return tensor
    tensor = tensor.resolve_conj()
    return torch.complex(tensor.real, -tensor.imag)


def materialised(tensor: torch.Tensor) -> torch.Tensor:
    """Torch's symbolic zeros as numbers, and sparse gradients dense; any other tensor as it is."""
    if tensor.layout != torch.strided:  # as those of `nn.Embedding(sparse=True)`
        return tensor.to_dense()
    if not tensor._is_zerotensor():
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def random_states() -> list[torch.Tensor]:
    """The states of torch's generators, which tell whether somebody drew random numbers. None waits for a GPU."""
    gpus = (torch.cuda.default_generators[i] for i in torch_gpus())
    return [generator.get_state() for generator in (torch.default_generator, *gpus)]


class RandomOperations(DispatchMode):
    """Notes whether an operation of this thread draws random numbers."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        return func(*args, **(kwargs or {}))
