"""Transposes of functions that are linear, and the judgement that others are not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg as sparse
import numpy as np
import pytest
import t2j_core
import torch
import torch.nn.functional as F
from common import agree, raises
from t2j_autodiff import DepthError, PerformanceWarning, TransformError, module2jax, torch2jax

A = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 0.5, 5.0]])
SYMMETRIC = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 5.0]])
MASK = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
INDEX = torch.tensor([2, 0, 1, 1])
J, JS = jnp.asarray(A.numpy()), jnp.asarray(SYMMETRIC.numpy())
B = jnp.array([1.0, 2.0, 3.0])
VECTOR = jnp.array([-1.0, -0.6, -0.2, 0.2, 0.6, 1.0])
COMPLEX = jax.lax.complex(VECTOR, VECTOR[::-1])
IMAGE = jax.random.normal(jax.random.key(0), (1, 2, 6, 6))
SQUARE = jax.random.normal(jax.random.key(1), (4, 4))


def transposed(f, *primals):
    return lambda *cotangents: jax.linear_transpose(f, *primals)(*cotangents)


def in_bfloat16(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (A @ x.reshape(3, 2)).float()


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, g):
        return 3 * g


class TripledWrongly(Tripled):
    @staticmethod
    def backward(ctx, g):
        return 2 * g


LINEAR = {
    "matmul": (lambda x: x.reshape(2, 3) @ A, VECTOR),
    "einsum": (lambda x: torch.einsum("ij,jk->ik", A, x.reshape(3, 2)), VECTOR),
    "conv1d": (lambda x: F.conv1d(x, torch.ones(3, 6, 3)), IMAGE[0]),
    "conv2d": (lambda x: F.conv2d(x, torch.arange(54.0).reshape(3, 2, 3, 3)), IMAGE),
    "conv_transpose": (lambda x: F.conv_transpose2d(x, torch.ones(2, 3, 2, 2)), IMAGE),
    "avg_pool": (lambda x: F.avg_pool2d(x, 2), IMAGE),
    "adaptive_avg_pool": (lambda x: F.adaptive_avg_pool2d(x, 4), IMAGE),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), IMAGE),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"), IMAGE),
    "reflect": (lambda x: F.pad(x, (1, 2, 1, 1), mode="reflect"), IMAGE),
    "unfold": (lambda x: F.unfold(x, 3), IMAGE),
    "pixel_shuffle": (lambda x: F.pixel_unshuffle(x, 2), IMAGE),
    "rfft": (torch.fft.rfft, VECTOR),
    "fft": (torch.fft.fft, COMPLEX),
    "real": (lambda x: x.real, COMPLEX),
    "conj": (lambda x: x.conj() * (1 + 2j), COMPLEX),
    "to complex": (lambda x: torch.complex(x, -2 * x), VECTOR),
    "cumsum": (lambda x: x.cumsum(0), VECTOR),
    "diff": (torch.diff, VECTOR),
    "permute": (lambda x: x.permute(1, 0), SQUARE),
    "diagonal": (torch.diagonal, SQUARE),
    "tril": (torch.tril, SQUARE),
    "roll": (lambda x: torch.roll(x, 2), VECTOR),
    "index": (lambda x: x[INDEX], VECTOR),
    "gather": (lambda x: torch.gather(x, 0, INDEX), VECTOR),
    "scatter": (lambda x: torch.zeros(4).index_add(0, torch.tensor([0, 1, 2, 3, 0, 1]), x), VECTOR),
    "embedding": (lambda x: F.embedding(INDEX, x), SQUARE),
    "mask": (lambda x: x * MASK, VECTOR),
    "where": (lambda x: torch.where(MASK > 0, x, 0.0), VECTOR),
    "solve": (lambda x: torch.linalg.solve(A, x.reshape(3, 2)), VECTOR),
    "cholesky_solve": (lambda x: torch.cholesky_solve(x.reshape(3, 2), torch.linalg.cholesky(SYMMETRIC)), VECTOR),
    "solve_triangular": (lambda x: torch.linalg.solve_triangular(A.triu(), x.reshape(3, 2), upper=True), VECTOR),
    "lstsq": (lambda x: torch.linalg.lstsq(torch.cat([A, 2 * A]), x[:, None])[0], VECTOR),
    "sum": (torch.sum, VECTOR),
    "power of one": (lambda x: x**1, VECTOR),
    "zero": (lambda x: 0 * x, VECTOR),
    "dropout in eval mode": (torch.nn.Dropout(0.5).eval(), VECTOR),
    "in place": (lambda x: x.clone().mul_(2), VECTOR),
    "autocast": (in_bfloat16, VECTOR),
    "half": (lambda x: (A.half() @ x.half().reshape(3, 2)).float(), VECTOR),
    "autograd.Function": (Tripled.apply, VECTOR),
    "a gradient inside": (torch.func.grad(lambda x: (x.reshape(2, 3) @ SYMMETRIC * x.reshape(2, 3)).sum()), VECTOR),
}

NOT_LINEAR = {
    "max": (torch.amax, VECTOR),
    "sort": (lambda x: x.sort()[0], VECTOR),
    "topk": (lambda x: x.topk(2)[0], VECTOR),
    "median": (torch.median, VECTOR),
    "clamp": (lambda x: x.clamp(-100, 100), VECTOR),
    "relu": (torch.relu, VECTOR),
    "abs": (torch.abs, VECTOR),
    "abs of complex": (torch.abs, COMPLEX),
    "max_pool": (lambda x: F.max_pool2d(x, 2), IMAGE),
    "square": (torch.square, VECTOR),
    "half of a square": (lambda x: x * x.detach(), VECTOR),
    "detached part": (lambda x: x + 1e-3 * (x * x).detach(), VECTOR),
    "detached square": (lambda x: (x * x).detach(), VECTOR),
    "NumPy": (lambda x: torch.from_numpy(np.maximum(x.detach().numpy(), 0)), VECTOR),
    "NumPy plus one": (lambda x: torch.from_numpy(x.detach().numpy() + 1), VECTOR),
    "detached sort": (lambda x: x.sort()[0].detach(), VECTOR),
    "detached noise": (lambda x: (x * (1 + 1e-4 * torch.randn(6))).detach(), VECTOR),
    "detached step": (lambda x: (x + torch.where(x > 100, 1.0, 0.0)).detach(), VECTOR),
    "step": (lambda x: x + torch.where(x > 100, 1.0, 0.0), VECTOR),
    "step on the other side": (lambda x: x - torch.where(x < -100, 1.0, 0.0), VECTOR),
    "kink": (lambda x: x + torch.where(x > 100, 0.01 * x, 0.0), VECTOR),
    "straight through": (lambda x: x + (x.round() - x).detach(), VECTOR),
    "round": (torch.round, VECTOR),
    "sign": (torch.sign, VECTOR),
    "plus one": (lambda x: x + 1, VECTOR),
    "constant": (lambda x: torch.ones(3), VECTOR),
    "bias": (torch.nn.Linear(6, 3), VECTOR),
    "normalised": (lambda x: x / x.norm(), VECTOR),
    "softmax": (lambda x: x.softmax(0), VECTOR),
    "branch": (lambda x: 2 * x if x.sum() > 0 else 3 * x, VECTOR),
    "dropout": (lambda x: F.dropout(x, 0.5), VECTOR),
    "noise": (lambda x: x * (1 + 1e-4 * torch.randn(6)), VECTOR),
    "determinant": (torch.linalg.det, SQUARE),
    "inverse": (torch.linalg.inv, SQUARE),
    "wrong backward": (TripledWrongly.apply, VECTOR),
}


def adjoint(f, x, ct):
    """The transpose from the values of the function alone, linear over the real numbers."""
    units = np.eye(x.size).reshape(x.size, *x.shape)

    def along(factor):
        values = [np.asarray(f(jnp.asarray(factor * unit, x.dtype))) for unit in units]
        return np.array([np.sum(np.asarray(ct) * value).real for value in values]).reshape(x.shape)

    return along(1) - 1j * along(1j) if jnp.iscomplexobj(x) else along(1)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_function_has_the_transpose_of_its_matrix(name):
    f, x = LINEAR[name]
    g = torch2jax(f)
    y = jax.eval_shape(g, x)
    ct = jnp.linspace(-1.0, 1.0, y.size).reshape(y.shape)
    ct = jax.lax.complex(ct, 2 * ct) if jnp.issubdtype(y.dtype, jnp.complexfloating) else ct
    agree(transposed(g, x)(ct)[0], adjoint(g, x, ct), 0.05 if name in ("autocast", "half") else 1e-3)


@pytest.mark.filterwarnings("ignore:.*draws random numbers")
@pytest.mark.parametrize("name", NOT_LINEAR)
def test_another_function_is_refused_when_it_is_traced(name):
    f, x = NOT_LINEAR[name]
    g = torch2jax(f)
    ct = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), jax.eval_shape(g, x))
    with raises(TransformError, what=("`jax.linear_transpose`", "not linear", "args[0]"), remedy="`jax.vjp`"):
        jax.jit(transposed(g, x))(ct)


def test_solvers_and_their_gradients():
    f, s = torch2jax(lambda v: A @ v), torch2jax(lambda v: SYMMETRIC @ v)
    for solve, matvec, matrix in ((sparse.gmres, f, J), (sparse.bicgstab, f, J), (sparse.cg, s, JS)):
        x = lambda b, solve=solve, matvec=matvec: solve(matvec, b, tol=1e-7)[0]
        agree(x(B), jnp.linalg.solve(matrix, B), 1e-3)
        agree(jax.jit(jax.jacrev(x))(B), jnp.linalg.inv(matrix), 1e-3)
        agree(jax.jacfwd(x)(B), jnp.linalg.inv(matrix), 1e-3)


def test_a_solver_is_differentiated_in_the_parameters_of_the_function():
    f = torch2jax(torch.mv)
    loss = lambda a, b: jnp.sum(sparse.gmres(lambda v: f(a, v), b, tol=1e-7)[0] ** 2)
    want = lambda a, b: jnp.sum(jnp.linalg.solve(a, b) ** 2)
    agree(jax.jit(jax.grad(loss, (0, 1)))(J, B), jax.grad(want, (0, 1))(J, B))
    several = jnp.stack([J, 2 * J])
    agree(jax.vmap(jax.grad(loss), (0, None))(several, B), jax.vmap(jax.grad(want), (0, None))(several, B))


def test_custom_linear_solve():
    f = torch2jax(lambda v: A @ v)
    solve = lambda _, b: jnp.linalg.solve(J, b)
    x = lambda b: jax.lax.custom_linear_solve(f, b, solve, lambda _, b: jnp.linalg.solve(J.T, b))
    agree(jax.jit(jax.jacrev(x))(B), jnp.linalg.inv(J))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_a_custom_jvp_rule_that_solves_in_torch(transform):
    solve = torch2jax(torch.linalg.solve)

    @jax.custom_jvp
    def root(a, b):
        return solve(a, b)

    @root.defjvp
    def _(primals, tangents):
        y = root(*primals)
        return y, solve(primals[0], tangents[1] - tangents[0] @ y)

    got, want = (lambda a, b, s=s: jnp.sum(s(a, b) ** 2) for s in (root, jnp.linalg.solve))
    agree(transform(jax.grad(got, (0, 1)))(J, B), jax.grad(want, (0, 1))(J, B))
    agree(transform(jax.hessian(got, 1))(J, B), jax.hessian(want, 1)(J, B), 1e-3)
    several, bs = jnp.stack([J, 2 * J]), jnp.stack([B, -B])
    agree(transform(jax.vmap(jax.grad(got)))(several, bs), jax.vmap(jax.grad(want))(several, bs))


def test_custom_root():
    f = torch2jax(lambda x, p: 2 * torch.tanh(x) + x - p)
    newton = lambda f, x: jax.lax.fori_loop(0, 30, lambda _, x: x - f(x) / jax.grad(f)(x), x)
    root = lambda p: jax.lax.custom_root(lambda x: f(x, p), jnp.array(0.5), newton, lambda g, y: y / g(jnp.ones(())))
    p = jnp.array(1.0)
    want = 1 / (3 - 2 * jnp.tanh(root(p)) ** 2)
    agree(jax.grad(root)(p), want)
    agree(jax.jit(jax.vmap(jax.grad(root)))(p[None]), want[None])


def test_an_operator_of_lineax():
    lineax = pytest.importorskip("lineax")
    operator = lineax.FunctionLinearOperator(torch2jax(lambda v: A @ v), jax.ShapeDtypeStruct((3,), jnp.float32))
    agree(operator.T.as_matrix(), J.T)
    agree(operator.T.T.mv(B), J @ B)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_transposes_transform(transform):
    f = torch2jax(torch.linalg.solve)
    t = lambda a, c: transposed(lambda v: f(a, v), B)(c)[0]
    want = lambda a, c: jnp.linalg.solve(a.T, c)
    agree(transform(t)(J, B), want(J, B))
    agree(transform(lambda c: transposed(lambda c: t(J, c), B)(c)[0])(B), jnp.linalg.solve(J, B))
    for derivative in (jax.jacrev, jax.jacfwd):
        agree(transform(derivative(t))(J, B), derivative(want)(J, B))
        agree(transform(derivative(t, 1))(J, B), derivative(want, 1)(J, B))
    several = jnp.stack([J, 3 * J])
    agree(transform(jax.vmap(t, (0, None)))(several, B), jax.vmap(want, (0, None))(several, B))
    agree(transform(jax.vmap(jax.jacrev(t), (0, None)))(several, B), jax.vmap(jax.jacrev(want), (0, None))(several, B))


@pytest.mark.parametrize("method", ["auto", "sequential", "expand_dims"])
def test_a_batch_is_transposed(method):
    f = torch2jax(lambda x: x @ A.T, vmap_method=method)
    c = jax.random.normal(jax.random.key(0), (5, 3))
    agree(transposed(jax.vmap(f), c)(c)[0], c @ J)
    agree(jax.jit(jax.vmap(lambda c: transposed(f, B)(c)[0]))(c), c @ J)


def test_complex_transposes_are_not_conjugated():
    c = (A + 1j * A.T).to(torch.complex64)
    matrix, z = jnp.asarray(c.numpy()), jax.lax.complex(B, 2 * B[::-1])
    agree(transposed(torch2jax(lambda v: c @ v), z)(z)[0], matrix.T @ z)
    agree(sparse.gmres(torch2jax(lambda v: c @ v), z)[0], jnp.linalg.solve(matrix, z), 1e-3)
    of_real = torch2jax(lambda v: c @ v.to(c.dtype))
    agree(transposed(of_real, B)(z)[0], (matrix.T @ z).real)


def test_several_operands_and_outputs():
    f = torch2jax(lambda x, i, y: {"a": x[i.long()] + y[:2], "b": 2 * x.sum(), "not linear": x * x})
    chosen = lambda x, y: {k: v for k, v in f(x, jnp.array([2, 0]), y).items() if k != "not linear"}
    x, y = transposed(chosen, B, B)({"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)})
    agree(x, jnp.array([8.0, 6.0, 7.0]))
    agree(y, jnp.array([1.0, 2.0, 0.0]))
    with raises(TransformError, what="args[0] and args[2]"):
        transposed(lambda x, y: f(x, jnp.array([2, 0]), y)["not linear"], B, B)(B)


def test_modules():
    apply, variables = module2jax(torch.nn.Linear(3, 4, bias=False))
    weight, ct = variables["params"]["weight"], jnp.arange(4.0)
    transpose = lambda v: transposed(lambda x: apply(v, x), B)(ct)[0]
    agree(jax.jit(transpose)(variables), ct @ weight)
    agree(jax.grad(lambda v: transpose(v).sum())(variables)["params"]["weight"], jnp.outer(ct, jnp.ones(3)))
    affine, variables = module2jax(torch.nn.Linear(3, 3))
    with raises(TransformError, what=("gmres`", "Linear", "args[1]", "at zero"), remedy="`jax.vjp`"):
        sparse.gmres(lambda x: affine(variables, x), B)


def test_transposing_is_no_derivative():
    f = torch2jax(torch.mv, depth=0)
    transpose = lambda a: transposed(lambda v: f(a, v), B)(B)[0]
    agree(transpose(J), J.T @ B)
    with pytest.raises(DepthError):
        jax.grad(lambda a: transpose(a).sum())(J)


def test_a_value_with_residuals_is_transposed():
    large = torch2jax(lambda x: 2 * torch.eye(300) @ x)
    x = jnp.arange(300.0)
    agree(transposed(lambda x: jax.vjp(large, x)[0], x)(x)[0], 2 * x)


def test_the_key_of_a_random_function_is_an_operand_like_others():
    f = torch2jax(F.dropout, rng=True)
    key, ones = jax.random.key(0), jnp.ones(100)
    agree(transposed(lambda x: f(key, x), ones)(ones)[0], f(key, ones))


# --- the judgement itself -----------------------------------------------------------------------------------------


def test_a_function_is_judged_once_and_draws_from_no_generator_of_torch():
    runs = []
    f = torch2jax(lambda a, v: runs.append(0) or a @ v)
    transpose = lambda a: transposed(lambda v: f(a, v), B)(B)[0]
    f(J, B)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    transpose(J)
    assert torch.equal(torch.get_rng_state(), before)
    runs.clear()
    transpose(J)
    assert len(runs) == 1
    jax.vmap(transpose)(J[None])
    runs.clear()
    jax.vmap(transpose)(J[None])
    assert len(runs) == 1


def test_the_function_sees_torch_as_in_any_call():
    seen = set()

    def f(x):
        seen.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()))
        return 2 * x

    with torch.no_grad():
        transposed(torch2jax(f), B)(B)
    assert seen == {(True, False, torch.float32)}


def picky(a, x):
    """Linear in `x` if `a` is what it must be, which no made-up value is."""
    if a[0, 0] != 4:
        raise ValueError("not this matrix")
    return a @ x


def test_where_made_up_values_do_not_serve_the_first_call_judges():
    runs = []
    f = torch2jax(lambda a, x: runs.append(0) or picky(a, x), output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    transpose = jax.jit(lambda a, c: transposed(lambda v: f(a, v), B)(c)[0])
    agree(transpose(J, B), J.T @ B)
    runs.clear()
    agree(transpose(J, B), J.T @ B)
    assert len(runs) == 1
    g = torch2jax(lambda a, x: picky(a, x) ** 2, output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(TransformError, match="its derivative differs"):
        transposed(lambda v: g(J, v), B)(B)
    with pytest.raises(ValueError, match="not this matrix"):
        transposed(lambda v: f(2 * J, v), B)(B)


def test_real_values_count_more_than_made_up_ones():
    f = torch2jax(lambda flag, x: torch.where(flag, x, x * x))
    agree(transposed(lambda v: f(jnp.array(True), v), B)(B)[0], B)
    g = torch2jax(lambda flag, x: torch.where(flag, x, x * x))
    with pytest.raises(TransformError, match="not linear"):
        transposed(lambda v: g(jnp.array(False), v), B)(B)
    power = torch2jax(lambda n, x: x**n)
    agree(transposed(lambda v: power(jnp.array(1), v), B)(B)[0], B)


def test_integers_are_refused():
    i = jnp.arange(3)
    with pytest.raises(TransformError, match="floating"):
        transposed(torch2jax(lambda i: 2 * i), i)(i)


def test_core_alone_names_what_was_called():
    f = t2j_core.torch2jax(lambda v: A @ v)
    with pytest.raises(TransformError, match=r"jax.linear_transpose` needs\.\n.*t2j_autodiff"):
        transposed(f, B)(B)
    with pytest.raises(TransformError, match="sparse.linalg.gmres"):
        sparse.gmres(f, B)


def test_jet_is_refused():
    from jax.experimental.jet import jet

    f = torch2jax(torch.sin)
    for g in (f, jax.jit(f), lambda x: jax.jvp(f, (x,), (x,))[1], t2j_core.torch2jax(torch.sin)):
        with raises(TransformError, what=("sin", "Taylor")):
            jet(g, (B,), ((B, B),))


# --- linear by values, without a derivative in PyTorch -------------------------------------------------------------

CUT_OFF = {
    "NumPy": lambda v: torch.from_numpy(A.numpy() @ v.detach().numpy()),
    "no_grad": torch.no_grad()(lambda v: A @ v),
    "detached": lambda v: (A @ v).detach(),
    "detached in part": lambda v: v + (A @ v - v).detach(),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", CUT_OFF)
def test_the_values_of_solvers_take_no_transpose(name, recwarn):
    f = torch2jax(CUT_OFF[name])
    for solve in (sparse.gmres, sparse.bicgstab):
        agree(solve(f, B)[0], jnp.linalg.solve(J, B))
        agree(jax.jit(lambda b, solve=solve: solve(f, b)[0])(B), jnp.linalg.solve(J, B))
    assert not [w for w in recwarn if issubclass(w.category, PerformanceWarning)]


@pytest.mark.thinned(2)
@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")
@pytest.mark.parametrize("name", CUT_OFF)
def test_a_transpose_without_a_derivative(name):
    f = torch2jax(CUT_OFF[name])
    t = lambda c: transposed(f, B)(c)[0]
    agree(jax.jit(t)(B), J.T @ B)
    agree(jax.jacrev(t)(B), J.T)
    agree(jax.jacfwd(t)(B), J.T)
    agree(transposed(t, B)(B)[0], J @ B)
    several = jnp.stack([B, -2 * B])
    agree(jax.vmap(t)(several), several @ J)
    agree(transposed(jax.vmap(f), several)(several)[0], several @ J)
    agree(jax.jacrev(lambda b: sparse.gmres(f, b, tol=1e-7)[0])(B), jnp.linalg.inv(J), 1e-3)


@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")
def test_a_transpose_without_a_derivative_in_one_of_several_batched_operands():
    f = torch2jax(lambda a, v: (a @ v).detach())
    several, bs = jnp.stack([J, 2 * J]), jnp.stack([B, -B, 3 * B])
    over_matrices = jax.vmap(f, (0, None))
    agree(transposed(lambda v: over_matrices(several, v), B)(bs[:2])[0], J.T @ bs[0] + 2 * J.T @ bs[1])
    both = lambda v: jax.vmap(over_matrices, (None, 0))(several, v)
    ct = jnp.arange(18.0).reshape(3, 2, 3)
    agree(transposed(both, bs)(ct)[0], jnp.einsum("bmi,mij->bj", ct, several))
    of_matrix = transposed(lambda a: jax.vmap(f, (None, 0))(a, bs), J)(bs)[0]
    agree(of_matrix, bs.T @ bs)


@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")
def test_a_complex_transpose_without_a_derivative():
    c = (A + 1j * A.T).to(torch.complex64)
    matrix, z = jnp.asarray(c.numpy()), jax.lax.complex(B, 2 * B[::-1])
    agree(transposed(torch2jax(lambda v: (c @ v).detach()), z)(z)[0], matrix.T @ z)
    agree(transposed(torch2jax(lambda v: (c @ v.to(c.dtype)).detach()), B)(z)[0], (matrix.T @ z).real)
    agree(transposed(torch2jax(lambda v: v.imag.clone().detach()), z)(B)[0], transposed(jnp.imag, z)(B)[0])


@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")
def test_a_transpose_without_a_derivative_that_is_not_finite():
    for wraps in (lambda f: f, only_for_real_values):
        f = torch2jax(wraps(lambda c, x: c * x.detach()))
        for c in (B.at[0].set(jnp.nan), B, B.at[2].set(jnp.inf)):
            got = np.asarray(transposed(lambda x, f=f, c=c: f(c, x), B)(B)[0])
            is_known = np.isfinite(got)  # NaN times zero is NaN
            np.testing.assert_array_equal(got[is_known], (c * B)[is_known])
            assert is_known.all() == jnp.isfinite(c).all()


def test_a_transpose_without_a_derivative_is_slow_and_says_so():
    with pytest.warns(PerformanceWarning, match="6 runs"):
        transposed(torch2jax(lambda x: (2 * x).detach()), VECTOR)(VECTOR)


def test_a_large_transpose_without_a_derivative_is_refused_when_it_runs():
    f, x = torch2jax(lambda x: (2 * x).detach()), jnp.arange(300.0)
    agree(sparse.gmres(f, x)[0], x / 2, 1e-3)
    run = jax.linear_transpose(f, x)
    with raises(TransformError, what="args[0]", expected="numbers", got="300 numbers", remedy="`autograd.Function`"):
        run(x)


def test_a_backward_of_other_values_is_named():
    with raises(TransformError, what=("gmres`", "backward", "not linear")):
        sparse.gmres(torch2jax(TripledWrongly.apply), B)


# --- values that are not finite -----------------------------------------------------------------------------------

NOT_FINITE = {
    "a NaN": J.at[0, 0].set(jnp.nan),
    "a row": J.at[1].set(jnp.nan),
    "infinity": J.at[2, 1].set(jnp.inf),
    "nothing finite": J * jnp.nan,
    "overflow": J * 5e37,
}
SOLVERS = {
    "custom_linear_solve": lambda mv: jax.grad(
        lambda b: jax.lax.custom_linear_solve(mv, b, lambda m, b: m(b), lambda m, b: m(b)).sum()
    )(B),
    "linear_transpose": lambda mv: jax.linear_transpose(mv, B)(B)[0],
    "gmres": lambda mv: jax.grad(lambda b: sparse.gmres(mv, b, maxiter=2)[0].sum())(B),
    "cg": lambda mv: jax.grad(lambda b: sparse.cg(mv, b, maxiter=2)[0].sum())(B),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_that_has_diverged(name):
    product = torch2jax(lambda a, x: a @ x)
    solved = jax.jit(lambda a: SOLVERS[name](lambda x: product(a, x)))
    of_jnp = jax.jit(lambda a: SOLVERS[name](lambda x: a @ x))
    for matrix in (*NOT_FINITE.values(), J):
        agree(solved(matrix), of_jnp(matrix))


@pytest.mark.parametrize("name", NOT_FINITE)
def test_a_transpose_that_is_not_finite(name):
    product, matrix = torch2jax(lambda a, x: a @ x), NOT_FINITE[name]
    agree(transposed(lambda x: product(matrix, x), B)(B)[0], transposed(lambda x: matrix @ x, B)(B)[0])


def test_a_torch_constant_that_is_not_finite():
    weight = torch.tensor([torch.nan, torch.inf, 2.0])
    agree(jax.linear_transpose(torch2jax(lambda x: weight * x), B)(B)[0], jnp.array([np.nan, np.inf, 6.0]))


def only_for_real_values(f):
    """A function that refuses made-up values of its first operand, so that the first real call judges alone."""

    def run(c, x):
        if float(c[1]) != 2:
            raise ValueError("made up")
        return f(c, x)

    return run


def test_real_values_that_are_not_finite_judge_alone():
    f = torch2jax(only_for_real_values(torch.mul))
    for c in (B.at[0].set(jnp.nan), B, B.at[2].set(jnp.inf)):
        agree(jax.linear_transpose(lambda x, c=c: f(c, x), B)(B)[0], c * B)


@pytest.mark.parametrize("wraps", [lambda f: f, only_for_real_values], ids=["also made-up values", "real values alone"])
@pytest.mark.parametrize(
    "f",
    [
        lambda c, x: c * x**2,
        lambda c, x: torch.cat([c[:1] * x[:1], x[1:] ** 2]),
        lambda c, x: torch.relu(c * x),
        lambda c, x: c * x + 1,
        lambda c, x: x + c,
        lambda c, x: c * x * x.detach(),
        lambda c, x: c * x.detach() ** 2,
    ],
)
def test_the_finite_part_is_judged(f, wraps):
    function, c = torch2jax(wraps(f)), B.at[0].set(jnp.nan)
    with raises(Exception, anywhere=("not linear", "args[1]")):
        jax.linear_transpose(lambda x: function(c, x), B)(B)
