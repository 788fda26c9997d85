"""The JAX primitive `torch_call`: its types, its lowering to the native handler. Sole importer of the extension."""

from __future__ import annotations

import atexit
import contextlib
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch

from . import _compat, _faults, _native, _streams
from ._errors import ShardingError, TransformError, describe
from ._export import refused
from ._garbage import collect
from ._host import host_call
from ._jax_inside import jax_inside
from ._signature import Signature
from ._torchfn import TorchFn, claim, resolve

_TARGET = "t2j_torch_call"
_NOTHING = "t2j_nothing"

# --- the native side -----------------------------------------------------------------------------------------------

_AUTOCAST_DEVICES = ("cpu", "cuda")


def _enter_state(first: bool, signature: Signature) -> contextlib.ExitStack:
    """Give the calling thread torch's default state; on the first call of a program, also refuse JAX inside torch.

    Where torch records a profile, the call is a range of it.
    """
    stack = contextlib.ExitStack()
    stack.enter_context(_compat.default_torch_state(_AUTOCAST_DEVICES))
    stack.enter_context(_compat.profiled(signature.name))
    if first:
        name = signature.name
        stack.enter_context(_compat.refusing_jax(lambda operation: jax_inside(name, f"the operation `{operation}`")))
    return stack


def _copy_into(destination: torch.Tensor, source: torch.Tensor) -> None:
    destination.copy_(source.detach(), non_blocking=True)


_native.setup(
    {
        "exchange": _compat.torch_exchange_api(),
        "version": torch._C.TensorBase.__dict__["_version"],
        "tensor_type": torch.Tensor,
        "parameter_type": torch.nn.Parameter,
        "from_dlpack": torch._C._from_dlpack,
        "to_dlpack": torch._C._to_dlpack,
        "is_conj": torch._C.TensorBase.is_conj,
        "is_neg": torch._C.TensorBase.is_neg,
        "clone": torch._C.TensorBase.clone,
        "copy": _copy_into,
        "collect_garbage": collect,
        "is_grad_enabled": torch.is_grad_enabled,
        "set_grad_enabled": torch._C._set_grad_enabled,
        "state_getters": _compat.state_getters(),
        "enter_state": _enter_state,
        "leave_state": contextlib.ExitStack.close,
        "enter_stream": _streams.enter,
        "leave_stream": _streams.leave,
        "resolve": resolve,
        "check_output": _faults.check_output,
        "check_results": _faults.check_results,
        "raise_mutated": _faults.raise_mutated,
        "raise_escaped": _faults.raise_escaped,
        "results_kept": _faults.results_kept,
        "report": _faults.report,
    }
)
_handlers = _native.handlers()
for _handler, _platform in (("cpu", "cpu"), ("cuda", "CUDA"), ("rocm", "ROCM")):
    stages = {"instantiate": _handlers["instantiate"], "execute": _handlers[_handler]}
    jax.ffi.register_ffi_target(_TARGET, stages, platform=_platform)
    jax.ffi.register_ffi_target(_NOTHING, _handlers["nothing"], platform=_platform)

# JAX registered its own hook at import, so this one runs first: no call may ask for the GIL of a dying interpreter.
atexit.register(_native.close_gate)
_compat.after_fork(_native.after_fork)

counters: Callable[[], dict[str, int]] = _native.counters
uses_exchange_api = _native.uses_exchange_api
abi_layout: Callable[[], dict[str, int]] = _native.abi_layout

# --- the primitive -------------------------------------------------------------------------------------------------


def _impl(*operands: Any, fn: TorchFn) -> list[Any]:
    try:
        with jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False):  # each of them ends here again
            return _jitted(fn)(*operands)
    except _compat.XLA_ERRORS as error:
        failure = _faults.original_of(error)
        if failure is None:
            raise
    try:  # raised out here, its own `__cause__` and `__context__` stay
        raise failure
    finally:
        del failure  # the traceback refers to this frame, and this frame to the exception


