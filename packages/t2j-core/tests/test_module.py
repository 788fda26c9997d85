"""`module2jax`, judged by the module itself."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from common import agree, raises
from t2j_core import ArgumentError, load_variables, module2jax, torch2jax
from torch import nn


def x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def reference(module, *args, train=False):
    """The module's output, from a copy."""
    module = copy.deepcopy(module).train(train)
    with torch.no_grad():
        return module(*(torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a for a in args))


def assert_close(got, expected, rtol=1e-5, atol=1e-6):
    agree(got, expected, rtol, atol)


def prune(module):
    return torch.nn.utils.prune.l1_unstructured(module, "weight", 0.5)


def snapshot(module):
    """All that a call could change: values, places in memory, modes."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    places = {name: value.data_ptr() for name, value in module.state_dict().items()}
    grads = {name: (p.requires_grad, p.grad) for name, p in module.named_parameters()}
    return state, places, grads, {name: m.training for name, m in module.named_modules()}


def assert_untouched(module, before):
    state, places, grads, modes = snapshot(module)
    assert places == before[1]
    assert grads == before[2]
    assert modes == before[3]
    for name, value in state.items():
        assert torch.equal(value, before[0][name]), name


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, t):
        return self.inner(t, t, t, need_weights=True)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens)))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)])
        self.table = nn.ModuleDict({"out": nn.Linear(6, 2)})
        self.scale = nn.ParameterDict({"a": nn.Parameter(torch.full((6,), 1.5))})
        self.extra = nn.ParameterList([nn.Parameter(torch.ones(6))])
        self.register_buffer("offset", torch.full((6,), 0.25))
        self.register_buffer("nothing", None)

    def forward(self, t):
        for block in self.blocks:
            t = t + block(t) * self.scale["a"] + self.offset + self.extra[0]
        return {"out": self.table["out"](t), "hidden": t}


MODULES = {
    "linear": (nn.Linear(6, 3), (4, 6)),
    "no bias": (nn.Linear(6, 3, bias=False), (4, 6)),
    "mlp": (nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2)), (4, 6)),
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), (2, 3, 8, 8)),
    "batch norm": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
    "group norm": (nn.GroupNorm(2, 4), (2, 4, 5)),
    "lstm": (nn.LSTM(6, 5, num_layers=2, batch_first=True), (2, 7, 6)),
    "gru": (nn.GRU(6, 5, bidirectional=True), (7, 2, 6)),
    "rnn": (nn.RNN(6, 5), (7, 2, 6)),
    "gru cell": (nn.GRUCell(6, 5), (2, 6)),
    "lstm cell": (nn.LSTMCell(6, 5), (2, 6)),
    "attention": (Attention(), (2, 5, 8)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
    "encoder": (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False), (5, 2, 8)),
    "nested": (Nested(), (3, 6)),
    "spectral norm": (nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)), (4, 6)),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), (4, 6)),
    "identity": (nn.Identity(), (4, 6)),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_gives_the_same_numbers(name):
    module, shape = MODULES[name]
    module.eval()
    before = snapshot(module)
    apply, variables = module2jax(module)
    expected = reference(module, x(*shape))
    for call in (apply, jax.jit(apply), apply):
        assert_close(call(variables, jnp.asarray(x(*shape))), expected)
    assert_untouched(module, before)


@pytest.mark.parametrize("name", MODULES)
def test_the_variables_are_the_modules(name):
    module, _ = MODULES[name]
    _, variables = module2jax(module)
    assert set(variables) == {"params", "buffers"}
    assert list(variables["params"]) == [name for name, _ in module.named_parameters()]
    assert set(variables["buffers"]) == {name for name, _ in module.named_buffers()}
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(np.asarray(variables["params"][name]), parameter.detach().numpy())


def test_the_variables_share_the_modules_memory():
    module = nn.Linear(64, 64)
    _, variables = module2jax(module)
    assert variables["params"]["weight"].unsafe_buffer_pointer() == module.weight.data_ptr()


def test_other_variables_give_other_numbers():
    module = nn.Linear(6, 3)
    apply, variables = module2jax(module)
    doubled = jax.tree.map(lambda v: v * 2, variables)
    a, b = apply(variables, jnp.asarray(x(4, 6))), jax.jit(apply)(doubled, jnp.asarray(x(4, 6)))
    np.testing.assert_allclose(np.asarray(b), 2 * np.asarray(a), rtol=1e-6)


def test_variables_in_another_dtype_are_used_in_that_dtype():
    apply, variables = module2jax(nn.Linear(6, 3))
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables)
    out = apply(half, jnp.asarray(x(4, 6)).astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16


# --- train, eval, buffers ------------------------------------------------------------------------------------------


def batch_norm():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("train", [True, False, None])
def test_the_mode_of_the_call(mode, train):
    module = batch_norm().train(mode)
    before = snapshot(module)
    apply, variables = module2jax(module, train=train)
    expected = reference(module, x(8, 6), train=mode if train is None else train)
    assert_close(jax.jit(apply)(variables, jnp.asarray(x(8, 6))), expected)
    assert_untouched(module, before)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_submodule_may_be_in_another_mode(frozen):
    # Regression: the mode of the outermost module was imposed on all, so a frozen BatchNorm went on training.
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train()
    module[frozen].eval()
    apply, variables = module2jax(module, mutable=True)
    twin = copy.deepcopy(module)
    for step in range(2):
        output, buffers = apply(variables, jnp.asarray(x(8, 3) + np.float32(step)))
        variables = {**variables, "buffers": buffers}
        with torch.no_grad():
            assert_close(output, twin(torch.from_numpy(x(8, 3) + np.float32(step))))
        assert_close(buffers, dict(sorted(twin.named_buffers())))


def test_a_submodule_that_trains_inside_a_module_that_does_not():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    module[1].train()
    apply, variables = module2jax(module, mutable=True)
    output, buffers = apply(variables, jnp.asarray(x(8, 3)))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        assert_close(output, twin(torch.from_numpy(x(8, 3))))
    assert_close(buffers, dict(sorted(twin.named_buffers())))
    assert int(variables["buffers"]["1.num_batches_tracked"]) == 0


def test_running_statistics_come_back_if_mutable():
    module = batch_norm()
    before = snapshot(module)
    apply, variables = module2jax(module, train=True, mutable=True)
    step = jax.jit(apply)
    twin = copy.deepcopy(module).train()
    for i in range(3):
        batch = x(8, 6) + np.float32(i)
        output, buffers = step(variables, jnp.asarray(batch))
        variables = {"params": variables["params"], "buffers": buffers}
        with torch.no_grad():
            assert_close(output, twin(torch.from_numpy(batch)))
        assert_close(buffers, dict(sorted(twin.named_buffers())))
    assert int(buffers["1.num_batches_tracked"]) == 3
    assert buffers["1.num_batches_tracked"].dtype == jnp.int32
    assert_untouched(module, before)


def test_changes_of_buffers_are_dropped_if_not_mutable():
    apply, variables = module2jax(batch_norm(), train=True)
    before = jax.tree.map(np.array, variables)
    for _ in range(2):
        apply(variables, jnp.asarray(x(8, 6)))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, variables), before)


class Counter(nn.Module):
    """Writes into one buffer, replaces another, reads a third: in evaluation mode, too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(3))
        self.register_buffer("offset", torch.ones(3), persistent=False)

    def forward(self, t):
        self.calls += 1
        self.last = t * 2
        return t + self.offset + self.calls


