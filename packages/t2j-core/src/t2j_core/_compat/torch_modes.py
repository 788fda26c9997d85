"""Dispatch and function modes of torch, and tensors without data."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def dynamo_is_loaded() -> bool:
    """Whether something in this process may have been compiled with `torch.compile`."""
    return "torch._dynamo" in sys.modules


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that leaves `torch.compile` alone: entering it neither imports nor switches off the compiler."""

    compiler_works_inside: bool = hasattr(TorchDispatchMode, "ignore_compile_internals")  # torch before 2.10

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled functions run compiled; the mode sees the operations outside them."""
        return True

    @staticmethod
    def operate(func: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation that the mode has got.

        Of a symbolic zero of forward mode and a number, torch's own call does not end within a mode (`mul`, until the
        process dies), or raises (`add`; torch 2.6 to 2.13).
        """
        if getattr(func, "_overloadname", None) == "Scalar" and _is_symbolic_zero(args[0]):
            zero, number = args[:2]
            if func is torch.ops.aten.mul.Scalar:
                return torch._efficientzerotensor(zero.shape, dtype=torch.result_type(zero, number), device=zero.device)
            args = torch.zeros(zero.shape, dtype=zero.dtype, device=zero.device), *args[1:]
        return func(*args, **(kwargs or {}))


def _is_symbolic_zero(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value._is_zerotensor()


def fake_mode() -> Any:
    """Torch's fake tensors: they claim a device but hold no data. The first use imports the compiler, in seconds."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


class _WithoutAddresses(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.data_ptr:
            _refuse_address(args[0])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_addresses() -> Iterator[None]:
    """Within, whoever asks a tensor without data for its address gets an error, not the address 0.

    A kernel of the user's own (Triton, `torch.cuda.jiterator`) would be launched on it, after which the GPU is of no
    use to the process.
    """
    launch = getattr(torch._C, _JITERATOR, None)  # asks in C++
    if launch is None:
        with _WithoutAddresses():
            yield
        return

    def refuse(code: Any, name: Any, by_reference: Any, outputs: Any, tensors: Any, constants: Any) -> Any:
        for tensor in tensors:
            _refuse_address(tensor)
        return launch(code, name, by_reference, outputs, tensors, constants)

    setattr(torch._C, _JITERATOR, refuse)  # for other threads too, whose tensors have addresses
    try:
        with _WithoutAddresses():
            yield
    finally:
        setattr(torch._C, _JITERATOR, launch)


_JITERATOR = "_cuda_jiterator_compile_and_launch_kernel"


def lies_nowhere(tensor: torch.Tensor) -> bool:
    """Whether a dense tensor is on the meta device, or a fake one, which claims another. Sparse ones raise."""
    return tensor.untyped_storage().device.type == "meta"


def has_data(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds values, unlike meta and fake ones, wrapper subclasses and those inside `torch.func`."""
    try:
        is_nowhere = lies_nowhere(tensor)  # to ask a fake tensor for its address is a warning
        return tensor.numel() == 0 or (not is_nowhere and tensor.data_ptr() != 0)
    except Exception:  # of the user's subclass
        return False


def _refuse_address(tensor: torch.Tensor) -> None:
    if lies_nowhere(tensor):
        raise NotImplementedError("a tensor without data has no address")


@contextlib.contextmanager
def without_log_of_fake_tensors() -> Iterator[None]:
    """Within, torch does not print a traceback for each operation that fails without data: another way is tried."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def without_compilation() -> contextlib.AbstractContextManager[Any]:
    """Run compiled torch functions eagerly: nothing is gained by compiling for tensors without data."""
    return torch.compiler.set_stance("force_eager") if dynamo_is_loaded() else contextlib.nullcontext()
