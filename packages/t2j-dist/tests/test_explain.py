"""What a function of sharded arrays says of itself: its options, and how its calls were split."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import pytest
import torch
from helpers import W, X, in_torch, mesh_of, put
from jax.sharding import PartitionSpec as P
from t2j_dist import module2jax, torch2jax


def lines(f) -> list[str]:
    return [line.strip() for line in f.explain().splitlines()]


def test_the_repr_has_specs_and_mesh():
    assert repr(torch2jax(in_torch)) == "torch2jax(in_torch)"
    assert repr(torch2jax(in_torch, outputs="copy")) == "torch2jax(in_torch, outputs='copy')"
    mesh = mesh_of("Auto", data=8)
    text = repr(torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh, rng=True))
    assert text.startswith("torch2jax(in_torch, rng=True, ")
    assert f"out_specs={P('data')!r}, in_specs=({P('data')!r}, {P()!r}), mesh=Mesh(" in text


def test_the_signature_is_the_functions_own():
    assert inspect.signature(torch2jax(in_torch, lock=True)) == inspect.signature(in_torch)
    assert list(inspect.signature(module2jax(torch.nn.ReLU())[0]).parameters) == ["variables", "input"]


def test_a_call_of_shards_is_explained_with_its_specs():
    mesh = mesh_of("Auto", data=8)
    f = torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh)
    assert f.explain() == "in_torch was not called yet."
    jax.jit(f)(X, W)
    jax.jit(f)(X, W)
    assert lines(f)[:6] == [
        "in_torch(f32[2,3], f32[3,4]) -> (f32[2,4])",
        """sharding: once per shard of (f32[16,3], f32[3,4]), over "data" of the mesh {'data': 8}""",
        f"in_specs: args[0]: {P('data')}; args[1]: {P()}",
        f"out_specs: output: {P('data')}",
        "outputs: inferred by a run without data",
        "args[0], args[1]: lent, not copied",
    ]
    assert f.explain().count("->") == 1
    f(X[:8], W)
    assert "in_torch(f32[1,3], f32[3,4]) -> (f32[1,4])" in lines(f)


def test_specs_that_come_with_the_arguments():
    mesh = mesh_of("Auto", data=8)
    f = torch2jax(in_torch, out_specs=P("data"), mesh=mesh)
    f(put(X, mesh, "data"), put(W, mesh))
    (specs,) = [line for line in lines(f) if line.startswith("in_specs")]
    assert specs.startswith(f"in_specs (as the arguments arrive): args[0]: {P('data')}")


def test_plain_calls_are_explained_as_such():
    mesh = mesh_of("Auto", data=8)
    plain, specified = torch2jax(in_torch), torch2jax(in_torch, out_specs=P("data"))
    plain(X, W)
    assert lines(plain)[:2] == [
        "in_torch(f32[16,3], f32[3,4]) -> (f32[16,4])",
        "sharding: a plain call (no `out_specs`)",
    ]
    specified(X, W)
    assert lines(specified)[1] == "sharding: a plain call (no mesh)"
    inside = jax.shard_map(specified, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    jax.jit(inside)(X, W)
    assert """sharding: a plain call, inside `jax.shard_map` over "data" of the mesh {'data': 8}""" in lines(specified)


def test_examples_count_as_a_call():
    options = {"in_specs": (P("data"), P()), "out_specs": P("data"), "mesh": mesh_of("Auto", data=8)}
    f = torch2jax(in_torch, X, W, **options)
    assert lines(f)[0] == "in_torch(f32[2,3], f32[3,4]) -> (f32[2,4])"


def test_no_array_is_shown():
    f = torch2jax(in_torch, output_shapes=jnp.full((16, 4), 271828.0))
    f(jnp.full((16, 3), 314159.0), W)
    assert "f32[16,4]" in repr(f)
    assert not any(digits in repr(f) + f.explain() for digits in ("314159", "271828"))


def test_calls_on_threads_of_xla_are_in_a_profile_of_all_threads():
    try:
        all_threads = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        pytest.skip("this torch profiles the calling thread only")
    f = jax.jit(torch2jax(in_torch, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh_of("Auto", data=8)))
    jax.block_until_ready(f(X, W))
    with torch.profiler.profile(experimental_config=all_threads) as profile:
        jax.block_until_ready(f(X, W))
    assert [event.count for event in profile.key_averages() if event.key == "in_torch"] == [8]
