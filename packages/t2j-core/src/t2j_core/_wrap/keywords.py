"""The options of `torch2jax` as types, for functions that take them as `**options`: editors show them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypedDict, get_type_hints

from .options import Arguments, OptionGroup, Results


class Keywords(TypedDict, total=False):
    """What `**options` may hold: the fields of `Options`."""

    output_shapes: Any
    mutable_argnums: int | Sequence[int]
    rng: bool
    arguments: Arguments
    outputs: Results
    has_side_effect: bool
    name: str | None
    compile: bool
    command_buffer: bool


def parameters_of(keywords: type, *kinds: type[OptionGroup]) -> list[inspect.Parameter]:
    """Options as `inspect.signature` shows them: the fields of dataclasses, with the types of a `TypedDict`."""
    types = get_type_hints(keywords)
    by_keyword = inspect.Parameter.KEYWORD_ONLY
    options = [option for kind in kinds for option in fields(kind)]
    return [inspect.Parameter(it.name, by_keyword, default=it.default, annotation=types[it.name]) for it in options]
