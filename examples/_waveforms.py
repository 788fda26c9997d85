"""The task of the parallel examples: data, model, optimizer, loop, and the comparison with one device."""

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from t2j_autodiff import module2jax

SAMPLES = 64  # samples of one signal
PATCH = 8  # samples of one token
WIDTH = 32
KINDS = 4  # sine, square, sawtooth, triangle
BATCH = 64  # signals of one step, on all devices together
STEPS = 40
LEARNING_RATE = 3e-3
TOLERANCE = 1e-4  # of each loss, relative to one device: the sums over a batch have a different order

Loss = Callable[[Any, "Batch"], jax.Array]
Step = Callable[["State", "Batch"], tuple["State", jax.Array]]


class Batch(NamedTuple):
    """Some signals and their kinds."""

    signals: Any  # f32[BATCH, SAMPLES]
    labels: Any  # i32[BATCH]


class State(NamedTuple):
    """Parameters, and Adam's two moments of each parameter."""

    params: Any
    mean: Any
    square: Any
    count: Any  # f32[], steps taken


def make_batch(number: int) -> Batch:
    """Return the batch of step `number`: noisy waves of four kinds, with random frequency and phase."""
    rng = np.random.default_rng(number)
    labels = rng.integers(KINDS, size=BATCH).astype(np.int32)
    cycles, start = rng.uniform(1, 3, (BATCH, 1)), rng.uniform(0, 1, (BATCH, 1))
    phase = (cycles * np.linspace(0, 1, SAMPLES) + start) % 1
    waves = np.stack([np.sin(2 * np.pi * phase), np.sign(phase - 0.5), 2 * phase - 1, 4 * np.abs(phase - 0.5) - 1])
    return Batch((waves[labels, np.arange(BATCH)] + rng.normal(0, 0.2, phase.shape)).astype(np.float32), labels)


class Embedding(torch.nn.Module):
    """Split a signal into tokens and add positions: f32[n, SAMPLES] to f32[n, tokens, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(PATCH, WIDTH)
        self.position = torch.nn.Parameter(0.1 * torch.randn(SAMPLES // PATCH, WIDTH))

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        """Embed the signals."""
        return self.project(signals.unflatten(1, (-1, PATCH))) + self.position


class Head(torch.nn.Linear):
    """Classify the mean token: f32[n, tokens, WIDTH] to f32[n, KINDS]."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Average and project."""
        return super().forward(tokens.mean(1))


def transformer() -> torch.nn.Sequential:
    """Return a small transformer that classifies the kind of a signal, as a sequence of four stages."""
    torch.manual_seed(0)
    options: Any = {"dropout": 0.0, "batch_first": True, "norm_first": True, "bias": False}
    block = lambda: torch.nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=2 * WIDTH, **options)
    return torch.nn.Sequential(Embedding(), block(), block(), Head(WIDTH, KINDS))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean negative log-likelihood of f32[n, KINDS] at i32[n]."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def initial_state(params: Any) -> State:
    """Return the state before the first step, in host memory."""
    params = jax.tree.map(np.asarray, params)
    return State(params, jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, params), np.float32(0))


def state_specs(specs: Any) -> State:
    """Return the specs of a state whose parameters have `specs`: each moment is sharded like its parameter."""
    return State(specs, specs, specs, PartitionSpec())


def make_step(loss: Loss) -> jax.stages.Wrapped:
    """Return a jitted step of Adam (Kingma and Ba, 2015) on `loss(params, batch)`."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(state.params, batch)
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mean, gradients)
        square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, state.square, gradients)
        rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        params = jax.tree.map(lambda p, m, s: p - rate * m / (jnp.sqrt(s) + 1e-8), state.params, mean, square)
        return State(params, mean, square, count), value

    return step


def distribute(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Return `tree` as global arrays. Every process has the whole tree, and puts only the shards on its devices.

    A process that reads only its own part of the data uses `jax.make_array_from_process_local_data`.
    """

    def place(array: Any, spec: PartitionSpec) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    return jax.tree.map(place, tree, specs)


def train(step: Step, state: State, place: Callable[[Batch], Batch]) -> tuple[State, list[float]]:
    """Train for `STEPS` steps on `place(batch)`; return the last state and the loss of each step."""
    losses = []
    for number in range(STEPS):
        state, loss = step(state, place(make_batch(number)))
        # Wait for each step. On CPU each device of each step in flight holds a thread while it waits in a collective.
        # If XLA's pool has no thread left, no step ever ends.
        jax.block_until_ready(state)
        losses.append(float(loss))
        if number % 10 == 0 or number == STEPS - 1:
            say(f"step {number:3d}   loss {losses[-1]:.6f}")
    return state, losses


def train_and_compare(model: torch.nn.Module, loss: Loss, params: Any, specs: Any, mesh: Mesh) -> None:
    """Train with `loss` on all devices of `mesh`, then `model` on one device. Stop if the losses differ.

    Args:
      model: the whole model, which returns logits.
      loss: a function of the global parameters and batch; it defines where they are computed.
      params: the initial parameters, as `loss` takes them.
      specs: the spec of each parameter.
      mesh: a mesh with an axis "data", over which batches are sharded.
    """
    batch_specs = Batch(PartitionSpec("data"), PartitionSpec("data"))
    place = lambda batch: distribute(batch, mesh, batch_specs)
    state = distribute(initial_state(params), mesh, state_specs(specs))
    step = make_step(loss).lower(state, place(make_batch(0))).compile()
    say(f"{dict(mesh.shape)} devices in {jax.process_count()} process(es), {jax.devices()[0].platform}")
    say(f"Each holds {device_bytes(state.params):,} of {total_bytes(state.params):,} bytes of parameters")
    say(f"Collectives of the compiled step: {collectives(step)}")
    state, losses = train(step, state, place)
    if jax.process_index() == 0:
        compare(losses, one_device_losses(model))


def one_device_losses(model: torch.nn.Module) -> list[float]:
    """Train the model on only the first device of this process, on the same batches."""
    apply, variables = module2jax(model)

    def loss(params: Any, batch: Batch) -> jax.Array:
        return cross_entropy(apply({"params": params, "buffers": {}}, batch.signals), batch.labels)

    say("The same on one device:")
    return train(make_step(loss), initial_state(variables["params"]), lambda batch: batch)[1]


def compare(losses: list[float], expected: list[float]) -> None:
    """Stop with an error if two loss curves differ."""
    difference = float(np.max(np.abs(np.divide(losses, expected) - 1)))
    if not difference <= TOLERANCE:
        raise SystemExit(f"The losses differ from one device's: relative {difference:.1e}, allowed {TOLERANCE:.1e}")
    say(f"The losses agree with one device's: relative difference at most {difference:.1e}")


def say(text: str) -> None:
    """Print on process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def total_bytes(tree: Any) -> int:
    """Return the bytes of the global arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def device_bytes(tree: Any) -> int:
    """Return the bytes that one device holds of the global arrays."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def collectives(step: jax.stages.Compiled) -> str:
    """Count the collectives of a compiled function."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = Counter(re.findall(rf" ({kinds})(?:-start)?\(", step.as_text() or ""))
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items())) or "none"
