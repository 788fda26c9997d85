"""Faults of arguments and outputs: each is a typed error that says what to do, and everything works afterwards.

`check_intact` and `check_text` are shared by the other `test_faults_*` modules.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import (
    ArgumentError,
    DataDependentShapeError,
    DTypeError,
    OutputError,
    Size,
    T2jError,
    j2t,
    t2j,
    torch2jax,
)
from t2j_core.testing import collect, counters

# JAX's fast path for calls of a compiled function raises ValueError where the slow one raises its own type, with
# `jax.pure_callback` too; the text is the same.
JaxError = (jax.errors.JaxRuntimeError, ValueError)

_probe = torch2jax(lambda t, u: (t * 2 + u, t.sum()))
_jitted_probe = jax.jit(_probe)
_probe_input = jnp.arange(6.0).reshape(2, 3)


def check_intact() -> None:
    """The process is as before: nothing borrowed, nothing in flight, torch's state the default, calls work."""
    if counters()["escaped_calls"]:
        collect(passes=2)
    assert counters()["escaped_calls"] == 0
    patience = time.monotonic() + 60
    while counters()["calls_in_flight"] and time.monotonic() < patience:  # a call whose result nobody waited for
        time.sleep(0.001)
    assert counters()["calls_in_flight"] == 0
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch.get_default_dtype() == torch.float32
    for call in (_probe, _jitted_probe):
        doubled, total = call(_probe_input, _probe_input)
        np.testing.assert_array_equal(doubled, 3 * np.arange(6.0).reshape(2, 3))
        assert float(total) == 15


def check_text(error: BaseException | str, *parts: str) -> None:
    """The text has `Expected:` and `Got:` lines, then a remedy, and names `parts`."""
    text = str(error)
    lines = [line for line in text.split("\n") if line.strip()]
    assert any(line.strip().startswith("Got:") for line in lines), text
    if not isinstance(error, str):
        assert not lines[0].strip().startswith(("Expected:", "Got:"))
        assert not lines[-1].strip().startswith(("Expected:", "Got:")), f"no remedy in {text!r}"
        assert lines[-1].endswith((".", ")", "`")), text
    for part in parts:
        assert part in text, text


@pytest.fixture(autouse=True)
def _intact():
    yield
    check_intact()


x = jnp.arange(6.0).reshape(2, 3)
here = np.arange(6.0, dtype=np.float32).reshape(2, 3)


def fails(function, *parts, shape=Size(2, 3), args=(x,), kind=OutputError):
    """`function` fails the same way at every call, eagerly and under jit, and the compiled program goes on working."""
    f = torch2jax(function, output_shapes=shape)
    for _ in range(3):
        with pytest.raises(kind) as info:
            f(*args)
        assert type(info.value) is kind
        check_text(info.value, *parts)
    g = jax.jit(f)
    for _ in range(3):
        with pytest.raises(JaxError) as info:
            jax.block_until_ready(g(*args))
        for part in (kind.__name__, *parts):
            assert part in str(info.value)


# --- wrong outputs at run time ----------------------------------------------------------------------------------------

S = jax.ShapeDtypeStruct
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
    "without_memory": (lambda t: _freed(t), ("f32[2,3]", "without data")),
    "uninitialised": (lambda t: torch.nn.UninitializedParameter(), ("f32[2,3]",)),
    "numpy": (lambda t: t.numpy() + 1, ("one tensor", "ndarray")),
    "number": (lambda t: 1.5, ("one tensor", "float")),
    "none": (lambda t: None, ("one tensor", "NoneType")),
    "string": (lambda t: "text", ("one tensor", "str")),
    "class": (lambda t: torch.Tensor, ("one tensor", "TensorMeta")),
    "dict": (lambda t: {"a": t}, ("one tensor", "dict")),
    "tuple": (lambda t: (t,), ("one tensor", "1 tensor")),
}


def _freed(t):
    y = t + 1
    y.untyped_storage().resize_(0)
    return y


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


class Simple(torch.Tensor):
    pass


class Loud(torch.Tensor):
    """A subclass that refuses every operation."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise PermissionError("no operation on Loud")


class Wrapper(torch.Tensor):
    """A subclass without memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        take = lambda v: v.inner if isinstance(v, Wrapper) else v
        return func(*map(take, args), **(kwargs or {}))


