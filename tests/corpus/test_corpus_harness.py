"""The harness of the corpus: what it finds in cases with a planted fault, and what it says of a known failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import results
from results import Result

PLANTED = """
import os, traceback, torch
from corpus_case import JaxCase, JaxTask, TorchCase, TorchTask


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        SHARED.calls.add_(1)
        return x + 1


SHARED = Counter()


def by_library():
    return any("t2j_" in frame.filename for frame in traceback.extract_stack())


def gradient():
    '''Doubled where the library differentiates.'''

    def fn(x):
        y = x * x
        if y.requires_grad:
            y.register_hook(lambda ct: ct * (2.0 if by_library() else 1.0))
        return y

    return TorchTask(fn, (torch.randn(3),))


def noisy():
    def fn(x):
        if by_library():
            os.write(1, b"hello\\n")
        return x + 1

    return TorchTask(fn, (torch.randn(3),))


def crash():
    def fn(x):
        if by_library():
            os.abort()
        return x + 1

    return TorchTask(fn, (torch.randn(3),))


def wrong_value():
    return JaxTask(lambda f: f, torch.sin, lambda x: 1.01 * jnp_sin(x), (torch.randn(3).numpy(),))


def jnp_sin(x):
    import jax.numpy as jnp
    return jnp.sin(x)


def cases():
    yield TorchCase("gradient", gradient)
    yield TorchCase("buffer", lambda: TorchTask(SHARED, (torch.randn(3),)))
    yield TorchCase("output", noisy)
    yield TorchCase("crash", crash)
    yield JaxCase("value in jnp", wrong_value)
    yield TorchCase("right", lambda: TorchTask(torch.nn.Linear(3, 2), (torch.randn(2, 3),)))
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[str, str]]]:
    """The outcomes and reasons of cases with a planted fault, by case and check."""
    here, folder = Path(__file__).parent, tmp_path_factory.mktemp("corpus")
    (folder / "cases").mkdir()
    (folder / "cases" / "planted.py").write_text(PLANTED)
    names = ("gradient", "buffer", "output", "crash", "value in jnp", "right")
    command = [sys.executable, str(here / "harness.py"), "planted", *names]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    case = ""
    for reply in map(json.loads, run.stdout.splitlines()):
        case = reply.get("case", case)
        if "outcome" in reply:
            found[case][reply["check"]] = (reply["outcome"], reply["reason"])
        elif "code" in reply:
            found[case]["code"] = reply["code"]
    return found


def failed(checks: dict[str, tuple[str, str]]) -> set[str]:
    return {name for name, found in checks.items() if name != "code" and found[0] == "failed"}


def test_a_right_case_passes_every_check(planted):
    assert {outcome for outcome, _ in list(planted["right"].values())[:-1]} == {"passed"}
    assert len(planted["right"]) == 10


def test_a_wrong_gradient_is_found(planted):
    assert failed(planted["gradient"]) == {"vjp", "vmap_vjp", "jvp", "hvp"}
    assert "differs by" in planted["gradient"]["vjp"][1]


def test_a_buffer_that_is_written_to_is_found(planted):
    assert failed(planted["buffer"]) >= {"unchanged"}
    assert planted["buffer"]["unchanged"][1] == "Mismatch: _buffers['calls'] is changed"


def test_stray_output_is_found(planted):
    assert failed(planted["output"]) == {"quiet"}
    assert "hello" in planted["output"]["quiet"][1]


def test_a_crash_ends_its_case_only(planted):
    assert planted["crash"]["code"] < 0
    assert len(planted["crash"]) == 1


def test_a_value_that_jnp_does_not_confirm_is_found(planted):
    assert failed(planted["value in jnp"]) == {"forward"}


FAILED = Result("plain/mlp", "vjp", "failed", "Mismatch: leaf 0")


def test_a_failure_must_be_listed_and_a_listed_one_must_fail():
    known = results.record([FAILED], [])
    assert results.differences([FAILED], known) == []
    (unlisted,) = results.differences([FAILED], [])
    assert unlisted.startswith("not listed: plain/mlp, vjp")
    (passing,) = results.differences([Result("plain/mlp", "vjp", "passed")], known)
    assert passing.startswith("listed, but passed: plain/mlp, vjp")


def test_a_case_whose_judge_has_no_value_is_told():
    (line,) = results.differences([Result("plain/mlp", "forward", "not counted", "random output")], [])
    assert line == "the case shows nothing: plain/mlp: random output"


def test_recording_keeps_classes_and_what_was_not_run():
    known = [{"case": "plain/mlp", "check": "vjp", "class": "by hand", "reason": "old"}]
    assert results.record([FAILED], known) == [{**known[0], "reason": FAILED.reason}]
    assert results.record([], known) == known


def test_known_failures_are_classified_and_listed_once():
    known = results.load_known()
    keys = [results.key_of(entry) for entry in known]
    assert len(keys) == len(set(keys))
    assert all(entry["class"] != results.UNKNOWN and entry["reason"] for entry in known)
