"""Random numbers without a key are told, once; what gives the same numbers at every call is not."""

from __future__ import annotations

import dataclasses
import time
import warnings

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from t2j_core import Size, T2jWarning, module2jax, torch2jax
from torch import nn

X = jnp.ones((4, 6))


def told(make) -> list[str]:
    """The warnings of random numbers while a function is traced for two signatures."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f = make()
        jax.eval_shape(f, X)
        jax.eval_shape(f, X[:3])
    return [str(w.message) for w in caught if issubclass(w.category, T2jWarning) and "random numbers" in str(w.message)]


def of_module(module, **options):
    apply, variables = module2jax(module, **options)
    return lambda x: apply(variables, x)


def attention(p):
    return lambda t: F.scaled_dot_product_attention(t[None], t[None], t[None], dropout_p=p)


def partly_forked(t):
    with torch.random.fork_rng(devices=[]):
        t = t + torch.rand_like(t)
    return t + torch.rand_like(t)


def of_values(t):
    return t * torch.rand(6) if t.sum().item() else t * torch.rand(6)


@dataclasses.dataclass
class Result:
    noise: torch.Tensor


def overwritten_with_noise(t):
    noise = torch.zeros(6)
    noise.copy_(torch.rand(6))
    return t + noise


def partly_loaded(t):
    layer = nn.Linear(6, 5)
    layer.weight.data.copy_(WEIGHTS["weight"])
    return layer(t)


WEIGHTS = nn.Linear(6, 5).state_dict()


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, t):
        if self.table is None:
            self.table = torch.randn(6)
        return t * self.table


RANDOM = {
    "dropout": lambda: torch2jax(lambda t: F.dropout(t, 0.5)),
    "rand": lambda: torch2jax(lambda t: t + torch.rand(6)),
    "rand_like": lambda: torch2jax(lambda t: t + torch.rand_like(t)),
    "in place": lambda: torch2jax(lambda t: t + torch.empty(6).uniform_()),
    "permutation": lambda: torch2jax(lambda t: t[:, torch.randperm(6)]),
    "distribution": lambda: torch2jax(lambda t: torch.distributions.Gamma(t, t).rsample()),
    "attention": lambda: torch2jax(attention(0.1)),
    "rrelu": lambda: torch2jax(lambda t: F.rrelu(t, training=True)),
    "the default generator": lambda: torch2jax(lambda t: t + torch.rand(6, generator=torch.default_generator)),
    "batched": lambda: torch2jax(torch.func.vmap(lambda t: t + torch.rand(6), randomness="different")),
    "partly forked": lambda: torch2jax(partly_forked),
    "in a dataclass": lambda: torch2jax(lambda t: Result(torch.rand_like(t))),
    "in a view": lambda: torch2jax(lambda t: t + torch.rand(2, 6).view(-1)[:6]),
    "in a buffer for the result": lambda: torch2jax(lambda t: t + torch.rand(6, out=torch.empty(6))),
    "overwritten with noise": lambda: torch2jax(overwritten_with_noise),
    "partly loaded": lambda: torch2jax(partly_loaded),
    "a number": lambda: torch2jax(lambda t: t * 2 if torch.rand(()).item() < 0.5 else t * 3),
    "a list": lambda: torch2jax(lambda t: t[:, torch.randperm(6).tolist()]),
    "NumPy's": lambda: torch2jax(lambda t: t + torch.from_numpy(torch.rand(6).numpy() * 2)),
    "on made-up data": lambda: torch2jax(of_values),
    "module": lambda: of_module(nn.Dropout(0.5)),
    "module put into training mode": lambda: of_module(nn.Dropout(0.5).eval(), train=True),
    "lstm": lambda: of_module(nn.LSTM(6, 6, 2, dropout=0.5)),
    "encoder": lambda: of_module(nn.TransformerEncoderLayer(6, 2, 6)),
    "seeded by the system": lambda: torch2jax(lambda t: (torch.seed(), t + torch.rand(6))[1]),
    "a generator seeded by the system": lambda: torch2jax(
        lambda t: (torch.default_generator.seed(), t + torch.rand(6))[1]
    ),
    "seeded by the clock": lambda: torch2jax(lambda t: (torch.manual_seed(time.time_ns()), t + torch.rand(6))[1]),
    "forked, and seeded by the system": lambda: torch2jax(forked_and_seeded_anew),
    "a generator of its own, seeded by the system": lambda: torch2jax(lambda t: t + torch.rand(6, generator=anew())),
    "a generator that is kept": lambda: torch2jax(lambda t: t + torch.rand(6, generator=KEPT)),
    "a table of each call": lambda: of_module(Table()),
}


KEPT = torch.Generator().manual_seed(0)


def anew():
    generator = torch.Generator()
    generator.seed()
    return generator


def forked_and_seeded_anew(t):
    with torch.random.fork_rng(devices=[]):
        torch.random.seed()
        return t * torch.rand_like(t)


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_without_a_key_are_told_once(name):
    (message,) = told(RANDOM[name])
    assert "`rng=True`" in message


def forked(t):
    with torch.random.fork_rng(devices=[]):
        return t * torch.rand_like(t)


def forked_and_seeded(t):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return F.dropout(t, 0.5)


def seeded(t):
    torch.manual_seed(0)
    return F.dropout(t, 0.5)


def restored(t):
    state = torch.get_rng_state()
    t = t * torch.rand_like(t)
    torch.set_rng_state(state)
    return t


def seeded_on_values(t):
    torch.manual_seed(int(t.sum().item() * 0))
    return t * torch.rand(6)


def forked_on_values(t):
    with torch.random.fork_rng(devices=[]):
        return t * torch.rand(6) * t.sum().item()


def loaded(t):
    layer = nn.Linear(6, 5).to(t)
    layer.load_state_dict(WEIGHTS)
    return layer(t)


def loaded_on_values(t):
    return loaded(t) * t.sum().item()


NOT_RANDOM = {
    "none": lambda: torch2jax(torch.sin),
    "a key": lambda: (lambda f: lambda x: f(jax.random.key(0), x))(torch2jax(lambda t: F.dropout(t, 0.5), rng=True)),
    "every call runs": lambda: torch2jax(lambda t: F.dropout(t, 0.5), has_side_effect=True),
    "dropout in evaluation": lambda: torch2jax(lambda t: F.dropout(t, 0.5, training=False)),
    "dropout of nothing": lambda: torch2jax(lambda t: F.dropout(t, 0.0)),
    "attention without dropout": lambda: torch2jax(attention(0.0)),
    "rrelu in evaluation": lambda: torch2jax(F.rrelu),
    "a generator": lambda: torch2jax(lambda t: t + torch.rand(6, generator=torch.Generator().manual_seed(0))),
    "forked": lambda: torch2jax(forked),
    "forked and seeded": lambda: torch2jax(forked_and_seeded),
    "seeded": lambda: torch2jax(seeded),
    "restored": lambda: torch2jax(restored),
    "seeded on values": lambda: torch2jax(seeded_on_values),
    "forked on values": lambda: torch2jax(forked_on_values),
    "module in evaluation": lambda: of_module(nn.Dropout(0.5).eval()),
    "module put into evaluation mode": lambda: of_module(nn.Dropout(0.5), train=False),
    "lstm without dropout": lambda: of_module(nn.LSTM(6, 6, 2)),
    "encoder without dropout": lambda: of_module(nn.TransformerEncoderLayer(6, 2, 6, dropout=0.0)),
    "not returned": lambda: torch2jax(lambda t: (torch.rand(3), t + 1)[1]),
    "a layer that is loaded": lambda: torch2jax(loaded),
    "a layer that is loaded, on values": lambda: torch2jax(loaded_on_values),
    "an initialisation": lambda: torch2jax(nn.LazyLinear(3)),
}


@pytest.mark.parametrize("seed", [None, 0], ids=["", "seeded outside"])
@pytest.mark.parametrize("name", NOT_RANDOM)
def test_what_is_the_same_at_every_call_is_not_told(name, seed):
    if seed is not None:
        torch.manual_seed(seed)
    assert told(NOT_RANDOM[name]) == []


@pytest.mark.parametrize("name", ["dropout", "partly forked", "on made-up data"])
def test_the_random_state_is_left_alone(name):
    before = torch.get_rng_state()
    told(RANDOM[name])
    assert torch.equal(torch.get_rng_state(), before)


def test_an_initialisation_draws_what_it_draws_in_torch():
    layers = [nn.LazyLinear(3), nn.LazyLinear(3)]
    torch.manual_seed(0)
    torch2jax(layers[0])(X)
    torch.manual_seed(0)
    layers[1](torch.ones(4, 6))
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_declared_outputs_are_not_watched():
    f = lambda: torch2jax(lambda t: F.dropout(t, 0.5), output_shapes=jax.ShapeDtypeStruct((4, 6), jnp.float32))
    assert told(f) == []


# --- declared outputs: the first real calls tell --------------------------------------------------------------------


def of_calls(function, jitted, **options):
    """The warnings of random numbers in three calls of a function with declared outputs, and their results."""
    f = torch2jax(function, output_shapes=Size(4, 6), **options)
    f = jax.jit(f) if jitted else f
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [jax.block_until_ready(f(X)) for _ in range(3)]
    return [w for w in caught if "random numbers" in str(w.message)], results


def written_and_random(t):
    t.add_(1)
    return t + 0 * torch.rand(6)


DECLARED = {
    "rand": lambda t: t + torch.rand(6),
    "dropout": lambda t: F.dropout(t, 0.5),
    "seeded by the system": lambda t: (torch.seed(), t + torch.rand(6))[1],
    "partly forked": partly_forked,
    "a number": lambda t: t * 2 if torch.rand(()).item() < 0.5 else t * 3,
    "written": written_and_random,
}


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", DECLARED)
def test_the_first_call_tells_where_outputs_are_declared(name, jitted):
    (message,), _ = of_calls(DECLARED[name], jitted)
    assert "`rng=True`" in str(message.message)


def test_what_is_repeated_to_tell_writes_into_nothing():
    before = X + 0
    _, results = of_calls(written_and_random, False)
    assert all((result == before + 1).all() for result in results)
    assert (before == X).all()


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", ["forked", "forked and seeded", "seeded", "not used", "a layer", "every call runs"])
def test_a_declared_function_that_draws_no_numbers_of_its_own(name, jitted):
    functions = {"forked": forked, "forked and seeded": forked_and_seeded, "seeded": seeded}
    functions |= {"not used": lambda t: (torch.rand(3), t + 1)[1], "a layer": lambda t: t + 0 * loaded(t)[:, :1]}
    options = {"has_side_effect": True} if name == "every call runs" else {}
    assert of_calls(functions.get(name, lambda t: t + torch.rand(6)), jitted, **options)[0] == []