@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")
@pytest.mark.parametrize("train", [True, False])
def test_buffers_that_a_module_writes_and_replaces(train):
    module = Counter()
    before = snapshot(module)
    apply, variables = module2jax(module, train=train, mutable=True)
    for i in range(1, 4):
        out, buffers = jax.jit(apply)(variables, jnp.ones(3))
        assert np.asarray(out).tolist() == [2 + i] * 3
        assert int(buffers["calls"]) == i
        assert np.asarray(buffers["last"]).tolist() == [2, 2, 2]
        variables = {"params": {}, "buffers": buffers}
    assert_untouched(module, before)


class Pair(NamedTuple):
    weight: Any
    factor: float


class InTuples(nn.Module):
    """Refers to its variables through tuples."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.arange(3.0)), nn.Parameter(torch.ones(3))
        self.register_buffer("c", torch.full((3,), 2.0))
        self.both = self.a, (self.b, 3)
        self.pairs = {"named": Pair(self.a, 0.5), "in a list": [(self.c,), (1, 2)]}

    def forward(self, t):
        (a, (b, n)), pair = self.both, self.pairs["named"]
        return t * a + b * n + pair.weight * pair.factor + self.pairs["in a list"][0][0]


def test_variables_in_tuples():
    module = InTuples()
    before = snapshot(module)
    apply, variables = module2jax(module)
    assert_close(apply(variables, x(3)), reference(module, x(3)))
    twice = jax.tree.map(lambda v: 2 * v, variables)
    doubled = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in (doubled.a, doubled.b, doubled.c):
            tensor.mul_(2)
    for run in (apply, jax.jit(apply)):
        assert_close(run(twice, x(3)), reference(doubled, x(3)))
    assert_untouched(module, before)


class Removes(nn.Module):
    """Leaves no buffer at its place."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.arange(3.0))
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, t):
        t = t * self.scale
        if self.how == "deletes":
            del self.scale
            return t
        self.scale = self.weight if self.how == "puts a parameter there" else None
        return t if self.scale is None else t + self.scale


