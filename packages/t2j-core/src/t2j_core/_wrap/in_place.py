"""Arguments that a function writes into: which it gets in place, and which as copies."""

from __future__ import annotations

from .._base.errors import PerformanceWarning, TensorMutationError, describe, warn
from .._run.lending import Handover
from .._run.writes import gets_copies
from .._signature.signature import Signature
from .options import Options, are_at


def handed_over(signature: Signature, options: Options) -> tuple[list[Handover], dict[int, int]]:
    """How each operand is handed over, and which result it is aliased to.

    Raises `TensorMutationError` if the function writes into an argument in `mutable_argnums` without returning it, or
    into another one with `arguments="check"`.
    """
    outputs, paths = signature.outputs, signature.operand_paths()
    listed = are_at("mutable_argnums", options.mutable_argnums, paths, signature.name)
    handovers = [Handover.BORROW] * len(paths)
    returned = dict(outputs.returned)
    aliases: dict[int, int] = {}
    inferred = options.output_shapes is None
    for index, path in enumerate(paths):
        if listed[index] and not inferred:
            returned.update(_same_aval(signature, index, taken=set(aliases.values())))
        if listed[index] and index in returned:
            handovers[index], aliases[index] = Handover.MUTABLE, returned[index]
        elif listed[index] and (index in outputs.mutated or not inferred):
            raise TensorMutationError(_not_returned(signature, path))
        elif index in outputs.mutated and options.arguments == "check":
            raise TensorMutationError(_changed(signature, path))
        elif index in outputs.mutated:
            handovers[index] = Handover.CLONE
            warn(gets_copies(signature.name, path), PerformanceWarning)
    return handovers, aliases


def _same_aval(signature: Signature, operand: int, taken: set[int]) -> dict[int, int]:
    mine = signature.operands[operand]
    for index, leaf in enumerate(signature.outputs.leaves):
        if index not in taken and (leaf.shape, leaf.dtype) == (mine.shape, mine.dtype):
            return {operand: index}
    return {}


def _not_returned(signature: Signature, path: str) -> str:
    return describe(
        f"{signature.name} changes {path}, which is in `mutable_argnums`, but does not return it.",
        expected="the changed tensor itself among the outputs: JAX arrays are immutable, a change is a new value",
        got=f"outputs ({', '.join(map(str, signature.outputs.leaves))}), none of them that tensor",
        remedy="Return the changed tensor.",
    )


def _changed(signature: Signature, path: str) -> str:
    return describe(
        f"{signature.name} changes {path} in place.",
        expected='arguments left as they are, because of `arguments="check"`',
        got="an operation that writes into it",
        remedy="Work on `tensor.clone()`, or list the argument in `mutable_argnums` and return it.",
    )
