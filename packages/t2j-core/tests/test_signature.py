"""Outputs are inferred without running on data, or declared in whichever spelling."""

from __future__ import annotations

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from t2j_core import ArgumentError, DataDependentShapeError, OutputError, Size, _compat, module2jax, torch2jax


def f32(*shape: int) -> jax.Array:
    return jnp.asarray(np.arange(math.prod(shape), dtype=np.float32).reshape(shape) / 7)


class Spy:
    """A function that notes on which device each of its runs was."""

    def __init__(self, function):
        self.function, self.devices = function, []

    def __call__(self, *args):
        self.devices.append(args[0].device.type)
        return self.function(*args)


# --- inferred ------------------------------------------------------------------------------------------------------


def test_made_up_data_is_where_jax_computes_or_else_on_the_cpu(monkeypatch):
    monkeypatch.setattr(_compat, "torch_device", lambda: torch.device("meta"))  # in place of a GPU

    def only(device):
        def f(t):
            if spy.devices[-1] != device or len(spy.devices) == 1:  # the first is the run without data
                raise RuntimeError("a kernel for one kind of device")
            return t * 2

        spy = Spy(f)
        return spy

    for device in ("meta", "cpu"):
        spy = only(device)
        assert jax.eval_shape(torch2jax(spy), f32(4)).shape == (4,)
        assert spy.devices[-2:] == [device, device]


def test_a_kernel_of_ones_own_is_not_launched_on_nothing():
    addresses = []

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            addresses.append(t.data_ptr())
            return t.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    f = torch2jax(Kernel.apply)
    np.testing.assert_array_equal(f(f32(4)), f32(4))
    assert "made-up data (NotImplementedError: a tensor without data has no address)" in " ".join(f.explain().split())
    assert 0 not in addresses


def test_inference_touches_no_data_and_happens_once_per_signature():
    spy = Spy(lambda t: t * 2)
    f = torch2jax(spy)
    for _ in range(3):
        assert jax.eval_shape(f, f32(4)).shape == (4,)
    assert spy.devices == ["meta"]
    assert jax.eval_shape(f, f32(5)).shape == (5,)
    assert spy.devices == ["meta", "meta"]


