"""Options are checked where they are given."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import re
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import ArgumentError, DTypeError, Size, module2jax, torch2jax
from t2j_core.extend import Keywords, Options, option_names


def keyword_parameters(function) -> dict[str, inspect.Parameter]:
    """Those of a function as it is written, which is what editors show."""
    parameters = inspect.signature(inspect.unwrap(function), eval_str=True).parameters.items()
    return {name: parameter for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


class Unprintable:
    def __repr__(self):
        raise RuntimeError


HOSTILE = [
    *({"rng": value} for value in ("no", 2, 0, None, np.array([True, False]), jnp.array(True))),
    *({"has_side_effect": value} for value in ("no", 1, None, Unprintable())),
    *({"outputs": value} for value in ("fast", None, 1, ["copy"], np.array(["copy", "out"]))),
    *({"name": value} for value in (5, "", b"f", ["f"], "\ud800", True)),
    *(
        {"mutable_argnums": value}
        for value in ("0", b"0", -1, 0.0, True, None, [None], {0: 1}, np.array(0.5), [np.True_])
    ),
    *({"output_shapes": value} for value in (Size((-1,)), (2, -1), Size((2**63,)), [Size(2), (3, -3)])),
    *({"output_shapes": value} for value in (np.float32, jax.Array, "f32[3]", 3, 2.5, True, (True, 2), (2.0, 3))),
    *({"output_shapes": value} for value in (torch.sin, object(), {"a": None, 1: Size(2)}, [Size(2), object()])),
    *({"output_shapes": jax.ShapeDtypeStruct((-1,), jnp.float32)}, {"output_shapes": torch.float32}),
    *({"example_kw": value} for value in (5, "ab", [1], {1: 2})),
]


@pytest.mark.parametrize("options", HOSTILE, ids=lambda o: f"{next(iter(o))}-{type(next(iter(o.values()))).__name__}")
def test_a_value_that_an_option_cannot_have(options):
    (name,) = options
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        torch2jax(torch.sin, **options)


def test_values_of_numpy_do():
    f = torch2jax(torch.sin, has_side_effect=np.False_, rng=np.bool_(0), output_shapes=Size(np.array(3)))
    assert (f.options.has_side_effect, f.options.rng) == (False, False)
    assert f(jnp.zeros(3)).shape == (3,)
    assert torch2jax(torch.sin, mutable_argnums=np.array([0, 1])).options.mutable_argnums == (0, 1)
    assert torch2jax(torch.sin, mutable_argnums=np.int64(1)).options.mutable_argnums == (1,)
    assert torch2jax(torch.sin, output_shapes=(np.int32(3),))(jnp.zeros(3)).shape == (3,)


@pytest.mark.parametrize(
    "declared", [(3,), [3], Size(3), torch.zeros(3), np.zeros(3, np.float32), jax.ShapeDtypeStruct((3,), jnp.float32)]
)
def test_what_describes_an_array(declared):
    assert torch2jax(torch.sin, output_shapes=declared)(jnp.zeros(3)).shape == (3,)


def test_a_dtype_that_torch_lacks_is_told_with_the_option():
    with pytest.raises(DTypeError, match="In `output_shapes`"):
        torch2jax(torch.sin, output_shapes=jax.random.key(0))


@pytest.mark.parametrize("sizes", [(2.5,), ("3",), (None,), ((2, 3.0),)])
def test_sizes_are_integers(sizes):
    with pytest.raises(ArgumentError, match="`Size`"):
        Size(*sizes)


def test_the_options_are_the_fields_of_a_dataclass():
    names = set(option_names(Options))
    assert set(get_type_hints(Keywords)) == names
    assert names < set(inspect.signature(torch2jax).parameters)
    documented = re.findall(r"^  (\w+): ", inspect.cleandoc(torch2jax.__doc__), flags=re.M)
    assert names <= set(documented)


def test_module2jax_has_the_options_of_torch2jax():
    wanted = keyword_parameters(torch2jax)
    del wanted["example_kw"]
    found = keyword_parameters(module2jax)
    assert list(found)[:3] == ["train", "mutable", "copy"]
    assert [found[name] for name in wanted] == list(wanted.values())
    assert list(wanted) == list(option_names(Options)) == list(found)[3:]


@pytest.mark.parametrize("field", dataclasses.fields(Options), ids=lambda field: field.name)
def test_the_signature_shows_type_and_default_of_an_option(field):
    shown = keyword_parameters(torch2jax)[field.name]
    assert (shown.default, shown.annotation) == (field.default, get_type_hints(Keywords)[field.name])
    assert shown == inspect.signature(torch2jax).parameters[field.name]


def test_help_lists_the_values_of_an_option():
    text = pydoc.plain(pydoc.render_doc(module2jax))
    assert "outputs: Literal['auto', 'copy', 'out'] = 'auto'" in " ".join(text.split())


OTHER_VALUES = {
    "output_shapes": (3,),
    "mutable_argnums": (1,),
    "rng": True,
    "arguments": "copy",
    "outputs": "copy",
    "has_side_effect": True,
    "name": "a_linear_layer",
    "compile": True,
    "command_buffer": True,
}


@pytest.mark.parametrize("name", option_names(Options))
def test_module2jax_passes_an_option_on(name):
    apply, _ = module2jax(torch.nn.Linear(3, 3), **{name: OTHER_VALUES[name]})
    assert getattr(apply.options, name) == OTHER_VALUES[name]


@pytest.mark.parametrize("field", dataclasses.fields(Options), ids=lambda field: field.name)
def test_a_default_is_the_same_as_no_option(field):
    f = torch2jax(torch.sin, **{field.name: field.default})
    assert f.options == torch2jax(torch.sin).options
    assert repr(f) == "torch2jax(sin)"
