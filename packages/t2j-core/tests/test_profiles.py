"""A torch call goes by its function's name in compiled programs and in the profiles of both frameworks."""

from __future__ import annotations

import gzip
import json
import threading

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_core import torch2jax


def attention_scores(x):
    return torch.softmax(x @ x.mT, -1)


X = jnp.ones((64, 64))


def test_the_program_names_the_function():
    text = jax.jit(lambda x: torch2jax(attention_scores)(x) + 1).lower(X).compile().as_text()
    (call,) = [line for line in text.splitlines() if 'custom_call_target="t2j_torch_call"' in line]
    assert "/torch_call/attention_scores" in call


@pytest.mark.skipif(jax.__version_info__ < (0, 7, 2), reason="jax before 0.7.2 calls each `custom-call`")
def test_a_profile_of_jax_names_the_function(tmp_path):
    f = torch2jax(attention_scores)
    g = jax.jit(lambda x: f(x) * 2)
    jax.block_until_ready((f(X), g(X)))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would name the Python function itself
    with jax.profiler.trace(tmp_path, profiler_options=options):
        jax.block_until_ready((f(X), g(X)))
    (path,) = tmp_path.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    named = [event for event in events if event.get("name", "").startswith("attention_scores")]
    assert {event["args"]["hlo_module"] for event in named} == {"jit__call_arrays", "jit__lambda"}


@pytest.mark.parametrize("call", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_profile_of_torch_names_the_function(call):
    f = call(torch2jax(attention_scores))
    jax.block_until_ready(f(X))
    with torch.profiler.profile() as profile:
        for _ in range(3):
            jax.block_until_ready(f(X))
    (ours,) = [event for event in profile.key_averages() if event.key == "attention_scores"]
    assert ours.count == 3
    (softmax,) = [event for event in profile.key_averages() if event.key == "aten::softmax"]
    assert ours.cpu_time_total >= softmax.cpu_time_total


def test_two_functions_are_two_ranges():
    f, g = torch2jax(attention_scores), torch2jax(torch.cumsum, name="totals")
    with torch.profiler.profile() as profile:  # the first calls too
        jax.block_until_ready((f(X), g(X, 0)))
    assert {"attention_scores", "totals"} <= {event.key for event in profile.key_averages()}


def test_an_exception_ends_its_range():
    def fails(x):
        if not x.is_meta:
            raise LookupError("not today")
        return x

    f, g = torch2jax(fails), torch2jax(attention_scores)
    with torch.profiler.profile() as profile:
        with pytest.raises(LookupError, match="not today"):
            f(X)
        jax.block_until_ready(g(X))
    (after,) = [event for event in profile.events() if event.name == "attention_scores"]
    assert after.cpu_parent is None


def test_a_profile_that_ends_during_a_call():
    started, ended = threading.Event(), threading.Event()

    def waits(x):
        if not x.is_meta:
            started.set()
            ended.wait(60)
        return x + 1

    f = torch2jax(waits)
    profile = torch.profiler.profile()
    profile.start()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(f(X)))
    thread.start()
    assert started.wait(60)
    profile.stop()
    ended.set()
    thread.join()
    assert float(answers[0].sum()) == 2 * X.size