def test_a_subclass_with_memory_is_a_tensor():
    for f in (
        torch2jax(lambda t: (t + 1).as_subclass(Simple)),
        torch2jax(lambda t: (t + 1).as_subclass(Simple), output_shapes=Size(2, 3)),
        torch2jax(lambda t: torch.nn.Parameter(t + 1)),
        torch2jax(lambda t: torch.nn.Buffer(t + 1)),
    ):
        for call in (f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), here + 1)


def test_a_subclass_without_memory():
    fails(lambda t: Wrapper(t + 1), "f32[2,3]", "Wrapper")


def test_a_subclass_that_refuses_every_operation():
    f = torch2jax(lambda t: (t + 1).as_subclass(Loud), output_shapes=Size(2, 3))
    try:
        out = f(x)
    except (PermissionError, OutputError):
        return
    np.testing.assert_array_equal(out, here + 1)


# --- outputs that are unusual and right -------------------------------------------------------------------------------

z = (here + 1j * here[::-1]).astype(np.complex64)
RIGHT = {
    "transposed": lambda t: t.T,
    "expanded": lambda t: t[:, :1].expand(2, 5),
    "stepped": lambda t: t[:, ::2],
    "flipped": lambda t: t.flip(0),
    "overlapping_windows": lambda t: t.reshape(-1).unfold(0, 3, 1),
    "strided_over_itself": lambda t: t.as_strided((3, 3), (1, 1)),
    "offset": lambda t: t[1:, 1:],
    "diagonal": lambda t: (t @ t.mT).diagonal(),
    "channels_last": lambda t: t.reshape(1, 2, 3, 1).contiguous(memory_format=torch.channels_last),
    "conjugate": lambda t: torch.complex(t, t + 1).conj(),
    "conjugate_transposed": lambda t: torch.complex(t, t + 1).mH,
    "imaginary_of_conjugate": lambda t: torch.complex(t, t + 1).conj().imag,
    "negative": lambda t: torch._neg_view(t),
    "negative_of_conjugate": lambda t: torch._neg_view(torch.complex(t, t + 1).conj()),
    "negative_integers": lambda t: torch._neg_view(t.to(torch.int32)),
    "negative_half": lambda t: torch._neg_view(t.to(torch.float16)),
    "negative_stepped": lambda t: torch._neg_view(t)[:, ::2],
    "needs_grad": lambda t: t * torch.ones(3, requires_grad=True),
    "a_parameter": lambda t: torch.nn.Parameter(t * 2),
    "the_input": lambda t: t,
    "the_input_reshaped": lambda t: t.view(3, 2),
    "no_elements": lambda t: t[:, :0],
    "no_dimensions": lambda t: t[1, 2],
    "an_imported_array": lambda t: torch.from_numpy(here * 3),
    "a_closed_over_constant": lambda t, c=torch.arange(4): c,
}


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("name", RIGHT)
def test_an_unusual_output_has_the_right_values(name, declared):
    function = RIGHT[name]
    want = function(torch.from_numpy(here.copy())).detach().resolve_conj().resolve_neg()
    want = want.numpy().astype(np.int32) if want.dtype == torch.int64 else want.numpy()
    f = torch2jax(function, output_shapes=S(want.shape, want.dtype) if declared else None)
    for call in (f, f, jax.jit(f)):
        out = call(x)
        assert out.dtype == want.dtype
        np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(x, here)


