"""Traces of JAX on this thread, its backends in this process."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core
from jax.core import Tracer
from jax.extend.core import Primitive

_core: Any = importlib.import_module("jax._src.core")


def jax_has_run() -> bool:
    """Whether this process has started JAX's backends, and with them threads that do not survive a fork."""
    try:
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError:
        return True
    return bool(backends_are_initialized())


def after_fork(callback: Callable[[], object]) -> None:
    """Call `callback` in every process that is forked from this one after it has used JAX."""
    if hasattr(os, "register_at_fork"):  # Windows cannot fork
        os.register_at_fork(after_in_child=lambda: callback() if jax_has_run() else None)


def is_concrete_array(x: object) -> bool:
    """Whether `x` is a JAX array with values, not a tracer."""
    return isinstance(x, jax.Array) and not isinstance(x, Tracer)


def mesh_axis_sizes() -> tuple[int, ...]:
    """The sizes of the named axes around a trace: those of `jax.shard_map`, and of `jax.vmap` with a name."""
    return tuple(_core.get_axis_env().axis_sizes.values())


class _Refuse(jax.core.Trace if hasattr(jax.core, "Trace") else object):  # type: ignore[misc]
    """A JAX trace under which every operation raises."""

    def __init__(self, error: Callable[[str], Exception]) -> None:
        super().__init__()
        self._error = error

    def process_primitive(self, primitive: Primitive, *_: object) -> Any:
        raise self._error(str(primitive))

    def is_valid(self) -> bool:
        return True

    def stage_value(self, *_: object) -> Any:
        raise self._error("a jitted function")


@contextlib.contextmanager
def refusing_jax(error: Callable[[str], Exception]) -> Iterator[None]:
    """Raise `error(operation)` if JAX computes something within, on this thread."""
    enter: Any = getattr(jax.extend.core, "set_current_trace", None)
    if enter is None:  # jax before 0.9
        enter = getattr(_core, "set_current_trace", contextlib.nullcontext)
    before = getattr(_refusal, "error", None)
    _refusal.error = error
    try:
        with enter(_Refuse(error)):
            yield
    finally:
        _refusal.error = before


_refusal = threading.local()


def check_jax_is_allowed(operation: str) -> None:
    """Raise the error of `refusing_jax`, if this thread is inside of it."""
    error = getattr(_refusal, "error", None)
    if error is not None:
        raise error(operation)
