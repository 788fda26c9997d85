"""Exceptions inside the function: type, arguments, cause and traceback reach the caller; nothing is left behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import signal
import subprocess
import sys
import threading
import traceback
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import ArgumentError, Size, last_error, torch2jax
from t2j_core._base.config import config
from t2j_core._lowering import primitive
from t2j_core._run import originals
from t2j_core.testing import collect, counters, live_functions
from test_faults import JaxError, check_intact

x = jnp.arange(6.0).reshape(2, 3)
here = np.arange(6.0, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def _intact():
    yield
    check_intact()


class NeedsArguments(Exception):
    def __init__(self, code, *, hint):
        super().__init__(f"{code}: {hint}")
        self.code, self.hint = code, hint


class NotAnException(BaseException):
    pass


class BadText(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Frozen(Exception):
    """Refuses every new attribute."""

    def __setattr__(self, name, value):
        if not name.startswith("__"):
            raise AttributeError(name)
        super().__setattr__(name, value)


class Falsy(Exception):
    def __bool__(self):
        return False

    def __eq__(self, other):
        raise RuntimeError("cannot be compared")

    __hash__ = None


def deep(n):
    return deep(n + 1)


def torch_error(t):
    return t @ torch.ones(7, 7)


def from_group(t):
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("more", [KeyError("two")])])


def from_future(t):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(deep_division, 0).result()


def deep_division(n):
    return 1 / n


def from_process(t):
    return subprocess.run(["false"], check=True)


def from_warning(t):
    raise DeprecationWarning("as an error")


def from_generator(t):
    def items():
        yield 1
        raise LookupError("in a generator")

    return list(items())


def raises(kind, *args, **kwargs):
    def function(t):
        raise kind(*args, **kwargs)

    return function


CASES = {
    "ValueError": (raises(ValueError, "wrong value"), ValueError),
    "KeyError": (raises(KeyError, "missing"), KeyError),
    "without_text": (raises(ValueError), ValueError),
    "OSError": (raises(FileNotFoundError, 2, "No such file", "a/b"), FileNotFoundError),
    "UnicodeDecodeError": (raises(UnicodeDecodeError, "utf-8", b"\xff", 0, 1, "bad"), UnicodeDecodeError),
    "StopIteration": (raises(StopIteration, 3), StopIteration),
    "StopAsyncIteration": (raises(StopAsyncIteration), StopAsyncIteration),
    "GeneratorExit": (raises(GeneratorExit), GeneratorExit),
    "CancelledError": (raises(asyncio.CancelledError), asyncio.CancelledError),
    "SystemExit": (raises(SystemExit, 3), SystemExit),
    "BaseException": (raises(NotAnException, "base"), NotAnException),
    "MemoryError": (raises(MemoryError), MemoryError),
    "OutOfMemoryError": (raises(torch.OutOfMemoryError, "out of memory"), torch.OutOfMemoryError),
    "NotImplementedError": (raises(NotImplementedError, "later"), NotImplementedError),
    "needs_arguments": (raises(NeedsArguments, 7, hint="look here"), NeedsArguments),
    "ArgumentError": (raises(ArgumentError, "of the function"), ArgumentError),
    "JaxRuntimeError": (raises(jax.errors.JaxRuntimeError, "raised by hand"), jax.errors.JaxRuntimeError),
    "ZeroDivisionError": (lambda t: deep_division(0), ZeroDivisionError),
    "AssertionError": (raises(AssertionError), AssertionError),
    "RecursionError": (lambda t: deep(0), RecursionError),
    "of_torch": (torch_error, RuntimeError),
    "group": (from_group, ExceptionGroup),
    "base_group": (raises(BaseExceptionGroup, "g", [NotAnException("in")]), BaseExceptionGroup),
    "future": (from_future, ZeroDivisionError),
    "process": (from_process, subprocess.CalledProcessError),
    "warning": (from_warning, DeprecationWarning),
    "generator": (from_generator, LookupError),
    "nul": (raises(ValueError, "a\0b"), ValueError),
    "surrogate": (raises(ValueError, "a\udcffb"), ValueError),
    "other_alphabets": (raises(ValueError, "пример 例 🙂"), ValueError),
    "percent_and_braces": (raises(ValueError, "%s {} %n \\ \x1b[0m"), ValueError),
    "long_text": (raises(ValueError, "y" * 1_000_000), ValueError),
    "many_lines": (raises(ValueError, "\n" * 5000), ValueError),
    "bad_text": (raises(BadText), BadText),
    "frozen": (raises(Frozen, "no attributes"), Frozen),
    "falsy": (raises(Falsy, "is false"), Falsy),
    "not_an_exception": (lambda t: exec("raise 5"), TypeError),
}


def only_when(flag, function):
    """Raises at the real call while the flag is set; the outputs are declared, so there is no other run."""

    def guarded(t):
        if flag:
            function(t)
        return t + 1

    return guarded


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_an_eager_call_raises_the_exception_itself(name, warm):
    function, kind = CASES[name]
    flag = []
    f = torch2jax(only_when(flag, function), output_shapes=Size(2, 3))
    for _ in range(3 * warm):
        f(x)
    flag.append(1)
    for _ in range(3):
        with pytest.raises(BaseException) as info:
            f(x)
        assert type(info.value) is kind
        assert last_error() is info.value
        assert "guarded" in [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]
    flag.clear()
    np.testing.assert_array_equal(f(x), here + 1)


class Late:
    """A result whose error shows when it is awaited, as on a GPU."""

    nbytes = 0

    def __init__(self, error):
        self.error = error

    def is_ready(self):
        return False

    def block_until_ready(self):
        raise self.error


def late(call, awaited):
    """`call` as XLA runs it on a GPU: it returns although the function has raised on this thread."""

    def dispatched(*arrays):
        try:
            return call(*arrays)
        except JaxError as error:
            return [Late(error) for _ in range(awaited)]

    return dispatched


@pytest.mark.parametrize("results", [0, 1, 2])
@pytest.mark.parametrize("kind", [KeyError, SystemExit, RuntimeError])
def test_an_error_that_shows_when_a_result_is_awaited(monkeypatch, results, kind):
    flag = []
    f = torch2jax(only_when(flag, raises(kind, "late")), output_shapes=Size(2, 3))
    f(x)
    (fn,) = f.builder.signatures.values()
    call_primitive = functools.partial(primitive.torch_call, fn=fn)
    call_primitive(x)
    for owner, name in ((f._routes, "_positional"), (fn, "jitted")):
        monkeypatch.setattr(owner, name, late(getattr(owner, name), results))
    for call in (f, call_primitive):
        flag.append(1)
        for _ in range(3):
            with pytest.raises(kind, match="late") as info:
                call(x)
            assert last_error() is info.value
        flag.clear()
        np.testing.assert_array_equal(jax.tree.leaves(call(x))[0], here + 1)
    assert not originals.of_thread.kept


def test_a_call_that_does_not_raise_does_not_wait(monkeypatch):
    f = torch2jax(lambda t: t + 1)
    f(x)
    with pytest.raises(KeyError):
        torch2jax(raises(KeyError, "another"), output_shapes=Size(2, 3))(x)
    monkeypatch.setattr(f._routes, "_positional", lambda *arrays: [Late(ValueError("waited"))])
    f(x)


@pytest.mark.parametrize("kind", [MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_is_the_error_that_jax_has_for_it(kind):
    f = jax.jit(torch2jax(only_when([1], raises(kind, "by hand")), output_shapes=Size(2, 3)))
    for _ in range(2):
        with pytest.raises(JaxError, match="^RESOURCE_EXHAUSTED: "):
            f(x).block_until_ready()
        assert type(last_error()) is kind


def test_every_form_of_an_eager_call_raises_the_exception_itself():
    flag = []

    def function(tree, scale=1.0):
        if flag:
            raise KeyError("each form")
        return tree["t"] * scale

    f = torch2jax(function, output_shapes=Size(2, 3))
    forms = [
        lambda: f({"t": x}),
        lambda: f({"t": x}, 2.0),
        lambda: f({"t": x}, scale=2.0),
        lambda: f({"t": here}),
        lambda: f({"t": torch.from_numpy(here)}),
    ]
    for form in forms:
        flag.clear()
        for _ in range(3):
            form()
        flag.append(1)
        for _ in range(2):
            with pytest.raises(KeyError, match="each form"):
                form()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_under_jit_the_text_tells_and_last_error_has_the_object(name, warm):
    function, kind = CASES[name]
    flag = []
    g = jax.jit(torch2jax(only_when(flag, function), output_shapes=Size(2, 3)))
    for _ in range(3 * warm):
        g(x)
    flag.append(1)
    for _ in range(2):
        with pytest.raises(JaxError) as info:
            jax.block_until_ready(g(x))
        text = str(info.value)
        assert kind.__name__ in text
        assert "Traceback (most recent call last)" in text
        assert len(text) < 40_000
        assert type(last_error()) is kind
        if kind is not RecursionError:
            assert "guarded" in text
            assert "test_faults_exceptions.py" in text
    flag.clear()
    np.testing.assert_array_equal(g(x), here + 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CASES)
def test_at_inference_the_exception_is_raised_where_the_function_is_called(name):
    function, kind = CASES[name]
    f = torch2jax(lambda t: (function(t), t)[1])
    for call in (f, jax.jit(f)):
        with pytest.raises(BaseException) as info:
            call(x)
        assert type(info.value) is kind
    with pytest.raises(BaseException) as info:
        torch2jax(function, x)
    assert type(info.value) is kind


def test_attributes_and_arguments_are_those_of_the_exception():
    f = torch2jax(CASES["needs_arguments"][0], output_shapes=Size(2, 3))
    with pytest.raises(NeedsArguments) as info:
        f(x)
    assert (info.value.code, info.value.hint) == (7, "look here")
    f = torch2jax(CASES["OSError"][0], output_shapes=Size(2, 3))
    with pytest.raises(FileNotFoundError) as info:
        f(x)
    assert (info.value.errno, info.value.filename) == (2, "a/b")


def test_except_star():
    f = torch2jax(from_group, output_shapes=Size(2, 3))
    seen = []
    try:
        f(x)
    except* KeyError as group:
        seen.append(group.exceptions[0].exceptions[0].args)
    except* ValueError as group:
        seen.append(group.exceptions[0].args)
    assert seen == [("two",), ("one",)]


def test_notes_stay():
    def function(t):
        error = ValueError("with a note")
        error.add_note("the note")
        raise error

    with pytest.raises(ValueError) as info:
        torch2jax(function, output_shapes=Size(2, 3))(x)
    assert info.value.__notes__ == ["the note"]
    with pytest.raises(JaxError, match="the note"):
        jax.block_until_ready(jax.jit(torch2jax(function, output_shapes=Size(2, 3)))(x))


def chain(error):
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [type(e) for e in found]


def test_the_cause_of_the_exception_stays():
    def function(t):
        try:
            {}["a"]
        except KeyError as error:
            raise ValueError("v") from error

    with pytest.raises(ValueError) as info:
        torch2jax(function, output_shapes=Size(2, 3))(x)
    assert KeyError in chain(info.value)


def test_the_context_of_the_exception_stays():
    def function(t):
        try:
            {}["a"]
        except KeyError:
            raise ValueError("v")  # noqa: B904

    with pytest.raises(ValueError) as info:
        torch2jax(function, output_shapes=Size(2, 3))(x)
    assert KeyError in chain(info.value)


def test_what_the_caller_was_handling_is_left_alone():
    """It is the context of the new exception, but its frames are the caller's."""

    def fail():
        important = 5
        raise KeyError(important)

    def suspended():
        try:
            fail()
        except KeyError as error:
            yield error
        yield "still running"

    f = torch2jax(lambda t: 1 / 0, output_shapes=Size(2, 3))
    generator = suspended()
    held = next(generator)
    try:
        raise held
    except KeyError:
        with pytest.raises(ZeroDivisionError):
            f(x)
    trace, names = held.__traceback__, {}
    while trace:
        names[trace.tb_frame.f_code.co_name] = trace.tb_frame.f_locals
        trace = trace.tb_next
    assert names["fail"] == {"important": 5}
    assert next(generator) == "still running"


