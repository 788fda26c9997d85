"""Outputs that cannot be, at run time and at inference: each is a typed error, and everything works afterwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import JaxError, Wrapper, check_whole, freed, here, x
from t2j_core import DataDependentShapeError, DTypeError, OutputError, Size, T2jError, torch2jax

pytestmark = pytest.mark.usefixtures("intact")


def fails(function, *parts, shape=Size(2, 3), args=(x,), kind=OutputError):
    """`function` fails the same way at every call, eagerly and under jit, and the compiled program goes on working."""
    f = torch2jax(function, output_shapes=shape)
    for _ in range(3):
        with pytest.raises(kind) as info:
            f(*args)
        assert type(info.value) is kind
        check_whole(info.value, *parts)
    g = jax.jit(f)
    for _ in range(3):
        with pytest.raises(JaxError) as info:
            jax.block_until_ready(g(*args))
        for part in (kind.__name__, *parts):
            assert part in str(info.value)


WRONG = {
    "shape": (lambda t: t[0], ("f32[2,3]", "f32[3]", "output_shapes")),
    "rank_0": (lambda t: t.sum(), ("f32[2,3]", "f32[]")),
    "as_many_elements": (lambda t: t.T, ("f32[2,3]", "f32[3,2]")),
    "empty": (lambda t: t[:0], ("f32[2,3]", "f32[0,3]")),
    "dtype": (lambda t: t.to(torch.float16), ("f32[2,3]", "f16[2,3]")),
    "dtype_of_the_same_size": (lambda t: t.to(torch.int32), ("f32[2,3]", "i32[2,3]")),
    "bool": (lambda t: t > 0, ("f32[2,3]", "bool[2,3]")),
    "complex32": (lambda t: torch.zeros(2, 3, dtype=torch.complex32), ("f32[2,3]", "complex32")),
    "meta": (lambda t: t.to("meta"), ("f32[2,3]", "meta")),
    "sparse": (lambda t: t.to_sparse(), ("f32[2,3]", "sparse_coo", "dense")),
    "csr": (lambda t: t.to_sparse_csr(), ("f32[2,3]", "sparse_csr", "dense")),
    "mkldnn": (lambda t: t.to_mkldnn(), ("f32[2,3]", "mkldnn", "dense")),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), ("f32[2,3]", "qint8", "dequantize")),
    "nested": (lambda t: torch.nested.nested_tensor([t[0], t[1]]), ("f32[2,3]",)),
    "without_memory": (lambda t: freed(t), ("f32[2,3]", "without data")),
    "uninitialised": (lambda t: torch.nn.UninitializedParameter(), ("f32[2,3]",)),
    "numpy": (lambda t: t.numpy() + 1, ("one tensor", "ndarray")),
    "number": (lambda t: 1.5, ("one tensor", "float")),
    "none": (lambda t: None, ("one tensor", "NoneType")),
    "string": (lambda t: "text", ("one tensor", "str")),
    "class": (lambda t: torch.Tensor, ("one tensor", "TensorMeta")),
    "dict": (lambda t: {"a": t}, ("one tensor", "dict")),
    "tuple": (lambda t: (t,), ("one tensor", "1 tensor")),
}


@pytest.mark.thinned(2)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested")
@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_output(name):
    function, parts = WRONG[name]
    fails(function, *parts)


MANY = {
    "too_few": (lambda t: (t,), ((2, 3), (2, 3))),
    "too_many": (lambda t: (t, t, t), ((2, 3), (2, 3))),
    "none_at_all": (lambda t: (), ((2, 3), (2, 3))),
    "bare": (lambda t: t, ((2, 3), (2, 3))),
    "none": (lambda t: None, ((2, 3), (2, 3))),
    "dict_for_tuple": (lambda t: {"a": t, "b": t}, ((2, 3), (2, 3))),
    "other_keys": (lambda t: {"a": t, "c": t}, {"a": Size(2, 3), "b": Size(2, 3)}),
    "deeper": (lambda t: {"a": t, "b": (t,)}, {"a": Size(2, 3), "b": Size(2, 3)}),
    "a_hole": (lambda t: {"a": t, "b": None}, {"a": Size(2, 3), "b": Size(2, 3)}),
}


@pytest.mark.parametrize("name", MANY)
def test_another_tree_than_declared(name):
    function, declared = MANY[name]
    fails(function, "Expected:", "Got:", shape=declared)


@pytest.mark.parametrize("wrong", [None, 1.5, "text", np.ones((2, 3), np.float32), torch.Tensor])
def test_something_else_where_a_tensor_was_declared_in_a_tree(wrong):
    if wrong is None:
        fails(lambda t: {"a": t, "b": wrong}, "output['b']", "None", shape={"a": Size(2, 3), "b": Size(2, 3)})
    else:
        fails(
            lambda t: {"a": t, "b": wrong},
            "output['b']",
            "torch.Tensor",
            type(wrong).__name__,
            shape={"a": Size(2, 3), "b": Size(2, 3)},
        )


def test_only_the_wrong_one_of_many_outputs_is_named():
    wrong = [Size(2, 3)] * 40
    fails(lambda t: [t if i != 27 else t.T for i in range(40)], "output[27]", "f32[3,2]", shape=wrong)


def test_a_wrong_last_output_leaves_no_earlier_one_behind():
    """Everything is checked before the first byte is written: aliased memory stays as it is."""
    flag = jnp.zeros(())

    def function(t, bad):
        t.add_(1)
        return (t, t[0]) if bad else (t, t)

    f = torch2jax(function, output_shapes=((2, 3), (2, 3)), mutable_argnums=0)
    with pytest.raises(OutputError, match=r"output\[1\]"):
        f(x, True)
    np.testing.assert_array_equal(x, here)
    np.testing.assert_array_equal(f(x, False)[1], here + 1)
    assert float(flag) == 0


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    fake = mode.from_tensor(torch.zeros(2, 3))
    fails(lambda t: fake, "f32[2,3]", "FakeTensor")


LEVELS = {
    "vmap": lambda t, keep: torch.func.vmap(lambda r: keep(r * 2))(t),
    "grad": lambda t, keep: torch.func.grad(lambda r: keep(r * 2).sum())(t),
    "jvp": lambda t, keep: torch.func.jvp(lambda r: keep(r * 2), (t,), (t,)),
    "functionalize": lambda t, keep: torch.func.functionalize(lambda r: keep(r * 2))(t),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("level", LEVELS)
def test_a_tensor_that_left_its_level_of_functorch(level):
    def function(t):
        kept = []
        LEVELS[level](t, lambda value: kept.append(value) or value)
        return kept[0]

    f = torch2jax(function, output_shapes=Size(3) if level == "vmap" else Size(2, 3))
    for _ in range(2):
        try:
            result = f(x)
        except (OutputError, RuntimeError) as error:
            assert not isinstance(error, jax.errors.JaxRuntimeError)
        else:  # torch 2.6 reads through the wrappers of levels that have ended
            assert level in ("grad", "jvp")
            np.testing.assert_array_equal(result, 2 * x)


def test_a_subclass_without_memory():
    fails(lambda t: Wrapper(t + 1), "f32[2,3]", "Wrapper")


def gives_generator(t):
    yield t


async def gives_coroutine(t):
    return t


INFERRED = {
    "sparse": (lambda t: t.to_sparse(), OutputError),
    "mkldnn": (lambda t: t.to_mkldnn(), OutputError),
    "numpy": (lambda t: np.ones(3), OutputError),
    "numpy_number": (lambda t: np.float32(3), OutputError),
    "jax": (lambda t: x, OutputError),
    "generator": (gives_generator, OutputError),
    "coroutine": (gives_coroutine, OutputError),
    "map": (lambda t: map(abs, [t]), OutputError),
    "set_of_tensors": (lambda t: {t}, OutputError),
    "complex32": (lambda t: t.to(torch.complex32), DTypeError),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), (OutputError, DTypeError)),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:coroutine", "ignore:ComplexHalf")
@pytest.mark.parametrize("name", INFERRED)
def test_an_output_that_cannot_be_is_refused_when_it_is_inferred(name):
    function, kind = INFERRED[name]
    f = torch2jax(function)
    for call in (f, f, jax.jit(f)):
        with pytest.raises(kind) as info:
            call(x)
        assert isinstance(info.value, T2jError)
        assert len(str(info.value).split("\n")) > 1, "no remedy"


def test_an_output_that_contains_itself():
    def function(t):
        items = [t]
        items.append(items)
        return items

    with pytest.raises((RecursionError, OutputError)):
        torch2jax(function)(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t[t > 2],
        lambda t: t.nonzero(),
        lambda t: t.unique(),
        lambda t: torch.masked_select(t, t > 1),
        lambda t: torch.ones(int(t.sum().item())),
    ],
)
def test_a_shape_that_depends_on_values(function):
    f = torch2jax(function)
    for call in (f, jax.jit(f)):
        with pytest.raises(DataDependentShapeError) as info:
            call(x)
        check_whole(info.value, "f32[2,3]")


def test_a_shape_that_depends_on_values_may_be_declared():
    f = torch2jax(lambda t: t[t > 2], output_shapes=Size(3))
    np.testing.assert_array_equal(f(x), [3, 4, 5])
    with pytest.raises(OutputError) as info:
        f(x + 1)
    check_whole(info.value, "f32[3]", "f32[4]")
    np.testing.assert_array_equal(f(x), [3, 4, 5])
