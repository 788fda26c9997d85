"""How texts name the arrays of a call: a few one by one; many, such as parameters, by their number and size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from .._base.text import listed, rounded, size_of
from .call_tree import CallTree
from .signature import Leaf

_FEW = 4  # arrays that are named one by one


def arguments_in_short(paths: Sequence[str], leaves: Sequence[Leaf]) -> str:
    """The arguments of a call, as in its signature: `102 arrays, i32[8,128], mask=f32[8,128]`."""
    arguments = []
    for owner, named in _by_prefix(dict(zip(paths, leaves, strict=True)), _owner).items():
        text = ", ".join(map(str, named.values())) if len(named) <= _FEW else f"{len(named)} arrays"
        keyword = re.fullmatch(r"kwargs\['(\w+)'\]", owner)
        arguments.append(f"{keyword[1]}={text}" if keyword and len(named) == 1 else text)
    return listed(arguments)


def named_avals(call_tree: CallTree, operands: Sequence[Leaf]) -> str:
    """The operands by their names: `args[0]: 102 arrays, args[1]: i32[8,128], args[2]: f32[8] and 3 more`."""
    texts: list[str] = []
    for owner, named in _by_prefix(dict(zip(call_tree.paths(), operands, strict=True)), _owner).items():
        few = [f"{path}: {leaf}" for path, leaf in named.items()]
        texts += few if len(few) <= _FEW else [f"{owner}: {len(few)} arrays"]
    return listed(texts)


def of_arrays(paths: Sequence[str], leaves: Sequence[Leaf], text_of: Callable[[int], str]) -> list[str]:
    """One line for each text about arrays, with the names of the arrays that share it."""
    by_text: dict[str, dict[str, Leaf]] = {}
    for i, path in enumerate(paths):
        by_text.setdefault(text_of(i), {})[path] = leaves[i]
    return [f"{names}: {text}" for text, named in by_text.items() for names in _names(named)]


def _names(named: Mapping[str, Leaf]) -> list[str]:
    """The names of arrays. An argument with many is named once, with their number and size."""
    if len(named) <= _FEW:
        return [", ".join(named)]
    sums: list[str] = []
    few: list[str] = []
    for owner, of_owner in _by_prefix(named, _owner).items():
        if len(of_owner) <= _FEW:
            few += of_owner
            continue
        parts = _by_prefix(of_owner, _part)
        sums += [_sum(*part) for part in (parts.items() if len(parts) <= _FEW else [(owner, of_owner)])]
    return [*sums, listed(few)] if few else sums


def _sum(name: str, named: Mapping[str, Leaf]) -> str:
    if len(named) == 1:
        return next(iter(named))
    values = sum(math.prod(leaf.shape) for leaf in named.values())
    nbytes = sum(leaf.nbytes for leaf in named.values())
    return f"{name} ({len(named)} arrays, {rounded(values)} values, {size_of(nbytes)})"


_KEY = r"""(?:\[(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\]]*)\]|\.\w+)"""
_OWNER = re.compile(rf"output|\w+{_KEY}")
_PART = re.compile(rf"(?:output|\w+{_KEY}){_KEY}?")


def _owner(path: str) -> str:
    """The argument that an array is in: `args[0]` for `args[0]['params']['w']`."""
    match = _OWNER.match(path)
    return match[0] if match else path


def _part(path: str) -> str:
    """The part of the argument that it is in: `args[0]['params']`."""
    match = _PART.match(path)
    return match[0] if match else path


def _by_prefix(named: Mapping[str, Leaf], prefix_of: Callable[[str], str]) -> dict[str, dict[str, Leaf]]:
    groups: dict[str, dict[str, Leaf]] = {}
    for path, leaf in named.items():
        groups.setdefault(prefix_of(path), {})[path] = leaf
    return groups
