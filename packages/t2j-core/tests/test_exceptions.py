"""Exceptions inside the function: type, arguments, cause and traceback reach the caller."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import subprocess
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import JaxError, here, only_when, raising, x
from t2j_core import ArgumentError, Size, last_error, torch2jax

pytestmark = pytest.mark.usefixtures("intact")


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


CASES = {
    "ValueError": (raising(ValueError, "wrong value"), ValueError),
    "KeyError": (raising(KeyError, "missing"), KeyError),
    "without_text": (raising(ValueError), ValueError),
    "OSError": (raising(FileNotFoundError, 2, "No such file", "a/b"), FileNotFoundError),
    "UnicodeDecodeError": (raising(UnicodeDecodeError, "utf-8", b"\xff", 0, 1, "bad"), UnicodeDecodeError),
    "StopIteration": (raising(StopIteration, 3), StopIteration),
    "StopAsyncIteration": (raising(StopAsyncIteration), StopAsyncIteration),
    "GeneratorExit": (raising(GeneratorExit), GeneratorExit),
    "CancelledError": (raising(asyncio.CancelledError), asyncio.CancelledError),
    "SystemExit": (raising(SystemExit, 3), SystemExit),
    "BaseException": (raising(NotAnException, "base"), NotAnException),
    "MemoryError": (raising(MemoryError), MemoryError),
    "OutOfMemoryError": (raising(torch.OutOfMemoryError, "out of memory"), torch.OutOfMemoryError),
    "NotImplementedError": (raising(NotImplementedError, "later"), NotImplementedError),
    "needs_arguments": (raising(NeedsArguments, 7, hint="look here"), NeedsArguments),
    "ArgumentError": (raising(ArgumentError, "of the function"), ArgumentError),
    "JaxRuntimeError": (raising(jax.errors.JaxRuntimeError, "raised by hand"), jax.errors.JaxRuntimeError),
    "ZeroDivisionError": (lambda t: deep_division(0), ZeroDivisionError),
    "AssertionError": (raising(AssertionError), AssertionError),
    "RecursionError": (lambda t: deep(0), RecursionError),
    "of_torch": (torch_error, RuntimeError),
    "group": (from_group, ExceptionGroup),
    "base_group": (raising(BaseExceptionGroup, "g", [NotAnException("in")]), BaseExceptionGroup),
    "future": (from_future, ZeroDivisionError),
    "process": (from_process, subprocess.CalledProcessError),
    "warning": (from_warning, DeprecationWarning),
    "generator": (from_generator, LookupError),
    "nul": (raising(ValueError, "a\0b"), ValueError),
    "surrogate": (raising(ValueError, "a\udcffb"), ValueError),
    "other_alphabets": (raising(ValueError, "пример 例 🙂"), ValueError),
    "percent_and_braces": (raising(ValueError, "%s {} %n \\ \x1b[0m"), ValueError),
    "long_text": (raising(ValueError, "y" * 1_000_000), ValueError),
    "many_lines": (raising(ValueError, "\n" * 5000), ValueError),
    "bad_text": (raising(BadText), BadText),
    "frozen": (raising(Frozen, "no attributes"), Frozen),
    "falsy": (raising(Falsy, "is false"), Falsy),
    "not_an_exception": (lambda t: exec("raise 5"), TypeError),
}


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


@pytest.mark.parametrize("kind", [MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_is_the_error_that_jax_has_for_it(kind):
    f = jax.jit(torch2jax(only_when([1], raising(kind, "by hand")), output_shapes=Size(2, 3)))
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
            assert "helpers.py" in text
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


def test_an_error_of_fake_tensors_is_not_logged(caplog):
    # Regression: once torch's compiler is imported, torch logs a traceback for each shape that does not fit.
    import torch._dynamo

    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(caplog.handler)
    try:
        with pytest.raises(RuntimeError):
            torch2jax(torch.mm)(jnp.ones((2, 3)), jnp.ones((2, 3)))
    finally:
        log.removeHandler(caplog.handler)
    assert not caplog.records
