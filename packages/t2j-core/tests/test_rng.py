"""`rng=True`: a JAX key decides torch's random numbers, and nothing else notices."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from t2j_core import ArgumentError, Size, module2jax, torch2jax

CUSTOM_CALL = [jax.export.DisabledSafetyCheck.custom_call("t2j_torch_call")]
X = jnp.zeros(16)

noise = torch2jax(lambda t: t + torch.rand_like(t), rng=True)


def raw(*words: int) -> jax.Array:
    return jnp.asarray(np.array(words, np.uint32))


def draw(key) -> bytes:
    return np.asarray(noise(key, X)).tobytes()


def test_the_same_key_gives_the_same_numbers_everywhere():
    key = jax.random.key(7)
    expected = draw(key)
    assert draw(key) == expected
    assert np.asarray(jax.jit(noise)(key, X)).tobytes() == expected
    assert np.asarray(jax.jit(lambda x: noise(jax.random.key(7), x))(X)).tobytes() == expected
    assert np.asarray(jax.lax.fori_loop(0, 3, lambda i, c: noise(key, X), X)).tobytes() == expected
    with jax.disable_jit():
        assert np.asarray(noise(key, X)).tobytes() == expected
    assert len(set(np.asarray(noise(key, X)).tolist())) > 10  # they are random at all


def test_the_same_key_gives_the_same_numbers_after_export():
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialise")
    f = torch2jax(lambda t: t + torch.rand_like(t), rng=True, name="noise")
    key = jax.random.key_data(jax.random.key(7))
    exported = jax.export.export(jax.jit(f), disabled_checks=CUSTOM_CALL)(key, X)
    again = jax.export.deserialize(exported.serialize())
    assert np.asarray(again.call(key, X)).tobytes() == draw(jax.random.key(7))


def test_typed_and_raw_keys_are_the_same_key():
    assert draw(jax.random.key(3)) == draw(jax.random.PRNGKey(3)) == draw(jax.random.key_data(jax.random.key(3)))
    assert draw(jax.random.key(3)) == np.asarray(jax.jit(noise)(jax.random.PRNGKey(3), X)).tobytes()


def test_other_key_implementations():
    for impl in ("rbg", "unsafe_rbg"):
        a, b = (draw(jax.random.key(seed, impl=impl)) for seed in (0, 1))
        assert a != b
        assert draw(jax.random.key(0, impl=impl)) == a


def test_a_numpy_key():
    assert draw(np.array([0, 3], np.uint32)) == draw(raw(0, 3))


def test_keys_that_jax_derives_differ():
    derived = [jax.random.key(0), *jax.random.split(jax.random.key(0), 64), *jax.random.split(jax.random.key(1), 64)]
    derived += [jax.random.fold_in(jax.random.key(2), i) for i in range(64)]
    words = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in derived}
    assert len(words) > 190
    assert len({draw(key) for key in derived}) == len(words)


def test_every_word_of_a_key_counts():
    # Regression: torch's CPU generator takes 32 bits of its seed, and those were the last word's alone.
    keys = [(a, b) for a in (0, 1, 2, 5, 1 << 31, (1 << 32) - 1) for b in (0, 1, 7, 1 << 31, (1 << 32) - 1)]
    assert len({draw(raw(*key)) for key in keys}) == len(keys)


def test_keys_with_one_word_in_common_differ():
    rng = np.random.default_rng(0)
    for words in (lambda w: (w, 7), lambda w: (7, w)):
        keys = {int(w) for w in rng.integers(0, 1 << 32, 200)}
        assert len({draw(raw(*words(w))) for w in keys}) == len(keys)


def test_numbers_follow_their_distribution():
    normal = torch2jax(lambda: torch.randn(20_000), rng=True)
    means = np.array([float(normal(key).mean()) for key in jax.random.split(jax.random.key(1), 8)])
    assert np.abs(means).max() < 5 / np.sqrt(20_000)
    assert np.std(means) > 0


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_torchs_own_generator_is_left_as_it_was(jitted):
    f = jax.jit(noise) if jitted else noise
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    jax.block_until_ready(f(jax.random.key(0), jnp.zeros(5)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.rand(3), expected)


def test_the_generator_is_restored_after_an_exception():
    def fail(t):
        torch.rand(3)
        if not t.is_meta:
            raise ValueError("no")
        return t

    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="no"):
        torch2jax(fail, rng=True, output_shapes=Size(16))(jax.random.key(0), X)
    assert torch.equal(torch.get_rng_state(), state)


def test_torchs_own_seed_does_not_matter():
    torch.manual_seed(1)
    first = draw(jax.random.key(0))
    torch.manual_seed(2)
    assert draw(jax.random.key(0)) == first


def test_inference_on_zeros_does_not_disturb_the_numbers():
    f = torch2jax(lambda t: t + torch.rand(16) * (t.sum().item() + 1), rng=True)
    assert np.asarray(f(jax.random.key(7), X)).tobytes() == draw(jax.random.key(7))


def test_a_seeded_call_inside_scan():
    @jax.jit
    def walk(key):
        return jax.lax.scan(lambda c, k: (noise(k, c), None), X, jax.random.split(key, 5))[0]

    expected = X
    for key in jax.random.split(jax.random.key(9), 5):
        expected = noise(key, expected)
    np.testing.assert_array_equal(np.asarray(walk(jax.random.key(9))), np.asarray(expected))


def test_threads_do_not_disturb_each_other():
    # Torch's generator is one for all threads.
    long = torch2jax(lambda t: t + sum(torch.rand(16) for _ in range(50)), rng=True)
    keys = list(jax.random.split(jax.random.key(0), 4))
    expected = [np.asarray(long(key, X)) for key in keys]
    barrier, got = threading.Barrier(4), [[] for _ in keys]

    def work(i):
        barrier.wait()
        for _ in range(20):
            got[i].append(np.asarray(long(keys[i], X)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, results in enumerate(got):
        assert len(results) == 20
        for result in results:
            np.testing.assert_array_equal(result, expected[i])


def test_dropout_of_a_module():
    apply, variables = module2jax(torch.nn.Dropout(0.5), train=True, rng=True)
    x = jnp.ones(1000)
    first, again, other = (np.asarray(apply(jax.random.key(k), variables, x)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert set(first.tolist()) == {0.0, 2.0}


def test_keyword_arguments_and_a_function_of_the_key_alone():
    f = torch2jax(lambda *, n: torch.rand(n), rng=True)
    assert f(jax.random.key(0), n=5).shape == (5,)
    g = torch2jax(lambda: torch.rand(5), rng=True)
    np.testing.assert_array_equal(np.asarray(f(jax.random.key(0), n=5)), np.asarray(g(jax.random.key(0))))


def test_a_keyword_argument_named_key():
    # Regression: the name was taken by the function that seeds.
    f = torch2jax(lambda t, *, key: t * key + torch.rand(3), rng=True)
    out = f(jax.random.key(0), jnp.ones(3), key=jnp.full(3, 2.0))
    assert (np.asarray(out) >= 2).all()


@pytest.mark.parametrize(
    "example",
    [jax.random.key(0), jax.random.PRNGKey(0), np.zeros(2, np.uint32), jax.ShapeDtypeStruct((2,), jnp.uint32)],
    ids=["typed", "raw", "numpy", "raw struct"],
)
def test_a_key_among_the_examples(example):
    f = torch2jax(lambda t: t + torch.rand_like(t), example, X, rng=True)
    assert np.asarray(f(jax.random.key(7), X)).tobytes() == draw(jax.random.key(7))


def test_the_struct_of_a_typed_key_among_the_examples():
    key = jax.random.key(0)
    f = torch2jax(lambda t: t + torch.rand_like(t), jax.ShapeDtypeStruct(key.shape, key.dtype), X, rng=True)
    assert np.asarray(f(jax.random.key(7), X)).tobytes() == draw(jax.random.key(7))


@pytest.mark.parametrize(
    "arguments",
    [
        (X,),
        (0, X),
        (jax.random.split(jax.random.key(0), 2), X),
        (raw(0, 1)[None], X),
        (jnp.zeros(2, jnp.int32), X),
        (jnp.zeros((), jnp.uint32), X),
        (None, X),
        (),
        ("key", raw(0, 1), X),  # the first argument, not the first array
    ],
    ids=["array", "number", "two keys", "shape", "signed", "scalar", "None", "nothing", "second"],
)
def test_a_first_argument_that_is_no_key(arguments):
    with raises(ArgumentError, what=("`rng=True`", "first argument"), expected="`jax.random.key(seed)`"):
        noise(*arguments)


def test_without_rng_a_key_is_no_data():
    with pytest.raises(TypeError, match="key<fry>"):
        torch2jax(lambda key, t: t)(jax.random.key(0), X)
