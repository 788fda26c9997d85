"""Options are checked where they are given, on several devices too."""

from __future__ import annotations

import numpy as np
import pytest
import t2j_dist
import torch
from jax.sharding import PartitionSpec as P
from t2j_dist import ArgumentError

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
