"""The single-device examples of the README of `wrap_torch2jax` 0.8.0, run as they are with another import line."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp

IMPORTS = """
import functools
import copy
import torch
import torch.nn as nn
import jax
from jax import numpy as jnp
import numpy as np
from wrap_torch2jax import torch2jax, torch2jax_with_vjp
from wrap_torch2jax import Size, dtype_t2j, dtype_j2t, tree_t2j, t2j, j2t
"""

USAGE = """
def torch_fn(a, b):
    return a + b

shape = (10, 2)
a, b = torch.randn(shape), torch.randn(shape)

# without output_shapes, torch_fn **will be evaluated once** to infer outputs
jax_fn = torch2jax(torch_fn, a, b)
variants = [jax_fn]

# with output_shapes, torch_fn will NOT be evaluated
jax_fn = torch2jax(torch_fn, a, b, output_shapes=Size(a.shape))
variants.append(jax_fn)

# you can specify the whole input and output structure without instantiating the tensors
jax_fn = torch2jax(
    torch_fn,
    jax.ShapeDtypeStruct(a.shape, dtype_t2j(a.dtype)),
    jax.ShapeDtypeStruct(b.shape, dtype_t2j(b.dtype)),
    output_shapes=jax.ShapeDtypeStruct(a.shape, dtype_t2j(a.dtype)),
)

key = jax.random.key(0)
device = jax.devices("cuda")[0]  # both CPU and CUDA are supported
a = jax.device_put(jax.random.normal(key, shape), device)
b = jax.device_put(jax.random.normal(key, shape), device)

# call the no-copy torch function
out = jax_fn(a, b)
eager = out

# call the no-copy torch function **under JIT**
out = jax.jit(jax_fn)(a, b)

# gradients work!
g_fn = jax.grad(lambda a, b: jnp.sum(jax_fn(a, b)), argnums=(0, 1))
ga, gb = g_fn(a, b)
"""

MULTIPLE = """
def torch_fn(a, b):
    layer = torch.nn.Linear(2, 20).to(a)
    return a + b, torch.norm(a), layer(a * b)

shape = (10, 2)
a, b = torch.randn(shape), torch.randn(shape)
jax_fn = torch2jax(torch_fn, a, b)

key = jax.random.key(0)
device = jax.devices("cuda")[0]
a = jax.device_put(jax.random.normal(key, shape), device)
b = jax.device_put(jax.random.normal(key, shape), device)

x, y, z = jax_fn(a, b)
x, y, z = jax.jit(jax_fn)(a, b)
"""

GRADIENTS = """
def torch_fn(a, b):
  return torch.nn.MSELoss()(a, b)

shape = (6,)
xt, yt = torch.randn(shape), torch.randn(shape)

# depth=2 is the default, allowing up to 2nd-order differentiation
jax_fn = torch2jax(torch_fn, xt, yt)

# derivatives are taken using PyTorch autodiff
g_fn = jax.grad(jax_fn, argnums=(0, 1))
x, y = jnp.array(np.random.randn(*shape)), jnp.array(np.random.randn(*shape))

print(g_fn(x, y))

# JIT works too
print(jax.jit(g_fn)(x, y))
"""

FORWARD_ONLY = """
jax_fn = torch2jax(torch_fn, xt, yt, depth=0)  # no VJP, forward-only
"""

SHAPES = """
xt_10, yt_10 = torch.randn(10), torch.randn(10)
x_20, y_20 = jnp.arange(20.0), jnp.ones(20)
jax_fn = torch2jax(torch_fn, xt_10, yt_10)  # wrapped for shape (10,)

# calling with shape (20,) works - the wrapper is automatically re-created and cached
first = jax_fn(x_20, y_20)

# subsequent calls with shape (20,) reuse the cached wrapper
second = jax_fn(x_20, y_20)
"""

INSIDE_JIT = """
def torch_fn(a, b):
    return a * b + a

a, b = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))

