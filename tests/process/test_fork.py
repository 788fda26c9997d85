"""Forking: XLA's threads do not survive a fork, so a child of a process that used JAX cannot call, and is told so."""

from __future__ import annotations

import pytest
from subprocesses import checks

PRELUDE = """
import signal, traceback
def in_child(action, limit=40):
    "The exit code of a forked child that runs `action`."
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(limit)
        try:
            action()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

USED = """
f = torch2jax(lambda t: t * 2, output_shapes=Size(3))
g = jax.jit(f)
x = jnp.ones(3)
def parent_goes_on():
    for call in (f, g, torch2jax(lambda t: t * 2)):
        assert float(call(x)[0]) == 2

def check_a_child_that_only_uses_torch():
    parent_goes_on()
    def child():
        a = torch.arange(100.0)
        assert float((a @ a)) == 328350
        assert sum(range(10)) == 45
        gc.collect()
    assert in_child(child) == 0
    parent_goes_on()

def check_a_child_that_ends_like_a_program():
    "Exit hooks and finalisers run in it."
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        torch.ones(3).sum()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    parent_goes_on()

def check_a_child_that_calls_gets_the_error():
    for call in (f, g):
        call(x)
        def child(call=call):
            for _ in range(2):
                try:
                    call(x)
                except Exception as error:
                    assert "forked" in str(error) and "spawn" in str(error), error
                else:
                    raise AssertionError("no error")
        assert in_child(child) == 0
    parent_goes_on()

def check_a_child_that_drops_functions():
    def child():
        global f, g
        del f, g
        gc.collect()
    assert in_child(child) == 0
    parent_goes_on()

def check_a_fork_inside_the_function():
    def fn(t):
        assert in_child(lambda: torch.ones(3).sum().item()) == 0
        return t * 2
    h = torch2jax(fn, output_shapes=Size(3))
    for _ in range(2):
        assert float(h(x)[0]) == 2
    parent_goes_on()

def check_workers_of_a_data_loader():
    "They fork while JAX is in use, and only use torch."
    data = torch.utils.data.TensorDataset(torch.arange(8.0))
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context="fork", timeout=40)
    total = 0.0
    for (batch,) in loader:
        total += float(f(t2j(batch.repeat(2)[:3]))[0])
    assert total == 2 * (0 + 2 + 4 + 6)
    parent_goes_on()

def check_a_child_while_another_thread_is_calling():
    stop = []
    def busy():
        while not stop:
            f(x)
    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            assert in_child(lambda: torch.ones(3).sum().item()) == 0
    finally:
        stop.append(1)
        thread.join()
    parent_goes_on()

def check_subprocesses():
    import subprocess
    assert subprocess.run(["echo", "hello"], capture_output=True, preexec_fn=lambda: None).stdout == b"hello\\n"
    parent_goes_on()
"""

ONLY_IMPORTED = """
def check_a_child_of_a_process_that_only_imported():
    "JAX has not been used, so the child is a first user."
    def child():
        f = torch2jax(lambda t: t * 2, output_shapes=Size(3))
        assert float(f(jnp.ones(3))[0]) == 2
        assert float(jax.jit(f)(jnp.ones(3))[0]) == 2
    assert in_child(child) == 0

def check_then_the_parent_may_use_it():
    f = torch2jax(lambda t: t * 2)
    assert float(f(jnp.ones(3))[0]) == 2
"""


def names(text):
    return [line[4:].split("(")[0] for line in text.splitlines() if line.startswith("def check_")]


@pytest.fixture(scope="module")
def used():
    return checks(USED, prelude=PRELUDE)


@pytest.fixture(scope="module")
def only_imported():
    return checks(ONLY_IMPORTED, prelude=PRELUDE)


@pytest.mark.parametrize("name", [*names(USED), "exit"])
def test_after_use(used, name):
    assert used[name] == "ok", used[name]


@pytest.mark.parametrize("name", [*names(ONLY_IMPORTED), "exit"])
def test_after_import_alone(only_imported, name):
    assert only_imported[name] == "ok", only_imported[name]
