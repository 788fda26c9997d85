"""Calls from threads and event loops, and threads and event loops inside calls."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import here, observe, x
from t2j_core import Size, torch2jax

pytestmark = pytest.mark.usefixtures("intact")


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
