"""Torch's ahead-of-time tracer, and its compiler inductor. Importing them takes seconds, so it is done at first use."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

Decompositions = dict[Any, Callable[..., Any]]


def fixed_shapes() -> Any:
    """A mode of fake tensors. Inductor's cache on disk, and `.item()` in a trace, need its `ShapeEnv`."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)


def trace_ahead(
    f: Callable[..., Any], x: Sequence[torch.Tensor], decompositions: Decompositions | None, *, joint: bool
) -> GraphModule:
    """The operations of `f` on fake tensors, without writes; with those of its backward if `joint`."""
    from torch._functorch.aot_autograd import aot_export_joint_simple

    ours = {torch.ops.aten._weight_norm_interface.default: _weight_norm_interface}
    graph = aot_export_joint_simple(f, tuple(x), trace_joint=joint, decompositions={**(decompositions or {}), **ours})
    if not isinstance(graph, GraphModule):
        raise NotImplementedError(f"a trace is a {type(graph).__name__}")
    return graph


def _weight_norm_interface(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch._weight_norm` and the norms that its backward takes, in single precision at least.

    Torch's decomposition, which is also its kernel for tensors without data, has norms of float16 in float16, which
    the backward of the kernels refuses. Observed with torch 2.13 (`_weight_norm_interface` in
    torch/_decomp/decompositions.py and aten/src/ATen/native/WeightNorm.cpp).
    """
    wide = v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
    norm = wide.norm(2, [axis for axis in range(v.ndim) if axis != dim], keepdim=True)
    return (wide * (g / norm)).to(v.dtype), norm


def is_of_trace(t: object) -> bool:
    """Whether an object is a tensor of a trace."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(t, (FakeTensor, FunctionalTensor))


def records_writes(t: torch.Tensor) -> bool:
    """Whether the tracer records writes into a tensor.

    It does not where a trace was not given the tensor, or has made it of such tensors alone.
    """
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(t, FunctionalTensor)


@contextlib.contextmanager
def for_compiler() -> Iterator[Decompositions]:
    """Within, graphs for the compiler are traced, with the decompositions that it returns.

    They depend on `fallback_random`: without it a backward would draw another mask than its forward.
    """
    with _silent():
        import torch._inductor.lowering  # the decomposition of max_pool2d asks for the attribute
        from torch._inductor.decomposition import select_decomp_table
    with _configured():
        # A symbolic zero, as the derivative of `torch.sgn`, has no memory, and compiled code reads it.
        yield {**select_decomp_table(), torch.ops.aten._efficientzerotensor.default: torch.zeros}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Within, warnings are not shown: torch's compiler uses parts of torch that warn of their removal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Within, layers do not use oneDNN.

    Its recurrent layers keep nothing for a backward unless grad mode is on, which it is not when a traced graph runs
    (`mkldnn_rnn_layer` in aten/src/ATen/native/mkldnn/RNN.cpp): gradients would be NaN.
    """
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # `torch.backends.mkldnn.flags` sets more, and warns of it
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


class _OnThisThread:
    """A bool that is true on the thread that made it, until it is turned off."""

    def __init__(self) -> None:
        self._thread: int | None = threading.get_ident()

    def turn_off(self) -> None:
        self._thread = None

    def __bool__(self) -> bool:
        return self._thread == threading.get_ident()

    def __or__(self, other: bool) -> bool:
        return bool(self) | other

    def __and__(self, other: bool) -> bool:
        return bool(self) & other

    __ror__, __rand__ = __or__, __and__


@contextlib.contextmanager
def said_to_compile() -> Iterator[None]:
    """Within, `torch.compiler.is_compiling()` is true on this thread.

    Torch has one flag for all threads, and its compiler may set and restore it on another one meanwhile.
    """
    compiler: Any = torch.compiler
    before, mine = compiler._is_compiling_flag, _OnThisThread()
    compiler._is_compiling_flag = mine
    try:
        yield
    finally:
        mine.turn_off()
        if compiler._is_compiling_flag is mine:
            compiler._is_compiling_flag = before


@contextlib.contextmanager
def refusing_seeds(refuse: Callable[[], Exception], note_state: Callable[[], None]) -> Iterator[None]:
    """Within, `torch.manual_seed` and the like raise on this thread: a trace would lose what they do.

    It notes where a state is set.
    """
    random: Any = torch.random
    real, me = random.default_generator, threading.get_ident()

    class Guard:
        def __getattr__(self, name: str) -> Any:
            if name in ("manual_seed", "seed", "initial_seed") and threading.get_ident() == me:
                raise refuse()
            if name == "set_state" and threading.get_ident() == me:
                note_state()
            return getattr(real, name)

    random.default_generator = Guard()
    try:
        yield
    finally:
        random.default_generator = real


def _configured() -> contextlib.AbstractContextManager[Any]:
    from torch._inductor import config

    known: Any = config
    wanted = {name: value for name, value in _OPTIONS.items() if name in known._config}  # torch 2.6 has fewer
    configured: contextlib.AbstractContextManager[Any] = known.patch(wanted)
    return configured


_OPTIONS = {
    "fallback_random": True,  # the numbers that the function draws where it is not compiled
    "size_asserts": False,  # XLA's buffers have the shapes that they were declared with
    "alignment_asserts": False,
    "emulate_precision_casts": True,  # else `x.bfloat16().float()` is `x`, and float16 has no overflow
}


def compile_graph(graph: GraphModule) -> Callable[[list[Any]], Any]:
    """A graph of fake tensors as a function of a list of tensors, which it empties."""
    with _silent():
        return _compiled(graph)


def _compiled(graph: GraphModule) -> Callable[[list[Any]], Any]:
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner

    examples = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    with tracing(TracingContext(examples[0].fake_mode)), torch.no_grad(), _configured():
        compiled: Any = compile_fx_inner(graph, examples, is_inference=True)
    return getattr(compiled, "current_callable", None) or compiled


@functools.cache
def into() -> Any:
    """The operation `into(buffer, value)` of graphs: its result is the buffer, which holds the value.

    Inductor lets a kernel that it generates, or a library such as BLAS, write there; else the value is copied.
    """
    library = torch.library.Library("t2j", "FRAGMENT")
    _libraries.append(library)
    library.define("into(Tensor buffer, Tensor value) -> Tensor")
    library.impl("into", lambda buffer, value: torch.empty_like(buffer), "Meta")
    from torch._inductor import lowering

    lowering.register_lowering(torch.ops.t2j.into.default, type_promotion_kind=None)(_lower_into)
    return torch.ops.t2j.into.default


_libraries: list[Any] = []


def _lower_into(buffer: Any, value: Any) -> Any:
    from torch._inductor import lowering

    try:
        if _writes_into(buffer, value):
            return value
    except (AttributeError, NotImplementedError):  # another version of inductor
        pass
    return lowering.lowerings[torch.ops.aten.copy_.default](buffer, value)


def _writes_into(buffer: Any, value: Any) -> bool:
    """Let the library call that produces a value write into the buffer, if it can."""
    from torch._inductor import ir

    value = value.data  # in the box of a tensor
    view = value.layout if isinstance(value, ir.ReinterpretView) else None
    call = value.data if view is None else value.data.data  # in the box of its memory
    if not isinstance(call, ir.ExternKernelOut) or isinstance(call.layout, ir.NonOwningLayout):
        return False
    layout: Any = call.layout.as_fixed() if isinstance(call.layout, ir.FlexibleLayout) else call.layout
    fits = list(layout.size) == list(buffer.get_size()) and layout.dtype == buffer.get_dtype()
    fits &= view is None or (view.size, view.stride, view.offset) == (layout.size, layout.stride, layout.offset)
    if not fits or type(layout) is not ir.FixedLayout or not layout.is_contiguous():
        return False
    place, _ = ir.as_storage_and_layout(buffer)
    call.layout = ir.NonOwningLayout(ir.ReinterpretView(data=place, layout=layout))
    return True
