"""Curvature of a PyTorch model from JAX: Hessian, Hessian-vector products, eigenvalues, per-example gradients.

The script trains a small PyTorch classifier in a `lax.scan`. Then it differentiates the classifier with `jax.hessian`,
`jax.jvp` of `jax.grad`, a power iteration in a `lax.while_loop`, Lanczos in a `lax.fori_loop` and `jax.vmap` of
`jax.grad`, each under `jax.jit`, and compares each result with `torch.func`.

    python examples/hessian.py
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.flatten_util import ravel_pytree
from t2j_autodiff import j2t, module2jax, t2j

jax.config.update("jax_enable_x64", True)  # second derivatives need 64 bits; by default JAX has 32

EXAMPLES = 120
HIDDEN = 8
STEPS = 300
KRYLOV = 40  # steps of Lanczos
REPEATS = 5  # timed runs of each quantity
TOLERANCE = 1e-8  # of every comparison, relative to the largest number

Loss = Callable[[Any, Any, Any], Any]  # (flat parameters, x, labels) -> mean cross-entropy


class Row(NamedTuple):
    """One line of the table."""

    quantity: str
    value: str
    difference: float
    milliseconds: float
    torch_milliseconds: float


def spirals(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points on three noisy spirals, f64[n, 2], and the spiral of each point, i32[n]."""
    rng = np.random.default_rng(0)
    labels = np.arange(n, dtype=np.int32) % 3
    radius = rng.uniform(0.2, 1, n)
    angle = 3 * radius + 2 * math.pi / 3 * labels + rng.normal(0, 0.5, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), labels


def classifier() -> torch.nn.Module:
    """Return the model: two inputs, one hidden layer, three classes."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 3)).double()


def jax_loss(model: torch.nn.Module) -> tuple[Loss, jax.Array]:
    """Return the loss as a JAX function of one flat vector around the torch model, and that vector."""
    apply, variables = module2jax(model)
    theta, unravel = ravel_pytree(variables["params"])

    def loss(theta: jax.Array, x: jax.Array, labels: jax.Array) -> jax.Array:
        scores = jax.nn.log_softmax(apply({"params": unravel(theta), "buffers": {}}, x))
        return -jnp.mean(jnp.take_along_axis(scores, labels[..., None], axis=-1))

    return loss, theta


def torch_loss(model: torch.nn.Module) -> Loss:
    """Return the same loss in PyTorch alone. JAX flattens a dict in the order of its sorted keys."""
    shapes = {name: tensor.shape for name, tensor in sorted(model.named_parameters())}

    def loss(theta: torch.Tensor, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pieces = theta.split([shape.numel() for shape in shapes.values()])
        params = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, params, (x,)), labels)

    return loss


def trained(loss: Loss, theta: jax.Array, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Descend along the gradient with momentum in one compiled loop; return the parameters and the losses."""

    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        theta, velocity = carry
        value, gradient = jax.value_and_grad(loss)(theta, x, labels)
        velocity = 0.9 * velocity - 0.3 * gradient
        return (theta + velocity, velocity), value

    (theta, _), losses = jax.lax.scan(step, (theta, jnp.zeros_like(theta)), None, length=STEPS)
    return theta, losses


def hessian_vector(loss: Loss, theta: Any, vector: Any, *data: Any) -> jax.Array:
    """Return the product of the Hessian at `theta` and `vector` without the matrix: forward mode over reverse mode."""
    return jax.jvp(lambda theta: jax.grad(loss)(theta, *data), (theta,), (vector,))[1]


