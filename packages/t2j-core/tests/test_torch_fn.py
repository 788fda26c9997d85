"""`TorchFn`: its options, what is derived from it, and its rules."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import TransformError
from t2j_core._run.call_options import CallOptions
from t2j_core._signature.signature import flat_signature, leaf_of
from t2j_core.extend import Options, Rules, TorchFn, torch_call

LEAF = leaf_of((3,), jnp.float32)
X = jnp.arange(3.0)
OPTIONS = CallOptions(
    outputs="auto",
    arguments="copy",
    has_side_effect=True,
    name="double",
    rng=False,
    compile=False,
    command_buffer=False,
)


def twice(x):
    return (2 * x,)


def function(rules=None, options=OPTIONS):
    return TorchFn(twice, flat_signature("twice", [LEAF], [LEAF]), options, takes_operands=True, rules=rules)


def test_every_option_of_a_call_is_an_option_of_the_wrapper():
    given = {
        "outputs": "copy",
        "arguments": "check",
        "has_side_effect": True,
        "name": "f",
        "rng": True,
        "compile": True,
        "command_buffer": True,
    }
    assert set(given) == {field.name for field in dataclasses.fields(CallOptions)}
    assert Options(**given).for_calls() == CallOptions(**given)


@pytest.mark.parametrize("outputs", ["auto", "copy", "out"])
def test_a_derived_function_has_the_options_of_its_source(outputs):
    options = dataclasses.replace(OPTIONS, outputs=outputs)
    source = function(options=options)
    fn = source.derived("same", twice, [LEAF], [LEAF], rules=Rules())
    own = {"outputs": "auto" if outputs == "out" else outputs, "name": None}
    assert fn.options == dataclasses.replace(options, **own)
    assert fn.handovers == source.handovers
    assert fn.lending.noted is source.lending.noted
    np.testing.assert_array_equal(torch_call(X, fn=fn)[0], 2 * X)


def test_a_derived_function_is_not_found_by_name():
    fn = function()
    assert fn.serialised
    assert not fn.derived("same", twice, [LEAF], [LEAF], rules=Rules()).serialised


class OnlyBatches(Rules[TorchFn]):
    def batch(self, operands, dims, *, fn):
        return torch_call(*operands, fn=function(options=fn.options)), [0]


TRANSFORMS = {
    "jvp": (lambda f: jax.jvp(f, (X,), (X,)), "differentiated"),
    "linear_transpose": (lambda f: jax.linear_transpose(f, X)(X), "`jax.linear_transpose` needs"),
}


@pytest.mark.parametrize(("transform", "text"), TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_rule_that_is_not_overridden_refuses(transform, text):
    fn = function(OnlyBatches())
    with pytest.raises(TransformError, match=f"(?s)^twice .*{text}"):
        transform(lambda x: torch_call(x, fn=fn)[0])


def test_a_rule_that_is_overridden_is_used():
    fn = TorchFn(
        twice,
        flat_signature("twice", [leaf_of((), jnp.float32)], [leaf_of((), jnp.float32)]),
        dataclasses.replace(OPTIONS, name=None),
        takes_operands=True,
        rules=OnlyBatches(),
    )
    np.testing.assert_array_equal(jax.vmap(lambda x: torch_call(x, fn=fn)[0])(X), 2 * X)


def test_the_result_of_a_flat_function_is_a_tuple():
    assert isinstance(function().flat_function()(torch.ones(3)), tuple)
