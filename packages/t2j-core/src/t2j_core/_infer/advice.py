"""What is said along with an exception that the user's function raises, or of a call that is not what it seems."""

from __future__ import annotations

import collections
import contextlib
import re
import traceback
import types
from collections.abc import Sequence

import torch

from .._base.errors import T2jWarning, listed, warn
from .._base.frames import Place, users_place
from .._signature.call_tree import CallTree
from .._signature.signature import Leaf, Outputs, named_avals

_OF_A_NUMBER = re.compile(r"\b(int|float|complex|list|tuple)\b")  # "must be Tensor, not float", "'int' object has no"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of the user's, whose class may forbid it."""
    with contextlib.suppress(Exception):
        BaseException.add_note(error, note)


def note_numbers(error: BaseException, call_tree: CallTree) -> None:
    """Tell what to do where the function got a Python number and needs a tensor."""
    with contextlib.suppress(Exception):  # its text is the user's
        if (
            type(error) in (TypeError, AttributeError)
            and _OF_A_NUMBER.search(str(error))
            and (names := list(call_tree.numbers()))
        ):
            add_note(
                error,
                f"The function gets Python numbers as they are, here {listed(names)}. Where it needs a tensor, pass "
                "an array: `jnp.asarray(...)`.",
            )


_NAMES = {  # in errors of torch, where they differ from those of its dtypes
    torch.float16: "Half",
    torch.float32: "Float",
    torch.float64: "Double",
    torch.bfloat16: "BFloat16",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.bool: "Bool",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
}


def note_mixed_dtypes(error: BaseException, call_tree: CallTree, operands: Sequence[Leaf]) -> None:
    """Tell which arguments have another dtype than most, where torch says that two dtypes do not go together."""
    with contextlib.suppress(Exception):  # its text is the user's
        text = str(error)
        if type(error) is not RuntimeError or not re.search("dtype|scalar type", text):
            return
        told = [leaf.torch_dtype for leaf in operands if re.search(rf"\b{_NAMES.get(leaf.torch_dtype)}\b", text)]
        if len(set(told)) < 2:
            return
        most = collections.Counter(told).most_common(1)[0][0]
        pairs = zip(call_tree.paths(), operands, strict=True)
        other = [f"{path}: {leaf}" for path, leaf in pairs if leaf.torch_dtype in told and leaf.torch_dtype != most]
        add_note(error, f"Most arguments are of the dtype {most}; these are not: {listed(other)}.")


def note_jax_dtypes(error: BaseException) -> None:
    """Tell that `jnp.float32` is no dtype of torch."""
    with contextlib.suppress(Exception):  # its text is the user's
        if type(error) is TypeError and "_ScalarMeta" in str(error):
            add_note(
                error,
                "A dtype of JAX, such as `jnp.float32`, is no dtype of torch. Pass `torch.float32`, or convert with "
                "`dtype_j2t`.",
            )


def note_cuda_graphs(error: BaseException) -> None:
    """Tell why CUDA graphs of `torch.compile` fail on a thread.

    torch 2.11: `get_obj` in torch/_inductor/cudagraph_trees.py asserts that the thread is the one which imported the
    module, or one of autograd's (pytorch/pytorch#123177). The mend in torch 2.13 (pytorch/pytorch#184357) has three
    parts: state for each thread, compiled functions for each thread, and a lock around captures. Setting the state from
    here would be the first alone.
    """
    if isinstance(error, AssertionError) and any(map(_is_in_cuda_graphs, traceback.walk_tb(error.__traceback__))):
        add_note(
            error,
            'CUDA graphs (`torch.compile(..., mode="reduce-overhead")`) work on one thread only in this version of '
            'PyTorch. Update to torch 2.13, compile with `mode="max-autotune-no-cudagraphs"`, or call the function '
            "from the thread that called it first, on one GPU.",
        )


def _is_in_cuda_graphs(entry: tuple[types.FrameType, int]) -> bool:
    frame = entry[0]
    is_of_module = frame.f_globals.get("__name__") == "torch._inductor.cudagraph_trees"
    return is_of_module and frame.f_code.co_name == "get_obj"


def note_inference(
    error: Exception, name: str, call_tree: CallTree, operands: Sequence[Leaf], *, values_matter: bool
) -> None:
    """Tell that the outputs were being inferred; and, if real data might work, how to go without."""
    given = named_avals(call_tree, operands) or "a call without arrays"
    text = f"Raised while t2j inferred the outputs of {name} for {given}."
    if values_matter:
        text += " If the function works on real data, declare its outputs with `output_shapes=`."
        if any(leaf.shape == () and not leaf.torch_dtype.is_floating_point for leaf in operands):
            text += (
                " A number among the arguments of a `jax.jit` is data: if a shape depends on it, make it a constant "
                "with `static_argnums`."
            )
    add_note(error, text)
    note_numbers(error, call_tree)
    note_jax_dtypes(error)
    note_mixed_dtypes(error, call_tree, operands)


Kind = tuple[type[Exception], "Place | None"]


def kind_of(error: Exception) -> Kind:
    """What an exception is, and where the function raised it. Unlike the exception it holds no frame."""
    return type(error), users_place(error)


def values_matter(without_data: Kind | None, with_data: Sequence[Exception]) -> bool:
    """Whether a function that failed without data, and on made-up data, might work on real data.

    It would not where each run raises the same on the same line: shapes that do not fit, a missing argument.
    """
    kinds = {*filter(None, [without_data]), *map(kind_of, with_data)}
    return len(kinds) > 1 or len(set(map(_text, with_data))) > 1


def first_line(error: Exception) -> str:
    """The type of an exception and the first line of its text."""
    try:
        lines = str(error).splitlines()
    except Exception:  # it is the user's
        lines = []
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def tell_without_arrays(name: str, call_tree: CallTree, outputs: Outputs) -> None:
    """Warn of a call of numbers alone that returns no tensor: PyTorch had nothing to do."""
    names = call_tree.numbers()
    if names and not outputs.leaves:
        warn(
            f"{name} was called without any array, and returned no tensor. Python numbers are constants, also those in "
            f"lists: the function gets {listed(names)} as they are. To compute with them, pass an array: "
            "`jnp.asarray(...)`.",
            T2jWarning,
        )
