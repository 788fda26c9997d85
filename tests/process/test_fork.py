"""A process forked after the first use can do everything except call torch functions; its parent continues."""

from __future__ import annotations


def test_fork_after_use(run):
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore")  # JAX warns of every fork
        f = torch2jax(lambda x: x * 2)
        x = jnp.ones(3)
        f(x)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                f(x)
                text = "called"
            except Exception as error:
                text = str(error)
            os.write(write, f"{(torch.ones(3) + 1).tolist()} {text}".encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), os.read(read, 10_000).decode())
        print("parent", f(x).tolist())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 [2.0, 2.0, 2.0]")
    assert "forked" in done.stdout
    assert "'spawn'" in done.stdout
    assert "parent [2.0, 2.0, 2.0]" in done.stdout


def test_fork_after_import_alone(run):
    done = run(
        """
        child = os.fork()
        f = torch2jax(lambda x: x * 2)
        print(jax.jit(f)(jnp.ones(3)).tolist(), f(jnp.ones(3)).tolist(), flush=True)
        if child == 0:
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[2.0, 2.0, 2.0] [2.0, 2.0, 2.0]") == 2
    assert done.stdout.endswith("0\n")
