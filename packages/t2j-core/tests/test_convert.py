"""`j2t` and `t2j`: the same memory where it can be, the same values always."""

from __future__ import annotations

import re
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from t2j_core import ArgumentError, DTypeError, j2t, module2jax, t2j, torch2jax, tree_j2t, tree_t2j

SHARED = ["int8", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16", "float32", "complex64", "bool"]
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):  # torch before 2.10 has no 8-bit floats in DLPack: a copy
    SHARED += ["float8_e4m3fn", "float8_e5m2"]


def ones(name: str, n: int = 256) -> jax.Array:
    return jnp.ones(n, jnp.bool_ if name == "bool" else getattr(jnp, name))


# --- zero copy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARED)
def test_j2t_is_over_the_same_memory(name):
    x = ones(name)
    assert j2t(x).data_ptr() == x.unsafe_buffer_pointer()


@pytest.mark.parametrize("name", SHARED)
def test_t2j_is_over_the_same_memory(name):
    tensor = torch.ones(256).to(getattr(torch, name))
    assert t2j(tensor).unsafe_buffer_pointer() == tensor.data_ptr()


def test_pinned_memory_is_the_cpus(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)  # there is none without a GPU
    tensor = torch.ones(256)
    assert t2j(tensor).unsafe_buffer_pointer() == tensor.data_ptr()
    assert t2j(tensor).devices() == {jax.devices("cpu")[0]}


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU, and counts its copies."""

    is_cuda = property(lambda self: True)
    get_device = lambda self: -1
    copies = 0

    def clone(self, *args, **kwargs):
        OnGpu.copies += 1
        return super().clone(*args, **kwargs)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8, 16])
def test_memory_of_a_gpu_is_copied_where_xla_refuses_it(name, offset):
    tensor = torch.arange(64).to(getattr(torch, name))[offset:]
    expected = tensor.cpu().to(torch.complex64 if name == "complex64" else torch.float32).numpy()
    is_aligned = offset * tensor.element_size() % 16 == 0
    for convert in (t2j, lambda tensor: torch2jax(lambda t: t.clone())(tensor)):
        OnGpu.copies = 0
        out = convert(tensor.as_subclass(OnGpu))
        np.testing.assert_array_equal(np.asarray(out).astype(expected.dtype), expected)
        assert OnGpu.copies == (not is_aligned)


def test_an_unaligned_parameter_of_a_gpu_is_copied():
    flat = torch.arange(33.0).as_subclass(OnGpu)
    layer = torch.nn.Module()
    layer.register_buffer("first", flat[:32])
    layer.register_buffer("second", flat[1:])
    layer.forward = lambda x: x
    OnGpu.copies = 0
    _, variables = module2jax(layer)
    assert OnGpu.copies == 1
    np.testing.assert_array_equal(variables["buffers"]["second"], np.arange(1.0, 33.0))


@pytest.mark.parametrize("offset", [1, 4, 15])
def test_memory_of_the_cpu_that_is_not_aligned_is_copied(offset):
    tensor = torch.arange(64.0)[offset:]
    array = t2j(tensor)
    expected = tensor.numpy().copy()
    tensor.zero_()
    np.testing.assert_allclose(jnp.sin(array), np.sin(expected), rtol=1e-5)
    np.testing.assert_array_equal(array, expected)


def test_t2j_keeps_the_tensors_memory_alive():
    array = t2j(torch.full((1 << 16,), 3.0))
    other = [torch.zeros(1 << 16) for _ in range(4)]
    assert float(array.sum()) == 3 * (1 << 16)
    assert len(other) == 4


def test_j2t_keeps_the_arrays_memory_alive():
    tensor = j2t(jnp.full(1 << 16, 3.0))
    other = [jnp.zeros(1 << 16).block_until_ready() for _ in range(4)]
    assert tensor.sum().item() == 3 * (1 << 16)
    assert len(other) == 4


def test_there_and_back_is_the_same_memory():
    x = jnp.ones(64)
    assert t2j(j2t(x)).unsafe_buffer_pointer() == x.unsafe_buffer_pointer()


def test_arrays_over_tensors_are_not_committed():
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2, torch.bool, torch.int64, torch.complex64):
        for tensor in (torch.ones(64), torch.ones(()), torch.ones(0, 3), torch.ones(4, 4).T, torch.ones(1, 5)):
            array = t2j(tensor.to(dtype))
            assert not array.committed
            assert array.shape == tuple(tensor.shape)


def test_donating_an_array_over_a_tensor_leaves_the_tensor_alone():
    tensor = torch.ones(1 << 12)
    array = t2j(tensor)
    zeros = jax.jit(lambda x: x * np.float32(0), donate_argnums=0)(array)
    step = jax.jit(torch2jax(lambda t: t.mul_(3), mutable_argnums=0), donate_argnums=0)
    threes = step(t2j(tensor))
    assert array.is_deleted()
    assert float(zeros.sum()) == 0
    assert float(threes.sum()) == 3 << 12
    assert tensor.sum() == 1 << 12


# --- all kinds of tensors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.T,
        lambda t: t[:, ::2],
        lambda t: t[1:],
        lambda t: t[:, 1],
        lambda t: t[0, 0],
        lambda t: t.unsqueeze(0).expand(3, -1, -1),
        lambda t: t.flip(0),
        lambda t: t.clone().requires_grad_(),
        lambda t: torch.nn.Parameter(t.clone()),
        lambda t: t.clone().requires_grad_() * 2,
        lambda t: torch.as_strided(t, (2, 2, 2), (1, 1, 1)),
        lambda t: t[:0],
        lambda t: t.sum(),
        lambda t: torch.complex(t, t + 1).conj(),
        lambda t: torch.complex(t, t + 1).conj().imag,
        lambda t: torch._neg_view(t),
        lambda t: torch.complex(t, t + 1).mH,
        lambda t: t.to(memory_format=torch.contiguous_format)[None, None].to(memory_format=torch.channels_last),
    ],
    ids=[
        *("T", "strided", "offset", "column", "item", "expand", "flip", "grad", "parameter", "result", "overlap"),
        *("empty", "scalar", "conj", "neg", "negative", "mH", "nhwc"),
    ],
)
def test_any_dense_tensor_arrives_with_its_values(make):
    tensor = make(torch.arange(12.0).reshape(3, 4))
    array = t2j(tensor)
    expected = tensor.detach().resolve_conj().resolve_neg().numpy()
    assert array.shape == tuple(tensor.shape)
    assert np.asarray(array).tobytes() == np.ascontiguousarray(expected).tobytes()
    assert float(jnp.abs(array).sum()) == pytest.approx(float(np.abs(expected).sum()))  # JAX computes with it, too


@pytest.mark.parametrize(
    "shape", [(1,), (1, 1), (1, 3), (3, 1), (2, 1, 3), (1, 1, 3, 4), (1, 4, 1, 3), (4, 1, 1, 1), (1, 0)]
)
def test_dimensions_of_size_one(shape):
    tensor = torch.arange(24.0)[: int(np.prod(shape))].reshape(shape)
    layouts = [tensor, tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor]
    layouts += [tensor.to(memory_format=torch.channels_last)] if tensor.ndim == 4 else []
    for layout in layouts:
        np.testing.assert_array_equal(t2j(layout), tensor.numpy())
        np.testing.assert_array_equal(j2t(t2j(layout)), tensor.numpy())


def test_the_autograd_history_is_left_behind():
    leaf = torch.ones(3, requires_grad=True)
    array = t2j(leaf * 2)
    assert np.asarray(array).tolist() == [2, 2, 2]
    assert not j2t(array).requires_grad


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.complex128, torch.uint64], ids=str)
def test_wide_tensors_with_x64_off_and_on(dtype):
    tensor = torch.arange(5).to(dtype)
    narrow = t2j(tensor)
    assert narrow.dtype.itemsize * 2 == dtype.itemsize
    assert np.asarray(narrow).tolist() == [0, 1, 2, 3, 4]
    with jax.enable_x64(True):
        wide = t2j(tensor)
        assert wide.dtype.itemsize == dtype.itemsize
        assert wide.unsafe_buffer_pointer() == tensor.data_ptr()


def test_jitted_functions_take_converted_arrays():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert float(jax.jit(jnp.sum)(t2j(tensor.T))) == 15


@pytest.mark.parametrize("view", [lambda t: t[1:], lambda t: t[3:7]], ids=["1:", "3:7"])
def test_memory_that_is_not_aligned_for_xla(view):
    tensor = view(torch.arange(9, dtype=torch.int8))
    assert np.asarray(t2j(tensor)).tolist() == tensor.tolist()


def test_a_sliced_jax_array():
    x = jnp.arange(12.0).reshape(3, 4)
    assert j2t(x[1:, ::2]).tolist() == [[4, 6], [8, 10]]
    assert j2t(x.T).tolist() == np.asarray(x).T.tolist()


# --- refused -------------------------------------------------------------------------------------------------------


def test_a_tracer_has_no_memory():
    with raises(ArgumentError, what=("`j2t`", "traced array"), got="float32[3]", remedy="`torch2jax`"):
        jax.jit(lambda x: t2j(j2t(x)))(jnp.ones(3))
    with pytest.raises(ArgumentError, match="traced array"):
        jax.make_jaxpr(lambda tree: t2j(tree_j2t(tree)["a"]))({"a": jnp.ones(3)})


@pytest.mark.parametrize("value", [np.ones(3), [1.0], 3, None, torch.ones(3)], ids=lambda v: type(v).__name__)
def test_j2t_takes_jax_arrays_only(value):
    with raises(ArgumentError, what="`j2t`", expected="jax.Array", got=type(value).__name__):
        j2t(value)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.ones(3), "ndarray"),
        (jnp.ones(3), "ArrayImpl"),
        (3.0, "float"),
        (torch.ones(3).to_sparse(), "torch.sparse_coo"),
        (torch.ones(3, device="meta"), "meta tensor"),
    ],
    ids=["numpy", "jax", "float", "sparse", "meta"],
)
def test_t2j_takes_dense_tensors_only(value, got):
    with raises(ArgumentError, what=("`t2j`", "dense"), expected="torch.Tensor", got=got):
        t2j(value)


def test_a_tensor_without_data_is_called_so():
    # Regression: "Got: torch.strided" is what was expected.
    with pytest.raises(ArgumentError, match="meta"):
        t2j(torch.ones(3, device="meta"))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")  # torch says so, once
def test_dtypes_of_one_side_only():
    with pytest.raises(DTypeError, match="int4"):
        j2t(jnp.zeros(3, jnp.int4))
    with pytest.raises(DTypeError, match="complex32"):
        t2j(torch.ones(3).to(torch.complex32))
    with pytest.raises(DTypeError, match="key"):
        j2t(jax.random.key(0))


# --- trees ---------------------------------------------------------------------------------------------------------


def test_trees_keep_their_containers_and_their_other_leaves():
    tree = {"w": jnp.ones(2), "meta": ("name", 3, None, [jnp.zeros(1)]), "o": OrderedDict(b=jnp.ones(1), a=2)}
    there = tree_j2t(tree)
    assert isinstance(there["w"], torch.Tensor)
    assert there["meta"][:3] == ("name", 3, None)
    assert isinstance(there["meta"][3][0], torch.Tensor)
    assert list(there["o"]) == ["b", "a"]
    back = tree_t2j(there)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert back["w"].unsafe_buffer_pointer() == tree["w"].unsafe_buffer_pointer()


def test_a_state_dict_is_a_tree():
    layer = torch.nn.Linear(3, 2)
    arrays = tree_t2j(layer.state_dict())
    np.testing.assert_array_equal(np.asarray(arrays["weight"]), layer.weight.detach().numpy())


def test_a_sharded_array_is_refused_leaf_by_leaf():
    # More than one device needs its own process: here only that one device is no obstacle.
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(jnp.arange(4.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("i")))
    assert j2t(x).tolist() == [0, 1, 2, 3]


# --- via -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["host", "cpu", "numpy"])
@pytest.mark.parametrize("name", SHARED)
def test_via_the_host_copies(name, via):
    x = ones(name)
    tensor = j2t(x, via=via)
    assert tensor.data_ptr() != x.unsafe_buffer_pointer()
    assert tensor.dtype == j2t(x).dtype
    assert torch.equal(tensor, j2t(x, via="dlpack"))
    array = t2j(tensor, via=via)
    assert array.unsafe_buffer_pointer() != tensor.data_ptr()
    assert array.dtype == x.dtype
    assert bool((array == x).all())


def test_via_of_trees():
    x = jnp.ones(256)
    assert tree_j2t({"a": [x]})["a"][0].data_ptr() == x.unsafe_buffer_pointer()
    assert tree_j2t({"a": [x]}, via="host")["a"][0].data_ptr() != x.unsafe_buffer_pointer()
    tensor = torch.ones(256)
    assert tree_t2j({"a": tensor, "b": 1}, "dlpack")["a"].unsafe_buffer_pointer() == tensor.data_ptr()
    assert tree_t2j({"a": tensor, "b": 1}, "host")["a"].unsafe_buffer_pointer() != tensor.data_ptr()


@pytest.mark.parametrize("convert", [lambda via: j2t(jnp.ones(3), via=via), lambda via: t2j(torch.ones(3), via=via)])
@pytest.mark.parametrize("via", ["gpu", "", None])
def test_an_unknown_via(convert, via):
    with raises(ArgumentError, what=re.compile(r"`via` of `\w+`"), expected=('"dlpack"', '"host"'), got=repr(via)):
        convert(via)
