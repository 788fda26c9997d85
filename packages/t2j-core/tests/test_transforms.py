"""A wrapped function under JAX's transformations, judged by the same function in `jnp`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t2j_core._run.host
import torch
from common import raises
from t2j_core import ShardingError, TransformError, torch2jax

P = jax.sharding.PartitionSpec
CUSTOM_CALL = [jax.export.DisabledSafetyCheck.custom_call("t2j_torch_call")]


def torch_step(x, y):
    return torch.sin(x) * 0.5 + y


def jnp_step(x, y):
    return jnp.sin(x) * 0.5 + y


step = torch2jax(torch_step)
is_small = torch2jax(lambda x: x.abs().max() < 2)
X = jnp.asarray(np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3))
Y = jnp.asarray(np.linspace(3, 4, 6, dtype=np.float32).reshape(2, 3))


PROGRAMS = {
    "plain": lambda f, x, y: f(x, y),
    "jit": lambda f, x, y: jax.jit(f)(x, y),
    "nested jit": lambda f, x, y: jax.jit(lambda a: jax.jit(f)(a, jax.jit(f)(a, y)))(x),
    "composed": lambda f, x, y: f(f(x, y), f(y, x)),
    "closed over": lambda f, x, y: jax.jit(lambda a: f(a, y))(x),
    "constant only": lambda f, x, y: jax.jit(lambda: f(X, Y))(),
    "numpy constant": lambda f, x, y: jax.jit(lambda a: f(a, np.asarray(Y)))(x),
    "scan": lambda f, x, y: jax.lax.scan(lambda c, a: (f(c, a), f(a, c)), x[0], y),
    "reverse scan": lambda f, x, y: jax.lax.scan(lambda c, a: (f(c, a), c), x[0], y, reverse=True, unroll=2),
    "while": lambda f, x, y: jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, f(c[1], y)), (0, x)),
    "fori": lambda f, x, y: jax.lax.fori_loop(0, 4, lambda _, c: f(c, y), x),
    "fori traced": lambda f, x, y: jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda _, c: f(c, y), x))(3),
    "invariant": lambda f, x, y: jax.lax.fori_loop(0, 4, lambda _, c: c + f(x, y), x),
    "cond": lambda f, x, y: [
        jax.jit(lambda p: jax.lax.cond(p, lambda: f(x, y), lambda: x))(p) for p in (jnp.array(True), jnp.array(False))
    ],
    "switch": lambda f, x, y: [
        jax.jit(
            lambda i: jax.lax.switch(
                i,
                [lambda: f(x, y), lambda: f(y, x), lambda: x],
            )
        )(i)
        for i in range(3)
    ],
    "select": lambda f, x, y: jnp.where(f(x, y) > 3, f(x, y), f(y, x)),
    "map": lambda f, x, y: jax.lax.map(lambda a: f(a, y[0]), x),
    "associative": lambda f, x, y: jax.lax.reduce_window(f(x, y), -jnp.inf, jax.lax.max, (2, 1), (1, 1), "VALID"),
    "checkpoint": lambda f, x, y: jax.checkpoint(f)(x, y),
    "named": lambda f, x, y: jax.named_call(f, name="torch")(x, y),
    "pure_callback beside": lambda f, x, y: f(jax.pure_callback(np.negative, x, x), y),
    "stop_gradient": lambda f, x, y: jax.lax.stop_gradient(f(x, y)),
    "zeros": lambda f, x, y: f(jnp.zeros((0, 3)), jnp.zeros((0, 3))),
    "of a slice": lambda f, x, y: f(x[:, 1:], y.T[:2].T),
    "of a cast": lambda f, x, y: f(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).astype(jnp.float32).shape,
    "partial": lambda f, x, y: functools.partial(jax.jit(f), x)(y),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_gives_what_jnp_gives(program):
    got = program(step, X, Y)
    expected = program(jnp_step, X, Y)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6)


def test_a_while_loop_that_torch_decides():
    @jax.jit
    def run(x):
        return jax.lax.while_loop(is_small, lambda c: step(c, Y), x)

    expected = np.asarray(X)
    while np.abs(expected).max() < 2:
        expected = np.sin(expected) * np.float32(0.5) + np.asarray(Y)
    np.testing.assert_allclose(np.asarray(run(X)), expected, rtol=1e-6)


def test_ahead_of_time():
    lowered = jax.jit(step).lower(X, Y)
    assert "t2j_torch_call" in lowered.as_text()
    compiled = lowered.compile()
    for _ in range(2):
        np.testing.assert_allclose(np.asarray(compiled(X, Y)), np.asarray(jnp_step(X, Y)), rtol=1e-6)
    with pytest.raises(TypeError):
        compiled(X[:1], Y)


def test_ahead_of_time_from_structs():
    struct = jax.ShapeDtypeStruct(X.shape, X.dtype)
    compiled = jax.jit(step).trace(struct, struct).lower().compile()
    np.testing.assert_allclose(np.asarray(compiled(X, Y)), np.asarray(jnp_step(X, Y)), rtol=1e-6)


def test_shapes_without_computing():
    calls = []
    f = torch2jax(lambda t: (calls.append(t.device.type), {"a": t.sum(0), "b": t.long()})[1])
    out = jax.eval_shape(f, X)
    assert (out["a"].shape, out["a"].dtype) == ((3,), jnp.float32)
    assert (out["b"].shape, out["b"].dtype) == ((2, 3), jnp.int32)
    assert "cpu" not in calls


def test_the_jaxpr_has_one_call():
    jaxpr = jax.make_jaxpr(step)(X, Y)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["torch_call"]
    assert jaxpr.out_avals[0].str_short() == "float32[2,3]"
    assert not jaxpr.out_avals[0].weak_type


@pytest.mark.parametrize("name", ["plain", "jit", "nested jit", "scan", "while", "fori", "cond", "map", "zeros"])
def test_a_program_without_jit(name):
    # Regression: endless recursion.
    with jax.disable_jit():
        got = PROGRAMS[name](step, X, Y)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(PROGRAMS[name](jnp_step, X, Y)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6)


def test_donation_of_an_argument_that_is_not_changed():
    x = X + 0
    out = jax.jit(step, donate_argnums=0)(x, Y)
    np.testing.assert_allclose(np.asarray(out), np.asarray(jnp_step(X, Y)), rtol=1e-6)
    assert x.is_deleted()


def test_debugging_of_nans_is_jaxs_own():
    # Regression: endless recursion.
    log = torch2jax(torch.log)
    with jax.debug_nans(True):
        np.testing.assert_allclose(np.asarray(log(Y)), np.log(np.asarray(Y)), rtol=1e-6)
        with pytest.raises(FloatingPointError):
            log(-Y)


def test_equal_calls_in_one_program_agree():
    a, b = jax.jit(lambda x, y: (step(x, y), step(x, y)))(X, Y)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# --- what needs t2j-autodiff --------------------------------------------------------------------------------------


def total(x):
    return step(x, Y).sum()


@pytest.mark.parametrize(
    ("attempt", "what"),
    [
        (lambda: jax.grad(total)(X), "differentiated"),
        (lambda: jax.jit(jax.grad(total))(X), "differentiated"),
        (lambda: jax.value_and_grad(total)(X), "differentiated"),
        (lambda: jax.vjp(total, X), "differentiated"),
        (lambda: jax.jvp(total, (X,), (X,)), "differentiated"),
        (lambda: jax.linearize(total, X), "differentiated"),
        (lambda: jax.jacfwd(total)(X), "differentiated"),
        (lambda: jax.hessian(total)(X), "differentiated"),
        (lambda: jax.grad(jax.checkpoint(total))(X), "differentiated"),
        (lambda: jax.grad(lambda x: jax.lax.fori_loop(0, 2, lambda _, c: step(c, Y), x).sum())(X), "differentiated"),
        (lambda: jax.vmap(step)(X, Y), "batched"),
        (lambda: jax.vmap(step, in_axes=(0, None))(X, Y[0]), "batched"),
        (lambda: jax.jit(jax.vmap(step))(X, Y), "batched"),
        (lambda: jax.vmap(lambda x: jax.lax.cond(x[0] > 0, lambda: step(x, Y[0]), lambda: x))(X), "batched"),
    ],
)
def test_differentiation_and_batching_name_the_package_that_has_them(attempt, what):
    wrapped = ("torch_step", "`t2j_core.torch2jax`", f"cannot be {what}")
    with raises(TransformError, what=wrapped, remedy="`from t2j_autodiff import torch2jax`"):
        attempt()


def test_differentiation_past_a_call_that_is_held_constant():
    def loss(f, x):
        return (x * f(jax.lax.stop_gradient(x), Y)).sum()

    got, expected = (jax.grad(functools.partial(loss, f))(X) for f in (step, jnp_step))
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-6)


def test_differentiation_past_a_call_on_integers():
    best = torch2jax(lambda t: t.argmax(-1), torch.zeros(2, 3))
    index = torch2jax(lambda i: i * 2 % 3)

    def loss(x):
        chosen = index(best(jax.lax.stop_gradient(x)))
        return jnp.take_along_axis(x, chosen[:, None], 1).sum()

    got = np.asarray(jax.grad(loss)(X))
    assert got.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_batching_past_a_call_on_unbatched_values():
    got = jax.vmap(lambda x: x + step(X, Y)[0])(X)
    np.testing.assert_allclose(np.asarray(got), np.asarray(X + jnp_step(X, Y)[:1]), rtol=1e-6)


# --- meshes --------------------------------------------------------------------------------------------------------


def mesh(kind: str = "Auto"):
    return jax.make_mesh((1,), ("i",), axis_types=(getattr(jax.sharding.AxisType, kind),))


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("specs", [(P("i"), P("i")), (P("i"), P()), (P(), P(None, "i"))], ids=str)
def test_shard_map(specs, check_vma, jitted):
    out_spec = next(spec for spec in specs if spec != P())
    f = jax.shard_map(step, mesh=mesh(), in_specs=specs, out_specs=out_spec, check_vma=check_vma)
    got = (jax.jit(f) if jitted else f)(X, Y)
    np.testing.assert_allclose(np.asarray(got), np.asarray(jnp_step(X, Y)), rtol=1e-6)


@pytest.mark.parametrize("f", [step, jnp_step], ids=["torch", "jnp"])
def test_shard_map_does_not_take_a_varying_result_for_a_replicated_one(f):
    with pytest.raises(ValueError, match="out_specs"):
        jax.shard_map(f, mesh=mesh(), in_specs=(P("i"), P()), out_specs=P())(X, Y)


def test_shard_map_with_a_scan_inside():
    def local(f, x, y):
        return jax.lax.scan(lambda c, a: (f(c, a), None), x[0], y)[0][None]

    got, expected = (
        jax.shard_map(functools.partial(local, f), mesh=mesh(), in_specs=(P("i"), P("i")), out_specs=P("i"))(X, Y)
        for f in (step, jnp_step)
    )
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-6)


def test_a_function_without_operands_inside_shard_map():
    make = torch2jax(lambda: torch.ones(2, 3))
    got = jax.shard_map(lambda x: x + make(), mesh=mesh(), in_specs=P("i"), out_specs=P("i"))(X)
    np.testing.assert_allclose(np.asarray(got), np.asarray(X) + 1)


def test_an_array_sharded_over_auto_axes_needs_nothing():
    x = jax.device_put(X, jax.sharding.NamedSharding(mesh(), P("i")))
    np.testing.assert_allclose(np.asarray(jax.jit(step)(x, Y)), np.asarray(jnp_step(X, Y)), rtol=1e-6)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="jax before 0.7 has no whole Explicit axes")
def test_an_operand_sharded_over_an_explicit_axis_is_refused_with_the_ways_out():
    m = mesh("Explicit")
    with jax.set_mesh(m):
        x = jax.device_put(X, jax.sharding.NamedSharding(m, P("i")))
        y = jax.device_put(Y, jax.sharding.NamedSharding(m, P()))
        for attempt in (step, jax.jit(step)):
            ways = ("jax.shard_map", "jax.reshard", "t2j_dist.torch2jax")
            with raises(ShardingError, what="args[0] of torch_step", got="f32[2@i,3]", remedy=ways):
                attempt(x, y)
        reshard = getattr(jax, "reshard", None) or jax.sharding.reshard  # jax 0.7
        out = jax.jit(step)(reshard(x, P()), y)
    np.testing.assert_allclose(np.asarray(out), np.asarray(jnp_step(X, Y)), rtol=1e-6)


@pytest.mark.skipif(not hasattr(jax.core.ShapedArray, "mat"), reason="jax before 0.10 has no unreduced values")
def test_an_operand_that_is_a_sum_not_computed_yet_is_refused():
    def unreduced(x):
        return step(jax.lax.pcast(x, "i", to="unreduced"), Y)

    with jax.set_mesh(mesh("Explicit")):
        inside = jax.jit(jax.shard_map(unreduced, in_specs=P("i"), out_specs=P(unreduced={"i"})))
        with raises(ShardingError, what="args[0] of torch_step", got="f32[2,3]{U:i}", remedy="jax.lax.psum"):
            inside(jax.reshard(X, P("i")))
        for spec, mark in ((P(unreduced={"i"}), "U"), (P(reduced={"i"}), "R")):
            x = jax.reshard(X, spec)
            for attempt in (step, jax.jit(step)):
                with raises(ShardingError, what="args[1] of torch_step", got=f"{{{mark}:i}}", remedy="jax.reshard"):
                    attempt(Y, x)


# --- platforms that are not here ----------------------------------------------------------------------------------


def test_a_program_for_cuda_calls_the_handler():
    text = jax.jit(step).trace(X, Y).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.custom_call @t2j_torch_call" in text


@pytest.mark.parametrize("platforms", [("cuda",), ("rocm",), ("cpu",), ("cpu", "cuda")], ids="+".join)
def test_export_for_other_platforms(platforms):
    f = torch2jax(torch_step, name="step_elsewhere")
    exported = jax.export.export(jax.jit(f), platforms=platforms, disabled_checks=CUSTOM_CALL)(X, Y)
    assert exported.platforms == platforms
    assert exported.mlir_module().count("@t2j_torch_call") >= 1
    if "cpu" in platforms:
        np.testing.assert_allclose(np.asarray(exported.call(X, Y)), np.asarray(jnp_step(X, Y)), rtol=1e-6)


def test_a_program_for_tpu_goes_over_the_host(monkeypatch):
    # JAX lowers no callback for a backend that is not installed (its own `pure_callback` neither), so the callback is
    # replaced by an operation of XLA, and what it is given is looked at.
    seen = []

    def pure_callback(function, results, *operands):
        seen.append((function, results))
        return [jax.lax.cosh(operands[0])]

    monkeypatch.setattr(t2j_core._run.host.jax, "pure_callback", pure_callback)
    text = jax.jit(torch2jax(torch_step)).trace(X, Y).lower(lowering_platforms=("tpu",)).as_text()
    assert "t2j_torch_call" not in text
    assert "cosh" in text
    ((function, (struct,)),) = seen
    assert (struct.shape, struct.dtype) == ((2, 3), jnp.float32)
    (out,) = function(np.asarray(X), np.asarray(Y))
    np.testing.assert_allclose(out, np.asarray(jnp_step(X, Y)), rtol=1e-6)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "name", ["bool", "int8", "uint32", "float16", "bfloat16", "float32", "complex64", "float8_e5m2"]
)
@pytest.mark.parametrize("shape", [(4, 3), (), (0, 2)], ids=str)
def test_the_way_over_the_host_keeps_every_bit(name, shape):
    dtype = jnp.bool_ if name == "bool" else getattr(jnp, name)
    x = jnp.asarray((np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(dtype))
    f = torch2jax(lambda t: (t.clone(), {"t": t.T if t.ndim else t}))
    jaxpr = jax.make_jaxpr(f)(x)
    fn = jaxpr.eqns[0].params["fn"]
    first, second = jax.jit(functools.partial(t2j_core._run.host.host_call, fn))(x)
    assert first.dtype == second.dtype == x.dtype
    assert np.asarray(first).tobytes() == np.asarray(x).tobytes()
    assert np.asarray(second).tobytes() == np.ascontiguousarray(np.asarray(x).T).tobytes()


@pytest.mark.parametrize("over_host", [False, True], ids=["call", "host"])
def test_a_dtype_that_torchs_dlpack_lacks_crosses_as_bytes(over_host, monkeypatch):
    # As float8 does before torch 2.10.
    monkeypatch.setattr(t2j_core._compat, "crosses_as_bytes", lambda dtype: dtype == torch.float8_e5m2)
    x = jnp.asarray(np.arange(12).reshape(4, 3), jnp.float8_e5m2)
    f = torch2jax(lambda t: (t.clone(), t.T))
    fn = jax.make_jaxpr(f)(x).eqns[0].params["fn"]
    call = functools.partial(t2j_core._run.host.host_call, fn) if over_host else f
    first, second = jax.jit(call)(x)
    assert first.dtype == second.dtype == x.dtype
    assert np.asarray(first).tobytes() == np.asarray(x).tobytes()
    assert np.asarray(second).tobytes() == np.ascontiguousarray(np.asarray(x).T).tobytes()


@pytest.mark.parametrize("outputs", ["auto", "copy", "out"])
def test_large_results_over_the_host(outputs):
    def double(t, out=None):
        return torch.mul(t, 2, out=out)

    x = jnp.arange(float(1 << 18))  # 1 MB, from which on "auto" writes in place
    f = torch2jax(double, outputs=outputs)
    fn = jax.make_jaxpr(f)(x).eqns[0].params["fn"]
    for _ in range(3):  # the first call learns what to write in place
        (y,) = jax.jit(functools.partial(t2j_core._run.host.host_call, fn))(x)
        assert np.asarray(y).tobytes() == np.asarray(2 * x).tobytes()


def test_a_symbolic_shape_is_refused():
    struct = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3"), jnp.float32)
    f = torch2jax(torch.sin, name="symbolic")
    with raises(TypeError, what=("args[0] of symbolic", "concrete shapes"), got="float32[b,3]"):
        jax.export.export(jax.jit(f), disabled_checks=CUSTOM_CALL)(struct)
