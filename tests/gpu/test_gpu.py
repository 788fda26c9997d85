"""What only a GPU has: streams, an allocator for each framework, graphs, kernels of one's own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax
from t2j_core import OutputError

pytestmark = pytest.mark.gpu

N = 1 << 20
KINDS = ["forward", "gradient", "large result", "in place", "module"]


@pytest.fixture(autouse=True)
def _on_the_gpu(gpu):
    yield


def ones(n=N):
    return jnp.ones(n, jnp.float32)


# --- nothing waits ---------------------------------------------------------------------------------------------------


def test_a_call_returns_before_the_gpu_has_finished(gpu):
    def slow(x):
        gpu.delay(400_000_000)  # about 0.2 s
        return x + 1

    f = jax.jit(torch2jax(slow, output_shapes=jax.ShapeDtypeStruct((4,), jnp.float32)))
    x = jnp.ones(4)
    f(x).block_until_ready()
    out = f(x)
    assert not out.is_ready()
    assert out.tolist() == [2.0] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_no_call_synchronises(kind):
    f, args = _program(kind)
    assert _waits(f, args) == _waits(jax.jit(lambda x: jnp.sin(x) + 1), (ones(),))


def _program(kind):
    a = ones()
    if kind == "forward":
        return jax.jit(torch2jax(lambda x: torch.sin(x[:128]) + 1)), (a,)
    if kind == "gradient":
        return jax.jit(jax.value_and_grad(torch2jax(lambda x: (torch.sin(x) * x).sum()))), (a,)
    if kind == "large result":
        return jax.jit(torch2jax(torch.sin, outputs="auto")), (a,)
    if kind == "in place":
        return jax.jit(torch2jax(lambda x: x.mul_(1.5), mutable_argnums=0)), (a,)
    layer = torch.nn.Linear(64, 64, device="cuda")
    return jax.jit(torch2jax(lambda x: layer(x).detach())), (jnp.ones((8, 64)),)


def _waits(f, args):
    """The calls of CUDA that wait, while a compiled program is dispatched and run and nobody asks for its result."""
    for _ in range(2):
        jax.block_until_ready(f(*args))
    with torch.profiler.profile() as profile:
        held = [f(*args) for _ in range(5)]
        while not all(leaf.is_ready() for leaf in jax.tree.leaves(held)):  # looks without telling CUDA to wait
            pass
    waiting = re.compile(r"cu(da)?(Stream|Device|Event|Ctx)Synchronize")
    return sorted(e.key for e in profile.key_averages() if waiting.match(e.key) for _ in range(e.count))


def test_pinned_host_memory_is_read_in_order():
    source = torch.arange(float(N)).pin_memory()
    f = jax.jit(torch2jax(lambda x: x + source.to("cuda", non_blocking=True)))
    for _ in range(3):
        np.testing.assert_array_equal(f(jnp.zeros(N)), np.arange(N, dtype=np.float32))


# --- devices ----------------------------------------------------------------------------------------------------------


def test_arrays_on_the_cpu_while_a_gpu_is_the_default():
    cpu = jax.devices("cpu")[0]
    x = jax.device_put(np.ones(8, np.float32), cpu)
    seen = []
    f = torch2jax(lambda t: (seen.append(t.device.type), torch.sin(t))[1])
    for call in (f, jax.jit(f)):
        out = call(x)
        assert out.devices() == {cpu}
        assert seen[-1] == "cpu"
        np.testing.assert_allclose(out, np.sin(np.ones(8)), rtol=1e-6)


def test_one_function_on_both_devices(gpu):
    f = jax.jit(torch2jax(lambda t: torch.sin(t) + 1))
    for device in (gpu.jax, jax.devices("cpu")[0], gpu.jax):
        x = jax.device_put(np.ones(8, np.float32), device)
        assert f(x).devices() == {device}


def test_a_result_on_another_device_is_an_error():
    f = torch2jax(lambda t: t.cpu(), output_shapes=jax.ShapeDtypeStruct((4,), jnp.float32))
    with pytest.raises(OutputError, match=r"to\('cuda:0'\)"):
        f(jnp.ones(4))


def test_weights_on_another_device_are_torchs_error():
    weight = torch.ones(4)
    with pytest.raises(RuntimeError, match="device"):
        torch2jax(lambda t: t @ weight, output_shapes=jax.ShapeDtypeStruct((), jnp.float32))(jnp.ones(4))


def test_torch_without_cuda_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="CUDA build of PyTorch"):
        torch2jax(lambda t: t + 1, output_shapes=jax.ShapeDtypeStruct((4,), jnp.float32))(jnp.ones(4))


def test_torch_keeps_its_current_device_and_stream():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        jax.jit(torch2jax(torch.sin))(ones()).block_until_ready()
        torch2jax(torch.sin)(ones()).block_until_ready()
        assert torch.cuda.current_stream() == stream
    assert torch.cuda.current_device() == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_the_second_of_two_gpus():
    if len(jax.devices("gpu")) < 2 or torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    second = jax.devices("gpu")[1]
    seen = []
    f = jax.jit(torch2jax(lambda t: (seen.append((t.device.index, torch.cuda.current_device())), torch.sin(t))[1]))
    x = jax.device_put(np.ones(8, np.float32), second)
    np.testing.assert_allclose(f(x), np.sin(np.ones(8)), rtol=1e-6)
    assert seen[-1] == (1, 1)
    assert torch.cuda.current_device() == 0


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_of_both_allocators_is_flat(gpu, kind):
    f, args = _program(kind)

    def used(calls):
        for _ in range(calls):
            out = f(*args)
        jax.block_until_ready(out)
        torch.cuda.synchronize()
        return gpu.jax.memory_stats()["bytes_in_use"], torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    before = used(100)
    assert used(10_000) == before


# --- what torch can do on a GPU -------------------------------------------------------------------------------------


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


@pytest.mark.filterwarnings("ignore")
def test_compiled_functions():
    f = jax.jit(torch2jax(torch.compile(lambda x: torch.sin(x) * 2 + x)))
    x = jax.random.normal(jax.random.key(0), (4096,))
    np.testing.assert_allclose(f(x), jnp.sin(x) * 2 + x, rtol=1e-4, atol=1e-5)


def test_a_triton_kernel(tmp_path, monkeypatch):
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
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    import doubling

    f = jax.jit(torch2jax(doubling.double, output_shapes=jax.ShapeDtypeStruct((1000,), jnp.float32)))
    x = jax.random.normal(jax.random.key(0), (1000,))
    np.testing.assert_allclose(f(x), x * 2)


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
    f = jax.jit(torch2jax(module.plus_one, output_shapes=jax.ShapeDtypeStruct((1000,), jnp.float32)))
    x = jax.random.normal(jax.random.key(0), (1000,))
    for _ in range(3):
        np.testing.assert_allclose(f(x), x + 1)


def test_graphs_of_xla_around_a_call():
    # A call is no part of a CUDA graph of XLA; the kernels around it may be.
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


# --- under a checker -----------------------------------------------------------------------------------------------


def test_clean_under_compute_sanitizer(tmp_path):
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("needs compute-sanitizer")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import jax, jax.numpy as jnp, torch
        from t2j_autodiff import torch2jax
        f = torch2jax(lambda x, w: torch.tanh(x @ w).sum())
        x, w = jnp.ones((64, 64)), jnp.ones((64, 64))
        for _ in range(3):
            jax.block_until_ready(jax.jit(jax.value_and_grad(f))(x, w))
            jax.block_until_ready(jax.jit(torch2jax(torch.sin, outputs="auto"))(jnp.ones(1 << 20)))
        """)
    )
    done = subprocess.run(
        [checker, "--error-exitcode", "1", sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parent,
    )
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this device here")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "ERROR SUMMARY: 0 errors" in done.stdout
