"""Dropped objects are freed, and memory does not grow."""

from __future__ import annotations

import os

WRAPS = int(os.environ.get("T2J_LEAK_WRAPS", "500"))


def test_wraps_leave_no_function_behind(run):
    done = run(
        f"""
        import gc, weakref
        x = jnp.ones(4)
        references = []

        def once(number):
            fn = lambda t: t + number
            references.append(weakref.ref(fn))
            jax.jit(torch2jax(fn))(x).block_until_ready()

        for number in range({WRAPS}):
            once(number)
        gc.collect()
        print(sum(r() is not None for r in references), testing.live_functions(), testing.counters()["live_sites"])
        """,
        seconds=1200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", "0"]


def test_memory_stays_flat_over_calls(run):
    done = run(
        """
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        f = jax.jit(torch2jax(lambda x: {"y": x * 2, "z": x.t()}))
        x = jnp.ones((64, 64))
        for _ in range(2_000):
            f(x)
        jax.block_until_ready(f(x))
        before = resident()
        for _ in range(10_000):
            y = f(x)
        jax.block_until_ready(y)
        print(resident() - before)
        """
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16  # MiB; 10,000 leaked results would be 320
