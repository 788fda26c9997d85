"""Look inside an object with ultrasound: the simulator is PyTorch, the search for the picture is JAX.

Eight transmitters on a ring each send a pulse through an object, and 32 receivers record what arrives. The script
recovers the speed of sound at each point of the object from these records. PyTorch solves the wave equation. JAX
differentiates through the solver (`jax.jit`, `jax.value_and_grad`), and optax improves the speeds step by step. At the
end the script compares the gradient with PyTorch's own, and shows what `jax.pure_callback` does instead.

    python examples/wave_inversion.py
    python examples/wave_inversion.py --steps 20 --output picture.png

The records are simulated on the same grid, with 2 % noise: the method is full-waveform inversion, as in seismology
(A. Tarantola, Inversion of seismic reflection data in the acoustic approximation, Geophysics 49, 1984).
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from t2j_autodiff import torch2jax

if missing := [name for name in ("matplotlib", "optax", "tqdm") if find_spec(name) is None]:
    names = " ".join(missing)
    raise SystemExit(f"This example also needs {names}; install with: pip install {names}")

import matplotlib

matplotlib.use("Agg")

import optax
from matplotlib import pyplot
from tqdm import tqdm

POINTS, SPACING = 64, 1.6  # of the grid, in each direction; mm
STEPS, INTERVAL = 170, 0.55  # of time; µs
FREQUENCY = 0.09  # of the pulse; MHz
RADIUS = 35.2  # of the ring; mm
WATER = 1.5  # the speed of sound around the object, and where the search starts; mm/µs
EDGE = 8  # points at each edge of the grid that absorb waves
NOISE = 0.02  # relative to the records
LEARNING_RATE = 0.1

positions = (np.arange(POINTS) - (POINTS - 1) / 2) * SPACING
X, Y = np.meshgrid(positions, positions)


def ring(number: int) -> np.ndarray:
    """Indices into the flattened grid of `number` points on the ring: i64[number]."""
    angles = 2 * np.pi * np.arange(number) / number
    column, row = (np.rint((POINTS - 1) / 2 + RADIUS / SPACING * f(angles)) for f in (np.cos, np.sin))
    return (row * POINTS + column).astype(np.int64)


TRANSMITTERS, RECEIVERS = ring(8), ring(32)


def pulse() -> torch.Tensor:
    """A Ricker wavelet: f32[STEPS]."""
    phase = (np.pi * (FREQUENCY * INTERVAL * np.arange(STEPS) - 1)) ** 2
    return torch.tensor((1 - 2 * phase) * np.exp(-phase), dtype=torch.float32)


def absorbing() -> torch.Tensor:
    """What remains of a wave at each point after one step: f32[POINTS, POINTS]."""
    depth = (EDGE - np.minimum(np.arange(POINTS), np.arange(POINTS)[::-1])).clip(0)
    return torch.tensor(np.exp(-((0.05 * np.maximum(depth[:, None], depth)) ** 2)), dtype=torch.float32)


def simulate(speed: torch.Tensor) -> torch.Tensor:
    """Solve the wave equation in a medium with `speed` f32[POINTS, POINTS] in mm/µs, for all transmitters at once.

    Returns what the receivers record: f32[transmitters, STEPS, receivers].
    """
    receivers, remaining = torch.from_numpy(RECEIVERS), absorbing()
    sources = torch.zeros(len(TRANSMITTERS), POINTS**2)
    sources[range(len(TRANSMITTERS)), TRANSMITTERS] = 1
    sources = sources.reshape(-1, POINTS, POINTS)
    before, now, records = torch.zeros_like(sources), torch.zeros_like(sources), []
    for strength in pulse():
        around = torch.nn.functional.pad(now, (1, 1, 1, 1))
        curvature = around[:, 2:, 1:-1] + around[:, :-2, 1:-1] + around[:, 1:-1, 2:] + around[:, 1:-1, :-2] - 4 * now
        after = remaining * (2 * now - remaining * before + (speed * INTERVAL / SPACING) ** 2 * curvature)
        before, now = now, after + strength * sources
        records.append(now.flatten(1).index_select(1, receivers))
    return torch.stack(records, 1)


def object_to_find() -> np.ndarray:
    """Two fast discs and a slow one in water: the speed at each point, f32[POINTS, POINTS]."""
    speed = np.full_like(X, WATER)
    for x, y, radius, difference in ((-9, -8, 9, 0.15), (6, 10, 11, -0.12), (14, -10, 5, 0.1)):
        speed += difference / (1 + np.exp(np.hypot(X - x, Y - y) - radius))
    return speed.astype(np.float32)


def smooth(image: jax.Array) -> jax.Array:
    """Average each point of `image` f32[n, n] with its neighbours: the records cannot tell finer detail from noise."""
    weights = jnp.exp(-(jnp.arange(-4.0, 5.0) ** 2) / 3)
    average = jax.vmap(lambda row: jnp.convolve(row, weights / weights.sum(), mode="same"))
    return average(average(image).T).T


def recover(records: jax.Array, steps: int) -> tuple[jax.Array, list[float]]:
    """Find the speeds that explain `records`: f32[POINTS, POINTS] in mm/µs, and the loss before each step."""
    simulator = torch2jax(simulate)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    inside = np.hypot(X, Y) < RADIUS - 2 * SPACING

    def speed(image: jax.Array) -> jax.Array:
        return WATER + 0.1 * smooth(image) * inside

    def loss(image: jax.Array) -> jax.Array:
        return jnp.mean((simulator(speed(image)) - records) ** 2) / jnp.var(records)

    @jax.jit
    def step(image: jax.Array, state: optax.OptState) -> tuple[jax.Array, optax.OptState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(image)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(image, updates), state, value

    image = jnp.zeros((POINTS, POINTS))
    state, losses = optimizer.init(image), []
    progress = tqdm(range(steps), desc="jit(value_and_grad) through PyTorch", unit="step")
    for _ in progress:
        image, state, value = step(image, state)
        losses.append(float(value))
        progress.set_postfix(loss=f"{losses[-1]:.2e}")
    return speed(image), losses


def gradient_difference(speed: np.ndarray) -> float:
    """The largest difference between the gradients of JAX and of PyTorch alone, relative to the largest gradient."""
    ours = jax.grad(lambda speed: jnp.sum(torch2jax(simulate)(speed) ** 2))(jnp.asarray(speed))
    tensor = torch.tensor(speed, requires_grad=True)
    (theirs,) = torch.autograd.grad((simulate(tensor) ** 2).sum(), tensor)
    return float(np.abs(ours - theirs.numpy()).max() / theirs.abs().max())


def gradient_of_callback(speed: np.ndarray) -> str:
    """The error that `jax.grad` raises for the same simulator behind `jax.pure_callback`."""
    records = jax.ShapeDtypeStruct((len(TRANSMITTERS), STEPS, len(RECEIVERS)), jnp.float32)

    def total(speed: jax.Array) -> jax.Array:
        return jnp.sum(jax.pure_callback(lambda s: simulate(torch.tensor(np.asarray(s))).numpy(), records, speed) ** 2)

    try:
        jax.grad(total)(jnp.asarray(speed))
    except ValueError as error:
        return f"{type(error).__name__}: {str(error).split('.')[0]}"
    return "a gradient"


def draw(truth: np.ndarray, found: jax.Array, losses: list[float], path: Path) -> None:
    """Save the pictures of the truth, the start and the result, and the loss."""
    figure, axes = pyplot.subplots(1, 4, figsize=(12, 3.1), layout="constrained", width_ratios=(1, 1, 1, 0.9))
    edge = positions[-1] + SPACING / 2
    pictures = {"truth": truth, "start": np.full_like(truth, WATER), f"after {len(losses)} steps": found}
    for axis, (title, speed) in zip(axes, pictures.items(), strict=False):
        limits = {"vmin": truth.min(), "vmax": truth.max()}
        image = axis.imshow(speed, origin="lower", extent=(-edge, edge, -edge, edge), cmap="viridis", **limits)
        axis.plot(X.ravel()[RECEIVERS], Y.ravel()[RECEIVERS], ".", color="white", markersize=3)
        axis.plot(X.ravel()[TRANSMITTERS], Y.ravel()[TRANSMITTERS], ".", color="#ff6b5e", markersize=7)
        axis.set(title=title, xlabel="mm", yticks=[])
    figure.colorbar(image, ax=axes[2], label="speed of sound, mm/µs")
    axes[3].semilogy(losses, color="#2f6fb3")
    axes[3].set(title="misfit of the records", xlabel="step")
    axes[3].grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Simulate the records, recover the object, and compare."""
    parser = argparse.ArgumentParser(description="Ultrasound tomography: a PyTorch simulator, differentiated by JAX.")
    parser.add_argument("--steps", type=int, default=100, help="of the optimizer (default: 100)")
    parser.add_argument("--output", type=Path, default=Path("wave_inversion.png"), help="the picture")
    options = parser.parse_args()

    truth = object_to_find()
    clean = jax.jit(torch2jax(simulate))(truth)
    records = clean + NOISE * clean.std() * jax.random.normal(jax.random.key(0), clean.shape)
    found, losses = recover(records, options.steps)
    draw(truth, found, losses, options.output)

    errors = [float(np.abs(speed - truth).max()) for speed in (np.full_like(truth, WATER), np.asarray(found))]
    print(f"\nMisfit of the records: {losses[0]:.1e} -> {losses[-1]:.1e}, of which the noise is {NOISE**2:.1e}")
    print(f"Largest error of the speed: {errors[0]:.3f} -> {errors[1]:.3f} mm/µs")
    print(f"Picture of truth, start and result: {options.output.absolute()}\n")
    print(f"jax.grad through t2j:           PyTorch's gradient, relative difference {gradient_difference(truth):.0e}")
    print(f"jax.grad through pure_callback: {gradient_of_callback(truth)}")


if __name__ == "__main__":
    main()