def power_iteration(loss: Loss, theta: jax.Array, *data: jax.Array) -> jax.Array:
    """Return the eigenvalue of the Hessian that is largest in absolute value, to twelve digits."""

    def improve(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        vector, value, _, count = state
        product = hessian_vector(loss, theta, vector, *data)
        return product / jnp.linalg.norm(product), vector @ product, value, count + 1

    def goes_on(state: tuple[jax.Array, ...]) -> jax.Array:
        _, value, previous, count = state
        return (jnp.abs(value - previous) > 1e-12 * jnp.abs(value)) & (count < 2000)

    start = jax.random.normal(jax.random.key(0), theta.shape, theta.dtype)
    first = (start / jnp.linalg.norm(start), jnp.zeros(()), jnp.full((), jnp.inf), jnp.zeros((), int))
    return jax.lax.while_loop(goes_on, improve, first)[1]


def lanczos(loss: Loss, theta: jax.Array, *data: jax.Array) -> jax.Array:
    """Return the smallest and the largest eigenvalue of the Hessian, from `KRYLOV` products with vectors."""
    start = jax.random.normal(jax.random.key(1), theta.shape, theta.dtype)
    basis = jnp.zeros((KRYLOV + 1, theta.size)).at[0].set(start / jnp.linalg.norm(start))

    def extend(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        basis, tridiagonal = state
        product = hessian_vector(loss, theta, basis[i], *data)
        diagonal = basis[i] @ product
        for _ in range(2):  # makes it orthogonal to the rows so far; later rows are zero
            product = product - basis.T @ (basis @ product)
        length = jnp.linalg.norm(product)
        tridiagonal = tridiagonal.at[i, i].set(diagonal).at[i, i + 1].set(length).at[i + 1, i].set(length)
        return basis.at[i + 1].set(product / length), tridiagonal

    _, tridiagonal = jax.lax.fori_loop(0, KRYLOV, extend, (basis, jnp.zeros((KRYLOV + 1, KRYLOV + 1))))
    return jnp.linalg.eigvalsh(tridiagonal[:KRYLOV, :KRYLOV])[jnp.array([0, -1])]


def per_example_gradients(loss: Loss, theta: jax.Array, *data: jax.Array) -> jax.Array:
    """Return the gradient of each example: f64[EXAMPLES, parameters]."""
    return jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(theta, *data)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Run once to compile and warm up, then `REPEATS` times; return the result and the median in milliseconds."""
    result, times = jax.block_until_ready(run()), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(1e3 * (time.perf_counter() - start))
    return result, statistics.median(times)


def compared(quantity: str, ours: Callable[[], Any], native: Callable[[], torch.Tensor]) -> Row:
    """Compute a quantity in JAX and in PyTorch, and stop if they differ."""
    array, milliseconds = timed(ours)
    tensor, torch_milliseconds = timed(native)
    difference = float(jnp.abs(array - t2j(tensor)).max())
    if not difference <= TOLERANCE * float(tensor.abs().max()):
        raise SystemExit(f"{quantity}: differs from PyTorch's by {difference:.1e}")
    value = f"{array:.4f}" if array.ndim == 0 else " x ".join(map(str, array.shape))
    value = ", ".join(f"{number:.4f}" for number in array) if array.shape == (2,) else value
    return Row(quantity, value, difference, milliseconds, torch_milliseconds)


def rows(model: torch.nn.Module, loss: Loss, theta: jax.Array, data: tuple[jax.Array, jax.Array]) -> list[Row]:
    """Compute all quantities at `theta` from JAX and with `torch.func`."""
    vector = jax.random.normal(jax.random.key(2), theta.shape, theta.dtype)
    native, (p, v) = torch_loss(model), map(j2t, (theta, vector))
    x, labels = j2t(data[0]), j2t(data[1]).long()
    slope = lambda p: torch.func.grad(native)(p, x, labels)
    matrix = lambda: torch.func.hessian(native)(p, x, labels)
    of_one = torch.func.grad(lambda p, x, label: native(p, x[None], label[None]))

    def jitted(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        compiled = jax.jit(lambda args, data: function(*args, *data))
        return lambda: compiled(args, data)

    largest = lambda values: values[values.abs().argmax()]
    return [
        compared("loss", jitted(loss, theta), lambda: native(p, x, labels)),
        compared("gradient", jitted(jax.grad(loss), theta), lambda: slope(p)),
        compared("Hessian", jitted(jax.hessian(loss), theta), matrix),
        compared(
            "Hessian times vector",
            jitted(lambda *args: hessian_vector(loss, *args), theta, vector),
            lambda: torch.func.jvp(slope, (p,), (v,))[1],
        ),
        compared(
            "top eigenvalue, power iteration",
            jitted(lambda *args: power_iteration(loss, *args), theta),
            lambda: largest(torch.linalg.eigvalsh(matrix())),
        ),
        compared(
            "lowest and top, Lanczos",
            jitted(lambda *args: lanczos(loss, *args), theta),
            lambda: torch.linalg.eigvalsh(matrix())[[0, -1]],
        ),
        compared(
            "per-example gradients",
            jitted(lambda *args: per_example_gradients(loss, *args), theta),
            lambda: torch.func.vmap(of_one, in_dims=(None, 0, 0))(p, x, labels),
        ),
    ]


def main() -> None:
    """Train the model, and print its curvature next to PyTorch's."""
    model = classifier()
    data = tuple(map(jnp.asarray, spirals(EXAMPLES)))
    loss, theta = jax_loss(model)
    theta, losses = jax.jit(lambda theta, *data: trained(loss, theta, *data))(theta, *data)
    print(f"{theta.size} parameters, {EXAMPLES} examples; loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps")
    print(f"\n{'at the end':<34}{'value':>18}{'difference':>12}{'t2j ms':>9}{'torch ms':>10}")
    for row in rows(model, loss, theta, data):
        print(f"{row.quantity:<34}{row.value:>18}{row.difference:12.1e}", end="")
        print(f"{row.milliseconds:9.2f}{row.torch_milliseconds:10.2f}")
    print("\nThe eigenvalue loops only use Hessian-vector products; PyTorch's column: whole Hessian, `eigvalsh`.")
    print(f"PyTorch {torch.__version__}, JAX {jax.__version__}.")


if __name__ == "__main__":
    main()
