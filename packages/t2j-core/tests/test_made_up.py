"""Outputs inferred on data: shapes that follow from values are found out, and examples serve where they have values."""

from __future__ import annotations

import copy
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import raises
from t2j_core import DataDependentShapeError, OutputError, Size, last_error, torch2jax

line = jnp.arange(10.0)
block = jnp.arange(24.0).reshape(2, 3, 4)

FROM_VALUES = {
    "reshape": (lambda a, n: a.reshape(n, -1), line, 5),
    "reshape of a prime": (lambda a, n: a.reshape(n, -1), jnp.arange(7.0), 7),
    "reshape by two": (lambda a, n, m: a.reshape(n, m), line, 5, 2),
    "view by two of three": (lambda a, n, m: a.view(2, n, m), block, 6, 2),
    "reshape by an array": (lambda a, shape: a.reshape(tuple(shape.tolist())), line, jnp.array([2, 5])),
    "reshape by a part": (lambda a, n: a.view(n // 2, -1), line, 4),
    "permute by an array": (lambda a, axes: a.permute(tuple(axes)), block, jnp.array([2, 0, 1])),
    "zeros": (lambda n: torch.zeros(int(n)), 5),
    "slice": (lambda a, n: a[:n], line, 3),
    "arange": (lambda n: torch.arange(n), 4),
    "repeat": (lambda a, n: torch.repeat_interleave(a, n), line, 3),
    "repeats": (torch.repeat_interleave, line, jnp.arange(10)),
    "mask": (lambda a, mask: a[mask], line, line > 2),
    "negative ones": (lambda a: a[a < 0], line - 3),
    "where": (lambda a: torch.where(a > 0.5)[0], line),
    "chunk": (lambda a, n: a.chunk(int(n)), line, 3),
    "transpose": (lambda a, axis: a.transpose(0, int(axis)), block, 2),
    "sum over an axis": (lambda a, axis: a.sum(int(axis)), block, 1),
    "narrow": (lambda a, n: a.narrow(0, 0, n), line, 4),
    "one_hot": (lambda i, n: F.one_hot(i.long(), int(n)), jnp.array([0, 1, 2]), 4),
    "broadcast": (lambda a, shape: a.broadcast_to(tuple(shape.tolist())), line, jnp.array([4, 10])),
    "pad": (lambda a, n: F.pad(a, (int(n), 0)), line, 3),
    "a float": (lambda n: torch.zeros(int(n)), 3.5),
    "the largest": (lambda a: torch.zeros(int(a.max())), line),
    "NumPy": (lambda a, n: torch.from_numpy(np.resize(a.numpy(), int(n))), line, 4),
    "rare ones": (lambda a: a[a > 1000], line),
    "a list of tensors": (lambda a, n: [a] * int(n), line, 3),
    "two axes": (lambda a, i, j: a.transpose(i, j), block, 0, 2),
    "moved axis": (lambda a, i, j: a.movedim(int(i), int(j)), block, 0, 2),
    "three axes of two sizes": (lambda a, i, j, k: a.permute(int(i), int(j), int(k)), jnp.ones((2, 3, 2)), 0, 2, 1),
    "axes of two sizes": (lambda a, axes: a.permute(tuple(axes)), jnp.ones((2, 3, 2)), jnp.array([0, 2, 1])),
    "parts": (lambda a, sizes: torch.split(a, sizes.tolist()), line, jnp.array([2, 3, 5])),
    "many parts": (lambda a, sizes: torch.split(a, sizes.tolist()), jnp.arange(32.0), jnp.full(16, 2)),
    "offsets": (lambda a, i: [a[int(m) : int(n)] for m, n in itertools.pairwise(i)], line, jnp.array([0, 3, 10])),
    "a comparison": (lambda a, n: a[:2] if n > 3 else a, line, 5),
    "a comparison of ints": (lambda a, n: a[:2] if int(n) > 1000 else a, line, 2000),
    "a comparison of floats": (lambda a, s: a[:2] if s > 300.5 else a, line, 400.0),
    "equal": (lambda a, n: a[:2] if n == 41 else a, line, 41),
    "one of some": (lambda a, n: a[:2] if int(n) in (50, 60) else a, line, 60),
    "a global limit": (lambda a, n: a[:2] if n > LIMIT else a, line, 50),
    "an attribute": (lambda a, n: a[:2] if n > Limits.most else a, line, 90),
    "another function": (lambda a, n: a[:2] if is_large(n) else a, line, 200),
    "a sum": (lambda a: a[:2] if a.sum() > 1000 else a, line * 100),
    "one element": (lambda a: a[:2] if a[3] < -500 else a, line - 1000),
    "two flags": (lambda a, f, g: a[:2] if f and not g else a, line, True, False),
    "a tolerance": (lambda a, tolerance: halved(a, tolerance), line, 0.01),
    "an error that the function catches": (lambda a, n: a[: or_three(n)], line, 5),
    "interpolation": (lambda x, s: F.interpolate(x, scale_factor=float(s)), jnp.ones((1, 2, 8, 8)), 2.0),
    "unfold": (lambda a, n: a.unfold(0, int(n), 1), line, 3),
    "one_hot of as many": (F.one_hot, jnp.array([0, 1, 2])),
    "bincount": (torch.bincount, jnp.array([0, 1, 2])),
    "unique": (torch.unique, line),
    "an entry of a list": (lambda a, n: [a, a[:2]][n], line, 1),
}

LIMIT = 37


class Limits:
    most = 77


def is_large(n):
    return n > 123


def halved(a, tolerance):
    rows, size = [], 1.0
    while size > tolerance:
        size /= 2
        rows.append(a * size)
    return torch.stack(rows)


def or_three(n):
    try:
        return int(n)
    except Exception:
        return 3


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", FROM_VALUES)
def test_a_shape_that_follows_from_a_value_is_an_error_of_the_trace(name):
    function, *args = FROM_VALUES[name]
    f = torch2jax(function)
    for call in (jax.jit(f).lower, lambda *args: f(*map(jnp.asarray, args))):
        with raises(DataDependentShapeError, what="values of its inputs", lacks="output_shapes"):
            call(*args)


FIXED = {
    "roll": (lambda a, n: a.roll(int(n)), line, 3),
    "gather": (lambda a, i: torch.from_numpy(a.numpy()[i.numpy()]), block, jnp.array([0, 1])),
    "one of several": (lambda a, n: a[int(n)], block, 1),
    "branch": (lambda a: a if a.sum() > 0 else -a, line),
    "sort": (lambda a: torch.from_numpy(np.sort(a.numpy())), line),
    "sum over an axis of a square": (lambda a, axis: a.sum(int(axis)), line[:9].reshape(3, 3), 1),
    "parts that are summed": (
        lambda a, sizes: torch.stack([part.sum() for part in torch.split(a, sizes.tolist())]),
        *(line, jnp.array([2, 3, 5])),
    ),
    "heads": (lambda a, n: a.view(4, int(n), -1).softmax(-1).reshape(4, 12), jnp.ones((4, 12)), 3),
    "one valid value": (lambda a, n: only_17(a, n), line, 17),
    "a comparison": (lambda a, n: a * 2 if n > 3 else a * 3, line, 5),
    "an error that the function catches": (lambda a, n: a * or_three(n), line, 5),
    "until it is small": (lambda a, tolerance: halved(a, tolerance)[-1], line, 0.01),
    "permute a cube": (lambda a, axes: a.permute(tuple(axes)), block[:2, :2, :2], jnp.array([2, 0, 1])),
}


def only_17(a, n):
    if int(n) != 17:
        raise ValueError("not 17")
    return a * 2


@pytest.mark.parametrize("name", FIXED)
def test_a_value_that_decides_no_shape_is_free(name):
    function, *args = FIXED[name]
    expected = function(*(torch.from_numpy(np.array(a)) for a in args))
    np.testing.assert_array_equal(jax.jit(torch2jax(function))(*args), expected)


def test_the_error_names_the_argument_that_decides_and_what_to_do():
    f = torch2jax(lambda a, sizes, b, n: (a[: int(n)], b * sizes.sum()))
    with raises(DataDependentShapeError, what="(args[3]: i32[])", remedy="args[3] as a Python number"):
        f(line, jnp.array([1, 2]), block, jnp.int32(2))
    assert f(line, jnp.array([1, 2]), block, 2)[0].shape == (2,)
    f = torch2jax(lambda a, axes: a.permute(tuple(axes)))
    with raises(DataDependentShapeError, what="(args[1]: i32[3])", remedy="args[1] as a tuple of Python numbers"):
        f(block, jnp.array([2, 0, 1]))
    assert f(block, (2, 0, 1)).shape == (4, 2, 3)


def test_made_up_numbers_keep_no_loop_running():
    def up_to(a, n):
        for _ in range(int(n)):
            a = a + 1 if n < 4000 else torch.stack([a] * 1000).sum(0) / 1000
        return a

    assert torch2jax(up_to)(jnp.zeros(1000), jnp.int32(3))[0] == 3


def test_a_constant_that_only_real_data_changes():
    f = torch2jax(lambda t: bool(t.sum() > 1e9))
    assert f(line) is False
    with raises(OutputError, what=("constant", "differs"), expected="bool", got="another bool"):
        f(line + 1e9)


def larger(t):
    return t[t > 1e7]


def test_a_shape_that_only_real_data_shows_is_not_blamed_on_output_shapes():
    f = torch2jax(larger)
    assert f(line).shape == (0,)
    with raises(DataDependentShapeError, what="larger", expected="f32[0]", got="f32[10]", lacks="output_shapes"):
        f(line + 2e7)
    with pytest.raises(Exception, match="DataDependentShapeError"):
        jax.block_until_ready(jax.jit(f)(line + 2e7))
    assert isinstance(last_error(), DataDependentShapeError)
    with raises(OutputError, expected="f32[3]", got="f32[10]", remedy="`output_shapes`"):
        torch2jax(larger, output_shapes=Size(3))(line + 2e7)


# --- examples ------------------------------------------------------------------------------------------------------


def only_near_two(t):
    if abs(float(t.mean()) - 2) > 0.1:
        raise ValueError("out of range")
    return t * 2


EXAMPLES = {
    "tensor": torch.full((3,), 2.0),
    "wide tensor": torch.full((3,), 2.0, dtype=torch.float64),
    "array": jnp.full(3, 2.0),
    "NumPy": np.full(3, 2, np.float32),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_with_values_serve_inference(name):
    f = torch2jax(only_near_two, EXAMPLES[name])
    for other in (f, copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        np.testing.assert_array_equal(other(jnp.full(3, 2.05)), np.full(3, 4.1, np.float32))
    assert "inferred by runs on examples and made-up data" in f.explain()
    with pytest.raises(ValueError, match="out of range"):
        jax.jit(f)(jnp.full(4, 2.0))  # for other shapes values are made up


def test_an_example_without_values_beside_one_with():
    def function(t, n):
        if int(n) != 17:
            raise ValueError("not with that")
        return t * 2

    f = torch2jax(function, jax.ShapeDtypeStruct((3,), jnp.float32), np.int32(17))
    np.testing.assert_array_equal(f(jnp.ones(3), jnp.int32(17)), np.full(3, 2))


def test_an_example_is_not_changed_by_inference():
    def function(t):
        t.numpy()[:] += 1
        return t.clone()

    example = torch.ones(3)
    torch2jax(function, example)
    assert example.tolist() == [1, 1, 1]


def test_an_example_in_bfloat16_and_one_without_elements():
    def function(t, empty):
        if float(t[0]) != 2:
            raise ValueError("out of range")
        return t * 2, empty

    f = torch2jax(function, jnp.full(3, 2, jnp.bfloat16), jnp.zeros((0, 2)))
    assert f(jnp.full(3, 2, jnp.bfloat16), jnp.zeros((0, 2)))[0].dtype == jnp.bfloat16


def test_a_shape_that_follows_from_the_values_of_an_example():
    with pytest.raises(DataDependentShapeError):
        torch2jax(lambda t: t[t > 2], torch.arange(5.0))


def test_further_runs_together_do_little_work():
    done = 0

    def function(t, n):
        nonlocal done
        int(n)
        for _ in range(10_000):
            t = t + 1
            done += 1
        return t

    jax.eval_shape(torch2jax(function), jnp.ones(2), jnp.int32(1))
    assert 30_000 < done <= 50_000  # three runs that have to be made, and the allowance
