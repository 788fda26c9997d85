"""Tracebacks and locations in programs show the user's code, not t2j's."""

from __future__ import annotations

import re
import traceback

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_core import Size, module2jax, torch2jax

x = jnp.ones((2, 3))


def function(t):
    return helper(t)


def helper(t):
    if not t.is_meta:
        raise LookupError("here")
    return t


def inferred(t):
    return t @ t


def frames(call) -> list[traceback.FrameSummary]:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return list(traceback.extract_tb(caught.value.__traceback__))


def of_t2j(found) -> list[str]:
    return [frame.name for frame in found if re.search(r"[\\/]t2j_core[\\/]", frame.filename)]


def module_with_a_wrong_shape():
    apply, variables = module2jax(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(5, 4)))
    return apply(variables, x)


CALLS = {
    "at the call": lambda: torch2jax(function, output_shapes=Size(2, 3))(x),
    "at the second call": lambda: [torch2jax(function, output_shapes=Size(2, 3))(x) for _ in range(2)],
    "keyword": lambda: torch2jax(function, output_shapes=Size(2, 3))(t=x),
    "at inference": lambda: torch2jax(inferred)(x),
    "in a module": module_with_a_wrong_shape,
    "at an example": lambda: torch2jax(inferred, x),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_eager_call_shows_one_frame_of_t2j_at_most(name):
    found = frames(CALLS[name])
    assert len(of_t2j(found)) <= (2 if name == "at an example" else 1)  # the constructor is another one
    assert not any("/jax/_src/" in frame.filename for frame in found)


def test_the_users_frames_stay():
    assert [frame.name for frame in frames(CALLS["at the call"])][-2:] == ["function", "helper"]
    assert frames(CALLS["at inference"])[-1].name == "inferred"


def test_under_jit_there_is_none():
    assert of_t2j(frames(lambda: jax.jit(torch2jax(inferred))(x))) == []
    with pytest.raises(Exception, match="LookupError: here") as caught:
        jax.block_until_ready(jax.jit(torch2jax(function, output_shapes=Size(2, 3)))(x))
    assert "t2j_core/_" not in str(caught.value)
    assert "in helper" in str(caught.value)


def test_jaxs_switch_keeps_all_frames():
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        assert len(of_t2j(frames(CALLS["at inference"]))) > 3
    finally:
        jax.config.update("jax_traceback_filtering", before)


def test_the_location_of_a_call_in_a_program_is_the_users_line():
    def user(a):
        return torch2jax(torch.sin)(a)

    text = jax.jit(user).lower(x).as_text(debug_info=True)
    assert "t2j_core/" not in text
    assert f'{__file__}":{user.__code__.co_firstlineno + 1}:' in text
