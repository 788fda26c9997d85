"""What a function that is differentiated sees of it, and that its value and its gradient belong together.

The judge is PyTorch, one example at a time, with `requires_grad` set on what is differentiated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import agree
from t2j_autodiff import torch2jax
from torch import nn

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


class AsksInside(nn.Module):
    def forward(self, x):
        y = x.sin()
        return (y * 2 if y.requires_grad else y * 3).sum()


def hooked(x):
    y = x * 1
    if y.requires_grad:
        y.register_hook(lambda g: 2 * g)
        return (y * y).sum()
    return (y * y * y).sum()


def where_it_is_off(x):
    with torch.no_grad():
        y = x.cos() if x.requires_grad else x.sin()
    return (x * y).sum()


def is_new(x):
    return x.requires_grad and x.is_leaf and x.grad_fn is None


class Needs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2 if ctx.needs_input_grad[0] else x * 5

    @staticmethod
    def backward(ctx, g):
        return g * 2


ASKING = {
    "requires_grad": lambda x: (x.sin() if x.requires_grad else x.cos()).sum(),
    "is_leaf": lambda x: (x.sin() if x.requires_grad and x.is_leaf else x.cos()).sum(),
    "grad_fn": lambda x: (x.sin() if x.requires_grad and x.grad_fn is None else x.cos()).sum(),
    "grad_fn of a result": lambda x: ((x * 2).sin() if (x * 2).grad_fn is not None else x.cos()).sum(),
    "grad mode": lambda x: (x.sin() if torch.is_grad_enabled() else x.cos()).sum(),
    "inside a module": AsksInside(),
    "hook": hooked,
    "no_grad": where_it_is_off,
    "grad mode that was on": lambda x: (x.sin() if torch.is_grad_enabled() and (x + 1).requires_grad else x).sum(),
    "needs_input_grad": lambda x: Needs.apply(x).sum(),
    "a large function": lambda x: sum((x * k).sin().sum() for k in range(20)) * (1 if x.requires_grad else 2),
    "a large function of a leaf": lambda x: sum((x * k).sin().sum() for k in range(20)) * (1 if is_new(x) else 2),
    "through numpy": lambda x: (x * (float(x.detach().numpy().max()) if x.requires_grad else 7.0)).sum(),
    "a function that never asks": lambda x: x.sin().sum(),
    "inference mode": lambda x: (x * constant(x)).sum(),
}

OF_LEAVES = {"is_leaf", "grad_fn", "a large function of a leaf"}


def constant(x):
    with torch.inference_mode():
        y = x.sin() if x.requires_grad else x.cos()
    return y.tolist()[0] if y.dim() else float(y)


def native(f, x):
    """Value and gradient of each example."""
    values, grads = [], []
    for row in x:
        leaf = torch.from_numpy(row.copy()).requires_grad_()
        value = f(leaf)
        grads.append(torch.autograd.grad(value, leaf)[0].numpy())
        values.append(value.item())
    return np.array(values), np.array(grads)


def one_by_one(route):
    def run(f, x):
        values, grads = zip(*(route(f, row) for row in x), strict=True)
        return np.array(values), np.array(grads)

    return run


def primal_of_jvp(f, x):
    value, _ = jax.jvp(f, (x,), (jnp.ones_like(x),))
    return value, jax.grad(f)(x)


def primal_of_linearize(f, x):
    value, _ = jax.linearize(f, x)
    return value, jax.grad(f)(x)


def forward_of_vjp(f, x):
    value, pull = jax.vjp(f, x)
    return value, pull(jnp.ones_like(value))[0]


def in_scan(f, x):
    def step(total, row):
        value, grad = jax.value_and_grad(f)(row)
        return total, (value, grad)

    return jax.lax.scan(step, 0.0, x)[1]


def batch_inside(f, x):
    values = lambda x: (lambda y: (y.sum(), y))(jax.vmap(f)(x))
    (_, each), grads = jax.value_and_grad(values, has_aux=True)(x)
    return each, grads


def scanned_batch(f, x):
    def loss(x):
        _, values = jax.lax.scan(lambda c, row: (c, f(row)), 0.0, x)
        return values.sum(), values

    (_, values), grads = jax.value_and_grad(loss, has_aux=True)(x)
    return values, grads


ROUTES = {
    "value_and_grad": one_by_one(lambda f, x: jax.value_and_grad(f)(x)),
    "jit": one_by_one(lambda f, x: jax.jit(jax.value_and_grad(f))(x)),
    "vjp": one_by_one(forward_of_vjp),
    "jvp": one_by_one(primal_of_jvp),
    "jit of jvp": one_by_one(lambda f, x: jax.jit(lambda x: primal_of_jvp(f, x))(x)),
    "linearize": one_by_one(primal_of_linearize),
    "checkpoint": one_by_one(lambda f, x: jax.value_and_grad(jax.checkpoint(f))(x)),
    "jit of checkpoint": one_by_one(lambda f, x: jax.jit(jax.value_and_grad(jax.checkpoint(f)))(x)),
    "vmap": lambda f, x: jax.vmap(jax.value_and_grad(f))(x),
    "jit of vmap": lambda f, x: jax.jit(jax.vmap(jax.value_and_grad(f)))(x),
    "vmap of jit": lambda f, x: jax.vmap(jax.jit(jax.value_and_grad(f)))(x),
    "vmap of jvp": lambda f, x: jax.vmap(lambda x: primal_of_jvp(f, x))(x),
    "vmap of checkpoint": lambda f, x: jax.vmap(jax.value_and_grad(jax.checkpoint(f)))(x),
    "batch inside": batch_inside,
    "jit of a batch inside": lambda f, x: jax.jit(lambda x: batch_inside(f, x))(x),
    "scan": in_scan,
    "scan inside": scanned_batch,
    "jit of scan": lambda f, x: jax.jit(lambda x: in_scan(f, x))(x),
}
# Tracing takes long, and all combinations would: every function on some routes, and every route with some functions.
TRACED = ["jit", "jvp", "checkpoint", "jit of vmap"]
SOME = ["requires_grad", "hook", "a large function of a leaf", "through numpy"]
COMBINATIONS = [
    *(
        (name, route, residuals)
        for residuals in ("auto", "recompute")
        for name in ASKING
        for route in ROUTES
        if name in SOME or route in ("value_and_grad", "jit of vmap")
    ),
    *((name, route, "graph") for name in ASKING for route in TRACED if name in SOME or route == "jit"),
]


def is_no_leaf(name, route):
    """Whether an example is no leaf, because its batch is differentiated as a whole."""
    return name in OF_LEAVES and "inside" in route and "scan" not in route


def close(found, wanted, tolerance=1e-5):
    agree(found, wanted, tolerance)


@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")
@pytest.mark.thinned(11)
@pytest.mark.parametrize(("name", "route", "residuals"), [c for c in COMBINATIONS if not is_no_leaf(*c[:2])])
def test_value_and_gradient_belong_together(name, route, residuals):
    wanted = native(ASKING[name], X)
    f = torch2jax(ASKING[name], residuals=residuals)
    for _ in range(2):  # the first run is watched
        close(ROUTES[route](f, jnp.asarray(X)), wanted)


# --- attention, which takes another way where nothing requires a gradient ---------------------------------------------

LENGTH, WIDTH = 5, 8
PADDING = torch.tensor([[False, False, False, True, True]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(LENGTH)


def seeded(make, **options):
    torch.manual_seed(0)
    module = make(**options).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return module


def layer(**options):
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.0, **options)


def frozen(module):
    return module.requires_grad_(False)


LAYER, ENCODER = seeded(layer), nn.TransformerEncoder(seeded(layer), 2).eval()
FIRST = seeded(layer, norm_first=True)
ATTENTION = seeded(lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True))
FROZEN = frozen(nn.TransformerEncoder(seeded(layer), 2).eval())
FROZEN_ATTENTION = frozen(seeded(lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True)))
TEXT = torch.from_numpy(np.random.default_rng(1).standard_normal((1, LENGTH, WIDTH)).astype(np.float32))
WEIGHT = torch.arange(LENGTH * WIDTH).reshape(LENGTH, WIDTH) / 40


def total(y):
    return (y[0].sin() * WEIGHT).sum()


ATTENDING = {
    "layer": lambda x: total(LAYER(x[None])),
    "layer, padding": lambda x: total(LAYER(x[None], src_key_padding_mask=PADDING)),
    "layer, causal": lambda x: total(LAYER(x[None], src_mask=CAUSAL, is_causal=True)),
    "layer, both": lambda x: total(LAYER(x[None], src_mask=CAUSAL, src_key_padding_mask=PADDING.float() * -1e9)),
    "layer, norm first": lambda x: total(FIRST(x[None], src_key_padding_mask=PADDING)),
    "encoder": lambda x: total(ENCODER(x[None])),
    "encoder, padding": lambda x: total(ENCODER(x[None], src_key_padding_mask=PADDING)),
    "encoder, causal": lambda x: total(ENCODER(x[None], mask=CAUSAL, is_causal=True)),
    "encoder, both": lambda x: total(ENCODER(x[None], mask=CAUSAL < 0, src_key_padding_mask=PADDING)),
    "attention": lambda x: total(ATTENTION(x[None], x[None], x[None])[0]),
    "attention, padding": lambda x: total(ATTENTION(x[None], x[None], x[None], key_padding_mask=PADDING)[0]),
    "attention, no weights": lambda x: total(ATTENTION(x[None], x[None], x[None], need_weights=False)[0]),
    "frozen encoder": lambda x: total(FROZEN(x[None], src_key_padding_mask=PADDING)),
    "frozen encoder of a constant": lambda x: total(FROZEN(TEXT, src_key_padding_mask=PADDING) * x[None]),
    "frozen attention of a constant": lambda x: total(FROZEN_ATTENTION(TEXT, TEXT, TEXT)[0] * x[None]),
}
ATTENTION_COMBINATIONS = [
    (name, route, residuals)
    for name in ATTENDING
    for route in ("value_and_grad", "jvp", "jit of checkpoint", "jit of vmap", "batch inside")
    for residuals in ("auto", "recompute")
    if name in ("layer, padding", "encoder, padding", "attention, padding", "frozen encoder of a constant")
    or (route in ("value_and_grad", "jit of vmap") and residuals == "auto")
]
XS = np.random.default_rng(2).standard_normal((3, LENGTH, WIDTH)).astype(np.float32)


@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.thinned(7)
@pytest.mark.parametrize(("name", "route", "residuals"), ATTENTION_COMBINATIONS)
def test_values_and_gradients_of_attention(name, route, residuals):
    wanted = native(ATTENDING[name], XS)
    f = torch2jax(ATTENDING[name], residuals=residuals)
    for _ in range(2):
        close(ROUTES[route](f, jnp.asarray(XS)), wanted, 1e-4)


def refuses_negative(x):
    if bool((x < 0).any()):
        raise ValueError("negative")
    return (x.exp() if x.requires_grad else x.cos()).sum()


def refuses_negative_slowly(x):
    for _ in range(15):  # too many operations to run them again in the backward
        x = x * 1.0
    return refuses_negative(x)


@pytest.mark.parametrize("f", [refuses_negative, refuses_negative_slowly])
def test_a_run_that_raises_tells_nothing_about_the_function(f):
    runs = []

    def counted(x):
        runs.append(None)
        return f(x)

    both = jax.jit(jax.value_and_grad(torch2jax(counted, output_shapes=jax.ShapeDtypeStruct((), jnp.float32))))
    with pytest.raises(Exception, match="negative"):
        jax.block_until_ready(both(-jnp.ones(3)))
    for _ in range(3):
        runs.clear()
        value, gradient = both(jnp.ones(3))
        assert jnp.allclose(value, 3 * jnp.e)
        assert jnp.allclose(gradient, jnp.e)
        assert len(runs) == 1
