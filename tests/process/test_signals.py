"""KeyboardInterrupt and SystemExit inside a call."""

from __future__ import annotations

from common import ALL


def test_a_keyboard_interrupt_arrives(run):
    """In an eager call and in a compiled one."""
    done = run(
        """
        import signal
        def slow(x):
            signal.raise_signal(signal.SIGINT)
            return x

        f = torch2jax(slow, output_shapes=(3,))
        for call in (f, jax.jit(f)):
            try:
                call(jnp.ones(3)).block_until_ready()
            except KeyboardInterrupt:
                print("interrupted")
            print(torch2jax(lambda x: x * 2)(jnp.ones(3)).tolist())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted\n[2.0, 2.0, 2.0]\n" * 2


def test_a_system_exit_ends_the_program_with_its_code(run):
    done = run(
        """
        torch2jax(lambda x: sys.exit(5), output_shapes=(3,))(jnp.ones(3))
        """
    )
    assert done.returncode == 5, done.stderr


# Compiled calls only: during a trace, JAX also traces what a signal handler computes, even without t2j.
CALLS = {
    "grad": "jax.jit(jax.grad(f))",
    "jvp": "jax.jit(lambda x: jax.jvp(f, (x,), (x,))[1])",
    "vmap": "jax.jit(lambda x: jax.vmap(f)(x[None]))",
    "hvp": "jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (x,))[1])",
    "a plain call": "jax.jit(f)",
}
SIGNALS = 300 if ALL else 100


def test_a_signal_handler_may_call_and_differentiate(run):
    """Send signals at random moments of a call; each handler requests the next signal at its end."""
    calls = ", ".join(f"{name!r}: {call}" for name, call in CALLS.items())
    done = run(
        f"""
        import random
        from t2j_autodiff import torch2jax
        w = torch.linspace(-1, 1, 1600).reshape(40, 40)
        f = torch2jax(lambda t: (t @ w).tanh().sin().cos().sin().cos().sin().cos().sin().cos().sin().cos().sin().sum())
        x = jnp.linspace(-1, 1, 1600).reshape(40, 40)

        def handle_signals_in(g):
            right = [np.asarray(g(x)) for _ in range(2)][-1]
            wrong, handled = [], []

            def check():
                if not np.allclose(g(x), right, rtol=1e-4, atol=1e-5):
                    wrong.append(1)

            def handler(*_):
                check()
                handled.append(1)
                if len(handled) < {SIGNALS}:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))

            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            while len(handled) < {SIGNALS}:
                check()
            return "handled", len(handled), "wrong", len(wrong)

        for name, g in {{{calls}}}.items():
            print(name, *handle_signals_in(g), flush=True)
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name} handled {SIGNALS} wrong 0" for name in CALLS]


def test_handlers_that_interrupt_each_other_without_end_raise(run):
    """Without an error XLA would wait forever for one of the programs that it runs at the same time."""
    done = run(
        """
        def slow(x):
            if not x.is_meta:
                signal.raise_signal(signal.SIGUSR1)
            return x * 2

        f = jax.jit(torch2jax(slow))
        x = jnp.ones(3)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        f(x)
        signal.signal(signal.SIGUSR1, lambda *_: f(x))
        try:
            f(x)
        except Exception as error:
            print("nested in each other on one thread" in str(error))
        signal.signal(signal.SIGUSR1, lambda *_: None)
        print(f(x).tolist())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n[2.0, 2.0, 2.0]\n"
