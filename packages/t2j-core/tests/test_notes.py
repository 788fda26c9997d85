"""What is said along with exceptions, and of calls that are not what they seem."""

from __future__ import annotations

import traceback
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises, warns
from t2j_core import JaxInsideTorchError, OutputError, PerformanceWarning, Size, T2jWarning, module2jax, torch2jax

x = jnp.ones((2, 3))


def said(call) -> str:
    """The exception that a call raises, with its notes."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return "".join(traceback.format_exception_only(caught.value))


# --- inference -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch2jax(lambda a, b: a @ b)(x, x),
        lambda: torch2jax(torch.mm)(x, x),
        lambda: torch2jax(lambda a, b: a)(x),
        lambda: torch2jax(lambda a: torch.sin([a, a]))(x),
        lambda: torch2jax(lambda a: a.no_such_method())(x),
        lambda: (lambda apply, v: apply(v, x))(*module2jax(torch.nn.Linear(4, 2))),
    ],
    ids=["product", "of torch", "missing argument", "list", "attribute", "module"],
)
def test_errors_that_real_data_would_raise_as_well_do_not_advise_to_declare(call):
    text = said(call)
    assert "Raised while t2j inferred the outputs of" in text
    assert "output_shapes" not in text


def test_an_error_of_made_up_values_advises_to_declare():
    def function(t):
        if t.sum() != 0.125:
            raise ValueError("not the answer")
        return t

    assert "declare its outputs with `output_shapes=`" in said(lambda: torch2jax(function)(x))
    text = said(lambda: jax.jit(torch2jax(lambda t, n: function(t * n)))(x, 2))
    assert "static_argnums" in text


def test_the_note_names_few_arguments():
    few = said(lambda: torch2jax(lambda tensors: tensors[0] @ tensors[1])([x] * 2))
    assert "for args[0][0]: f32[2,3], args[0][1]: f32[2,3].\n" in few
    assert "for args[0]: 100 arrays.\n" in said(lambda: torch2jax(lambda tensors: tensors[0] @ tensors[0])([x] * 100))
    many = said(lambda: torch2jax(lambda *tensors: tensors[0] @ tensors[0])(*[x] * 100))
    assert "args[3]: f32[2,3] and 96 more." in many
    assert len(many) < 600


def test_the_note_on_a_module_names_what_the_user_passes_and_counts_the_variables():
    # Regression: it named the first four parameters, and not the argument that was wrong.
    apply, variables = module2jax(torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4))))
    assert said(lambda: apply(variables, jnp.ones((2, 5)))).endswith("for args[0]: 8 arrays, args[1]: f32[2,5].\n")


def test_floats_as_indices_are_no_matter_of_64_bits():
    text = said(lambda: torch2jax(torch.nn.functional.embedding)(jnp.ones(2), jnp.ones((3, 3))))
    assert "Long, Int" in text
    assert "x64" not in text


class Sealed(Exception):
    def add_note(self, note):
        raise RuntimeError("no notes")


def test_an_exception_that_refuses_notes_keeps_its_type():
    def function(t):
        raise Sealed("mine")

    with pytest.raises(Sealed, match="mine"):
        torch2jax(function)(x)


def test_an_output_dataclass_that_contains_itself():
    import dataclasses

    @dataclasses.dataclass
    class Node:
        value: object
        parent: object = None

    def function(t):
        node = Node(t)
        node.parent = node
        return node

    with raises(OutputError, what="contains itself", expected="finite tree", got="Node"):
        torch2jax(function)(x)


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: torch2jax(torch.sin)(3.0), "args[0]"),
        (lambda: torch2jax(lambda t: t.sin())(3), "args[0]"),
        (lambda: torch2jax(torch.sin)([1.0, 2.0]), "args[0][0], args[0][1]"),
        (lambda: torch2jax(lambda a, *, b: torch.cat([a, b]))(x, b=2.0), "kwargs['b']"),
        (lambda: torch2jax(torch.sin, output_shapes=Size())(3.0), "args[0]"),
    ],
    ids=["float", "int", "list", "keyword", "declared"],
)
def test_a_number_where_a_tensor_is_needed(call, name):
    text = said(call)
    assert "`jnp.asarray(...)`" in text
    assert f"here {name}." in text
    assert "output_shapes" not in text


def test_other_type_errors_say_nothing_of_numbers():
    assert "jnp.asarray" not in said(lambda: torch2jax(lambda t, n: torch.sin("text"))(x, 3))
    assert "jnp.asarray" not in said(lambda: torch2jax(lambda t: torch.sin(t, 3, 4))(x))


def test_a_call_of_numbers_alone_that_returns_no_tensor():
    with warns(T2jWarning, what=("without any array", "args[0][0], args[0][1]", "`jnp.asarray(...)`")) as caught:
        assert torch2jax(lambda a: a * 2)([1.0, 2.0]) == [1.0, 2.0, 1.0, 2.0]
    assert caught[0].filename == __file__


def test_calls_without_arrays_that_make_tensors_are_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(torch2jax(lambda: torch.arange(3.0))(), np.arange(3))
        np.testing.assert_array_equal(torch2jax(torch.zeros)(3), np.zeros(3))
        np.testing.assert_array_equal(torch2jax(lambda a: torch.tensor(a) * 2)([1.0, 2.0]), [2, 4])
        assert torch2jax(lambda mode: mode)("text") == "text"
        assert torch2jax(lambda: None)() is None
        n, y = torch2jax(lambda n: (n, torch.ones(n)))(2)
        assert (n, y.shape) == (2, (2,))


def test_a_number_that_changes_at_every_call_is_told_once():
    f = torch2jax(lambda t, a, b: t * a + b)
    with warns(PerformanceWarning, times=1, what=("17 times", "args[1]", "`jnp.asarray(...)`")) as caught:
        for step in range(40):
            f(x, 0.5 * step, 1)
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_new_shapes_and_a_few_numbers_are_not_told():
    f = torch2jax(lambda t, a: t * a)
    for n in range(40):
        f(jnp.ones(n), 2.0)
    for a in range(12):
        f(x, float(a))
    for flag in (True, False) * 20:
        f(x, flag)


# --- JAX inside ----------------------------------------------------------------------------------------------------

closed_over = jnp.ones((2, 3))
INSIDE = {
    "jnp on a tensor": lambda t: jnp.sin(t),
    "lax on a tensor": lambda t: jax.lax.sin(t),
    "product": lambda t: t * closed_over,
    "product of an array": lambda t: closed_over * t,
    "sum of a result": lambda t: torch.sin(t) + jnp.ones((2, 3)),
    "function of torch": lambda t: torch.add(t, closed_over),
    "list": lambda t: torch.cat([t, closed_over]),
    "in place": lambda t: t.clone().add_(closed_over),
    "comparison": lambda t: t > closed_over,
    "gradient": lambda t: jax.grad(jnp.sum)(t),
    "jit": lambda t: jax.jit(jnp.sin)(t),
}


@pytest.mark.parametrize("name", INSIDE)
def test_jax_inside_has_one_wording(name):
    for f in (torch2jax(INSIDE[name]), torch2jax(INSIDE[name], output_shapes=Size(2, 3))):
        for call in (f, jax.jit(f)):
            text = said(lambda call=call: jax.block_until_ready(call(x)))
            assert "JaxInsideTorchError: The torch function <lambda> calls JAX (" in text
            assert "pass arrays as arguments" in text
        with pytest.raises(JaxInsideTorchError):
            f(x)


def test_a_tracer_that_is_closed_over():
    with raises(JaxInsideTorchError, what="<lambda> calls JAX", remedy="pass arrays as arguments"):
        jax.jit(lambda y: torch2jax(lambda t: t * y)(x))(x)


def test_type_errors_of_the_function_stay_as_they_are():
    def function(t):
        raise TypeError("a tensor of my own kind")

    with pytest.raises(TypeError, match="of my own kind"):
        torch2jax(function)(x)


def of_cuda_graphs(name):
    """A function that raises as `get_obj` of torch 2.11 does."""
    module = {"__name__": name}
    exec("def get_obj(local, attr_name):\n    assert False", module)
    return lambda t: module["get_obj"](None, "tree_manager_containers")


def test_cuda_graphs_of_a_second_thread_have_advice():
    f = torch2jax(of_cuda_graphs("torch._inductor.cudagraph_trees"), output_shapes=Size(2, 3))
    with pytest.raises(AssertionError) as info:
        f(x)
    (note,) = info.value.__notes__
    assert "torch 2.13" in note
    assert "max-autotune-no-cudagraphs" in said(lambda: jax.block_until_ready(jax.jit(f)(x)))
    with pytest.raises(AssertionError) as info:
        torch2jax(of_cuda_graphs("mine"), output_shapes=Size(2, 3))(x)
    assert not hasattr(info.value, "__notes__")
