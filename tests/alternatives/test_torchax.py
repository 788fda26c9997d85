"""`torchax` 0.0.13: a function of torch whose operations are replaced by operations of JAX."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import attempts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from attempts import SIZE, agree, mesh_of, put, x, z
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

NEEDS_OLDER = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


@pytest.fixture(autouse=True)
def loaded(request):
    if NEEDS_OLDER and request.function is not test_it_cannot_be_imported_with_torch_2_13:
        pytest.skip("torchax 0.0.13 cannot be imported with torch 2.13; with torch 2.11 it can")


def view(fn: Callable) -> Callable:
    """The JAX function of a torch function."""
    from torchax.interop import jax_view  # it may not be installed

    return jax_view(fn)


def test_the_version():
    assert importlib.metadata.version("torchax") == "0.0.13"


@pytest.mark.skipif(not NEEDS_OLDER, reason="this torch is older")
def test_it_cannot_be_imported_with_torch_2_13():
    with pytest.raises(AttributeError, match="dim_Dimname"):
        import torchax  # noqa: F401


def test_any_pytorch_code():
    """no, only operations it knows"""
    agree(view(torch.sin)(x(3)), jnp.sin(x(3)))
    with pytest.raises(Exception, match="has no lowering"):
        view(torch.special.airy_ai)(x(3))
    with pytest.raises(AssertionError, match="within the torchax environment"):
        view(attempts.doubled)(x(3))
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(view(lambda t: torch.from_numpy(t.numpy())))(x(3))


def test_arguments_without_a_copy():
    """yes"""
    seen, a = [], x(SIZE)
    view(lambda t: seen.append(t.jax().unsafe_buffer_pointer()) or t)(a)
    assert seen == [a.unsafe_buffer_pointer()]


def test_large_results_without_a_copy():
    """yes"""
    kept: list[Any] = []
    y = view(lambda t: kept.append(t * 2) or kept[-1])(x(SIZE))
    assert kept[-1].jax().unsafe_buffer_pointer() == y.unsafe_buffer_pointer()


def test_output_shapes():
    """inferred"""
    assert jax.eval_shape(view(lambda t: t.sum(0)), x(4, 3)).shape == (3,)


def test_reverse_mode():
    """yes"""
    runs: list[None] = []
    f = view(lambda t: runs.append(None) or torch.sin(t))
    _, gradient = jax.jit(jax.value_and_grad(lambda x: f(x).sum()))(x(3))
    agree(gradient, jnp.cos(x(3)))
    assert len(runs) == 1  # when it is traced


def test_forward_mode():
    """yes"""
    f = view(torch.sin)
    agree(jax.jvp(f, (x(3),), (x(3),))[1], jnp.cos(x(3)) * x(3))
    agree(jax.jit(jax.hessian(lambda x: f(x).sum()))(x(3)), jnp.diag(-jnp.sin(x(3))))


COMPLEX = {
    "square": (torch.square, jnp.square),
    "exp": (torch.exp, jnp.exp),
    "abs": (torch.abs, jnp.abs),
    "fft": (torch.fft.fft, jnp.fft.fft),
    "conj": (lambda z: torch.conj(z) * z, lambda z: jnp.conj(z) * z),
    "inv": (lambda z: torch.linalg.inv(torch.diag(z)), lambda z: jnp.linalg.inv(jnp.diag(z))),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_gradients(name):
    """yes"""
    mine, theirs = (jax.grad(lambda z, f=f: jnp.abs(f(z)).sum()) for f in (view(COMPLEX[name][0]), COMPLEX[name][1]))
    agree(mine(z()), theirs(z()))


def test_vmap():
    """yes"""
    runs: list[None] = []
    f = view(lambda t: runs.append(None) or t.cumsum(0))
    agree(jax.vmap(f)(x(4, 3)), jnp.cumsum(x(4, 3), 1))
    assert len(runs) == 1


def test_parameters_of_modules():
    """as a pytree"""
    import torchax

    variables, apply = torchax.extract_jax(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).eval())
    assert {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"} <= set(variables)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    loss = lambda weight: apply(variables | {"0.weight": weight}, (x(2, 3),)).sum()
    assert jnp.any(jax.jit(jax.grad(loss))(variables["0.weight"]) != 0)


def test_random_numbers():
    """yes"""
    import torchax

    def f(key: jax.Array, x: jax.Array) -> jax.Array:
        with torchax.default_env().override_property(prng=key):
            return view(torch.nn.functional.dropout)(x)

    first, again, other = (jax.jit(f)(jax.random.key(seed), x(100)) for seed in (0, 0, 1))
    agree(first, again)
    assert jnp.any(first != other)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays(kind):
    """yes, with gradients"""
    f, mesh = view(torch.sin), mesh_of(kind)
    with jax.set_mesh(mesh):
        for g, expected in ((f, jnp.sin), (jax.grad(lambda x: f(x).sum()), jnp.cos)):
            y = jax.jit(g)(put(x(8, 3), mesh))
            agree(y, expected(x(8, 3)))
            assert y.sharding.spec[0] == "x"


def test_inside_shard_map():
    seen, mesh = [], mesh_of(AxisType.Auto)
    f = view(lambda t: seen.append(tuple(t.shape)) or torch.sin(t))
    y = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(put(x(8, 3), mesh))
    agree(y, jnp.sin(x(8, 3)))
    assert seen == [(2, 3)]  # when it is traced


def test_a_kept_argument():
    """safe"""
    kept: list[Any] = []
    a = x(SIZE)
    view(lambda t: kept.append(t) or t * 1)(a)
    agree(kept[-1].jax(), a)
    jax.jit(lambda a: a + 7, donate_argnums=0)(a)
    with pytest.raises(RuntimeError, match="has been deleted"):  # as any array of JAX
        np.asarray(kept[-1].jax())


def test_a_written_argument():
    """safe"""
    a = x(SIZE)
    for f in (view(lambda t: t.add_(1)), jax.jit(view(lambda t: t.add_(1)))):
        agree(f(a), x(SIZE) + 1)
        agree(a, x(SIZE))


def test_exceptions():
    """itself"""

    def fails(t: torch.Tensor) -> None:
        raise KeyError("mine")

    for f in (view(fails), jax.jit(view(fails))):
        with pytest.raises(KeyError, match="mine"):
            f(x(3))


@pytest.mark.usefixtures("no_compiler")
def test_compiles_cpp():
    """no"""
    agree(jax.jit(view(torch.sin))(x(7)), jnp.sin(x(7)))


def test_tpu():
    """compiled"""
    text = jax.jit(view(torch.sin)).trace(x(3)).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.sine" in text
    assert "custom_call" not in text
