"""Which calls XLA records in command buffers, its CUDA graphs. `h100.thunks` finds that out; it is tested here too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import t2j_autodiff as autodiff
import torch
from h100 import COUNT, aval, mesh_of, program, read_thunks, thunks
from jax.sharding import PartitionSpec as P
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


# --- `command_buffer=True` -------------------------------------------------------------------------------------------


def calls(steps):
    """Whether each call is in a command buffer, in order."""
    return [step.is_in_command_buffer for step in steps if step.kind == "CustomCall"]


def test_a_call_that_may_be_captured_is_inside_with_the_kernels_around_it():
    f = torch2jax(torch.sin, command_buffer=True)
    steps = thunks(lambda x: kernels(f(kernels(x))), A)
    assert [step.kind for step in steps if not step.is_in_command_buffer] == ["CommandBuffer"]
    assert calls(steps) == [True]


def test_xla_asks_the_handler_by_name():
    """Two functions, one of which may be captured."""
    f, g = torch2jax(torch.sin, command_buffer=True), torch2jax(torch.cos)
    assert calls(thunks(lambda x: kernels(g(kernels(f(kernels(x))))), A)) == [True, False]


GRADIENTS = {
    "value and gradient": lambda loss: jax.value_and_grad(loss),
    "checkpoint": lambda loss: jax.grad(jax.checkpoint(loss)),
    "Hessian times vector": lambda loss: lambda x: jax.jvp(jax.grad(loss), (x,), (x,)),
}


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
@pytest.mark.parametrize("transform", GRADIENTS)
def test_a_whole_gradient_is_one_command_buffer(transform, residuals):
    f = autodiff.torch2jax(lambda x: torch.tanh(x @ x), command_buffer=True, residuals=residuals)
    steps = thunks(GRADIENTS[transform](lambda x: (f(jnp.sin(f(x))) ** 2).sum()), A)
    assert len(calls(steps)) >= 4
    assert all(calls(steps))
    assert [step.kind for step in steps if not step.is_in_command_buffer] == ["CommandBuffer"]


def test_a_batch_is_inside():
    f = autodiff.torch2jax(lambda x: torch.softmax(x, 0), command_buffer=True)
    assert calls(thunks(lambda x: kernels(jax.vmap(f)(kernels(x))), A)) == [True]


def test_calls_of_a_loop_are_inside():
    f = torch2jax(torch.sin, command_buffer=True)
    assert calls(thunks(lambda x: jax.lax.fori_loop(0, 5, lambda _, c: kernels(f(c)), x), A)) == [True]


def test_calls_on_several_gpus_are_inside():
    f = torch2jax(torch.sin, command_buffer=True)
    run = jax.shard_map(lambda x: kernels(f(kernels(x))), mesh=mesh_of(), in_specs=P("data"), out_specs=P("data"))
    assert calls(thunks(run, aval(64 * COUNT, 64, spec=P("data")))) == [True]


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