@pytest.mark.parametrize("how", ["deletes", "puts a parameter there", "puts nothing there"])
def test_a_buffer_that_a_module_removes_keeps_its_value(how):
    module = Removes(how)
    expected = reference(module, x(3))
    for mutable in (False, True):
        apply, variables = module2jax(module, mutable=mutable)
        for _ in range(2):
            out = apply(variables, x(3))
            assert_close(out[0] if mutable else out, expected)
        if mutable:
            assert out[1]["scale"].tolist() == [2, 2, 2]


def test_integer_buffers_are_64_bits_wide_inside():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("index", torch.tensor([2, 0, 1]))

        def forward(self, t):
            assert self.index.dtype == torch.int64
            return t[self.index]

    apply, variables = module2jax(Lookup())
    assert variables["buffers"]["index"].dtype == jnp.int32
    assert np.asarray(jax.jit(apply)(variables, jnp.arange(3.0))).tolist() == [2, 0, 1]


# --- tied parameters -----------------------------------------------------------------------------------------------


def test_tied_parameters_stay_tied():
    module = Tied()
    apply, variables = module2jax(module)
    assert "embed.weight" in variables["params"]
    assert "head.weight" not in variables["params"]
    tokens = np.array([[1, 2, 3], [4, 5, 10]])
    assert_close(apply(variables, jnp.asarray(tokens)), reference(module, tokens))
    zeroed = {**variables, "params": {**variables["params"], "embed.weight": jnp.zeros((11, 8))}}
    assert not np.asarray(jax.jit(apply)(zeroed, jnp.asarray(tokens))).any()


def test_a_shared_submodule():
    shared = nn.Linear(4, 4)
    module = nn.Sequential(shared, nn.ReLU(), shared)
    apply, variables = module2jax(module)
    assert list(variables["params"]) == ["0.weight", "0.bias"]
    assert_close(apply(variables, jnp.asarray(x(3, 4))), reference(module, x(3, 4)))


# --- calls ---------------------------------------------------------------------------------------------------------


def test_keyword_arguments_masks_and_constants():
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    apply, variables = module2jax(module)
    mask = np.triu(np.ones((5, 5), bool), 1)
    with torch.no_grad():
        expected = module(torch.from_numpy(x(2, 5, 8)), src_mask=torch.from_numpy(mask), is_causal=True)
    got = jax.jit(lambda v, t, m: apply(v, t, src_mask=m, is_causal=True))(variables, jnp.asarray(x(2, 5, 8)), mask)
    assert_close(got, expected)


def test_an_argument_named_like_one_of_ours():
    class Named(nn.Module):
        def forward(self, t, variables, module=2):
            return t * variables * module

    apply, variables = module2jax(Named())
    assert np.asarray(apply(variables, jnp.ones(2), variables=jnp.full(2, 3.0))).tolist() == [6, 6]


def test_initial_states_of_a_recurrent_module():
    module = nn.LSTM(6, 5)
    apply, variables = module2jax(module)
    state = (x(1, 2, 5), x(1, 2, 5) * 2)
    with torch.no_grad():
        expected = module(torch.from_numpy(x(7, 2, 6)), tuple(map(torch.from_numpy, state)))
    assert_close(jax.jit(apply)(variables, jnp.asarray(x(7, 2, 6)), tuple(map(jnp.asarray, state))), expected)


def test_options_are_those_of_torch2jax():
    apply, variables = module2jax(nn.Linear(6, 3), name="layer", outputs="copy")
    assert apply.__name__ == "layer"
    assert apply(variables, jnp.asarray(x(4, 6))).shape == (4, 3)
    assert module2jax(nn.Linear(6, 3))[0].__name__ == "Linear"


