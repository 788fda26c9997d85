"""What surrounds a call: thread state of torch, JAX inside the function, threads, and what functions leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import JaxInsideTorchError, Size, j2t, last_error, module2jax, t2j, torch2jax
from test_faults import JaxError, check_intact, check_text
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

x = jnp.arange(6.0).reshape(2, 3)
here = np.arange(6.0, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def _intact():
    yield
    check_intact()


# --- the caller's torch state -----------------------------------------------------------------------------------------


class Counting(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class Dispatching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def fake_mode():
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def several():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"), Counting(), Dispatching():
        yield


CONTEXTS = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast_off": lambda: torch.autocast("cpu", enabled=False),
    "device": lambda: torch.device("meta"),
    "default_device": default_device,
    "function_mode": Counting,
    "dispatch_mode": Dispatching,
    "fake_mode": fake_mode,
    "several": several,
    "disabled_subclasses": torch._C.DisableTorchFunctionSubclass,
    "saved_tensors_hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t * 0, lambda t: t),
}


def state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._is_torch_function_enabled(),
    )


def observe(t):
    """What the function sees: as numbers, so that nothing escapes."""
    v = torch.ones(2, 3, requires_grad=True)
    y = (v * v * t).sum()
    (grad,) = torch.autograd.grad(y, v)  # 2 t
    product = t @ torch.ones(3, 2)
    seen = [
        torch.is_grad_enabled(),
        not torch.is_inference_mode_enabled(),
        not torch.is_autocast_enabled("cpu"),
        torch.zeros(1).device == t.device,
        product.dtype == torch.float32,
        not torch.empty(0).is_inference(),
        y.requires_grad,
        bool(torch._C._len_torch_function_stack() == 0),
    ]
    return grad, product, torch.tensor([float(value) for value in seen])


untold = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="torch before 2.7 does not tell whether a thread has such hooks",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=untold) if name == "saved_tensors_hooks" else name for name in CONTEXTS]
)
def test_the_callers_state_does_not_reach_the_function(name):
    """Neither at inference nor at a call, eagerly or under jit; and it is as before afterwards."""
    f = torch2jax(observe)
    g = jax.jit(f)
    declared = torch2jax(observe, output_shapes=(Size(2, 3), Size(2, 2), Size(8)))
    for call in (f, declared, f, g, f, g, declared):
        with CONTEXTS[name]():
            before = state()
            grad, product, seen = call(x)
            assert state() == before
        np.testing.assert_array_equal(seen, np.ones(8))
        np.testing.assert_array_equal(grad, 2 * here)
        np.testing.assert_array_equal(product, here @ np.ones((3, 2), np.float32))


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_callers_state_is_restored_after_an_exception(name):
    flag = []

    def function(t):
        if flag:
            raise KeyError("in a context")
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    with CONTEXTS[name]():
        before = state()
        np.testing.assert_array_equal(f(x), here + 1)
        flag.append(1)
        for _ in range(2):
            with pytest.raises(KeyError):
                f(x)
            assert state() == before
        flag.clear()
        np.testing.assert_array_equal(f(x), here + 1)
        with pytest.raises(ZeroDivisionError):
            torch2jax(lambda t: 1 / 0)(x)
        assert state() == before


@pytest.mark.parametrize(
    "transform",
    [
        lambda g: torch.func.grad(lambda r: g(r).sum()),
        lambda g: torch.func.vmap(g),
        lambda g: lambda r: torch.func.jvp(g, (r,), (r,))[1],
        lambda g: lambda r: torch.func.vjp(g, r)[1](r)[0],
        lambda g: torch.func.functionalize(g),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_call_beside_a_transformation_of_functorch(transform):
    """The call has no part in the transformation: it is a constant there."""
    f = torch2jax(observe)
    for _ in range(2):
        out = transform(lambda r: r * torch.from_numpy(np.array(f(x)[0])))(torch.ones(2, 3))
        assert out.shape[-1] == 3


def test_modes_see_none_of_the_calls_operations():
    f = torch2jax(observe)
    for mode in (Counting(), Dispatching()):
        with mode:
            for _ in range(3):
                f(x)
        assert mode.calls == 0


def test_torch_functions_that_change_the_thread_do_not_change_later_calls():
    def function(t):
        seen = torch.tensor([float(torch.is_grad_enabled()), float(torch.is_autocast_enabled("cpu"))])
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", True)
        return seen

    f = torch2jax(function, output_shapes=Size(2))
    try:
        for call in (f, f, f, jax.jit(f), jax.jit(f)):
            np.testing.assert_array_equal(call(x), [1, 0])
        np.testing.assert_array_equal(torch2jax(observe)(x)[2], np.ones(8))
    finally:
        torch.set_grad_enabled(True)
        torch.set_autocast_enabled("cpu", False)


def test_the_callers_gradient_mode_is_restored_after_every_call():
    def function(t):
        torch.set_grad_enabled(False)
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    after = []
    try:
        for _ in range(5):
            f(x)
            after.append(torch.is_grad_enabled())
    finally:
        torch.set_grad_enabled(True)
    assert after == [True] * 5


def test_a_function_that_leaves_a_mode_behind():
    left = []

    def function(t):
        mode = Counting()
        mode.__enter__()
        left.append(mode)
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    try:
        for _ in range(4):
            np.testing.assert_array_equal(f(x), here + 1)
    finally:
        while torch._C._len_torch_function_stack():
            torch.overrides._pop_mode()
    np.testing.assert_array_equal(torch2jax(observe)(x)[2], np.ones(8))


def test_the_default_dtype_of_torch_may_change():
    f = torch2jax(lambda t: torch.ones(3) * t)
    try:
        for dtype in (torch.float32, torch.float64, torch.float16, torch.float32):
            torch.set_default_dtype(dtype)
            out = f(jnp.arange(3.0))
            assert out.dtype == jnp.float32
            np.testing.assert_array_equal(out, np.arange(3))
            np.testing.assert_array_equal(torch2jax(lambda t: t * torch.ones(3))(jnp.arange(3.0)), np.arange(3))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_inference_leaves_the_generators_of_torch_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    f = torch2jax(lambda t: t + torch.rand(3).sum())
    jax.eval_shape(f, x)
    assert torch.equal(torch.rand(3), want)


# --- JAX inside torch -------------------------------------------------------------------------------------------------

cached = jax.jit(lambda a: a + 1)
closed_over = jnp.ones(3)
OPERATIONS = {
    "numpy_like": lambda t: jnp.sin(1.0),
    "on_an_array": lambda t: closed_over + 1,
    "comparison": lambda t: bool((closed_over == 1).all()),
    "jitted": lambda t: jax.jit(lambda: jnp.ones(3))(),
    "jitted_before": lambda t: cached(closed_over),
    "gradient": lambda t: jax.grad(lambda a: (a * a).sum())(closed_over),
    "key": lambda t: jax.random.key(0),
    "random": lambda t: jax.random.normal(jax.random.PRNGKey(0)),
    "index": lambda t: closed_over[0],
    "vmap": lambda t: jax.vmap(jnp.sin)(closed_over),
    "loop": lambda t: jax.lax.fori_loop(0, 2, lambda i, v: v, 0),
    "wrapped": lambda t: inner(closed_over),
    "wrapped_on_the_argument": lambda t: inner(t),
    "wrapped_module": lambda t: apply(variables, closed_over),
}
inner = torch2jax(torch.cos)
apply, variables = module2jax(torch.nn.Linear(3, 3))


def warm_up():
    cached(closed_over)
    inner(closed_over)
    inner(closed_over)
    apply(variables, closed_over)


@pytest.mark.parametrize("name", OPERATIONS)
def test_jax_inside_the_function_is_refused_at_inference(name):
    warm_up()
    f = torch2jax(lambda t: (OPERATIONS[name](t), t)[1])
    for call in (f, f, jax.jit(f)):
        with pytest.raises(JaxInsideTorchError) as info:
            call(x)
        check_text(f"{info.value}\n  Got:", "calls JAX", "deadlock")
    np.testing.assert_array_equal(jnp.sin(jnp.zeros(3)), np.zeros(3))


@pytest.mark.parametrize("name", OPERATIONS)
def test_jax_inside_the_function_is_refused_at_the_call(name):
    """However often it is tried."""
    warm_up()
    f = torch2jax(lambda t: (OPERATIONS[name](t), t)[1], output_shapes=Size(2, 3))
    g = jax.jit(f)
    for call in (f, f, f, f, g, g, g, g):
        with pytest.raises((JaxInsideTorchError, *JaxError)) as info:
            jax.block_until_ready(call(x))
        assert isinstance(last_error(), JaxInsideTorchError)
        assert "JaxInsideTorchError" in str(info.value) or info.value is last_error()
    np.testing.assert_array_equal(cached(closed_over), np.full(3, 2))


def test_jax_inside_that_is_caught_does_no_harm():
    def function(t):
        try:
            jnp.sin(1.0)
        except JaxInsideTorchError:
            return t + 1
        return t

    np.testing.assert_array_equal(torch2jax(function)(x), here + 1)


def test_what_only_reads_a_jax_array_is_fine():
    constant = jnp.arange(3.0)
    f = torch2jax(lambda t: t + j2t(constant) + torch.from_numpy(np.array(constant)))
    for call in (f, f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), here + 2 * np.arange(3))


def test_after_a_refusal_jax_works_on_every_thread():
    f = torch2jax(lambda t: (jnp.sin(1.0), t)[1], output_shapes=Size(2, 3))

    def work(_):
        for _ in range(3):
            with contextlib.suppress(JaxInsideTorchError):
                f(x)
        return float(jnp.sum(jax.jit(lambda a: a + 1)(jnp.ones(3))))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [6.0] * 8


# --- threads ----------------------------------------------------------------------------------------------------------


def test_a_call_from_a_new_thread_each_time():
    f = torch2jax(observe)
    f(x)
    for _ in range(30):
        out = []
        thread = threading.Thread(target=lambda: out.append(f(x)))
        thread.start()
        thread.join()
        np.testing.assert_array_equal(out[0][2], np.ones(8))


def test_threads_inside_the_function():
    def function(t):
        with ThreadPoolExecutor(3) as pool:
            return torch.stack(list(pool.map(lambda i: t * i, range(3))))

    f = torch2jax(function)
    for call in (f, f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), np.stack([here * i for i in range(3)]))


def test_asyncio():
    f = torch2jax(lambda t: t * 2)

    async def main():
        direct = f(x)
        rest = await asyncio.gather(*(asyncio.to_thread(f, x + i) for i in range(6)))
        return [direct, *rest]

    results = asyncio.run(main())
    for result, i in zip(results, [0, *range(6)], strict=True):
        np.testing.assert_array_equal(result, 2 * (here + i))


def test_an_event_loop_inside_the_function():
    async def double(t):
        await asyncio.sleep(0)
        return t * 2

    f = torch2jax(lambda t: asyncio.run(double(t)))
    for call in (f, f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), 2 * here)


@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_inference_in_one_thread_beside_a_seeded_call_in_another():
    """Both use torch's one generator; the same key gives the same numbers all the same."""
    drawn, inferring, drawn_again, inferred = (threading.Event() for _ in range(4))
    racing = []

    def seeded(t):
        numbers = [torch.rand(())]
        if racing:
            drawn.set()
            inferring.wait(2)  # not if inference waits for its turn, which is right too
        numbers.append(torch.rand(()))
        if racing:
            drawn_again.set()
            inferred.wait(2)
        numbers.append(torch.rand(()))
        return torch.stack(numbers)

    def other(t):
        inferring.set()
        drawn_again.wait(2)
        return torch.nn.functional.dropout(t, 0.5)

    f, key = torch2jax(seeded, rng=True, output_shapes=Size(3)), jax.random.key(1)
    want = np.asarray(f(key, jnp.ones(1)))
    racing.append(1)

    def infer():
        drawn.wait(10)
        jax.eval_shape(torch2jax(other), jnp.ones(4))
        inferred.set()

    thread = threading.Thread(target=infer)
    thread.start()
    got = np.asarray(f(key, jnp.ones(1)))
    thread.join()
    np.testing.assert_array_equal(got, want)


