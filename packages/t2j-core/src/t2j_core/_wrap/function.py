"""`TorchFunction`: the wrapper that users hold."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, overload

from .. import _compat
from .._base.caught import Caught
from .._base.errors import T2jError, TensorEscapeError, describe
from .._run.escapes import hold
from .._run.originals import raises_originals
from .argument_errors import as_argument_error
from .builder import CallBuilder
from .explain import shown_options, wrapped
from .options import Options
from .python_signature import signature_of
from .routes import Routes, error_for_user, is_of_inference

if TYPE_CHECKING:
    from typing_extensions import ParamSpec  # with a default, which `typing` has from Python 3.13

    P = ParamSpec("P", default=...)
else:
    from typing import ParamSpec

    P = ParamSpec("P")


class TorchFunction(Generic[P]):
    """A PyTorch function that JAX can call; made by `torch2jax`."""

    def __init__(self, builder: CallBuilder, examples: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None) -> None:
        fn, options = builder.fn, builder.options
        self.builder = builder
        """What makes calls of the function, for sister packages: see `t2j_core.extend`."""
        self._routes = Routes(builder)
        self.__name__: str = builder.name
        self.__doc__: str | None = getattr(fn, "__doc__", None)
        self.__wrapped__: Callable[..., Any] = fn
        first, without = ("key",) if options.rng else (), ("out",) if options.outputs == "out" else ()
        self.__signature__: inspect.Signature = signature_of(fn, *first, without=without)
        builder.publish()
        if examples is not None:
            builder.check_examples(*examples)

    @property
    def fn(self) -> Callable[..., Any]:
        """The PyTorch function."""
        return self.builder.fn

    @property
    def options(self) -> Options:
        """How it was wrapped."""
        return self.builder.options

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of any kind knows its examples, and nothing of the calls before."""
        return type(self), (copy.copy(self.builder),)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """A method, where `fn` in a class would be one: `@torch2jax` over a method. `self` is a constant then."""
        bind = getattr(self.fn, "__get__", None)
        if instance is None or bind is None:
            return self
        bound = bind(instance, owner)
        return types.MethodType(self, instance) if getattr(bound, "__func__", None) is self.fn else self

    def __repr__(self) -> str:
        maker, *of_maker = getattr(self.fn, "t2j_made_by", ("torch2jax",))
        options = shown_options(*of_maker, *self.builder.option_groups())
        return f"{maker}({', '.join(filter(None, (self.__name__, options)))})"

    def explain(self) -> str:
        """What was decided for each signature that was used, and why: a text to print.

        How the outputs became known, which arguments are lent, copied or written in place, and which results are
        copied or written in place.

        >>> from t2j_core import torch2jax
        >>> import jax.numpy as jnp, torch
        >>> f = torch2jax(torch.sin)
        >>> _ = f(jnp.ones(3))
        >>> print(f.explain())
        sin(f32[3]) -> (f32[3])
          outputs: inferred by a run without data
          args[0]: lent, not copied
          output: copied (below 1,048,576 bytes)
        """
        return "\n".join(map(wrapped, self.builder.explained_calls())) or f"{self.__name__} was not called yet."

    # The first form is what editors show: the parameters of `fn`. Its annotations say `torch.Tensor` where callers
    # pass arrays, which no type can translate, so the second form accepts every call: no false error, and none found.
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...
    @raises_originals
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._routes.call(args, kwargs)
        except Exception as error:
            while_tracing = is_of_inference(error)
            caught = Caught(as_argument_error(self.__name__, error, args, kwargs) or error_for_user(error))
        if while_tracing and self._routes.learn_from(args, kwargs, caught.error):
            del caught
            return self(*args, **kwargs)
        if isinstance(caught.error, TensorEscapeError):
            hold((args, kwargs))
        raise caught.taken_for_user()


def _refuse_after_fork(self: TorchFunction[...], /, *_args: object, **_kwargs: object) -> Any:
    raise T2jError(
        describe(
            f"{self.__name__} was called in a process that was forked from one which had used JAX.",
            expected="a process of its own: the threads of XLA and torch do not survive a fork",
            remedy="Start workers with the 'spawn' method: `multiprocessing.get_context('spawn')`.",
        )
    )


_compat.after_fork(functools.partial(setattr, TorchFunction, "__call__", _refuse_after_fork))
