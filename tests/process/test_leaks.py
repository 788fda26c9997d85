"""Dropped objects are freed, and memory does not grow."""

from __future__ import annotations

import os
import textwrap

WRAPS = int(os.environ.get("T2J_LEAK_WRAPS", "100"))


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


# --- by counters ------------------------------------------------------------------------------------------------------

CALLS = int(os.environ.get("T2J_LEAK_CALLS", "300"))

MEASURE = """
import sys
import t2j_autodiff
x = jnp.ones(300)

def measured():
    jax.block_until_ready(jnp.ones(300) + 1)
    testing.collect(passes=2)
    counted = testing.counters()
    return {
        "live sites": counted["live_sites"],
        "escaped calls": counted["escaped_calls"],
        "calls in flight": counted["calls_in_flight"],
        "functions": testing.live_functions(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "Python's blocks": sys.getallocatedblocks(),
        "MiB": int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20,
    }

def check(kind, call, calls):
    for _ in range(calls // 2):  # what is made once, and the tables of those who keep the last few
        call()
    before = measured()
    for _ in range(calls):
        call()
    after = measured()
    grown = {name: after[name] - before[name] for name in before}
    most = {"Python's blocks": calls // 2, "MiB": 8}  # one object of each call, or 10,000 results, would be more
    assert all(grown[name] <= most.get(name, 0) for name in grown), (kind, grown)
    print(kind, grown)

def expect(call, kind):
    try:
        jax.block_until_ready(call(x))
    except kind:
        return
    raise SystemExit(f"{kind} was not raised")
"""
KINDS = {
    "plain calls": """
        plain = torch2jax(lambda t: {"y": t * 2, "z": t.sum()})
        call = lambda: plain(x)
    """,
    "errors": """
        def fails(t):
            raise ValueError("no " + str(len(t)))

        failing = torch2jax(fails, output_shapes=x)
        call = lambda: expect(failing, ValueError)
    """,
    "wrong outputs": """
        wrong = torch2jax(lambda t: t[:2], output_shapes=x)
        call = lambda: expect(wrong, Exception)
    """,
    "escapes": """
        kept = []

        def keeps(t):
            kept.append(t)
            return t + 1

        keeping = torch2jax(keeps, output_shapes=x)

        def call():
            jax.block_until_ready(keeping(x))
            assert kept.pop().sum() == 300
            kept.clear()
    """,
    "cycles": """
        def ties(t):
            knot = [t]
            knot.append(knot)
            return t + 1

        tying = torch2jax(ties, output_shapes=x)
        call = lambda: jax.block_until_ready(tying(x))
    """,
    "interrupts": """
        def interrupts(t):
            signal.raise_signal(signal.SIGINT)
            return t + 1

        interrupted = torch2jax(interrupts, output_shapes=x)
        call = lambda: expect(interrupted, KeyboardInterrupt)
    """,
    "gradients": """
        gradient = jax.grad(t2j_autodiff.torch2jax(lambda t: (t.sin() * t.exp().cos()).sum()))
        call = lambda: gradient(x)
    """,
}


def test_calls_of_no_kind_leave_anything_behind(run):
    """In one process, because a process takes longer to start than to make hundreds of calls."""
    kinds = [textwrap.dedent(KINDS[kind]) + f"check({kind!r}, call, {CALLS})\n" for kind in KINDS]
    done = run(MEASURE + "".join(kinds), seconds=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(KINDS)
