"""Options are checked where they are given, on several devices too."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t2j_autodiff
import t2j_dist
import torch
from jax.sharding import PartitionSpec as P
from t2j_autodiff.extend import DiffKeywords, DiffOptions
from t2j_core.extend import Options, option_names
from t2j_dist import ArgumentError, _autodiff
from t2j_dist._options import Keywords

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


def keyword_parameters(function) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.items()
    return {name: parameter for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def test_the_types_of_options_are_those_of_the_packages_below():
    assert get_type_hints(Keywords) == get_type_hints(DiffKeywords)


def test_the_signatures_show_the_options_of_the_packages_below():
    below = keyword_parameters(t2j_autodiff.torch2jax)
    del below["example_kw"]
    for function in (t2j_dist.torch2jax, t2j_dist.module2jax):
        found = keyword_parameters(function)
        assert {name: found[name] for name in below} == below
    of_modules = keyword_parameters(t2j_dist.module2jax)
    of_functions = keyword_parameters(t2j_dist.torch2jax)
    del of_functions["example_kw"]
    assert list(of_modules) == ["train", "mutable", "copy", *of_functions]
    assert [of_modules[name] for name in of_functions] == list(of_functions.values())


def test_module2jax_passes_on_what_is_about_sharding():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    apply, variables = t2j_dist.module2jax(
        torch.nn.Linear(3, 2), in_specs=(P(), P("data")), output_sharding_spec=P("data"), mesh=mesh, lock=True
    )
    assert f"out_specs={P('data')!r}, in_specs=({P()!r}, {P('data')!r}), mesh=Mesh(" in repr(apply)
    assert apply(variables, jnp.ones((4, 3))).sharding.spec[0] == "data"


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
