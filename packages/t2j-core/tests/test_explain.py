"""What a wrapped function says of itself: `repr`, its signature, `explain()`."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import PerformanceWarning, Size, module2jax, torch2jax
from torch.utils._python_dispatch import TorchDispatchMode

LARGE = (1 << 10, 1 << 10)
X = np.ones((3, 2), np.float32)


def softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax of `x`."""
    return torch.softmax(x, dim)


# --- repr ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "torch2jax(softmax)"),
        ({"outputs": "auto", "rng": False}, "torch2jax(softmax)"),
        ({"outputs": "copy", "has_side_effect": True}, "torch2jax(softmax, outputs='copy', has_side_effect=True)"),
        ({"mutable_argnums": 0}, "torch2jax(softmax, mutable_argnums=(0,))"),
        ({"output_shapes": Size(3, 2)}, "torch2jax(softmax, output_shapes=Size(3, 2))"),
        ({"output_shapes": [(3,), {"a": ()}]}, "torch2jax(softmax, output_shapes=[(3,), {'a': ()}])"),
        ({"name": "mine"}, "torch2jax(mine, name='mine')"),
    ],
)
def test_the_repr_has_the_options_that_are_not_defaults(options, text):
    assert repr(torch2jax(softmax, **options)) == text


@pytest.mark.parametrize(
    "example", [jnp.full(3, 7.5), torch.full((3,), 7.5), jax.ShapeDtypeStruct((3,), jnp.float32)], ids=type
)
def test_arrays_in_options_show_as_avals(example):
    f = torch2jax(softmax, output_shapes={"y": example})
    assert repr(f) == "torch2jax(softmax, output_shapes={'y': f32[3]})"


def test_the_repr_of_many_outputs_is_short():
    assert len(repr(torch2jax(softmax, output_shapes=[Size(n) for n in range(1000)]))) < 200


def test_the_repr_of_a_module_has_the_options_of_module2jax_first():
    def shown(**options):
        return repr(module2jax(torch.nn.Linear(3, 2), **options)[0])

    assert shown() == "module2jax(Linear)"
    assert shown(train=False, outputs="copy") == "module2jax(Linear, train=False, outputs='copy')"
    assert shown(train=True, mutable=True, copy=True, rng=True) == (
        "module2jax(Linear, train=True, mutable=True, copy=True, rng=True)"
    )


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_a_copy_of_a_module_has_the_same_repr_and_the_same_modes(copied):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    for options in ({"train": False}, {"train": False, "mutable": True}):
        apply, variables = module2jax(model, **options)
        again = copied(apply)
        assert repr(again) == repr(apply)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, again(variables, X), apply(variables, X)))


# --- signature -----------------------------------------------------------------------------------------------------


def test_the_signature_is_the_functions_own():
    f = torch2jax(softmax)
    assert inspect.signature(f) == inspect.signature(softmax)
    assert inspect.unwrap(f) is softmax
    assert list(inspect.signature(torch2jax(functools.partial(softmax, dim=0))).parameters) == ["x", "dim"]


def test_the_key_comes_first_and_out_is_t2js_own():
    def fill(x, key, *, out=None):
        return torch.add(x, key, out=out)

    assert str(inspect.signature(torch2jax(fill, outputs="out"))) == "(x, key)"
    assert str(inspect.signature(torch2jax(softmax, rng=True))).startswith("(key, /, x:")
    assert list(inspect.signature(torch2jax(fill, rng=True)).parameters) == ["key_", "x", "key", "out"]


def test_a_module_takes_variables_first():
    apply, _ = module2jax(torch.nn.Bilinear(2, 3, 4))
    assert list(inspect.signature(apply).parameters) == ["variables", "input1", "input2"]
    assert list(inspect.signature(module2jax(torch.nn.ReLU(), rng=True)[0]).parameters) == ["key", "variables", "input"]
    assert list(inspect.signature(torch2jax(torch.nn.Bilinear(2, 3, 4))).parameters) == ["input1", "input2"]


def test_what_has_no_signature_can_be_wrapped():
    class Odd:
        @property
        def __signature__(self):
            raise RuntimeError("ask somebody else")

        def __call__(self, x):
            return x + 1

    for fn in (torch.sin, Odd()):
        f = torch2jax(fn)
        assert f(jnp.ones(3)).shape == (3,)
        assert list(inspect.signature(f).parameters) == ["args", "kwargs"]


def test_jax_finds_arguments_by_their_names():
    f = torch2jax(lambda x, flag: x * 2 if flag else x)
    assert float(jax.jit(f, static_argnames="flag")(jnp.ones(()), True)) == 2.0
    donated = jax.jit(f, donate_argnames="x", static_argnums=1).lower(jnp.ones(3), True)
    assert [info.donated for info in jax.tree.leaves(donated.args_info)] == [True]


# --- explain -------------------------------------------------------------------------------------------------------


def lines(f) -> list[str]:
    """The text of `explain()`, in which long lines go on in the next one, further to the right."""
    unwrapped = re.sub(r"\n {4,}", " ", f.explain())
    return [line.strip() for line in unwrapped.splitlines()]


def test_before_the_first_call():
    assert torch2jax(softmax).explain() == "softmax was not called yet."


def test_examples_count_as_a_signature():
    assert lines(torch2jax(softmax, torch.ones(3)))[0] == "softmax(f32[3]) -> (f32[3])"


def test_every_signature_is_explained_with_its_constants():
    f = torch2jax(lambda x, mode, *, scale=1: x * scale)
    f(jnp.ones(3), "full")
    f(jnp.ones(3), "full")
    jax.jit(lambda x: f(x, None, scale=2.5))(jnp.ones((2, 4)))
    assert f.explain().count("->") == 2
    assert "<lambda>(f32[2,4]) -> (f32[2,4])" in lines(f)
    assert "constants: args[1]='full'" in lines(f)
    assert "constants: kwargs['scale']=2.5" in lines(f)


