"""What `repr` and `explain` say of a wrapped function: its options, and what was decided for each signature.

Both make their text when called. Arrays show as avals such as `f32[8,3]`, never as values.
"""

from __future__ import annotations

import dataclasses
import reprlib
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import torch

from .._base.config import config
from .._base.dtypes import aval_text, dtype_t2j, row_of_jax
from .._base.text import listed
from .._compile.compiled import CompiledFunction
from .._run.lending import Handover
from .._run.redirect import Redirected
from .._run.torch_fn import TorchFn
from .._signature.array_names import arguments_in_short, of_arrays
from .._signature.call_tree import is_data
from .options import OptionGroup

_LONG = 120
_WIDTH = 100


def shown_options(*groups: OptionGroup) -> str:
    """The options that differ from their defaults, as in a call: `outputs='copy', depth=3`."""
    texts = []
    for group in groups:
        for option in dataclasses.fields(group):
            value = getattr(group, option.name)
            if option.repr and not _is_same(value, option.default):
                texts.append(f"{option.name}={shown(value)}")
    return ", ".join(texts)


def _is_same(value: object, default: object) -> bool:
    return value is default or (type(value) is type(default) and value == default)


class _Text(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def shown(value: object) -> str:
    """A tree on one line, with avals in the places of arrays."""
    text = " ".join(repr(jax.tree.map(_shown_leaf, value)).split())
    return text if len(text) <= _LONG else f"{text[: _LONG - 4]} ..."


def _shown_leaf(leaf: Any) -> object:
    if is_data(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
        dtype = dtype_t2j(leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf.dtype
        return _Text(aval_text(tuple(leaf.shape), dtype))
    if isinstance(leaf, (str, bytes)):
        return _Text(reprlib.repr(leaf))
    if isinstance(leaf, _SHOWN_UNCHANGED) or type(leaf).__module__.partition(".")[0] in ("jax", "jaxlib", "t2j_core"):
        return leaf
    return _Text(getattr(leaf, "__qualname__", None) or f"<{type(leaf).__name__}>")


_SHOWN_UNCHANGED = (bool, int, float, complex, type(Ellipsis), slice, torch.dtype, torch.device, torch.Size, np.dtype)


def wrapped(text: str) -> str:
    """The text with lines that fit a terminal."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        wrap = textwrap.TextWrapper(
            _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
        )
        lines += wrap.wrap(line) or [line]
    return "\n".join(lines)


def heading(fn: TorchFn) -> str:
    """A signature in short, however many leaves it has."""
    signature = fn.signature
    arguments = arguments_in_short(signature.operand_paths(), signature.operands)
    return f"{signature.name}({arguments}) -> ({listed(signature.outputs.leaves)})"


def explained(fn: TorchFn) -> list[str]:
    """How the outputs became known, how operands are handed over, and where results are written."""
    signature = fn.signature
    lines = [f"outputs: {signature.outputs.origin}"] if signature.outputs.origin else []
    if given := [f"{path}={shown(value)}" for path, value in signature.call_tree.constants().items()]:
        lines.append(f"constants: {', '.join(given)}")
    if fn.options.compile:
        lines += _compilations(fn)
    if fn.options.command_buffer:
        reason = fn.not_captured
        lines.append("in a command buffer on CUDA" if reason is None else f"in no command buffer, because {reason}")
    paths, results = signature.operand_paths(), signature.outputs.paths()
    lines += of_arrays(paths, signature.operands, lambda i: _handed_over(fn, i, results))
    lines += of_arrays(results, signature.outputs.leaves, lambda i: _written(fn, i, paths))
    return lines


def _compilations(fn: TorchFn) -> list[str]:
    """What was compiled, or why not."""
    if not fn.attempts:
        return ["to be compiled at its first call"]
    attempts = list(fn.attempts.items())
    failed = [(name, attempt.reason) for name, attempt in attempts if attempt.reason is not None]
    compiled = [name for name, attempt in attempts if attempt.compiled is not None]
    lines = [f"compiled: {listed(compiled)}"] if compiled else []
    return [*lines, *(f"not compiled: {line}" for line in grouped(failed))]


def grouped(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each text, with the names that have it."""
    groups: dict[str, list[str]] = {}
    for path, text in pairs:
        groups.setdefault(text, []).append(path)
    return [f"{listed(names)}: {text}" for text, names in groups.items()]


def _handed_over(fn: TorchFn, index: int, results: Sequence[str]) -> str:
    leaf, handover = fn.signature.operands[index], fn.handovers[index]
    if index not in fn.used:
        return "not handed over, because the compiled code does not use it"
    if handover == Handover.MUTABLE:
        return f"written in place, and returned as {results[fn.aliases[index]]}"
    if leaf.torch_dtype != row_of_jax(leaf.dtype).torch:
        return f"converted to {leaf.torch_dtype} at every call"
    if handover == Handover.CLONE:
        lending = fn.lending
        reason = lending.reasons.get(index) or (
            'of `arguments="copy"`' if lending.arguments == "copy" else "the function writes into it"
        )
        return f"copied at every call, because {reason}"
    return "checked at every call, on a copy" if fn.lending.arguments == "check" else "lent, not copied"


def _written(fn: TorchFn, index: int, paths: Sequence[str]) -> str:
    for operand, result in fn.aliases.items():
        if result == index:
            return f"in the memory of {paths[operand]}, where the caller donates it"
    if fn.options.outputs == "out":
        return "written in place by the function, which takes `out=`"
    if isinstance(fn.target, CompiledFunction):
        return "written in place by compiled code"
    if isinstance(fn.target, Redirected):
        return fn.target.explain(index)
    if fn.options.outputs == "copy":
        return 'copied (`outputs="copy"`)'
    return "copied (beside `mutable_argnums`)" if fn.aliases else f"copied (below {config.auto_output_bytes:,} bytes)"
