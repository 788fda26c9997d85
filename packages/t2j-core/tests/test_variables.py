"""Variables of a module: checked by name and shape, arrays or numbers, over the module's memory or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from t2j_core import ArgumentError, ShardingError, load_variables, module2jax, torch2jax
from torch import nn

X = jnp.ones((2, 4))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 3)
        self.register_buffer("offset", torch.zeros(3))

    def forward(self, t):
        return self.l(t) + self.offset


MODULE = Wrapped()
APPLY, VARIABLES = module2jax(MODULE)
PARAMS, BUFFERS = VARIABLES["params"], VARIABLES["buffers"]

MISFITS = {
    "one for all": (
        {"params": {**PARAMS, "l.bias": jnp.ones(1)}},
        dict(what="['params']['l.bias']", expected="(3,)", got="(1,)"),
    ),
    "transposed": ({"params": {**PARAMS, "l.weight": jnp.ones((4, 3))}}, dict(expected="(3, 4)", got="(4, 3)")),
    "several": ({"params": {**PARAMS, "l.bias": jnp.ones((5, 3))}}, dict(what="['l.bias']", remedy="`jax.vmap(")),
    "a number for a vector": ({"params": {**PARAMS, "l.bias": 1.0}}, dict(expected="(3,)", got="()")),
    "buffer": ({"buffers": {"offset": jnp.ones((3, 1))}}, dict(what="['buffers']['offset']", got="(3, 1)")),
    "misspelled": ({"params": {**PARAMS, "l.bais": jnp.ones(3)}}, dict(what="['l.bais']", remedy="'l.bias'")),
    "nested": (
        {"params": {"l": {"weight": jnp.ones((3, 4)), "bias": jnp.ones(3)}}},
        dict(what="['l']", remedy="'l.weight'"),
    ),
    "other part": ({"params": {**PARAMS, "offset": jnp.ones(3)}}, dict(remedy=("buffer", "['buffers']['offset']"))),
    "unknown part": ({"parameters": {}}, dict(what="['parameters']", remedy="'params'")),
    "description": (
        {"params": {**PARAMS, "l.bias": jax.ShapeDtypeStruct((3,), jnp.float32)}},
        dict(what="no data", expected="an array"),
    ),
    "text": ({"params": {**PARAMS, "l.bias": "zeros"}}, dict(expected="an array or a number", got="str")),
}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", [name for name in MISFITS if name not in ("text", "description")])
def test_variables_that_do_not_fit_are_refused(name, transform):
    wrong, parts = MISFITS[name]
    with raises(ArgumentError, **parts):
        transform(APPLY)({**VARIABLES, **wrong}, X)


@pytest.mark.parametrize("name", MISFITS)
def test_the_same_are_refused_when_they_are_loaded(name):
    wrong, parts = MISFITS[name]
    with raises(ArgumentError, **parts):
        load_variables(MODULE, wrong)


def test_what_is_neither_array_nor_number_is_named():
    for wrong in ("zeros", None):
        with raises(ArgumentError, what="['l.bias']", expected="an array or a number", got=type(wrong).__name__):
            APPLY({**VARIABLES, "params": {**PARAMS, "l.bias": wrong}}, X)


def test_shapes_are_checked_with_declared_outputs_too():
    apply, variables = module2jax(MODULE, output_shapes=jax.ShapeDtypeStruct((2, 3), jnp.float32))
    with pytest.raises(ArgumentError, match=r"\['l.bias'\]"):
        apply({**variables, "params": {**PARAMS, "l.bias": jnp.ones(1)}}, X)


def test_shapes_are_checked_behind_a_key():
    apply, variables = module2jax(MODULE, rng=True)
    assert apply(jax.random.key(0), variables, X).shape == (2, 3)
    with pytest.raises(ArgumentError, match=r"\['l.bias'\]"):
        apply(jax.random.key(0), {**variables, "params": {**PARAMS, "l.bias": jnp.ones(1)}}, X)


def test_the_second_name_of_a_tied_parameter_is_no_variable():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    apply, variables = module2jax(module)
    params = {**variables["params"], "1.weight": jnp.zeros((3, 3))}
    with raises(ArgumentError, what="['1.weight']", remedy="tied to '0.weight'"):
        apply({**variables, "params": params}, jnp.ones((1, 3)))
    with raises(ArgumentError, what="['1.weight']", remedy="tied to '0.weight'"):
        load_variables(module, {"params": params})


def test_a_tensor_that_is_a_parameter_and_a_buffer():
    module = Wrapped()
    module.register_buffer("same", module.l.bias)
    apply, variables = module2jax(module, train=True, mutable=True)
    output, buffers = apply(variables, X)
    np.testing.assert_allclose(output, module(torch.ones(2, 4)).detach(), rtol=1e-6)
    np.testing.assert_array_equal(buffers["same"], module.l.bias.detach())


def test_a_buffer_of_two_submodules_is_one():
    # One of them trains, so that the buffer of a call is a copy: the same copy in both.
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Module()
            self.register_buffer("count", torch.zeros(()))
            self.inner.register_buffer("again", self.count)

        def forward(self, t):
            self.count += 1
            return t + self.inner.again

    module = Shared().eval()
    module.inner.train()
    apply, variables = module2jax(module, mutable=True)
    output, buffers = apply(variables, X)
    assert output.tolist() == (X + 1).tolist()
    assert {name: float(value) for name, value in buffers.items()} == {"count": 1}


# --- numbers -------------------------------------------------------------------------------------------------------


class Scalars(nn.Module):
    DTYPES = {"a": torch.float32, "h": torch.bfloat16, "n": torch.int64, "on": torch.bool, "c": torch.complex64}

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(2.0))
        for name, dtype in list(self.DTYPES.items())[1:]:
            self.register_buffer(name, torch.ones((), dtype=dtype))

    def forward(self, t):
        assert {name: getattr(self, name).dtype for name in self.DTYPES} == self.DTYPES
        return t * self.a + self.h.float() + self.n * self.on + self.c.real


NUMBERS = {"params": {"a": 0.5}, "buffers": {"h": 3.0, "n": 4, "on": True, "c": 5 + 1j}}


def test_numbers_of_every_kind():
    apply, _ = module2jax(Scalars())
    for call in (apply, lambda *a: jax.jit(lambda t: apply(NUMBERS, t))(a[1])):
        np.testing.assert_array_equal(call(NUMBERS, X), np.full((2, 4), 12.5))
    np.testing.assert_array_equal(apply({**NUMBERS, "params": {"a": 1}}, X), np.full((2, 4), 13))


def test_numbers_that_arrive_as_tracers():
    apply, variables = module2jax(Scalars())
    for a in (1, 1.0, np.float32(1)):
        mixed = {"params": {"a": a}, "buffers": {**variables["buffers"], "n": 4}}
        np.testing.assert_array_equal(jax.jit(apply)(mixed, X), np.full((2, 4), 7))


@pytest.mark.parametrize(
    ("part", "name", "number"), [("params", "a", 1j), ("buffers", "n", 0.5), ("buffers", "on", 1)], ids=str
)
def test_numbers_that_a_variable_cannot_hold(part, name, number):
    apply, _ = module2jax(Scalars())
    wrong = {**NUMBERS, part: {**NUMBERS[part], name: number}}
    with raises(ArgumentError, what=f"['{part}']['{name}']", got=type(number).__name__):
        apply(wrong, X)
    with pytest.raises(ArgumentError, match=rf"\['{name}'\]"):
        load_variables(Scalars(), wrong)


def test_a_counter_that_begins_at_a_number():
    module = nn.BatchNorm1d(4)
    apply, variables = module2jax(module, train=True, mutable=True)
    variables["buffers"]["num_batches_tracked"] = 41
    _, buffers = apply(variables, X)
    assert int(buffers["num_batches_tracked"]) == 42
    assert buffers["num_batches_tracked"].dtype == jnp.int32


def test_numbers_are_loaded():
    module = Scalars()
    load_variables(module, NUMBERS)
    assert (module.a.item(), module.h.item(), module.n.item()) == (0.5, 3.0, 4)
    assert (module.on.item(), module.c.item()) == (True, 5 + 1j)
    double = nn.ParameterList([torch.zeros((), dtype=torch.float64)])
    load_variables(double, {"params": {"0": 1 / 3}})
    assert double[0].item() == 1 / 3


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_copied", [False, True])
def test_whether_variables_share_the_modules_memory(is_copied):
    module = nn.Linear(64, 64)
    _, variables = module2jax(module, copy=is_copied)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
    np.testing.assert_array_equal(variables["params"]["weight"], before if is_copied else before + 1)


def test_copies_outlive_the_module():
    module = nn.Linear(64, 64)
    expected = module.weight.detach().clone().numpy()
    _, variables = module2jax(module, copy=True)
    del module
    filler = [torch.zeros(64, 64) for _ in range(8)]
    np.testing.assert_array_equal(variables["params"]["weight"], expected)
    assert len(filler) == 8


# --- what cannot be wrapped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"train": "yes"}, {"train": 1}, {"mutable": 2}, {"mutable": None}, {"copy": "no"}], ids=str
)
def test_options_of_a_wrong_kind(options):
    (name,) = options
    with pytest.raises(ArgumentError, match=rf"`{name}`(.|\n)*True or False"):
        module2jax(MODULE, **options)


@pytest.mark.parametrize("function", [module2jax, lambda m: load_variables(m, {})], ids=["module2jax", "load"])
def test_a_module_without_data(function):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with raises(ArgumentError, what=("'1.weight'", "meta device"), remedy=("to_empty", "load_state_dict")):
        function(module)


@pytest.mark.parametrize("make", [lambda: nn.LazyLinear(3), nn.LazyBatchNorm1d], ids=["parameter", "buffer"])
def test_a_module_that_is_not_initialised(make):
    module = nn.Sequential(make())
    with raises(ArgumentError, what=("Sequential", "not initialised"), remedy="Call the module"):
        module2jax(module)
    module(torch.ones(2, 4))
    apply, variables = module2jax(module.eval())
    assert apply(variables, X).shape[0] == 2


def test_a_parameter_that_jax_cannot_hold_is_named():
    module = nn.Module()
    module.register_buffer("sparse", torch.eye(2).to_sparse())
    with pytest.raises(ArgumentError) as error:
        module2jax(module)
    assert "'sparse'" in "".join(error.value.__notes__)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_dtype_of_another_kind(transform, dtype):
    wrong = {**VARIABLES, "params": {**PARAMS, "l.bias": jnp.ones(3, dtype)}}
    with raises(ArgumentError, what=("['l.bias']", "dtype"), expected="torch.float32", remedy="astype"):
        transform(APPLY)(wrong, X)


def test_a_width_is_the_users_choice_and_named_where_it_does_not_go():
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), VARIABLES)
    assert APPLY(half, X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    mixed = {**VARIABLES, "params": {**PARAMS, "l.bias": jnp.ones(3, jnp.float16)}}
    with pytest.raises(RuntimeError, match="dtype") as error:
        APPLY(mixed, X)
    assert "args[0]['params']['l.bias']: f16[3]" in "".join(error.value.__notes__)


def test_a_missing_variable_is_told_with_how_many_there_are():
    with raises(ArgumentError, what=("['l.bias']`", "missing"), got="1 of 2 params"):
        APPLY({**VARIABLES, "params": {"l.weight": PARAMS["l.weight"]}}, X)


def test_a_class_is_no_module():
    with pytest.raises(ArgumentError, match=r"`module2jax\(Linear\(...\)\)`"):
        module2jax(nn.Linear)
    with pytest.raises(ArgumentError, match=r"`torch2jax\(Linear\(...\)\)`"):
        torch2jax(nn.Linear)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_variables_on_other_devices_than_the_argument():
    there, here = jax.devices()[1], jax.devices()[0]
    with pytest.raises(ShardingError, match=r"args\[0\]\['buffers'\](.|\n)*devices \[1\](.|\n)*args\[1\]"):
        APPLY(jax.device_put({"params": PARAMS, "buffers": BUFFERS}, there), jax.device_put(X, here))
