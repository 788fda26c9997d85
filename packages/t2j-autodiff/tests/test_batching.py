"""Derivatives of batches and batches of derivatives, against one example after another in plain torch."""

from __future__ import annotations

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from common import agree, warns
from t2j_autodiff import PerformanceWarning, _compat, module2jax, torch2jax
from t2j_autodiff._workarounds import wrong_batching_rules

pytestmark = pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")

X = jnp.linspace(0.1, 1.0, 12).reshape(4, 3)
W = jnp.linspace(0.1, 1.0, 15).reshape(5, 3)
INDICES = jnp.array([[0, 1, 2], [3, 0, 0], [1, 1, 1]])


def many(h):
    """More operations than are run again because they are quick."""
    for _ in range(14):
        h = torch.sin(h)
    return h


def asks_requires_grad(x):
    h = torch.sin(x)
    if h.requires_grad:
        h.register_hook(lambda g: g.clamp(-0.1, 0.1))
    return many(h).sum()


def registers_a_hook(x):
    h = torch.sin(x)
    if torch.is_grad_enabled() and h.grad_fn is not None:
        h.register_hook(lambda g: 2 * g)
    return many(h).sum()


def differentiates_inside(x):
    y = x if x.requires_grad else x.detach().requires_grad_()
    return (torch.autograd.grad((y**4).sum(), y, create_graph=True)[0] * many(x)).sum()


def checkpoints(x):
    return torch.utils.checkpoint.checkpoint(many, x, use_reentrant=False).sum()


LOOKING = [asks_requires_grad, registers_a_hook, differentiates_inside, checkpoints]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("residuals", ["auto", "recompute"])
@pytest.mark.parametrize("fn", LOOKING)
def test_a_batch_sees_what_one_example_sees(fn, residuals):
    leaves = [torch.tensor(np.array(row), requires_grad=True) for row in X]
    expected = np.stack([torch.autograd.grad(fn(leaf), leaf)[0].numpy() for leaf in leaves])
    wrapped = lambda: torch2jax(fn, residuals=residuals)
    agree(jax.vmap(jax.grad(wrapped()))(X), expected)
    agree(jax.jit(jax.vmap(jax.vmap(jax.grad(wrapped()))))(X.reshape(2, 2, 3)).reshape(4, 3), expected)
    f, g = wrapped(), wrapped()
    agree(jax.grad(lambda x: jax.vmap(f)(x).sum())(X), expected)
    agree(jax.jit(jax.grad(lambda x: jax.vmap(jax.vmap(g))(x).sum()))(X.reshape(2, 2, 3)).reshape(4, 3), expected)


EMBEDDINGS = [{"padding_idx": 0}, {"padding_idx": -5}, {"scale_grad_by_freq": True}, {"sparse": True}, {}]


@pytest.mark.parametrize("options", EMBEDDINGS, ids=str)
def test_embeddings(options):
    fn = lambda w, i: many(F.embedding(i, w, **options)).sum()
    rows = []
    for i in INDICES:
        w = torch.tensor(np.array(W), requires_grad=True)
        rows.append(torch.autograd.grad(fn(w, torch.tensor(np.array(i))), w)[0].to_dense().numpy())
    expected = np.stack(rows)
    agree(jax.vmap(jax.grad(torch2jax(fn)), (None, 0))(W, INDICES), expected)
    agree(jax.vmap(jax.grad(torch2jax(fn)))(jnp.stack([W] * 3), INDICES), expected)
    f = torch2jax(fn)
    agree(jax.grad(lambda w: jax.vmap(f, (None, 0))(w, INDICES).sum())(W), expected.sum(0))
    agree(jax.grad(torch2jax(fn))(W, INDICES[0]), expected[0])


