"""Wrapping, compiling, calling and failing again and again leaves nothing alive and memory flat.

`T2J_LEAK_WRAPS` (default 2000) is how many functions are wrapped, compiled and called, `T2J_LEAK_CALLS` (default 20000) how
often one is called.
"""

from __future__ import annotations

import os

import pytest
from subprocesses import checks

PRELUDE = """
WRAPS, CALLS = int(os.environ["T2J_LEAK_WRAPS"]), int(os.environ["T2J_LEAK_CALLS"])
import weakref

def resident():
    "Bytes of this process that are in memory and its own."
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private"))

class Model:
    "A callable that holds 100 kB."
    def __init__(self):
        self.data = torch.zeros(25_000)
    def __call__(self, t):
        return t + self.data[:3]

x = jnp.ones(3)
"""

WRAPS = """
def check_wraps():
    "Each is wrapped, called, compiled by the user's jit, called again and dropped."
    references = []
    def round():
        model = Model()
        references.append(weakref.ref(model))
        f = torch2jax(model, output_shapes=Size(3))
        f(x)
        jax.jit(f)(x)
    gc.collect()
    before = live_functions(), counters()["live_sites"]
    for _ in range(WRAPS // 4):
        round()
    gc.collect()
    early = resident()
    for i in range(WRAPS - WRAPS // 4):
        round()
        if i % 500 == 0:
            gc.collect()
    late = resident()
    alive = sum(reference() is not None for reference in references)
    print("WRAPS", len(references), "alive", alive, "functions", live_functions() - before[0],
          "sites", counters()["live_sites"] - before[1], "grown", late - early)
    assert alive == 0, alive
    assert live_functions() == before[0]
    assert counters()["live_sites"] == before[1]
    assert late - early < (WRAPS - WRAPS // 4) * 40_000, (early, late)  # 100 kB each if they stayed
"""

CALLS = """
def flat(step, n, allowed=6 << 20):
    "Memory after n steps is what it was after n / 4."
    for _ in range(n // 4):
        step()
    early = resident()
    for _ in range(n - n // 4):
        step()
    late = resident()
    print(step.__name__, n, "grown", late - early)
    assert late - early < allowed, f"{late - early} bytes in {n - n // 4} steps"

def check_calls():
    f = torch2jax(lambda t, u: (t + u, t * u))
    a = jnp.ones((16, 16))
    g = jax.jit(f)
    def step():
        f(a, a), g(a, a)
    flat(step, CALLS // 2)

def check_calls_with_trees_and_constants():
    f = torch2jax(lambda tree, scale: {"out": tree["a"] * scale, "text": "constant"})
    def step():
        f({"a": x}, 2.0)
    flat(step, CALLS // 8)

def check_calls_with_large_outputs():
    f = torch2jax(lambda t: torch.sin(t) + 1)
    a = jnp.ones(1 << 19)
    def step():
        f(a).block_until_ready()
    flat(step, 400, 24 << 20)

def check_exceptions():
    flag = []
    def fn(t):
        if flag:
            raise ValueError("x" * 1000)
        return t
    f = torch2jax(fn, output_shapes=Size(20_000))
    a = jnp.ones(20_000)
    f(a), f(a), f(a)
    flag.append(1)
    def step():
        try:
            f(a + 1)
        except ValueError:
            pass
    flat(step, 1200)

def check_escapes():
    box = []
    f = torch2jax(lambda t: box.append(t) or t + 1, output_shapes=Size(20_000))
    def step():
        try:
            f(jnp.ones(20_000))
        except TensorEscapeError:
            pass
        box.clear()
    gc.freeze()
    flat(step, 120)  # 80 kB each
    gc.unfreeze()
    assert counters()["escaped_calls"] == 0

def check_mutable_and_cloned_arguments():
    import warnings
    def fn(t):
        t.add_(1)
        return t
    f, g = torch2jax(fn, mutable_argnums=0), torch2jax(fn)
    a = jnp.ones(20_000)
    def step():
        f(a), g(a)
    flat(step, 1500)

def check_seeded_calls():
    f = torch2jax(lambda t: t + torch.rand(100), rng=True)
    a, key = jnp.ones(100), jax.random.key(0)
    def step():
        f(key, a)
    flat(step, 3000)

def check_modules():
    apply, variables = module2jax(torch.nn.Linear(100, 100))
    a = jnp.ones((1, 100))
    def step():
        apply(variables, a)
    flat(step, 2500)

def check_threads_that_come_and_go():
    f = torch2jax(lambda t: t + 1)
    f(x)
    def step():
        thread = threading.Thread(target=f, args=(x,))
        thread.start()
        thread.join()
    flat(step, 3000, 4 << 20)

def check_conversions():
    a, t = jnp.ones(1000), torch.ones(1000)
    def step():
        j2t(a), t2j(t)
    flat(step, 4000)

def check_programs():
    "A program that is compiled anew for each constant keeps one function."
    f = torch2jax(lambda t: t + 1, output_shapes=Size(3))
    f(x)
    before = live_functions()
    for i in range(40):
        jax.jit(lambda a, i=i: f(a) * i)(x)
    assert live_functions() <= before + 1, live_functions() - before
    gc.collect()
    sites = counters()["live_sites"]
    for i in range(40):
        jax.jit(lambda a, i=i: f(a) * i)(x)
    gc.collect()
    assert counters()["live_sites"] - sites <= 1, counters()["live_sites"] - sites
"""


def names(text):
    return [line[4:].split("(")[0] for line in text.splitlines() if line.startswith("def check_")]


@pytest.fixture(scope="module")
def results():
    wraps, calls = (os.environ.get(name, n) for name, n in (("T2J_LEAK_WRAPS", "2000"), ("T2J_LEAK_CALLS", "20000")))
    limit = 240 + int(wraps) / 10
    return checks(CALLS, WRAPS, prelude=PRELUDE, limit=limit, T2J_LEAK_WRAPS=wraps, T2J_LEAK_CALLS=calls)


@pytest.mark.parametrize("name", [*names(CALLS + WRAPS), "exit"])
def test_nothing_is_left(results, name):
    assert results[name] == "ok", results[name]