def _jitted(fn: TorchFn) -> Any:
    if fn.jitted is None:  # it may not own `fn`, which owns it
        fn.jitted = jax.jit(functools.partial(_bind_weakly, weakref.ref(fn)))
    return fn.jitted


def _bind_weakly(reference: Any, *operands: Any) -> list[Any]:
    return torch_call_p.bind(*operands, fn=reference())


def _abstract(*operands: Any, fn: TorchFn) -> tuple[list[Any], frozenset[Any]]:
    for path, operand in zip(fn.signature.operand_paths() if operands else (), operands, strict=False):
        if (spec := _compat.explicit_spec(operand)) is not None:
            raise ShardingError(
                describe(
                    f"{path} of {fn.signature.name} is sharded over Explicit mesh axes, but a torch call runs on whole "
                    "arrays.",
                    expected="a replicated operand, or a call inside `jax.shard_map`",
                    got=f"{operand.str_short(True)} with spec {spec}",
                    remedy="Call inside `jax.shard_map`, `jax.reshard` the operand first, or wrap with "
                    "`t2j_dist.torch2jax`.",
                )
            )
    results = [_compat.result_aval(leaf.shape, leaf.dtype, operands) for leaf in fn.signature.outputs.leaves]
    return results, _compat.side_effects if fn.has_side_effect else frozenset()


def _lower(ctx: Any, *operands: Any, fn: TorchFn) -> Sequence[Any]:
    if _compat.is_exporting(ctx):
        if fn.reason_not_exportable is not None:
            raise refused(fn.signature, fn.reason_not_exportable)
    else:
        _compat.keep_alive(ctx, fn)
        claim(fn)
        if _compat.devices_of(ctx) > 1:
            _faults.run_on_several_devices.add(fn.signature.name)
    rule = jax.ffi.ffi_lowering(_TARGET, has_side_effect=fn.has_side_effect, operand_output_aliases=fn.aliases)
    with _compat.named(ctx, fn.signature.name):
        return rule(ctx, *operands, id=np.int64(fn.id), call=fn.key)


def _lower_to_host(ctx: Any, *operands: Any, fn: TorchFn) -> Sequence[Any]:
    return _compat.mlir.lower_fun(functools.partial(host_call, fn), multiple_results=True)(ctx, *operands)


def call_primitive(name: str) -> Any:
    """A primitive whose parameter `fn` is the `TorchFn` that it runs. It has no rules for transformations yet."""
    primitive = _compat.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(_impl)
    primitive.def_effectful_abstract_eval(_abstract)
    _compat.mlir.register_lowering(primitive, _lower_to_host)
    for platform in ("cpu", "cuda", "rocm"):
        _compat.mlir.register_lowering(primitive, _lower, platform=platform)
    return primitive


torch_call_p: Any = call_primitive("torch_call")
_compat.hold_weakly(TorchFn)


def torch_call(*operands: Any, fn: TorchFn, primitive: Any = torch_call_p) -> list[Any]:
    """Bind the primitive: one result per array of the signature's outputs."""
    return primitive.bind(*_compat.vary_alike(operands), fn=fn)


# --- transformations: a sister package brings them in `fn.rules` ---------------------------------------------------


def _jvp(primals: Any, tangents: Any, *, fn: TorchFn) -> Any:
    if fn.rules is None:
        raise _needs_autodiff(fn, "differentiated")
    return fn.rules.jvp(primals, tangents, fn=fn)


def _transpose(cotangents: Any, *operands: Any, fn: TorchFn) -> Any:
    raise TransformError(
        describe(
            f"{fn.signature.name} is not known to be linear, so it cannot be transposed with `jax.linear_transpose`.",
            remedy="Use `jax.vjp`, which differentiates it.",
        )
    )


def _batch(operands: Any, dims: Any, *, fn: TorchFn) -> Any:
    if fn.rules is None:
        raise _needs_autodiff(fn, "batched with `jax.vmap`")
    return fn.rules.batch(operands, dims, fn=fn)


def _replace_unused(used: Sequence[bool], fn: TorchFn) -> TorchFn | None:
    return None if fn.rules is None else fn.rules.without_unused(used, fn=fn)


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
