"""Notes on exceptions of the user's function: what probably caused them, and what to do."""

from __future__ import annotations

import collections
import contextlib
import re
import traceback
import types
from collections.abc import Sequence

import numpy as np
import torch

from .._base.dtypes import canonical
from .._base.errors import T2jWarning, warn
from .._base.text import listed
from .._signature.array_names import named_avals
from .._signature.call_tree import CallTree
from .._signature.signature import Leaf, Outputs

_OF_A_NUMBER = re.compile(r"\b(int|float|complex|list|tuple)\b")  # "must be Tensor, not float", "'int' object has no"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception. The class of a user's exception may override `add_note`, or have no `__dict__`."""
    with contextlib.suppress(Exception):
        BaseException.add_note(error, note)


def note_numbers(error: BaseException, call_tree: CallTree) -> None:
    """Note what to do if the function was passed a Python number and needs a tensor."""
    with contextlib.suppress(Exception):  # `__str__` of a user's exception may raise
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


_NAMES = {  # of scalar types in torch's errors, where they differ from the names of dtypes
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
    """Note which arguments have another dtype than most, if torch reports that two dtypes do not fit."""
    with contextlib.suppress(Exception):  # `__str__` of a user's exception may raise
        text = str(error)
        if type(error) is not RuntimeError or not re.search("dtype|scalar type", text):
            return
        named = [leaf.torch_dtype for leaf in operands if re.search(rf"\b{_NAMES.get(leaf.torch_dtype)}\b", text)]
        if len(set(named)) < 2:
            return
        most = collections.Counter(named).most_common(1)[0][0]
        pairs = zip(call_tree.paths(), operands, strict=True)
        other = [f"{path}: {leaf}" for path, leaf in pairs if leaf.torch_dtype in named and leaf.torch_dtype != most]
        add_note(error, f"Most arguments are of the dtype {most}; these are not: {listed(other)}.")


_WIDE = re.compile(r"\b(Long(Tensor)?|long tensor|int64|float64|Double(?! backward)|double (?=!=)|(?<=!= )double)\b")

_NARROW_TOO = re.compile(r"\bLong, Int\b")  # "one of the following scalar types: Long, Int; but got torch.FloatTensor"


def note_missing_width(error: BaseException) -> None:
    """Note that JAX's arrays have at most 32 bits if torch asks for 64, as losses on integer labels do."""
    if canonical(np.int64) == np.int64 or type(error) not in (RuntimeError, IndexError, TypeError):  # what torch raises
        return
    with contextlib.suppress(Exception):  # `__str__` of a user's exception may raise
        if _WIDE.search(str(error)) and not _NARROW_TOO.search(str(error)):
            add_note(
                error,
                "While JAX's x64 mode is off, arrays arrive with at most 32 bits. Convert inside the function "
                "(`labels.long()`), or pass a `torch.int64` or `torch.float64` tensor as the argument's example.",
            )


def note_jax_dtypes(error: BaseException) -> None:
    """Note that `jnp.float32` is not a dtype of torch."""
    with contextlib.suppress(Exception):  # `__str__` of a user's exception may raise
        if type(error) is TypeError and "_ScalarMeta" in str(error):
            add_note(
                error,
                "A dtype of JAX, such as `jnp.float32`, is not a dtype of torch. Pass `torch.float32`, or convert with "
                "`dtype_j2t`.",
            )


def note_written_leaf(error: BaseException) -> None:
    """Note what to do if a function with declared outputs writes into an argument that is differentiated."""
    with contextlib.suppress(Exception):  # `__str__` of a user's exception may raise
        if type(error) is RuntimeError and "leaf Variable that requires grad" in str(error):
            add_note(
                error,
                "Where t2j infers the outputs, it sees which arguments the function writes into, and copies them. If "
                'they are declared with `output_shapes=`, wrap the function with `arguments="copy"`, or write into '
                "`tensor.clone()`.",
            )


def note_cuda_graphs(error: BaseException) -> None:
    """Note why CUDA graphs of `torch.compile` fail on a thread.

    torch 2.11: `get_obj` in torch/_inductor/cudagraph_trees.py asserts that the thread is the one which imported the
    module, or one of autograd's (https://github.com/pytorch/pytorch/issues/123177). torch 2.13 keeps that state for
    each thread, keeps compiled functions for each thread, and locks captures
    (https://github.com/pytorch/pytorch/pull/184357). Setting the state from here would do the first alone.
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
    """Note that the outputs were being inferred; and, if real data might work, how to do without inference."""
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


def warn_of_no_arrays(name: str, call_tree: CallTree, outputs: Outputs) -> None:
    """Warn of a call with numbers alone that returns no tensor: PyTorch had nothing to compute."""
    names = call_tree.numbers()
    if names and not outputs.leaves:
        warn(
            f"{name} was called without any array, and returned no tensor. Python numbers are constants, also those in "
            f"lists: the function gets {listed(names)} as they are. To compute with them, pass an array: "
            "`jnp.asarray(...)`.",
            T2jWarning,
        )
