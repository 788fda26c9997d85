"""Compiles programs for H100s that are described in a file, with the compiler in JAX's CUDA plugin."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hlo import Program
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled

COUNT = 8  # GPUs in the described machine


@functools.cache
def gpus() -> list[Any]:
    """The described GPUs. Programs can be compiled for them, but not loaded."""
    target = Path(__file__).with_suffix(".textproto").read_text()
    machine = topologies.get_topology_desc("h100", "cuda", target_config=target, topology=f"1x1x{COUNT}")
    return list(machine.devices)


def mesh_of(count: int = COUNT) -> Mesh:
    return Mesh(np.array(gpus()[:count]), ("data",))


def aval(*shape: int, dtype: Any = jnp.float32, spec: P | None = None) -> jax.ShapeDtypeStruct:
    """An argument on one GPU; or, with a spec, on all of them."""
    mesh = mesh_of(1 if spec is None else COUNT)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec or P()))


def compiled(
    function: Callable[..., Any], *avals: Any, options: dict[str, Any] | None = None, **of_jit: Any
) -> Compiled:
    """`jax.jit(function, **of_jit)`, compiled with some of XLA's `options`."""
    return jax.jit(function, **of_jit).lower(*avals).compile(compiler_options=options)


def program(function: Callable[..., Any], *avals: Any, **of_jit: Any) -> Program:
    return Program(compiled(function, *avals, **of_jit).as_text())


# --- thunks --------------------------------------------------------------------------------------------------------


class Thunk(NamedTuple):
    """A step of what the host does to run a program."""

    kind: str
    name: str  # of the instruction that it runs
    is_in_command_buffer: bool


def thunks(function: Callable[..., Any], *avals: Any, **options: Any) -> list[Thunk]:
    """The steps of a program, in order. XLA may put single commands into command buffers, which are CUDA graphs.

    By default XLA does so only from five commands on.
    """
    options = {"xla_gpu_graph_min_graph_size": 1, **options}
    with tempfile.TemporaryDirectory() as folder:
        compiled(function, *avals, options={"xla_dump_to": folder, **options})
        files = {path.name.split(".")[-2]: path.read_text() for path in Path(folder).glob("*.thunk_*.txt")}
    before = files["thunk_sequence"]  # XLA writes the other one if command buffers or other passes have changed it
    return read_thunks(files.get("thunk_sequence_after_thunk_passes", before), files["thunk_metadata"])


def read_thunks(sequence: str, metadata: str) -> list[Thunk]:
    """From two files that XLA writes: an indented list of numbers and kinds, and the name for each number."""
    names = {}
    for block in metadata.split("thunk_metadata {"):
        if number := re.search(r"thunk_id: (\d+)", block):
            found = re.search(r'profile_annotation: "(.*?)"', block)
            names[int(number[1])] = found[1] if found else ""
    steps, inside = [], None  # how far the command buffer is indented that the last lines are in
    for line in sequence.splitlines():
        if not (found := re.match(r"( *)(\d+): k(\w+)", line)):
            continue
        indent, number, kind = len(found[1]), int(found[2]), found[3]
        if inside is not None and indent <= inside:
            inside = None
        steps.append(Thunk(kind, names.get(number, ""), inside is not None))
        if kind == "CommandBuffer" and inside is None:
            inside = indent
    return steps
