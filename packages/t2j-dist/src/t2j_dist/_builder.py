"""`ShardedBuilder`: a call on sharded arrays, split into one call for each shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import torch
from t2j_core.extend import (
    CallBuilder,
    CallTree,
    Dtypes,
    ExampleValues,
    Leaf,
    OptionGroup,
    Outputs,
    Signature,
    TorchFn,
    declared_outputs,
    heading,
    leaves_of,
    remember,
)

from ._decide import decide
from ._plan import Plan
from ._wanted import Wanted

_Declared = tuple[Leaf, ...] | None  # the outputs of a shard, where they are declared
_Split = tuple[str, ...]  # how a call was split, in lines of `explain()`


@dataclass(eq=False, repr=False)
class ShardedBuilder(CallBuilder):
    """Splits each call as `wanted` says. `local`, a builder of any kind, makes the call on a shard."""

    local: CallBuilder
    wanted: Wanted | None
    """None if nothing was asked for: then every call is a plain one."""
    local_builders: dict[_Declared, CallBuilder] = field(default_factory=dict, init=False)
    """What makes the calls on shards: `local` with the outputs of a shard."""
    splits: dict[tuple[TorchFn, _Split], None] = field(default_factory=dict, init=False)
    """What ran on a shard, and how the call was split, for `explain`."""

    @classmethod
    def over(cls, local: CallBuilder, wanted: Wanted | None) -> Self:
        """The builder of a function whose plain calls `local` makes."""
        return cls(local.fn, local.options, local, wanted)

    def for_arrays(self, wanted: Wanted) -> Self:
        """The same function for arrays of one sharding, which it knows before JAX traces."""
        other = self.variant(wanted=wanted)
        other.local_builders, other.splits = self.local_builders, self.splits
        return other

    def publish(self) -> None:
        """As in `CallBuilder`. The name belongs to the function of calls in general, not to those for one sharding."""
        if self.wanted is None or not self.wanted.is_eager:
            super().publish()

    # --- a call ------------------------------------------------------------------------------------------------------

    def prepared(self, arrays: Sequence[jax.Array], call_tree: CallTree) -> list[jax.Array]:
        """As `local` prepares whole arrays."""
        return self.local.prepared(arrays, call_tree)

    def bind(
        self, operands: Sequence[jax.Array], call_tree: CallTree, dtypes: Dtypes
    ) -> tuple[Outputs, Sequence[jax.Array]]:
        """Split a call, and put the calls on shards into the program that JAX traces."""
        plan = None if self.wanted is None else decide(self.name, self.wanted, call_tree, operands)
        whole = leaves_of(operands, dtypes, self.name, call_tree)
        local, fn = self._local_function(plan, call_tree, whole)
        operands = operands if plan is None else plan.arranged(operands)
        if plan is None or not plan.axes:
            return local.bind(operands, call_tree, dtypes)
        outputs = fn.signature.outputs

        def on_shard(*shards: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(local.bind(self._with_own_key(shards, plan), call_tree, dtypes)[1])

        sharded = jax.shard_map(
            on_shard,
            mesh=None if plan.in_context else plan.mesh,
            in_specs=plan.in_specs,
            out_specs=plan.out_specs(outputs),
            axis_names=plan.axes,
        )
        return outputs, sharded(*operands)

    def _local_function(
        self, plan: Plan | None, call_tree: CallTree, whole: tuple[Leaf, ...]
    ) -> tuple[CallBuilder, TorchFn]:
        """What makes the calls on shards of these operands, and the function that they call."""
        self.check_arguments(call_tree, whole)
        operands = whole if plan is None else plan.operands_of_shard(call_tree, whole)
        local = self._local_builder(plan, operands)
        fn = local.torch_fn(call_tree, operands)
        remember(self.splits, (fn, self._explained_split(plan, call_tree, whole, fn.signature.outputs)), None)
        return local, fn

    def _local_builder(self, plan: Plan | None, operands: tuple[Leaf, ...]) -> CallBuilder:
        """`local`, with the outputs of a shard if they are declared."""
        options, declared = self.options, None
        if plan is not None and options.output_shapes is not None:
            outputs = declared_outputs(options.output_shapes, operands)
            declared = plan.outputs_of_shard(outputs)
            like = [torch.empty(leaf.shape, dtype=leaf.torch_dtype, device="meta") for leaf in declared]
            options = replace(options, output_shapes=jax.tree.unflatten(outputs.tree, like))
        known = self.local_builders.get(declared)
        if known is not None:
            return known
        local = self.local.variant(options=options, examples=self.examples, checks_arguments=False)
        return remember(self.local_builders, declared, local)

    def _with_own_key(self, shards: tuple[jax.Array, ...], plan: Plan) -> list[jax.Array]:
        """The operands, with a JAX key in front that differs from shard to shard, if they begin with a key."""
        if not self.options.rng:
            return list(shards)
        data, *rest = shards
        key = jax.random.wrap_key_data(data, impl="threefry2x32" if data.shape == (2,) else "rbg")
        for axis in sorted(plan.varying):
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return [jax.random.key_data(key), *rest]

    def build(self, signature: Signature) -> TorchFn:
        """As `local` builds it: the signature is that of a shard."""
        return self.local.build(signature)

    def learn(self, call_tree: CallTree, operands: tuple[Leaf, ...], values: ExampleValues) -> bool:
        """As in `CallBuilder`. The values are those of whole operands, so they tell nothing about shards."""
        return self._local_builder(None, operands).learn(call_tree, operands, values)

    # --- checks ------------------------------------------------------------------------------------------------------

    def check_examples(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """As in `CallBuilder`. Sharded arrays among the examples say how arguments are split."""
        if self.wanted is not None and self.wanted.in_specs is None:
            arrays = [leaf for leaf in jax.tree.leaves((args, kwargs)) if hasattr(leaf, "shape")]
            self.wanted = self.wanted.with_hints(arrays, is_eager=False)
        super().check_examples(args, kwargs)

    def check_example_signature(self, call_tree: CallTree, operands: tuple[Leaf, ...]) -> None:
        """As in `CallBuilder`, for a call on shards."""
        wanted = self.wanted
        if wanted is not None and wanted.in_specs is None and not wanted.hints:
            return  # how arguments are split is known when the first ones arrive
        plan = None if wanted is None else decide(self.name, wanted, call_tree, operands)
        _, fn = self._local_function(plan, call_tree, operands)
        if plan is not None and plan.axes:
            plan.out_specs(fn.signature.outputs)

    # --- what is shown -----------------------------------------------------------------------------------------------

    def option_groups(self) -> tuple[OptionGroup, ...]:
        """The options of `local`, and the specs."""
        return (*self.local.option_groups(), *filter(None, [self.wanted]))

    def explained_calls(self) -> list[str]:
        """The text of `explain()` for each signature of a shard."""
        return ["\n  ".join([heading(fn), *split, *self.local.explained(fn)]) for fn, split in list(self.splits)]

    def _explained_split(
        self, plan: Plan | None, call_tree: CallTree, whole: Sequence[Leaf], outputs: Outputs
    ) -> _Split:
        if plan is not None:
            return plan.explained(call_tree, whole, outputs)
        return (f"sharding: a plain call ({'no `out_specs`' if self.wanted is None else 'no mesh'})",)
