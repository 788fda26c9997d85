"""What a module writes into itself during a call is gone after it: no call sees what another has left."""

from __future__ import annotations

import array
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
from t2j_core import OutputError, T2jError, module2jax
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


@pytest.mark.thinned(2)
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


def test_a_table_in_a_dict_that_is_not_empty():
    def forward(module, t):
        if "table" not in module.held:
            module.held["table"] = module.scale.cumsum(0)
        return t + module.held["table"]

    assert_every_call_is_the_first(lambda: Scaled({"name": "positions"}, forward))


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


@dataclasses.dataclass(slots=True)
class Slotted:
    tensor: object = None
    tensors: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, frozen=True)
class Frozen:
    slotted: Slotted = dataclasses.field(default_factory=Slotted)


class Base:
    __slots__ = ("__private", "later")

    def add(self, tensor):
        self.later = self.__private = getattr(self, "later", 0.0) + tensor
        return self.__private


class Derived(Base):
    __slots__ = ("more",)


SLOTS = {
    "slots": (Derived, lambda held, t: held.add(t)),
    "deleted": (lambda: Slotted(2.0), lambda held, t: (held.tensor * t, delattr(held, "tensor"))[0]),
    "list": (lambda: [Slotted(2.0)], lambda held, t: (held[0].tensors.append(t), sum(held[0].tensors))[1]),
    "frozen": (Frozen, lambda held, t: (held.slotted.tensors.append(t), sum(held.slotted.tensors))[1]),
}


@pytest.mark.parametrize("name", SLOTS)
def test_slots(name):
    make, use = SLOTS[name]
    assert_every_call_is_the_first(lambda: Scaled(make(), lambda module, t: use(module.held, t)))


def test_slots_that_refer_to_parameters():
    def make():
        module = Scaled(Slotted(), lambda module, t: t * module.held.tensor)
        module.held.tensor = module.scale
        return module

    assert_every_call_is_the_first(make)


def test_slots_that_are_returned_are_not_emptied():
    def forward(module, t):
        module.held.tensor = 2 * t
        module.held.tensors.append(t)
        return module.held

    apply, variables = module2jax(Scaled(Slotted(), forward))
    for call in (apply, jax.jit(apply), apply):
        output = call(variables, X)
        np.testing.assert_array_equal(output["tensor"], 2 * X)
        np.testing.assert_array_equal(output["tensors"], X[None])


def count(held, t):
    held[0] += 1
    return t * float(held[0])


MEMORY = {
    "NumPy array": (lambda: np.zeros(1), count),
    "large array": (lambda: np.zeros(100_000), count),
    "strided array": (lambda: np.zeros((4, 4), np.int32).T[1:, ::2], lambda held, t: count(held[0], t)),
    "many arrays": (lambda: [np.zeros(9_000) for _ in range(4)], lambda held, t: count(held[3], t)),
    "array of objects": (lambda: np.array([0.0, None]), lambda held, t: (held.__setitem__(1, t), count(held, t))[1]),
    "reshaped array": (lambda: np.ones(3), lambda held, t: (t * held.ndim, setattr(held, "shape", (3, 1)))[0]),
    "array in a dict": (lambda: {"a": [np.zeros(1)]}, lambda held, t: count(held["a"][0], t)),
    "array in slots": (lambda: Slotted(np.zeros(1)), lambda held, t: count(held.tensor, t)),
    "bytearray": (lambda: bytearray(1), count),
    "growing bytearray": (lambda: bytearray(1), lambda held, t: (held.append(1), t * len(held))[1]),
    "array.array": (lambda: array.array("d", [0.0]), count),
}


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_is_no_tensors(name):
    make, use = MEMORY[name]
    assert_every_call_is_the_first(lambda: Scaled(make(), lambda module, t: use(module.held, t)))


def test_what_shares_memory_with_an_array_is_not_overwritten():
    def forward(module, t):
        module.held += 1
        return t, torch.from_numpy(module.held)

    apply, variables = module2jax(Scaled(np.zeros(3, np.float32), forward))
    for call in (apply, jax.jit(apply), apply):
        np.testing.assert_array_equal(call(variables, X)[1], jnp.ones(3))


def test_arrays_of_the_module_itself_are_left_alone():
    module = Scaled(np.zeros(1), lambda module, t: count(module.held, t))
    apply, variables = module2jax(module)
    apply(variables, X)
    assert module.held == 0


