"""All devices call at once: different weights, forward mode, functions with state under a lock."""

from __future__ import annotations

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import agree, mesh_of, put
from jax.sharding import PartitionSpec as P
from t2j_dist import module2jax, torch2jax

REPEATS = 60


@pytest.fixture
def mesh():
    return mesh_of("Auto", data=8)


def test_a_module_with_other_weights_on_every_device(mesh):
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    apply, variables = module2jax(module)
    scales = jnp.arange(1.0, 9.0)

    def shard(variables, scale, x):
        return apply(jax.tree.map(lambda p: p * scale[0], variables), x)

    specs = (P(), P("data"), P("data"))
    step = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P("data")))
    x = jax.random.normal(jax.random.key(0), (8 * 16, 64))
    variables = jax.device_put(variables, jax.sharding.NamedSharding(mesh, P()))
    expected = []
    for scale, rows in zip(scales, np.split(np.array(x), 8), strict=True):
        scaled = {name: p * float(scale) for name, p in before.items()}
        expected.append(torch.func.functional_call(module, scaled, torch.from_numpy(rows)).detach().numpy())
    expected = np.concatenate(expected)
    for _ in range(REPEATS):
        agree(step(variables, scales, x), expected, rtol=1e-3, atol=1e-3)
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name])


def test_forward_mode_on_all_devices(mesh):
    f = torch2jax(lambda x: torch.sin(x).exp() * x, in_specs=P("data"), out_specs=P("data"), mesh=mesh, depth=3)
    g = lambda x: jnp.exp(jnp.sin(x)) * x
    x = jnp.linspace(-1, 1, 8 * 500)
    push = lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
    ours, second = jax.jit(push(f)), jax.jit(push(push(f)))
    expected, expected_second = push(g)(x), push(push(g))(x)
    for _ in range(REPEATS):
        agree(ours(x), expected)
        agree(second(x), expected_second, rtol=1e-3, atol=1e-4)


def test_devices_run_at_the_same_time(mesh):
    barrier = threading.Barrier(8, timeout=30)

    def fn(x):
        if x.device.type == "cpu":
            barrier.wait()
        return x + 1

    f = torch2jax(fn, in_specs=P("data"), out_specs=P("data"), mesh=mesh, output_shapes=(8,))
    agree(f(jnp.arange(8.0)), jnp.arange(8.0) + 1)


@pytest.mark.parametrize("own", [False, True])
def test_a_lock_lets_one_run_at_a_time(mesh, own):
    running, most = [], []

    def fn(x):
        if x.device.type == "cpu":
            running.append(1)
            most.append(len(running))
            time.sleep(0.005)
            running.pop()
        return x + 1

    lock = threading.RLock() if own else True
    f = torch2jax(fn, in_specs=P("data"), out_specs=P("data"), mesh=mesh, output_shapes=(8,), lock=lock)
    for _ in range(5):
        jax.block_until_ready(jax.jit(f)(jnp.arange(8.0)))
    assert len(most) == 40
    assert max(most) == 1
    agree(jax.jit(jax.grad(lambda x: f(x).sum()))(jnp.arange(8.0)), np.ones(8))


def test_steps_beside_a_thread_that_holds_the_gil(mesh):
    f = torch2jax(lambda x: torch.tanh(x) * 1.5)
    stop = threading.Event()

    def hog():
        while not stop.is_set():
            sum(range(2000))

    def shard(w, x):
        for _ in range(3):
            x = f(x * w) + jax.lax.pmean(x, "data")
        return jax.lax.pmean((x**2).mean(), "data")

    loss = jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    step = jax.jit(jax.value_and_grad(loss))
    x = put(jax.random.normal(jax.random.key(0), (64, 4)), mesh, "data")
    thread = threading.Thread(target=hog, daemon=True)
    thread.start()
    try:
        values = [jax.block_until_ready(step(jnp.float32(0.9), x)) for _ in range(50)]
    finally:
        stop.set()
        thread.join()
    for value in values[1:]:
        agree(value, values[0], rtol=1e-6)
