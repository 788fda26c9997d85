"""Other code that torch runs on a GPU: graphs, compiled functions, custom kernels.

These tests need their own process, because after an illegal access no other test can use the GPU.
"""

from __future__ import annotations

import shutil
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import PerformanceWarning, torch2jax

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _on_the_gpu(gpu):
    yield


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_a_cuda_graph_of_torch_inside_a_function():
    weight = torch.randn(64, 64, device="cuda")
    static = torch.zeros(64, 64, device="cuda")
    torch.sin(static @ weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = torch.sin(static @ weight)

    def replayed(x):
        static.copy_(x)
        graph.replay()
        return result.clone()

    f = jax.jit(torch2jax(replayed, output_shapes=jax.ShapeDtypeStruct((64, 64), jnp.float32)))
    for seed in range(3):
        x = jax.random.normal(jax.random.key(seed), (64, 64))
        expected = torch.sin(torch.as_tensor(np.asarray(x), device="cuda") @ weight).cpu()
        np.testing.assert_allclose(f(x), expected, rtol=1e-4, atol=1e-4)


def test_a_cuda_graph_is_captured_inside_a_function():
    static, graph, results = torch.zeros(64, device="cuda"), torch.cuda.CUDAGraph(), []

    def f(x):
        static.copy_(x)
        if not results:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results.append(torch.sin(static) * 2)
        graph.replay()
        return results[0].clone()

    call = jax.jit(torch2jax(f, output_shapes=jax.ShapeDtypeStruct((64,), jnp.float32)))
    for seed in range(3):
        np.testing.assert_allclose(
            call(normal(64, seed=seed)), 2 * jnp.sin(normal(64, seed=seed)), rtol=1e-5, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_functions(mode):
    f = jax.jit(torch2jax(torch.compile(lambda x: torch.sin(x) * 2 + x, mode=mode)))
    for seed in range(4):  # the calls warm up, record and replay its graphs
        x = normal(4096, seed=seed)
        np.testing.assert_allclose(f(x), jnp.sin(x) * 2 + x, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_cuda_graphs_of_compiled_functions_on_other_threads():
    x, results = normal(4096), []

    def work():
        f = jax.jit(torch2jax(torch.compile(lambda x: torch.sin(x) * 2 + x, mode="reduce-overhead")))
        try:
            for _ in range(4):
                results.append(np.allclose(f(x), jnp.sin(x) * 2 + x, rtol=1e-4, atol=1e-5))
        except Exception as error:
            results.append(str(error))

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    # Before torch 2.13 they work only on the thread that used them first, which may be the thread of another test.
    assert all(r is True or ("AssertionError" in r and "max-autotune-no-cudagraphs" in r) for r in results), results


@pytest.mark.filterwarnings("ignore")
def test_gradients_of_compiled_functions():
    f = jax.jit(jax.grad(torch2jax(torch.compile(lambda x: (torch.sin(x) * 2 + x).sum()))))
    np.testing.assert_allclose(f(normal(8192)), 2 * jnp.cos(normal(8192)) + 1, rtol=1e-4, atol=1e-5)


def test_a_traced_graph_with_constants_and_weights_of_the_gpu():
    weight = torch.randn(64, 64, device="cuda")
    f = torch2jax(
        lambda x: torch.tanh(x @ weight * torch.arange(64.0, device=x.device)).sum(), residuals="graph", outputs="copy"
    )
    g = torch2jax(lambda x: torch.tanh(x @ weight * torch.arange(64.0, device=x.device)).sum(), residuals="recompute")
    x = normal(64, 64) / 64
    np.testing.assert_allclose(jax.jit(jax.grad(f))(x), jax.grad(g)(x), rtol=1e-4, atol=1e-5)
    assert "from a traced graph" in f.explain()


@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_attention_kernels(backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attention(q, k, v):
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def reference(*qkv):
        heads_last = (x.astype(jnp.float32).swapaxes(-2, -3) for x in qkv)
        return jax.nn.dot_product_attention(*heads_last, is_causal=True).swapaxes(-2, -3)

    def loss(f):
        return lambda *qkv: (f(*qkv).astype(jnp.float32) ** 2).mean()

    f = torch2jax(attention)
    qkv = [normal(3, 2, 4, 128, 64, seed=i).astype(jnp.bfloat16) for i in range(3)]
    one = [x[0] for x in qkv]
    near = lambda a, b: np.testing.assert_allclose(
        np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0.1, atol=0.02 * float(jnp.abs(b).max())
    )
    near(jax.jit(f)(*one), reference(*one))
    near(jax.jit(jax.vmap(f))(*qkv), jax.vmap(reference)(*qkv))
    three = (0, 1, 2)
    jax.tree.map(near, jax.jit(jax.grad(loss(f), three))(*one), jax.grad(loss(reference), three)(*one))
    jax.tree.map(
        near, jax.jit(jax.vmap(jax.grad(loss(f), three)))(*qkv), jax.vmap(jax.grad(loss(reference), three))(*qkv)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_in_a_traced_graph(dtype):
    def loss(q, k, v):
        return (torch.nn.functional.scaled_dot_product_attention(q, k, v).float() ** 2).mean()

    qkv = [normal(2, 4, 128, 64, seed=i).astype(dtype) for i in range(3)]
    f = torch2jax(loss, residuals="graph")
    gradients = jax.jit(jax.grad(f, (0, 1, 2)))(*qkv)
    assert "from a traced graph" in f.explain()
    expected = jax.grad(torch2jax(loss, residuals="recompute"), (0, 1, 2))(*qkv)
    for mine, other in zip(gradients, expected, strict=True):
        mine, other = np.asarray(mine, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(mine, other, rtol=0.05, atol=0.01 * np.abs(other).max())


@pytest.mark.filterwarnings("ignore:.*draws random numbers")
def test_attention_with_dropout_keeps_its_autograd_graph():
    def loss(q):
        return (torch.nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5) ** 2).mean()

    with pytest.warns(PerformanceWarning, match="attention with dropout"):
        gradient = jax.grad(torch2jax(loss, residuals="graph"))(normal(2, 4, 128, 64))
    assert float(jnp.abs(gradient).max()) > 0


@pytest.mark.filterwarnings("ignore")
def test_compiled_functions_are_batched_and_differentiated():
    f = torch2jax(torch.compile(lambda x: (torch.sin(x) * 2 + x).sum()))
    x = normal(3, 4096)
    expected = jax.vmap(lambda x: jnp.sum(jnp.sin(x) * 2 + x))
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(x), expected(x), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(f)))(x), 2 * jnp.cos(x) + 1, rtol=1e-4, atol=1e-5)


def test_an_operation_of_ones_own():
    @torch.library.custom_op("t2j_test::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        assert x.is_cuda
        return x * 2

    doubled.register_fake(torch.empty_like)
    doubled.register_autograd(lambda ctx, g: g * 2)
    x = normal(5000)
    np.testing.assert_allclose(jax.jit(torch2jax(doubled))(x), x * 2)
    np.testing.assert_allclose(jax.grad(lambda x: torch2jax(doubled)(x).sum())(x), jnp.full(5000, 2.0))


@pytest.mark.parametrize("declared", [False, True])
def test_a_kernel_of_jiterator(declared):
    kernel = torch.cuda.jiterator._create_jit_fn("template <typename T> T twice(T x, T y) { return 2 * x + y; }")
    x = normal(5000)
    f = torch2jax(lambda x, y: kernel(x.sin(), y), **({"output_shapes": x} if declared else {}))
    for run in (jax.jit(f), f):
        np.testing.assert_allclose(run(x, x), 2 * jnp.sin(x) + x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "inferred"])
def test_a_triton_kernel(tmp_path, monkeypatch, declared):
    pytest.importorskip("triton")
    (tmp_path / "doubling.py").write_text(
        textwrap.dedent("""
        import torch, triton, triton.language as tl

        @triton.jit
        def kernel(source, target, n, BLOCK: tl.constexpr):
            at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.store(target + at, tl.load(source + at, mask=at < n) * 2, mask=at < n)

        def double(x):
            out = torch.empty_like(x)
            kernel[(triton.cdiv(x.numel(), 256),)](x, out, x.numel(), BLOCK=256)
            return out

        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return double(x)

            @staticmethod
            def backward(ctx, g):
                return double(g.contiguous())
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    import doubling

    shape = jax.ShapeDtypeStruct((1000,), jnp.float32) if declared else None
    f = torch2jax(doubling.Double.apply, output_shapes=shape)
    x = normal(1000)
    np.testing.assert_allclose(jax.jit(f)(x), x * 2)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: f(x).sum()))(x), jnp.full(1000, 2.0))
    f = torch2jax(doubling.Double.apply, output_shapes=shape, vmap_method="sequential")  # the kernel takes one example
    xs = normal(3, 1000)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(xs), xs * 2)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(lambda x: f(x).sum())))(xs), jnp.full((3, 1000), 2.0))


def test_a_kernel_of_ones_own(tmp_path):
    if not shutil.which("nvcc") or not shutil.which("ninja"):
        pytest.skip("needs nvcc and ninja")
    from torch.utils.cpp_extension import load_inline

    source = """
    #include <c10/cuda/CUDAStream.h>
    __global__ void add_one(const float* in, float* out, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < n) out[i] = in[i] + 1;
    }
    torch::Tensor plus_one(torch::Tensor x) {
      auto out = torch::empty_like(x);
      int n = x.numel();
      auto stream = c10::cuda::getCurrentCUDAStream();
      add_one<<<(n + 255) / 256, 256, 0, stream>>>(x.data_ptr<float>(), out.data_ptr<float>(), n);
      return out;
    }
    """
    module = load_inline(
        "t2j_plus_one",
        "torch::Tensor plus_one(torch::Tensor x);",
        source,
        functions=["plus_one"],
        build_directory=str(tmp_path),
    )

    class PlusOne(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return module.plus_one(x)

        @staticmethod
        def backward(ctx, g):
            return g

    shape = jax.ShapeDtypeStruct((1000,), jnp.float32)
    f = torch2jax(PlusOne.apply, output_shapes=shape, vmap_method="sequential")
    x = normal(1000)
    for _ in range(3):
        np.testing.assert_allclose(jax.jit(f)(x), x + 1)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: (f(x) ** 2).sum()))(x), 2 * (x + 1), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(normal(3, 1000)), normal(3, 1000) + 1)


def test_graphs_of_xla_around_a_call():
    # A call is not part of an XLA CUDA graph; the kernels around it may be.
    f = torch2jax(lambda t: torch.sin(t))

    @jax.jit
    def program(x):
        for _ in range(10):
            x = jnp.cos(x) @ jnp.eye(64) + 1
        x = f(x)
        for _ in range(10):
            x = jnp.cos(x) @ jnp.eye(64) + 1
        return x

    x = jax.random.normal(jax.random.key(0), (64, 64))
    with jax.disable_jit():
        expected = program(x)
    for _ in range(5):
        np.testing.assert_allclose(program(x), expected, rtol=1e-3, atol=1e-3)
