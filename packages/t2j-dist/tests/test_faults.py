"""Faults beside collectives: what is seen, and within what time the process ends."""

from __future__ import annotations

import os
import subprocess
import textwrap

import jax
import pytest
from common import run_python

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="the time that collectives wait for a shard cannot be set before jax 0.8"
)

PRELUDE = """
import os, threading, time
import jax, jax.numpy as jnp, numpy as np, torch
from jax.sharding import PartitionSpec as P
from t2j_dist import torch2jax
torch.set_num_threads(1)
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

def summed(f):
    step = lambda x: jax.lax.psum(f(x), "data")
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P()))
"""
DEVICES = "--xla_force_host_platform_device_count=8"
SOON = " --xla_cpu_collective_call_warn_stuck_timeout_seconds=2 --xla_cpu_collective_call_terminate_timeout_seconds=4"


def run(program: str, *, ends_soon: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a program on 8 devices; where it `ends_soon`, XLA waits 4 seconds for a shard instead of 60."""
    flags = DEVICES + SOON * ends_soon
    return run_python(PRELUDE + textwrap.dedent(program), check=False, XLA_FLAGS=flags)


def test_an_exception_on_one_shard_is_shown_before_a_collective_ends_the_process():
    done = run(
        """
        def fn(x):
            if x.device.type == "cpu" and float(x[0]) == 3:
                raise ArithmeticError("of the third shard")
            return x + 1

        f = torch2jax(fn, output_shapes=(1,))
        jax.block_until_ready(summed(f)(jnp.arange(8.0)))
    """,
        ends_soon=True,
    )
    assert done.returncode != 0
    shown = done.stderr.split("Termination timeout")[0]
    assert "The torch function fn raised on one of several devices:" in shown
    assert "ArithmeticError: of the third shard" in shown
    assert 'raise ArithmeticError("of the third shard")' in shown or "in fn" in shown


def test_an_exception_on_all_shards_before_a_collective_is_raised():
    done = run("""
        def fn(x):
            if x.device.type == "cpu":
                raise ArithmeticError("of every shard")
            return x + 1

        f = torch2jax(fn, output_shapes=(1,))
        step = summed(f)
        for _ in range(3):
            try:
                jax.block_until_ready(step(jnp.arange(8.0)))
            except Exception as error:
                assert "of every shard" in str(error), error
            else:
                raise SystemExit("nothing was raised")
        assert float(summed(torch2jax(lambda x: x + 1))(jnp.arange(8.0))[0]) == 36
        print("right")
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
    assert done.stderr.count("raised on one of several devices") < 8 * 3


@pytest.mark.parametrize("attempt", range(int(os.environ.get("T2J_EXIT_REPEATS", "2"))))
def test_a_clean_exit_with_calls_pending_on_eight_devices(attempt):
    done = run("""
        def slow(x):
            if x.device.type == "cpu":
                time.sleep(0.05)
            return x * 2

        f = torch2jax(slow, in_specs=P("data"), out_specs=P("data"), mesh=mesh)
        step = jax.jit(lambda x: f(f(x)).sum())
        x = jnp.arange(64.0)
        jax.block_until_ready(step(x))
        pending = [step(x + i) for i in range(3)]
        print("dispatched", flush=True)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("dispatched\n")


def test_the_cure_for_a_condition_that_differs_between_devices():
    done = run("""
        f = torch2jax(lambda w, x: torch.tanh(w * x))

        def shard(w, x):
            w = jax.lax.pcast(w, ("data",), to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(w, ("data",))
            y = jax.lax.cond(x[0] > 3, lambda: f(w, x).sum(), lambda: (w * x).sum())
            return jax.lax.psum(y, "data")

        step = jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        x = jnp.arange(8.0)
        got = jax.jit(jax.grad(step))(jnp.float32(0.5), x)
        expected = jax.grad(lambda w: jnp.where(x > 3, jnp.tanh(w * x), w * x).sum())(jnp.float32(0.5))
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        print("right")
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
