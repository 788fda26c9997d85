"""What exceptions leave behind: no arrays, no functions, no harm to other calls."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import JaxError, here, raising, x
from t2j_core import Size, last_error, torch2jax
from t2j_core._base.config import config
from t2j_core.testing import collect, counters, live_functions

pytestmark = pytest.mark.usefixtures("intact")


def test_one_exception_object_raised_again_and_again():
    error = ValueError("the same object")

    def function(t):
        raise error

    f = torch2jax(function, output_shapes=Size(2, 3))
    for _ in range(100):
        with pytest.raises(ValueError, match="the same object") as info:
            f(x)
        assert info.value is error
    assert len(traceback.format_exception(error)) < 20_000


def test_more_exceptions_than_are_kept():
    f = torch2jax(raising(ValueError, "again"), output_shapes=Size(2, 3))
    for i in range(200):
        with pytest.raises(ValueError):
            f(x + i)
    assert isinstance(last_error(), ValueError)


def test_an_exception_that_carries_an_argument():
    class Carries(Exception):
        def __init__(self, tensor):
            super().__init__("see tensor")
            self.tensor = tensor

    def function(t):
        raise Carries(t[1:])

    n = 1 << 14
    for jitted in (False, True):
        f = torch2jax(function, output_shapes=Size(n))
        a = jnp.arange(float(n))
        with pytest.raises((Carries, *JaxError)):
            jax.block_until_ready((jax.jit(f) if jitted else f)(a))
        error = last_error()
        assert type(error) is Carries
        a.delete()
        churn = [jnp.full((n,), 7.0) + i for i in range(60)]
        np.testing.assert_array_equal(error.tensor.numpy(), np.arange(1.0, n, dtype=np.float32))
        del churn
    assert counters()["escaped_calls"] == 0


def test_failed_calls_keep_no_arrays():
    """At most the newest exception is kept with what its frames hold."""
    references = []
    f = torch2jax(lambda t: 1 / 0, output_shapes=Size(1000))

    def step(i):
        a = jnp.full((1000,), float(i))
        references.append(weakref.ref(a))
        f(a)

    for i in range(8):
        with pytest.raises(ZeroDivisionError):
            step(i)
    collect(passes=2)
    assert sum(reference() is not None for reference in references) <= 1


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("is_handled", [False, True], ids=["raised", "in the context"])
def test_an_exception_keeps_no_tensor_of_its_frames(is_handled, jitted):
    references = []

    def divide(t):
        part = t[1:]
        references.extend(map(weakref.ref, (t, part)))
        return part / (1 / 0)

    def function(t):
        try:
            return divide(t)
        except ZeroDivisionError:
            if is_handled:
                raise ValueError("in place of the other") from None
            raise

    f = torch2jax(function, output_shapes=Size(2))
    with pytest.raises(Exception) as caught:
        jax.block_until_ready((jax.jit(f) if jitted else f)(jnp.ones(3)))
    assert isinstance(caught.value.__context__, ZeroDivisionError) or jitted or not is_handled
    assert [reference() for reference in references] == [None, None]


def test_failed_calls_leave_no_memory():
    f = torch2jax(raising(ValueError, "wrong"), output_shapes=Size(2, 3))
    blocks = []
    for _ in range(3):  # the first hundreds fill tables
        for _ in range(300):
            with pytest.raises(ValueError, match="wrong"):
                f(x)
        collect(passes=2)
        blocks.append(sys.getallocatedblocks())
    assert blocks[-1] - blocks[-2] < 100


def test_failed_calls_keep_no_functions():
    collect(passes=2)
    before = live_functions()

    def once():
        f = torch2jax(lambda t: 1 / 0, output_shapes=Size(2, 3))
        with pytest.raises(ZeroDivisionError):
            f(x)
        with pytest.raises(JaxError):
            jax.block_until_ready(jax.jit(f)(x))

    for _ in range(8):
        once()
    other = jax.jit(torch2jax(lambda t: 1 / 0, output_shapes=Size(2, 3)))
    for _ in range(config.kept_errors):  # errors under `jit` are kept for a while, with the frames they went through
        with pytest.raises(JaxError):
            jax.block_until_ready(other(x))
    collect(passes=2)
    assert live_functions() - before <= 1


def test_exceptions_in_del_do_not_disturb_the_call():
    unraisable = []

    class Bad:
        def __del__(self):
            raise RuntimeError("in __del__")

    def function(t):
        Bad()
        return t + 1

    hook = sys.unraisablehook
    try:
        sys.unraisablehook = lambda args: unraisable.append(str(args.exc_value))
        f = torch2jax(function, output_shapes=Size(2, 3))
        for call in (f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), here + 1)
    finally:
        sys.unraisablehook = hook
    assert unraisable == ["in __del__"] * 2


def test_exceptions_caught_inside_the_function():
    def function(t):
        try:
            raise ValueError(t)
        except ValueError as error:
            (u,) = error.args
        return u + 1

    for f in (torch2jax(function), torch2jax(function, output_shapes=Size(2, 3))):
        for call in (f, f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), here + 1)


def test_an_exception_from_a_signal_handler():
    def handler(number, frame):
        raise TimeoutError("took too long")

    def function(t):
        signal.raise_signal(signal.SIGUSR1)
        for _ in range(100):
            pass
        return t

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(TimeoutError, match="too long"):
            torch2jax(function, output_shapes=Size(2, 3))(x)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_errors_of_several_threads_do_not_mix():
    wrong = []

    def function(t):
        raise KeyError(int(t[0]))

    f = torch2jax(function, output_shapes=Size(1))

    def work(number):
        for i in range(20):
            try:
                f(jnp.array([float(100 * number + i)]))
            except KeyError as error:
                if error.args != (100 * number + i,):
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_raising_call_between_good_ones_in_a_program():
    def checked(t):
        if t.sum() < 0:
            raise ArithmeticError("negative")
        return t * 2

    f = torch2jax(checked, output_shapes=Size(2, 3))
    program = jax.jit(lambda a: f(f(a) + f(a * 3)))
    want = here * 16
    for _ in range(3):
        np.testing.assert_array_equal(program(x), want)
        with pytest.raises(JaxError, match="ArithmeticError: negative"):
            jax.block_until_ready(program(-x))
        assert isinstance(last_error(), ArithmeticError)


def test_an_exception_in_a_loop_of_jax():
    def checked(t):
        if float(t) > 3:
            raise OverflowError(f"{float(t)} is too much")
        return t + 1

    f = torch2jax(checked, output_shapes=Size())
    program = jax.jit(lambda a: jax.lax.fori_loop(0, 10, lambda i, v: f(v), a))
    for _ in range(2):
        with pytest.raises(JaxError, match=r"4\.0 is too much"):
            jax.block_until_ready(program(jnp.float32(0)))
    assert last_error().args == ("4.0 is too much",)
    assert float(program(jnp.float32(-20))) == -10


def test_an_error_that_a_function_has_handled_is_not_raised_by_its_call():
    def fails(x):
        raise KeyError("inner")

    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    inner, runs, handled = jax.jit(torch2jax(fails, output_shapes=shape)), [], []

    def handles(x):
        runs.append(x.shape)
        if len(runs) > 2:  # JAX is refused in its first call, and in the run before that
            try:
                inner(jnp.ones(3)).block_until_ready()
            except Exception as error:
                handled.append(str(error))

    outer = torch2jax(handles, output_shapes=None, has_side_effect=True, arguments="copy")
    for _ in range(4):
        assert outer(jnp.ones(3)) is None
    jax.effects_barrier()
    assert handled
    assert all("KeyError: 'inner'" in text for text in handled)
