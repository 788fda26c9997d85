"""A process forked after the first use can do everything except call torch functions; its parent continues."""

from __future__ import annotations


def test_fork_after_use(run):
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore")  # JAX warns of every fork
        f = torch2jax(lambda x: x * 2)
        x = jnp.ones(3)
        g = jax.jit(f)
        f(x), g(x)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # what needs a thread of XLA never ends
            texts = []
            for call in (f, g):
                try:
                    call(x)
                    texts.append("called")
                except Exception as error:
                    texts.append(f"{type(error).__name__}: {error}")
            os.write(write, f"{(torch.ones(3) + 1).tolist()} {'|'.join(texts)}".encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), os.read(read, 10_000).decode())
        print("parent", f(x).tolist())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 [2.0, 2.0, 2.0]")
    eager, compiled = done.stdout.split("|")
    assert "T2jError" in eager
    assert "T2jError" not in compiled  # the native part refuses a program that was compiled before
    for text in (eager, compiled):
        assert "forked" in text
        assert "'spawn'" in text
    assert "parent [2.0, 2.0, 2.0]" in done.stdout


def test_fork_after_import_alone(run):
    done = run(
        """
        child = os.fork()
        f = torch2jax(lambda x: x * 2)
        print(f"{jax.jit(f)(jnp.ones(3)).tolist()} {f(jnp.ones(3)).tolist()}\\n", end="", flush=True)  # one write
        if child == 0:
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[2.0, 2.0, 2.0] [2.0, 2.0, 2.0]") == 2
    assert done.stdout.endswith("0\n")


def test_fork_during_a_call(run):
    """The child knows nothing of the call, and ends."""
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore")  # JAX warns of every fork
        begun, end = threading.Event(), threading.Event()

        def wait(t):
            begun.set()
            end.wait(60)
            return t + 1

        f = jax.jit(torch2jax(wait, output_shapes=(3,)))
        caller = threading.Thread(target=lambda: print(f(jnp.ones(3)).tolist(), flush=True))
        caller.start()
        begun.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            print(testing.counters()["calls_in_flight"], flush=True)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        end.set()
        caller.join()
        print(os.waitstatus_to_exitcode(status))
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["0", "[2.0, 2.0, 2.0]", "0", ""]
