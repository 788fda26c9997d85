"""Many Python threads on one function, 8 virtual devices with collectives, modules shared by all of them."""

from __future__ import annotations

import pytest
from subprocesses import MANY_DEVICES, checks

PYTHON_THREADS = """
def together(work, n=16):
    "Run `work(i)` in n threads that start at once; raise what any of them raised."
    barrier, errors = threading.Barrier(n), []
    def run(i):
        try:
            barrier.wait()
            work(i)
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    if errors:
        raise errors[0]

def check_one_function():
    f = torch2jax(lambda t, u: (t @ u, {"sum": t.sum() + 1}))
    g = jax.jit(f)
    def work(i):
        a = jnp.eye(8) * i
        b = jnp.arange(64.0).reshape(8, 8)
        for k in range(40):
            out, rest = (f if k % 2 else g)(a, b)
            np.testing.assert_array_equal(out, i * np.arange(64.0).reshape(8, 8))
            assert float(rest["sum"]) == 8 * i + 1
    together(work)

def check_the_first_call():
    "Tracing, inference and compilation all race."
    for round in range(5):
        runs = []
        def fn(t, scale):
            runs.append(1)
            return t * scale
        f = torch2jax(fn)
        def work(i):
            np.testing.assert_array_equal(f(jnp.ones(3), float(round + 2)), np.full(3, round + 2.0))
        together(work)
        assert len(f._fns) == 1, "one signature"

def check_many_signatures():
    f = torch2jax(lambda t, *, c=0: t + t.numel() + c)
    def work(i):
        for n in range(1, 12):
            np.testing.assert_array_equal(f(jnp.zeros(n)), np.full(n, n))
            np.testing.assert_array_equal(f(jnp.zeros((n, i % 3 + 1)), c=1), np.full((n, i % 3 + 1), n * (i % 3 + 1) + 1))
    together(work)

def check_wrapping_and_dropping():
    before = live_functions()
    def work(i):
        for k in range(15):
            f = torch2jax(lambda t, k=k: t + k + i)
            assert float(f(jnp.zeros(()))) == k + i
    together(work)
    gc.collect()
    assert live_functions() - before <= 1, live_functions() - before

def check_errors_between_good_calls():
    def fn(t):
        if t[0] < 0:
            raise KeyError(int(t[0]))
        return t * 2
    f = torch2jax(fn, output_shapes=Size(1))
    def work(i):
        for k in range(30):
            try:
                out = f(jnp.array([float(-i - 1 if k % 3 == 0 else i)]))
                assert k % 3 and float(out[0]) == 2 * i
            except KeyError as error:
                assert k % 3 == 0 and error.args == (-i - 1,), error
    together(work)

def check_escapes_between_good_calls():
    "What one thread's call keeps does not disturb the others."
    kept = []
    def keep(t):
        kept.append(t[1:])
        return t
    bad, good = torch2jax(keep, output_shapes=Size(500)), torch2jax(lambda t: t.clone() * 2, output_shapes=Size(500))
    shared = jnp.arange(500.0)
    def work(i):
        for k in range(8):
            if i == 0:
                try:
                    bad(shared)
                except TensorEscapeError:
                    pass
                else:
                    raise AssertionError("no error")
            else:
                np.testing.assert_array_equal(good(shared), 2 * np.arange(500.0))
    together(work, 6)
    for t in kept:
        np.testing.assert_array_equal(t.numpy(), np.arange(1.0, 500.0))
    kept.clear()
    gc.collect()
    assert counters()["escaped_calls"] == 0, counters()

def check_seeded_calls():
    f = torch2jax(lambda t: t + torch.randn(64), rng=True)
    want = {i: np.asarray(f(jax.random.key(i), jnp.zeros(64))) for i in range(16)}
    def work(i):
        for _ in range(20):
            np.testing.assert_array_equal(f(jax.random.key(i), jnp.zeros(64)), want[i])
    together(work)

def check_a_module_with_weights_per_thread():
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32))
    before = [p.clone() for p in model.parameters()]
    apply, variables = module2jax(model)
    jitted = jax.jit(apply)
    a = jnp.ones((4, 32)) / 32
    scaled = [jax.tree.map(lambda v: v * (i + 1), variables) for i in range(16)]
    want = []
    for v in scaled:
        p = v["params"]
        want.append(np.tanh(a @ p["0.weight"].T + p["0.bias"]) @ np.asarray(p["2.weight"]).T + p["2.bias"])
    def work(i):
        for k in range(30):
            np.testing.assert_allclose((apply if k % 2 else jitted)(scaled[i], a), want[i], rtol=2e-5, atol=2e-5)
    together(work)
    for p, q in zip(model.parameters(), before):
        assert torch.equal(p, q)

def check_counters_are_clean():
    gc.collect()
    assert counters()["escaped_calls"] == 0 and counters()["calls_in_flight"] == 0, counters()
"""

