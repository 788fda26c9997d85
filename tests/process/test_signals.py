"""KeyboardInterrupt and SystemExit inside a call."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("jitted", [False, True])
def test_a_keyboard_interrupt_arrives(run, jitted):
    done = run(
        f"""
        import signal
        def slow(x):
            signal.raise_signal(signal.SIGINT)
            return x

        f = torch2jax(slow, output_shapes=(3,))
        f = jax.jit(f) if {jitted} else f
        try:
            f(jnp.ones(3)).block_until_ready()
        except KeyboardInterrupt:
            print("interrupted")
        print(torch2jax(lambda x: x * 2)(jnp.ones(3)).tolist())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["interrupted", "[2.0, 2.0, 2.0]"]


def test_a_system_exit_ends_the_program_with_its_code(run):
    done = run(
        """
        torch2jax(lambda x: sys.exit(5), output_shapes=(3,))(jnp.ones(3))
        """
    )
    assert done.returncode == 5, done.stderr
