"""The errors and warnings of t2j, and how their text is laid out."""

from __future__ import annotations

import sys
import warnings

from .frames import INTERNAL, package_of


class T2jError(Exception):
    """Base of every error that t2j itself raises. Exceptions of the user's torch function keep their own type."""


class ArgumentError(T2jError, TypeError):
    """An argument of a t2j function, or of a wrapped function, is not what it must be."""


class DTypeError(T2jError, TypeError):
    """A dtype that PyTorch and JAX do not both have."""


class OutputError(T2jError, TypeError):
    """The torch function returned something other than was declared or inferred."""


class DataDependentShapeError(T2jError, ValueError):
    """An output shape depends on the values of the inputs, which JAX cannot express."""


class TensorMutationError(T2jError, RuntimeError):
    """The torch function changed one of its arguments in place."""


class TensorEscapeError(T2jError, RuntimeError):
    """A tensor over XLA's memory outlives the call that it was lent for."""


class CommandBufferError(T2jError, RuntimeError):
    """A function with `command_buffer=True` does what a CUDA graph cannot do."""


class JaxInsideTorchError(T2jError, RuntimeError):
    """JAX was called inside a torch function that XLA runs, where it can deadlock."""


class TransformError(T2jError, NotImplementedError):
    """A JAX transformation that the function does not support."""


class ShardingError(T2jError, ValueError):
    """A sharded operand in a call for which no sharding is declared."""


class ExportError(T2jError, ValueError):
    """A wrapped function that cannot be exported or found again in another process."""


class T2jWarning(UserWarning):
    """Base of the warnings of t2j."""


class PerformanceWarning(T2jWarning):
    """The call returns the right values but is slower than it could be."""


def describe(what: str, *, expected: object = None, got: object = None, remedy: str | None = None) -> str:
    """The text of an error: what is wrong, `Expected:` and `Got:` lines, one remedy.

    >>> print(describe("`x` is wrong.", expected="f32[2]", got="f32[3]", remedy="Pass two numbers."))
    `x` is wrong.
      Expected: f32[2]
      Got:      f32[3]
    Pass two numbers.
    """
    lines = [what]
    if expected is not None:
        lines.append(f"  Expected: {expected}")
    if got is not None:
        lines.append(f"  Got:      {got}")
    if remedy is not None:
        lines.append(remedy)
    return "\n".join(lines)


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the user's line: the innermost one outside t2j and JAX."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and package_of(frame) in _NOT_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


_NOT_USERS = (*INTERNAL, "functools", "contextlib")
