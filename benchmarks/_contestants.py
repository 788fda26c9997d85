"""The ways to call a torch function from JAX that are compared here.

Each takes a torch function of arrays of one shape and dtype, and returns an array like its first argument. Each is used
as its authors intend: without copies if possible, and with `out=` if it exposes the memory of the result.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

if TYPE_CHECKING:
    from _harness import Call

PEER = "wrap_torch2jax"
FLOOR = "noop floor"
AFTER_FLOOR = "torch after the floor"
TORCH = "torch, native"
JNP = "jax.jit, native"
TVM = "jax-tvm-ffi"
TORCH_COMPILE = "torch.compile"
COMPILED = "t2j compiled"

Writes = Callable[..., object]
"""A torch function that takes `out=`."""

# `pure_callback` passes read-only arrays, and torch warns about the first one.
warnings.filterwarnings("ignore", message="The given NumPy array is not writ")


def t2j(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    from t2j_core import torch2jax

    return torch2jax(fn, **options)


def t2j_autodiff(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    from t2j_autodiff import torch2jax

    return torch2jax(fn, **options)


def compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`t2j_autodiff.torch2jax` with `compile=True`; older versions raise."""
    return t2j_autodiff(fn, compile=True, **options)


def as_asked(call: Call) -> Call:
    """The call, which has run once. It raises if t2j warned that an option has no effect on this function."""
    from t2j_core import PerformanceWarning

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    if found := next((warning for warning in seen if issubclass(warning.category, PerformanceWarning)), None):
        raise RuntimeError(str(found.message))
    return call


def floor(*args: jax.Array) -> Any:
    """An FFI call whose handler does nothing: the cost of XLA and JAX alone."""
    from t2j_core.testing import noop

    return noop(*args)


def after_floor(floor: Call, native: Call) -> Call:
    """PyTorch alone, just after FFI calls that do nothing: JAX's code and data then fill the processor's caches."""

    def call() -> Any:
        floor()
        return native()

    return call


def floor_with(results: Sequence[Any], *args: jax.Array) -> list[jax.Array]:
    """As `floor`, with results like these, whose values are undefined."""
    import t2j_core  # noqa: F401 - registers the handler

    like = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in results]
    return list(jax.ffi.ffi_call("t2j_nothing", like)(*args))


def peer(fn: Callable[..., Any], *examples: Any, entry: str = "torch2jax", **options: Any) -> Callable[..., Any]:
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # it prints while it compiles
        warnings.simplefilter("ignore")
        import wrap_torch2jax

        return getattr(wrap_torch2jax, entry)(fn, *examples, **options)


def buffer_callback(fn: Writes, **options: Any) -> Callable[..., Any]:
    from jax.experimental.buffer_callback import buffer_callback

    def write(_context: object, out: Any, *args: Any) -> None:
        fn(*map(from_dlpack, args), out=from_dlpack(out))

    return lambda *args: buffer_callback(write, like(args[0]), **options)(*args)


def pure_callback(fn: Callable[..., torch.Tensor], **options: Any) -> Callable[..., Any]:
    def run(*args: jax.Array) -> np.ndarray:
        return fn(*(torch.from_numpy(np.asarray(array)) for array in args)).numpy()

    return lambda *args: jax.pure_callback(run, like(args[0]), *args, **options)


_targets = itertools.count()


def tvm_ffi(fn: Writes, **options: Any) -> Callable[..., Any]:
    """It passes results last. Its table has room for 1024 functions and never removes one."""
    import jax_tvm_ffi
    import tvm_ffi

    def write(*args: torch.Tensor) -> None:
        fn(*args[:-1], out=args[-1])

    name = f"t2j_bench.{next(_targets)}"
    function = tvm_ffi.convert_func(write, tensor_cls=torch.Tensor)
    jax_tvm_ffi.register_ffi_target(name, function, ["args", "rets"], platform="cpu", pass_owned_tensor=True)
    return lambda *args: jax.ffi.ffi_call(name, like(args[0]), **options)(*args)


def like(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def calls(fn: Callable[..., Any], *args: Any) -> Call:
    """A call that waits for its result."""
    return lambda: jax.block_until_ready(fn(*args))


def jitted(fn: Callable[..., Any], *args: Any) -> Call:
    return calls(jax.jit(fn), *args)


def same(expected: Any, tolerance: float = 1e-6) -> Callable[[object], None]:
    """A check that a result has these leaves, within `tolerance` times the largest number of each leaf.

    A millionth of the largest number of all leaves is always allowed: the gradient of a bias before BatchNorm, or of
    attention's keys, is zero except for rounding errors.
    """
    wanted = [np.asarray(leaf) for leaf in jax.tree.leaves(expected)]
    scales = [float(np.abs(leaf).max(initial=0)) for leaf in wanted]

    def check(result: object) -> None:
        for mine, other, scale in zip(jax.tree.leaves(result), wanted, scales, strict=True):
            allowed = max(tolerance * scale, 1e-6 * max(scales))
            np.testing.assert_allclose(np.asarray(mine), other, rtol=tolerance, atol=allowed)

    return check


def identical(expected: np.ndarray) -> Callable[[object], None]:
    """A check that is fast and needs little memory, for large arrays."""

    def check(result: object) -> None:
        if not np.array_equal(np.asarray(result), expected):
            raise AssertionError("The result differs from the expected one.")

    return check


def normal(*shapes: Sequence[int] | int) -> list[jax.Array]:
    """Random float32 arrays."""
    rng = np.random.default_rng(0)
    return [jax.numpy.asarray(rng.standard_normal(shape, "float32")) for shape in shapes]


def tensors(*arrays: jax.Array) -> list[torch.Tensor]:
    return [torch.tensor(np.asarray(array)) for array in arrays]
