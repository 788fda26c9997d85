"""`wrap_torch2jax` 0.9: `torch2jax(fn, *examples)`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import attempts
import jax
import jax.numpy as jnp
import pytest
import torch
from attempts import SIZE, agree, like, mesh_of, put, x, z
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def wrap(fn: Callable, *examples: Any, **options: Any) -> Callable:
    import wrap_torch2jax  # it may not be installed

    return wrap_torch2jax.torch2jax(fn, *examples, **options)


def call(fn: Callable, *args: Any, **options: Any) -> Any:
    return wrap(fn, *map(like, args), **options)(*args)


class Runs(list):
    """Runs a function, and keeps the shape of the first argument of every run with data."""

    def __init__(self, fn: Callable) -> None:
        super().__init__()
        self.fn = fn

    def __call__(self, *args: torch.Tensor) -> torch.Tensor:
        if not args[0].is_meta:
            self.append(tuple(args[0].shape))
        return self.fn(*args)


def test_the_version():
    assert importlib.metadata.version("wrap_torch2jax").startswith("0.9.")


def test_any_pytorch_code():
    """yes"""
    agree(jax.jit(lambda x: call(attempts.doubled, x))(x(3)), 2 * x(3))


def test_arguments_without_a_copy():
    """yes"""
    seen, a = [], x(SIZE)
    f = wrap(lambda t: t.is_meta or seen.append(t.data_ptr()) or t, like(a), output_shapes=like(a))
    jax.block_until_ready(jax.jit(f)(a))
    assert seen[-1] == a.unsafe_buffer_pointer()


def test_large_results_without_a_copy():
    """no"""
    kept: list[torch.Tensor] = []
    y = jax.jit(wrap(lambda t: kept.append(t * 2) or kept[-1], like(x(SIZE))))(x(SIZE))
    agree(y, 2 * x(SIZE))
    assert kept[-1].data_ptr() != y.unsafe_buffer_pointer()


def test_output_shapes():
    """inferred from examples"""
    assert wrap(lambda t: t.sum(0), like(x(4, 3)))(x(4, 3)).shape == (3,)
    with pytest.raises(TypeError, match="argument"):
        wrap(torch.sin)


def test_reverse_mode():
    """yes, but runs the forward again"""
    runs = Runs(torch.sin)
    f = wrap(runs, like(x(3)))
    agree(jax.jit(jax.grad(lambda x: f(x).sum()))(x(3)), jnp.cos(x(3)))
    runs.clear()
    jax.block_until_ready(jax.jit(jax.value_and_grad(lambda x: f(x).sum()))(x(3)))
    assert len(runs) == 2


def test_forward_mode():
    """no"""
    f = wrap(torch.sin, like(x(3)))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (x(3),), (x(3),))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.hessian(lambda x: f(x).sum())(x(3))


@pytest.mark.filterwarnings("error")
def test_complex_gradients():
    """silently zero, or wrong"""
    f = wrap(torch.square, like(z()))
    loss = lambda f: lambda z: jnp.abs(f(z)).sum()
    assert jnp.all(jax.grad(loss(jnp.square))(z()) != 0)
    agree(jax.grad(loss(f))(z()), 0 * z())
    turn = wrap(lambda t: torch.exp(1j * t), like(x(3)))  # PyTorch's cotangents are the conjugates of JAX's
    loss = lambda f: lambda x: ((1 + 2j) * f(x)).real.sum()
    right = jax.grad(loss(lambda x: jnp.exp(1j * x)))(x(3))
    assert jnp.all(jnp.abs(jax.grad(loss(turn))(x(3)) - right) > 2)


def test_vmap():
    """one call per example"""
    runs = Runs(torch.sin)
    agree(jax.vmap(wrap(runs, like(x(3))))(x(4, 3)), jnp.sin(x(4, 3)))
    assert runs == [(3,)] * 4
    runs.clear()
    agree(jax.vmap(wrap(runs, like(x(3)), vmap_method="broadcast_all"))(x(4, 3)), jnp.sin(x(4, 3)))
    assert runs == [(4, 3)]


def test_parameters_of_modules():
    """by hand"""
    layer = torch.nn.Linear(3, 3)
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in layer.named_parameters()}
    f = wrap(lambda params, x: torch.func.functional_call(layer, params, x), params, like(x(2, 3)))
    agree(jax.jit(f)(params, x(2, 3)), x(2, 3) @ params["weight"].T + params["bias"])


def test_random_numbers():
    """by hand"""
    with pytest.raises(ValueError, match="Unsupported dtype: key"):
        wrap(lambda key: torch.rand(3), like(jax.random.key(0)))
    attempts.random_numbers_by_hand(lambda fn, x, words: call(fn, x, words, output_shapes=like(x), depth=0))


def test_sharded_arrays():
    """over Explicit axes, with gradients"""
    runs, mesh = Runs(torch.sin), mesh_of(AxisType.Explicit)
    f = wrap(runs, like(x(8, 3)), out_specs=P("x"))
    with jax.set_mesh(mesh):
        y = jax.jit(f)(put(x(8, 3), mesh))
        gradient = jax.jit(jax.grad(lambda x: f(x).sum()))(put(x(8, 3), mesh))
    agree(y, jnp.sin(x(8, 3)))
    agree(gradient, jnp.cos(x(8, 3)))
    assert y.sharding.spec[0] == gradient.sharding.spec[0] == "x"
    assert set(runs) == {(2, 3)}
    with pytest.raises(ValueError, match="Auto mesh axes"), jax.set_mesh(mesh_of(AxisType.Auto)):
        f(x(8, 3))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.filterwarnings("ignore:torch2jax. input shapes changed")
def test_inside_shard_map(kind):
    assert attempts.shapes_on_4_devices(call, kind, in_shard_map=True) == [(2, 3)] * 4


KEEPS = """
import warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, torch
from wrap_torch2jax import torch2jax
kept = []
def keep(t):
    if not t.is_meta:
        kept.append(t)
    return t.sum()