class Cached(Scaled):
    """A module that keeps what it computes of its parameter where all of its class find it."""

    tables: dict = {}  # noqa: RUF012
    nested: dict = {"list": [1.0]}  # noqa: RUF012
    table = None

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def of_size(self, size):
        return self.scale[:size] * 2

    @property
    @functools.cache  # noqa: B019
    def double(self):
        return self.scale * 2


def in_a_class_dict(module, t):
    if id(module) not in module.tables:
        module.tables[id(module)] = module.scale * 2
    return t * module.tables[id(module)]


def in_one_place(module, t):
    return t * Cached.tables.setdefault("table", (module.scale * 2, "fixed"))[0]


def in_a_nested_list(module, t):
    Cached.nested["list"].append(module.scale * 2)
    return t * Cached.nested["list"][1]


def in_an_attribute_of_the_class(module, t):
    if Cached.table is None:
        Cached.table = module.scale * 2
    return t * Cached.table


@pytest.fixture
def fresh_class():
    yield
    Cached.tables.clear()
    Cached.table = None
    Cached.nested["list"][:] = [1.0]


def cached(use, *, needs_data):
    """A module whose outputs are inferred from made-up data, or without data."""
    return Cached(None, lambda module, t: use(module, t if not needs_data or t.sum() < 1e30 else t + 1))


@pytest.mark.parametrize("needs_data", [False, True])
@pytest.mark.parametrize("use", [lambda module, t: t * module.of_size(3), lambda module, t: t * module.double])
def test_caches_over_methods(use, needs_data):
    apply, variables = module2jax(cached(use, needs_data=needs_data))
    for factor in (1.0, 10.0, 1.0):
        for call in (apply, jax.jit(apply)):
            got = call({**variables, "params": {"scale": jnp.full(3, factor)}}, X)
            np.testing.assert_array_equal(got, 2 * factor**2 * X)


@pytest.mark.filterwarnings("ignore:Cached keeps a tensor:t2j_core.T2jWarning")
@pytest.mark.parametrize("use", [in_a_class_dict, in_one_place, in_a_nested_list, in_an_attribute_of_the_class])
def test_caches_of_a_class(use, fresh_class):
    module = cached(use, needs_data=True)
    apply, variables = module2jax(module)
    np.testing.assert_array_equal(jax.jit(apply)(variables, X), 2 * X)  # not of what the outputs were inferred from
    apply, variables = module2jax(cached(use, needs_data=False))
    Cached.tables.clear()
    Cached.table = None
    Cached.nested["list"][:] = [1.0]
    with pytest.raises(T2jError, match="kept while t2j inferred"):
        apply(variables, X)


def test_a_constant_of_a_class_stays(fresh_class):
    def forward(module, t):
        return t * Cached.tables.setdefault("table", torch.arange(3.0))

    apply, variables = module2jax(Cached(None, forward))
    for _ in range(2):
        np.testing.assert_array_equal(apply(variables, X), np.arange(3.0, dtype=np.float32) * X)
    assert Cached.tables["table"].tolist() == [0, 1, 2]


class CachedByItself(Scaled):
    """A module that makes the cache over its method itself: `copy.deepcopy` shares it."""

    def __init__(self, maxsize):
        super().__init__(None, lambda module, t: t * module.table(3) + t * module.table(3))
        method = self._table if maxsize is None else functools.partial(self._table)
        self.table = functools.lru_cache(maxsize=maxsize)(method)

    def _table(self, size):
        self.calls = getattr(self, "calls", 0) + 1
        return self.scale[:size] * self.calls


@pytest.mark.parametrize("maxsize", [None, 1])
def test_a_cache_over_a_method_that_the_module_holds(maxsize):
    assert_every_call_is_the_first(lambda: CachedByItself(maxsize))


def test_a_full_cache_over_a_method_is_a_constant():
    module = CachedByItself(None)
    module.table(3)
    expected = module(T).detach()
    apply, variables = module2jax(module)
    for _ in range(2):
        np.testing.assert_array_equal(apply(variables, X), expected)
    assert module.calls == 1
    assert module.table.cache_info().currsize == 1


def test_what_else_a_class_keeps_stays(fresh_class):
    def forward(module, t):
        Cached.tables["calls"] = Cached.tables.get("calls", 0) + 1
        Cached.tables.pop("popped", None)
        return t * Cached.tables["users"]

    apply, variables = module2jax(Cached(None, forward))
    Cached.tables.update(users=torch.full((3,), 2.0), popped=torch.ones(3))
    for _ in range(2):
        np.testing.assert_array_equal(apply(variables, X), 2 * X)
    assert Cached.tables["calls"] > 1
    assert Cached.tables.keys() == {"users", "calls"}


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
