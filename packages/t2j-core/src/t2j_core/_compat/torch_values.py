"""What operations of torch take, and what its containers consist of."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as torch_tree


def _takes_int32_in_gather() -> bool:
    try:
        torch.zeros(1).gather(0, torch.zeros(1, dtype=torch.int32))
    except RuntimeError:
        return False
    return True


# torch 2.6 wants int64; from some later version on `gather` and `scatter` have int32 indices too.
TAKES_INT32_IN_GATHER = _takes_int32_in_gather()


def numbers_in(tensor: torch.Tensor) -> list[int]:
    """What a tensor of integers holds, within the transforms of `torch.func` too: under `vmap` all examples at once."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return tensor.flatten().tolist()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with temporarily_clear_interpreter_stack():  # torch 2.6 wraps the results of views again
        return tensor.flatten().tolist()


def registered_with_torch(item: Any) -> dict[str, Any] | list[Any] | None:
    """What an object of a class in torch's registry of pytrees consists of, by its names; None for other objects."""
    if type(item) not in torch_tree.SUPPORTED_NODES:
        return None
    is_part = lambda part: part is not item
    try:
        keyed = torch_tree.tree_flatten_with_path(item, is_leaf=is_part)[0]
    except Exception:  # it is registered without `flatten_with_keys_fn`
        return torch_tree.tree_leaves(item, is_leaf=is_part) or None
    if not keyed:  # a constant, such as `torch.Size`
        return None
    parts: dict[Any, Any] = {getattr(path[0], "key", getattr(path[0], "name", None)): part for path, part in keyed}
    is_named = len(parts) == len(keyed) and all(isinstance(name, str) for name in parts)
    return parts if is_named else [part for _, part in keyed]
