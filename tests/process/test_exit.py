"""The interpreter ends while torch calls are pending: it neither crashes nor hangs, whichever way it ends.

`T2J_EXIT_REPEATS` sets how often the 8-device program ends (default 5).
"""

from __future__ import annotations

import os

import pytest
from subprocesses import MANY_DEVICES, finish, run, start

WAYS = {
    "end": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "uncaught": ("raise LookupError('the end')", 1),
}

ONE_DEVICE = """
def slow(t):
    time.sleep(0.01)
    return t @ t / 300

f = jax.jit(torch2jax(slow, output_shapes=Size(300, 300)))
x = jnp.eye(300)
big = jnp.ones((1500, 1500))
f(x).block_until_ready()
pending = []
for i in range(20):
    y = jax.jit(lambda a: (a @ a)[:300, :300])(big)  # not ready when the call is dispatched
    pending.append(f(f(y)))
del pending[::2]
print("pending", counters()["calls_in_flight"], flush=True)
"""

# 8 devices call at once, in other threads than the main one, and none is waited for.
EIGHT_DEVICES = """
from jax.sharding import PartitionSpec as P
assert len(jax.devices()) == 8
mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

def slow(t):
    s = 0
    for i in range(3000):
        s += i
    time.sleep(0.002)
    return t + 1

f = torch2jax(slow, output_shapes=Size(1, 64))
one = lambda a: f(f(a))
step = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=P("d"), out_specs=P("d")))
x = jax.device_put(jnp.ones((8, 64)), jax.sharding.NamedSharding(mesh, P("d")))
jax.block_until_ready(step(x))
pending = [step(x) for _ in range(4)]
del pending[1]
print("pending", flush=True)
"""


@pytest.mark.parametrize("way", WAYS)
def test_one_device(way):
    line, code = WAYS[way]
    finished = run(ONE_DEVICE + line)
    assert finished.code == code, finished
    assert "Fatal" not in finished.err, finished
    assert "terminate called" not in finished.err, finished
    assert ("LookupError" in finished.err) == (way == "uncaught"), finished


def test_eight_devices():
    """Two processes at a time."""
    repeats = int(os.environ.get("T2J_EXIT_REPEATS", "5"))
    ways = [list(WAYS)[i % len(WAYS)] for i in range(repeats)]
    bad = []
    for first in range(0, repeats, 2):
        batch = ways[first : first + 2]
        running = [start(EIGHT_DEVICES + WAYS[way][0], **MANY_DEVICES) for way in batch]
        for way, process in zip(batch, running, strict=True):
            finished = finish(process)
            if finished.code != WAYS[way][1] or "Fatal" in finished.err or "pending" not in finished.out:
                bad.append(f"{way}: {finished}")
    assert not bad, f"{len(bad)} of {repeats} did not end well; the first:\n{bad[0]}"


def test_a_daemon_thread_that_goes_on_calling():
    finished = run("""
f = torch2jax(lambda t: t + 1, output_shapes=Size(3))
f(jnp.ones(3))
g = jax.jit(f)

def forever(call):
    while True:
        call(jnp.ones(3))

for call in (f, g, f):
    threading.Thread(target=forever, args=(call,), daemon=True).start()
time.sleep(0.3)
print("leaving")
""")
    assert finished.code == 0, finished
    assert "leaving" in finished.out
    assert "Fatal" not in finished.err, finished


def test_a_call_in_an_exit_hook():
    """Hooks registered after the import run before calls are refused; those registered before it get an error."""
    finished = run("""
import atexit
f = torch2jax(lambda t: t + 1, output_shapes=Size(3))
f(jnp.ones(3))
atexit.register(lambda: print("hook", float(f(jnp.ones(3))[0])))

class Late:
    def __del__(self):
        try:
            print("late", f(jnp.ones(3)))
        except BaseException as error:
            print("late", type(error).__name__)

late = Late()
""")
    assert finished.code == 0, finished
    assert "hook 2.0" in finished.out, finished
    assert "Fatal" not in finished.err, finished


def test_an_exit_from_inside_the_function():
    """`sys.exit` inside torch code is SystemExit at the call, and ends the program with its code."""
    finished = run("""
def leaving(t):
    sys.exit(7)

f = torch2jax(leaving, output_shapes=Size(3))
f(jnp.ones(3))
""")
    assert finished.code == 7, finished
