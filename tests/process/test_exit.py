"""The interpreter ends while torch calls are pending: it neither crashes nor hangs, whichever way it ends.

`T2J_EXIT_REPEATS` sets how often the 8-device program ends (default 5).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

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


ENDS = {way: (ONE_DEVICE + line, code) for way, (line, code) in WAYS.items()}
ENDS["exit_hook"] = (
    """
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
""",
    0,
)
ENDS["inside_the_function"] = (
    """
def leaving(t):
    sys.exit(7)

torch2jax(leaving, output_shapes=Size(3))(jnp.ones(3))
""",
    7,
)


@pytest.fixture(scope="module")
def ended():
    """All these processes, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, code) for name, (code, _) in ENDS.items()}


@pytest.mark.parametrize("name", ENDS)
def test_one_device(ended, name):
    finished = ended[name].result()
    assert finished.code == ENDS[name][1], finished
    assert "Fatal" not in finished.err, finished
    assert "terminate called" not in finished.err, finished
    assert ("LookupError" in finished.err) == (name == "uncaught"), finished
    assert ("hook 2.0" in finished.out) == (name == "exit_hook"), finished


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
