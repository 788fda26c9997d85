"""What each operation draws from a key: which numbers, of which distribution, and what torch runs itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import philox_reference
import pytest
import scipy.stats
import torch
from t2j_core import Size, torch2jax
from t2j_core._random import sampler


@functools.cache
def the_key() -> jax.Array:
    """A key; made late, because this file is imported before the devices are chosen."""
    return jax.random.key(11)


N = 20_000
HALF = torch.float16, torch.bfloat16

uniform, normal = scipy.stats.uniform(), scipy.stats.norm()


def laplace(x: torch.Tensor) -> torch.distributions.Laplace:
    return torch.distributions.Laplace(x, 1.0, validate_args=False)


# Name: (what to run on a tensor of N elements, the distribution of the result).
CONTINUOUS = {
    "rand": (lambda x: torch.rand(N, device=x.device), uniform),
    "rand, generator": (lambda x: torch.rand(N, device=x.device, generator=torch.default_generator), uniform),
    "rand, out": (lambda x: torch.rand(N, out=torch.empty_like(x)), uniform),
    "rand_like": (torch.rand_like, uniform),
    "rand_like, float64": (lambda x: torch.rand_like(x, dtype=torch.float64), uniform),
    "uniform_": (lambda x: torch.empty_like(x).uniform_(-2.0, 5.0), scipy.stats.uniform(-2.0, 7.0)),
    "randn": (lambda x: torch.randn(N, device=x.device), normal),
    "randn_like": (torch.randn_like, normal),
    "randn_like, float64": (lambda x: torch.randn_like(x, dtype=torch.float64), normal),
    "randn, complex": (lambda x: torch.randn(N, dtype=torch.complex64).real, scipy.stats.norm(0, np.sqrt(0.5))),
    "normal_": (lambda x: torch.empty_like(x).normal_(1.0, 3.0), scipy.stats.norm(1.0, 3.0)),
    "normal, size": (lambda x: torch.normal(1.0, 3.0, (N,)), scipy.stats.norm(1.0, 3.0)),
    "normal, mean": (lambda x: torch.normal(x + 1, 3.0), scipy.stats.norm(1.0, 3.0)),
    "normal, std": (lambda x: torch.normal(1.0, x + 3), scipy.stats.norm(1.0, 3.0)),
    "normal, both": (lambda x: torch.normal(x + 1, x + 3), scipy.stats.norm(1.0, 3.0)),
    "exponential_": (lambda x: torch.empty_like(x).exponential_(2.0), scipy.stats.expon(scale=0.5)),
    "in a part": (lambda x: torch.empty(2, N).t()[:, 1].uniform_(), uniform),
    "distributions": (
        lambda x: torch.distributions.Laplace(x, 1.0, validate_args=False).rsample(),
        scipy.stats.laplace(),
    ),
}
# Name: (what to run on a tensor of N elements, the frequency of each value).
DISCRETE = {
    "bernoulli": (lambda x: torch.bernoulli(x + 0.3), {0: 0.7, 1: 0.3}),
    "bernoulli, p": (lambda x: torch.bernoulli(x, 0.3), {0: 0.7, 1: 0.3}),
    "bernoulli_": (lambda x: torch.empty_like(x).bernoulli_(0.3), {0: 0.7, 1: 0.3}),
    "bernoulli_, int64": (lambda x: torch.empty(N, dtype=torch.int64).bernoulli_(0.3), {0: 0.7, 1: 0.3}),
    "bernoulli_, tensor": (lambda x: torch.empty_like(x).bernoulli_(torch.tensor(0.3)), {0: 0.7, 1: 0.3}),
    "dropout": (lambda x: torch.nn.functional.dropout(x + 1, 0.25), {0: 0.25, 4 / 3: 0.75}),
    "dropout, float64": (lambda x: torch.nn.functional.dropout(x.double() + 1, 0.25), {0: 0.25, 4 / 3: 0.75}),
    "native_dropout": (lambda x: torch.native_dropout(x + 1, 0.25, True)[0], {0: 0.25, 4 / 3: 0.75}),
    "randint": (lambda x: torch.randint(-1, 3, (N,)), dict.fromkeys(range(-1, 3), 0.25)),
    "randint, int8": (lambda x: torch.randint(4, (N,), dtype=torch.int8), dict.fromkeys(range(4), 0.25)),
    "randint, float": (lambda x: torch.randint(4, (N,), dtype=torch.float32), dict.fromkeys(range(4), 0.25)),
    "randint_like": (lambda x: torch.randint_like(x, 1, 5), dict.fromkeys(range(1, 5), 0.25)),
    "random_": (lambda x: torch.empty(N, dtype=torch.bool).random_(), {0: 0.5, 1: 0.5}),
    "random_, from": (lambda x: torch.empty_like(x).random_(1, 5), dict.fromkeys(range(1, 5), 0.25)),
    "random_, to": (lambda x: torch.empty_like(x).random_(4), dict.fromkeys(range(4), 0.25)),
}


def numbers(f, key=None, dtype=jnp.float32) -> np.ndarray:
    return np.asarray(torch2jax(f, rng=True)(the_key() if key is None else key, jnp.zeros(N, dtype)))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_distributions(drawn, name):
    f, expected = CONTINUOUS[name]
    found = numbers(f)
    assert len(drawn) == 1
    assert scipy.stats.kstest(found, expected.cdf).pvalue > 0.001
    neighbours = np.corrcoef(found[:-1], found[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(N)
    assert (numbers(f) == found).all()
    assert (numbers(f, jax.random.key(12)) != found).mean() > 0.99


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_distributions(drawn, name):
    f, expected = DISCRETE[name]
    found = numbers(f)
    assert len(drawn) == 1
    values, counts = np.unique(found.astype(np.float32), return_counts=True)
    np.testing.assert_allclose(values, list(expected), rtol=1e-6)
    assert scipy.stats.chisquare(counts, np.array(list(expected.values())) * N).pvalue > 0.001
    assert (numbers(f) == found).all()
    assert (numbers(f, jax.random.key(12)) != found).any()


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
def test_uniform_numbers_are_below_one(drawn, dtype):
    u = numbers(lambda x: torch.rand(N, dtype=dtype).double()).astype(np.float64)
    step = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(dtype, 0)
    assert 0 <= u.min() < 2 * step + 1e-3
    assert 1 - 2 * step - 1e-3 < u.max() < 1


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_rounding_does_not_reach_the_upper_bound(drawn, dtype):
    a, b = (1.0, 1.0 + 4 * torch.finfo(dtype).eps)
    u = numbers(lambda x: torch.empty(N, dtype=dtype).uniform_(a, b).float())
    assert set(np.unique(u)) == {a + k * torch.finfo(dtype).eps for k in range(4)}


def test_permutations(drawn):
    p = numbers(lambda x: torch.randperm(N))
    assert len(drawn) == 1
    assert sorted(p) == list(range(N))
    assert scipy.stats.kstest(p[: N // 4] / N, uniform.cdf).pvalue > 0.001


def test_integers_of_64_bits(drawn):
    with jax.enable_x64(True):
        whole = numbers(lambda x: torch.empty(N, dtype=torch.int64).random_(-(1 << 63), None))
        assert scipy.stats.kstest(whole / 2.0**63, scipy.stats.uniform(-1, 2).cdf).pvalue > 0.001
        large = numbers(lambda x: torch.randint(1 << 40, (1 << 63) - 1, (N,)))
    assert large.min() >= 1 << 40
    assert scipy.stats.kstest(large / 2.0**63, uniform.cdf).pvalue > 0.001
    assert len(drawn) == 2


def test_each_draw_has_other_numbers(drawn):
    a, b, c = torch2jax(lambda: (torch.rand(N), torch.rand(N), torch.randn(N)), rng=True)(the_key())
    assert abs(np.corrcoef([a, b, c]) - np.eye(3)).max() < 4 / np.sqrt(N)


def test_the_layout_in_memory_does_not_matter(drawn):
    x = jnp.zeros((8, 3, 4, 5))
    rows = torch2jax(lambda x: torch.rand_like(x), rng=True)(the_key(), x)
    channels = torch2jax(lambda x: torch.rand_like(x.to(memory_format=torch.channels_last)), rng=True)(the_key(), x)
    np.testing.assert_array_equal(rows, channels)


def test_keys_of_four_words_and_of_other_implementations(drawn):
    keys = [jax.random.key(0, impl="rbg"), jax.random.key(1, impl="rbg"), np.array([1, 2, 3, 4], np.uint32)]
    keys += [np.array(words, np.uint32) for words in ([1, 2], [1, 2, 0, 1], [1, 2, 1, 0], [2, 1])]
    results = [numbers(torch.rand_like, key) for key in keys]
    assert len(drawn) == len(keys)
    assert abs(np.corrcoef(results) - np.eye(len(keys))).max() < 4.5 / np.sqrt(N)


@torch.library.custom_op("t2j_keyed_draws::unknown", mutates_args=())
def _unknown(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x)


_unknown.register_fake(torch.empty_like)


# --- what torch runs itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.empty_like(x).cauchy_(),
        lambda x: torch.multinomial(x + 1, 5),
        lambda x: torch.nn.functional.rrelu(x - 1, training=True),
        lambda x: torch.poisson(x + 1),
        lambda x: _unknown(x) + torch.rand_like(x),
    ],
    ids=["cauchy_", "multinomial", "rrelu", "poisson", "not of torch"],
)
def test_other_operations_draw_from_a_seed(drawn, f):
    """Inference has seen them, so the key is read before the call, for all draws of the function."""
    both = lambda x: (torch.rand_like(x), f(x))[1]
    first = numbers(both)
    assert not drawn
    assert (numbers(both) == first).all()
    assert (numbers(both, jax.random.key(12)) != first).any()


def test_declared_outputs_draw_from_a_seed(drawn):
    f = torch2jax(torch.rand_like, rng=True, output_shapes=Size(N))
    assert (np.asarray(f(the_key(), jnp.zeros(N))) != numbers(torch.rand_like)).any()
    assert len(drawn) == 1


@pytest.mark.parametrize("generator", ["own", "seeded"])
def test_a_generator_of_the_function_is_left_alone(drawn, generator):
    def own(x):
        return torch.rand(N, generator=torch.Generator().manual_seed(5))

    def seeded(x):
        torch.manual_seed(5)
        return torch.rand(N)

    expected = torch.rand(N, generator=torch.Generator().manual_seed(5)).numpy()
    np.testing.assert_array_equal(numbers(own if generator == "own" else seeded), expected)
    assert not drawn


@pytest.mark.parametrize("wrong", ["uniform_", "exponential_", "bernoulli_", "normal_", "randint"])
def test_wrong_arguments_raise_what_torch_raises(drawn, wrong):
    calls = {
        "uniform_": lambda x: x.clone().uniform_(2.0, 1.0),
        "exponential_": lambda x: x.clone().exponential_(-1.0),
        "bernoulli_": lambda x: x.clone().bernoulli_(1.5),
        "normal_": lambda x: x.clone().normal_(0.0, -1.0),
        "randint": lambda x: torch.randint(3, 3, (2,)),
    }
    with pytest.raises(RuntimeError) as native:
        calls[wrong](torch.zeros(3))
    text = str(native.value).splitlines()[0]
    f = torch2jax(lambda x: calls[wrong](x) if not x.is_meta else x + torch.rand_like(x), rng=True)
    with pytest.raises(RuntimeError, match=text.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")):
        f(the_key(), jnp.zeros(3))


def test_operations_without_effect_leave_the_numbers_of_the_others(drawn):
    def f(x):
        zeros = torch.empty_like(x).bernoulli_(0.0) + torch.native_dropout(x, 0.5, False)[0]
        return zeros + torch.native_dropout(x, 0.0, True)[0] + torch.rand_like(x)

    assert scipy.stats.kstest(numbers(f), uniform.cdf).pvalue > 0.001
    assert len(drawn) == 3


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(drawn, p):
    f = torch2jax(lambda x: torch.native_dropout(x, p, True), rng=True)
    y, mask = f(the_key(), jnp.ones(N))
    assert (np.asarray(y) == 1 - p).all()
    assert (np.asarray(mask) == (p == 0)).all()


def test_a_sampler_is_checked_before_its_first_use():
    cpu = torch.device("cpu")
    sampler.check(philox_reference.fill, cpu)
    with pytest.raises(RuntimeError, match="instead of"):
        sampler.check(lambda out, *_: out.zero_(), cpu)
