"""Dispatch modes and function modes of torch, and tensors without data."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def dynamo_is_loaded() -> bool:
    """Whether something in this process may have been compiled with `torch.compile`."""
    return "torch._dynamo" in sys.modules


class DispatchMode(TorchDispatchMode):
    """A dispatch mode, whose subclasses say in `handle` what an operation does.

    It leaves `torch.compile` alone: entering it neither imports nor switches off the compiler
    (https://github.com/pytorch/pytorch/pull/161648).
    """

    compiler_works_inside: bool = hasattr(TorchDispatchMode, "ignore_compile_internals")
    """Whether compiled functions run compiled within; false before torch 2.10."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled functions run compiled; the mode sees the operations outside them."""
        return True

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.handle(func, args, kwargs or {})

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation inside the mode returns."""
        return self.operate(func, args, kwargs)

    def turn_on(self) -> None:
        """Turn the mode on for this thread, until `turn_off`. Python code of torch that asks for modes sees none."""
        torch._C._push_on_torch_dispatch_stack(self)

    def turn_off(self) -> None:
        """Turn off the mode that was turned on last on this thread."""
        torch._C._pop_torch_dispatch_stack(None)

    @staticmethod
    def operate(func: OpOverload, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation that was dispatched to the mode.

        torch 2.6 to 2.13: with a symbolic zero of forward mode (`_efficientzerotensor`) and a number, `mul` inside a
        mode calls itself until the process dies, and `add` raises.
        """
        if getattr(func, "_overloadname", None) == "Scalar" and _is_symbolic_zero(args[0]):
            zero, number = args[:2]
            if func is torch.ops.aten.mul.Scalar:
                return torch._efficientzerotensor(zero.shape, dtype=torch.result_type(zero, number), device=zero.device)
            args = torch.zeros(zero.shape, dtype=zero.dtype, device=zero.device), *args[1:]
        return func(*args, **(kwargs or {}))


@functools.cache
def is_composite(func: OpOverload) -> bool:
    """Whether an operation consists of others. A dispatch mode sees such operations in inference mode only."""
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _is_symbolic_zero(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value._is_zerotensor()


def current_autograd_node() -> torch.autograd.graph.Node | None:
    """The node of an autograd graph whose backward runs on this thread."""
    node: torch.autograd.graph.Node | None = torch._C._current_autograd_node()
    return node


def fake_mode() -> contextlib.AbstractContextManager[object]:
    """The mode of torch's fake tensors, which claim a device and hold no data. The first use imports for seconds."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode: contextlib.AbstractContextManager[object] = FakeTensorMode(allow_non_fake_inputs=True)
    return mode


class FunctionMode(TorchFunctionMode):
    """A function mode, whose subclasses say in `handle` what a call of torch does."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.handle(func, args, kwargs or {})

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call of torch inside the mode returns."""
        return func(*args, **kwargs)


class _WithoutAddresses(FunctionMode):
    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.Tensor.data_ptr:
            _refuse_address(args[0])
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_addresses() -> Iterator[None]:
    """Within, asking a tensor without data for its address raises, instead of returning 0.

    The user's own kernels (Triton, `torch.cuda.jiterator`) would be launched on that address. After such a fault CUDA
    fails for the rest of the process.
    """
    launch = getattr(torch._C, _JITERATOR, None)  # it reads the address in C++; torch for the CPU does not have it
    if launch is None:
        with _WithoutAddresses():
            yield
        return

    def refuse(
        code: str,
        name: str,
        by_reference: bool,
        outputs: int,
        tensors: Sequence[torch.Tensor],
        constants: Mapping[str, Any],
    ) -> Any:
        for tensor in tensors:
            _refuse_address(tensor)
        return launch(code, name, by_reference, outputs, tensors, constants)

    setattr(torch._C, _JITERATOR, refuse)  # on other threads too, where tensors have addresses
    try:
        with _WithoutAddresses():
            yield
    finally:
        setattr(torch._C, _JITERATOR, launch)


_JITERATOR = "_cuda_jiterator_compile_and_launch_kernel"


def has_meta_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a meta tensor or a fake one. Raises for tensors without a storage, such as sparse ones."""
    return tensor.untyped_storage().device.type == "meta"


def has_data(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds data, unlike meta and fake tensors, wrapper subclasses and those inside `torch.func`."""
    try:
        is_meta = has_meta_storage(tensor)  # first: a fake tensor warns if asked for its address
        return tensor.numel() == 0 or (not is_meta and tensor.data_ptr() != 0)
    except Exception:  # a user's subclass may raise anything
        return False


def _refuse_address(tensor: torch.Tensor) -> None:
    if has_meta_storage(tensor):
        raise NotImplementedError("a tensor without data has no address")


@contextlib.contextmanager
def without_log_of_fake_tensors() -> Iterator[None]:
    """Within, torch does not log a traceback for each operation that fails on fake tensors."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def without_compilation() -> contextlib.AbstractContextManager[Any]:
    """Within, compiled torch functions run eagerly: compiling for tensors without data gains nothing."""
    return torch.compiler.set_stance("force_eager") if dynamo_is_loaded() else contextlib.nullcontext()
