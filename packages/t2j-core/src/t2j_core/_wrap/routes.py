"""The routes of a call, from the user's arguments to `CallBuilder.bind`.

    f(*args, **kwargs): the leaves of its arguments are     and the call runs as
      JAX arrays, each an argument by position ............ `_positional`, one `jax.jit` for all of them
      JAX arrays, in any tree ............................. `_forms[tree]`, a `jax.jit` for each tree
      arrays of NumPy or torch too, and constants ......... `_forms[call tree, torch dtypes]`, the same for these
      tracers among them .................................. part of the program that JAX traces

All routes end in `_bind`: the first three when `jax.jit` traces them, which is once for each signature.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from .. import _compat
from .._base.bounded import remember
from .._base.errors import T2jError
from .._lowering.primitive import outputs_of
from .._run.originals import original_of
from .._signature.call_tree import CallTree, PyTreeDef, split
from .._signature.signature import Outputs
from .arguments import arrays_of, leaves_of
from .constant_outputs import with_marks, without_marks
from .examples import Dtypes, ExampleValues

if TYPE_CHECKING:
    from .builder import CallBuilder

_Form = Callable[..., Any]  # a compiled form: from arrays to the output tree


class Routes:
    """The compiled forms of one function, and which of them runs a call."""

    def __init__(self, builder: CallBuilder) -> None:
        self._builder = builder
        self._array_type: type | None = None  # that of JAX's concrete arrays, once one was seen
        self._positional: _Form = jax.jit(functools.partial(self._call_arrays, None, None))
        self._forms: dict[Hashable, _Form] = {}
        self._has_constant_outputs = False

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The outputs of a call. Raises what `error_for_user` makes the user's."""
        if not kwargs and set(map(type, args)) == {self._array_type}:
            outputs = outputs_of(self._positional, args)
        else:
            outputs = self._call_any(args, kwargs)
        return without_marks(outputs) if self._has_constant_outputs else outputs

    def _call_any(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        if self._array_type is None:
            self._array_type = next((type(leaf) for leaf in leaves if _compat.is_concrete_array(leaf)), None)
        if leaves and set(map(type, leaves)) == {self._array_type}:
            return outputs_of(self._form_of_arrays(tree, len(leaves)), leaves)
        builder = self._builder
        _compat.check_jax_is_allowed(builder.name)
        data, call_tree = split(args, kwargs)
        is_traced = any(isinstance(leaf, _compat.Tracer) for leaf in data)
        arrays = arrays_of(data, builder.name, call_tree, is_traced=is_traced)
        dtypes = builder.torch_dtypes(data, call_tree)
        if is_traced:
            outputs, results = self._bind(arrays, call_tree, dtypes)
            return outputs.unflatten(results)
        return outputs_of(self._form(call_tree, dtypes, arrays), arrays)

    def _form_of_arrays(self, tree: PyTreeDef, count: int) -> _Form:
        known = self._forms.get(tree)
        if known is not None:
            return known
        call_tree = CallTree(tree, (None,) * count)
        if call_tree.is_positional:
            return remember(self._forms, tree, self._positional)
        form: _Form = jax.jit(functools.partial(self._call_arrays, call_tree, None))
        return remember(self._forms, tree, form)

    def _form(self, call_tree: CallTree, dtypes: Dtypes, arrays: Sequence[Any]) -> _Form:
        structure, statics = call_tree
        if arrays and len(arrays) == len(statics) and dtypes == self._builder.torch_dtypes(arrays, call_tree):
            return self._form_of_arrays(structure, len(arrays))  # JAX arrays would give the same program
        known = self._forms.get((call_tree, dtypes))
        if known is not None:
            return known
        form: _Form = jax.jit(functools.partial(self._call_arrays, call_tree, dtypes))
        return remember(self._forms, (call_tree, dtypes), form)

    def _call_arrays(self, call_tree: CallTree | None, dtypes: Dtypes | None, *arrays: jax.Array) -> Any:
        """What `jax.jit` traces. None stands for the tree of positional arguments, and for the dtypes of JAX arrays."""
        try:
            call_tree = CallTree.positional(len(arrays)) if call_tree is None else call_tree
            dtypes = self._builder.torch_dtypes(arrays, call_tree) if dtypes is None else dtypes
            outputs, results = self._bind(list(arrays), call_tree, dtypes)
            if any(static is not None for static in outputs.statics):
                self._has_constant_outputs = True
                return with_marks(outputs, results)
            return outputs.unflatten(results)
        except Exception as error:
            raise _CarrierError(error) from None

    def _bind(
        self, arrays: list[jax.Array], call_tree: CallTree, dtypes: Dtypes
    ) -> tuple[Outputs, Sequence[jax.Array]]:
        return self._builder.bind(self._builder.prepared(arrays, call_tree), call_tree, dtypes)

    def learn_from(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], failure: BaseException) -> bool:
        """Whether inference, which has failed on made-up values, works on those of the call, which can run then."""
        data, call_tree = split(args, kwargs)
        if isinstance(failure, T2jError) or any(isinstance(leaf, _compat.Tracer) for leaf in data):
            return False
        name, dtypes = self._builder.name, self._builder.torch_dtypes(data, call_tree)
        arrays = self._builder.prepared(arrays_of(data, name, call_tree, is_traced=False), call_tree)
        operands = leaves_of(arrays, dtypes, name, call_tree)
        return self._builder.learn(call_tree, operands, ExampleValues(arrays, operands))


class _CarrierError(Exception):
    """Takes an exception of inference through `jax.jit`, which would add to its notes and its traceback."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def is_of_inference(error: Exception) -> bool:
    """Whether an exception of `Routes.call` was raised while JAX traced."""
    return isinstance(error, _CarrierError)


def error_for_user(error: Exception) -> BaseException:
    """The exception that the user is to see for one that `Routes.call` has raised."""
    if isinstance(error, _CarrierError):
        return error.error
    original = original_of(error) if isinstance(error, _compat.XLA_ERRORS) else None
    return error if original is None else original
