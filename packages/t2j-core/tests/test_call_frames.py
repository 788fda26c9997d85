"""Operands and results that XLA hands over are compared with those the call site was built for, before torch runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core._run.torch_fn import TorchFn
from t2j_core._signature.signature import Leaf, flat_signature
from t2j_core.extend import Options
from t2j_core.testing import assert_nothing_escaped

F32 = (np.dtype("float32"), torch.float32)
I32 = (np.dtype("int32"), torch.int32)
OPERANDS = (Leaf((2, 3), *F32), Leaf((4,), *I32))
RESULTS = (Leaf((2, 3), *F32), Leaf((), *I32))


def aval(text: str) -> jax.ShapeDtypeStruct:
    """For example `float32[2,3]`."""
    dtype, dims = text.rstrip("]").split("[")
    return jax.ShapeDtypeStruct(tuple(int(n) for n in dims.split(",") if n), dtype)


class Site:
    """A torch function whose compiled program may hand it anything."""

    def __init__(self) -> None:
        self.calls = 0
        options = Options(outputs="copy").for_calls()
        self.fn = TorchFn(self.run, flat_signature("site", OPERANDS, RESULTS), options, takes_operands=True)

    def run(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        return x + 1, y.sum().to(torch.int32)

    def __call__(self, operands: tuple[str, ...], results: tuple[str, ...], **attributes: object) -> list[jax.Array]:
        attributes = {"id": np.int64(self.fn.id), "call": "", **attributes}
        arrays = [jnp.ones(a.shape, a.dtype) for a in map(aval, operands)]
        call = jax.ffi.ffi_call("t2j_torch_call", [aval(r) for r in results])
        return jax.block_until_ready(jax.jit(lambda *xs: call(*xs, **attributes))(*arrays))


RIGHT = ("float32[2,3]", "int32[4]")
RIGHT_RESULTS = ("float32[2,3]", "int32[]")


def refused(site: Site, operands: tuple[str, ...], results: tuple[str, ...], **attributes: object) -> str:
    """The message for a call that does not reach torch."""
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL") as caught:
        site(operands, results, **attributes)
    assert site.calls == 0
    assert_nothing_escaped()
    return str(caught.value)


def test_the_right_frame_is_served():
    x, y = Site()(RIGHT, RIGHT_RESULTS)
    assert x.tolist() == [[2.0] * 3] * 2
    assert y == 4


WRONG_OPERANDS = {
    "a dtype of the same size": (("int32[2,3]", RIGHT[1]), 0, "f32[2,3]", "i32[2,3]"),
    "a dtype of another size": ((RIGHT[0], "int8[4]"), 1, "i32[4]", "i8[4]"),
    "another sign": ((RIGHT[0], "uint32[4]"), 1, "i32[4]", "u32[4]"),
    "a dtype without numbers": ((RIGHT[0], "bool[4]"), 1, "i32[4]", "bool[4]"),
    "a dtype that torch lacks": ((RIGHT[0], "int4[4]"), 1, "i32[4]", "dtype 21 of XLA[4]"),
    "a lower rank": (("float32[6]", RIGHT[1]), 0, "f32[2,3]", "f32[6]"),
    "a higher rank": ((RIGHT[0], "int32[4,1]"), 1, "i32[4]", "i32[4,1]"),
    "no rank": ((RIGHT[0], "int32[]"), 1, "i32[4]", "i32[]"),
    "the first dimension": (("float32[1,3]", RIGHT[1]), 0, "f32[2,3]", "f32[1,3]"),
    "the last dimension": (("float32[2,2]", RIGHT[1]), 0, "f32[2,3]", "f32[2,2]"),
    "dimensions exchanged": (("float32[3,2]", RIGHT[1]), 0, "f32[2,3]", "f32[3,2]"),
    "no elements": ((RIGHT[0], "int32[0]"), 1, "i32[4]", "i32[0]"),
    "both": (("int32[6]", "float32[5]"), 0, "f32[2,3]", "i32[6]"),
}


@pytest.mark.parametrize("case", WRONG_OPERANDS)
def test_an_operand_that_differs_is_named(case):
    operands, index, expected, got = WRONG_OPERANDS[case]
    message = refused(Site(), operands, RIGHT_RESULTS)
    assert f"operand {index} of a compiled program" in message
    assert f"Expected: {expected}\n" in message
    assert f"Got:      {got}\n" in message


WRONG_RESULTS = {
    "a dtype": (("int32[2,3]", RIGHT_RESULTS[1]), 0, "f32[2,3]", "i32[2,3]"),
    "a rank": ((RIGHT_RESULTS[0], "int32[1]"), 1, "i32[]", "i32[1]"),
    "a dimension": (("float32[2,4]", RIGHT_RESULTS[1]), 0, "f32[2,3]", "f32[2,4]"),
    "a smaller buffer": (("float32[1,3]", RIGHT_RESULTS[1]), 0, "f32[2,3]", "f32[1,3]"),
}


@pytest.mark.parametrize("case", WRONG_RESULTS)
def test_a_result_that_differs_is_named(case):
    results, index, expected, got = WRONG_RESULTS[case]
    message = refused(Site(), RIGHT, results)
    assert f"result {index} of a compiled program" in message
    assert f"Expected: {expected}\n" in message
    assert f"Got:      {got}\n" in message


@pytest.mark.parametrize("operands", [RIGHT[:1], (*RIGHT, "int32[4]"), ()])
def test_another_number_of_operands_is_refused(operands):
    message = refused(Site(), operands, RIGHT_RESULTS)
    assert "number of operands" in message
    assert f"Expected: 2\n  Got:      {len(operands)}\n" in message


@pytest.mark.parametrize("results", [RIGHT_RESULTS[:1], (*RIGHT_RESULTS, "int32[]")])
def test_another_number_of_results_is_refused(results):
    message = refused(Site(), RIGHT, results)
    assert "number of results" in message
    assert f"Expected: 2\n  Got:      {len(results)}\n" in message


def test_the_site_serves_the_right_program_after_a_wrong_one():
    site = Site()
    refused(site, RIGHT[::-1], RIGHT_RESULTS)
    assert site(RIGHT, RIGHT_RESULTS)[1] == 4


@pytest.mark.parametrize("attributes", [{"id": np.int32(1)}, {"id": "1"}, {"call": np.int64(1)}])
def test_attributes_of_another_type_are_refused(attributes):
    assert "without the attributes" in refused(Site(), RIGHT, RIGHT_RESULTS, **attributes)


def test_a_runtime_without_state_is_checked_too():
    from t2j_core._lowering.native import _native

    _native.set_newest_known_minor(-1)
    try:
        message = refused(Site(), ("float32[6]", RIGHT[1]), RIGHT_RESULTS)
    finally:
        _native.set_newest_known_minor(5)
    assert "operand 0" in message
