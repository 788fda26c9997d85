"""KeyboardInterrupt: raised inside the function, or sent to the process during a call."""

from __future__ import annotations

import signal
import time

import pytest
from subprocesses import checks, finish, start

INSIDE = """
def check_eager():
    for warm in (0, 3):
        flag = []
        def fn(t):
            if flag:
                raise KeyboardInterrupt("inside")
            return t + 1
        f = torch2jax(fn, output_shapes=Size(3))
        for _ in range(warm):
            f(jnp.ones(3))
        flag.append(1)
        seen = 0
        try:
            try:
                f(jnp.ones(3))
                assert False, "no exception"
            except KeyboardInterrupt:
                seen += 1
            for _ in range(20000):
                pass
            time.sleep(0.05)
        except KeyboardInterrupt:
            seen += 1
        assert seen == 1, seen
        assert isinstance(last_error(), KeyboardInterrupt)
        flag.clear()
        assert float(f(jnp.ones(3))[0]) == 2

def check_at_inference():
    def fn(t):
        raise KeyboardInterrupt
    seen = 0
    for call in (torch2jax(fn), jax.jit(torch2jax(fn))):
        try:
            call(jnp.ones(3))
        except KeyboardInterrupt:
            seen += 1
    assert seen == 2, seen

def check_under_jit():
    flag = [1]
    def fn(t):
        if flag:
            raise KeyboardInterrupt("inside")
        return t + 1
    g = jax.jit(torch2jax(fn, output_shapes=Size(3)))
    try:
        jax.block_until_ready(g(jnp.ones(3)))
        for _ in range(20000):
            pass
        assert False, "no exception"
    except KeyboardInterrupt:
        pass
    flag.clear()
    assert float(g(jnp.ones(3))[0]) == 2

def check_a_signal_during_a_call():
    import signal
    def fn(t):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        for _ in range(600):
            time.sleep(0.05)
        return t + 1
    f = torch2jax(fn, output_shapes=Size(3))
    started = time.monotonic()
    try:
        f(jnp.ones(3))
        assert False, "no exception"
    except KeyboardInterrupt:
        pass
    assert time.monotonic() - started < 25, "the call ran to its end"
    np.testing.assert_array_equal(torch2jax(torch.sin)(jnp.zeros(3)), np.zeros(3))

def check_a_signal_while_the_main_thread_waits():
    "The call runs on a thread of XLA; the interrupt comes when the wait ends."
    import signal
    def fn(t):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(0.6)
        return t + 1
    f = torch2jax(fn, output_shapes=Size(3))
    g = jax.jit(lambda a: f((a @ a)[0, :3]))
    try:
        jax.block_until_ready(g(jnp.ones((700, 700))))
        for _ in range(20000):
            pass
        assert False, "no exception"
    except KeyboardInterrupt:
        pass
    np.testing.assert_array_equal(torch2jax(torch.sin)(jnp.zeros(3)), np.zeros(3))

def check_another_signal_handler():
    import signal
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    def fn(t):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.05)
        return t + 1
    try:
        assert float(torch2jax(fn, output_shapes=Size(3))(jnp.ones(3))[0]) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]
"""


@pytest.fixture(scope="module")
def inside():
    return checks(INSIDE)


@pytest.mark.parametrize("name", [line[4:].split("(")[0] for line in INSIDE.splitlines() if line.startswith("def ")])
def test_inside(inside, name):
    assert inside[name] == "ok", inside[name]


def test_the_process_of_these_checks_ends_well(inside):
    assert inside["exit"] == "ok", inside["exit"]


def test_control_c_ends_a_script_in_a_long_call():
    process = start("""
def fn(t):
    print("running", flush=True)
    for _ in range(1200):
        time.sleep(0.05)
    return t + 1

torch2jax(fn, output_shapes=Size(3))(jnp.ones(3))
print("not reached", flush=True)
""")
    line = process.stdout.readline()
    assert line.strip() == "running"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    finished = finish(process, 40)
    assert finished.code in (-signal.SIGINT, 130), finished
    assert "KeyboardInterrupt" in finished.err, finished
    assert "not reached" not in finished.out
