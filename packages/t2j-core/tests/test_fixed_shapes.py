"""What an error advises where a shape depends on values is followed here, and works."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import raises
from t2j_core import DataDependentShapeError, torch2jax

x = jnp.array([3.0, 0.0, 1.0])
i = jnp.array([1, 2])
three = jnp.int32(3)


def masked_nonzero(x):
    places = x.nonzero()[:, 0]
    return F.pad(places, (0, len(x) - len(places)), value=-1)


# function, arguments, what is advised, the function that follows it, and its arguments if they are others
ADVICE = {
    "one_hot": (lambda i: F.one_hot(i), (i,), "num_classes=", lambda i: F.one_hot(i, num_classes=4)),
    "one_hot of a number": (lambda i: F.one_hot(i, -1), (three,), "num_classes=", lambda i: F.one_hot(i, 4)),
    "repeat_interleave": (
        lambda x, i: x[:2].repeat_interleave(i),
        (x, i),
        "output_size=",
        lambda x, i: x[:2].repeat_interleave(i, output_size=3),
    ),
    "repeat_interleave of repeats": (
        lambda i: torch.repeat_interleave(i),
        (i,),
        "output_size=",
        lambda i: torch.repeat_interleave(i, output_size=3),
    ),
    "repeat_interleave, masked": (
        lambda x, i: torch.repeat_interleave(x[:2], i, 0),
        (x, i),
        ("equally often", "return a mask"),
        lambda x, i: (x[:2].repeat_interleave(2), (torch.arange(2) < i[:, None]).flatten()),
    ),
    "nonzero": (lambda x: x.nonzero(), (x,), "nonzero_static", lambda x: torch.nonzero_static(x, size=2)),
    "nonzero of integers": (lambda i: i.nonzero(), (i,), "nonzero_static", lambda i: torch.nonzero_static(i, size=3)),
    "argwhere": (lambda x: torch.argwhere(x), (x,), "nonzero_static", lambda x: torch.nonzero_static(x, size=2)),
    "where": (lambda x: torch.where(x > 0), (x,), "nonzero_static", lambda x: torch.nonzero_static(x > 0, size=2)),
    "masked_select": (lambda x: x.masked_select(x > 0), (x,), "Pad the outputs", lambda x: x.where(x > 0, 0)),
    "a mask": (lambda x: x[x > 0], (x,), "Pad the outputs", masked_nonzero),
    "a mask of integers": (lambda i: i[i > 1], (i,), "Pad the outputs", lambda i: (i, i > 1)),
    "unique": (lambda i: i.unique(), (i,), "Pad the outputs", lambda i: F.pad(i.unique(), (0, 9))[:2]),
    "bincount": (lambda i: i.bincount(), (i,), "Pad the outputs", lambda i: i.bincount(minlength=3)[:3]),
    "a number": (
        lambda x, n: x[: int(n)],
        (x, three - 1),
        "args[1] as a Python number",
        lambda x, n: x[: int(n)],
        (x, 2),
    ),
    "item": (
        lambda x, n: x[: n.item()],
        (x, three - 1),
        ("args[1] as a Python number", "`n`, not `n.item()`"),
        lambda x, n: x[:n],
        (x, 2),
    ),
    "numbers": (
        lambda x, i: x.expand(*map(int, i), 3),
        (x, i),
        "args[1] as a tuple of Python numbers",
        lambda x, i: x.expand(*map(int, i), 3),
        (x, (1, 2)),
    ),
    "tolist": (
        lambda x, i: x.expand(*i.tolist(), 3),
        (x, i),
        ("args[1] as a tuple of Python numbers", "not `n.item()`"),
        lambda x, i: x.expand(*i, 3),
        (x, (1, 2)),
    ),
}


def as_torch(arguments):
    tensors = [torch.from_numpy(np.array(a)) if isinstance(a, jax.Array) else a for a in arguments]
    return [a.long() if getattr(a, "dtype", None) is torch.int32 else a for a in tensors]  # `one_hot` takes no other


@pytest.mark.parametrize("name", ADVICE)
def test_advice_is_followed(name):
    function, arguments, advice, mended, *others = ADVICE[name]
    with raises(DataDependentShapeError, what="values of its inputs (args[", remedy=advice) as error:
        jax.jit(torch2jax(function))(*arguments)
    assert ("as a tuple of Python" in str(error.value)) == (name in ("numbers", "tolist"))
    (others,) = others or (arguments,)
    static = [place for place, a in enumerate(others) if not isinstance(a, jax.Array)]
    got = jax.jit(torch2jax(mended), static_argnums=static)(*others)
    jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(np.asarray, mended(*as_torch(others))))
