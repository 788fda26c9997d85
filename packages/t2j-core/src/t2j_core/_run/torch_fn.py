"""`TorchFn`: a torch function with its signature, as compiled programs know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import torch
from torch.fx import GraphModule

from .. import _compat
from .._base.bounded import remember
from .._base.config import config
from .._base.dtypes import row_of_jax
from .._base.turns import turns
from .._compile.attempt import Attempt
from .._compile.compiled import CompiledFunction
from .._compile.source import Source
from .._signature import serialise
from .._signature.signature import Leaf, Signature, flat_signature
from .call_options import CallOptions
from .call_site import BufferSpec, CallSite
from .capture import CapturedTarget
from .crossing import converting, crosses_unchanged, wire, with_buffers_as_out
from .flat_function import FlatFunction, flat_function, with_copies
from .lending import Handover, Lending
from .orphans import Origin
from .redirect import Redirected
from .registry import claim, new_id
from .rules import Rules


class TorchFn:
    """A torch function for one signature. Primitives carry it as a parameter; it hashes by identity.

    `call` takes the arguments of the signature; or, if `takes_operands`, it is a flat function.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        signature: Signature,
        options: CallOptions,
        *,
        handovers: Sequence[Handover] | None = None,
        aliases: Mapping[int, int] | None = None,
        noted: set[str] | None = None,
        takes_operands: bool = False,
        rules: Rules[TorchFn] | None = None,
    ) -> None:
        self.call = call
        self.takes_operands = takes_operands
        self.signature = signature
        self.options = options
        self.origin: Origin = Origin(call)
        self.lending: Lending = Lending(signature, handovers, options.arguments, set() if noted is None else noted)
        self.aliases: dict[int, int] = dict(aliases or {})
        """Operands that are written in place, and the results that they become."""
        self.rules: Rules[TorchFn] = Rules() if rules is None else rules
        self.takes_turns: bool = signature.outputs.is_small and not options.has_side_effect
        """Whether its calls run one after another on CPUs, because they are quicker so."""
        self.draws_on_device: bool = False
        """Whether a GPU draws its random numbers from the key."""
        self.hidden: int = 0
        """How many of the last results are residuals, which no user sees."""
        self.ticket: int | None = None
        """The operand by which it finds what another call has left on the host."""
        self.jitted: Any = None
        """The compiled form for eager binds, made when first needed. It must not own this function."""
        self.pass_results: bool = self._writes_results()
        """Whether `target` also takes one tensor per result buffer."""
        self.target: Callable[..., Any] = self._target()
        """What the handler calls: takes one tensor per operand; returns a tuple of tensors, or one tensor."""
        self.attempt: Attempt | None = None
        """The attempt to compile it, once a call of it was lowered, if `options.compile`."""
        self.attempts: dict[str, Attempt] = {}
        """Those for it and for what is derived from it, by name."""
        self.example: Callable[[], tuple[TorchFn, Sequence[int | None]]] | None = None
        """If it is a batch: the function of one example, and which of the operands have the batch axis."""
        self.source_not_captured: str | None = None
        """Why what it is derived from cannot be captured in a command buffer."""
        self.graph: Callable[[torch.device], GraphModule | None] | None = None
        """A graph of it, if it was traced before."""
        self.reason_not_exportable: str | None = "it has no `name=`"
        self.serialised: str = ""
        if options.name is not None:
            self.serialised, self.reason_not_exportable = serialise.encode(options.name, signature)
        self.id: int = 0 if self.serialised else new_id()
        claim(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Programs carry their functions so as to keep them alive, but a serialised one finds its own by name."""
        return object, ()

    def __repr__(self) -> str:
        return f"<TorchFn {self.signature}>"

    def derived(
        self,
        label: str,
        call: FlatFunction,
        operands: Sequence[Leaf],
        results: Sequence[Leaf],
        *,
        rules: Rules[TorchFn],
        options: CallOptions | None = None,
    ) -> TorchFn:
        """A flat function that comes from this one, such as a batch or a derivative.

        It has the options of this one, or `options`. Messages name this function and its operands.
        """
        signature = flat_signature(f"{label}({self.signature.name})", operands, results)
        options = (options or self.options).of_derived()
        fn = TorchFn(call, signature, options, noted=self.lending.noted, takes_operands=True, rules=rules)
        fn.lending.name_after(self.lending)
        fn.origin, fn.attempts, fn.source_not_captured = self.origin, self.attempts, self.not_captured
        fn.takes_turns = self.takes_turns and all(leaf.is_small for leaf in (*operands, *results))
        fn.reason_not_exportable = "only forward calls can be, not their derivatives or batches"
        return fn

    @property
    def handovers(self) -> tuple[Handover, ...]:
        """How each operand is handed over, as far as it is known now."""
        return self.lending.handovers

    def flat_function(self) -> FlatFunction:
        """The function on one tensor per operand, each of its torch dtype: a tuple of tensors."""
        return self.call if self.takes_operands else flat_function(self.call, self.signature)

    def _writes_results(self) -> bool:
        if self.options.outputs == "auto" and not self.aliases:
            return any(leaf.nbytes >= config.auto_output_bytes for leaf in self.signature.outputs.leaves)
        return self.options.outputs == "out"

    def _target(self) -> Callable[..., Any]:
        signature = self.signature
        takes_tensors = self.takes_operands or (signature.call_tree.is_positional and signature.outputs.single)
        if takes_tensors and not self.pass_results and crosses_unchanged(signature):
            return self.call
        run = converting(self.flat_function(), signature)
        if not self.pass_results:
            return run
        if self.options.outputs == "out":
            return with_buffers_as_out(run, signature)
        return Redirected(run, signature.outputs.leaves, config.auto_output_bytes)

    def compile(self, device: torch.device) -> CompiledFunction | None:
        """Compile it now, if the options say so. What cannot be compiled runs as it is. Called in a lowering."""
        if not self.options.compile:
            return None
        if self.attempt is None:
            with turns:
                self.attempt = self.attempt or Attempt(self._source(), self.lending.noted)
                remember(self.attempts, self.signature.name, self.attempt)
        compiled = self.attempt.run(device)
        if compiled is not None:
            self.pass_results = True
            self.target = compiled
        return compiled

    def _source(self) -> Source:
        leaves, keeps_operands = self.signature.outputs.leaves, bool(self.serialised)
        flat = with_copies(self.flat_function(), [i for i, how in enumerate(self.handovers) if how != Handover.BORROW])
        name, operands = self.lending.name, self.signature.operands
        rng, has_keys = self.options.rng, self.options.rng and len(operands[0].shape) > 1
        return Source(
            name, flat, operands, leaves, rng, keeps_operands, self.obstacle, self.graph, self.example, has_keys
        )

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be compiled, if that is known before."""
        if not _compat.can_compile:
            wanted = ".".join(map(str, _compat.TORCH_THAT_COMPILES[:2]))
            return f"torch {wanted} or newer compiles functions, and this is {torch.__version__}"
        if self.aliases:
            return "`mutable_argnums` makes it write into its arguments"
        if self.options.outputs == "out":
            return "it takes `out=`"
        if self.options.has_side_effect:
            return "it has a side effect, which compiled code would leave out"
        if "keeps state" in self.lending.noted:
            return "it keeps tensors from one call to the next"
        return None

    @property
    def not_captured(self) -> str | None:
        """Why XLA may not capture its calls in a command buffer, if that is known before."""
        outputs, options = self.signature.outputs, self.options
        if not _compat.has_command_buffers:
            wanted = ".".join(map(str, _compat.JAX_WITH_COMMAND_BUFFERS[:2]))
            return f"jax {wanted} or newer has command buffers for calls, and this is {jax.__version__}"
        if options.has_side_effect:
            return "it has a side effect, which a CUDA graph would not repeat"
        if options.rng:
            return "it draws from a key, and in a capture torch's generators tell no state"
        if "random" in self.lending.noted:
            return "it draws random numbers without a key"
        if "keeps state" in self.lending.noted:
            return "it keeps tensors from one call to the next"
        if outputs.is_declared is False and not outputs.needs_no_values:
            return "its outputs could be inferred only on data, so it may read values"
        if not any(leaf.nbytes for leaf in outputs.leaves):
            return "no output has elements"
        return self.source_not_captured

    @property
    def used(self) -> tuple[int, ...]:
        """The operands that a call site takes."""
        return _used(self.target, self.signature)

    def call_site(self, *, is_captured: bool = False) -> CallSite:
        """What the native call site is built from; `is_captured` says that XLA may capture its calls."""
        target = self.target  # read once: another thread may compile the function
        is_compiled = isinstance(target, CompiledFunction)
        used = _used(target, self.signature)
        pass_results = is_compiled or self._writes_results()
        operands, handovers = self.signature.operands, self.handovers
        site = CallSite(
            target=target,
            signature=self.signature,
            lending=self.lending.of(used) if is_compiled else self.lending,
            operands=tuple(_buffer(operands[i], handovers[i]) for i in used),
            results=tuple(_buffer(leaf, Handover.BORROW) for leaf in self.signature.outputs.leaves),
            returns_tensor=target is self.call and not self.takes_operands,
            pass_results=pass_results,
            may_keep_results=self.options.outputs == "auto" and pass_results and not is_compiled,
            checks_always=self.lending.arguments == "check",
            takes_turns=self.takes_turns,
            may_repeat=not (self.options.has_side_effect or self.aliases),
        )
        return self._captured(site) if is_captured else site

    def _captured(self, site: CallSite) -> CallSite:
        """A call site with memory of its own. Its results are not redirected: that is learnt in calls, from values."""
        target, pass_results = site.target, site.pass_results
        if isinstance(target, Redirected):
            target, pass_results = converting(self.flat_function(), self.signature), False
        return site._replace(
            target=CapturedTarget(target, site.lending, site.operands, site.results if pass_results else ()),
            lending=site.lending.strict(),
            pass_results=pass_results,
            may_keep_results=False,
        )


def _used(target: object, signature: Signature) -> tuple[int, ...]:
    return target.used if isinstance(target, CompiledFunction) else tuple(range(len(signature.operands)))


def _buffer(leaf: Leaf, handover: Handover) -> BufferSpec:
    row = row_of_jax(leaf.dtype)
    code, bits = wire(leaf) or (row.code, row.bits)
    return BufferSpec(row.short, code, bits, leaf.shape, handover)
