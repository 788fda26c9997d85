"""`torch2jax` as users write it: with and without examples, on arrays of all three libraries, wrongly too."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import agree, raises, warns
from t2j_core import ArgumentError, PerformanceWarning, Size, TorchFunction, torch2jax, torch2jax_without_vjp


def f32(*shape: int) -> jax.Array:
    return jnp.asarray(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))


def close(got, expected):
    agree(got, expected, rtol=1e-6, atol=1e-7)


# --- what the predecessor's README shows --------------------------------------------------------------------------


def add(a, b):
    return a + b


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: torch2jax(add),
        lambda: torch2jax(add, torch.randn(10, 2), torch.randn(10, 2)),
        lambda: torch2jax(add, torch.randn(10, 2), torch.randn(10, 2), output_shapes=Size((10, 2))),
        lambda: torch2jax(
            add,
            jax.ShapeDtypeStruct((10, 2), jnp.float32),
            jax.ShapeDtypeStruct((10, 2), jnp.float32),
            output_shapes=jax.ShapeDtypeStruct((10, 2), jnp.float32),
        ),
        lambda: torch2jax_without_vjp(add, torch.randn(10, 2), torch.randn(10, 2)),
    ],
    ids=["bare", "examples", "sizes", "structs", "without_vjp"],
)
def test_the_first_example(wrap):
    a = jax.random.normal(jax.random.key(0), (10, 2))
    b = jax.random.normal(jax.random.key(1), (10, 2))
    f = wrap()
    close(f(a, b), a + b)
    close(jax.jit(f)(a, b), a + b)


def test_several_outputs_and_a_layer_made_inside():
    def function(a, b):
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 20).to(a)
        return a + b, torch.norm(a), layer(a * b)

    a, b = f32(10, 2), f32(10, 2) * 2
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 20)
    expected = layer(torch.from_numpy(np.array(a * b))).detach().numpy()
    for call in (torch2jax(function, a, b), jax.jit(torch2jax(function, a, b))):
        x, y, z = call(a, b)
        close(x, a + b)
        close(y, jnp.linalg.norm(a))
        np.testing.assert_allclose(np.asarray(z), expected, rtol=1e-5, atol=1e-6)


def test_a_wrapper_made_inside_jit():
    @jax.jit
    def compute(a, b, c):
        struct = jax.ShapeDtypeStruct(a.shape, a.dtype)
        d = torch2jax(add, struct, struct, output_shapes=struct)(a, b)
        return d - c

    close(compute(f32(4), f32(4), jnp.ones(4)), 2 * f32(4) - 1)


# --- arguments -----------------------------------------------------------------------------------------------------

EXAMPLES = {
    "none": (),
    "torch": (torch.zeros(4, 3),),
    "jax": (jnp.zeros((4, 3)),),
    "numpy": (np.zeros((4, 3), np.float32),),
    "struct": (jax.ShapeDtypeStruct((4, 3), jnp.float32),),
    "parameter": (torch.nn.Parameter(torch.zeros(4, 3)),),
    "other shape": (torch.zeros(2, 2, 2),),
    "meta": (torch.zeros(4, 3, device="meta"),),
}


@pytest.mark.parametrize("examples", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("kind", ["jax", "torch", "numpy", "jit"])
def test_any_example_goes_with_any_argument(examples, kind):
    f = torch2jax(lambda t: torch.sin(t) * 2, *examples)
    x = f32(4, 3)
    argument = {"torch": torch.from_numpy(np.array(x)), "numpy": np.asarray(x)}.get(kind, x)
    out = jax.jit(f)(argument) if kind == "jit" else f(argument)
    assert isinstance(out, jax.Array)
    close(out, 2 * jnp.sin(x))


def test_arguments_of_several_libraries_in_one_call():
    f = torch2jax(lambda a, b, c, *, d: a + b * c - d)
    x = f32(4)
    for _ in range(2):
        close(f(x, torch.full((4,), 2.0), np.full(4, 3, np.float32), d=x), x + 6 - x)


def test_keyword_arguments_and_their_examples():
    def function(t, *, scale, mode="sum"):
        return getattr(t * scale, mode)()

    x = f32(4)
    for f in (torch2jax(function), torch2jax(function, x, example_kw={"scale": x, "mode": "sum"})):
        close(f(x, scale=x, mode="sum"), (x * x).sum())
        close(f(x, scale=x, mode="mean"), (x * x).mean())
        close(jax.jit(functools.partial(f, mode="mean"))(x, scale=x), (x * x).mean())


def test_example_kw_alone():
    f = torch2jax(lambda *, t: t * 2, example_kw={"t": torch.zeros(4)})
    close(f(t=f32(4)), 2 * f32(4))


def test_static_leaves_select_the_signature():
    runs = []

    def function(t, axis, options):
        runs.append(t.device.type)
        return t.sum(axis) * options["scale"]

    f = torch2jax(function)
    x = f32(4, 3)
    for axis in (0, 1, 0):
        close(f(x, axis, {"scale": 2}), 2 * x.sum(axis))
    assert runs.count("meta") == 2


def test_static_arguments_of_jit_are_constants_of_the_function():
    f = jax.jit(torch2jax(lambda t, dim: t.sum(dim)), static_argnums=1)
    close(f(f32(4, 3), 0), f32(4, 3).sum(0))
    close(f(f32(4, 3), 1), f32(4, 3).sum(1))


def test_a_python_number_under_jit_is_an_array():
    seen = []

    def function(t, n):
        seen.append(type(n))
        return t * n

    f = torch2jax(function)
    close(f(f32(3), 2), 2 * f32(3))
    close(jax.jit(f)(f32(3), 2), 2 * f32(3))
    assert seen[0] is int
    assert seen[-1] is torch.Tensor


def test_new_shapes_and_dtypes_just_work(recwarn):
    f = torch2jax(lambda t: t * 2, torch.zeros(3))
    for x in (f32(3), f32(4), f32(2, 2), f32(0), jnp.arange(3, dtype=jnp.int32), jnp.ones(3, jnp.bfloat16), f32(3)):
        for call in (f, jax.jit(f)):
            out = call(x)
            assert out.dtype == x.dtype
            close(out.astype(jnp.float32), 2 * x.astype(jnp.float32))
    assert not recwarn.list


def test_a_module_is_a_function():
    layer = torch.nn.Linear(3, 2)
    f = torch2jax(layer)
    expected = layer(torch.from_numpy(np.array(f32(4, 3)))).detach().numpy()
    np.testing.assert_allclose(np.asarray(f(f32(4, 3))), expected, rtol=1e-6)
    assert f.__name__ == "Linear"


def test_builtins_partials_methods_and_callables():
    class Scaler:
        factor = 3.0

        def __call__(self, t):
            return t * self.factor

        def method(self, t):
            return t / self.factor

    x = f32(4)
    close(torch2jax(torch.sin)(x), jnp.sin(x))
    close(torch2jax(functools.partial(torch.add, alpha=2))(x, x), 3 * x)
    close(torch2jax(Scaler())(x), 3 * x)
    close(torch2jax(Scaler().method)(x), x / 3)


def test_as_a_decorator():
    @torch2jax
    def double(t):
        """Twice."""
        return t * 2

    close(double(f32(3)), 2 * f32(3))
    assert double.__name__ == "double"
    assert double.__doc__ == "Twice."

    @functools.partial(torch2jax, output_shapes=Size(3))
    def triple(t):
        return t * 3

    close(triple(f32(3)), 3 * f32(3))


class Scaled:
    """A class whose methods are torch functions."""

    def __init__(self, factor):
        self.factor = factor

    @torch2jax
    def scale(self, t):
        return t * self.factor

    @staticmethod
    @torch2jax
    def double(t):
        return t * 2

    sine = torch2jax(torch.sin)  # binds to no instance, as `torch.sin` itself


def test_as_a_decorator_of_methods():
    two, three = Scaled(2), Scaled(3)
    close(two.scale(f32(3)), 2 * f32(3))
    close(jax.jit(three.scale)(f32(3)), 3 * f32(3))
    close(Scaled.scale(two, f32(3)), 2 * f32(3))
    close(two.double(f32(3)), 2 * f32(3))
    close(two.sine(f32(3)), jnp.sin(f32(3)))


def test_a_bound_method_as_a_class_attribute_stays_bound():
    class Holder:
        f = torch2jax(torch.nn.Identity().forward)

    close(Holder().f(f32(3)), f32(3))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))], ids=["copy", "deepcopy", "pickle"]
)
def test_copies(copied):
    f = torch2jax(add, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), outputs="copy")
    i = jnp.arange(3)
    close(f(i, i), 2 * i)
    other = copied(f)
    close(other(i, i), 2 * i)
    close(jax.jit(other)(i, i), 2 * i)
    assert repr(other) == repr(f)
    assert inspect.signature(other) == inspect.signature(f)
    assert other.explain() == f.explain()


def test_a_copied_function_with_a_name_is_found_by_it():
    f = torch2jax(add, name="copied_add")
    assert copy.deepcopy(f).__name__ == "copied_add"


def test_a_wrapped_function_calls_nothing_of_jaxs_configuration():
    before = dict(jax.config.values)
    torch2jax(torch.sin)(f32(3))
    assert dict(jax.config.values) == before


# --- name and repr -------------------------------------------------------------------------------------------------


def test_the_name_is_seen_in_the_repr_the_jaxpr_and_the_program():
    f = torch2jax(lambda t: t * 2, name="twice")
    assert isinstance(f, TorchFunction)
    assert f.__name__ == "twice"
    assert repr(f) == "torch2jax(twice, name='twice')"
    jaxpr = str(jax.make_jaxpr(f)(f32(3)))
    assert "torch_call" in jaxpr
    assert "twice(f32[3])" in jaxpr
    assert "twice" in jax.jit(f).lower(f32(3)).as_text()


def test_the_name_of_a_function_without_one():
    assert torch2jax(functools.partial(torch.add, alpha=2)).__name__ == "partial"
    assert torch2jax(lambda t: t).__name__ == "<lambda>"


def test_names_with_a_lone_surrogate():
    # Regression: C++ took none of them. UTF-8 has no lone surrogates, so messages show an escape.
    def function(t, mode="\udc80"):
        return {"\udc80": t + 1}

    function.__name__ = "f\udc80"
    f, x = torch2jax(function), f32(3)
    assert f.__name__ == r"f\udc80"
    for call in (f, jax.jit(f), functools.partial(f, mode="\udc81")):
        close(call(x)["\udc80"], x + 1)
    close(torch2jax(lambda t: t["\udc80"] + 1)({"\udc80": x}), x + 1)
    with raises(ArgumentError, what="`name`", got=r"\udc80"):
        torch2jax(function, name="\udc80")


def test_the_compiled_text_is_the_same_for_every_instance_but_the_number():
    import re

    texts = {re.sub(r"id = \d+", "id = N", jax.jit(torch2jax(torch.sin)).lower(f32(3)).as_text()) for _ in range(3)}
    assert len(texts) == 1


def test_the_signature_of_torch2jax_is_the_documented_one():
    assert list(inspect.signature(torch2jax).parameters) == [
        "fn",
        "example_args",
        "example_kw",
        "output_shapes",
        "mutable_argnums",
        "rng",
        "arguments",
        "outputs",
        "has_side_effect",
        "name",
        "compile",
        "command_buffer",
    ]


# --- wrong use -----------------------------------------------------------------------------------------------------


def test_something_that_is_not_callable():
    with raises(ArgumentError, what=("`fn`", "callable"), got="int"):
        torch2jax(3)


def test_an_unknown_way_of_outputs():
    with raises(ArgumentError, what="`outputs`", expected='"auto", "copy" or "out"', got="'fast'"):
        torch2jax(torch.sin, outputs="fast")


def test_another_tree_than_the_examples():
    f = torch2jax(add, f32(3), f32(3))
    for arguments, keywords in [((f32(3),), {}), ((f32(3), [f32(3)]), {}), ((f32(3),), {"b": f32(3)})]:
        with raises(ArgumentError, what=("add", "examples"), expected="(*, *)", got="PyTreeDef"):
            f(*arguments, **keywords)


def test_a_missing_argument_is_the_functions_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        torch2jax(add)(f32(3))


def test_examples_are_checked_when_wrapping():
    with pytest.raises(RuntimeError, match="must match the size"):
        torch2jax(add, torch.zeros(3), torch.zeros(4))
    with raises(ArgumentError, what="args[0]", expected="hashable constant", got="set"):
        torch2jax(add, {1, 2}, torch.zeros(3))


def test_shapes_that_do_not_fit_keep_the_type_of_torchs_error():
    f = torch2jax(add)
    for call in (f, jax.jit(f)):
        with pytest.raises(RuntimeError, match="must match the size"):
            call(f32(3), f32(4))
    close(f(f32(3), f32(3)), 2 * f32(3))


def test_an_array_of_python_objects():
    with pytest.raises(TypeError):
        torch2jax(lambda t: t)(np.array([object()]))


def test_an_error_text_holds_avals_and_no_values():
    secret = jnp.full(3, 12345.678)
    with raises(Exception, expected="f32[4]", got="f32[3]", lacks="12345"):
        torch2jax(lambda t: t, output_shapes=Size(4))(secret)


def test_the_performance_warning_points_at_the_users_line():
    f = torch2jax(lambda t: t.add_(1))
    with warns(PerformanceWarning, what="changes args[0]") as record:
        f(f32(3))
    assert [w.filename for w in record] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f(f32(3))  # once per signature


@pytest.mark.parametrize(
    ("program", "count"),
    [
        (lambda f, x: (f(x), x * 2)[1], 1),
        (lambda f, x: f(x) + f(x), 2),
        (lambda f, x: jax.lax.fori_loop(0, 4, lambda _, c: (f(x), c + 1)[1], x), 4),
        (lambda f, x: jax.lax.scan(lambda c, _: (c + f(x), None), x, None, length=4)[0], 4),
        (lambda f, x: jax.lax.cond(x[0] < 0, lambda: (f(x), x)[1], lambda: x), 1),
        (lambda f, x: jax.lax.cond(x[0] > 0, lambda: (f(x), x)[1], lambda: x), 0),
    ],
    ids=["unused", "equal", "unused in a loop", "invariant in a scan", "taken branch", "other branch"],
)
def test_with_side_effects_every_call_of_the_program_runs(program, count):
    # Regression: JAX itself drops a call whose result is unused, before XLA sees that it has an effect.
    calls = []
    f = torch2jax(lambda t: (calls.append(1), t * 2)[1], output_shapes=Size(3), has_side_effect=True)
    compiled = jax.jit(functools.partial(program, f)).lower(f32(3)).compile()
    for _ in range(2):
        jax.block_until_ready(compiled(f32(3)))
    jax.effects_barrier()
    assert len(calls) == 2 * count


def test_a_call_for_its_effect_alone():
    seen = []
    f = torch2jax(lambda t: seen.append(t.sum().item()) if not t.is_meta else None, has_side_effect=True)

    @jax.jit
    def program(x):
        f(x)
        return x

    jax.block_until_ready(program(jnp.ones(3)))
    jax.effects_barrier()
    assert seen[-1] == 3.0