@pytest.mark.parametrize(
    ("function", "shape", "dtype"),
    [
        (lambda t: t @ t.T, (4, 4), "float32"),
        (lambda t: t.argmax(-1), (4,), "int32"),
        (lambda t: t > 0, (4, 3), "bool"),
        (lambda t: t.half(), (4, 3), "float16"),
        (lambda t: torch.fft.rfft(t), (4, 2), "complex64"),
        (lambda t: t.sum(), (), "float32"),
        (lambda t: t[:0], (0, 3), "float32"),
        (lambda t: torch.zeros(2), (2,), "float32"),
        (lambda t: torch.zeros(2, device=t.device), (2,), "float32"),
        (lambda t: torch.rand_like(t), (4, 3), "float32"),
        (lambda t: torch.empty(5).normal_(), (5,), "float32"),
        (lambda t: torch.arange(t.shape[0]).to(t), (4,), "float32"),
        (lambda t: torch.tensor([1.0, 2.0]) + t[:, :2], (4, 2), "float32"),
        (lambda t: torch.where(t > 0, t, 0.0), (4, 3), "float32"),
        (lambda t: torch.nn.functional.conv1d(t[None], torch.ones(2, 4, 2)), (1, 2, 2), "float32"),
        (lambda t: torch.nn.functional.scaled_dot_product_attention(t, t, t), (4, 3), "float32"),
        (lambda t: torch.einsum("ij,kj->ik", t, t), (4, 4), "float32"),
        (lambda t: t.flatten().unfold(0, 3, 2), (5, 3), "float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_inferred_shapes_are_those_of_the_call(function, shape, dtype):
    f = torch2jax(function)
    inferred = jax.eval_shape(f, f32(4, 3))
    assert (inferred.shape, inferred.dtype) == (shape, dtype)
    out = f(f32(4, 3))
    assert (out.shape, out.dtype) == (shape, dtype)


@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_a_closure_over_a_module_is_inferred_without_touching_the_module():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert jax.eval_shape(torch2jax(model), f32(8, 3)).shape == (8, 4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.is_meta for p in model.parameters())


def test_a_closure_that_counts_its_calls_is_not_advanced_by_inference():
    counter = torch.zeros((), dtype=torch.int64)

    def function(t):
        counter.add_(1)
        return t + counter

    f = torch2jax(function)
    assert jax.eval_shape(f, f32(3)).shape == (3,)
    assert counter.item() == 0
    np.testing.assert_array_equal(np.asarray(f(f32(3))), np.asarray(f32(3)) + np.float32(1))
    assert counter.item() == 1


def test_autograd_inside_the_function():
    def function(t):
        leaf = t.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((leaf**3).sum(), leaf)
        return gradient

    x = f32(5)
    np.testing.assert_allclose(np.asarray(torch2jax(function)(x)), 3 * np.asarray(x) ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["grad", "vmap", "jacrev"])
def test_torch_func_inside_the_function(name):
    inner = {"grad": lambda t: torch.sin(t).sum(), "vmap": lambda t: t.sin() * 2, "jacrev": torch.sin}[name]
    outer = {"grad": jnp.cos, "vmap": lambda x: jnp.sin(x) * 2, "jacrev": lambda x: jnp.diag(jnp.cos(x))}[name]
    x = f32(4)
    got = torch2jax(getattr(torch.func, name)(inner))(x)
    np.testing.assert_allclose(np.asarray(got), np.asarray(outer(x)), rtol=1e-5, atol=1e-7)


def test_autocast_inside_the_function():
    # Regression: it acts on tensors of a device, and tensors without data are on none.
    def function(t):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = t @ t.T
        return product, product.float(), t.sin()

    product, wide, plain = torch2jax(function)(f32(4, 3))
    assert (product.dtype, wide.dtype, plain.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    expected = function(torch.from_numpy(np.array(f32(4, 3))))[1]
    np.testing.assert_array_equal(np.asarray(wide), expected.numpy())


def test_no_grad_and_inference_mode_of_the_caller_do_not_matter():
    def function(t):
        leaf = t.detach().requires_grad_()
        return torch.autograd.grad(leaf.sin().sum(), leaf)[0]

    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu"), torch.device("meta")):
        with context:
            out = torch2jax(function)(f32(4))
        np.testing.assert_allclose(np.asarray(out), np.cos(np.asarray(f32(4))), rtol=1e-6)


def test_a_function_that_needs_data_is_run_on_made_up_data(caplog):
    spy = Spy(lambda t: torch.from_numpy(np.sin(t.numpy())))
    f = torch2jax(spy)
    with caplog.at_level(logging.INFO, "t2j_core"):
        assert jax.eval_shape(f, f32(3)).shape == (3,)
    assert spy.devices[0] == "meta"
    assert "cpu" in spy.devices
    assert "cannot run without data" in caplog.text
    np.testing.assert_allclose(np.asarray(f(f32(3))), np.sin(np.asarray(f32(3))), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_running_on_zeros_leaves_torchs_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    jax.eval_shape(torch2jax(lambda t: torch.rand(3) * t.sum().item()), f32(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mask_that_does_not_change_the_output_shape():
    x = f32(5) - 0.3
    out = torch2jax(lambda t: t[t > 0].sum() + t)(x)
    expected = np.asarray(x)
    np.testing.assert_allclose(np.asarray(out), expected[expected > 0].sum() + expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (lambda t: t[t > 0], "Pad the outputs"),
        (lambda t: torch.nonzero(t), "nonzero_static"),
        (lambda t: torch.unique(t), "Pad the outputs"),
        (lambda t: torch.masked_select(t, t > 2), "Pad the outputs"),
        (lambda t: torch.repeat_interleave(t, t.long()), "output_size="),
        (lambda t: (t, {"found": t.nonzero()}), "nonzero_static"),
    ],
    ids=["mask", "nonzero", "unique", "masked_select", "repeat", "nested"],
)
def test_a_shape_that_depends_on_data_is_an_error_of_the_trace(function, advice):
    with raises(DataDependentShapeError, what="(args[0]: f32[5])", expected="shapes", got="[", remedy=advice):
        jax.make_jaxpr(torch2jax(function))(f32(5))


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t[: int(t.sum().item())],
        lambda t: t[: int(t.numpy().sum())],
        lambda t: torch.arange(int(t.max())),
        lambda t: torch.zeros([int(n) for n in t.tolist()][0]),
    ],
    ids=["item", "numpy", "int", "tolist"],
)
def test_a_shape_that_depends_on_a_value_is_an_error_of_the_trace(function):
    # Regression: noticed only for operations with a dynamic shape of their own; here the answer was an empty array.
    with raises(DataDependentShapeError, what="(args[0]: f32[5])"):
        jax.make_jaxpr(torch2jax(function))(f32(5))


def test_the_functions_own_error_keeps_its_type_and_says_that_it_came_from_inference():
    class Picky(Exception):
        pass

    def function(t):
        raise Picky("not with me")

    with pytest.raises(Picky, match="not with me") as error:
        torch2jax(function)(f32(3))
    assert any("inferred the outputs of function for args[0]: f32[3]." in note for note in error.value.__notes__)


INVALID = {
    "zeros": lambda t: t.sum() == 0,
    "a ramp": lambda t: (t > 1).any(),
    "zeros and a ramp": lambda t: (t != 1).any(),
    "zeros and ones": lambda t: t.std() == 0,
}


@pytest.mark.parametrize("name", INVALID)
def test_outputs_are_inferred_where_some_data_is_no_valid_input(name):
    def function(t):
        if INVALID[name](torch.as_tensor(t.numpy())):
            raise ValueError("other data, please")
        return t.sum()

    x = jnp.arange(1.0, 5.0) if name in ("zeros", "zeros and ones") else jnp.ones(4)
    assert torch2jax(function)(x) == x.sum()


class Cache:
    def __init__(self, t: torch.Tensor) -> None:
        self.layers = [{"keys": t}]


def test_tensors_deep_inside_an_object_that_is_no_pytree():
    with raises(OutputError, what="a Cache", got="`layers[0]['keys']`", remedy="`use_cache=False`"):
        torch2jax(lambda t: (t + 1, Cache(t * 2)))(f32(3))


def test_a_function_that_works_only_on_real_data_is_declared():
    x = f32(4)
    total = float(np.abs(np.asarray(x)).sum())

    def function(t):
        if abs(float(t.abs().sum()) - total) > 1e-4:
            raise ValueError("needs real data")
        return t / t.sum()

    with pytest.raises(ValueError, match="needs real data") as error:
        jax.jit(torch2jax(function))(x)
    assert "declare its outputs with `output_shapes=`" in "".join(error.value.__notes__)
    out = torch2jax(function, output_shapes=Size(4))(x)
    np.testing.assert_allclose(np.asarray(out), np.asarray(x) / np.asarray(x).sum(), rtol=1e-6)


def test_a_declared_function_is_not_run_before_the_first_call():
    spy = Spy(lambda t: t * 2)
    f = torch2jax(spy, f32(3), output_shapes=Size(3))
    compiled = jax.jit(f).lower(f32(3)).compile()
    assert spy.devices == []
    assert np.asarray(compiled(f32(3))).tolist() == (np.asarray(f32(3)) * 2).tolist()
    assert spy.devices == ["cpu"]


def test_tensors_that_a_function_caches_on_its_first_run():
    # Regression: inference left tensors without data in the cache.
    cache = {}

    def function(t):
        if "scale" not in cache:
            cache["scale"] = torch.full((3,), 2.0)
        return t * cache["scale"]

    f = torch2jax(function)
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(f(f32(3))), np.asarray(f32(3)) * 2)


def test_a_memoised_helper():
    @functools.cache
    def positions(n):
        return torch.arange(n, dtype=torch.float32)

    f = torch2jax(lambda t: t + positions(t.shape[0]))
    np.testing.assert_array_equal(np.asarray(f(f32(3))), np.asarray(f32(3)) + np.arange(3, dtype=np.float32))
    assert positions(3).device.type == "cpu"


def test_a_module_that_caches_on_its_first_run():
    # Regression: a rotary embedding keeps its table.
    class Rotary(torch.nn.Module):
        table = None

        def forward(self, t):
            if self.table is None or self.table.shape[0] != t.shape[0]:
                self.table = torch.cos(torch.arange(t.shape[0], dtype=t.dtype, device=t.device))
            return t * self.table

    expected = np.asarray(f32(3)) * np.cos(np.arange(3, dtype=np.float32))
    np.testing.assert_allclose(np.asarray(torch2jax(Rotary())(f32(3))), expected, rtol=1e-6)
    apply, variables = module2jax(Rotary())
    np.testing.assert_allclose(np.asarray(apply(variables, f32(3))), expected, rtol=1e-6)


def test_a_lazy_module():
    # Regression: its parameters were made without data, and then never initialised.
    torch.manual_seed(0)
    layer = torch.nn.LazyLinear(4)
    out = torch2jax(layer)(f32(2, 3))
    bound = 1 / math.sqrt(3)  # of torch.nn.Linear.reset_parameters
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std() > 0.1 * bound
    expected = layer(torch.from_numpy(np.array(f32(2, 3)))).detach().numpy()
    np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda t: t.to_sparse(), dict(what="sparse tensor", got="torch.sparse_coo", remedy="to_dense")),
        (lambda t: np.ones(3), dict(what="ndarray", expected="tensors", got="ndarray f64[3]", remedy="as_tensor")),
        (lambda t: (t, np.float32(1)), dict(what="float32", expected="tensors", got="f32[]", remedy="as_tensor")),
    ],
    ids=["sparse", "numpy", "numpy scalar"],
)
def test_outputs_that_are_no_tensors(function, parts):
    with raises(OutputError, **parts):
        torch2jax(function)(f32(3))


