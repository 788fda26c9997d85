"""A call works in the memory of the arrays, and runs only where its result is used."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import UNCHECKED
from t2j_core import Size, torch2jax

pytestmark = pytest.mark.usefixtures("nothing_escaped")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("shape", [(), (1,), (64, 64), (1 << 20,)], ids=str)
def test_an_argument_lies_in_the_buffer_of_the_array(wrap, shape):
    addresses = []
    f = wrap(torch2jax(lambda t: addresses.append(t.data_ptr()) or t + 1, output_shapes=Size(shape)))
    x = jnp.full(shape, 2.0)
    for _ in range(UNCHECKED):  # checked calls work on copies
        np.testing.assert_array_equal(f(x), np.full(shape, 3.0))
    assert addresses[-1] == x.unsafe_buffer_pointer()


def test_a_call_whose_result_is_unused_is_dropped():
    calls = []
    f = torch2jax(lambda t: calls.append(1) or t * 2, output_shapes=Size(3))

    @jax.jit
    def program(x):
        f(x)
        return f(x + 1)

    for count in (1, 2):
        np.testing.assert_array_equal(program(jnp.ones(3)), [4, 4, 4])
        assert len(calls) == count