DEVICES = """
from jax.sharding import PartitionSpec as P, NamedSharding
mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, P("d"))
x = jax.device_put(jnp.arange(64.0).reshape(8, 8), split)
here = np.arange(64.0, dtype=np.float32).reshape(8, 8)
f = torch2jax(lambda t: t * 2)
center = torch2jax(lambda t, total: t - total / 8)
def one(a):
    total = jax.lax.psum(f(a), "d")
    everything = jax.lax.all_gather(center(a, total), "d")
    return f(a) + everything.sum(0) / 8
def over_shards(function):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("d"), out_specs=P("d")))
def expected():
    total = (2 * here).sum(0)
    return 2 * here + (here - total / 8).sum(0) / 8

def check_collectives_around_calls():
    assert len(jax.devices()) == 8
    step = over_shards(one)
    for _ in range(150):
        out = step(x)
        jax.block_until_ready(out)
    np.testing.assert_allclose(out, expected(), rtol=1e-6)

def check_collectives_beside_a_thread_that_wants_the_gil():
    stop = []
    def hog():
        n = 0
        while not stop:
            n += 1
    thread = threading.Thread(target=hog)
    thread.start()
    try:
        step = over_shards(one)
        for _ in range(15):
            out = step(x)
            jax.block_until_ready(out)
    finally:
        stop.append(1)
        thread.join()
    np.testing.assert_allclose(out, expected(), rtol=1e-6)

def check_steps_from_several_threads():
    step = over_shards(lambda a: f(f(a)) + 1)
    errors = []
    def work(i):
        try:
            for _ in range(20):
                np.testing.assert_array_equal(jax.block_until_ready(step(x + i)), 4 * (here + i) + 1)
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not errors, errors[0]

def check_a_module_with_weights_per_device():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    before = [p.clone() for p in model.parameters()]
    apply, variables = module2jax(model)
    stacked = jax.tree.map(lambda v: jnp.stack([v * (i + 1) for i in range(8)]), variables)
    stacked = jax.device_put(stacked, split)
    step = jax.jit(jax.shard_map(
        lambda v, a: apply(jax.tree.map(lambda w: w[0], v), a), mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P("d")
    ))
    p = {k: np.asarray(v) for k, v in variables["params"].items()}
    want = np.concatenate([
        np.tanh(here[i : i + 1] / 64 @ p["0.weight"].T * (i + 1) + p["0.bias"] * (i + 1)) @ p["2.weight"].T * (i + 1)
        + p["2.bias"] * (i + 1)
        for i in range(8)
    ])
    for _ in range(60):
        np.testing.assert_allclose(jax.block_until_ready(step(stacked, x / 64)), want, rtol=2e-5, atol=2e-5)
    for p, q in zip(model.parameters(), before):
        assert torch.equal(p, q)

def check_the_state_of_torch_is_the_default_on_every_device():
    def fn(t):
        v = torch.ones(8, requires_grad=True)
        (grad,) = torch.autograd.grad((v * v * t).sum(), v)
        return grad + (not torch.is_grad_enabled()) + torch.is_autocast_enabled("cpu")
    g = torch2jax(fn, output_shapes=Size(8))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        step = over_shards(lambda a: g(a[0])[None])
        for _ in range(5):
            np.testing.assert_array_equal(jax.block_until_ready(step(x)), 2 * here)

def check_an_error_on_every_device():
    flag = [1]
    def fn(t):
        if flag:
            raise KeyError("on every device")
        return t + 1
    g = torch2jax(fn, output_shapes=Size(1, 8))
    step = over_shards(g)
    for _ in range(3):
        try:
            jax.block_until_ready(step(x))
            assert False, "no error"
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            assert "on every device" in str(error), error
        assert isinstance(last_error(), KeyError)
    flag.clear()
    np.testing.assert_array_equal(jax.block_until_ready(step(x)), here + 1)

def check_escapes_on_every_device():
    kept, flag = [], [1]
    def fn(t):
        if flag:
            kept.append(t)
        return t + 1
    step = over_shards(torch2jax(fn, output_shapes=Size(1, 8)))
    a = jax.device_put(jnp.arange(64.0).reshape(8, 8), split)
    try:
        jax.block_until_ready(step(a))
        assert False, "no error"
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        assert "TensorEscapeError" in str(error)
    a.delete()
    churn = [jnp.full((1, 8), 7.0) + i for i in range(200)]
    flag.clear()
    rows = sorted((t.numpy()[0] for t in kept), key=lambda r: r[0])
    for row in rows:
        np.testing.assert_array_equal(row, here[int(row[0]) // 8])
    kept.clear()
    gc.collect()
    assert counters()["escaped_calls"] == 0, counters()

def check_whole_arrays_over_auto_axes():
    np.testing.assert_array_equal(f(x), 2 * here)
    np.testing.assert_array_equal(jax.jit(f)(x), 2 * here)
    np.testing.assert_array_equal(torch2jax(lambda t: t.cumsum(0))(x), here.cumsum(0))

def check_a_device_that_is_not_the_first():
    for device in jax.devices()[1::3]:
        a = jax.device_put(jnp.arange(3.0), device)
        for call in (f, jax.jit(f)):
            out = call(a)
            assert out.devices() == {device}
            np.testing.assert_array_equal(out, [0, 2, 4])

def check_arguments_committed_to_different_devices():
    g = torch2jax(lambda t, u: t + u)
    a, b = (jax.device_put(jnp.ones(3), device) for device in jax.devices()[:2])
    for call in (g, g, jax.jit(g)):
        try:
            call(a, b)
            assert False, "no error"
        except ValueError as error:
            assert "device" in str(error), error
    np.testing.assert_array_equal(g(a, a), np.full(3, 2))
    np.testing.assert_array_equal(g(b, jnp.ones(3)), np.full(3, 2))

def check_counters_are_clean():
    gc.collect()
    assert counters()["escaped_calls"] == 0 and counters()["calls_in_flight"] == 0, counters()
"""


def names(text):
    return [line[4:].split("(")[0] for line in text.splitlines() if line.startswith("def check_")]


@pytest.fixture(scope="module")
def python_threads():
    return checks(PYTHON_THREADS)


@pytest.fixture(scope="module")
def devices():
    return checks(DEVICES, **MANY_DEVICES)


@pytest.mark.parametrize("name", [*names(PYTHON_THREADS), "exit"])
def test_python_threads(python_threads, name):
    assert python_threads[name] == "ok", python_threads[name]


@pytest.mark.parametrize("name", [*names(DEVICES), "exit"])
def test_eight_devices(devices, name):
    assert devices[name] == "ok", devices[name]
