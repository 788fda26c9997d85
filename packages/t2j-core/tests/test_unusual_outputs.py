"""Outputs that are unusual and right: views, conjugates, subclasses, shared memory, very many, none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import Simple, here, x
from t2j_core import OutputError, Size, torch2jax

pytestmark = pytest.mark.usefixtures("intact")

S = jax.ShapeDtypeStruct


class Loud(torch.Tensor):
    """A subclass that refuses every operation."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise PermissionError("no operation on Loud")


def test_a_subclass_with_memory_is_a_tensor():
    for f in (
        torch2jax(lambda t: (t + 1).as_subclass(Simple)),
        torch2jax(lambda t: (t + 1).as_subclass(Simple), output_shapes=Size(2, 3)),
        torch2jax(lambda t: torch.nn.Parameter(t + 1)),
        torch2jax(lambda t: torch.nn.Buffer(t + 1)),
    ):
        for call in (f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), here + 1)


def test_a_subclass_that_refuses_every_operation():
    f = torch2jax(lambda t: (t + 1).as_subclass(Loud), output_shapes=Size(2, 3))
    try:
        out = f(x)
    except (PermissionError, OutputError):
        return
    np.testing.assert_array_equal(out, here + 1)


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


@pytest.mark.thinned(3)
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
