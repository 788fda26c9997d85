"""Operands and results on a GPU: values, escapes, writes, what lies on a different device."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import PerformanceWarning, T2jWarning, torch2jax

from . import runtime
from .executables import OTHER, STREAM, XlaError, copy, device_memory, executable, ones
from .programs import Program

X = device_memory(np.arange(6, dtype=np.float32).reshape(2, 3))
LARGE = 1 << 25  # elements: results of this size are written into memory of XLA


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)], ids=str)
def test_empty_arrays(shape):
    x = ones(*shape)
    (result,) = executable(copy, [x], [x])([x])
    assert result.shape == shape
    assert runtime.take().launches() == ()


def test_results_of_many_dtypes_are_those_of_the_function():
    arrays = [ones(3, 5, dtype=dtype) for dtype in ("float16", "float32", "uint32", "int8", "int32", "bool")]
    call = executable(lambda *tensors: tuple(t[0] for t in tensors), arrays, [a[0] for a in arrays])
    results = call(arrays)
    assert [(r.shape, r.dtype) for r in results] == [((5,), a.dtype) for a in arrays]


def test_a_view_of_an_operand_is_copied():
    call = executable(lambda t: (t[1], t.reshape(6)), [X], [X[1], X.reshape(6)])
    second, flat = call([X])
    assert runtime.take().launches().of("cudaMemcpyAsync", "cudaLaunchKernel")
    assert (second.shape, flat.shape) == ((3,), (6,))


@pytest.mark.parametrize(
    ("moved", "text"), [(lambda t: t.cpu(), "cpu"), (lambda t: t.to("cuda:1"), "cuda:1")], ids=["cpu", "other GPU"]
)
def test_a_result_on_a_different_device_is_an_error(moved, text):
    with pytest.raises(XlaError, match=r"to\('cuda:0'\)") as caught:
        executable(lambda t: (moved(t),), [X], [X])([X])
    assert text in str(caught.value)


def test_an_operand_lies_on_the_device_of_the_call():
    seen = []
    call = executable(lambda t: (seen.append((t.device, torch.cuda.current_device())), t.clone())[1:], [X], [X])
    for device in (0, 1, 0):
        call([X], device=device, stream=OTHER)
    assert seen == [(torch.device("cuda", device), device) for device in (0, 1, 0)]


def test_an_argument_that_is_written_is_a_copy():
    source = torch.full((2, 3), 7.0).to("cuda")
    call = executable(lambda t: (t.copy_(source),), [X], [X])
    before = X.copy()
    with pytest.warns(PerformanceWarning):
        (first,) = call([X])
    (second,) = call([X])
    assert first.tolist() == second.tolist() == [[7.0] * 3] * 2
    np.testing.assert_array_equal(X, before)


def test_a_write_that_torch_does_not_count_is_found_without_waiting():
    call = executable(copy, [X], [X])
    for _ in range(3):
        call([X])
    runtime.compares_as(False)
    call([X])  # a checked call, which does not wait for what the GPU finds out
    assert runtime.take().of("cudaEventQuery") == ()
    with pytest.warns(T2jWarning, match="in a way that PyTorch does not count"):
        call([X])


def test_an_argument_that_is_kept_has_memory_of_its_own():
    kept = []
    call = executable(lambda t: (kept.append(t), t.clone())[1:], [X], [X])
    x = X.copy()
    with pytest.warns(T2jWarning, match="clone"):
        call([x := device_memory(x)])
    x[...] = -1
    for i in range(3):
        call([device_memory(np.full_like(X, i))])
    assert {call.stream for call in runtime.take().launches()} == {STREAM}
    pointers = {t.data_ptr() for t in kept}
    assert x.ctypes.data not in pointers
    assert len(pointers) == 4
    assert [t.cpu().tolist() for t in kept] == [X.tolist(), *([[float(i)] * 3] * 2 for i in range(3))]


def test_an_argument_may_not_be_kept_where_that_is_asked_for():
    kept = []
    call = executable(lambda t: (kept.append(t), t.clone())[1:], [X], [X], arguments="check")
    with pytest.raises(XlaError, match="beyond the call"):
        call([X])


def test_donated_memory_is_written_in_place():
    source = torch.full((64,), 7.0).to("cuda")
    f = torch2jax(lambda t: t.copy_(source), mutable_argnums=0)
    call = Program(f, jnp.ones(64)).executables[0]
    x = ones(64)
    for _ in range(3):
        runtime.take()
        (result,) = call([x])
        assert result is x
        assert x.tolist() == [7.0] * 64
    assert runtime.take().launches().names() == ["cudaMemcpyAsync"]


def test_record_stream_has_no_effect_on_an_argument():
    """As `docs/gpus.md` says: torch's allocator does not know the memory, and nothing is noted."""
    side = torch.cuda.Stream()
    call = executable(lambda t: (t.record_stream(side), t.clone())[1:], [X], [X])
    for _ in range(3):
        runtime.take()
        call([X])
    assert side.cuda_stream not in {record.stream for record in runtime.take()}


def test_jax_inside_a_function_is_refused_in_the_first_call():
    with pytest.raises(XlaError, match="calls JAX"):
        executable(lambda t: (t * float(jnp.sin(1.0)),), [X], [X])([X])


@pytest.mark.filterwarnings("error::t2j_core.T2jWarning")
def test_a_large_result_that_the_function_keeps_is_no_error():
    """Fault A: the second call raised `TensorEscapeError`, because results were written into memory of XLA."""
    last = {}
    large = ones(LARGE)

    def keeps(t):
        last["y"] = y = torch.sin(t)
        return (y,)

    call = executable(keeps, [large], [large], outputs="auto")
    for _ in range(4):
        (result,) = call([large])
        assert last["y"].data_ptr() != result.ctypes.data
        assert "copied" in call.fn.target.explain(0)


def test_a_large_result_is_written_in_place():
    large, seen = ones(LARGE), []
    call = executable(lambda t: (y := torch.sin(t), seen.append(y.data_ptr()))[:1], [large], [large], outputs="auto")
    results = [call([large])[0] for _ in range(3)]
    assert [inside == result.ctypes.data for inside, result in zip(seen, results, strict=True)] == [False, True, True]