def test_an_exception_that_quotes_an_older_one():
    first = torch2jax(lambda t: 1 / 0, output_shapes=Size(2, 3))
    with pytest.raises(ZeroDivisionError):
        first(x)
    with pytest.raises(JaxError) as info:
        jax.block_until_ready(jax.jit(first)(x))
    old = info.value

    def function(t):
        raise KeyError(f"after {old}")

    def chained(t):
        raise IndexError("chained") from old

    with pytest.raises(KeyError):
        torch2jax(function, output_shapes=Size(2, 3))(x)
    with pytest.raises(IndexError):
        torch2jax(chained, output_shapes=Size(2, 3))(x)


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
    f = torch2jax(raises(ValueError, "again"), output_shapes=Size(2, 3))
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


def test_a_partial_and_a_method_that_raise():
    class Model:
        def forward(self, t, *, kind):
            raise kind("from a method")

    f = torch2jax(functools.partial(Model().forward, kind=LookupError), output_shapes=Size(2, 3))
    with pytest.raises(LookupError, match="from a method"):
        f(x)


@pytest.mark.parametrize(
    "function",
    [
        torch.ops.aten.take.default,
        lambda logits, labels: torch.ops.aten.one_hot.default(labels),
        lambda logits, labels: logits @ torch.ones(3, 3, dtype=torch.float64),
    ],
    ids=["take", "one_hot", "double"],
)
def test_an_error_that_asks_for_64_bits_tells_where_they_went(function):
    arguments = jnp.ones((2, 3)), jnp.array([0, 1], dtype=jnp.int32)
    with pytest.raises(RuntimeError) as caught:
        torch2jax(function)(*arguments)
    assert "x64 mode is off" in "".join(caught.value.__notes__)
    with pytest.raises((*JaxError, RuntimeError)) as caught:
        jax.jit(torch2jax(function))(*arguments)
    assert "x64 mode is off" in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def test_an_error_of_fake_tensors_is_not_printed():
    # Regression: once torch's compiler is imported, torch logs a traceback for each shape that does not fit.
    code = (
        "import torch, torch._dynamo, jax.numpy as jnp, t2j_core\n"
        "try: t2j_core.torch2jax(torch.mm)(jnp.ones((2, 3)), jnp.ones((2, 3)))\n"
        "except RuntimeError as error: print('raised', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("raised")
    assert "Traceback" not in done.stderr


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