# --- odd functions ----------------------------------------------------------------------------------------------------


def test_a_function_that_wraps_and_drops_wrappers():
    def function(t):
        g = torch2jax(lambda u: u + 1)
        del g
        return t + 1

    np.testing.assert_array_equal(torch2jax(function)(x), here + 1)


def test_a_function_that_collects_garbage_and_allocates():
    def function(t):
        import gc

        for _ in range(3):
            gc.collect()
            torch.empty(1 << 16)
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    for call in (f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), here + 1)


def test_a_function_that_swaps_itself_out():
    """The program was compiled for the first behaviour; the object decides what runs."""

    class Model:
        def __init__(self):
            self.n = 1.0

        def __call__(self, t):
            self.n += 1
            return t * self.n

    model = Model()
    f = torch2jax(model, output_shapes=Size(2, 3))
    np.testing.assert_array_equal(f(x), here * 2)
    np.testing.assert_array_equal(f(x), here * 3)


def test_a_call_during_tracing_of_another():
    f, g = torch2jax(lambda t: t + 1), torch2jax(lambda t: t * 2)

    @jax.jit
    def program(a):
        eager = f(jnp.ones((2, 3)))  # a constant of the program
        return g(f(a)) + eager

    np.testing.assert_array_equal(program(x), 2 * (here + 1) + 2)


def test_calls_of_each_other_in_sequence():
    f, g = torch2jax(lambda t: t + 1), torch2jax(lambda t: t * 2)
    out = x
    for _ in range(20):
        out = t2j(j2t(g(f(out)))) / 2
    np.testing.assert_array_equal(out, here + 20)
