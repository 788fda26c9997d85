"""What `docs/extending.md` says of the names, the hooks and its example."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import t2j_autodiff.extend
import t2j_core.extend
import torch
from _markdown import blocks
from jax.sharding import PartitionSpec
from t2j_core.extend import CallBuilder

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
X = jnp.zeros(2)


@pytest.fixture(scope="module")
def limited():
    """The package of the example."""
    module = types.ModuleType("limited")
    sys.modules["limited"] = module  # where a dataclass and a pickle look for it
    exec(blocks(PAGE, "python")[0], vars(module))
    yield module
    del sys.modules["limited"]


@pytest.mark.parametrize("module", [t2j_core.extend, t2j_autodiff.extend], ids=lambda module: module.__name__)
def test_every_name_is_on_the_page(module):
    page = PAGE.read_text()
    names = [name for name, value in vars(module).items() if name[0] != "_" and not inspect.ismodule(value)]
    assert not [name for name in names if f"`{name}`" not in page]


def test_the_table_has_all_hooks():
    public = {name for name, value in vars(CallBuilder).items() if name[0] != "_" and inspect.isfunction(value)}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), flags=re.M)) == public


def test_the_example_is_short():
    assert len(blocks(PAGE, "python")[0].splitlines()) <= 40


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_a_copy_has_the_fields_of_the_subclass_and_begins_anew(limited, copied):
    f = limited.torch2jax(torch.sin, most=1, depth=1)
    f(X)
    g = copied(f)
    assert (g.builder.most, g.diff_options.depth) == (1, 1)
    assert "sin(" not in g.explain()
    assert g(jnp.zeros(3)).shape == (3,)
    assert f.explain().count("->") == 1


def test_the_hooks_count_signatures_on_all_routes(limited):
    f = limited.torch2jax(lambda x, scale=1.0: x * scale, most=2)
    for _ in range(2):
        jax.jit(f)(X)
        f(X)
        f(X, scale=2.0)
    assert f.explain().endswith("2 of 2 signatures")
    for call in (lambda: f(X, scale=3.0), lambda: jax.jit(f)(jnp.zeros(3))):
        with pytest.raises(limited.TooManySignaturesError, match="more than 2"):
            call()


def test_sharded_calls_go_to_a_builder_of_any_kind(limited):
    from t2j_dist import ShardedFunction
    from t2j_dist._builder import ShardedBuilder
    from t2j_dist._wanted import Wanted

    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    wanted = Wanted(PartitionSpec("data"), PartitionSpec("data"), mesh)
    local = limited.torch2jax(torch.sin, most=1).builder
    f = ShardedFunction(ShardedBuilder.over(local, wanted))
    assert f(jnp.zeros(16)).shape == (16,)
    assert jax.grad(lambda x: f(x).sum())(jnp.zeros(16)).tolist() == [1.0] * 16
    with pytest.raises(limited.TooManySignaturesError):
        f(jnp.zeros(32))
