"""Options of differentiation are checked where they are given."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import get_type_hints

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import ArgumentError, module2jax, torch2jax
from t2j_autodiff.extend import DiffKeywords, DiffOptions
from t2j_core.extend import Options, option_names

HOSTILE = [
    *({"depth": value} for value in (-1, 2.0, "2", True, np.True_, [2], np.array([1, 2]))),
    *({"use_zeros": value} for value in ("yes", 1, None)),
    *({"use_torch_vjp": value} for value in ("no", 0, None)),
    *({"residuals": value} for value in ("all", None, 1, ["auto"], np.array(["auto", "graph"]))),
    *({"vmap_method": value} for value in ("legacy", None, 0, np.array(["auto", "vmap"]))),
    *({"vmap_randomness": value} for value in (True, "random", np.array([None, "same"]))),
    *({"vmap_chunk_size": value} for value in (0, -3, 2.0, True, "2")),
    *({"nondiff_argnums": value} for value in (-1, 0.0, "0", True, [None], {0: 1})),
    *({"nondiff_mask": value} for value in ("yes", (1, 0), (True, 1.5), jnp.array([True]), {"a": True, 1: False})),
    *({"rng": "no"}, {"output_shapes": (2, -1)}, {"name": ""}, {"example_kw": 5}),
]


@pytest.mark.parametrize("options", HOSTILE, ids=lambda o: f"{next(iter(o))}-{type(next(iter(o.values()))).__name__}")
def test_a_value_that_an_option_cannot_have(options):
    (name,) = options
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        torch2jax(torch.sin, **options)


def test_values_of_numpy_do():
    options = torch2jax(
        torch.sin,
        depth=np.int64(1),
        use_zeros=np.True_,
        vmap_chunk_size=np.int32(2),
        nondiff_argnums=np.array([0]),
        nondiff_mask=(np.True_,),
    ).diff_options
    assert (options.depth, options.use_zeros, options.vmap_chunk_size, options.nondiff_argnums) == (1, True, 2, (0,))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [({"residuals": "grpah"}, '"graph"'), ({"residual": "auto"}, "`residuals`"), ({"vmapmethod": 1}, "`vmap_method`")],
)
def test_what_is_misspelt_is_answered_with_what_was_meant(wrong, right):
    with pytest.raises(ArgumentError, match=f"Did you mean {right}"):
        torch2jax(torch.sin, **wrong)


def test_the_options_are_the_fields_of_two_dataclasses():
    names = set(option_names(Options, DiffOptions))
    assert set(get_type_hints(DiffKeywords)) == names
    assert names < set(inspect.signature(torch2jax).parameters)
    documented = re.findall(r"^  (\w+): ", inspect.cleandoc(torch2jax.__doc__), flags=re.M)
    assert names <= set(documented)


def keyword_parameters(function) -> dict[str, inspect.Parameter]:
    """Those of a function as it is written, which is what editors show."""
    parameters = inspect.signature(inspect.unwrap(function), eval_str=True).parameters.items()
    return {name: parameter for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def test_module2jax_has_the_options_of_torch2jax():
    wanted = keyword_parameters(torch2jax)
    del wanted["example_kw"]
    found = keyword_parameters(module2jax)
    assert list(found)[:3] == ["train", "mutable", "copy"]
    assert [found[name] for name in wanted] == list(wanted.values())
    assert list(wanted) == list(option_names(DiffOptions, Options)) == list(found)[3:]


@pytest.mark.parametrize("field", [*fields(DiffOptions), *fields(Options)], ids=lambda field: field.name)
def test_the_signature_shows_type_and_default_of_an_option(field):
    shown = keyword_parameters(torch2jax)[field.name]
    assert (shown.default, shown.annotation) == (field.default, get_type_hints(DiffKeywords)[field.name])
    assert shown == inspect.signature(torch2jax).parameters[field.name]


OTHER_VALUES = {
    "depth": 3,
    "nondiff_argnums": (1,),
    "nondiff_mask": True,
    "use_zeros": False,
    "use_torch_vjp": False,
    "residuals": "recompute",
    "vmap_method": "sequential",
    "vmap_randomness": "same",
    "vmap_chunk_size": 2,
    "outputs": "copy",
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_module2jax_passes_an_option_on(name):
    apply, _ = module2jax(torch.nn.Linear(3, 3), **{name: OTHER_VALUES[name]})
    options = apply.diff_options if name in option_names(DiffOptions) else apply.options
    assert getattr(options, name) == OTHER_VALUES[name]
