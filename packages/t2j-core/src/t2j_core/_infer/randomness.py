"""Whether a function draws from torch's default generators, which to JAX is no argument of it."""

from __future__ import annotations

import secrets
from typing import Any

import jax
import torch
import torch.utils._pytree as torch_tree
from torch.overrides import TorchFunctionMode

from .. import _compat
from .._signature.containers import plain

_PROBABILITIES = ("p", "dropout_p", "dropout")
_MODES = ("train", "training")


def drawn_from(func: Any, args: Any, kwargs: Any) -> Any:
    """The generator that an operation draws numbers from: its own, or the default one of a CPU; None if it does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
        return None
    given = {
        argument.name: argument.default_value for argument in func._schema.arguments if argument.has_default_value()
    }
    given.update(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    given.update(kwargs)
    if any(given.get(name) is False for name in _MODES) or any(_is_zero(given.get(name)) for name in _PROBABILITIES):
        return None  # dropout that does nothing; attention has such an argument
    generator = given.get("generator")
    is_default = generator is None or _compat.is_default_generator(generator)
    return torch.default_generator if is_default else generator


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def generator_states() -> list[torch.Tensor]:
    """The states of the default generators, which tell whether somebody drew numbers. None waits for a GPU."""
    gpus = (torch.cuda.default_generators[i] for i in _compat.torch_gpus())
    return [generator.get_state() for generator in (torch.default_generator, *gpus)]


def told(name: str) -> str:
    """What is said of a function that draws without a key."""
    return (
        f"{name} draws random numbers without a key. To JAX it is a pure function: equal calls under `jax.jit` may "
        "become one, with the same numbers in each place (one dropout mask for two views), and a derivative that runs "
        "it again draws other numbers. Wrap it with `rng=True` and pass a JAX key first; or pass `train=False` for a "
        "module that should not draw at all."
    )


class Draws:
    """Counts the operations of a run that draw random numbers.

    Given a seed, only those count that draw what follows from the state at the beginning of the run: a function that
    seeds the generator itself, or forks it and restores it, gives the same numbers at every call. And what was drawn
    is followed to the results: a function that makes a layer and loads weights into it draws for nothing. `others` are
    the states of generators that the function has seeded, or made: in two runs they differ if it did so by the clock,
    or by `torch.seed()`.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._count = 0
        self._drawn: dict[int, torch.UntypedStorage] = {}  # memory with what was drawn, or came of it; kept alive
        self._is_used = False  # it was returned, or became something that is not a tensor
        self._others: list[bytes] = []
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            self._before = torch.default_generator.get_state()

    @classmethod
    def with_private_seed(cls) -> Draws:
        """For a run with a seed that the function does not know, within `torch.random.fork_rng`."""
        return cls(secrets.randbits(63))

    def any(self) -> bool:
        """Whether there were any, at the end of the run."""
        if self._count and self._seed is not None:
            return self._is_used and not torch.equal(self._before, torch.default_generator.get_state())
        return self._count > 0

    @property
    def others(self) -> list[bytes]:
        """The states of generators other than the default one at the beginning of the run, if the results show them."""
        return self._others if self._is_used else []

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """See one operation, and its result."""
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
            with _compat.default_torch_state(("cpu",)):  # operations without data leave the generator as it is
                torch.rand(())
        else:
            self._others.append(generator.get_state().numpy().tobytes())

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        overwrites = func._schema.name in _OVERWRITES and _is_whole(args[0])
        if overwrites:
            self._drawn.pop(args[0].untyped_storage()._cdata, None)
        if any(map(self.is_drawn, _tensors((args[1:] if overwrites else args, kwargs)))):
            self._mark(func, args, kwargs, result)

    def _mark(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [given.get(a.name) for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        tensors = _tensors((result, written))
        self._is_used |= not tensors  # `item()`, which the function may decide by
        for tensor in tensors:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                self._drawn[storage._cdata] = storage
            else:
                self._is_used = True

    def is_drawn(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor holds what was drawn."""
        return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in self._drawn

    def returned(self, values: Any) -> Any:
        """See what leaves the world of torch: results, and what is read as numbers."""
        leaves = jax.tree.leaves(plain(values))
        self._is_used |= any(self.is_drawn(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
        return values


_OVERWRITES = ("aten::copy_", "aten::fill_", "aten::zero_")


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch_tree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all there is in its memory."""
    return (
        tensor.layout == torch.strided and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    )


class Watch(_compat.DispatchMode):
    """A mode that shows the operations of a run to `draws`."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.operate(func, args, kwargs)
        self._draws.note(func, args, kwargs or {}, result)
        return result


class WatchReads(TorchFunctionMode):
    """A mode that shows to `draws` what is read without an operation."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            self._draws.returned(args[0])
        return func(*args, **(kwargs or {}))


_READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__)
