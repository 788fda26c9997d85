"""Values: which dtypes indices may have, numbers inside transforms, containers in torch's registry of pytrees."""

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


# Since torch 2.8 `gather` and `scatter` take int32 indices too (https://github.com/pytorch/pytorch/pull/151822).
TAKES_INT32_IN_GATHER = _takes_int32_in_gather()


def numbers_in(tensor: torch.Tensor) -> list[int]:
    """The elements of a tensor of integers, also inside transforms of `torch.func`: under `vmap` of all examples."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return tensor.flatten().tolist()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    tensor = unwrapped(tensor)
    with temporarily_clear_interpreter_stack():  # torch 2.6 wraps the result of `flatten` again
        return tensor.flatten().tolist()


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor inside transforms of `torch.func`: under `vmap` that of all examples."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def registered_with_torch(item: object) -> dict[str, Any] | list[Any] | None:
    """The parts of an object whose class is in torch's registry of pytrees, by their names; None for other objects."""
    if type(item) not in torch_tree.SUPPORTED_NODES:
        return None
    is_part = lambda part: part is not item
    try:
        keyed = torch_tree.tree_flatten_with_path(item, is_leaf=is_part)[0]
    except Exception:  # its class is registered without `flatten_with_keys_fn`
        return torch_tree.tree_leaves(item, is_leaf=is_part) or None
    if not keyed:  # a constant, such as `torch.Size`
        return None
    parts: dict[Any, Any] = {getattr(path[0], "key", getattr(path[0], "name", None)): part for path, part in keyed}
    is_named = len(parts) == len(keyed) and all(isinstance(name, str) for name in parts)
    return parts if is_named else [part for _, part in keyed]
