"""The checks of a task in torch: t2j against native torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from agreement import Mismatch, NotCounted, compare, inexact, is_inexact, leaves_of, native
from corpus_case import TorchCase
from t2j_autodiff import NonDifferentiableError, module2jax, t2j, torch2jax
from torch_judge import Native, Tensors, in_double, noise
from watch import Snapshot, Watch

CONTRADICTION = 0.01  # larger than the rounding error of any dtype
WORSE = 20.0  # how much larger the rounding error may be than that of native torch
DIFFERENCES = 1e-3  # the tolerance where differences of gradients judge


class TorchChecks:
    """One case. Every check raises `Mismatch`, or `NotCounted`, or what the library raises."""

    def __init__(self, case: TorchCase, watch: Watch) -> None:
        self.watch, self.values, self.derivatives = watch, case.tolerance, 10 * case.tolerance
        task = case.make()
        self.judge = Native(task, case.mutable)
        self.snapshot = Snapshot(task.fn, self.judge.inputs)
        with watch.as_library():
            if isinstance(task.fn, torch.nn.Module):
                self.apply, self.variables = module2jax(task.fn, mutable=case.mutable)
            else:
                self.apply, self.variables = torch2jax(task.fn), {"params": {}, "buffers": {}}
            self.arrays = [t2j(t) for t in self.judge.inputs]
        self.is_module = isinstance(task.fn, torch.nn.Module)

    # --- the library's function ---

    def outputs(self, params: dict[str, Any], buffers: dict[str, Any], *arrays: Any) -> list[Any]:
        """The leaves of the outputs."""
        args, kwargs = self.judge.arguments(arrays)
        first = ({"params": params, "buffers": buffers},) if self.is_module else ()
        return leaves_of(self.apply(*first, *args, **kwargs))

    @property
    def moving(self) -> list[Any]:
        """What is differentiated: the parameters, and the inputs that can have a derivative."""
        return [*self.variables["params"].values(), *inexact(self.arrays)]

    def smooth(self, moving: Sequence[Any], buffers: dict[str, Any], arrays: Sequence[Any]) -> list[Any]:
        """The outputs that can have derivatives, as a function of what is differentiated."""
        names = list(self.variables["params"])
        rest = iter(moving[len(names) :])
        inputs = [next(rest) if is_inexact(a) else a for a in arrays]
        return inexact(self.outputs(dict(zip(names, moving[: len(names)], strict=True)), buffers, *inputs))

    def pull(self, moving: list[Any], buffers: dict[str, Any], arrays: list[Any], cotangents: list[Any]) -> list[Any]:
        """The pullback."""
        return jax.vjp(lambda m: self.smooth(m, buffers, arrays), moving)[1](cotangents)[0]

    def library(self, f: Callable[..., Any], *args: Any) -> Any:
        """The result of a jitted call of the library, watched."""
        with self.watch.as_library():
            return jax.block_until_ready(jax.jit(f)(*args))

    def judged(self, call: Callable[[], Any]) -> Any:
        """The result of native torch, whose warnings are not stray."""
        with self.watch.as_judge():
            return native(call)

    # --- checks ---

    def forward(self) -> None:
        """The values."""
        expected = self.judged(lambda: self.judge.expected)
        if not expected:
            raise NotCounted("no tensor output")
        for a, b in zip(expected, self.judge.values(self.judge.inputs), strict=True):
            if not torch.equal(a.nan_to_num(), b.nan_to_num()):
                raise NotCounted("random output")
        compare(self.library(self.outputs, *self.variables.values(), *self.arrays), expected, self.values)

    def second_call(self) -> None:
        """Calls of one program with other inputs and with the first ones again, and an eager call."""
        other = self.judge.examples()[1]
        expected = self.judged(lambda: self.judge.values(other))
        with self.watch.as_library():
            program = jax.jit(self.outputs)
            calls = [(*self.variables.values(), *map(t2j, other)), (*self.variables.values(), *self.arrays)]
            first, again, eager = program(*calls[0]), program(*calls[1]), self.outputs(*calls[1])
        compare(first, expected, self.values)
        compare(again, self.judge.expected, self.values)
        compare(eager, self.judge.expected, self.values)

    def cotangents(self, seed: int) -> Tensors:
        """Random cotangents of the outputs that can have them."""
        if not self.judge.moving() or not inexact(self.judge.expected):
            raise NotCounted("nothing that can be differentiated")
        return noise(inexact(self.judge.expected), seed)

    def vjp(self) -> None:
        """The gradients of parameters and inputs."""
        cts = self.cotangents(1)
        expected = self.judged(lambda: self.judge.vjp(self.judge.inputs, cts)[1])
        got = self.library(self.pull, self.moving, self.variables["buffers"], self.arrays, [t2j(c) for c in cts])
        compare(got, expected, self.derivatives)

    def vmap(self) -> None:
        """A batch of inputs, with the same parameters."""
        examples = self.judge.examples()
        if not self.arrays:
            raise NotCounted("no tensor among the arguments")
        expected = self.judged(lambda: stacked([self.judge.values(x) for x in examples]))
        axes = (None, None, *(0 for _ in self.arrays))
        got = self.library(jax.vmap(self.outputs, in_axes=axes), *self.variables.values(), *map(t2j, stacked(examples)))
        compare(got, expected, self.values)

    def vmap_vjp(self) -> None:
        """A batch of gradients."""
        if not self.arrays:
            raise NotCounted("no tensor among the arguments")
        examples, cts = self.judge.examples(), [self.cotangents(seed) for seed in (2, 3)]
        expected = self.judged(lambda: stacked([self.judge.vjp(x, ct)[1] for x, ct in zip(examples, cts, strict=True)]))
        arrays, names = [t2j(t) for t in stacked(examples)], list(self.variables["params"])
        moving = [*self.variables["params"].values(), *inexact(arrays)]
        axes = ([*(None for _ in names), *(0 for _ in inexact(arrays))], None, 0, 0)
        batch = jax.vmap(self.pull, in_axes=axes)
        got = self.library(batch, moving, self.variables["buffers"], arrays, [t2j(c) for c in stacked(cts)])
        compare(got, expected, self.derivatives)

    def jvp(self) -> None:
        """Forward mode. Where torch's own is missing or contradicts its reverse mode, the transpose judges."""
        cts = self.cotangents(4)
        tangents = noise(self.judge.moving(), 5)
        reason, expected = "", None
        try:
            with self.watch.as_judge():
                expected = self.judge.jvp(tangents)
        except Exception as error:
            reason = str(error).partition("\n")[0][:200]
        grads = self.judged(lambda: self.judge.vjp(self.judge.inputs, cts)[1])
        if expected is not None and _differ(expected, cts, grads, tangents, self.derivatives):
            expected, reason = None, "torch's two modes differ"
        buffers, arrays = self.variables["buffers"], self.arrays

        def push(moving: list[Any], tangents: list[Any]) -> list[Any]:
            return jax.jvp(lambda m: self.smooth(m, buffers, arrays), (moving,), (tangents,))[1]

        try:
            got = self.library(push, self.moving, [t2j(t) for t in tangents])
        except Exception as error:
            if expected is None and _is_refused(error):
                raise NotCounted(f"torch has no forward mode: {reason}") from error
            raise
        if expected is not None:
            try:
                compare(got, expected, self.derivatives)
            except Mismatch:
                pushed = [torch.from_dlpack(g) for g in got]
                if not self._reverse_mode_confirms(pushed, expected, tangents):
                    raise
                raise NotCounted("torch's two modes differ, and reverse mode confirms the tangents") from None
        elif _differ([torch.from_dlpack(g) for g in got], cts, grads, tangents, self.derivatives):
            raise Mismatch("the tangents contradict reverse mode")

    def _reverse_mode_confirms(self, pushed: Tensors, expected: Tensors, tangents: Tensors) -> bool:
        """Whether torch's pullback, of the difference of two pushforwards, is for the first and against the second."""
        cts = [p.conj() - e.detach().conj() for p, e in zip(pushed, expected, strict=True)]
        grads = self.judged(lambda: self.judge.vjp(self.judge.inputs, cts)[1])
        return not _differ(pushed, cts, grads, tangents, self.derivatives) and _differ(
            expected, cts, grads, tangents, self.derivatives
        )

    def hvp(self) -> None:
        """The product of a Hessian with a vector: forward mode over reverse mode, or reverse mode twice."""
        cts, vectors = self.cotangents(6), noise(self.judge.moving(), 7)
        if any(t.is_complex() for t in vectors):
            raise NotCounted("complex parameters or inputs")
        expected = self.judged(lambda: self.judge.hvp(cts, vectors))
        buffers, arrays, weights = self.variables["buffers"], self.arrays, [t2j(c) for c in cts]

        def loss(moving: list[Any]) -> Any:
            ys = self.smooth(moving, buffers, arrays)
            return sum(jnp.sum((y * w.conj()).real) for y, w in zip(ys, weights, strict=True))

        def product(moving: list[Any], vectors: list[Any]) -> list[Any]:
            return jax.jvp(jax.grad(loss), (moving,), (vectors,))[1]

        def by_reverse_mode(moving: list[Any], vectors: list[Any]) -> list[Any]:
            return jax.vjp(jax.grad(loss), moving)[1](vectors)[0]

        args = self.moving, [t2j(v) for v in vectors]
        try:
            got = self.library(product, *args)
        except Exception as error:
            if not _is_refused(error):
                raise
            got = self.library(by_reverse_mode, *args)
        try:
            compare(got, expected, self.derivatives)
        except Mismatch:
            wide = self.judge.wide()
            exact = self.judged(lambda: wide.hvp(in_double(cts), in_double(vectors)))
            if _is_rounding(got, expected, exact):
                return
            differences = self.judged(lambda: wide.hvp_by_differences(in_double(cts), vectors))
            if _agree(expected, differences):
                raise
            compare(got, differences, DIFFERENCES)
            raise NotCounted("torch's second derivative contradicts differences of its first one") from None

    def unchanged(self) -> None:
        """Neither the module nor an argument has changed."""
        if changes := self.snapshot.changes():
            raise Mismatch("; ".join(changes[:5]))

    def quiet(self) -> None:
        """No warning and no output but those of native torch."""
        self.watch.check()


