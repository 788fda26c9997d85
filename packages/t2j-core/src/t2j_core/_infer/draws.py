"""`Draws`: whether a run draws random numbers from torch's generators, and whether its results depend on them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .._random.generators import drawn_from
from .._signature.containers import as_pytree

_T = TypeVar("_T")


def generator_states() -> list[torch.Tensor]:
    """The states of the default generators: they differ after numbers were drawn. Reading them waits for no GPU."""
    gpus = (torch.cuda.default_generators[i] for i in _compat.torch_gpus())
    return [generator.get_state() for generator in (torch.default_generator, *gpus)]


class Draws:
    """Counts the operations of a run that draw random numbers.

    Given a seed, only those count whose numbers depend on the state at the beginning of the run: a function that seeds
    the generator itself, or forks and restores it, draws the same numbers at every call. What was drawn is then
    followed to the results: a function that makes a layer and loads weights into it does not use what it drew. `others`
    are the states of generators that the function has seeded or made: in two runs they differ if the seed is the time,
    or comes from `torch.seed()`.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._count = 0
        self._drawn: dict[int, torch.UntypedStorage] = {}  # kept alive; hold numbers drawn, or computed from them
        self._is_used = False  # returned, or read as a Python number
        self._others: list[bytes] = []
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            self._before = torch.default_generator.get_state()

    @classmethod
    def with_private_seed(cls) -> Draws:
        """`Draws` with a seed that the function cannot know, for a run within `torch.random.fork_rng`."""
        return cls(secrets.randbits(63))

    def any(self) -> bool:
        """Whether the run, which has ended, drew any that count."""
        if self._count and self._seed is not None:
            return self._is_used and not torch.equal(self._before, torch.default_generator.get_state())
        return self._count > 0

    @property
    def others(self) -> list[bytes]:
        """The states of generators other than the default one as it began, if results depend on them."""
        return self._others if self._is_used else []

    def note(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        """Take one operation and its result into account."""
        generator = drawn_from(func, args, kwargs)
        if self._seed is None:
            self._count += generator is not None
        elif generator is not None:
            self._mark(func, args, kwargs, result)
            self._note_generator(generator)
        elif self._drawn:
            self._follow(func, args, kwargs, result)

    def _note_generator(self, generator: torch.Generator) -> None:
        if generator is torch.default_generator and torch.initial_seed() == self._seed:
            self._count += 1
            with _compat.default_torch_state(("cpu",)):  # without data an operation does not advance the generator
                torch.rand(())
        else:
            self._others.append(generator.get_state().numpy().tobytes())

    def _follow(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: object
    ) -> None:
        overwrites = func._schema.name in _OVERWRITES and _is_whole(args[0])
        if overwrites:
            self._drawn.pop(args[0].untyped_storage()._cdata, None)
        if any(map(self.is_drawn, _tensors((args[1:] if overwrites else args, kwargs)))):
            self._mark(func, args, kwargs, result)

    def _mark(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [given.get(a.name) for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        tensors = _tensors((result, written))
        self._is_used |= not tensors  # such as by `item()`: the function may branch on it
        for tensor in tensors:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                self._drawn[storage._cdata] = storage
            else:
                self._is_used = True

    def is_drawn(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor holds numbers drawn, or computed from them."""
        return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in self._drawn

    def returned(self, values: _T) -> _T:
        """Take into account what leaves torch: results, and what is read as numbers."""
        leaves = jax.tree.leaves(as_pytree(values))
        self._is_used |= any(self.is_drawn(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
        return values


_OVERWRITES = ("aten::copy_", "aten::fill_", "aten::zero_")


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in torch_tree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor covers its memory."""
    return (
        tensor.layout == torch.strided and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    )


class WatchDraws(_compat.DispatchMode):
    """Notes the operations of a run in `draws`."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws

    def handle(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and note it."""
        result = self.operate(func, args, kwargs)
        self._draws.note(func, args, kwargs, result)
        return result


class WatchReads(_compat.FunctionMode):
    """Notes in `draws` which tensors are read without an operation."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note a read."""
        if func in _READS:
            self._draws.returned(args[0])
        return func(*args, **kwargs)


_READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__)
