"""The public names."""

from __future__ import annotations

import inspect

import pytest
import t2j_autodiff
import t2j_core


def public(module) -> set[str]:
    """What `module` offers: names without underscore that are no modules."""
    return {n for n, value in vars(module).items() if not n.startswith("_") and not inspect.ismodule(value)}


def test_the_public_names_are_those_of_core_and_these():
    new = {"DepthError", "NonDifferentiableError", "DifferentiableFunction", "checkpoint_policy", "clear_residuals"}
    assert public(t2j_autodiff) == public(t2j_core) | new | {"torch2jax_with_vjp"}


def test_importing_this_package_changes_nothing_in_core():
    f = t2j_core.torch2jax(lambda x: x * 2)
    import jax
    import jax.numpy as jnp

    with pytest.raises(t2j_core.TransformError, match="t2j-autodiff"):
        jax.grad(lambda x: f(x).sum())(jnp.ones(3))


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert t2j_autodiff.__version__ == version("t2j-autodiff")
