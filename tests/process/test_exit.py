"""The interpreter ends cleanly while calls are pending."""

from __future__ import annotations

import os

import pytest

REPEATS = int(os.environ.get("T2J_EXIT_REPEATS", "1"))

ONE_DEVICE = """
    def slow(x):
        if not x.is_meta:
            time.sleep(0.2)
        return x * 2

    f = jax.jit(torch2jax(slow))
    y = f(f(f(jnp.ones(1 << 20))))
    print("dispatched", flush=True)
"""

EIGHT_DEVICES = """
    from jax.sharding import NamedSharding, PartitionSpec as P

    def slow(x):
        if not x.is_meta:
            time.sleep(0.05)
        return x * 2

    f = torch2jax(slow)
    mesh = jax.make_mesh((8,), ("d",))
    step = jax.jit(jax.shard_map(lambda x: jax.lax.psum(f(f(x)), "d"), mesh=mesh, in_specs=P("d"), out_specs=P()))
    x = jax.device_put(jnp.arange(64.0), NamedSharding(mesh, P("d")))
    step(x).block_until_ready()
    pending = [step(x + i) for i in range(3)]
    print("dispatched", flush=True)
"""

ENDINGS = {"sys.exit": ("sys.exit(7)", 7), "end": ("", 0), "exception": ("raise KeyError('mine')", 1)}


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("ending", "code"), ENDINGS.values(), ids=ENDINGS)
def test_calls_pending_on_one_device(run, ending, code):
    done = run(ONE_DEVICE + f"\n    {ending}\n")
    assert "dispatched" in done.stdout
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("attempt", range(REPEATS))
def test_calls_pending_on_eight_devices(run, attempt):
    done = run(EIGHT_DEVICES, devices=8)
    assert "dispatched" in done.stdout
    assert done.returncode == 0, done.stderr
