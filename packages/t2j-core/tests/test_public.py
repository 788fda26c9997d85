"""Options that are misspelt, and what public functions show of themselves where they raise."""

from __future__ import annotations

import asyncio
import traceback

import jax
import jax.numpy as jnp
import pytest
import torch
from common import raises
from t2j_core import ArgumentError, OutputError, module2jax, torch2jax
from torch import nn

MISSPELT = {
    "output_shapes": lambda: torch2jax(torch.sin, outputshapes=(2,)),
    "has_side_effect": lambda: torch2jax(torch.sin, side_effect=True),
    "train": lambda: module2jax(nn.Linear(1, 1), training=True),
    "rng": lambda: module2jax(nn.Linear(1, 1), rgn=True),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_option(name):
    with raises(ArgumentError, what="keyword argument", expected=name, remedy=f"`{name}`"):
        MISSPELT[name]()


@pytest.mark.parametrize("function", [torch2jax, module2jax])
@pytest.mark.parametrize(
    ("option", "module"), [("depth", "t2j_autodiff"), ("vmap_method", "t2j_autodiff"), ("out_specs", "t2j_dist")]
)
def test_an_option_of_a_sister_package(function, option, module):
    with raises(ArgumentError, what="keyword argument", got=option, remedy=f"from {module} import {function.__name__}"):
        function(nn.Linear(1, 1), **{option: None})


@pytest.mark.parametrize("option", ["train", "mutable", "copy"])
def test_an_option_of_modules(option):
    with raises(ArgumentError, what="keyword argument", got=option, remedy="`module2jax`"):
        torch2jax(nn.Linear(1, 1), **{option: True})


def test_arguments_beside_the_module():
    with raises(ArgumentError, what="the module alone", got="2 arguments", remedy="`apply(variables, x)`"):
        module2jax(nn.Linear(1, 1), jnp.ones(1))


def test_a_misspelt_word():
    with raises(ArgumentError, what="`outputs`", got="'cpoy'", remedy='"copy"'):
        torch2jax(torch.sin, outputs="cpoy")
    with raises(ArgumentError, what="`outputs`", expected='"auto", "copy" or "out"', got="3", lacks="Did you mean"):
        torch2jax(torch.sin, outputs=3)


def test_options_without_a_function():
    with raises(ArgumentError, what="argument `fn`", got="rng", remedy="functools.partial(torch2jax"):
        torch2jax(rng=True)


@pytest.mark.parametrize("call", [*MISSPELT.values(), lambda: torch2jax(3), lambda: module2jax(3)])
def test_tracebacks_show_one_frame_of_t2j(call):
    with pytest.raises(ArgumentError) as error:
        call()
    frames = [frame for frame in traceback.extract_tb(error.value.__traceback__) if "t2j_core" in frame.filename]
    assert len(frames) == 1


async def later(t):
    await asyncio.sleep(0)
    return t


RETURNED = {
    "coroutine": (later, "asyncio.run"),
    "generator": (lambda t: (t for _ in range(2)), "tuple"),
    "nested": (lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged), "to_padded_tensor"),
    "sparse": (lambda t: t.to_sparse(), "to_dense"),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_cannot_be_returned_has_a_remedy(name):
    f, remedy = RETURNED[name]
    with raises(OutputError, remedy=remedy):
        torch2jax(f)(jnp.ones(2))


def test_tensors_without_data_or_dense_data_are_named():
    f = torch2jax(lambda a, b: a)
    with raises(ArgumentError, what="args[1] of <lambda>", got="sparse_coo", remedy="to_dense"):
        f(jnp.ones(2), torch.ones(2).to_sparse())
    with raises(ArgumentError, what="args[0] of <lambda>", got="meta tensor"):
        f(torch.ones(2, device="meta"), jnp.ones(2))


def test_keys_of_a_dict_that_cannot_be_sorted():
    with raises(ArgumentError, what=("argument of <lambda>", "keys"), expected="one type", got="int, str"):
        torch2jax(lambda d: d["a"])({1: jnp.ones(2), "a": jnp.ones(2)})


def test_a_dtype_of_jax_inside():
    with pytest.raises(TypeError) as error:
        torch2jax(lambda t: t.to(jnp.float16))(jnp.ones(2))
    assert "`torch.float32`" in "".join(error.value.__notes__)


def test_a_key_without_rng():
    with raises(TypeError, what="args[0]", got="key<fry>", remedy="`rng=True`"):
        torch2jax(lambda k, t: t)(jax.random.key(0), jnp.ones(2))