PAIRS = {
    "swapped": lambda t, u: (u, t),
    "twice": lambda t, u: (t, t),
    "views_of_one": lambda t, u: (t[:1], t[1:]),
    "view_and_whole": lambda t, u: (t, t.T),
    "overlapping": lambda t, u: ((s := t.reshape(-1) + 0)[:4], s[2:]),
    "one_storage": lambda t, u: tuple(torch.stack([t, u]).unbind()),
    "conjugate_and_plain": lambda t, u: ((c := torch.complex(t, u)), c.conj()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_that_share_memory(name):
    function = PAIRS[name]
    other = here * 10 + 1
    want = function(torch.from_numpy(here.copy()), torch.from_numpy(other.copy()))
    f = torch2jax(function)
    for call in (f, jax.jit(f), jax.jit(f, donate_argnums=())):
        for got, right in zip(call(x, jnp.asarray(other)), want, strict=True):
            np.testing.assert_array_equal(got, right.resolve_conj().numpy())
    np.testing.assert_array_equal(x, here)


def test_very_many_outputs_and_arguments():
    tree = {f"k{i}": jnp.full((2,), float(i)) for i in range(300)}
    f = torch2jax(lambda tree: {key: (value + 1, {"again": value}) for key, value in tree.items()})
    for call in (f, jax.jit(f)):
        out = call(tree)
        assert len(out) == 300
        for i in range(300):
            assert float(out[f"k{i}"][0][1]) == i + 1
            assert float(out[f"k{i}"][1]["again"][0]) == i


def test_one_argument_many_outputs():
    f = torch2jax(lambda t: list(t.unbind()))
    out = jax.jit(f)(jnp.arange(700.0))
    assert [float(v) for v in out] == list(range(700))


def test_no_arguments_and_no_outputs():
    assert torch2jax(lambda: None)() is None
    assert torch2jax(lambda: ())() == ()
    assert torch2jax(lambda t: {})(x) == {}
    assert jax.jit(torch2jax(lambda t: None))(x) is None
    np.testing.assert_array_equal(torch2jax(lambda: torch.arange(3.0))(), np.arange(3.0))
    np.testing.assert_array_equal(jax.jit(torch2jax(lambda: torch.arange(3.0)))(), np.arange(3.0))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0, 2), ()])
def test_arrays_without_elements_or_dimensions(shape):
    f = torch2jax(lambda t: (t + 1, t.sum(), t.reshape(-1)))
    for call in (f, jax.jit(f)):
        whole, total, flat = call(jnp.ones(shape))
        assert whole.shape == shape
        assert float(total) == np.prod(shape)
        assert flat.shape == (int(np.prod(shape)),)
        np.testing.assert_array_equal(whole, np.full(shape, 2.0))


# --- at inference -----------------------------------------------------------------------------------------------------


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
        check_text(info.value, "f32[2,3]")


def test_a_shape_that_depends_on_values_may_be_declared():
    f = torch2jax(lambda t: t[t > 2], output_shapes=Size(3))
    np.testing.assert_array_equal(f(x), [3, 4, 5])
    with pytest.raises(OutputError) as info:
        f(x + 1)
    check_text(info.value, "f32[3]", "f32[4]")
    np.testing.assert_array_equal(f(x), [3, 4, 5])


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", [bytearray(b"a"), {1, 2}, slice(0, [1])])
def test_a_constant_that_is_not_hashable(leaf):
    f = torch2jax(lambda t, o: t)
    with pytest.raises(ArgumentError) as info:
        f(x, {"options": [0, leaf]})
    check_text(info.value, "args[1]['options'][1]", type(leaf).__name__)
    with pytest.raises(ArgumentError, match=r"kwargs\['o'\]"):
        jax.jit(lambda t: f(t, o=leaf))(x)
    np.testing.assert_array_equal(f(x, 3), here)


def test_dtypes_that_torch_does_not_have():
    f = torch2jax(lambda t: t)
    bad = [jax.random.key(0), jnp.zeros(3, jnp.int4), jnp.zeros(3, jnp.uint4), jnp.zeros(3, jnp.float8_e4m3b11fnuz)]
    for value in bad:
        for call in (f, jax.jit(f)):
            with pytest.raises(DTypeError) as info:
                call(value)
            check_text(info.value, str(value.dtype))
    np.testing.assert_array_equal(f(x), here)


def _fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(torch.zeros(2, 3))


NO_DATA = {
    "meta": lambda: torch.zeros(2, 3, device="meta"),
    "sparse": lambda: torch.zeros(2, 3).to_sparse(),
    "mkldnn": lambda: torch.zeros(2, 3).to_mkldnn(),
    "fake": _fake,
    "wrapper": lambda: Wrapper(torch.zeros(2, 3)),
    "freed": lambda: _freed(torch.zeros(2, 3)),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("name", NO_DATA)
def test_a_torch_argument_that_jax_cannot_hold(name):
    f = torch2jax(lambda t: t + 1)
    for call in (f, t2j):
        with pytest.raises((ArgumentError, DTypeError)) as info:
            call(NO_DATA[name]())
        check_text(info.value)


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda g: torch.func.grad(lambda r: g(r).sum())])
def test_an_argument_inside_a_level_of_functorch(transform):
    f = torch2jax(lambda t: t + 1)
    with pytest.raises(ArgumentError) as info:
        transform(lambda r: j2t(f(r)))(torch.zeros(2, 3))
    check_text(info.value)