def stacked(examples: Sequence[Tensors]) -> Tensors:
    """The batch of some examples."""
    return [torch.stack(column) for column in zip(*examples, strict=True)]


def _is_rounding(got: Sequence[Any], expected: Tensors, exact: Tensors) -> bool:
    """Whether the arrays are nearly as close to the result in float64 as that of native torch in float32 is."""
    errors = [
        (_largest(torch.from_dlpack(g) - c), _largest(e - c)) for g, e, c in zip(got, expected, exact, strict=True)
    ]
    return all(ours <= WORSE * native for ours, native in errors)


def _largest(t: torch.Tensor) -> float:
    return float(t.detach().abs().max()) if t.numel() else 0.0


def _agree(a: Tensors, b: Tensors) -> bool:
    """Whether two lists of tensors agree, roughly."""
    scale = max(map(_largest, b))
    return all(_largest(x - y) <= CONTRADICTION * scale for x, y in zip(a, b, strict=True))


def _is_refused(error: Exception) -> bool:
    """Whether the library says that torch has no derivative; under `jax.jit` inside an error of XLA."""
    return isinstance(error, NonDifferentiableError) or "NonDifferentiableError" in str(error)


def _differ(pushed: Tensors, cotangents: Tensors, grads: Tensors, tangents: Tensors, tolerance: float) -> bool:
    """Whether <ct, J t> and <J^T ct, t> differ. For complex numbers only the real parts are equal."""
    left = [(ct * p).real.double().sum() for ct, p in zip(cotangents, pushed, strict=True)]
    right = [(g.detach() * t).real.double().sum() for g, t in zip(grads, tangents, strict=True)]
    size = sum(float(c.norm() * p.norm()) for c, p in zip(cotangents, pushed, strict=True))
    return abs(float(sum(left)) - float(sum(right))) > tolerance * max(size, 1e-2)
