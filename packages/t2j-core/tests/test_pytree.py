"""Arguments and outputs are pytrees: whatever goes in comes out as it was."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, namedtuple
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.utils._pytree as torch_tree
from common import raises
from hypothesis import given
from hypothesis import strategies as st
from t2j_core import ArgumentError, OutputError, Size, torch2jax

Pair = namedtuple("Pair", ["left", "right"])

DTYPES = ["bool", "int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float32", "complex64", "float8_e4m3fn"]
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def arrays(draw):
    name, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape) + draw(st.integers(0, 3))
    return jnp.asarray(values.astype(jnp.bool_ if name == "bool" else getattr(jnp, name)))


def constants():
    finite = st.floats(allow_nan=False, allow_infinity=False).filter(
        lambda v: v != 0
    )  # 0.0 and -0.0: a test of its own
    return st.one_of(
        st.integers(), finite, st.booleans(), st.text(max_size=5), st.sampled_from([torch.float32, max, ...])
    )


def trees(leaves):
    names = st.text("abcdefg", min_size=1, max_size=3)
    return st.recursive(
        leaves | st.none(),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(names, inner, max_size=3),
            st.dictionaries(names, inner, max_size=3).map(OrderedDict),
            st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        ),
        max_leaves=8,
    )


def assert_same(got, expected):
    got_leaves, got_tree = jax.tree.flatten(got)
    leaves, tree = jax.tree.flatten(expected)
    assert got_tree == tree
    for a, b in zip(got_leaves, leaves, strict=True):
        if isinstance(b, jax.Array):
            assert isinstance(a, jax.Array)
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        else:
            assert type(a) is type(b)
            assert a == b


@pytest.mark.filterwarnings("ignore:.*was called without any array")  # numbers alone, which make the round trip too
@given(trees(arrays() | constants()))
def test_any_tree_makes_the_round_trip(tree):
    assert_same(torch2jax(lambda t: t)(tree), tree)


@given(trees(arrays()))
def test_any_tree_of_arrays_makes_the_round_trip_under_jit(tree):
    assert_same(jax.jit(torch2jax(lambda t: t))(tree), tree)


@pytest.mark.filterwarnings("ignore:.*was called without any array")
@given(trees(arrays()), st.dictionaries(st.sampled_from(["x", "y", "name", "fn"]), trees(arrays() | constants())))
def test_positional_and_keyword_arguments_arrive_where_they_belong(tree, keywords):
    f = torch2jax(lambda *args, **kwargs: {"args": args, "kwargs": kwargs})
    assert_same(f(tree, None, **keywords), {"args": (tree, None), "kwargs": keywords})


def test_a_keyword_may_have_any_name():
    # Regression: `self` was taken.
    f = torch2jax(lambda **kwargs: kwargs)
    x = jnp.ones(2)
    names = ["self", "fn", "args", "kwargs", "key", "out", "signature", "call"]
    assert_same(f(**dict.fromkeys(names, x)), dict.fromkeys(names, x))


@given(trees(arrays()))
def test_the_function_sees_the_containers_of_the_caller(tree):
    seen = []

    def look(t):
        seen.append(jax.tree.structure(t))
        return torch.zeros(1)

    torch2jax(look)(tree)
    assert set(seen) == {jax.tree.structure(tree)}


def test_constants_of_equal_value_and_other_type_differ():
    f = torch2jax(lambda t, c: (t, f"{type(c).__name__} {c}"))
    x = jnp.ones(2)
    assert [f(x, c)[1] for c in (1, 1.0, True, 1 + 0j, np.True_.item(), 1)] == [
        "int 1",
        "float 1.0",
        "bool True",
        "complex (1+0j)",
        "bool True",
        "int 1",
    ]


@pytest.mark.parametrize("pair", [(0.0, -0.0), (-0.0, 0.0), (complex(0.0, -0.0), 0j)], ids=str)
def test_the_sign_of_a_zero_counts(pair):
    # Regression: equal and of the same hash, yet not the same constant.
    f = torch2jax(lambda t, c: (t + 1, str(c)))
    x = jnp.ones(2)
    assert [f(x, c)[1] for c in pair] == [str(c) for c in pair]


def test_a_constant_nan_is_one_constant():
    # Regression: every NaN object was a new signature.
    runs = []

    def function(t, fill):
        runs.append(t.device.type)
        return torch.full_like(t, fill)

    f = torch2jax(function)
    for _ in range(3):
        assert np.isnan(np.asarray(f(jnp.ones(2), float("nan")))).all()
    assert runs.count("meta") == 1


@pytest.mark.parametrize("constant", [None, "mean", torch.float16, len, ..., (), frozenset({1}), 7, np.dtype("int8")])
def test_constants_come_back_as_they_are(constant):
    out = torch2jax(lambda t, c: {"t": t, "c": c})(jnp.ones(2), constant)
    assert out["c"] == constant
    assert type(out["c"]) is type(constant)


@pytest.mark.parametrize(
    "number", [np.float32(2.5), np.int8(3), np.bool_(True), np.uint32(9), np.array(1.5, np.float32)]
)
def test_numpy_scalars_are_data(number):
    out = torch2jax(lambda t: (t.shape, t.clone()))(number)
    assert out[0] == torch.Size([])
    assert out[1].dtype == number.dtype
    assert np.asarray(out[1]) == number


def test_a_numpy_string_is_a_constant():
    # Regression: it is a `str`, and a `np.generic` as well.
    out = torch2jax(lambda t, mode: t * (2 if mode == "double" else 1))(jnp.ones(2), np.str_("double"))
    assert np.asarray(out).tolist() == [2, 2]


def test_an_unhashable_constant_is_refused_by_its_path():
    with raises(ArgumentError, what="args[1]['k'][0]", expected="hashable constant", got="set"):
        torch2jax(lambda t, o: t)(jnp.ones(2), {"k": [{1, 2}]})
    with raises(ArgumentError, what="kwargs['option']", got="bytearray"):
        torch2jax(lambda t, option: t)(jnp.ones(2), option=bytearray(b"x"))


def test_the_constants_of_a_function_with_constant_outputs_only():
    assert torch2jax(lambda t: "nothing")(jnp.ones(2)) == "nothing"
    assert torch2jax(lambda t: None)(jnp.ones(2)) is None
    assert torch2jax(lambda t: {})(jnp.ones(2)) == {}


def test_a_function_without_arguments():
    assert np.asarray(torch2jax(lambda: torch.arange(3.0))()).tolist() == [0, 1, 2]
    assert np.asarray(torch2jax(lambda n: torch.arange(n))(4)).tolist() == [0, 1, 2, 3]


def test_constant_outputs_under_jit_are_constants_of_the_trace():
    f = torch2jax(lambda t: (t * 2, {"name": "double", "count": t.shape[0]}))

    @jax.jit
    def g(x):
        y, about = f(x)
        assert about == {"name": "double", "count": 3}
        return y * about["count"]

    assert np.asarray(g(jnp.ones(3, jnp.int32))).tolist() == [6, 6, 6]


def test_a_constant_output_that_is_not_hashable():
    out = torch2jax(lambda t: (t, slice(0, 2), {"a": bytearray(b"x")}))(jnp.ones(2))
    assert out[1:] == (slice(0, 2), {"a": bytearray(b"x")})


def test_a_constant_output_may_be_nan():
    # Regression: NaN is not equal to itself.
    _, loss = torch2jax(lambda t: (t, float("nan")))(jnp.ones(2))
    assert np.isnan(loss)


@pytest.mark.parametrize(
    ("values", "how", "got"),
    [
        (range(10), "depends", "another int"),
        ((0, 0, 1, 2), "differs", "another int"),
        ((1, 1, True, True), "differs", "another bool"),
    ],
    ids=["early", "late", "late, by its type"],
)
def test_a_constant_output_that_changes_is_refused(values, how, got):
    rest = iter(values)
    with raises(OutputError, what=("constant", how), got=got, remedy="as tensors"):
        torch2jax(lambda t: (t, next(rest)))(jnp.ones(2))


# --- containers of torch, and of the user -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        partial(torch.max, dim=0),
        partial(torch.sort, dim=0),
        partial(torch.topk, k=1, dim=0),
        torch.linalg.svd,
        torch.slogdet,
    ],
    ids=["max", "sort", "topk", "svd", "slogdet"],
)
def test_results_of_torch_that_are_named_tuples_of_its_own(function):
    # Regression: `torch.return_types.*` is no named tuple for JAX, and was taken for a constant.
    x = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    expected = function(torch.from_numpy(x))
    for call in (torch2jax(function), jax.jit(torch2jax(function))):
        got = call(jnp.asarray(x))
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert isinstance(a, jax.Array)
            np.testing.assert_array_equal(np.asarray(a), b.numpy().astype(a.dtype))


class Stack(list):
    pass


class Triple(tuple):
    pass


@pytest.mark.parametrize("kind", [Stack, Triple])
def test_subclasses_of_list_and_tuple_are_containers(kind):
    first, second = torch2jax(lambda t: kind([t, t + 1]))(jnp.ones(2))
    assert np.asarray(first).tolist() == [1, 1]
    assert np.asarray(second).tolist() == [2, 2]


@pytest.mark.parametrize("collection", [lambda t: {t}, lambda t: frozenset({t})], ids=["set", "frozenset"])
def test_a_collection_of_tensors_that_is_no_tree_is_refused_when_traced(collection):
    # Regression: it was taken for a constant, one that holds tensors without data.
    f = torch2jax(lambda t: [t, collection(t)])
    with pytest.raises(OutputError):
        jax.make_jaxpr(lambda x: f(x)[0])(jnp.ones(2))


@dataclasses.dataclass
class Result:
    logits: object
    extra: object = None
    steps: int = 3


class ModelOutput(OrderedDict):
    """What Hugging Face's does: a dataclass and a mapping without the fields that are None."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