@jax.jit
def compute(a, b, c):
    d = torch2jax(
        torch_fn,
        jax.ShapeDtypeStruct(a.shape, dtype_t2j(a.dtype)),
        jax.ShapeDtypeStruct(b.shape, dtype_t2j(b.dtype)),
        output_shapes=jax.ShapeDtypeStruct(a.shape, dtype_t2j(a.dtype)),
    )(a, b)
    return d - c

print(compute(a, b, a))
"""


@pytest.fixture(autouse=True)
def default_promotion():
    """These programs mix dtypes as JAX allows by default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(*programs: str) -> dict:
    """The names that the programs define, with only the name of the package and of the device changed."""
    text = "\n".join((IMPORTS, *programs)).replace("wrap_torch2jax", "t2j_autodiff").replace('"cuda"', '"cpu"')
    names: dict = {}
    exec(compile(text, "<README of wrap_torch2jax>", "exec"), names)
    return names


def test_usage():
    names = run(USAGE)
    expected = np.asarray(names["a"] + names["b"])
    np.testing.assert_allclose(names["out"], expected, rtol=1e-6)
    np.testing.assert_allclose(names["eager"], expected, rtol=1e-6)
    for jax_fn in names["variants"]:
        np.testing.assert_allclose(jax.jit(jax_fn)(names["a"], names["b"]), expected, rtol=1e-6)
    for gradient in (names["ga"], names["gb"]):
        np.testing.assert_array_equal(gradient, np.ones((10, 2)))


def test_declared_outputs_are_not_evaluated():
    names = run(
        "ran = []\ndef torch_fn(a):\n    ran.append(1)\n    return a + 1\n"
        "jax_fn = torch2jax(torch_fn, torch.ones(3), output_shapes=Size((3,)))\n"
    )
    assert not names["ran"]
    jax.eval_shape(names["jax_fn"], jnp.ones(3))
    assert not names["ran"]
    np.testing.assert_array_equal(names["jax_fn"](jnp.ones(3)), np.full(3, 2.0))
    assert names["ran"] == [1]


def test_multiple_outputs():
    names = run(MULTIPLE)
    np.testing.assert_allclose(names["x"], names["a"] + names["b"], rtol=1e-6)
    np.testing.assert_allclose(names["y"], jnp.linalg.norm(names["a"]), rtol=1e-5)
    assert names["z"].shape == (10, 20)


