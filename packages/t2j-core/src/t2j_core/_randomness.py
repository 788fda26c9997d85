"""Whether a function draws from torch's default generators, which to JAX is no argument of it."""

from __future__ import annotations

import secrets
from typing import Any

import torch

from . import _compat

_PROBABILITIES = ("p", "dropout_p", "dropout")
_MODES = ("train", "training")


def draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation draws numbers from a default generator."""
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
        return False
    given = {
        argument.name: argument.default_value for argument in func._schema.arguments if argument.has_default_value()
    }
    given.update(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    given.update(kwargs)
    if any(given.get(name) is False for name in _MODES) or any(_is_zero(given.get(name)) for name in _PROBABILITIES):
        return False  # dropout that does nothing; attention has such an argument
    generator = given.get("generator")
    return generator is None or _compat.is_default_generator(generator)


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
    """Counts the operations of a run that draw from a default generator.

    Given a seed, only those count that draw what follows from the state at the beginning of the run: a function that
    seeds the generator itself, or forks it and restores it, gives the same numbers at every call.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._count = 0
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            self._before = torch.default_generator.get_state()

    @classmethod
    def with_private_seed(cls) -> Draws:
        """For a run with a seed that the function does not know, within `torch.random.fork_rng`."""
        return cls(secrets.randbits(63))

    def note(self, func: Any, args: Any, kwargs: Any) -> None:
        """See one operation."""
        if not draws(func, args, kwargs):
            return
        if self._seed is None:
            self._count += 1
        elif torch.initial_seed() == self._seed:
            self._count += 1
            with _compat.default_torch_state(("cpu",)):  # operations without data leave the generator as it is
                torch.rand(())

    def any(self) -> bool:
        """Whether there were any, at the end of the run."""
        if self._count and self._seed is not None:
            return not torch.equal(self._before, torch.default_generator.get_state())
        return self._count > 0


class Watch(_compat.DispatchMode):
    """A mode that shows the operations of a run to `draws`."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._draws.note(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