# --- declared ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        Size(4, 3),
        Size((4, 3)),
        torch.Size((4, 3)),
        (4, 3),
        [4, 3],
        (np.int64(4), 3),
        jax.ShapeDtypeStruct((4, 3), jnp.float32),
        np.zeros((4, 3), np.float32),
        jnp.zeros((4, 3)),
        torch.zeros(4, 3),
        torch.zeros(4, 3, device="meta"),
    ],
    ids=lambda s: type(s).__name__,
)
def test_every_spelling_of_one_output(shape):
    x = f32(4, 3)
    for call in (torch2jax(torch.sin, output_shapes=shape), jax.jit(torch2jax(torch.sin, output_shapes=shape))):
        np.testing.assert_allclose(np.asarray(call(x)), np.sin(np.asarray(x)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), [], Size(), torch.Size([])], ids=repr)
def test_every_spelling_of_a_scalar(shape):
    assert float(torch2jax(torch.sum, output_shapes=shape)(jnp.ones(3))) == 3


@pytest.mark.parametrize(
    "shapes",
    [
        {"sin": Size(3), "both": (Size(3), [Size()])},
        {"sin": (3,), "both": ((3,), [[]])},
        {"sin": torch.zeros(3), "both": (jnp.zeros(3), [jax.ShapeDtypeStruct((), jnp.float32)])},
    ],
    ids=["Size", "tuple", "arrays"],
)
def test_every_spelling_of_a_tree(shapes):
    x = f32(3)
    f = torch2jax(lambda t: {"sin": t.sin(), "both": (t.cos(), [t.sum()])}, output_shapes=shapes)
    out = jax.jit(f)(x)
    np.testing.assert_allclose(np.asarray(out["sin"]), np.sin(np.asarray(x)), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(out["both"][0]), np.cos(np.asarray(x)), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(out["both"][1][0]), np.asarray(x).sum(), rtol=1e-6)


