"""Every dtype of the table crosses bit by bit, both ways; every other one is refused by its name."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from t2j_core import DTypeError, dtype_j2t, dtype_t2j, j2t, t2j, torch2jax

NARROW = [
    "bool",
    "int8",
    "int16",
    "int32",
    "uint8",
    "uint16",
    "uint32",
    "float16",
    "bfloat16",
    "float32",
    "complex64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]
WIDE = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}
DTYPES = [name for name in (*NARROW, *WIDE) if hasattr(torch, name)]  # torch 2.6 has no float8_e8m0fnu

# JAX has these and torch does not (as something one can compute with).
ONLY_JAX = ["int2", "int4", "uint2", "uint4", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float4_e2m1fn"]
ONLY_TORCH = [torch.complex32, torch.qint8, torch.quint8, torch.qint32]


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(jnp.bool_ if name == "bool" else getattr(jnp, name))


def random_bits(name: str, shape: tuple[int, ...] = (7, 37)) -> np.ndarray:
    """Random bit patterns: infinities, subnormals and NaNs with all kinds of payload among them."""
    dtype = numpy_dtype(name)
    rng = np.random.default_rng(0)
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    data = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    return data.view(dtype).reshape(shape)


def bits(array: object) -> bytes:
    return np.asarray(array).tobytes()


def x64(name: str):
    return jax.enable_x64(name in WIDE)


@pytest.mark.parametrize("name", DTYPES)
def test_the_table_maps_names_to_names(name):
    assert dtype_j2t(numpy_dtype(name)) == getattr(torch, name)
    assert dtype_t2j(getattr(torch, name)) == numpy_dtype(name)
    assert dtype_t2j(numpy_dtype(name)) == numpy_dtype(name)
    assert dtype_j2t(getattr(torch, name)) is getattr(torch, name)


@pytest.mark.parametrize("spelling", ["float32", np.float32, jnp.float32, np.dtype("float32")])
def test_a_jax_dtype_may_be_spelled_in_any_way(spelling):
    assert dtype_j2t(spelling) is torch.float32


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("function", [lambda t: t, torch.clone], ids=["identity", "clone"])
@pytest.mark.parametrize("name", DTYPES)
def test_a_call_keeps_every_bit(name, function, jitted):
    seen = set()

    def look(t):
        seen.add(t.dtype)
        return function(t)

    f = torch2jax(look)
    with x64(name):
        x = jnp.asarray(random_bits(name))
        out = (jax.jit(f) if jitted else f)(x)
    assert seen == {getattr(torch, name)}
    assert out.dtype == numpy_dtype(name)
    assert bits(out) == bits(random_bits(name))


@pytest.mark.parametrize("name", DTYPES)
def test_a_call_with_several_results_keeps_every_bit(name):
    f = torch2jax(lambda t, s: {"a": t[0].clone(), "b": (s, t[:, ::2])})
    with x64(name):
        x = jnp.asarray(random_bits(name))
        out = f(x, jnp.asarray(random_bits(name, ())))
    assert bits(out["a"]) == bits(random_bits(name)[0])
    assert bits(out["b"][0]) == bits(random_bits(name, ()))
    assert bits(out["b"][1]) == bits(random_bits(name)[:, ::2])


@pytest.mark.parametrize("shape", [(7, 37), (), (0, 3), (1,)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_conversions_keep_every_bit(name, shape):
    with x64(name):
        x = jnp.asarray(random_bits(name, shape))
        tensor = j2t(x)
        assert tensor.dtype == getattr(torch, name)
        assert tuple(tensor.shape) == shape
        back = t2j(tensor)
        assert back.dtype == x.dtype
        assert back.shape == shape
        assert bits(back) == bits(x)


@pytest.mark.parametrize("name", DTYPES)
def test_torch_reads_the_values_that_jax_wrote(name):
    # Values and not only bits: a mismatch of float8 formats would pass the tests above.
    with x64(name):
        values = np.array([0, 1]) if name == "bool" else np.array([1, 2, 4, 1])
        seen = j2t(jnp.asarray(values.astype(numpy_dtype(name)))).to(
            torch.complex128 if "complex" in name else torch.float64
        )
    assert seen.tolist() == values.tolist()


@pytest.mark.parametrize("name", WIDE)
def test_wide_tensors_become_narrow_while_x64_is_off(name):
    values = torch.tensor([1, 2, 3]).to(getattr(torch, name))
    assert t2j(values).dtype == numpy_dtype(WIDE[name])
    assert np.asarray(t2j(values)).tolist() == [1, 2, 3]
    out = torch2jax(lambda t: t.to(getattr(torch, name)))(jnp.arange(3, dtype=jnp.int32))
    assert out.dtype == numpy_dtype(WIDE[name])
    assert np.asarray(out).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", WIDE)
def test_a_wide_example_tells_the_dtype_that_the_function_sees(name):
    seen = []
    example = torch.zeros(3, dtype=getattr(torch, name))
    f = torch2jax(lambda t: (seen.append(t.dtype), t.clone())[1], example)
    out = jax.jit(f)(jnp.asarray([1, 2, 3], numpy_dtype(WIDE[name])))
    assert set(seen) == {example.dtype}
    assert out.dtype == numpy_dtype(WIDE[name])
    assert np.asarray(out).tolist() == [1, 2, 3]


def test_a_wide_tensor_argument_is_seen_as_such_by_the_function():
    seen = []
    torch2jax(lambda t: (seen.append(t.dtype), t + 1)[1])(torch.arange(3))
    assert set(seen) == {torch.int64}


def test_an_argument_of_another_kind_than_its_wide_example():
    f = torch2jax(lambda t: t / 2, torch.zeros(2, dtype=torch.int64))
    assert f(jnp.array([1.5, 3.0])).tolist() == [0.75, 1.5]
    assert f(jnp.array([1, 3])).tolist() == [0.5, 1.5]


@pytest.mark.parametrize("constants", [(), (2,)], ids=["arrays", "a-constant"])
@pytest.mark.parametrize("dtypes", [("int64", "int32"), ("int32", "int64"), ("int64", "float64")])
def test_each_tensor_argument_is_seen_in_its_own_dtype(dtypes, constants):
    # The form that is compiled for int64 is not that for int32, which JAX stores in the same way.
    seen = []
    f = torch2jax(lambda t, *_: (seen.append(t.dtype), t + 1)[1])
    for name in (*dtypes, *dtypes):
        t = torch.tensor([1, 2, 3], dtype=getattr(torch, name))
        seen.clear()
        assert f(t, *constants).tolist() == [2, 3, 4]
        assert set(seen) == {t.dtype}


@pytest.mark.parametrize("first", [False, True], ids=["off-then-on", "on-then-off"])
def test_x64_may_change_between_calls_of_one_function(first):
    # Regression: the cached signature was inferred under the other setting.
    f = torch2jax(lambda t: (t.argmax(), t.double() / 3))
    x = jnp.asarray(np.array([1, 3, 2], np.float32))
    for on in (first, not first, first):
        with jax.enable_x64(on):
            index, value = f(x)
            jit_index, jit_value = jax.jit(f)(x)
            expected = np.array([1, 3, 2]) / 3
        assert index.dtype == jit_index.dtype == np.dtype("int64" if on else "int32")
        assert value.dtype == jit_value.dtype == np.dtype("float64" if on else "float32")
        assert int(index) == int(jit_index) == 1
        np.testing.assert_array_equal(np.asarray(value), expected.astype(value.dtype))
        np.testing.assert_array_equal(np.asarray(jit_value), expected.astype(value.dtype))


@pytest.mark.parametrize("name", [name for name in ONLY_JAX if hasattr(jnp, name)])
def test_a_dtype_that_only_jax_has_is_refused_when_traced(name):
    x = jnp.zeros(3, getattr(jnp, name))
    for attempt in (lambda: jax.make_jaxpr(torch2jax(lambda t: t))(x), lambda: j2t(x), lambda: dtype_j2t(x.dtype)):
        with raises(DTypeError, what=re.compile(rf"`{name}`.*(PyTorch does not have|packed)"), got=name):
            attempt()


PACKED = ["int2", "int4", "uint2", "uint4", "float4_e2m1fn"]
PACKED_IN_TORCH = ["uint1", "uint4", "uint7", "int3", "bits1x8", "bits2x4", "bits4x2", "quint4x2", "float4_e2m1fn_x2"]


@pytest.mark.parametrize("dtype", [getattr(jnp, name) for name in PACKED if hasattr(jnp, name)])
def test_packed_dtypes_of_jax_are_refused_as_such(dtype):
    with raises(DTypeError, what=("packed", re.compile("[24] bits")), remedy="astype"):
        dtype_j2t(dtype)


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in PACKED_IN_TORCH if hasattr(torch, name)], ids=str)
def test_packed_dtypes_of_torch_are_refused_as_such(dtype):
    with raises(DTypeError, what=("packed", re.compile("[12347] bits")), got=str(dtype), remedy="tensor.to"):
        dtype_t2j(dtype)


@pytest.mark.parametrize("dtype", ["foo", 5, None])
def test_what_is_no_dtype_is_refused(dtype):
    with pytest.raises(DTypeError, match="is not a dtype"):
        dtype_j2t(dtype)


def test_the_refusal_names_the_argument():
    f = torch2jax(lambda a, b: a, name="pick")
    x, bad = jnp.zeros(2), jnp.zeros(2, jnp.int4)
    for attempt in (lambda: f(x, bad), lambda: jax.jit(f)(x, bad), lambda: f(x, b=bad)):
        with raises(DTypeError, what=(re.compile(r"^(args\[1\]|kwargs\['b'\]) of pick"), "`int4`", "packed")):
            attempt()
    with raises(DTypeError, what=("args[0] of pick", "`torch.bits8`")):
        f(torch.empty(2, dtype=torch.bits8), x)
    with raises(DTypeError, what=("`output_shapes`", "`int4`", "packed")):
        torch2jax(torch.sin, output_shapes=jax.ShapeDtypeStruct((2,), jnp.int4))


def test_a_jax_key_is_no_data_for_torch():
    with pytest.raises(DTypeError, match="key<fry>"):
        jax.make_jaxpr(torch2jax(lambda t: t))(jax.random.key(0))


@pytest.mark.parametrize("dtype", ["U1", object, "datetime64[s]", "longdouble", ">f4"])
def test_a_dtype_that_only_numpy_has_is_refused(dtype):
    x = np.zeros(2, dtype)
    with raises(DTypeError, what=("args[0] of <lambda>", "PyTorch does not have")):
        torch2jax(lambda t: t)(x)


@pytest.mark.parametrize("dtype", ONLY_TORCH, ids=str)
def test_a_dtype_that_only_torch_has_is_refused(dtype):
    with raises(DTypeError, what=(f"`{dtype}`", "JAX does not have"), got=str(dtype)):
        dtype_t2j(dtype)


def test_a_result_dtype_that_only_torch_has_is_refused_when_traced():
    f = torch2jax(lambda t: {"a": t, "b": t.to(torch.complex32)}, name="pick")
    with pytest.raises(DTypeError, match=r"^output\['b'\] of pick: `torch.complex32`"):
        jax.make_jaxpr(f)(jnp.ones(3))


def test_the_refusal_lists_what_would_do():
    with raises(DTypeError, expected=tuple(DTYPES)):
        dtype_t2j(torch.complex32)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_tensors_are_refused():
    with pytest.raises(DTypeError, match="qint8"):
        t2j(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
