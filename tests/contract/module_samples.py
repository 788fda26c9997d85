"""The samples of PyTorch's module database, and their checks.

A module is called as a user calls it: `module2jax` gives a function and the parameters and buffers as arrays. Native
torch is the module itself, in a copy for each call.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.utils._pytree as torch_tree
from case import Case, How
from fair import are_same, seed
from judge import NotCounted, Tensors, compare, leaves_of, native, twin
from t2j_autodiff import module2jax, t2j, torch2jax
from torch.nn.parameter import is_lazy

CHECKS = ("forward", "again", "vjp", "vmap", "vmap_vjp")


class Modules:
    """All modules, in training or in evaluation mode."""

    def __init__(self, training: bool) -> None:
        from torch.testing._internal.common_modules import module_db

        self.training = training
        self.subjects: list[Any] = list(module_db)
        self.names = [info.name for info in self.subjects]

    def checks(self, how: How) -> tuple[str, ...]:
        """The names of the checks of each sample."""
        return CHECKS

    def cases(self, info: Any, how: How) -> list[Case]:
        """The first samples, equal in every run."""
        dtype = getattr(torch, how.dtype)
        if dtype not in info.supported_dtypes(how.device):
            raise NotCounted("dtype unsupported")
        seed(zlib.crc32(info.name.encode()))
        inputs = info.module_inputs_func(
            info, device=how.device, dtype=dtype, requires_grad=False, training=self.training
        )
        return [self.case_of(info, one, how) for one in inputs[: how.samples]]

    def case_of(self, info: Any, one: Any, how: How) -> Case:
        """One module with one input."""
        made, given = one.constructor_input, one.forward_input
        module = info.module_cls(*made.args, **made.kwargs).to(how.device, getattr(torch, how.dtype))
        module.train(self.training)
        arguments = Arguments(given.args, given.kwargs)
        if any(map(is_lazy, module.parameters())):
            arguments.passed_to(module, arguments.tensors)  # gives the parameters their shapes
        kind = RandomModule if is_random(module, arguments) else ModuleCase
        owned = [t.detach() for t in (*module.parameters(), *module.buffers())]
        return kind(module, owned + arguments.tensors, how, arguments=arguments)


class Arguments:
    """The arguments of a module, of which the tensors can be replaced."""

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.leaves, self.spec = torch_tree.tree_flatten((args, kwargs))
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]

    @property
    def tensors(self) -> Tensors:
        return [self.leaves[i].detach() for i in self.places]

    def passed_to(self, call: Callable[..., Any], tensors: Sequence[Any]) -> Any:
        """What a function returns for these arguments with other tensors, or arrays in their place."""
        full = list(self.leaves)
        for i, t in zip(self.places, tensors, strict=True):
            full[i] = t
        args, kwargs = torch_tree.tree_unflatten(full, self.spec)
        return call(*args, **kwargs)


def is_random(module: torch.nn.Module, arguments: Arguments) -> bool:
    """Whether a module draws random numbers."""

    def values(number: int) -> Tensors:
        seed(number)
        with torch.no_grad():
            return leaves_of(arguments.passed_to(copy.deepcopy(module), list(map(twin, arguments.tensors))))

    try:
        return not are_same(values(1), values(2))
    except Exception:  # the check of the values says so
        return False


@dataclass
class ModuleCase(Case):
    """One module as a function of its parameters, its buffers and its inputs, in this order.

    In training it returns its new buffers, in the order of their names, after its outputs. Parameters and buffers are
    shared by the examples of a batch. Buffers have no derivatives.
    """

    arguments: Arguments = field(default_factory=lambda: Arguments((), {}))

    @cached_property
    def parameters(self) -> list[str]:
        return [name for name, _ in self.fn.named_parameters()]

    @cached_property
    def buffers(self) -> list[str]:
        return [name for name, _ in self.fn.named_buffers()]

    def split(self, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Parameters, buffers and inputs."""
        first, last = len(self.parameters), len(self.parameters) + len(self.buffers)
        return list(values[:first]), list(values[first:last]), list(values[last:])

    @property
    def candidates(self) -> list[int]:
        first, last = len(self.parameters), len(self.parameters) + len(self.buffers)
        return [i for i in super().candidates if not first <= i < last]

    @property
    def axes(self) -> list[int | None]:
        parameters, buffers, inputs = self.split(self.tensors)
        return [None] * len(parameters + buffers) + [0] * len(inputs)

    def instance(self, tensors: Tensors) -> tuple[Tensors, Callable[[], Tensors]]:
        module = copy.deepcopy(self.fn).requires_grad_(False)
        own = [*module.parameters(), *module.buffers()]
        for mine, value in zip(own, tensors, strict=False):
            mine.copy_(value)
        inputs = list(map(twin, self.split(tensors)[2]))

        def call() -> Tensors:
            outputs = leaves_of(self.arguments.passed_to(module, inputs))
            return outputs + [b for _, b in sorted(module.named_buffers())] * module.training

        return own + inputs, call

    @cached_property
    def options(self) -> dict[str, Any]:
        return {"train": self.fn.training, "mutable": self.fn.training, "compile": self.how.compiles}

    @cached_property
    def wrapped(self) -> Callable[..., Any]:
        return module2jax(self.fn, **self.options)[0]

    def called(self, variables: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """What the function of `module2jax` returns."""
        return self.wrapped(variables, *args, **kwargs)

    def outputs(self, *arrays: Any) -> list[Any]:
        parameters, buffers, inputs = self.split(arrays)
        variables = {
            "params": dict(zip(self.parameters, parameters, strict=True)),
            "buffers": dict(zip(self.buffers, buffers, strict=True)),
        }
        found = self.arguments.passed_to(partial(self.called, variables), inputs)
        return [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array)]

    def again(self) -> None:
        """Three calls, each with the buffers of the one before. The third is the first whose arguments are lent."""
        examples = self.batch(lambda x: None)
        expected = native(lambda: self.in_turn(self.values, [examples[k] for k in (0, 1, 0)]))
        arrays = [list(map(t2j, map(twin, example))) for example in examples]
        got = self.in_turn(lambda x: self.call(*x), [arrays[k] for k in (0, 1, 0)])
        compare(got, expected, self.tolerance)

    @cached_property
    def call(self) -> Callable[..., list[Any]]:
        return self.run(self.outputs)

    def in_turn(self, outputs: Callable[[list[Any]], list[Any]], examples: Sequence[list[Any]]) -> list[Any]:
        """The outputs of several calls."""
        found: list[Any] = []
        parameters, buffers, _ = self.split(examples[0])
        for example in examples:
            new = outputs([*parameters, *buffers, *self.split(example)[2]])
            if self.fn.training and buffers:
                by_name = dict(zip(sorted(self.buffers), new[-len(buffers) :], strict=True))
                buffers = [by_name[name] for name in self.buffers]
            found += new
        return found


class RandomModule(ModuleCase):
    """A module that draws random numbers: from a key in JAX, and in torch after the seed that comes from this key."""

    @cached_property
    def key(self) -> Any:
        with jax.ensure_compile_time_eval():  # the first use may be in a trace
            return jax.random.key(0)

    @cached_property
    def seed(self) -> int:
        """The seed that a function sees."""
        seen: list[int] = []

        def look(x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.initial_seed())
            return x

        jax.block_until_ready(torch2jax(look, rng=True, output_shapes=(1,))(self.key, jnp.zeros(1)))
        return seen[-1]

    def instance(self, tensors: Tensors) -> tuple[Tensors, Callable[[], Tensors]]:
        x, call = super().instance(tensors)

        def seeded() -> Tensors:
            torch.manual_seed(self.seed)
            return call()

        return x, seeded

    @cached_property
    def options(self) -> dict[str, Any]:
        return super().options | {"rng": True}

    def called(self, variables: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.wrapped(self.key, variables, *args, **kwargs)