@dataclasses.dataclass
class CausalOutput(ModelOutput):
    loss: object = None
    logits: object = None
    hidden_states: object = None


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["unit"])
@dataclasses.dataclass
class Measured:
    value: object
    unit: str


def test_a_dataclass_arrives_as_a_dict():
    out = torch2jax(lambda t: Result(t * 2, {"inner": Result(t)}))(jnp.ones(2, jnp.int32))
    assert_same(
        out,
        {
            "logits": jnp.full(2, 2, jnp.int32),
            "extra": {"inner": {"logits": jnp.ones(2, jnp.int32), "extra": None, "steps": 3}},
            "steps": 3,
        },
    )


def test_a_registered_dataclass_arrives_as_itself():
    f = torch2jax(lambda m: Measured(m.value * 2, m.unit + "2"))
    for call in (f, jax.jit(f)):
        out = call(Measured(jnp.ones(2), "m"))
        assert isinstance(out, Measured)
        assert out.unit == "m2"
        assert np.asarray(out.value).tolist() == [2, 2]


@pytest.mark.parametrize("filled", [("logits",), ("loss", "logits"), ("logits", "hidden_states")], ids="+".join)
def test_a_model_output_arrives_as_a_dict_without_the_fields_that_are_none(filled):
    def model(t):
        values = {"loss": t.sum(), "logits": t, "hidden_states": (t, t + 1)}
        return CausalOutput(**{name: values[name] for name in filled})

    out = torch2jax(model)(jnp.ones(2))
    assert type(out) is dict
    assert set(out) == set(filled)
    assert np.asarray(out["logits"]).tolist() == [1, 1]
    if "hidden_states" in filled:
        assert np.asarray(out["hidden_states"][1]).tolist() == [2, 2]