def test_a_batch_of_gradients_keeps_its_graph_unless_the_function_asks():
    runs = []

    def fn(x):
        runs.append(x.device.type)
        return many(x).sum()

    f = torch2jax(fn)
    jax.vmap(jax.value_and_grad(f))(X)
    assert runs.count("cpu") == 1
    assert "in batches" not in f.explain()
    g = torch2jax(asks_requires_grad)
    jax.vmap(jax.grad(g))(X)
    assert "reverse mode: kept autograd graph" in g.explain()
    assert "reverse mode in batches: recompute (`torch.func.vmap` hides `requires_grad`" in g.explain()
    assert "one after another" not in g.explain()


def test_grad_of_vmap_is_one_run_for_a_function_that_does_not_ask():
    f = torch2jax(lambda x: many(x).sum())
    jax.grad(lambda x: jax.vmap(f)(x).sum())(X)
    assert f"vmap of {len(X)}, differentiated: torch.func.vmap" in f.explain()
    assert "one after another" not in f.explain()
    g = torch2jax(asks_requires_grad)
    with warns(PerformanceWarning, what=("`requires_grad`", "uses requires_grad")):
        jax.grad(lambda x: jax.vmap(g)(x).sum())(X)
    assert f"vmap of {len(X)}, differentiated: examples one after another, because" in g.explain()


def test_second_derivatives_of_a_batch_with_hooks():
    f = torch2jax(registers_a_hook)
    second = lambda r: jax.grad(lambda r: jax.grad(f)(r).sum())(r)
    expected = jnp.stack([second(row) for row in X])
    agree(jax.grad(lambda x: jax.vmap(jax.grad(f))(x).sum())(X), expected)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
def test_a_jacobian_of_distances(p, residuals):
    # `torch.func.vmap` of `_cdist_backward` with the gradient alone batched is mostly zero.
    fn = lambda x, y: torch.cdist(x, y, p)
    x, y = X, X[:2] + 1
    expected = torch.autograd.functional.jacobian(lambda x: fn(x, torch.tensor(np.array(y))), torch.tensor(np.array(x)))
    agree(jax.jacrev(torch2jax(fn, residuals=residuals))(x, y), expected)
    f = torch2jax(lambda x, y: many(fn(x, y)), residuals=residuals)
    agree(jax.jit(jax.jacrev(f))(x, y), jax.jacfwd(f)(x, y))


def test_a_batch_of_values_for_index_fill():
    f = torch2jax(lambda x, v: torch.index_fill(x, 0, torch.tensor([0, 1]), v))
    agree(jax.vmap(f, (None, 0))(X, jnp.arange(3.0)), jnp.stack([f(X, v) for v in jnp.arange(3.0)]))