def test_outputs_declared_by_a_tracer():
    @jax.jit
    def f(x):
        return torch2jax(lambda t: t[:, :2] * 2, x, output_shapes=x[:, :2])(x)

    np.testing.assert_array_equal(np.asarray(f(f32(4, 3))), np.asarray(f32(4, 3))[:, :2] * 2)


def test_a_shape_takes_the_dtype_of_the_first_floating_operand():
    f = torch2jax(lambda n, t: t * 2, output_shapes=(3,))
    assert f(jnp.arange(3, dtype=jnp.int32), jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
    assert torch2jax(lambda n: n.float(), output_shapes=(3,))(jnp.arange(3, dtype=jnp.int32)).dtype == jnp.float32


def test_a_wide_declaration_is_narrowed_while_x64_is_off():
    for declared in (torch.zeros(3, dtype=torch.float64), np.zeros(3)):
        out = torch2jax(lambda t: t.double() / 3, output_shapes=declared)(f32(3))
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(out), (np.asarray(f32(3)).astype(float) / 3).astype(np.float32))


@pytest.mark.parametrize(
    ("shapes", "expected", "got"),
    [
        (Size(4), "f32[4]", "f32[3]"),
        (Size(3, 1), "f32[3,1]", "f32[3]"),
        (jax.ShapeDtypeStruct((3,), jnp.float16), "f16[3]", "f32[3]"),
        (jax.ShapeDtypeStruct((3,), jnp.int32), "i32[3]", "f32[3]"),
    ],
    ids=["size", "rank", "half", "int"],
)
def test_a_wrong_declaration_is_found_at_the_call(shapes, expected, got):
    with raises(OutputError, what=("sin", "wrong output"), expected=expected, got=got, remedy="`output_shapes`"):
        torch2jax(torch.sin, output_shapes=shapes)(f32(3))


