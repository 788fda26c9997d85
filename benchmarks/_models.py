"""The models of the benchmarks: losses of parameters and inputs in torch, and their counterparts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import torch
from torch.func import functional_call

if TYPE_CHECKING:
    from _harness import Call

Params = dict[str, torch.Tensor]
Loss = Callable[..., torch.Tensor]


def mlp(width: int, depth: int) -> torch.nn.Module:
    """A multilayer perceptron with tanh."""
    layers: list[torch.nn.Module] = []
    for _ in range(depth):
        layers += [torch.nn.Linear(width, width), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers)


def mlp_in_jnp(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The loss of the same perceptron in jnp, on the parameters of the torch module."""
    for layer in range(0, len(params), 2):
        x = jnp.tanh(x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"])
    return jnp.square(x).mean()


def convnet() -> torch.nn.Module:
    """Two convolutions and a linear layer."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3, padding=1, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(64 * 16 * 16, 10),
    )


def block() -> torch.nn.Module:
    """A transformer block without dropout."""
    return torch.nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.0, batch_first=True)


def mean_square(out: torch.Tensor) -> torch.Tensor:
    return out.square().mean()


def loss_of(
    module: torch.nn.Module, reduce: Callable[[torch.Tensor], torch.Tensor] = mean_square
) -> tuple[Loss, Params]:
    """A loss of a module's output (its mean square) as a function of the parameters, and the parameters."""
    params = {name: p.detach().clone() for name, p in module.named_parameters()}

    def loss(params: Params, x: torch.Tensor) -> torch.Tensor:
        return reduce(functional_call(module, params, (x,)))

    return loss, params


def finetune_example() -> Any:
    """The module `examples/finetune.py`, which has MiniLM, its data and its loss, in torch and through t2j."""
    folder = str(Path(__file__).parents[1] / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module("finetune")
    except SystemExit as missing:  # the message says what to install
        raise ImportError(str(missing)) from missing


def minilm() -> tuple[Loss, Params, tuple[torch.Tensor, torch.Tensor]]:
    """The mean square of MiniLM's last hidden state, its parameters, and 16 sentences of 18 tokens."""
    example = finetune_example()
    model, tokenizer = example.load_encoder()
    pairs, _ = example.load_pairs(tokenizer)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    inputs = (torch.as_tensor(pairs.ids[:16]), torch.as_tensor(pairs.mask[:16]))

    def loss(params: Params, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = functional_call(model, params, (), {"input_ids": ids, "attention_mask": mask})
        return output.last_hidden_state.square().mean()

    return loss, params, inputs


def native_step(loss: Loss, params: Params, *inputs: torch.Tensor) -> Call:
    """Loss and gradients in torch alone."""
    leaves = {key: p.clone().requires_grad_() for key, p in params.items()}

    def step() -> Any:
        value = loss(leaves, *inputs)
        return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

    return step


def in_jax(tree: Any) -> Any:
    """A tree of tensors as JAX arrays with their own memory."""
    return jax.tree.map(lambda tensor: jnp.array(tensor.detach().numpy(), copy=True), tree)
