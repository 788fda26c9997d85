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
import torch.utils._pytree
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from t2j_core.extend import DispatchMode, hide_frames
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from ._batch_mends import is_attention_in_evaluation
from ._callers import calling_module
from ._embeddings import is_special_embedding, plain_embedding
from ._level_writes import is_idle_write, is_unchanged, unwrapped

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


def has_tangent(t: torch.Tensor) -> bool:
    """Whether forward mode, which is running, has a tangent for a tensor."""
    return forward_ad.unpack_dual(t).tangent is not None


@contextlib.contextmanager
def faithful_forward_mode() -> Iterator[None]:
    """Within, what runs under `torch.no_grad` has no tangents, and operators that would lose tangents raise."""
    before = torch._C._is_fwd_grad_enabled()
    try:
        with _FaithfulForwardMode():
            yield
    finally:
        torch._C._set_fwd_grad_enabled(before)


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """Scaled dot product attention in plain operations: its fast kernels lack forward mode and second derivatives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]):
        yield


_silenced: list[None] = []  # one for each batch that runs, on all threads


@contextlib.contextmanager
def silent_loops() -> Iterator[None]:
    """Within, `torch.func.vmap` does not warn where it loops over the examples of an operation.

    Users of `jax.vmap` are told of torch's batching rules otherwise, and where warnings are errors, a batch that works
    fails. The switch is one for all threads. Torch does not tell its state: afterwards it is on, as it is by default.
    """
    _silenced.append(None)
    try:
        _set_loop_warnings()
        yield
    finally:
        _silenced.pop()
        _set_loop_warnings()


def _set_loop_warnings() -> None:
    """Switch the warnings to what is wanted. Without a lock, which a signal handler in here could wait for.

    Whoever sets the switch looks again, so that it is right after the last one.
    """
    while True:
        is_on = not _silenced
        torch._C._functorch._set_vmap_fallback_warning_enabled(is_on)  # type: ignore[attr-defined]
        if is_on is (not _silenced):
            return


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


def materialised(tensor: torch.Tensor) -> torch.Tensor:
    """Torch's symbolic zeros as numbers, and sparse gradients dense; any other tensor as it is."""
    if tensor.layout != torch.strided:  # as those of `nn.Embedding(sparse=True)`
        return tensor.to_dense()
    if not unwrapped(tensor)._is_zerotensor():
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class RandomOperations(DispatchMode):
    """Notes whether an operation of this thread draws random numbers."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        return self.operate(func, args, kwargs)


# --- what torch.func.vmap gets wrong -------------------------------------------------------------------------------

# Each was found by running torch's own samples in a batch in which one operand alone has the batch axis, and one by
# one. torch 2.13: of `_cdist_backward` with the gradient alone batched most is zero, and a batch of values for
# `index_fill` is written into one expanded tensor.
_WRONG_IN_BATCHES = {"aten._cdist_backward.default", "aten.index_fill_.int_Tensor"}
_WRONG_NODES = {"CdistBackward0"}
# Where some cotangents of a batch of pullbacks are zero, autograd's derivative of the batch is wrong (torch 2.13; the
# only one among torch's own samples).
_WRONG_WHERE_DIFFERENTIATED = {"aten.logcumsumexp.default"}


class WrongInBatches(DispatchMode):
    """Notes an operation that `torch.func.vmap` batches wrongly, without an error.

    And attention without the logarithms of its sums, which only a backward needs. PyTorch leaves them out on a GPU
    where no argument says that it requires a gradient (`compute_logsumexp` in
    aten/src/ATen/native/transformers/attention.cpp), and the backward of cuDNN's kernel is then wrong without an error.
    """

    found: str | None = None
    attention: str | None = None

    def __init__(self, *, differentiated: bool = False) -> None:
        """`differentiated` says whether it is a batch of derivatives, of which a derivative is wanted."""
        super().__init__()
        self._wrong = _WRONG_IN_BATCHES | (_WRONG_WHERE_DIFFERENTIATED if differentiated else set())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in self._wrong:
            self.found = str(func)
        if str(func) in _ATTENTION_WITH_SUMS and not argument_of(func, "compute_log_sumexp", args, kwargs or {}):
            self.attention = str(func)
        return self.operate(func, args, kwargs)


_ATTENTION_WITH_SUMS = {
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
}


def argument_of(operation: Any, name: str, args: Any, kwargs: Any) -> Any:
    """What an operation gets for an argument, or its default; None if it has no argument of that name."""
    for position, argument in enumerate(operation._schema.arguments):
        if argument.name == name:
            return args[position] if position < len(args) else kwargs.get(name, argument.default_value)
    return None


def is_wrong_in_batches(edges: Iterable[Any]) -> bool:
    """Whether a graph has a backward that `torch.func.vmap` batches wrongly over cotangents."""
    return any(type(node).__name__ in _WRONG_NODES for node in _nodes(edges))


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


class GradientQuestions(torch.overrides.TorchFunctionMode):
    """Notes what a function does that depends on `requires_grad`, which `torch.func.vmap` hides from it.

    In a batch that is recorded by autograd, a tensor says that it requires no gradient, takes a hook that is never
    called, and an embedding forgets which index is padding. A checkpoint would run its part again outside of the batch.
    """

    decides: str | None = None  # what may change the values of the function
    hidden: str | None = None  # what may change its derivative alone
    hooks = False  # whether it sets hooks on tensors
    of_leaves = False  # whether it asks what else differs where it is traced
    changes_course = False  # whether the function takes another way because of this mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asker = calling_module(0)
        if asker == "torch.utils.checkpoint":
            self.hidden = "checkpoints"
        elif not asker.startswith(("t2j_", "torch._functorch.")):
            self._note(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        if func in _QUESTIONS:
            self.decides = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
            self.hooks |= func is torch.Tensor.register_hook
            self.of_leaves |= func in _OF_LEAVES
        elif is_attention_in_evaluation(func, kwargs):  # and does not ask in a mode
            self.decides, self.changes_course = "attention in a module", True
        elif func in _BAGS or is_special_embedding(func, args, kwargs) or _is_chunked(func, kwargs):
            self.hidden = func.__name__


_TENSOR: Any = torch.Tensor
_QUESTIONS = {
    _TENSOR.requires_grad.__get__,
    _TENSOR.grad_fn.__get__,
    _TENSOR.is_leaf.__get__,
    torch.Tensor.register_hook,
    torch.Tensor.retain_grad,
}
_OF_LEAVES = {_TENSOR.grad_fn.__get__, _TENSOR.is_leaf.__get__}


def _is_chunked(func: Any, kwargs: Any) -> bool:
    """Whether it is a loss that asks which argument requires a gradient, and computes that in its forward."""
    return func is not None and func is _LINEAR_LOSS and kwargs.get("options") is not None


_LINEAR_LOSS = vars(torch.nn.functional).get("linear_cross_entropy")  # of torch 2.13
_BAGS = {torch.nn.functional.embedding_bag, torch.embedding_bag}