def test_a_named_tuple_and_a_default_dict_arrive_as_themselves():
    def function(t):
        table = defaultdict(list)
        table["a"].append(t)
        return Pair(t, table)

    out = torch2jax(function)(jnp.ones(2))
    assert isinstance(out, Pair)
    assert isinstance(out.right, defaultdict)
    assert np.asarray(out.right["a"][0]).tolist() == [1, 1]


def test_an_unregistered_dataclass_argument_is_refused_with_its_path():
    with raises(ArgumentError, what="args[0]", expected="hashable constant", got="Result", remedy="pytree"):
        torch2jax(lambda r: r.logits)(Result(jnp.ones(2)))


def test_equal_trees_of_other_containers_are_other_signatures():
    f = torch2jax(lambda t: (t[0] * 1, type(t).__name__))
    x = jnp.ones(2)
    assert [f(t)[1] for t in ([x], (x,), [x], Pair(x, x))] == ["list", "tuple", "list", "Pair"]


# --- Size ----------------------------------------------------------------------------------------------------------


def test_size_takes_numbers_or_a_shape():
    assert Size(3, 2) == Size((3, 2)) == Size([3, 2]) == Size(torch.Size([3, 2])) == (3, 2)
    assert Size() == Size(()) == ()
    assert Size(4) == (4,)
    assert repr(Size(3, 2)) == "Size(3, 2)"


class Registered:
    """Registered with torch alone."""

    def __init__(self, first, second):
        self.first, self.second = first, second


class RegisteredWithNames(Registered):
    """The same, with the names of its parts."""


def parts(pair):
    return [pair.first, pair.second], None


def named_parts(pair):
    return [(torch_tree.GetAttrKey("first"), pair.first), (torch_tree.MappingKey("second"), pair.second)], None


def test_outputs_of_classes_that_are_registered_with_torch():
    torch_tree.register_pytree_node(Registered, parts, lambda both, _: Registered(*both))
    torch_tree.register_pytree_node(
        RegisteredWithNames, parts, lambda both, _: RegisteredWithNames(*both), flatten_with_keys_fn=named_parts
    )
    f = torch2jax(lambda x: {"a": RegisteredWithNames(x, Registered(2 * x, [x, None])), "b": x.sum()})
    shapes = jax.tree.map(jnp.shape, jax.jit(f)(jnp.ones(3)))
    assert shapes == {"a": {"first": (3,), "second": [(3,), [(3,), None]]}, "b": ()}
