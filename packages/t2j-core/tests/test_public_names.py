"""The public names."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import pytest
import t2j_core
import t2j_core.extend
import t2j_core.testing

PACKAGE = Path(t2j_core.__file__).parent


def public(module) -> list[str]:
    """What `module` offers: names without underscore that are no modules."""
    return sorted(
        name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)
    )


def test_the_public_names():
    assert public(t2j_core) == sorted(
        [
            *("torch2jax", "torch2jax_without_vjp", "module2jax", "load_variables", "TorchFunction"),
            *("j2t", "t2j", "tree_j2t", "tree_t2j", "dtype_j2t", "dtype_t2j", "Size"),
            *("last_error", "environment_info"),
            *("T2jError", "ArgumentError", "DTypeError", "OutputError", "DataDependentShapeError"),
            *("TensorMutationError", "TensorEscapeError", "JaxInsideTorchError", "TransformError"),
            *("ShardingError", "ExportError", "CommandBufferError", "T2jWarning", "PerformanceWarning"),
        ]
    )


def test_the_names_for_other_packages():
    assert public(t2j_core.extend) == sorted(
        [
            *("CallTree", "split", "declared_outputs", "Leaf", "Outputs", "Signature", "leaves_of"),
            *("Dtypes", "ExampleValues"),
            *("call_primitive", "current_pair", "torch_call", "torch_call_p", "Handover", "Lending", "Rules"),
            *("TorchFn", "FlatFunction", "Windows", "has_windows", "with_copies", "around_backward"),
            *("trace", "fixed_shapes", "is_traced_ahead", "seeded_by", "NotCompiledError", "InTurnError"),
            *("Keys", "around_backward_of"),
            *("is_lazy", "is_view", "placeholders", "output_of", "reason_of", "warn_not_compiled"),
            *("CallBuilder", "TorchFunction", "P", "functional"),
            *(
                "options_of",
                "public",
                "Keywords",
                "Options",
                "Arguments",
                "Results",
                "are_at",
                "argument_numbers",
                "check_choice",
            ),
            *("checked_bool", "checked_examples", "checked_integer", "refused", "parameters_of", "check_options"),
            *("option_names", "OptionGroup", "taken"),
            *("DispatchMode", "numbers_in", "storage_uses", "torch_device", "apart", "progress"),
            *("generator_states", "turns", "modules_in_use", "check_example"),
            *("movable_copy", "raise_escaped", "collect_garbage"),
            *("canonical", "Tracer", "explicit_spec", "hide_frames", "manual_axes", "reshard"),
            *("transposing_call", "remember", "describe", "warn", "grouped", "heading", "listed", "size_of"),
        ]
    )


def test_the_names_for_tests():
    assert sorted(t2j_core.testing.__all__) == sorted(
        ["abi_layout", "assert_nothing_escaped", "collect", "counters", "live_functions", "noop"]
    )


def test_the_stub_of_the_extension_is_complete():
    stub = ast.parse((PACKAGE / "_native.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    native = sys.modules["t2j_core._native"]
    assert declared == {name for name in vars(native) if not name.startswith("_")}


@pytest.mark.parametrize("name", [n for n in vars(t2j_core) if n.endswith(("Error", "Warning"))])
def test_errors_are_of_the_family_and_of_a_builtin_kind(name):
    error = getattr(t2j_core, name)
    if name.endswith("Warning"):
        assert issubclass(error, UserWarning)
    else:
        assert issubclass(error, t2j_core.T2jError)
        builtin = (TypeError, ValueError, RuntimeError, NotImplementedError)
        assert name == "T2jError" or issubclass(error, builtin)


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert t2j_core.__version__ == version("t2j-core")