def test_submodules_may_be_wrapped_by_themselves():
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    (first, v1), (second, v2) = module2jax(module[0]), module2jax(module[1])
    assert_close(second(v2, first(v1, jnp.asarray(x(4, 6)))), reference(module, x(4, 6)))


def test_hooks_of_the_module_run():
    module = nn.Linear(6, 3)
    module.register_forward_hook(lambda m, args, out: out * 2)
    apply, variables = module2jax(module)
    assert_close(apply(variables, jnp.asarray(x(4, 6))), reference(module, x(4, 6)))


def test_a_module_that_fails_leaves_the_skeleton_usable():
    class Picky(nn.Linear):
        def forward(self, t):
            if not t.is_meta and t.sum() < 0:
                raise ArithmeticError("negative")
            return super().forward(t)

    module = Picky(6, 3)
    apply, variables = module2jax(module, output_shapes=jnp.zeros((4, 3)))
    with pytest.raises(ArithmeticError, match="negative"):
        apply(variables, -jnp.ones((4, 6)))
    assert_close(apply(variables, jnp.ones((4, 6))), reference(module, np.ones((4, 6), np.float32)))


def test_two_calls_at_the_same_time():
    both, waits = threading.Barrier(2), []

    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, t):
            if waits:
                both.wait(60)  # until both calls have begun
            return t + self.weight

    apply, _ = module2jax(Waits())
    outputs = {}

    def work(value):
        outputs[value] = apply({"params": {"weight": jnp.full(2, value)}, "buffers": {}}, jnp.ones(2)).tolist()

    work(0.0)  # compiles, for which threads take turns
    waits.append(True)
    threads = [threading.Thread(target=work, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {0.0: [1, 1], 1.0: [2, 2], 2.0: [3, 3]}


def test_several_threads_with_variables_of_their_own():
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.BatchNorm1d(64), nn.Linear(64, 8)).eval()
    apply, variables = module2jax(module)
    apply = jax.jit(apply)
    batch = jnp.asarray(x(16, 64))
    versions = [jax.tree.map(lambda v, i=i: v * (i + 1) if v.dtype == jnp.float32 else v, variables) for i in range(6)]
    expected = [np.asarray(apply(v, batch)) for v in versions]
    barrier, failures, counts = threading.Barrier(6), [], [0] * 6

    def work(i):
        barrier.wait()
        for _ in range(30):
            if not np.array_equal(np.asarray(apply(versions[i], batch)), expected[i]):
                failures.append(i)
            counts[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [30] * 6
    assert failures == []


def test_the_module_may_be_trained_by_torch_meanwhile():
    module = nn.Linear(6, 3)
    apply, variables = module2jax(module)
    compiled = jax.jit(apply)
    compiled(variables, jnp.asarray(x(4, 6)))
    module(torch.from_numpy(x(4, 6))).sum().backward()
    assert module.weight.grad is not None
    assert all(p.requires_grad for p in module.parameters())


# --- and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "batch norm", "lstm", "transformer", "nested"])
def test_trained_values_are_saved_by_the_state_dict(name):
    module, shape = MODULES[name]
    module = copy.deepcopy(module).eval()
    apply, variables = module2jax(module)
    trained = jax.tree.map(lambda v: (v * 1.5 + 0.1).astype(v.dtype) if v.dtype == jnp.float32 else v + 1, variables)
    expected = apply(trained, jnp.asarray(x(*shape)))
    fresh = copy.deepcopy(module)
    load_variables(fresh, trained)
    state = fresh.state_dict()
    for part in trained.values():
        for key, value in part.items():
            np.testing.assert_array_equal(state[key].numpy(), np.asarray(value).astype(state[key].numpy().dtype))
    other = copy.deepcopy(module)
    other.load_state_dict(state)
    assert_close(expected, reference(other, x(*shape)))


def test_loading_goes_into_the_same_parameters():
    module = nn.Linear(2, 2)
    parameter, before = module.weight, module.weight.tolist()
    _, variables = module2jax(module)
    load_variables(module, {"params": {"weight": jnp.full((2, 2), 3.0)}})
    assert module.weight is parameter
    assert module.weight.requires_grad
    assert module.weight.tolist() == [[3, 3], [3, 3]]
    load_variables(module, variables)
    assert module.weight.tolist() == before


def test_loading_into_tied_parameters():
    module = Tied()
    _, variables = module2jax(module)
    load_variables(module, jax.tree.map(lambda v: v * 0 + 2, variables))
    assert module.head.weight is module.embed.weight
    assert module.head.weight.unique().tolist() == [2]


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        (
            {"params": {"bias": jnp.ones(2), "wieght": jnp.ones((2, 2))}},
            dict(what="`variables['params']['wieght']`", got="'wieght'"),
        ),
        (
            {"params": {"bias": jnp.ones(2), "weight": jnp.ones((2, 3))}},
            dict(expected="shape (2, 2)", got="shape (2, 3)"),
        ),
        (
            {"params": {"bias": jnp.ones(2)}, "parameters": {"weight": jnp.ones((2, 2))}},
            dict(what="`variables['parameters']"),
        ),
        (
            {"bias": jnp.ones(2), "weight": jnp.ones((2, 2))},
            dict(what="`variables['bias']`", expected='"params": {', got="shape (2,)"),
        ),
        ({"params": {"bias": jnp.ones(2), "weight": 3.0}}, dict(what="`variables['params']['weight']`")),
        ({"params": {"bias": jnp.ones(2), "weight": None}}, dict(what="`variables['params']['weight']`")),
    ],
    ids=["name", "shape", "part", "params alone", "number", "None"],
)
def test_variables_that_do_not_fit_are_refused_and_nothing_is_written(variables, parts):
    # Regression: with a wrong kind of value the variables before it had been written; a number was an AttributeError.
    module = nn.Linear(2, 2)
    before = snapshot(module)
    with raises(ArgumentError, **parts):
        load_variables(module, variables)
    assert_untouched(module, before)


