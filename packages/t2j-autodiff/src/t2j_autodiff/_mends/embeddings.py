"""Embeddings whose backward is not the transpose of their forward."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional

_NO_PADDING = {torch.nn.functional.embedding: None, torch.embedding: -1}
_EMBEDDINGS = {
    torch.nn.functional.embedding: inspect.signature(torch.nn.functional.embedding),
    torch.embedding: inspect.signature(lambda weight, indices, padding_idx=-1, scale_grad_by_freq=0, sparse=0: None),
}


def plain_embedding(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """An embedding whose derivative is that of its backward: of padding it is zero, and others are weighted."""
    given = _EMBEDDINGS[func].bind(*args, **kwargs).arguments
    padding, weighted = given.pop("padding_idx", _NO_PADDING[func]), given.pop("scale_grad_by_freq", False)
    rows = func(**given)
    indices = given["input" if func is torch.nn.functional.embedding else "indices"]
    count = given["weight"].shape[0]
    if weighted:
        flat = indices.reshape(-1)
        counts = torch.zeros(count, dtype=rows.dtype, device=rows.device).index_add(
            0, flat, torch.ones_like(flat, dtype=rows.dtype)
        )
        rows = rows.detach() + (rows - rows.detach()) / counts[indices].unsqueeze(-1)
    if padding != _NO_PADDING[func]:
        rows = torch.where((indices == padding % count).unsqueeze(-1), rows.detach(), rows)
    return rows


def is_special_embedding(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it is an embedding with a backward of its own: `padding_idx` or `scale_grad_by_freq`."""
    if func not in _EMBEDDINGS:
        return False
    given = _EMBEDDINGS[func].bind(*args, **kwargs).arguments
    no_padding = _NO_PADDING[func]
    return given.get("padding_idx", no_padding) != no_padding or bool(given.get("scale_grad_by_freq"))
