"""`CallBuilder`: how a wrapped torch function becomes a call in a program of JAX. Sister packages extend it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import numpy as np

from .._base.bounded import remember
from .._base.dtypes import canonical
from .._base.errors import T2jWarning, warn
from .._base.progress import progress
from .._base.text import utf8
from .._base.turns import turns
from .._infer.indices import are_narrow, with_long_indices
from .._infer.infer import infer_outputs, works_on
from .._infer.kept_tensors import refusing_kept
from .._infer.notes import warn_of_no_arrays
from .._infer.rng import seeded
from .._infer.unkeyed import draws_without_key, warning_of_draws
from .._lowering.primitive import torch_call
from .._run.orphans import Signatures, release_orphans
from .._run.registry import register_name
from .._run.torch_fn import TorchFn
from .._signature.call_tree import CallTree
from .._signature.declared import declared_outputs
from .._signature.signature import Leaf, Outputs, Signature
from .arguments import check_callable, check_key_is_first, key_data, leaves_of
from .changing_constants import ChangingConstants
from .examples import Dtypes, ExampleValues, GivenExamples, read_examples
from .explain import explained, heading
from .in_place import handed_over
from .options import OptionGroup, Options

_DECLARED = "It is done once for each signature. Declare the outputs with `output_shapes=` to do without."


@dataclass(eq=False, repr=False)
class CallBuilder:
    """How a torch function becomes a call in a program of JAX: its signatures, its operands, the primitive.

    A sister package derives from it, as a dataclass with `eq=False`, and extends the methods that its users' calls
    need; `docs/extending.md` lists them. The fields that `__init__` takes define the function: copies, pickles and
    `variant` keep them. Fields with `init=False` hold what earlier calls have shown: copies, pickles and variants start
    without it.
    """

    fn: Callable[..., Any]
    options: Options
    examples: GivenExamples = field(default_factory=GivenExamples, kw_only=True)
    checks_arguments: bool = field(default=True, kw_only=True)
    """False where the operands are parts of arguments that were checked whole, such as shards."""

    name: str = field(init=False)
    """The name of the function in messages."""
    signatures: Signatures = field(default_factory=Signatures, init=False)
    """The functions that were built, by everything that they depend on."""
    noted: set[str] = field(default_factory=set, init=False)
    """What was found about the function, and warned of: "random", "keeps state" and others."""
    constants_seen: ChangingConstants = field(default_factory=ChangingConstants, init=False)

    def __post_init__(self) -> None:
        check_callable(self.fn)
        given = self.options.name or getattr(self.fn, "__name__", type(self.fn).__name__)
        self.name = utf8(str(given))

    def __getstate__(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.init}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        type(self).__init__(self, **state)

    def variant(self, **changes: Any) -> Self:
        """The same function with other values of some fields. It has signatures of its own.

        Only `noted` and `constants_seen` are shared, so that users are warned once. A subclass that shares more of
        what it has learned extends this method.
        """
        other = dataclasses.replace(self, **changes)
        other.noted, other.constants_seen = self.noted, self.constants_seen
        return other

    def publish(self) -> None:
        """Let programs of other processes find the function by its name. Called when a `TorchFunction` is made."""
        if self.options.name is not None:
            register_name(self.options.name, self.build)

    # --- a call ------------------------------------------------------------------------------------------------------

    def torch_dtypes(self, data: Sequence[object], call_tree: CallTree) -> Dtypes:
        """The torch dtypes of a call's data that JAX cannot store. Raises for a tree other than the examples'."""
        return self.examples.torch_dtypes(self.name, data, call_tree)

    def prepared(self, arrays: Sequence[jax.Array], call_tree: CallTree) -> list[jax.Array]:
        """The operands of a call, from the arrays among its arguments: a JAX key as its numbers, all others unchanged.

        Called where JAX traces a call, before `bind`. One operand for each array, in their order.
        """
        operands = list(arrays)
        if self.options.rng:
            check_key_is_first(self.name, call_tree)
            operands[0] = key_data(operands[0])
        return operands

    def bind(
        self, operands: Sequence[jax.Array], call_tree: CallTree, dtypes: Dtypes
    ) -> tuple[Outputs, Sequence[jax.Array]]:
        """Put a call into the program that JAX traces: what the outputs are, and one result for each array of them."""
        fn = self.torch_fn(call_tree, leaves_of(operands, dtypes, self.name, call_tree))
        return fn.signature.outputs, torch_call(*operands, fn=fn)

    # --- signatures --------------------------------------------------------------------------------------------------

    def torch_fn(self, call_tree: CallTree, operands: tuple[Leaf, ...], values: ExampleValues | None = None) -> TorchFn:
        """The function for a signature, built when it is first asked for.

        Where outputs can be inferred only on data, `values` are tried first, or else those of the examples.
        """
        dependencies = self._dependencies(call_tree, operands)
        fn: TorchFn | None = self.signatures.get(dependencies)
        if fn is not None:
            return fn
        release_orphans()
        with turns if self.options.output_shapes is None else contextlib.nullcontext():  # threads infer once together
            fn = self.signatures.get(dependencies)
            if fn is None:
                fn = remember(self.signatures, dependencies, self.build(self._signature(call_tree, operands, values)))
                self.constants_seen.note(self.name, call_tree, operands)
            return fn

    @staticmethod
    def _dependencies(call_tree: CallTree, operands: tuple[Leaf, ...]) -> tuple[CallTree, tuple[Leaf, ...], object]:
        """Everything that a built function depends on."""
        return call_tree, operands, canonical(np.int64)  # what 64-bit outputs become depends on x64

    def _signature(self, call_tree: CallTree, operands: tuple[Leaf, ...], values: ExampleValues | None) -> Signature:
        if self.checks_arguments:
            self.check_arguments(call_tree, operands)
        if self.options.output_shapes is not None:
            outputs = declared_outputs(self.options.output_shapes, operands)
        else:
            silent = self.options.rng or self.options.has_side_effect or self.is_random
            examples = (values or self.examples.values).matching(operands)
            with progress("inferring the outputs of", self.name, _DECLARED, self.noted):
                fn = self._inferred()
                outputs = infer_outputs(fn, self.name, call_tree, operands, examples, notes_random=not silent)
            if outputs.is_random:
                warn(draws_without_key(self.name), T2jWarning)
                self.noted.add("random")
        if not operands:
            warn_of_no_arrays(self.name, call_tree, outputs)
        return Signature(self.name, call_tree, operands, outputs)

    def learn(self, call_tree: CallTree, operands: tuple[Leaf, ...], values: ExampleValues) -> bool:
        """Infer a signature on the values of an eager call, after made-up ones have failed. False if that fails too."""
        if self.options.output_shapes is not None or self._dependencies(call_tree, operands) in self.signatures:
            return False
        if not works_on(self._inferred(), self.name, call_tree, operands, values.matching(operands)):
            return False
        self.torch_fn(call_tree, operands, values)
        return True

    def build(self, signature: Signature) -> TorchFn:
        """The function that compiled programs call, for a new signature or for one that comes from another process.

        A subclass adds to the result what the transformations of JAX need (`TorchFn.rules`), and returns it.
        """
        handovers, aliases = handed_over(signature, self.options)
        on_device = _draws_on_device(signature.outputs, self.options)
        call = seeded(self.fn, on_device=on_device) if self.options.rng else self.fn
        needs_long = signature.outputs.needs_long_indices
        if needs_long is None:
            needs_long = are_narrow(leaf.torch_dtype for leaf in signature.operands)
        if signature.outputs.keeps_state:
            self.noted.add("keeps state")
        if signature.outputs.is_declared and not (self.options.rng or self.options.has_side_effect):
            call = warning_of_draws(call, self.name, self.noted)
        if "keeps state" in self.noted:  # a tensor kept from one signature may be used in a call of another
            call = refusing_kept(call, self.name)
        options = self.options.for_calls()
        if signature.outputs.is_doubtful:
            options = dataclasses.replace(options, has_side_effect=True)
        call = with_long_indices(call) if needs_long else call
        fn = TorchFn(call, signature, options, handovers=handovers, aliases=aliases, noted=self.noted)
        fn.draws_on_device = on_device
        return fn

    @property
    def is_random(self) -> bool:
        """Whether the function was seen to draw random numbers without a key."""
        return "random" in self.noted

    def _inferred(self) -> Callable[..., Any]:
        """What inference runs."""
        extra = {"out": None} if self.options.outputs == "out" else {}
        return functools.partial(seeded(self.fn) if self.options.rng else self.fn, **extra)

    # --- checks ------------------------------------------------------------------------------------------------------

    def check_arguments(self, call_tree: CallTree, operands: Sequence[Leaf]) -> None:
        """Let `fn` refuse arguments by their shapes, once for each signature. `module2jax` checks variables so."""
        check = getattr(self.fn, "t2j_check_arguments", None)
        if check is not None:
            args, kwargs = call_tree.merger()(operands)
            check(*args[self.options.rng :], **kwargs)

    def check_examples(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take the examples, and check that the function can be called with them."""
        self.examples, call_tree, operands = read_examples(args, kwargs, has_key=self.options.rng)
        self.check_example_signature(call_tree, operands)
        self.examples.values.forget_large()

    def check_example_signature(self, call_tree: CallTree, operands: tuple[Leaf, ...]) -> None:
        """Raise what a call with the signature of the examples would raise where it is traced."""
        self.torch_fn(call_tree, operands)

    # --- what is shown -----------------------------------------------------------------------------------------------

    def option_groups(self) -> tuple[OptionGroup, ...]:
        """The dataclasses of options that `repr` shows."""
        return (self.options,)

    def explained_calls(self) -> list[str]:
        """The text of `explain()` for each signature."""
        return ["\n  ".join([heading(fn), *self.explained(fn)]) for fn in list(self.signatures.values())]

    def explained(self, fn: TorchFn) -> list[str]:
        """The lines of that text below its heading."""
        return explained(fn)


def _draws_on_device(outputs: Outputs, options: Options) -> bool:
    """Whether the numbers of `rng=True` may be drawn on a GPU by kernels that take the key: see `_infer.rng`.

    A function is run again if it turns out to draw in another way too, so it must not have effects.
    """
    has_effects = options.has_side_effect or bool(outputs.mutated) or outputs.is_doubtful
    return options.rng and outputs.draws_operations and not options.compile and not has_effects
