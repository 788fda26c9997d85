"""What a module writes into itself during a call is gone after it: no call sees what another has left."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.utils.parametrize as parametrize
from t2j_core import OutputError, module2jax
from torch import nn

X = jnp.arange(3.0)
T = torch.arange(3.0)


class Scaled(nn.Module):
    """A module with one parameter, and with whatever a test puts into `held`."""

    def __init__(self, held=None, forward=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.held = held
        self.do = forward

    def forward(self, t):
        return self.do(self, t * self.scale)


def assert_every_call_is_the_first(make, calls=4):
    """Each call gives what a new module of torch gives at its first call, with other variables too."""
    module = make()
    apply, variables = module2jax(module)
    buffers = variables["buffers"]
    jitted = jax.jit(apply)
    for number in range(calls):
        factor = number % 2 * 9 + 1
        expected = make()
        with torch.no_grad():
            expected.scale.mul_(factor)
            expected = expected(T)
        params = {**variables["params"], "scale": jnp.full(3, float(factor))}
        for call in (apply, jitted):
            got = call({"params": params, "buffers": buffers}, X)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.detach()), got, expected)


class Attributes(list):
    """A list with attributes beside its elements."""


class ReadOnly(dict):
    def __setitem__(self, key, value):
        raise TypeError("this goes through `dict`")


CONTAINERS = {
    "list": (list, lambda c, t: c.append(t), sum),
    "full list": (lambda: [torch.ones(3)], lambda c, t: c.append(t), sum),
    "changed list": (lambda: [torch.ones(3)], lambda c, t: c.__setitem__(0, c[0] + t), sum),
    "shortened list": (lambda: [1.0, 2.0], lambda c, t: (c.pop(0), c.append(t)), sum),
    "dict": (dict, lambda c, t: c.setdefault("k", t), lambda c: c["k"]),
    "dict with a tensor": (lambda: {"k": torch.ones(3)}, lambda c, t: c.update(k=c["k"] + t), lambda c: c["k"]),
    "emptied dict": (lambda: {"k": 2.0}, lambda c, t: c.update(j=t * c.pop("k")), lambda c: c["j"]),
    "OrderedDict": (lambda: collections.OrderedDict(a=1.0), lambda c, t: c.update(k=t), lambda c: sum(c.values())),
    "defaultdict": (lambda: collections.defaultdict(list), lambda c, t: c["k"].append(t), lambda c: sum(c["k"])),
    "Counter": (lambda: collections.Counter(n=1), lambda c, t: c.update(n=2, t=t), lambda c: c["t"] * c["n"]),
    "subclass of dict": (lambda: ReadOnly(), lambda c, t: dict.__setitem__(c, "k", t), lambda c: c["k"]),
    "deque": (lambda: collections.deque(maxlen=2), lambda c, t: c.append(t), sum),
    "set": (lambda: set(), lambda c, t: c.add(t), sum),
    "full set": (lambda: {2.0}, lambda c, t: c.add(t), sum),
    "nested": (
        lambda: ({"a": [{}]},),
        lambda c, t: c[0]["a"][0].setdefault("k", []).append(t),
        lambda c: c[0]["a"][0]["k"][0],
    ),
    "object": (lambda: types.SimpleNamespace(k=0.0), lambda c, t: setattr(c, "k", c.k + t), lambda c: c.k),
    "list of an object": (lambda: types.SimpleNamespace(l=[]), lambda c, t: c.l.append(t), lambda c: sum(c.l)),
    "UserDict": (lambda: collections.UserDict(), lambda c, t: c.setdefault("k", t), lambda c: c["k"]),
    "attributes of a list": (lambda: Attributes(), lambda c, t: setattr(c, "k", getattr(c, "k", 0) + t), lambda c: c.k),
    "partial": (lambda: functools.partial(sum, []), lambda c, t: c.args[0].append(t), lambda c: c()),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name):
    make, write, read = CONTAINERS[name]

    def forward(module, t):
        write(module.held, t)
        return read(module.held)

    assert_every_call_is_the_first(lambda: Scaled(make(), forward))


def test_identities_of_containers_stay():
    def forward(module, t):
        first, second = module.held
        first.append(t)
        module.held = ([], [])
        return sum(second)

    def make():
        shared = []
        return Scaled((shared, shared), forward)

    assert_every_call_is_the_first(make)


def test_a_cache_of_attention_biases():
    # As LeViT of timm does in evaluation mode: by device, and empty at first.
    def forward(module, t):
        key = str(t.device)
        if key not in module.held:
            module.held[key] = module.scale[torch.tensor([2, 1, 0])]
        return t + module.held[key]

    assert_every_call_is_the_first(lambda: Scaled({}, forward).eval())


@pytest.mark.parametrize("grad", [True, False])
def test_a_cache_that_is_full_when_the_module_is_wrapped(grad):
    # Regression: what autograd has computed could not be copied if it was in a container.
    def forward(module, t):
        if not module.held:
            module.held.append(t)
        return module.held[0]

    module = Scaled([], forward)
    with torch.set_grad_enabled(grad):
        module(T + 5)
    apply, variables = module2jax(module)
    for _ in range(2):
        np.testing.assert_array_equal(apply(variables, X), np.arange(3) + 5)


def test_a_lazily_built_table():
    def forward(module, t):
        if module.held is None:
            module.held = module.scale.cumsum(0)
        return t + module.held

    assert_every_call_is_the_first(lambda: Scaled(None, forward))


def test_a_cache_in_a_plain_tensor():
    # Such as that of the keys of attention in code for inference, which is no buffer.
    def forward(module, t):
        module.held[0] += t
        return module.held.sum(0)

    assert_every_call_is_the_first(lambda: Scaled(torch.ones(2, 3), forward))


def test_submodules_parameters_and_buffers_that_are_registered_in_a_call():
    def forward(module, t):
        module.register_buffer("new", t)
        module.register_parameter("more", nn.Parameter(torch.ones(3)))
        module.add_module(f"layer{len(list(module.children()))}", nn.ReLU())
        return module.new + module.more + len(list(module.children())) + len(list(module.parameters()))

    assert_every_call_is_the_first(lambda: Scaled(None, forward))


def test_the_order_of_submodules():
    class Rotating(Scaled):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Tanh(), nn.ReLU())

        def forward(self, t):
            out = self.layers(t * self.scale - 1)
            self.layers._modules["0"] = self.layers._modules.pop("0")
            return out

    assert_every_call_is_the_first(Rotating)


class Layered(Scaled):
    def __init__(self, forward):
        super().__init__(None, forward)
        self.layer = nn.Tanh()


def test_hooks_that_are_registered_in_a_call():
    def forward(module, t):
        module.layer.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
        module.layer.register_forward_hook(lambda _, args, out: out * 2)
        module.layer.register_forward_hook(lambda _, args, kwargs, out: out + 1, with_kwargs=True, always_call=True)
        return module.layer(t) + len(module.layer._forward_hooks)

    assert_every_call_is_the_first(lambda: Layered(forward))


def test_hooks_that_are_registered_once_and_collect_outputs():
    def forward(module, t):
        if module.held is None:
            module.layer.register_forward_hook(lambda _, args, out: module.held.append(out))
        module.held = []
        module.layer(t)
        return tuple(module.held)

    assert_every_call_is_the_first(lambda: Layered(forward))


def test_a_hook_that_a_call_removes():
    class Once(Layered):
        def __init__(self):
            super().__init__(None)
            self.handle = self.layer.register_forward_hook(lambda _, args, out: out * 2)

        def forward(self, t):
            out = self.layer(t * self.scale)
            self.handle.remove()
            return out

    assert_every_call_is_the_first(Once)


def test_an_object_that_only_a_hook_leads_to():
    class Recorder:
        def __init__(self):
            self.outputs = []

        def note(self, module, args, out):
            self.outputs.append(out)

    def forward(module, t):
        module.layer(t)
        (hook,) = module.layer._forward_hooks.values()
        return sum(hook.__self__.outputs)

    def make():
        module = Layered(forward)
        module.layer.register_forward_hook(Recorder().note)
        return module

    assert_every_call_is_the_first(make)


@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")  # it writes into the weight
def test_a_parametrization_that_is_registered_in_a_call():
    class Twice(nn.Module):
        def forward(self, w):
            return 2 * w

    def forward(module, t):
        parametrize.register_parametrization(module.layer, "weight", Twice())
        return module.layer(t)

    def make():
        module = Layered(forward)
        module.layer = nn.Linear(3, 3, bias=False)
        nn.init.ones_(module.layer.weight)
        return module

    assert_every_call_is_the_first(make)


def test_a_module_that_is_hidden_in_a_list():
    def forward(module, t):
        return module.held[0](torch.stack([t, t + 1]))

    assert_every_call_is_the_first(lambda: Scaled([nn.BatchNorm1d(3)], forward))


def test_a_list_that_refers_to_parameters():
    # Regression: it went on referring to parameters without data.
    def make():
        module = Scaled({}, lambda module, t: t * module.held["all"][0] * module.held["one"])
        module.held.update(all=[module.scale], one=module.scale)
        return module

    assert_every_call_is_the_first(make)


class Opaque(tuple):
    """A tuple as that of `e3nn.o3.Irrep`: it holds two values, and refuses to say so."""

    def __len__(self):
        raise NotImplementedError

    def __iter__(self):
        raise NotImplementedError


def test_a_module_that_holds_a_tuple_without_a_length():
    assert_every_call_is_the_first(lambda: Scaled(tuple.__new__(Opaque, (2, 3)), lambda module, t: t * module.held[0]))


@dataclasses.dataclass
class Record:
    tensor: object = None
    tensors: list = dataclasses.field(default_factory=list)


def test_containers_that_are_returned_are_not_emptied():
    def forward(module, t):
        numbers, record = module.held
        numbers.append(t)
        record.tensor = 2 * t
        record.tensors.append(t)
        return {"numbers": numbers, "record": record}

    apply, variables = module2jax(Scaled(([], Record()), forward))
    for call in (apply, jax.jit(apply), apply):
        output = call(variables, X)
        np.testing.assert_array_equal(output["numbers"], X[None])
        np.testing.assert_array_equal(output["record"]["tensor"], 2 * X)
        np.testing.assert_array_equal(output["record"]["tensors"], X[None])


def test_an_output_that_contains_itself_is_refused():
    def forward(module, t):
        output = {"t": t}
        output.update(first=output, second=output, third=[output, output])
        return output

    apply, variables = module2jax(Scaled(None, forward))
    with pytest.raises(OutputError, match="contains itself"):
        apply(variables, X)


def test_a_call_that_raises_leaves_nothing_behind():
    def forward(module, t):
        module.held.append(t)
        module.calls = len(module.held)
        if not t.is_meta and t.sum() < 0:
            raise ArithmeticError
        return t * module.calls

    apply, variables = module2jax(Scaled([], forward), output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            apply(variables, -X)
        np.testing.assert_array_equal(apply(variables, X), X)


def test_every_call_begins_with_the_state_at_wrap_time():
    # Regression: what a second thread ran was copied from the module as it was then.
    inside = threading.Barrier(3, timeout=60)

    def forward(module, t):
        inside.wait()
        return t * module.held[0]

    module = Scaled([2.0], forward)
    apply, _ = module2jax(module)
    module.held[0] = 5.0
    results = []

    def work():  # the torch function itself, because XLA may run one call at a time
        results.append(apply.fn({"params": {"scale": torch.ones(3)}, "buffers": {}}, T))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(torch.stack(results), [2 * X] * 3)


def test_what_a_copy_shares_with_the_module_is_left_alone():
    class Registry:
        def __init__(self):
            self.names = []

        def __deepcopy__(self, memo):
            return self

    registry = Registry()
    apply, variables = module2jax(Scaled(registry, lambda module, t: t))
    registry.names.append("later")
    apply(variables, X)
    assert registry.names == ["later"]


def test_the_module_itself_is_left_alone():
    def forward(module, t):
        module.held.append(t)
        module.register_forward_hook(lambda *_: None)
        return t

    module = Scaled([], forward)
    before = copy.copy(vars(module))
    apply, variables = module2jax(module)
    apply(variables, X)
    assert module.held == []
    assert not module._forward_hooks
    assert vars(module).keys() == before.keys()
