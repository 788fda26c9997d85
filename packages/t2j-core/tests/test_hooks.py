"""The hooks and the call sites that Python hands to the native part: both sides declare the same."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import types
import typing

import jax.numpy as jnp
import pytest
import torch
from t2j_core import Size, torch2jax
from t2j_core._lowering.hooks import Hooks
from t2j_core._lowering.native import HOOKS, _native
from t2j_core._run.call_site import BufferSpec, CallSite
from t2j_core._run.torch_fn import TorchFn

TYPES = typing.get_type_hints(Hooks)


def table(**changes) -> types.SimpleNamespace:
    """The hooks with some replaced; those that become Ellipsis are left out."""
    hooks = {**vars(HOOKS), **changes}
    return types.SimpleNamespace(**{name: hook for name, hook in hooks.items() if hook is not ...})


def test_both_sides_list_the_same_hooks_in_the_same_order():
    assert list(_native.hook_list()) == [field.name for field in dataclasses.fields(Hooks)]


@pytest.mark.parametrize("name", TYPES)
def test_both_sides_declare_the_same_kind_and_number_of_arguments(name):
    kind, arguments = _native.hook_list()[name]
    declared = TYPES[name]
    if kind == "callable":
        parameters, _ = typing.get_args(declared)
        assert len(parameters) == arguments
    else:
        kinds = {"callables": tuple, "type": type, "int": int, "attribute": types.GetSetDescriptorType}
        assert (typing.get_origin(declared) or declared) == kinds.get(kind, typing.Any)


@pytest.mark.parametrize("name", TYPES)
def test_a_missing_hook_is_named(name):
    with pytest.raises(TypeError, match=f"`{name}` of the native part is missing"):
        _native.setup(table(**{name: ...}))


def test_an_unknown_hook_is_named():
    with pytest.raises(TypeError, match="has no hook 'another'"):
        _native.setup(table(another=len))


WRONG = {
    "exchange": 1,
    "version": property(),
    "tensor_type": torch.ones(1),
    "clone": None,
    "state_getters": (len, 3),
    "most_checked_bytes": "1024",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_hook_of_the_wrong_kind_is_named(name):
    with pytest.raises(TypeError, match=rf"`{name}` of the native part is of the wrong kind.\n  Expected: .*\n  Got: "):
        _native.setup(table(**{name: WRONG[name]}))


def test_a_number_of_bytes_that_is_too_large_is_refused():
    with pytest.raises(TypeError, match="most_checked_bytes"):
        _native.setup(table(most_checked_bytes=1 << 63))


def test_hooks_that_are_refused_change_nothing():
    with pytest.raises(TypeError):
        _native.setup(table(clone=None, resolve=len))
    function = torch2jax(lambda t: t + 1, output_shapes=Size(3), arguments="copy")
    assert function(jnp.ones(3)).tolist() == [2, 2, 2]


def test_what_has_no_attributes_is_refused():
    with pytest.raises(AttributeError, match="__dict__"):
        _native.setup(3)


# --- the description of a call site ----------------------------------------------------------------------------------


def call(description, monkeypatch):
    """An eager call of a function whose call site has another description."""
    original = TorchFn.call_site
    monkeypatch.setattr(TorchFn, "call_site", lambda fn, **options: description(original(fn, **options)))
    torch2jax(lambda t: t + 1, output_shapes=Size(3))(jnp.ones(3))


def with_operand(**fields):
    """A description whose operand has other fields."""
    return lambda site: site._replace(operands=(site.operands[0]._replace(**fields),))


BAD_OPERANDS = {
    "dtype": 11,
    "code": "float",
    "bits": 0,
    "shape": [3],
    "handover": 7,
}


@pytest.mark.parametrize("name", BufferSpec._fields)
def test_a_field_of_an_operand_that_is_wrong_is_named(name, monkeypatch):
    got = re.escape(repr(BAD_OPERANDS[name]))
    with pytest.raises(TypeError, match=f"`{name}` of a `BufferSpec` must be .*, got {got}"):
        call(with_operand(**{name: BAD_OPERANDS[name]}), monkeypatch)


@pytest.mark.parametrize("size", [-1, 1 << 64, None, "3"])
def test_a_dimension_that_is_wrong_is_named(size, monkeypatch):
    with pytest.raises(TypeError, match="`size` of a `shape` must be an int"):
        call(with_operand(shape=(size,)), monkeypatch)


def test_a_dtype_that_the_native_part_does_not_know_is_named(monkeypatch):
    with pytest.raises(TypeError, match="`dtype` of a `BufferSpec` must be a short name .*, got 'float32'"):
        call(with_operand(dtype="float32"), monkeypatch)


@pytest.mark.parametrize(
    "name", ["operands", "results", "returns_tensor", "pass_results", "checks_always", "takes_turns"]
)
def test_a_field_of_a_call_site_that_is_wrong_is_named(name, monkeypatch):
    assert name in CallSite._fields
    with pytest.raises(TypeError, match=rf"`{name}` of a `CallSite` must be .*, got None"):
        call(lambda site: site._replace(**{name: None}), monkeypatch)


@pytest.mark.parametrize("wrong", [lambda site: site[:-1], lambda site: (*site, 1), lambda site: None])
def test_a_description_of_another_length_is_refused(wrong, monkeypatch):
    with pytest.raises(TypeError, match="Expected a `CallSite` with 11 fields, got"):
        call(wrong, monkeypatch)


@pytest.mark.parametrize("kind", [Hooks, CallSite, BufferSpec])
def test_every_field_says_what_it_is(kind):
    [tree] = ast.parse(inspect.getsource(kind)).body
    fields = [place for place, node in enumerate(tree.body) if isinstance(node, ast.AnnAssign)]
    assert len(fields) == len(typing.get_type_hints(kind))
    for place in fields:
        docstring = tree.body[place + 1]
        assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant), ast.unparse(
            tree.body[place]
        )