UNUSUAL = {
    "transposed": lambda: torch.from_numpy(here).T,
    "conjugate": lambda: torch.from_numpy(z).conj(),
    "negative": lambda: torch._neg_view(torch.from_numpy(here)),
    "needs_grad": lambda: torch.from_numpy(here.copy()).requires_grad_(),
    "parameter": lambda: torch.nn.Parameter(torch.from_numpy(here.copy())),
    "subclass": lambda: torch.from_numpy(here.copy()).as_subclass(Simple),
    "expanded": lambda: torch.ones(1, 1).expand(2, 3),
    "no_dimensions": lambda: torch.tensor(2.5),
    "no_elements": lambda: torch.zeros(0, 3),
    "float64": lambda: torch.ones(2, 3, dtype=torch.float64),
    "unaligned": lambda: torch.arange(7.0)[1:].view(2, 3),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_torch_argument_of_an_unusual_kind(name):
    tensor = UNUSUAL[name]()
    want = (tensor.detach().as_subclass(torch.Tensor) * 2).resolve_conj().resolve_neg().numpy()
    for call in (f := torch2jax(lambda t: t * 2), jax.jit(lambda: f(tensor))):
        out = call(tensor) if call is f else call()
        np.testing.assert_array_equal(out, want.astype(np.float32) if want.dtype == np.float64 else want)


NUMPY = {
    "float64": np.float64(1.5),
    "float32": np.float32(1.5),
    "int64": np.int64(7),
    "bool": np.bool_(True),
    "readonly": np.broadcast_to(np.float32(3), (2, 3)),
    "fortran": np.asfortranarray(here),
    "backwards": here[::-1, ::-1],
    "empty": np.zeros((0, 3)),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_arguments(name):
    value = NUMPY[name]
    f = torch2jax(lambda t: t.clone())
    for call in (f, f, jax.jit(f)):
        out = call(value)
        assert out.dtype == jnp.asarray(value).dtype
        np.testing.assert_array_equal(out, value)


def test_constants_of_every_kind_are_apart():
    seen = []
    f = torch2jax(lambda t, c: seen.append(c) or t + float(c))
    for value in (True, 1, 1.0, False, 0, 0.0):
        assert float(f(jnp.zeros(()), value)) == float(value)
    assert [type(v) for v in seen if v == 1][:1] == [bool]
    assert {type(v) for v in seen} == {bool, int, float}


def test_weak_types():
    f = torch2jax(lambda t: t * 2)
    weak = jnp.asarray(1.5)
    assert weak.weak_type
    for call in (f, jax.jit(f)):
        out = call(weak)
        assert not out.weak_type
        assert float(out) == 3
        assert float(call(jnp.float32(1.5))) == 3


class BadEq:
    """Hashable; comparing raises."""

    def __hash__(self):
        return 1

    def __eq__(self, other):
        raise RuntimeError("cannot be compared")

    def __call__(self, t):
        return t + 1


class Slotted:
    __slots__ = ("n",)

    def __init__(self, n):
        self.n = n

    def __call__(self, t):
        return t + self.n


def test_callables_of_odd_kinds():
    class Unhashable(BadEq):
        __hash__ = None

    callables = [
        BadEq(),
        Unhashable(),
        Slotted(1),
        functools.partial(torch.add, other=1),
        functools.partial(lambda one, t: t + one, 1),
        torch.tensor(1.0).add,
        torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity()),
        functools.wraps(BadEq)(lambda t: t + 1),
    ]
    for function in callables:
        f = torch2jax(function)
        want = here if isinstance(function, torch.nn.Module) else here + 1
        for call in (f, f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), want)
        assert repr(f)


def test_a_constant_whose_comparison_raises():
    a, b = BadEq(), BadEq()
    f = torch2jax(lambda t, c: c(t))
    np.testing.assert_array_equal(f(x, a), here + 1)
    with pytest.raises(RuntimeError, match="cannot be compared"):
        f(x, b)
    np.testing.assert_array_equal(f(x, a), here + 1)


def test_a_tree_that_is_very_deep():
    tree = x
    for _ in range(200):
        tree = [tree]
    out = torch2jax(lambda tree: tree)(tree)
    for _ in range(200):
        (out,) = out
    np.testing.assert_array_equal(out, here)