n = 1 << 24
x = jnp.ones(n)
jax.block_until_ready(torch2jax(keep, jax.ShapeDtypeStruct((n,), "float32"))(x))
print("kept", bool((kept[-1] == 1).all()), flush=True)
x.delete()
others = [jax.block_until_ready(jnp.full(n, 7.0)) for _ in range(2)]
print("later", bool((kept[-1] == 1).all()), flush=True)
"""


def test_a_kept_argument(run):
    """a crash, or changes unnoticed"""
    ended = run(KEEPS)
    assert ended.stdout.startswith("kept True"), ended.stderr
    assert ended.returncode < 0 or "later False" in ended.stdout


@pytest.mark.filterwarnings("error")
def test_a_written_argument():
    """changes the JAX array, unnoticed"""
    a = x(SIZE)
    jax.block_until_ready(jax.jit(wrap(lambda t: t.add_(1), like(a)))(a))
    agree(a, x(SIZE) + 1)


def test_exceptions():
    """its text"""

    def fails(t: torch.Tensor) -> None:
        raise KeyError("mine")

    with pytest.raises(jax.errors.JaxRuntimeError, match="KeyError: 'mine'") as caught:
        jax.block_until_ready(wrap(fails, like(x(3)), output_shapes=like(x(3)))(x(3)))
    assert caught.value.__cause__ is None


COMPILES = """
import torch.utils.cpp_extension
def load(name, sources, **options):
    raise SystemExit(f"compiles {len(sources)} files")
torch.utils.cpp_extension.load = load
import jax, torch, wrap_torch2jax
print("imported", flush=True)
wrap_torch2jax.torch2jax(torch.sin, jax.ShapeDtypeStruct((3,), "float32"))
"""


def test_compiles_cpp(run, tmp_path):
    """at first use"""
    ended = run(COMPILES, HOME=str(tmp_path))  # where nothing has been compiled yet
    assert ended.stdout.startswith("imported")
    assert "compiles 3 files" in ended.stderr


TARGETS = """
import jax
platforms, register = set(), jax.ffi.register_ffi_target
def note(name, function, platform="cpu", **options):
    platforms.add(platform)
    register(name, function, platform=platform, **options)
jax.ffi.register_ffi_target = note
import wrap_torch2jax
wrap_torch2jax.compile_and_import_module()
print(*sorted(platforms))
"""


def test_tpu(run):
    """no"""
    ended = run(TARGETS)
    assert ended.stdout.splitlines()[-1:] in (["cpu"], ["cpu gpu"]), ended.stderr
