"""PyTorch as it comes, against native torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from t2j_autodiff import ArgumentError, load_variables, module2jax, torch2jax, tree_t2j
from torch import nn

RNG = np.random.default_rng(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


def native_grad(fn, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(fn(*leaves), leaves, allow_unused=True, materialize_grads=True)


def close(mine, other, rtol=1e-4, atol=1e-5):
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b.detach()), rtol=rtol, atol=atol)


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class NewStyle(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


def no_grad_inside(x):
    with torch.no_grad():
        scale = x.abs().max()
    return (x.sin() * scale).sum()


def inference_mode_inside(x):
    with torch.inference_mode():
        scale = float(torch.ones(3).sum())
    return x.sin().sum() * scale


def autocast_inside(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x @ x.mT).float().sum()


def forces(x):
    if not x.requires_grad:
        x = x.detach().requires_grad_()
    (force,) = torch.autograd.grad((x**4).sum(), x, create_graph=True)
    return force.sum()


def in_place_on_fresh(x):
    y = x.sin()
    y.mul_(x)
    y[0] += 1
    return y.sum()


FUNCTIONS = {
    "no_grad inside": no_grad_inside,
    "detach": lambda x: (x.detach() * x).sum(),
    "inference_mode inside": inference_mode_inside,
    "autocast inside": autocast_inside,
    "autograd.grad inside": forces,
    "torch.func.grad inside": lambda x: torch.func.grad(lambda y: (y**3).sum())(x).sum(),
    "torch.func.vmap inside": lambda x: torch.func.vmap(lambda r: r.sin().sum())(x).sum(),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(lambda y: y.sin().exp().sum(), x, use_reentrant=False),
    "old-style Function": lambda x: OldStyle.apply(x).sum(),
    "new-style Function": lambda x: NewStyle.apply(x).sum(),
    "in place on fresh tensors": in_place_on_fresh,
    "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]).square().sum(),
    "softmax and labels": lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1, 3])),
    "not used": lambda x: x[0].sum(),
}


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name, jitted):
    fn, x = FUNCTIONS[name], normal(4, 5)
    gradient = jax.grad(torch2jax(fn))
    close((jax.jit(gradient) if jitted else gradient)(jnp.asarray(x.numpy())), native_grad(fn, x)[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["old-style Function", "new-style Function", "attention", "softmax and labels"])
def test_forward_mode_and_second_derivatives(name):
    fn, x, v = FUNCTIONS[name], normal(4, 5), normal(4, 5)
    f, (xj, vj) = torch2jax(fn), tree_t2j((x, v))

    def math(y):
        with nn.attention.sdpa_kernel([nn.attention.SDPBackend.MATH]):
            return fn(y)

    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(math(leaf), leaf, create_graph=True)
    (hv,) = torch.autograd.grad((g * v).sum(), leaf)
    close(jax.jvp(f, (xj,), (vj,))[1], (g * v).sum(), rtol=1e-3)
    close(jax.jvp(jax.grad(f), (xj,), (vj,))[1], hv, rtol=1e-3, atol=1e-4)
    close(jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), vj))(xj), hv, rtol=1e-3, atol=1e-4)


def model_and_loss(model, *inputs):
    def loss():
        y = model(*inputs)
        return (y[0] if isinstance(y, tuple) else y).square().mean()

    loss().backward()
    return {name: p.grad for name, p in model.named_parameters()}


class Tied(nn.Module):
    """An embedding whose weights are those of the output layer too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, i):
        return self.out(self.embed(i))


MODELS = {
    "tied": (Tied, (torch.tensor([[0, 3, 6]]),)),
    "LSTM": (lambda: nn.LSTM(3, 4, batch_first=True), (normal(2, 5, 3),)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (normal(2, 5, 8),)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU()), (normal(2, 2, 6, 6),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make()
    apply, variables = module2jax(model)
    arrays = [jnp.asarray(t.numpy()) if t.is_floating_point() else t for t in inputs]

    @jax.jit
    def gradients(params):
        def loss(params):
            y = apply({"params": params, "buffers": variables["buffers"]}, *arrays)
            return jnp.mean((y[0] if isinstance(y, tuple) else y) ** 2)

        return jax.grad(loss)(params)

    close(dict(gradients(variables["params"])), model_and_loss(model, *inputs), atol=1e-6)


def test_batch_norm_returns_its_buffers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = normal(8, 3)
    apply, variables = module2jax(model, train=True, mutable=True)

    def loss(params):
        y, buffers = apply({"params": params, "buffers": variables["buffers"]}, jnp.asarray(x.numpy()))
        return jnp.mean(y**4), buffers

    (_, buffers), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    model.train()
    model(x).pow(4).mean().backward()
    close(gradients, {name: p.grad for name, p in model.named_parameters()}, rtol=1e-3, atol=1e-6)
    close(buffers, dict(model.named_buffers()))


def test_training_and_writing_back():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x, y = normal(16, 3), normal(16, 1)
    reference = nn.Linear(3, 1)
    reference.load_state_dict(model.state_dict())
    apply, variables = module2jax(model)
    xj, yj = tree_t2j((x, y))

    @jax.jit
    def step(params):
        grads = jax.grad(lambda p: jnp.mean((apply({"params": p, "buffers": {}}, xj) - yj) ** 2))(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    params = variables["params"]
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(5):
        params = step(params)
        optimizer.zero_grad()
        F.mse_loss(reference(x), y).backward()
        optimizer.step()
    load_variables(model, {"params": params})
    close(dict(params), dict(reference.named_parameters()))
    for name, value in model.state_dict().items():
        assert torch.allclose(value, reference.state_dict()[name], atol=1e-6)


def test_no_grad_stops_forward_mode_too():
    # Regression: torch's forward mode goes through `no_grad`, and then JAX's two modes disagree.
    def fn(x):
        with torch.no_grad():
            s = x.sum()
        return s * x.prod()

    x = jnp.array([0.5, -1.0, 2.0])
    f, g = torch2jax(fn), lambda x: jax.lax.stop_gradient(x.sum()) * x.prod()
    np.testing.assert_allclose(jax.grad(f)(x), jax.grad(g)(x), rtol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(f)(x), jax.jacfwd(g)(x), rtol=1e-5)
    np.testing.assert_allclose(jax.hessian(f)(x), jax.hessian(g)(x), rtol=1e-5, atol=1e-6)


def test_missing_buffers_are_named():
    apply, variables = module2jax(nn.BatchNorm1d(3).eval())
    with pytest.raises(
        ArgumentError, match=r"(?s)`variables\['buffers'\]\['running_mean'\]` is missing.*Pass `{\*\*variables"
    ):
        apply({"params": variables["params"]}, jnp.ones((2, 3)))
