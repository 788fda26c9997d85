"""The native part: the Python objects that it uses, and its handlers. Sole importer of the extension."""

from __future__ import annotations

import atexit
import contextlib
import functools
import operator
from collections.abc import Callable, Sequence

import jax
import torch

from .. import _compat, _native
from .._base.config import config
from .._base.jax_inside import jax_inside
from .._run import streams
from .._run.capture import CapturedTarget
from .._run.comparing import compare_later, differing, digest, has_same_bits, private_copy
from .._run.escapes import (
    argument_kept,
    collect_garbage,
    movable_copy,
    operand_in_cycle,
    raise_escaped,
)
from .._run.exceptions import logger, report
from .._run.registry import resolve
from .._run.results import check_output, refuse_results
from .._run.writes import operand_written
from .._signature.signature import Signature
from .hooks import Hooks

TARGET = "t2j_torch_call"
CAPTURED_TARGET = "t2j_torch_call_captured"
"""For CUDA alone. XLA may put its calls into a command buffer, which the handler says in answer to a query."""
_NOTHING = "t2j_nothing"

_AUTOCAST_DEVICES = ("cpu", "cuda")


def _enter_state(first: bool, signature: Signature) -> contextlib.ExitStack:
    """Give the calling thread torch's default state; on the first call of a program, also refuse JAX inside torch.

    Where torch records a profile, the call is a range of it.
    """
    if _close_level_of(f"A torch function that ran before {signature.name}"):
        _compat.watch_forward_levels()  # so that it is named if it does that again
    stack = contextlib.ExitStack()
    stack.callback(_close_level_of, signature.name)
    stack.enter_context(_compat.default_torch_state(_AUTOCAST_DEVICES))
    stack.enter_context(_compat.profiled(signature.name))
    if first:
        name = signature.name
        stack.enter_context(_compat.refusing_jax(lambda operation: jax_inside(name, f"the operation `{operation}`")))
    return stack


def _close_level_of(culprit: str) -> bool:
    is_abandoned = _compat.close_abandoned_forward_level()
    if is_abandoned:
        logger.warning(
            "%s left a level of forward mode open. Use `with torch.autograd.forward_ad.dual_level():`.",
            culprit,
        )
    return is_abandoned


def _copy_into(destination: torch.Tensor, source: torch.Tensor) -> None:
    destination.copy_(source.detach(), non_blocking=True)


_COPIED_TOGETHER = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}
_COPIED_TOGETHER |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def _copy_all(destinations: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy small tensors of a GPU, all contiguous, with one launch for each of the common dtypes."""
    by_dtype: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for destination, source in zip(destinations, sources, strict=True):
        if destination.dtype not in _COPIED_TOGETHER:
            _copy_into(destination, source)
            continue
        to, of = by_dtype.setdefault(destination.dtype, ([], []))
        to.append(destination)
        of.append(source.detach())
    for to, of in by_dtype.values():
        torch._foreach_copy_(to, of, non_blocking=True)


def _warm_up(target: CapturedTarget, device: int) -> tuple[int, ...]:
    return target.warm_up(torch.device("cuda", device))


_can_move = _compat.learn_storage_layout(_native.learn_storage_layout, _native.exchange_memory)
HOOKS = Hooks(
    exchange=_compat.torch_exchange_api(),
    version=torch._C.TensorBase.__dict__["_version"],
    tensor_type=torch.Tensor,
    parameter_type=torch.nn.Parameter,
    out_of_memory_error=torch.OutOfMemoryError,
    from_dlpack=torch._C._from_dlpack,
    to_dlpack=torch._C._to_dlpack,
    is_conj=torch._C.TensorBase.is_conj,
    is_neg=torch._C.TensorBase.is_neg,
    clone=torch._C.TensorBase.clone,
    copy=_copy_into,
    copy_all=_copy_all,
    storage=_compat.storage_of,
    storage_uses=_compat.storage_uses,
    is_grad_enabled=torch.is_grad_enabled,
    set_grad_enabled=torch._C._set_grad_enabled,
    state_getters=_compat.state_getters(),
    enter_state=_enter_state,
    leave_state=contextlib.ExitStack.close,
    enter_stream=streams.enter,
    leave_stream=streams.leave,
    enter_capture=CapturedTarget.enter,
    leave_capture=contextlib.ExitStack.close,
    warm_up=_warm_up,
    resolve=resolve,
    check_output=check_output,
    refuse_results=refuse_results,
    report=report,
    private_copy=private_copy,
    digest=digest,
    has_same_bits=has_same_bits,
    compare_later=compare_later,
    differing=differing,
    operand_written=operand_written,
    argument_kept=argument_kept,
    operand_in_cycle=operand_in_cycle,
    movable_copy=functools.partial(movable_copy, _can_move),
    raise_escaped=raise_escaped,
    stop_redirecting=operator.methodcaller("give_up"),
    collect_garbage=collect_garbage,
    most_checked_bytes=config.checked_bytes,
)
_native.setup(HOOKS)
_handlers = _native.handlers()
for _handler, _platform in (("cpu", "cpu"), ("cuda", "CUDA"), ("rocm", "ROCM")):
    stages = {"instantiate": _handlers["instantiate"], "execute": _handlers[_handler]}
    jax.ffi.register_ffi_target(TARGET, stages, platform=_platform)
    jax.ffi.register_ffi_target(_NOTHING, _handlers["nothing"], platform=_platform)

# With `traits=` here, the plugin of jax 0.10 fails to initialise.
_stages = {stage: _handlers[f"{stage} captured"] for stage in ("instantiate", "initialize")}
jax.ffi.register_ffi_target(CAPTURED_TARGET, {**_stages, "execute": _handlers["cuda captured"]}, platform="CUDA")

# JAX registered its own hook at import, so this one runs first: no call may ask for the GIL of a dying interpreter.
atexit.register(_native.close_gate)
_compat.after_fork(_native.after_fork)

counters: Callable[[], dict[str, int]] = _native.counters
call_depth: Callable[[], int] = _native.call_depth
current_pair: Callable[[], tuple[int, int, int] | None] = _native.current_pair
has_windows: Callable[[], bool] = _native.has_windows
Windows = _native.Windows
uses_exchange_api = _native.uses_exchange_api
abi_layout: Callable[[], dict[str, int]] = _native.abi_layout


def nothing(*operands: jax.Array) -> jax.Array:
    """An FFI call of the same extension whose handler does nothing: the least that any call costs."""
    first = operands[0]
    result: jax.Array = jax.ffi.ffi_call(_NOTHING, jax.ShapeDtypeStruct(first.shape, first.dtype))(*operands)
    return result
