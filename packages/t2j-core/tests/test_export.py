"""Programs that leave the process: exported, cached on disk, serialised."""

from __future__ import annotations

import functools
import importlib.util
import pickle
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises, run_python
from jax.experimental import serialize_executable
from t2j_core import ExportError, torch2jax

CUSTOM_CALL = [jax.export.DisabledSafetyCheck.custom_call("t2j_torch_call")]
X = jnp.arange(4.0)

needs_flatbuffers = pytest.mark.skipif(
    not importlib.util.find_spec("flatbuffers"), reason="jax.export needs flatbuffers to serialise"
)


def run(code: str, *arguments: str, **environment: str) -> str:
    """Run code in a fresh interpreter; its standard output."""
    prelude = "import jax, jax.export, jax.numpy as jnp, numpy as np, sys, torch\n"
    prelude += "from t2j_core import torch2jax\nx = jnp.arange(4.0)\n"
    return run_python(prelude + textwrap.dedent(code), *arguments, **environment).stdout.strip()


def export(f, *arguments):
    return jax.export.export(jax.jit(f), disabled_checks=CUSTOM_CALL)(*arguments)


# --- jax.export ----------------------------------------------------------------------------------------------------


def double(t):
    return t * 2


@needs_flatbuffers
def test_exported_programs_in_another_process(tmp_path):
    def function(t, *, scale):
        return {"out": t * scale, "sum": t.sum()}

    f = torch2jax(function, name="exported")
    programs = {
        "exported": export(lambda x: f(x, scale=3.0), X),
        "lost": export(torch2jax(double, name="lost"), X),
        "changed": export(torch2jax(double, name="changed"), X),
    }
    for name, program in programs.items():
        (tmp_path / name).write_bytes(program.serialize())
    out = run(
        """
        def load(name):
            return jax.export.deserialize(open(f"{sys.argv[1]}/{name}", "rb").read())

        calls = []
        def function(t, *, scale):
            calls.append(scale)
            return {"out": t * scale, "sum": t.sum()}
        f = torch2jax(function, name="exported")
        g = torch2jax(lambda t: t[:2], name="changed")
        result = load("exported").call(x)
        print(sorted(result), result["out"].tolist(), float(jax.jit(load("exported").call)(x)["sum"]), set(calls))
        for name in ("lost", "changed"):
            try:
                print(load(name).call(x).block_until_ready())
            except Exception as error:
                print("---", name, type(error).__name__, error)
        """,
        str(tmp_path),
    )
    good, lost, changed = out.split("---")
    assert good.strip() == "['out', 'sum'] [0.0, 3.0, 6.0, 9.0] 6.0 {3.0}"
    assert "'lost', which is not registered in this process" in lost
    assert "lost(f32[4])" in lost
    assert "torch2jax(fn, name='lost')" in lost
    assert "changed returned a wrong output" in changed
    assert "f32[4]" in changed
    assert "f32[2]" in changed


@pytest.mark.parametrize(
    "arguments",
    [
        (X,),
        (X, {"a": [X, (X, None)], "b": {}}),
        (X, 3, 2.5, True, "text", None),
        (X, float("inf"), -0.0, 10**30),
        ([X, {"array": "array", "constant": {"constant": 1}}],),
        ((), [], {}, X),
    ],
    ids=["array", "tree", "constants", "special floats", "look-alikes", "empty"],
)
def test_every_signature_of_plain_containers_makes_the_round_trip(arguments):
    seen = []

    def look(leaf):
        return "tensor" if isinstance(leaf, torch.Tensor) else (type(leaf), repr(leaf))

    def function(*args):
        seen.append(jax.tree.map(look, args))
        return [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, torch.Tensor)][0] * 2

    leaves, tree = jax.tree.flatten(arguments)

    def program(wrapped, x):
        return wrapped(*jax.tree.unflatten(tree, [x if leaf is X else leaf for leaf in leaves]))

    exported = export(functools.partial(program, torch2jax(function, name="round_trip")), X)
    jax.clear_caches()
    again = torch2jax(function, name="round_trip")  # another wrapper: the signature comes from the program's text
    seen.clear()
    assert np.asarray(exported.call(X)).tolist() == [0, 2, 4, 6]
    assert seen == [jax.tree.map(lambda leaf: "tensor" if leaf is X else (type(leaf), repr(leaf)), arguments)]
    assert again.__name__ == "round_trip"


def test_a_function_without_a_name_is_refused():
    with raises(ExportError, what=("sin", "no `name=`"), remedy="name='my_function'"):
        export(torch2jax(torch.sin), X)


class Options(tuple):
    __slots__ = ()


@pytest.mark.parametrize("constant", [torch.float32, max, Options((1, 2)), 1j, ...], ids=repr)
def test_a_constant_that_is_no_text_is_refused(constant):
    f = torch2jax(lambda t, c: t * 2, name="with_constant")
    with raises(ExportError, what=("with_constant", f" {type(constant).__name__}."), expected="numbers"):
        export(lambda x: f(x, constant), X)
    assert np.asarray(f(X, constant)).tolist() == [0, 2, 4, 6]  # only the export is


def test_other_containers_are_refused():
    import collections

    pair = collections.namedtuple("Pair", "a b")
    f = torch2jax(lambda p: p.a * 2, name="with_pair")
    with raises(ExportError, what=("with_pair", "a Pair"), expected="tuples, lists and dicts"):
        export(lambda x: f(pair(x, x)), X)
    g = torch2jax(lambda p: p[1] * 2, name="with_numbers_as_keys")
    with raises(ExportError, what=("with_numbers_as_keys", "a dict"), expected="strings"):
        export(lambda x: g({1: x}), X)