def test_how_the_outputs_became_known():
    def by_value(x):
        return x + 1 if x.sum() > 0 else x

    f, g, h = torch2jax(softmax), torch2jax(softmax, output_shapes=Size(3)), torch2jax(by_value)
    for call in (f, g, h):
        call(jnp.ones(3))
    assert "outputs: inferred by a run without data" in lines(f)
    assert "outputs: declared by `output_shapes`" in lines(g)
    (found,) = [line for line in lines(h) if line.startswith("outputs")]
    assert re.fullmatch(r"outputs: inferred by runs on made-up data \(\w+(Error|Exception): .+\)", found)


def test_how_arguments_are_handed_over():
    def write(a, b, i):
        b += a
        return b, i

    examples = torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.int64)
    f = torch2jax(write, *examples, mutable_argnums=1)
    f(jnp.ones(2), jnp.ones(2), jnp.ones(2, jnp.int32))
    assert "args[0]: lent, not copied" in lines(f)
    assert "args[1]: written in place, and returned as output[0]" in lines(f)
    assert "args[2]: converted to torch.int64 at every call" in lines(f)
    assert "output[0]: in the memory of args[1], where the caller donates it" in lines(f)
    g = torch2jax(write)
    with pytest.warns(PerformanceWarning):
        g(jnp.ones(2), jnp.ones(2), jnp.ones(2))
    assert "args[1]: copied at every call, because the function writes into it" in lines(g)


@pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "ignore_compile_internals"),
    reason="torch before 2.10 cannot compile under a dispatch mode, so results are copied once that is loaded",
)
def test_how_results_are_written():
    x = jnp.ones(LARGE)
    f = torch2jax(lambda x: (torch.relu(x), x[0] + 1, x[:, :] * 1 == 1, x.T.contiguous().T))
    jax.make_jaxpr(f)(x)
    assert "output[0], output[1], output[2], output[3]: copied, or written in place" in f.explain()
    f(x)
    assert "output[0]: written in place by aten.relu" in lines(f)
    assert "output[1]: copied (below 1,048,576 bytes)" in lines(f)
    assert "output[2]: written in place by aten.eq.Scalar" in lines(f)
    (last,) = [line for line in lines(f) if line.startswith("output[3]")]
    assert last.startswith("output[3]: copied (")
    copied, out = (
        torch2jax(torch.relu, outputs="copy"),
        torch2jax(lambda x, out: torch.add(x, 1, out=out), outputs="out"),
    )
    copied(x)
    out(x)
    assert 'output: copied (`outputs="copy"`)' in lines(copied)
    assert "output: written in place by the function, which takes `out=`" in lines(out)


def test_a_function_of_many_leaves_is_explained_in_few_lines():
    f = torch2jax(lambda tree: sum(tree))
    f([jnp.ones(3)] * 100)
    assert lines(f)[0] == "<lambda>(100 arrays) -> (f32[3])"
    assert "args[0] (100 arrays, 300 values, 1.2 kB): lent, not copied" in lines(f)
    assert len(f.explain()) < 500


def test_the_variables_of_a_module_are_summed_up():
    model = torch.nn.Sequential(*(torch.nn.Linear(10, 10) for _ in range(3)), torch.nn.BatchNorm1d(10))
    apply, variables = module2jax(model, train=False)
    apply(variables, input=jnp.ones((2, 10)))
    size = sum(p.numel() for p in model.parameters())
    assert lines(apply)[0] == "Sequential(11 arrays, input=f32[2,10]) -> (f32[2,10])"
    assert f"args[0]['params'] (8 arrays, {size} values, {4 * size / 1000:.1f} kB): lent, not copied" in lines(apply)
    assert "args[0]['buffers'] (3 arrays, 21 values, 84 bytes): lent, not copied" in lines(apply)
    assert "kwargs['input']: lent, not copied" in lines(apply)


def test_those_of_a_sum_that_differ_are_named():
    f = torch2jax(lambda tree: (tree["w"][2].add_(1), sum(tree["w"]))[1])
    with pytest.warns(PerformanceWarning, match="in place"):
        f({"w": [jnp.ones(2)] * 9, "b": jnp.ones(2)})
    assert "args[0]['w'][2]: copied at every call, because the function writes into it" in lines(f)
    assert "args[0]['w'] (8 arrays, 16 values, 64 bytes): lent, not copied" in lines(f)
    assert "args[0]['b']: lent, not copied" in lines(f)


def test_odd_keys_are_no_hindrance():
    f = torch2jax(lambda tree: sum(tree.values()))
    f({"a]b": jnp.ones(2), "it's": jnp.ones(2), '"': jnp.ones(2), "c[0]": jnp.ones(2), "": jnp.ones(2)})
    assert "args[0] (5 arrays, 10 values, 40 bytes): lent, not copied" in lines(f)


def test_no_line_is_wider_than_a_terminal():
    numbers = {f"a_number_with_a_name_{i}": i for i in range(8)}
    f = torch2jax(lambda x, **numbers: x)
    f(jnp.ones(3), **numbers)
    assert max(map(len, f.explain().splitlines())) <= 100
    assert "constants: " + ", ".join(f"kwargs['{name}']={i}" for name, i in numbers.items()) in lines(f)


def test_no_array_is_shown():
    def where(x, y):
        return {"found": torch.where(x > 0, x, y)}

    f = torch2jax(where, output_shapes={"found": jnp.full(3, 271828.0)})
    f(jnp.full(3, 314159.0), torch.full((3,), 161803.0))
    for text in (repr(f), f.explain()):
        assert not any(digits in text for digits in ("314159", "161803", "271828"))