def test_traced_variables_are_refused_and_nothing_is_written():
    module = nn.Linear(2, 2)
    before = snapshot(module)
    with pytest.raises(ArgumentError, match="traced array"):
        jax.jit(lambda w: load_variables(module, {"params": {"bias": jnp.asarray(np.ones(2)), "weight": w}}))(
            jnp.ones((2, 2))
        )
    assert_untouched(module, before)


def test_numpy_variables_are_loaded_in_full_precision():
    # Regression: they went through JAX, which narrows them while x64 is off.
    module = nn.Linear(2, 2).double()
    load_variables(module, {"params": {"weight": np.full((2, 2), 1 / 3)}})
    assert module.weight.tolist() == [[1 / 3] * 2] * 2


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_call_without_variables_says_so(transform):
    apply, _ = module2jax(nn.Linear(2, 2))
    with raises(ArgumentError, what="argument of Linear", got="shape (1, 2)", remedy="as `module2jax` returned"):
        transform(apply)(jnp.ones((1, 2)))


def test_a_missing_variable_is_named():
    apply, variables = module2jax(nn.Linear(2, 2))
    for broken in ({"params": {"weight": variables["params"]["weight"]}, "buffers": {}}, {"buffers": {}}):
        with pytest.raises((KeyError, ArgumentError), match="bias|params"):
            apply(broken, jnp.ones((1, 2)))


