"""The public names."""

from __future__ import annotations

import inspect

import t2j_core
import t2j_dist


def public(module) -> set[str]:
    """What `module` offers: names without underscore that are no modules."""
    return {n for n, value in vars(module).items() if not n.startswith("_") and not inspect.ismodule(value)}


def test_the_public_names_are_those_of_core_and_these():
    assert public(t2j_dist) == public(t2j_core) | {"ShardedFunction", "torch2jax_with_vjp"}


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert t2j_dist.__version__ == version("t2j-dist")