def test_a_batch_under_autocast_has_the_dtype_of_an_example():
    linear = torch.nn.Linear(3, 2)

    def fn(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear(x)

    for method in ("auto", "vmap", "sequential"):
        y = jax.vmap(torch2jax(fn, vmap_method=method))(X)
        assert y.dtype == jnp.bfloat16
        agree(y.astype(jnp.float32), linear(torch.tensor(np.array(X))).detach(), 0.05)


def test_a_rule_that_gives_another_shape_runs_in_turn():
    # The tolerance of `pinv` broadcasts against the batch of matrices.
    f = torch2jax(lambda a, tolerance: torch.linalg.pinv(a, atol=tolerance))
    a, tolerances = jnp.stack([X[:3], X[1:]]), jnp.array([0.0, 0.5, 1.0])
    got = jax.vmap(f, (None, 0))(a, tolerances)
    agree(got, jnp.stack([f(a, t) for t in tolerances]), 1e-3)


def test_parameters_of_an_encoder_layer_in_eval_mode():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    apply, variables = module2jax(layer, train=False)
    x = jax.random.normal(jax.random.key(0), (2, 1, 4, 8))
    of = lambda params, x: (apply({**variables, "params": params}, x) ** 2).sum()
    mine = jax.grad(lambda p: jax.vmap(of, (None, 0))(p, x).sum())(variables["params"])
    expected = jax.grad(lambda p: sum(of(p, row) for row in x))(variables["params"])
    jax.tree.map(lambda a, b: agree(a, b, 1e-3), mine, expected)
    each = jax.vmap(jax.grad(of), (None, 0))(variables["params"], x)
    jax.tree.map(lambda a, b: agree(a.sum(0), b, 1e-3), each, expected)


@pytest.mark.parametrize("kernel", ["efficient", "cudnn"])
@pytest.mark.parametrize("has_sums", [True, False])
def test_attention_without_its_sums_is_noted(kernel, has_sums):
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention").default
    x = torch.empty(2, 4, 8, 16, device="meta")
    with wrong_batching_rules.WrongBatchingRules() as wrong:
        operation(x, x, x, None, has_sums)
        operation(x, x, x, None, compute_log_sumexp=has_sums)
    assert (wrong.attention is None) == has_sums


def test_a_batch_of_attention_without_its_sums_is_not_recorded(monkeypatch):
    # The attention of the CPU always has them: this one stands for it.
    attention_of_the_cpu = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    monkeypatch.setattr(wrong_batching_rules, "_ATTENTION_WITH_SUMS", {attention_of_the_cpu})
    monkeypatch.setattr(_compat, "argument_of", lambda func, name, args, kwargs: False)
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    attention.requires_grad_(False)
    f = torch2jax(lambda x: attention(x, x, x, need_weights=False)[0].square().sum())
    x = jnp.asarray(torch.randn(3, 2, 40, 16).numpy())
    expected = jax.vmap(jax.grad(torch2jax(lambda x: f.__wrapped__(x), residuals="recompute")))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(x), expected, rtol=1e-4, atol=1e-5)
    assert "hides `requires_grad`" in f.explain()


LABELS = torch.tensor([[0, 2, -1, 1]])


def margin(x):
    """Of an operation that `torch.func.vmap` loops over, with a warning."""
    return torch.nn.functional.multilabel_margin_loss(x[None], LABELS)


def test_batches_say_nothing_of_torchs_batching_rules():
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    f = torch2jax(margin)
    leaf = torch.from_numpy(x).requires_grad_()
    expected = torch.stack([margin(row) for row in leaf])
    np.testing.assert_allclose(jax.vmap(f)(x), expected.detach(), rtol=1e-5)
    (gradients,) = torch.autograd.grad(expected.sum(), leaf)
    for grad in (jax.vmap(jax.grad(f)), jax.grad(lambda x: jax.vmap(f)(x).sum())):
        np.testing.assert_allclose(grad(jnp.asarray(x)), gradients, rtol=1e-5)
    assert "one after another" not in f.explain()


def test_a_batch_of_the_users_own_says_what_it_says_in_torch():
    x = jnp.ones((3, 4))
    jax.vmap(torch2jax(margin))(x)
    with pytest.warns(UserWarning, match="There is a performance drop"):
        torch2jax(torch.func.vmap(margin), output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))(x)


def test_a_signal_handler_may_run_a_batch_while_the_warnings_are_switched(monkeypatch):
    f, x = jax.vmap(torch2jax(margin)), jnp.ones((3, 4))
    expected, handled, is_armed = f(x), [], []
    switch = torch._C._functorch._set_vmap_fallback_warning_enabled

    def interrupted(is_on):
        if is_armed:
            is_armed.pop()
            signal.raise_signal(signal.SIGUSR1)
        switch(is_on)

    monkeypatch.setattr(torch._C._functorch, "_set_vmap_fallback_warning_enabled", interrupted)
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(f(x)))
    try:
        is_armed.append(None)
        np.testing.assert_array_equal(f(x), expected)
    finally:
        signal.signal(signal.SIGUSR1, before)
    np.testing.assert_array_equal(handled[0], expected)
    test_a_batch_of_the_users_own_says_what_it_says_in_torch()
