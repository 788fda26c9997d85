"""Derivatives inside `jax.shard_map` on 8 devices, compared with the same function in jnp."""

from __future__ import annotations

PROGRAM = """
    import itertools
    from jax.sharding import PartitionSpec as P
    from t2j_autodiff import torch2jax

    x = jax.random.normal(jax.random.key(0), (16, 40))
    w = jax.random.normal(jax.random.key(1), (40, 130))  # more elements than a function that is run again may have
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(f, check_vma):
        def step(x, w):
            return jax.lax.psum(f(x, w).sum(), "d")
        return jax.shard_map(step, mesh=mesh, in_specs=(P("d"), P()), out_specs=P(), check_vma=check_vma)

    def transforms(l):
        yield "grad", jax.grad(l, (0, 1))(x, w)
        yield "jit grad", jax.jit(jax.grad(l, (0, 1)))(x, w)
        yield "jvp", jax.jit(lambda x, w: jax.jvp(l, (x, w), (x, w)))(x, w)
        yield "hvp", jax.jit(lambda x, w: jax.jvp(jax.grad(l, (0, 1)), (x, w), (x, w))[1])(x, w)

    def in_jnp(x, w):
        return (jnp.tanh(x @ w) ** 2).sum(-1)

    def in_torch(x, w):
        return (torch.tanh(x @ w) ** 2).sum(-1)

    expected = dict(transforms(loss(in_jnp, True)))
    for residuals, check_vma in itertools.product(("auto", "graph"), (True, False)):
        f = torch2jax(in_torch, residuals=residuals)
        for name, ours in transforms(loss(f, check_vma)):
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected[name])):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3, err_msg=f"{name} {residuals} {check_vma=}")
    print("right")
"""

FORWARD_MODE = """
    from jax.sharding import PartitionSpec as P
    from t2j_autodiff import torch2jax

    f = torch2jax(lambda x: torch.sin(x).exp() * x)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    @lambda step: jax.shard_map(step, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    def push(x):
        return jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    x = jnp.linspace(-1, 1, 8 * 500)
    expected = jax.jvp(lambda x: jnp.exp(jnp.sin(x)) * x, (x,), (jnp.ones_like(x),))[1]
    for _ in range(60):
        np.testing.assert_allclose(push(x), expected, rtol=1e-5, atol=1e-5)
    print("right")
"""


def test_gradients_under_shard_map(run):
    done = run(PROGRAM, devices=8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")


def test_forward_mode_on_eight_devices_at_once(run):
    done = run(FORWARD_MODE, devices=8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
