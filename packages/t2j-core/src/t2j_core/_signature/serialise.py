"""Signatures as text, by which compiled programs find named functions in another process."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from .._base.dtypes import dtype_j2t, row_of_torch
from .._base.errors import ExportError, describe
from .call_tree import CallTree, PyTreeDef, Static
from .signature import Leaf, Outputs, Signature, leaf_of

_CONSTANTS = (bool, int, float, str)


class _NotTextError(Exception):
    pass


def encode(name: str, signature: Signature) -> tuple[str, str | None]:
    """The signature as text that is the same in every process. If there is none: an empty text, and the reason."""
    structure, statics = signature.call_tree
    try:
        content = {
            "name": name,
            "arguments": _tree_to_json(structure, statics),
            "operands": [_leaf_to_json(leaf) for leaf in signature.operands],
            "outputs": _tree_to_json(signature.outputs.tree, signature.outputs.statics),
            "results": [_leaf_to_json(leaf) for leaf in signature.outputs.leaves],
        }
        outputs = signature.outputs
        if outputs.draws_operations and not (outputs.mutated or outputs.is_doubtful):
            content["draws_operations"] = True
    except _NotTextError as reason:
        return "", str(reason)
    return json.dumps(content, separators=(",", ":"), sort_keys=True), None


def name_of(text: str) -> str:
    """The function's name in an encoded signature."""
    return str(json.loads(text)["name"])


def decode(text: str) -> Signature:
    """The inverse of `encode`."""
    content = json.loads(text)
    call_tree = CallTree(*_tree_from_json(content["arguments"]))
    out_tree, out_statics = _tree_from_json(content["outputs"])
    operands = tuple(map(_leaf_from_json, content["operands"]))
    results = tuple(map(_leaf_from_json, content["results"]))
    outputs = Outputs(out_tree, results, out_statics, draws_operations=content.get("draws_operations", False))
    return Signature(content["name"], call_tree, operands, outputs)


def _leaf_to_json(leaf: Leaf) -> list[Any]:
    return [list(leaf.shape), str(leaf.dtype), str(row_of_torch(leaf.torch_dtype).jax)]


def _leaf_from_json(item: list[Any]) -> Leaf:
    shape, dtype, torch_dtype = item
    return leaf_of(shape, np.dtype(dtype), dtype_j2t(torch_dtype))


def _tree_to_json(tree: PyTreeDef, statics: tuple[Static | None, ...]) -> Any:
    marked = jax.tree.unflatten(tree, [_Leaf(static) for static in statics])
    return _node_to_json(marked)


class _Leaf:
    def __init__(self, static: Static | None) -> None:
        self.static = static


def _node_to_json(node: object) -> Any:
    if isinstance(node, _Leaf):
        if node.static is None:
            return "array"
        if node.static.kind not in _CONSTANTS:
            raise _NotTextError(f"it is called with a constant of type {node.static.kind.__name__}")
        return {"constant": node.static.value}
    if node is None:
        return None
    if isinstance(node, (tuple, list)) and type(node) in (tuple, list):
        return {type(node).__name__: [_node_to_json(item) for item in node]}
    if type(node) is dict and all(isinstance(key, str) for key in node):
        return {"dict": {key: _node_to_json(value) for key, value in node.items()}}
    raise _NotTextError(f"its arguments or outputs contain a {type(node).__name__}")


def _tree_from_json(content: Any) -> tuple[PyTreeDef, tuple[Static | None, ...]]:
    items, tree = jax.tree.flatten(_node_from_json(content), is_leaf=lambda x: isinstance(x, _Leaf))
    return tree, tuple(item.static for item in items)


def _node_from_json(node: Any) -> Any:
    if node is None:
        return None
    if node == "array":
        return _Leaf(None)
    ((kind, content),) = node.items()
    if kind == "constant":
        return _Leaf(Static.of(content))
    if kind == "dict":
        return {key: _node_from_json(value) for key, value in content.items()}
    items = [_node_from_json(item) for item in content]
    return tuple(items) if kind == "tuple" else items


def not_exportable(signature: Signature, reason: str) -> ExportError:
    """The error for `jax.export` of a function that another process could not find."""
    return ExportError(
        describe(
            f"{signature.name} cannot be exported: {reason}.",
            expected="a name under which the loading process finds the function, and arguments that are text: "
            "tuples, lists and dicts of arrays, numbers, strings and None",
            remedy="Export a forward call of `torch2jax(fn, name='my_function')`, and wrap it under the same name "
            "before loading.",
        )
    )


def unregistered(name: str, call: str) -> ExportError:
    """The error for a program that names a function this process does not have."""
    operands = ", ".join(str(_leaf_from_json(item)) for item in json.loads(call)["operands"])
    return ExportError(
        describe(
            f"The compiled program calls the torch function {name!r}, which is not registered in this process.",
            expected=f"{name}({operands})",
            remedy=f"Run `torch2jax(fn, name={name!r})` before the program.",
        )
    )


def forgotten(number: int) -> ExportError:
    """The error for a program from another process, or for one whose function was freed."""
    return ExportError(
        describe(
            f"The compiled program calls the torch function number {number}, which this process does not have.",
            remedy="Give functions whose programs are serialised a name: `torch2jax(fn, name='my_function')`.",
        )
    )
