"""Indices of 32 bits, as JAX has them while x64 is off, in functions of torch that need 64.

Many functions of torch refuse int32 only because indices are int64 there: `take_along_dim`, `one_hot`, the targets of
`cross_entropy`. `gather` and `scatter` take int32 since torch 2.8 (https://github.com/pytorch/pytorch/pull/151822), but
on a CPU they have a fast path for `dim=0` and an index that is expanded along all other dimensions, such as
`index[:, None].expand_as(x)`. It reads the int32 index as int64: the result is wrong, without an error, and memory
behind the index is read (torch 2.13: `can_use_expanded_index_path` in aten/src/ATen/native/TensorAdvancedIndexing.cpp
does not ask for the dtype). The gradients of `scatter`, `scatter_add` and `scatter_reduce` are gathers of that kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from .._compat import TAKES_INT32_IN_GATHER


class _Takes(NamedTuple):
    """Where a function has its indices, and which dtypes it takes besides int64."""

    positions: tuple[int, ...]
    names: tuple[str, ...] = ()
    dtypes: frozenset[torch.dtype] = frozenset()


_INT = frozenset({torch.int32})
_BYTE = frozenset({torch.uint8})  # a mask, or a target of few classes
_NARROW = {torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
_EXPANDED = ("gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")


def _table() -> dict[str, _Takes]:
    after_dim, first = _Takes((2,), ("index",)), _Takes((1,), ("index",))
    target = _Takes((1,), ("target",), _BYTE)
    both = ("index_copy", "index_fill"), ("index_add", "index_reduce")
    return {
        **dict.fromkeys(_EXPANDED, after_dim._replace(dtypes=_INT if TAKES_INT32_IN_GATHER else frozenset())),
        "index_select": after_dim._replace(dtypes=_INT),
        **{name + end: after_dim for name in both[0] for end in ("", "_")},
        **{name + end: after_dim._replace(dtypes=_INT) for name in both[1] for end in ("", "_")},
        **dict.fromkeys(("take", "put", "put_"), first),
        **dict.fromkeys(("__getitem__", "__setitem__"), _Takes((1,), (), _INT | _BYTE)),
        **dict.fromkeys(("index_put", "index_put_"), _Takes((1,), ("indices",), _INT | _BYTE)),
        **dict.fromkeys(("cross_entropy", "nll_loss", "multi_margin_loss"), target),
        "multilabel_margin_loss": target._replace(dtypes=frozenset()),
        **dict.fromkeys(("max_unpool1d", "max_unpool2d", "max_unpool3d"), _Takes((1,), ("indices",))),
        # In `torch` the weights come first, in `torch.nn.functional` the indices.
        "embedding": _Takes((0, 1), ("input", "indices"), _INT),
        "embedding_bag": _Takes((0, 1, 2), ("input", "indices", "offsets"), _INT),
        "one_hot": _Takes((0,), ("input", "tensor", "self")),
        "repeat_interleave": _Takes((1,), ("repeats",), _INT),
        "take_along_dim": _Takes((1,), ("indices",)),
        "tensor_split": _Takes((1,), ("tensor_indices_or_sections", "indices_or_sections")),
    }


_FUNCTIONS = _table()
_NAMES = frozenset(f"aten::{name}" for name in _EXPANDED)
_INDEX = 2  # position of the index in these: after the tensor and the dimension


def are_narrow(dtypes: Iterable[torch.dtype]) -> bool:
    """Whether a function on tensors of these dtypes may have indices that torch refuses or misreads."""
    return any(dtype in _NARROW - _BYTE for dtype in dtypes)  # bytes are images or masks


def expands_index(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether an operation takes an expanded int32 index, which it may misread."""
    if func._schema.name not in _NAMES or len(args) <= _INDEX or not isinstance(args[_INDEX], torch.Tensor):
        return False
    index = args[_INDEX]
    return index.dtype == torch.int32 and any(
        stride == 0 and size > 1 for stride, size in zip(index.stride(), index.shape, strict=True)
    )


class LongIndices(TorchFunctionMode):
    """Converts indices that torch refuses to int64; if `misread`, the int32 ones of `gather` and `scatter` too."""

    def __init__(self, *, misread: bool) -> None:
        super().__init__()
        self._misread = _EXPANDED if misread else ()
        self.has_met_refused = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        takes = _FUNCTIONS.get(name)
        if takes is not None:
            long = functools.partial(self._long, takes.dtypes, name in self._misread)
            args = tuple(long(a) if i in takes.positions else a for i, a in enumerate(args))
            kwargs = {name: long(value) if name in takes.names else value for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _long(self, taken: frozenset[torch.dtype], is_misread: bool, index: object) -> object:
        if isinstance(index, (tuple, list)):  # of `x[i, j]`
            return type(index)([self._long(taken, is_misread, part) for part in index])
        if not isinstance(index, torch.Tensor) or index.dtype not in _NARROW:
            return index
        is_refused = index.dtype not in taken
        self.has_met_refused |= is_refused
        return index.long() if is_refused or is_misread else index


def with_long_indices(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, with indices converted to 64 bits where torch needs that."""

    @functools.wraps(fn)
    def run(*args: object, **kwargs: object) -> Any:
        with LongIndices(misread=True):
            return fn(*args, **kwargs)

    return run