def test_gradients(capsys):
    names = run(GRADIENTS)
    x, y = names["x"], names["y"]
    for gradient, expected in zip(names["g_fn"](x, y), ((x - y) / 3, (y - x) / 3), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    printed = re.findall(r"Array", capsys.readouterr().out)
    assert len(printed) == 4
    by_jacobians = jax.jacobian(jax.jacobian(names["jax_fn"]))(x, y)
    np.testing.assert_allclose(by_jacobians, np.eye(6) / 3, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.hessian(names["jax_fn"])(x, y), np.eye(6) / 3, rtol=1e-5, atol=1e-7)


def test_forward_only():
    names = run(GRADIENTS, FORWARD_ONLY)
    x = jnp.arange(6.0)
    assert float(names["jax_fn"](x, x + 1)) == 1
    with pytest.raises(Exception, match="depth=0"):
        jax.grad(names["jax_fn"])(x, x + 1)


def test_changing_shapes():
    names = run(GRADIENTS, SHAPES)  # without the warning that `wrap_torch2jax` gave
    expected = np.mean((np.arange(20.0) - 1) ** 2)
    np.testing.assert_allclose(names["first"], expected, rtol=1e-6)
    np.testing.assert_allclose(names["second"], expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(names["jax_fn"]))(names["x_20"], names["y_20"])
    np.testing.assert_allclose(gradient, (names["x_20"] - 1) / 10, rtol=1e-5)
    assert float(names["jax_fn"](jnp.zeros((2, 5)), jnp.ones((2, 5)))) == 1


def test_wrapped_inside_jit(capsys):
    names = run(INSIDE_JIT)
    a, b = names["a"], names["b"]
    for _ in range(2):
        np.testing.assert_array_equal(names["compute"](a, b, a), a * b)
    gradient = jax.grad(lambda a: names["compute"](a, b, a).sum())(a)
    np.testing.assert_array_equal(gradient, b)
    assert "[[0. 1. 2.]" in capsys.readouterr().out


def test_the_model_of_the_multi_device_example_on_one_device():
    names = run(
        """
def _setattr(mod, key, delim: str = "."):
    if delim not in key:
        setattr(mod, key, None)
    else:
        key, key_remaining = key.split(delim, 1)
        _setattr(getattr(mod, key), key_remaining, delim=delim)


def _strip_model(model):
    for key in dict(model.named_parameters()).keys():
        _setattr(model, key, delim=".")

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 16))
reference = copy.deepcopy(model)
params = dict(model.named_parameters())
[p.requires_grad_(False) for p in params.values()]
_strip_model(model)

def call_model_torch(x, params):
    ys = []
    for _ in range(3):
        local_model_skeleton = copy.deepcopy(model)
        ys.append(torch.func.functional_call(local_model_skeleton, params, x))
    return sum(ys)

params = jax.tree.map(lambda p: jax.device_put(p, jax.devices("cuda")[0]), tree_t2j(params))
x = jax.random.normal(jax.random.key(0), (8, 64))

@jax.jit
def fwd_fn(x, params):
    return torch2jax(call_model_torch, x, params, output_shapes=x[:, :16])(x, params)

y = fwd_fn(x, params)
"""
    )
    x = torch.from_numpy(np.array(names["x"]))
    expected = 3 * names["reference"](x)
    np.testing.assert_allclose(names["y"], expected.detach(), rtol=1e-5, atol=1e-5)
    gradients = jax.grad(lambda p: (names["fwd_fn"](names["x"], p) ** 2).sum())(names["params"])
    (expected**2).sum().backward()
    for name, p in names["reference"].named_parameters():
        np.testing.assert_allclose(gradients[name], p.grad, rtol=1e-4, atol=1e-3)


OLD = {
    "use_torch_vjp": {"use_torch_vjp": False},
    "use_zeros": {"use_zeros": False},
    "vmap_method": {"vmap_method": "expand_dims"},
    "depth": {"depth": 3},
    "nondiff_argnums of int": {"nondiff_argnums": 1},
    "nondiff_argnums": {"nondiff_argnums": (1,)},
    "nondiff_mask": {"nondiff_mask": [False, True]},
}


@pytest.mark.parametrize("name", OLD)
def test_the_deprecated_function_with_its_options(name):
    with pytest.warns(DeprecationWarning, match="torch2jax_with_vjp"):
        names = run(
            f"f = torch2jax_with_vjp(lambda a, b: (a**2 * b).sum(-1), torch.ones(3), torch.ones(3), **{OLD[name]!r})"
        )
    a, b = jnp.arange(3.0), jnp.ones(3)
    ga, gb = jax.jit(jax.grad(names["f"], (0, 1)))(a, b)
    np.testing.assert_array_equal(ga, 2 * a)
    np.testing.assert_array_equal(gb, np.zeros(3) if name.startswith("nondiff") else a**2)
    batch = jax.vmap(names["f"], (0, None))(jnp.stack([a, 2 * a]), b)
    np.testing.assert_array_equal(batch, [5, 20])


def test_dtypes_and_trees():
    names = run(
        "tree = tree_t2j({'w': torch.arange(3.0), 'i': [torch.arange(2)]})\n"
        "back = j2t(tree['w'])\nthere = t2j(torch.ones(2))\npair = dtype_j2t(jnp.float32), dtype_t2j(torch.bfloat16)"
    )
    assert names["tree"]["w"].dtype == jnp.float32
    assert torch.equal(names["back"], torch.arange(3.0))
    assert names["pair"] == (torch.float32, jnp.dtype(jnp.bfloat16))
