"""Embeddings with `padding_idx` or `scale_grad_by_freq`, whose backward is not the transpose of their forward mode.

The backward is zero for rows of padding and divides others by how often they occur. Forward mode (`result` of
`embedding` in tools/autograd/derivatives.yaml) ignores both: https://github.com/pytorch/pytorch/issues/93950.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional

_NO_PADDING = {torch.nn.functional.embedding: None, torch.embedding: -1}
_EMBEDDINGS: dict[Callable[..., Any], inspect.Signature] = {
    torch.nn.functional.embedding: inspect.signature(torch.nn.functional.embedding),
    torch.embedding: inspect.signature(lambda weight, indices, padding_idx=-1, scale_grad_by_freq=0, sparse=0: None),
}


def decomposed_embedding(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The embedding in operations whose derivative in both modes is that of torch's backward."""
    given = _EMBEDDINGS[func].bind(*args, **kwargs).arguments
    padding, weighted = given.pop("padding_idx", _NO_PADDING[func]), given.pop("scale_grad_by_freq", False)
    rows = func(**given)
    indices = given["input" if func is torch.nn.functional.embedding else "indices"]
    count = given["weight"].shape[0]
    if weighted:
        in_one_row = indices.reshape(-1)
        counts = torch.zeros(count, dtype=rows.dtype, device=rows.device).index_add(
            0, in_one_row, torch.ones_like(in_one_row, dtype=rows.dtype)
        )
        rows = rows.detach() + (rows - rows.detach()) / counts[indices].unsqueeze(-1)
    if padding != _NO_PADDING[func]:
        rows = torch.where((indices == padding % count).unsqueeze(-1), rows.detach(), rows)
    return rows


def is_special_embedding(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this is an embedding with `padding_idx` or `scale_grad_by_freq`."""
    if func not in _EMBEDDINGS:
        return False
    given = _EMBEDDINGS[func].bind(*args, **kwargs).arguments
    no_padding = _NO_PADDING[func]
    return given.get("padding_idx", no_padding) != no_padding or bool(given.get("scale_grad_by_freq"))
