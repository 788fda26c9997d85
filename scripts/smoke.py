"""Check an installation. Arguments name the installed packages: `python scripts/smoke.py core [autodiff] [dist]`."""

from __future__ import annotations

import importlib.util
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import t2j_core
import torch
from jax.sharding import PartitionSpec

PACKAGES = ("core", "autodiff", "dist")


def main(expected: list[str]) -> None:
    """Raise unless exactly these packages are installed and work."""
    there = [name for name in PACKAGES if importlib.util.find_spec(f"t2j_{name}")]
    assert there == expected, f"{there} are installed, not {expected}"
    assert not shutil.which("c++"), "a compiler is on the PATH, so this test proves nothing"
    x = jnp.arange(8.0)
    forward(t2j_core.torch2jax(torch.sin), x)
    if "autodiff" in there:
        derivatives(x)
    else:
        refused(x)
    if "dist" in there:
        sharded(x)
    sys.stdout.write(f"{', '.join(there)}: works\n")


def forward(f: t2j_core.TorchFunction, x: jax.Array) -> None:
    """Test a call, eagerly and under jit, and a module."""
    np.testing.assert_allclose(f(x), jnp.sin(x), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(f)(x), jnp.sin(x), rtol=1e-6)
    apply, variables = t2j_core.module2jax(torch.nn.Linear(8, 2))
    params = variables["params"]
    expected = params["weight"] @ x + params["bias"]
    np.testing.assert_allclose(jax.jit(apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


def derivatives(x: jax.Array) -> None:
    """Test a gradient and a batch."""
    import t2j_autodiff

    f = t2j_autodiff.torch2jax(torch.sin)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(f)))(x), jnp.cos(x), rtol=1e-6)


def refused(x: jax.Array) -> None:
    """Test that the error without t2j-autodiff says what to install."""
    said = ""
    try:
        jax.grad(lambda x: t2j_core.torch2jax(torch.sin)(x).sum())(x)
    except t2j_core.T2jError as error:
        said = str(error)
    assert "t2j-autodiff" in said, "no error that names t2j-autodiff"


def sharded(x: jax.Array) -> None:
    """Test a call with specs."""
    import t2j_dist

    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec("data")}
    f = t2j_dist.torch2jax(torch.sin, mesh=mesh, **specs)
    np.testing.assert_allclose(f(x), jnp.sin(x), rtol=1e-6)


if __name__ == "__main__":
    main(sys.argv[1:])
