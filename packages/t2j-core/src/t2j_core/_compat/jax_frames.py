"""Frames of JAX and t2j: hidden from users, and read to find out which function of JAX is calling."""

from __future__ import annotations

import os
import sys

try:
    from jax._src import source_info_util as _source_info
    from jax._src import traceback_util as _traceback_util
except ImportError:  # tracebacks and locations of operations then show the frames of t2j too
    _source_info = _traceback_util = None  # type: ignore[assignment]


def hide_frames(module_file: str) -> None:
    """Mark the package of a module as internal to JAX: in tracebacks, and in the locations of operations."""
    directory = os.path.dirname(module_file) + os.sep
    for module in (_source_info, _traceback_util):
        if hasattr(module, "register_exclusion"):
            module.register_exclusion(directory)


_TRANSPOSING = {
    "gmres": "jax.scipy.sparse.linalg.gmres",
    "bicgstab": "jax.scipy.sparse.linalg.bicgstab",
    "cg": "jax.scipy.sparse.linalg.cg",
    "custom_root": "jax.lax.custom_root",
    "custom_linear_solve": "jax.lax.custom_linear_solve",
    "linear_transpose": "jax.linear_transpose",
    "transposed_fun": "jax.linear_transpose",
    "value_and_grad_f": "jax.grad",
    "vjp": "jax.vjp",
}


def transposing_call() -> str:
    """The function of JAX that transposes, for error texts. JAX does not pass it on, so the stack is searched."""
    found = _public_name(_TRANSPOSING)
    return f"`{found}`" if found else "A transposition in JAX"


_REDUCING = {
    "_reduce_lower": "jax.lax.reduce",
    "_generic_reduce_window_lower": "jax.lax.reduce_window",
    "_scatter_lower": "x.at[...].apply",
    "_select_and_scatter_lower": "select_and_scatter",
}


def reducing_call() -> str | None:
    """The operation of JAX whose reducer this thread is lowering; None if it lowers none.

    XLA applies a reducer to single numbers. A function that the reducer calls is lowered as a separate function, so
    the stack is searched.
    """
    return _public_name(_REDUCING)


def _public_name(known: dict[str, str]) -> str | None:
    """The public name of the first known function of JAX that this thread is inside of."""
    names, frame = set(), sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__", "")).startswith("jax."):
            names.add(frame.f_code.co_name)
    return next((public for name, public in known.items() if name in names), None)
