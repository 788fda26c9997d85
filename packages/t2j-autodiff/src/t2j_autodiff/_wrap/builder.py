"""`DifferentiableBuilder`: calls that JAX can differentiate and batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
from t2j_core.extend import CallBuilder, CallTree, Handover, OptionGroup, Signature, TorchFn, remember, with_copies

from .._base.decisions import Decisions
from .._base.options import DiffOptions
from .._rules.function_rules import rules_of
from .._rules.torch_call import CallRules
from .explain import explained
from .nondiff import constants_of


@dataclass(eq=False, repr=False)
class DifferentiableBuilder(CallBuilder):
    """A `CallBuilder` whose functions have rules for derivatives and batches."""

    diff_options: DiffOptions = field(default_factory=DiffOptions)
    constants: dict[CallTree, tuple[bool, ...]] = field(default_factory=dict, init=False)
    """For each operand, whether it is a constant to differentiation."""

    def prepared(self, arrays: Sequence[jax.Array], call_tree: CallTree) -> list[jax.Array]:
        """As in `CallBuilder`. Gradients stop at constants."""
        operands = super().prepared(arrays, call_tree)
        if not self.diff_options.nondiff_argnums and self.diff_options.nondiff_mask is None:
            return operands
        constants = self.constants.get(call_tree)
        if constants is None:
            constants = remember(self.constants, call_tree, constants_of(self.name, self.diff_options, call_tree))
        return [
            jax.lax.stop_gradient(operand) if constant else operand
            for operand, constant in zip(operands, constants, strict=True)
        ]

    def build(self, signature: Signature) -> TorchFn:
        """As in `CallBuilder`, with the rules of JAX's transformations."""
        fn = super().build(signature)
        flat = fn.flat_function()
        if self.options.outputs == "out":
            flat = functools.partial(flat, out=None)
        decisions = Decisions(
            self.name,
            self.diff_options,
            has_key=self.options.rng,
            draws_on_device=fn.draws_on_device,
            paths=tuple(signature.operand_paths()),
            lending=fn.lending if self.options.arguments == "check" else None,
            runs_same_operations=fn.signature.outputs.needs_no_values,
            compiles=self.options.compile and fn.obstacle is None,
            is_captured=self.options.command_buffer and fn.not_captured is None,
            noted=self.noted,
            is_random=self.is_random,
        )
        not_lent = [i for i, handover in enumerate(fn.handovers) if handover != Handover.BORROW]
        fn.rules = CallRules(with_copies(flat, not_lent), self.diff_options.limit, decisions)
        return fn

    def option_groups(self) -> tuple[OptionGroup, ...]:
        """As in `CallBuilder`, and those of derivatives and batches."""
        return (*super().option_groups(), self.diff_options)

    def explained(self, fn: TorchFn) -> list[str]:
        """As in `CallBuilder`, and how derivatives and batches are computed."""
        return [*super().explained(fn), *explained(str(fn.signature), rules_of(fn).decisions)]
