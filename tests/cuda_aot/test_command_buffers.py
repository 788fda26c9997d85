"""Which calls XLA records in command buffers, its CUDA graphs. `h100.thunks` finds that out; it is tested here too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import torch
from h100 import aval, program, read_thunks, thunks
from probe import CAN_BE_RECORDED, Probe
from t2j_core import torch2jax

A = aval(64, 64)


def kernels(x, count=3):
    """Operations that XLA cannot fuse into one kernel."""
    for _ in range(count):
        x = jnp.cos(x) + x.sum(0)
    return x


def inside(steps):
    """Kinds and names of the steps in command buffers."""
    return {(step.kind, step.name) for step in steps if step.is_in_command_buffer}


def test_all_kernels_are_in_one_command_buffer():
    steps = thunks(kernels, A)
    assert [step.kind for step in steps if not step.is_in_command_buffer] == ["CommandBuffer"]
    assert len(inside(steps)) == len(steps) - 1 > 1


def test_the_names_are_those_of_the_program():
    fusions = {i.name for i in program(kernels, A).instructions if i.opcode == "fusion"}
    assert {name for _, name in inside(thunks(kernels, A))} == fusions


@pytest.mark.parametrize(
    "options",
    [{"xla_gpu_graph_min_graph_size": 100}, {"xla_gpu_enable_command_buffer": "INVALID"}],
    ids=["too few commands", "none is enabled"],
)
def test_command_buffers_can_be_turned_off(options):
    steps = thunks(kernels, A, **options)
    assert not inside(steps)
    assert "CommandBuffer" not in {step.kind for step in steps}
    assert len(steps) == len(thunks(kernels, A)) - 1


@pytest.mark.parametrize("traits", [0, CAN_BE_RECORDED], ids=["no traits", "can be recorded"])
def test_a_custom_call_is_inside_if_its_handler_says_that_it_can_be(traits):
    aval(1)  # loads the plugin, with which the handler is registered
    name = f"t2j_probe_{traits}"
    probe = Probe(name, traits)
    steps = thunks(lambda x: kernels(jax.ffi.ffi_call(name, A)(kernels(x))), A)
    (call,) = [step for step in steps if step.kind == "CustomCall"]
    assert call.is_in_command_buffer == bool(traits)
    assert probe.table


def test_a_torch_call_is_outside_between_the_kernels_around_it():
    f = torch2jax(torch.sin)
    steps = thunks(lambda x: kernels(f(kernels(x))), A)
    outside = [step.kind for step in steps if not step.is_in_command_buffer]
    assert outside == ["CommandBuffer", "CustomCall", "CommandBuffer"]
    assert "CustomCall" not in {kind for kind, _ in inside(steps)}


@pytest.mark.parametrize("loop", ["while", "cond"])
def test_a_torch_call_keeps_what_contains_it_outside(loop):
    f = torch2jax(torch.sin)

    def around(function):
        if loop == "while":
            return lambda x: jax.lax.fori_loop(0, 5, lambda _, c: kernels(function(c)), x)
        return lambda x: jax.lax.cond(x.sum() > 0, lambda: kernels(function(x)), lambda: x)

    calls = [step for step in thunks(around(f), A) if step.kind == "CustomCall"]
    assert [step.is_in_command_buffer for step in calls] == [False]
    assert not [step for step in thunks(around(jnp.flip), A) if step.kind == "CustomCall"]


def test_the_files_of_xla_are_read_by_their_indentation():
    sequence = """\
000: kCommandBuffer [source | next=003 (1)]
    001: kKernel [source | next=002 (1)] a grid: [1, 1, 1]
    002: kConditional [prev=001 (1) | sink]
        004: kKernel b
003: kCustomCall [prev=000 (1) | sink]
"""
    metadata = "".join(
        f'thunk_metadata {{\n thunk_info {{\n profile_annotation: "{name}"\n thunk_id: {number}\n }}\n}}\n'
        for number, name in ((1, "a"), (3, "call"), (4, "b"))
    )
    assert read_thunks(sequence, metadata) == [
        ("CommandBuffer", "", False),
        ("Kernel", "a", True),
        ("Conditional", "", True),
        ("Kernel", "b", True),
        ("CustomCall", "call", False),
    ]
