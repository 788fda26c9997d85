"""JAX's means of finding NaN, with torch functions. The judge is the same function in jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental import checkify
from t2j_autodiff import torch2jax

ZERO, NEGATIVE, ONE = jnp.zeros(3), -jnp.ones(3), jnp.ones(3)
TORCH = {"log": torch2jax(torch.log), "root": torch2jax(lambda x: torch.sqrt(x) * 0)}
JNP = {"log": jnp.log, "root": lambda x: jnp.sqrt(x) * 0}


def repeated(f, x):
    return jax.lax.scan(lambda c, _: (f(c), None), x, None, 3)[0]


def total(f):
    return lambda x: f(x).sum()


PROGRAMS = {
    "value": lambda f: f["log"](NEGATIVE),
    "grad": lambda f: jax.grad(total(f["root"]))(ZERO),
    "jvp": lambda f: jax.jvp(f["root"], (ZERO,), (ONE,)),
    "vjp": lambda f: jax.vjp(f["root"], ZERO)[1](ONE),
    "value in grad": lambda f: jax.value_and_grad(total(f["log"]))(NEGATIVE),
    "hessian": lambda f: jax.hessian(total(f["root"]))(ZERO),
    "vmap": lambda f: jax.vmap(f["log"])(NEGATIVE),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f["root"]))(ZERO),
    "jit of grad": lambda f: jax.jit(jax.grad(total(f["root"])))(ZERO),
    "scan": lambda f: repeated(f["log"], NEGATIVE),
    "no NaN": lambda f: jax.value_and_grad(total(f["log"]))(ONE),
    "NaN that does not leave a program": lambda f: jax.jit(lambda x: jnp.nan_to_num(f["log"](x)))(NEGATIVE),
}


def is_seen(program, functions):
    try:
        jax.block_until_ready(program(functions))
    except FloatingPointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", PROGRAMS)
def test_debug_nans_sees_what_it_sees_of_jnp(name):
    with jax.debug_nans(True):
        assert bool(is_seen(PROGRAMS[name], TORCH)) == bool(is_seen(PROGRAMS[name], JNP))


def test_debug_nans_names_the_function():
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"invalid value \(nan\).* vjp\(<lambda>\)"):
        jax.grad(total(TORCH["root"]))(ZERO)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_debug_nans_of_other_dtypes(dtype):
    x = jnp.full(3, jnp.nan, dtype)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jax.vmap(torch2jax(lambda x: x * 2))(x)


@pytest.mark.parametrize("flag", ["jax_debug_nans", "jax_debug_infs"])
def test_each_flag_sees_its_own(flag):
    f = torch2jax(torch.reciprocal)
    jax.config.update(flag, True)
    try:
        if flag == "jax_debug_nans":
            np.testing.assert_array_equal(np.asarray(jax.vmap(f)(ZERO)), np.inf)
        else:
            with pytest.raises(FloatingPointError, match="inf"):
                jax.vmap(f)(ZERO)
    finally:
        jax.config.update(flag, False)


def test_what_is_kept_for_a_backward_is_not_looked_at():
    large = 1e30 * torch.eye(3)

    def masked(x):  # the backward of `atan` takes its operand, which is infinite
        return (x[None] @ large @ large)[0].atan() + x

    f = torch2jax(masked, residuals="graph")
    want = jax.grad(lambda x: f(x).sum())(ONE)
    with jax.debug_nans(True), jax.debug_infs(True):
        np.testing.assert_array_equal(np.asarray(jax.grad(lambda x: f(x).sum())(ONE)), np.asarray(want))


# --- checkify -----------------------------------------------------------------------------------------------------


def checked(f, x, errors=checkify.nan_checks):
    return checkify.checkify(f, errors=errors)(x)


CHECKED = {
    "plain": lambda f: checked(f["log"], NEGATIVE),
    "no NaN": lambda f: checked(f["log"], ONE),
    "all checks": lambda f: checked(f["log"], NEGATIVE, checkify.all_checks),
    "float checks": lambda f: checked(f["log"], NEGATIVE, checkify.float_checks),
    "other checks": lambda f: checked(f["log"], NEGATIVE, checkify.index_checks | checkify.user_checks),
    "an index": lambda f: checked(lambda x: f["log"](x)[jnp.int32(5) + 0], ONE, checkify.index_checks),
    "a check of the user's": lambda f: checked(lambda x: checkify.check(f["log"](x)[0] > 1, "small"), ONE),
    "jit": lambda f: jax.jit(lambda x: checked(f["log"], x))(NEGATIVE),
    "of jit": lambda f: checked(jax.jit(f["log"]), NEGATIVE),
    "grad": lambda f: checked(jax.grad(total(f["root"])), ZERO),
    "jvp": lambda f: checked(lambda x: jax.jvp(f["root"], (x,), (ONE,)), ZERO),
    "hessian": lambda f: checked(jax.hessian(total(f["root"])), ZERO),
    "vmap": lambda f: checked(jax.vmap(f["log"]), NEGATIVE),
    "scan": lambda f: checked(lambda x: repeated(f["log"], x), ONE),
    "branch": lambda f: checked(lambda x: jax.lax.cond(x[0] > 0, lambda x: x, f["log"], x), NEGATIVE),
    "branch not taken": lambda f: checked(lambda x: jax.lax.cond(x[0] < 0, lambda x: x, f["log"], x), NEGATIVE),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", CHECKED)
def test_checkify_sees_what_it_sees_of_jnp(name):
    (error, got), (of_jnp, want) = CHECKED[name](TORCH), CHECKED[name](JNP)
    assert (error.get() is None) == (of_jnp.get() is None)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)


def test_checkify_sees_the_results_of_a_forward_whose_residuals_are_not_used():
    f = torch2jax(lambda x: (x.log() @ x).sum())
    error, _ = checked(lambda x: jax.vjp(jax.checkpoint(f), x)[0], -jnp.ones((500, 500)))
    assert "nan generated by primitive" in str(error.get())


def test_checkify_names_the_function():
    error, _ = checked(TORCH["log"], NEGATIVE)
    with pytest.raises(Exception, match="nan generated by primitive: torch_call of log"):
        error.throw()


def test_the_derivative_of_a_checked_function():
    gradient = jax.grad(lambda x: checked(TORCH["log"], x)[1].sum())(2 * ONE)
    np.testing.assert_allclose(np.asarray(gradient), 0.5)
