"""Arguments that cannot be, which are typed errors; and those that are unusual and right."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import BadEq, Simple, Wrapper, check_whole, freed, here, x
from t2j_core import ArgumentError, DTypeError, j2t, t2j, torch2jax

pytestmark = pytest.mark.usefixtures("intact")

z = (here + 1j * here[::-1]).astype(np.complex64)


@pytest.mark.parametrize("leaf", [bytearray(b"a"), {1, 2}, slice(0, [1])])
def test_a_constant_that_is_not_hashable(leaf):
    f = torch2jax(lambda t, o: t)
    with pytest.raises(ArgumentError) as info:
        f(x, {"options": [0, leaf]})
    check_whole(info.value, "args[1]['options'][1]", type(leaf).__name__)
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
            check_whole(info.value, str(value.dtype))
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
    "freed": lambda: freed(torch.zeros(2, 3)),
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
        check_whole(info.value)


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda g: torch.func.grad(lambda r: g(r).sum())])
def test_an_argument_inside_a_level_of_functorch(transform):
    f = torch2jax(lambda t: t + 1)
    with pytest.raises(ArgumentError) as info:
        transform(lambda r: j2t(f(r)))(torch.zeros(2, 3))
    check_whole(info.value)


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
