"""The error for JAX inside a torch function, however it was noticed."""

from __future__ import annotations

import contextlib
import re

from .errors import JaxInsideTorchError, describe
from .frames import running_finalizer, users_place

# In the errors of torch and Python for an array (or tracer) beside a tensor, and of JAX for a tensor.
_MIXED = re.compile(r"\bjaxlib\.|\bArrayImpl\b|\w+Tracer\b|<class 'torch\.")
_LONG = 80


def jax_inside(name: str, what: str) -> JaxInsideTorchError:
    """The error for JAX called inside a torch function; `what` is what it was called for: "the operation `sin`"."""
    if (finalizer := running_finalizer()) is not None:
        return JaxInsideTorchError(
            describe(
                f"A finalizer ({finalizer}) calls JAX ({what}), which can deadlock: Python ran it in the middle of the "
                f"torch function {name}, inside an XLA program.",
                expected="finalizers that do not call JAX, as Python may run them anywhere",
                remedy="Let the finalizer note what is to be done, and do it elsewhere.",
            )
        )
    return JaxInsideTorchError(
        describe(
            f"The torch function {name} calls JAX ({what}), which can deadlock inside an XLA program.",
            expected="only PyTorch (and NumPy) inside the function",
            remedy="Compute with JAX before or after the call and pass arrays as arguments.",
        )
    )


def as_jax_inside(name: str, error: BaseException) -> JaxInsideTorchError | None:
    """The error for `jnp.sin(tensor)` or `tensor * array`, which fail before JAX computes; None for other errors."""
    with contextlib.suppress(Exception):  # `__str__` of a user's exception may raise
        if type(error) is TypeError and _MIXED.search(str(error)):
            place = users_place(error)
            line = place.text[:_LONG] if place else ""
            found = jax_inside(name, f"`{line}`" if line else "a JAX array beside a tensor")
            found.__cause__ = error
            return found
    return None
