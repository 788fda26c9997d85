"""A training step of MiniLM with optax, relative to torch: `python benchmarks/bench_train.py [--quick]`.

The task is that of `examples/finetune.py`: 8 pairs of sentences, a head on top of the encoder, float32, Adam. Each step
starts from the parameters of the previous step.
"""

from __future__ import annotations

import copy
from typing import Any

from _harness import Call, Pace, Race, Report, Versus
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import numpy as np
import torch
from _models import finetune_example

FULL, QUICK = Pace(31), Pace(1, 0.004, 0.01)
RATE = 1e-5
REFERENCE = "torch.optim.Adam"


def torch_step(example: Any, model: torch.nn.Module, head: Any, batch: Any, **options: Any) -> Call:
    """Loss, gradients and Adam in torch alone."""
    own = copy.deepcopy(model)
    leaves = {name: torch.tensor(np.asarray(array)).requires_grad_() for name, array in head.items()}
    optimizer = torch.optim.Adam([*own.parameters(), *leaves.values()], lr=RATE, **options)
    labels = torch.as_tensor(batch.labels)
    loss_fn = torch.nn.functional.binary_cross_entropy_with_logits

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(example.torch_logits(own, leaves, batch), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def optax_step(task: Any, params: Any, batch: Any) -> Call:
    """Loss and gradients through t2j and Adam from optax, in one jitted step that donates parameters and state."""
    import optax

    optimizer = optax.adam(RATE)

    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, gradients = task.loss_and_grad(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))
    own = jax.tree.map(lambda array: jax.numpy.array(array, copy=True), params)
    held = [own, optimizer.init(own)]

    def call() -> jax.Array:
        *held[:], loss = jitted(*held, batch)
        return jax.block_until_ready((*held, loss))[-1]

    return call


def train(report: Report, pace: Pace) -> None:
    """Steps in turns; the first two losses of each contestant must agree."""
    example = finetune_example()
    model, tokenizer = example.load_encoder()
    pairs, _ = example.load_pairs(tokenizer)
    batch = next(example.shuffled(pairs, np.random.default_rng(0)))
    task, params = example.make_task(model)
    reference = torch_step(example, model, params["head"], batch)
    losses = [float(reference()) for _ in range(2)]

    def agrees(make: Any) -> Call:
        mine = make()
        np.testing.assert_allclose([float(mine()) for _ in range(2)], losses, rtol=1e-4)
        return mine

    race = Race("training step with Adam, MiniLM, 16 x 18 tokens", report)
    race.enter(REFERENCE, lambda: agrees(lambda: torch_step(example, model, params["head"], batch)))
    fused = lambda: torch_step(example, model, params["head"], batch, fused=True)
    race.enter(f"{REFERENCE}, fused", lambda: agrees(fused), Versus(REFERENCE))
    race.enter("t2j", lambda: agrees(lambda: optax_step(task, params, batch)), Versus(REFERENCE))
    race.run(pace)


if __name__ == "__main__":
    main({"train": train}, FULL, QUICK)