def test_a_wrong_leaf_of_a_declared_tree_is_named():
    f = torch2jax(lambda t: {"a": [t, t]}, output_shapes={"a": [Size(3), Size(2)]})
    with raises(OutputError, what="wrong output['a'][1]", expected="f32[2]", got="f32[3]"):
        f(f32(3))


@pytest.mark.parametrize(
    "function", [lambda t: (t,), lambda t: None, lambda t: {"x": t}, lambda t: [t, t], lambda t: 3.0]
)
def test_another_tree_than_declared_is_found_at_the_call(function):
    with pytest.raises(OutputError):
        torch2jax(function, output_shapes=Size(3))(f32(3))
    if not isinstance(function(torch.ones(3)), (tuple, list)) or len(function(torch.ones(3))) != 2:
        with pytest.raises(OutputError):
            torch2jax(function, output_shapes=(Size(3), Size(3)))(f32(3))


@pytest.mark.parametrize("shapes", ["f32", 3, {"a": 1.5}, (Size(3), "x"), object()], ids=lambda s: type(s).__name__)
def test_a_declaration_that_describes_no_array(shapes):
    with pytest.raises(ArgumentError, match="`output_shapes`"):
        torch2jax(torch.sin, output_shapes=shapes)(f32(3))


def test_the_declaration_of_a_function_without_outputs():
    calls = []
    f = torch2jax(lambda t: calls.append(t.sum().item()), output_shapes=None, has_side_effect=True)
    assert f(jnp.ones(3)) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t.sum().item(),
        lambda t: (t, t.sum().item()),
        lambda t: {"sum": t.sum()} if t.sum() > 0 else {"zero": t.sum()},
        lambda t: (t, None if t.sum() > 0 else "zero"),
    ],
    ids=["alone", "beside a tensor", "a key", "None or text"],
)
def test_a_constant_that_depends_on_values_is_refused(function):
    # Regression: alone, it came back as it was for zeros, because a call without results never ran.
    with raises(OutputError, what="depends on the values of its inputs (args[0]: f32[3])"):
        torch2jax(function)(f32(3) + 1)


def test_a_traced_number_that_decides_a_shape_is_named_as_a_way_out():
    f = torch2jax(lambda t, dim: t.sum(int(dim)))
    assert f(f32(2, 3), 1).shape == (2,)
    assert jax.jit(f, static_argnums=1)(f32(2, 3), 1).shape == (2,)
    with raises(DataDependentShapeError, what="(args[1]: i32[])", remedy="static_argnums"):
        jax.jit(f)(f32(2, 3), 1)
    with raises(DataDependentShapeError, lacks="static_argnums"):
        f2 = torch2jax(lambda t: t.nonzero())
        f2(f32(2, 3))
