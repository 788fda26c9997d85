"""Options are checked where they are given, on several devices too."""

from __future__ import annotations

import numpy as np
import pytest
import t2j_dist
import torch
from jax.sharding import PartitionSpec as P
from t2j_autodiff.extend import DiffOptions
from t2j_core.extend import Options, option_names
from t2j_dist import ArgumentError, _autodiff

HOSTILE = [
    *({"rng": value} for value in ("no", 2, np.array([True, False]))),
    *({"has_side_effect": "no"}, {"outputs": "fast"}, {"name": 5}, {"output_shapes": (2, -1)}, {"depth": 2.0}),
    *({"depth": np.array([0, 1])}, {"use_zeros": 1}, {"residuals": None}, {"nondiff_mask": "no"}, {"example_kw": 3}),
    *({"lock": value} for value in ("yes", 1, None)),
    *({"mesh": value} for value in ("data", 4)),
]


@pytest.mark.parametrize("options", HOSTILE, ids=lambda o: f"{next(iter(o))}-{type(next(iter(o.values()))).__name__}")
def test_a_value_that_an_option_cannot_have(options):
    (name,) = options
    for specs in ({}, {"out_specs": P(), "in_specs": P()}):
        with pytest.raises(ArgumentError, match=f"`{name}`"):
            t2j_dist.torch2jax(torch.sin, **specs, **options)


def test_a_bool_of_numpy_does():
    t2j_dist.torch2jax(torch.sin, lock=np.False_, rng=np.False_)


def test_options_are_known_without_the_package_that_has_them():
    assert set(_autodiff.OPTIONS_IF_MISSING) == set(option_names(DiffOptions))


OTHER_VALUES = {
    "output_shapes": (3,),
    "mutable_argnums": (0,),
    "rng": True,
    "arguments": "copy",
    "outputs": "copy",
    "has_side_effect": True,
    "name": "sine",
    "compile": True,
    "command_buffer": True,
    "depth": 3,
    "nondiff_argnums": (1,),
    "nondiff_mask": True,
    "use_zeros": False,
    "use_torch_vjp": False,
    "residuals": "recompute",
    "vmap_method": "sequential",
    "vmap_randomness": "same",
    "vmap_chunk_size": 2,
}


@pytest.mark.parametrize("name", option_names(Options, DiffOptions))
def test_an_option_of_the_packages_below_is_passed_on(name):
    f = t2j_dist.torch2jax(torch.sin, **{name: OTHER_VALUES[name]})
    assert getattr(f.diff_options if hasattr(f.diff_options, name) else f.options, name) == OTHER_VALUES[name]
