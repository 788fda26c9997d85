"""The JAX primitive `torch_call`: how it runs eagerly, its results, and its lowering to the native handler."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .. import _compat
from .._base.caught import Caught
from .._run.debug_nans import check_numbers, wanted_checks, without_checks
from .._run.exceptions import note_several_devices
from .._run.host import host_call
from .._run.in_flight import hold_until_ready
from .._run.on_first_device import on_first_device
from .._run.originals import of_thread, original_of, raise_late, raises_originals
from .._run.registry import claim
from .._run.torch_fn import TorchFn
from .._run.weak_fn import WeakFn, strong
from .._signature.serialise import not_exportable
from .joined import lowered_jointly
from .native import CAPTURED_TARGET, TARGET, call_depth
from .refusals import in_reducer, partly_manual, sharded_operand, unsummed_operand, warn_not_captured
from .rules import register_rules

_NATIVE = {"cpu", "cuda", "rocm"}  # platforms that have the handler; on others torch runs on the host

# --- eager calls ---------------------------------------------------------------------------------------------------


def outputs_of(entry: Callable[..., Any], arrays: Sequence[Any]) -> Any:
    """The outputs of a compiled form. What its function raises is raised here, or by JAX as it runs.

    Exceptions of calls nested inside this one do not count: its function has handled them.
    """
    newest = of_thread.newest
    outputs = entry(*arrays)
    if of_thread.newest != newest and of_thread.depth == call_depth() + 1:
        raise_late(outputs)
    return outputs


@raises_originals
def _impl(*operands: jax.Array, fn: TorchFn) -> list[Any]:
    try:
        checks = wanted_checks()
        # Under `jax.disable_jit`, and with the checks of `without_checks`, JAX would call `_impl` again, without end.
        with jax.disable_jit(False), without_checks() if checks else contextlib.nullcontext():
            results: list[Any] = outputs_of(_jitted(fn), operands)
            hold_until_ready(fn, results)
        if checks:
            check_numbers(fn.signature.name, results[: len(results) - fn.hidden], checks)
        return results
    except _compat.XLA_ERRORS as error:
        original = original_of(error)
        if original is None:
            raise
        caught = Caught(original)
        del original
    raise caught.taken()


def _jitted(fn: TorchFn) -> Any:
    if fn.jitted is None:
        fn.jitted = jax.jit(functools.partial(_bind_weakly, WeakFn(fn)))
    return fn.jitted


def _bind_weakly(weak: WeakFn, *operands: jax.Array) -> list[Any]:
    return torch_call_p.bind(*operands, fn=weak)


# --- results -------------------------------------------------------------------------------------------------------


def _abstract(
    *operands: _compat.ShapedArray, fn: TorchFn | WeakFn, is_linear: bool
) -> tuple[list[_compat.ShapedArray], frozenset[Any]]:
    fn = strong(fn)
    for index, operand in enumerate(operands):
        if (spec := _compat.explicit_spec(operand)) is not None:
            raise sharded_operand(fn, index, operand, spec)
        if not is_linear and (axes := _compat.unsummed_axes(operand)):
            raise unsummed_operand(fn, index, operand, axes)
    results = [_compat.result_aval(leaf.shape, leaf.dtype, operands) for leaf in fn.signature.outputs.leaves]
    return results, _compat.side_effects if fn.options.has_side_effect else frozenset()


# --- lowering ------------------------------------------------------------------------------------------------------


def _lower(
    ctx: _compat.mlir.LoweringRuleContext, *operands: _compat.mlir.ir.Value[Any], fn: TorchFn | WeakFn
) -> Sequence[Any]:
    reducer_of = _compat.reducing_call()
    if reducer_of is not None:
        raise in_reducer(strong(fn), reducer_of)
    if not set(_compat.platforms_of(ctx)) <= _NATIVE:
        return _compat.mlir.lower_fun(functools.partial(host_call, fn), multiple_results=True)(ctx, *operands)
    if isinstance(fn, TorchFn) and (results := lowered_jointly(ctx, operands, fn, _lower)) is not None:
        return results
    attributes = _attributes(ctx, operands, fn)
    bound, fn = fn, strong(fn)
    has_side_effect = fn.options.has_side_effect
    if has_side_effect:
        if _compat.is_partly_manual(ctx):
            raise partly_manual(fn)
        if (mesh := _compat.whole_mesh(ctx)) is not None:
            run = on_first_device(functools.partial(torch_call_p.bind, fn=bound), fn.signature.outputs.leaves, mesh)
            return _compat.mlir.lower_fun(run, multiple_results=True)(ctx, *operands)
    if not _compat.is_exporting(ctx):
        fn.compile(_compat.device_of(_compat.platforms_of(ctx)))
        ctx = ctx.replace(avals_in=[ctx.avals_in[i] for i in fn.used])
        operands = tuple(operands[i] for i in fn.used)
    rule = jax.ffi.ffi_lowering(_target(ctx, bound), has_side_effect=has_side_effect, operand_output_aliases=fn.aliases)
    with _compat.named(ctx, fn.signature.name):
        results = rule(ctx, *operands, **attributes)
    if fn.hidden and bound is fn:
        return [*_compat.movable(results[: -fn.hidden]), *results[-fn.hidden :]]
    return results


def _target(ctx: _compat.mlir.LoweringRuleContext, bound: TorchFn | WeakFn) -> str:
    """The handler of a call. A program of an eager call is that call alone: there is nothing to capture it with."""
    if isinstance(bound, WeakFn) or not bound.options.command_buffer or _compat.is_exporting(ctx):
        return TARGET
    if set(_compat.platforms_of(ctx)) != {"cuda"}:
        return TARGET
    reason = bound.not_captured
    if reason is None:
        return CAPTURED_TARGET
    warn_not_captured(bound.lending, reason)
    return TARGET


def _attributes(
    ctx: _compat.mlir.LoweringRuleContext, operands: Sequence[_compat.mlir.ir.Value[Any]], bound: TorchFn | WeakFn
) -> dict[str, Any]:
    """The attributes by which a call site finds its function, and its pair. Keeps the function alive."""
    is_weak, fn = isinstance(bound, WeakFn), strong(bound)
    attributes = {"id": np.int64(bound.id), "call": "" if is_weak else fn.serialised}
    if _compat.is_exporting(ctx):
        if fn.reason_not_exportable is not None:
            raise not_exportable(fn.signature, fn.reason_not_exportable)
        return attributes
    if not is_weak:
        _compat.keep_alive(ctx, fn)
        claim(fn)
        if fn.ticket is not None and set(_compat.platforms_of(ctx)) in ({"cuda"}, {"rocm"}):
            attributes |= _compat.pair_attributes(ctx, operands[fn.ticket], TARGET)
    if _compat.devices_of(ctx) > 1:
        note_several_devices(fn.signature.name)
    return attributes


# --- the primitive -------------------------------------------------------------------------------------------------


def call_primitive(name: str, *, is_linear: bool = False) -> _compat.Primitive:
    """A primitive whose parameter `fn` is the `TorchFn` that it runs. It is transformed by `fn.rules`.

    A linear one may run on the terms of a sum that is not computed yet.
    """
    primitive = _compat.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(_impl)
    primitive.def_effectful_abstract_eval(functools.partial(_abstract, is_linear=is_linear))
    _compat.register_lowering(primitive, _lower)
    register_rules(primitive)
    return primitive


torch_call_p: _compat.Primitive = call_primitive("torch_call")
_compat.hold_weakly(TorchFn)
_compat.hold_weakly(WeakFn)


def torch_call(*operands: jax.Array, fn: TorchFn, primitive: _compat.Primitive = torch_call_p) -> list[Any]:
    """Bind the primitive: one result per array of the signature's outputs."""
    return primitive.bind(*_compat.vary_alike(operands), fn=fn)
