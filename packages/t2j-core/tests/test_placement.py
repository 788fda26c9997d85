"""Results that XLA places over operands, and results that it places elsewhere than `mutable_argnums` says.

XLA on GPUs does both since jaxlib 0.11: it fuses a call with the slices that it reads and writes. These tests make such
programs on the CPU: they bind the custom call with other aliases than its function was built with.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core._run.lending import Handover
from t2j_core._run.torch_fn import TorchFn
from t2j_core._signature.signature import Leaf, flat_signature
from t2j_core.extend import Options
from t2j_core.testing import assert_nothing_escaped

N = 1 << 20  # elements: with `outputs="auto"`, operations write results of this size where XLA wants them
SMALL = 64


def array(n):
    return jnp.arange(n, dtype=jnp.float32) - n // 2


class Program:
    """A compiled call of a function of one array; `in_place` says where XLA places the result."""

    def __init__(self, function, n, *, in_place, outputs="copy", is_mutable=False):
        leaf = Leaf((n,), np.dtype("float32"), torch.float32)
        options = Options(outputs=outputs).for_calls()
        mutable = {"handovers": (Handover.MUTABLE,), "aliases": {0: 0}} if is_mutable else {}
        signature = flat_signature("f", (leaf,), (leaf,))
        self.fn = TorchFn(function, signature, options, takes_operands=True, **mutable)
        call = jax.ffi.ffi_call(
            "t2j_torch_call",
            jax.ShapeDtypeStruct((n,), jnp.float32),
            input_output_aliases={0: 0} if in_place else {},
        )
        run = lambda x: call(x, id=np.int64(self.fn.id), call="")
        self.run = jax.jit(run, donate_argnums=0 if in_place else ())

    def __call__(self, x):
        return jax.block_until_ready(self.run(x))


def flipped(x):
    return (torch.flip(x, (0,)),)


def flipped_into(x, out):
    """Writes the result in two steps, and reads the operand between them."""
    out[0].zero_()
    return (out[0].add_(x.flip(0)),)


@pytest.mark.parametrize("n", [SMALL, N])
@pytest.mark.parametrize(
    ("outputs", "function"),
    [("copy", flipped), ("auto", flipped), ("out", flipped_into)],
    ids=["copy", "auto", "out"],
)
def test_a_result_over_an_operand_does_not_change_what_the_function_reads(n, outputs, function):
    call = Program(function, n, in_place=True, outputs=outputs)
    for _ in range(5):  # the first calls are checked; the others lend the memory itself
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(call(array(n)), array(n)[::-1])
    assert_nothing_escaped()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_mutable_argument_is_written_only_where_its_result_is(in_place):
    seen = []

    def double(x):
        seen.append(x.data_ptr())
        return (x.mul_(2),)

    call = Program(double, SMALL, in_place=in_place, is_mutable=True)
    for _ in range(5):
        x, expected = array(SMALL), np.asarray(array(SMALL))
        address = x.unsafe_buffer_pointer()
        np.testing.assert_array_equal(call(x), expected * 2)
        if not in_place:
            np.testing.assert_array_equal(x, expected)
        assert (seen[-1] == address) == in_place
    assert_nothing_escaped()
