"""The JAX primitive `torch_call`: its types, its lowering to the native handler. Sole importer of the extension."""

from __future__ import annotations

import atexit
import contextlib
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch

from . import _compat, _faults, _lending, _native, _streams
from ._config import config
from ._debug_nans import check_numbers, wanted_checks, without_checks
from ._errors import ShardingError, TransformError, describe
from ._export import refused
from ._hooks import Hooks
from ._host import host_call
from ._in_flight import hold_until_ready
from ._jax_inside import jax_inside
from ._once import on_first_device
from ._originals import of_thread, original_of, raise_late, raises_originals
from ._signature import Signature
from ._torchfn import TorchFn, WeakFn, claim, resolve, strong

_TARGET = "t2j_torch_call"
_NOTHING = "t2j_nothing"
_NATIVE = {"cpu", "cuda", "rocm"}  # platforms that have the handler; on others torch runs on the host

# --- the native side -----------------------------------------------------------------------------------------------

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
        _faults.logger.warning(
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


_can_move = _compat.learn_storage_layout(_native.learn_storage_layout, _native.exchange_memory)
HOOKS = Hooks(
    exchange=_compat.torch_exchange_api(),
    version=torch._C.TensorBase.__dict__["_version"],
    tensor_type=torch.Tensor,
    parameter_type=torch.nn.Parameter,
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
    enter_stream=_streams.enter,
    leave_stream=_streams.leave,
    resolve=resolve,
    check_output=_faults.check_output,
    check_results=_faults.check_results,
    report=_faults.report,
    private_copy=_lending.private_copy,
    digest=_lending.digest,
    has_same_bits=_lending.has_same_bits,
    compare_later=_lending.compare_later,
    differing=_lending.differing,
    operand_written=_lending.operand_written,
    argument_kept=_lending.argument_kept,
    operand_in_cycle=_lending.operand_in_cycle,
    movable_copy=functools.partial(_lending.movable_copy, _can_move),
    raise_escaped=_lending.raise_escaped,
    stop_redirecting=operator.methodcaller("give_up"),
    collect_garbage=_lending.collect_garbage,
    most_checked_bytes=config.checked_bytes,
)
_native.setup(HOOKS)
_handlers = _native.handlers()
for _handler, _platform in (("cpu", "cpu"), ("cuda", "CUDA"), ("rocm", "ROCM")):
    stages = {"instantiate": _handlers["instantiate"], "execute": _handlers[_handler]}
    jax.ffi.register_ffi_target(_TARGET, stages, platform=_platform)
    jax.ffi.register_ffi_target(_NOTHING, _handlers["nothing"], platform=_platform)

# JAX registered its own hook at import, so this one runs first: no call may ask for the GIL of a dying interpreter.
atexit.register(_native.close_gate)
_compat.after_fork(_native.after_fork)

counters: Callable[[], dict[str, int]] = _native.counters
call_depth: Callable[[], int] = _native.call_depth
current_pair: Callable[[], tuple[int, int, int] | None] = _native.current_pair
uses_exchange_api = _native.uses_exchange_api
abi_layout: Callable[[], dict[str, int]] = _native.abi_layout

# --- the primitive -------------------------------------------------------------------------------------------------


def outputs_of(entry: Callable[..., Any], arrays: Sequence[Any]) -> Any:
    """The outputs of a compiled form. What its function raises is raised here, or by JAX as it runs.

    What calls inside of this one have raised, it has handled.
    """
    newest = of_thread.newest
    outputs = entry(*arrays)
    if of_thread.newest != newest and of_thread.depth == call_depth() + 1:
        raise_late(outputs)
    return outputs


@raises_originals
def _impl(*operands: Any, fn: TorchFn) -> list[Any]:
    try:
        checks = wanted_checks()
        with jax.disable_jit(False), without_checks() if checks else contextlib.nullcontext():  # jit ends here again
            results: list[Any] = outputs_of(_jitted(fn), operands)
            hold_until_ready(fn, results)
        if checks:
            check_numbers(fn.signature.name, results[: len(results) - fn.hidden], checks)
        return results
    except _compat.XLA_ERRORS as error:
        failure = original_of(error)
        if failure is None:
            raise
    try:  # raised out here, its own `__cause__` and `__context__` stay
        raise failure
    finally:
        del failure  # the traceback refers to this frame, and this frame to the exception


def _jitted(fn: TorchFn) -> Any:
    if fn.jitted is None:
        fn.jitted = jax.jit(functools.partial(_bind_weakly, WeakFn(fn)))
    return fn.jitted


def _bind_weakly(weak: WeakFn, *operands: Any) -> list[Any]:
    return torch_call_p.bind(*operands, fn=weak)


def _abstract(*operands: Any, fn: TorchFn | WeakFn) -> tuple[list[Any], frozenset[Any]]:
    fn = strong(fn)
    for index, operand in enumerate(operands):
        if (spec := _compat.explicit_spec(operand)) is not None:
            raise ShardingError(
                describe(
                    f"{fn.lending.path(index)} of {fn.lending.name} is sharded over Explicit mesh axes, but a torch "
                    "call runs on whole arrays.",
                    expected="a replicated operand, or a call inside `jax.shard_map`",
                    got=f"{operand.str_short(True)} with spec {spec}",
                    remedy="Call inside `jax.shard_map`, `jax.reshard` the operand first, or wrap with "
                    "`t2j_dist.torch2jax`.",
                )
            )
    results = [_compat.result_aval(leaf.shape, leaf.dtype, operands) for leaf in fn.signature.outputs.leaves]
    return results, _compat.side_effects if fn.has_side_effect else frozenset()


def _lower(ctx: Any, *operands: Any, fn: TorchFn | WeakFn) -> Sequence[Any]:
    reducer_of = _compat.reducing_call()
    if reducer_of is not None:
        raise _in_reducer(strong(fn), reducer_of)
    platforms = set(_compat.platforms_of(ctx))
    if not platforms <= _NATIVE:
        return _compat.mlir.lower_fun(functools.partial(host_call, fn), multiple_results=True)(ctx, *operands)
    bound, own, fn = fn, isinstance(fn, WeakFn), strong(fn)
    attributes = {"id": np.int64(bound.id), "call": "" if own else fn.key}
    if _compat.is_exporting(ctx):
        if fn.reason_not_exportable is not None:
            raise refused(fn.signature, fn.reason_not_exportable)
    else:
        if not own:
            _compat.keep_alive(ctx, fn)
            claim(fn)
            if fn.ticket is not None and platforms in ({"cuda"}, {"rocm"}):
                attributes |= _compat.paired(ctx, operands[fn.ticket], _TARGET)
        if _compat.devices_of(ctx) > 1:
            _faults.note_several_devices(fn.signature.name)
    rule = jax.ffi.ffi_lowering(_TARGET, has_side_effect=fn.has_side_effect, operand_output_aliases=fn.aliases)
    if fn.has_side_effect:
        if _compat.is_partly_manual(ctx):
            raise _partly_manual(fn)
        if (mesh := _compat.whole_mesh(ctx)) is not None:
            run = on_first_device(functools.partial(torch_call_p.bind, fn=bound), fn.signature.outputs.leaves, mesh)
            return _compat.mlir.lower_fun(run, multiple_results=True)(ctx, *operands)
    with _compat.named(ctx, fn.signature.name):
        return rule(ctx, *operands, **attributes)


def _partly_manual(fn: TorchFn) -> ShardingError:
    return ShardingError(
        describe(
            f"{fn.lending.name} has `has_side_effect=True` and is called inside a `jax.shard_map` over some of the "
            "mesh axes.",
            expected="a `jax.shard_map` over all axes of the mesh, or none, so that it is clear which devices run it",
            remedy="Leave out `axis_names`, or wrap without `has_side_effect`.",
        )
    )


def _in_reducer(fn: TorchFn, caller: str) -> TransformError:
    return TransformError(
        describe(
            f"{fn.lending.name} is called in the function of `{caller}`, which XLA applies to single numbers "
            "inside of a kernel.",
            expected="operations that XLA can compile there; a custom call, as of a torch function, ends the process",
            remedy="Reduce with `jax.lax.associative_scan`, `jax.lax.scan` or `jnp.frompyfunc(f, 2, 1).reduce`, apply "
            "`f` to `x[...]` and set the result, or call a torch function that reduces by itself.",
        )
    )


def _jet(primals: Any, series: Any, *, fn: TorchFn) -> Any:
    raise TransformError(
        describe(
            f"{fn.lending.name} has no Taylor series: `jax.experimental.jet` does not know torch functions.",
            remedy="Nest `jax.jvp` for higher derivatives along a direction, or use `jax.hessian`.",
        )
    )


def _seen(fn: TorchFn | WeakFn) -> tuple[str, int]:
    """How a call goes by in errors, and how many of its results users see."""
    fn = strong(fn)
    return f"torch_call of {fn.signature.name}", len(fn.signature.outputs.leaves) - fn.hidden


def call_primitive(name: str) -> Any:
    """A primitive whose parameter `fn` is the `TorchFn` that it runs. It has no rules for transformations yet."""
    primitive = _compat.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(_impl)
    primitive.def_effectful_abstract_eval(_abstract)
    _compat.register_lowering(primitive, _lower)
    _compat.register_jet(primitive, _jet)
    _compat.register_checkify(primitive, _seen)
    return primitive


torch_call_p: Any = call_primitive("torch_call")
_compat.hold_weakly(TorchFn)
_compat.hold_weakly(WeakFn)


def torch_call(*operands: Any, fn: TorchFn, primitive: Any = torch_call_p) -> list[Any]:
    """Bind the primitive: one result per array of the signature's outputs."""
    return primitive.bind(*_compat.vary_alike(operands), fn=fn)


# --- transformations: a sister package brings them in `fn.rules` ---------------------------------------------------


def _jvp(primals: Any, tangents: Any, *, fn: TorchFn) -> Any:
    if fn.rules is None:
        raise _needs_autodiff(fn, "differentiated")
    return fn.rules.jvp(primals, tangents, fn=fn)


def _transpose(cotangents: Any, *operands: Any, fn: TorchFn) -> Any:
    if fn.rules is None:
        raise _needs_autodiff(fn, f"transposed, which {_compat.transposing_call()} needs")
    return fn.rules.transpose_call(cotangents, operands, fn=fn)


def _batch(operands: Any, dims: Any, *, fn: TorchFn) -> Any:
    if fn.rules is None:
        raise _needs_autodiff(fn, "batched with `jax.vmap`")
    return fn.rules.batch(operands, dims, fn=fn)


def _replace_unused(used: Sequence[bool], fn: TorchFn | WeakFn) -> TorchFn | None:
    return None if isinstance(fn, WeakFn) or fn.rules is None else fn.rules.without_unused(used, fn=fn)


def _needs_autodiff(fn: TorchFn, what: str) -> TransformError:
    return TransformError(
        describe(
            f"{fn.signature.name} was wrapped with `t2j_core.torch2jax`, which only calls it; it cannot be {what}.",
            remedy="Install t2j-autodiff and change one import: `from t2j_autodiff import torch2jax`.",
        )
    )


_compat.ad.primitive_jvps[torch_call_p] = _jvp
_compat.ad.primitive_transposes[torch_call_p] = _transpose
_compat.batching.primitive_batchers[torch_call_p] = _batch
_compat.register_dce(torch_call_p, _replace_unused)


def nothing(*operands: Any) -> Any:
    """An FFI call of the same extension whose handler does nothing: the least that any call costs."""
    first = operands[0]
    call = jax.ffi.ffi_call(_NOTHING, jax.ShapeDtypeStruct(first.shape, first.dtype))
    return call(*operands)
