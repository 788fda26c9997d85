"""Signatures of sharded calls: inferred once, declared in any containers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from t2j_dist import Size, torch2jax


def test_examples_of_a_plain_call_are_inferred_once():
    runs = []
    f = torch2jax(lambda t: (runs.append(t.device.type), t.sin())[1], torch.ones(3))
    f(jnp.ones(3))
    f(jnp.ones(3))
    assert runs == ["meta", "cpu", "cpu"]


def test_declared_containers_with_specs():
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.arange(8.0).reshape(4, 2), NamedSharding(mesh, P("d")))
    f = torch2jax(
        lambda t: {"b": (t + 1, t[:, :1]), "a": t * 2},
        output_shapes={"a": Size(4, 2), "b": [Size(4, 2), Size(4, 1)]},
        in_specs=P("d"),
        out_specs=P("d"),
        mesh=mesh,
    )
    got = jax.jit(f)(x)
    assert isinstance(got["b"], list)
    np.testing.assert_array_equal(got["a"], 2 * np.asarray(x))
    np.testing.assert_array_equal(got["b"][0], np.asarray(x) + 1)
    np.testing.assert_array_equal(got["b"][1], np.asarray(x)[:, :1])