class Noting(nn.Module):
    """A module that keeps what it computes, in all the ways there are."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.calls = 0
        self.register_buffer("seen", None)

    def forward(self, t):
        self.calls += 1
        self.weights = self.linear(t).softmax(-1)
        self.argument = t
        self.seen = t
        self.register_buffer("new", self.weights)
        return self.weights * self.calls


def test_what_a_module_notes_of_a_call_is_gone_after_it():
    # Regression: a stored argument, or the graph behind a stored result, was refused as kept beyond the call.
    module = Noting()
    apply, variables = module2jax(module)
    for _ in range(2):
        for call in (apply, jax.jit(apply)):
            assert_close(call(variables, x(2, 3)), reference(module, x(2, 3)))
    assert module.calls == 0
    assert not hasattr(module, "weights")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("hook", [nn.utils.weight_norm, prune, nn.utils.spectral_norm])
def test_weights_that_a_hook_computes(hook, is_used):
    module = hook(nn.Linear(3, 4)).eval()
    if is_used:
        module(torch.ones(2, 3))
    apply, variables = module2jax(module)
    assert "weight" not in variables["params"]
    for _ in range(2):
        got = jax.jit(apply)(variables, x(2, 3))
        assert_close(got, module(torch.from_numpy(x(2, 3))).detach())


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, in words that differ
@pytest.mark.parametrize("compile_", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2, 3))])
def test_modules_of_torchscript(compile_):
    module = compile_(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval())
    apply, variables = module2jax(module)
    with torch.no_grad():
        assert_close(jax.jit(apply)(variables, x(2, 3)), module(torch.from_numpy(x(2, 3))))
    zeros = jax.tree.map(jnp.zeros_like, variables)
    np.testing.assert_array_equal(apply(zeros, x(2, 3)), np.zeros((2, 4)))


def test_a_call_without_variables_is_told_so():
    apply, _ = module2jax(nn.Linear(3, 2))
    with raises(ArgumentError, what=("argument of Linear", "`apply(variables, *args)`")):
        apply(x(1, 3))


@pytest.mark.parametrize("thing", [lambda t: t, nn.Linear, "model", None], ids=["function", "class", "text", "None"])
def test_something_that_is_no_module(thing):
    with raises(ArgumentError, what="`module2jax`", expected="torch.nn.Module"):
        module2jax(thing)


def test_a_module_that_cannot_be_copied():
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    with raises(ArgumentError, what=("Linear", "TypeError"), expected="`copy.deepcopy`", remedy="`torch2jax`"):
        module2jax(module)
    assert np.isfinite(np.asarray(torch2jax(module)(jnp.ones((1, 2))))).all()


def test_loading_leaves_the_arrays_of_the_module_as_they_were():
    # Regression: the arrays lie over the module's memory, which was written into.
    layer = torch.nn.Linear(64, 64)
    _, variables = module2jax(layer)
    before = np.array(variables["params"]["weight"])
    new = jax.tree.map(jnp.ones_like, variables)
    load_variables(layer, new)
    np.testing.assert_array_equal(variables["params"]["weight"], before)
    assert layer.weight.detach().eq(1).all()
    with torch.no_grad():
        layer.weight.zero_()
    assert bool((new["params"]["weight"] == 1).all())


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))], ids=["copy", "deepcopy", "pickle"]
)
def test_copies_of_apply(copied):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    apply, variables = module2jax(module, train=False, mutable=True)
    x = jnp.arange(12.0).reshape(4, 3)
    other = copied(apply)
    assert repr(other) == repr(apply)
    jax.tree.map(np.testing.assert_array_equal, other(variables, x), apply(variables, x))
    with pytest.raises(ArgumentError, match="weight"):
        other({"params": {}, "buffers": {}}, x)


def test_a_pickled_apply_holds_no_data_of_variables():
    apply, _ = module2jax(nn.Linear(1000, 1000))
    assert len(pickle.dumps(apply)) < 10_000


def test_what_cannot_be_pickled_is_named():
    module = nn.Linear(1, 1)
    module.rule = lambda x: x
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(module2jax(module)[0])


class Rewriting(nn.Module):
    """A module that treats its parameters as parameters while it runs."""

    def __init__(self, do):
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, 4))
        self.register_buffer("shift", torch.ones(3))
        self.layer = nn.Linear(3, 3)
        self.do = do

    def forward(self, t):
        return self.do(self, t)


def branching(module, t):
    return t * (2 if isinstance(module.scale, nn.Parameter) else 3) + isinstance(module.shift, nn.Parameter)


def tied(module, t):
    return t * sum(isinstance(p, nn.Parameter) for p in (module.layer.weight, *module.layer.parameters()))


def replacing(module, t):
    scale, module.scale = module.scale, nn.Parameter(2 * module.scale.detach())
    try:
        return t * module.scale * scale
    finally:
        module.scale = scale


def replacing_for_good(module, t):
    module.scale = module.layer.bias
    return t * module.scale


def registering(module, t):
    module.register_parameter("further", module.scale)
    module.other = module.layer.bias
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return module.layer(t) * module.further * len(names) * ("other" in names)


def deleting(module, t):
    scale = module.scale
    del module.scale
    module.scale = scale
    return t * module.scale


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("do", [branching, tied, replacing, replacing_for_good, registering, deleting])
def test_parameters_are_parameters_while_the_module_runs(do, jitted):
    module = Rewriting(do)
    kept, names = dict(module.named_parameters()), list(module.state_dict())
    expected = copy.deepcopy(module)(torch.ones(3)).detach()
    apply, variables = module2jax(module)
    for _ in range(2):
        assert_close((jax.jit(apply) if jitted else apply)(variables, x(3) * 0 + 1), expected)
    assert list(module.state_dict()) == names
    assert all(parameter is kept[name] and not vars(parameter) for name, parameter in module.named_parameters())
