"""What the tests of every package need: strict settings, texts of errors, trees, compilations, fresh interpreters.

The file is the same in each package, because the tests of a package run without the others.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator

import jax
import jax.experimental
import jax.export
import numpy as np
import pytest
import torch

ALL = bool(os.environ.get("T2J_ALL"))
"""Whether all tests are to run, as in the cells of versions."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the cases of a test that is marked `thinned(step)`, run one of `step`, unless all are to run.

    The place of that one moves along, so that every value of each parameter comes up.
    """
    if ALL:
        return
    seen: collections.Counter[str] = collections.Counter()
    kept, left_out = [], []
    for item in items:
        mark, test = item.get_closest_marker("thinned"), item.nodeid.partition("[")[0]
        group, place = divmod(seen[test], mark.args[0] if mark else 1)
        (left_out if mark and place != group % mark.args[0] else kept).append(item)
        seen[test] += 1
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def be_strict() -> None:
    """JAX at its strictest, and torch on one thread."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    torch.set_num_threads(1)
    if not hasattr(jax, "enable_x64"):  # jax before 0.8
        jax.enable_x64 = jax.experimental.enable_x64
    with contextlib.suppress(ImportError):
        import hypothesis

        # No deadline, because compilations take long; the same examples in every run, so that failures repeat.
        hypothesis.settings.register_profile("t2j", deadline=None, derandomize=True, database=None, max_examples=25)
        hypothesis.settings.load_profile("t2j")


@pytest.fixture(autouse=True)
def frozen() -> None:
    """The collector looks only at what the test makes: going through all of JAX and PyTorch takes far longer."""
    gc.collect()
    gc.freeze()


# --- texts of errors and warnings -------------------------------------------------------------------------------------

Parts = str | re.Pattern[str] | tuple[str | re.Pattern[str], ...]


@dataclasses.dataclass(frozen=True)
class Message:
    """The parts of an error's text; see `t2j_core.extend.describe`."""

    what: str
    expected: str = ""
    got: str = ""
    remedy: str = ""

    @classmethod
    def of(cls, text: str) -> Message:
        """Split a text. Lines that continue `Expected:` or `Got:` are indented; what follows is the remedy."""
        parts = {"what": "", "expected": "", "got": "", "remedy": ""}
        part = "what"
        for line in text.split("\n"):
            if label := re.match(r" *(Expected|Got): *", line):
                part, line = label[1].lower(), line[label.end() :]
            elif part == "what" and parts["what"] and not re.search(r"^ *(Expected|Got):", text, re.MULTILINE):
                part = "remedy"
            elif part in ("expected", "got") and not line.startswith("   "):
                part = "remedy"
            parts[part] += ("\n" if parts[part] else "") + line
        return cls(**parts)


def check_message(
    text: str,
    *,
    what: Parts = (),
    expected: Parts = (),
    got: Parts = (),
    remedy: Parts = (),
    anywhere: Parts = (),
    lacks: Parts = (),
) -> None:
    """Each part of a text has what it should: arguments, types, avals, figures, options; and nothing of `lacks`."""
    __tracebackhide__ = True
    message = Message.of(text)
    for name, wanted in (("what", what), ("expected", expected), ("got", got), ("remedy", remedy)):
        for one in as_tuple(wanted):
            assert is_in(one, getattr(message, name)), f"no {one!r} in the part {name!r} of:\n{text}"
    for one in as_tuple(anywhere):
        assert is_in(one, text), f"no {one!r} in:\n{text}"
    for one in as_tuple(lacks):
        assert not is_in(one, text), f"{one!r} in:\n{text}"


def as_tuple(parts: Parts) -> tuple[str | re.Pattern[str], ...]:
    return parts if isinstance(parts, tuple) else (parts,)


def is_in(part: str | re.Pattern[str], text: str) -> bool:
    return part in text if isinstance(part, str) else part.search(text) is not None


@contextlib.contextmanager
def raises(
    kind: type[BaseException] | tuple[type[BaseException], ...], **parts: Parts
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """As `pytest.raises`, but looks at the parts of the text (see `check_message`) instead of matching sentences."""
    with pytest.raises(kind) as caught:
        yield caught
    check_message(str(caught.value), **parts)


@contextlib.contextmanager
def warns(kind: type[Warning], *, times: int | None = None, **parts: Parts) -> Iterator[list[warnings.WarningMessage]]:
    """As `pytest.warns`: every warning of this kind has those parts, and there are as many as `times`, or any."""
    with pytest.warns(kind) as caught:
        yield caught.list
    texts = [str(one.message) for one in caught if issubclass(one.category, kind)]
    assert times in (None, len(texts)), texts
    for text in texts:
        check_message(text, **parts)


# --- values -----------------------------------------------------------------------------------------------------------


def agree(got: object, expected: object, rtol: float = 1e-4, atol: float | None = None) -> None:
    """The leaves of two trees are close; tensors count as their values. `atol` is `rtol` unless given."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(as_numpy(a), as_numpy(b), rtol=rtol, atol=rtol if atol is None else atol)


def agree_with_types(got: object, expected: object, rtol: float = 1e-4, atol: float | None = None) -> None:
    """As `agree`; the trees, shapes and dtypes are the same too. Leaves without a tangent have no values."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.dtype != jax.dtypes.float0:
            agree(a, b, rtol, atol)


def as_numpy(leaf: object) -> np.ndarray:
    """An array; those of less usual dtypes, such as bfloat16, in one that NumPy compares."""
    array = np.asarray(leaf.detach() if isinstance(leaf, torch.Tensor) else leaf)
    return array if array.dtype.kind in "biufc" else array.astype(np.float32)


# --- compilations and processes ---------------------------------------------------------------------------------------


@functools.cache
def compilations() -> list[str]:
    """What XLA compiles from now on, in a list that grows."""
    events: list[str] = []

    def note(event: str, _seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    return events


def compiles(call: Callable[[], object], times: int = 3) -> list[int]:
    """How many programs each of some calls compiles."""
    counts = []
    for _ in range(times):
        before = len(compilations())
        call()
        counts.append(len(compilations()) - before)
    return counts


def run_python(
    code: str, *arguments: str, seconds: float = 240, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, on the CPU unless told otherwise; with `check`, it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, **environment},
        timeout=seconds,
        text=True,
        capture_output=True,
    )
    assert not check or done.returncode == 0, done.stderr
    return done
