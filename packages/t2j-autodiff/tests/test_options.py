"""Options of differentiation are checked where they are given."""

from __future__ import annotations

import inspect
import re
from typing import get_type_hints

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import ArgumentError, torch2jax
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