def test_without_the_disabled_check_jax_refuses():
    with pytest.raises(ValueError, match="t2j_torch_call"):
        jax.export.export(jax.jit(torch2jax(torch.sin, name="checked")))(X)


@needs_flatbuffers
def test_wide_dtypes_of_the_signature_survive():
    f = torch2jax(lambda n: torch.nn.functional.one_hot(n, 4), torch.zeros(4, dtype=torch.int64), name="one_hot")
    program = jax.export.deserialize(export(f, jnp.arange(4, dtype=jnp.int32)).serialize())
    del f
    again = torch2jax(lambda n: torch.nn.functional.one_hot(n, 4), name="one_hot")
    np.testing.assert_array_equal(np.asarray(program.call(jnp.arange(4, dtype=jnp.int32))), np.eye(4, dtype=np.int32))
    assert again is not None


@needs_flatbuffers
def test_the_function_of_a_loaded_program_sees_wide_dtypes():
    sizes = lambda n: n * n.element_size()
    f = torch2jax(sizes, torch.zeros(4, dtype=torch.int64), name="sizes")
    program = jax.export.deserialize(export(f, jnp.arange(4, dtype=jnp.int32)).serialize())
    del f
    again = torch2jax(sizes, name="sizes")
    assert np.asarray(program.call(jnp.arange(4, dtype=jnp.int32))).tolist() == [0, 8, 16, 24]
    assert again is not None


# --- names in one process -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::t2j_core.T2jWarning")
def test_two_functions_of_one_name_are_not_confused():
    # Regression: the older wrapper, compiled again, ran the newer function.
    f = torch2jax(lambda t: t + 1, name="same_name")
    first = jax.jit(f)
    assert np.asarray(first(X)).tolist() == [1, 2, 3, 4]
    try:
        g = torch2jax(lambda t: t * 100, name="same_name")
    except ValueError:
        return  # refused: as good
    assert np.asarray(g(X)).tolist() == [0, 100, 200, 300]
    assert np.asarray(first(X)).tolist() == [1, 2, 3, 4]
    assert np.asarray(jax.jit(lambda x: f(x))(X)).tolist() == [1, 2, 3, 4]
    assert np.asarray(jax.jit(lambda x: g(x))(X)).tolist() == [0, 100, 200, 300]


def test_programs_without_a_function_of_their_own_get_the_newest_function_of_a_name():
    exported = export(torch2jax(lambda t: t + 1, name="newest"), X)
    newest = torch2jax(lambda t: t + 2, name="newest")
    assert np.asarray(exported.call(X)).tolist() == [2, 3, 4, 5]
    assert newest.__name__ == "newest"


# --- compilation cache and serialised executables -----------------------------------------------------------------

CACHED = """
    import jax.monitoring
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    def hits(f, expected):
        start = len(events)
        np.testing.assert_allclose(jax.jit(lambda x: f(x) + 1)(x), expected, rtol=1e-6)
        return sum("cache_hits" in event for event in events[start:])
    {functions}
    print(hits(numbered, {expected}), hits(named, {expected}))
"""
TWICE = ("numbered = torch2jax(lambda t: t * 2); named = torch2jax(lambda t: t * 2, name='cached')", "2 * x + 1")
THRICE = ("numbered = torch2jax(lambda t: t * 3); named = torch2jax(lambda t: t * 3, name='cached')", "3 * x + 1")


def files(directory) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.endswith("-atime")}


def test_the_persistent_compilation_cache_hits_in_the_next_process(tmp_path):
    assert run(CACHED.format(functions=TWICE[0], expected=TWICE[1]), str(tmp_path)) == "0 0"
    before = files(tmp_path)
    assert sum("jit__lambda" in name for name in before) == 2
    # A cached program calls the function of its own process, whatever the number meant where it was compiled.
    assert run(CACHED.format(functions=THRICE[0], expected=THRICE[1]), str(tmp_path)) == "1 1"
    assert files(tmp_path) == before


def test_a_serialised_executable_runs_in_the_same_process():
    f = torch2jax(double, name="serialised")
    payload = serialize_executable.serialize(jax.jit(f).lower(X).compile())
    loaded = serialize_executable.deserialize_and_load(*payload)
    assert np.asarray(loaded(X)).tolist() == [0, 2, 4, 6]


def test_serialised_executables_in_another_process(tmp_path):
    # Regression: the functions themselves went into the executable, where lambdas cannot go.
    functions = {
        "registered": torch2jax(lambda t: t * 2, name="registered"),
        "unregistered": torch2jax(lambda t: t * 2, name="unregistered"),
        "unnamed": torch2jax(lambda t: t * 2),
    }
    for name, f in functions.items():
        payload = serialize_executable.serialize(jax.jit(f).lower(X).compile())
        (tmp_path / name).write_bytes(pickle.dumps(payload))
    out = run(
        """
        import pickle
        from jax.experimental import serialize_executable
        f = torch2jax(lambda t: t * 3, name="registered")
        for name in ("registered", "unregistered", "unnamed"):
            try:
                payload = pickle.load(open(f"{sys.argv[1]}/{name}", "rb"))
                print(serialize_executable.deserialize_and_load(*payload)(x).tolist(), "---")
            except Exception as error:
                print(error, "---")
        """,
        str(tmp_path),
    )
    registered, unregistered, unnamed, _ = out.split("---")
    assert registered.strip() == "[0.0, 3.0, 6.0, 9.0]"
    assert "'unregistered', which is not registered in this process" in unregistered
    assert "which this process does not have" in unnamed
    assert "name='my_function'" in unnamed
