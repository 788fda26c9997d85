"""The samples of PyTorch's operator database."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as torch_tree
from case import Case, How
from fair import seed
from judge import NotCounted
from second_derivatives import SecondDerivatives

CHECKS = ("forward", "vjp", "jvp", "vmap", "vmap_vjp")
FEW_CHECKS = ("forward", "vjp")
"""For dtypes that are there to be stored in rather than to compute with."""

UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}


def name_of(op: Any) -> str:
    """The operator and its variant, which together are unique."""
    return f"{op.name}:{op.variant_test_name}" if op.variant_test_name else op.name


class Operators:
    """Values and first derivatives."""

    has_gradients = False  # whether samples are those for gradients
    case: type[Case] = Case

    def __init__(self) -> None:
        from torch.testing._internal.common_methods_invocations import op_db

        self.subjects: list[Any] = list(op_db)
        self.names = list(map(name_of, self.subjects))

    def checks(self, how: How) -> tuple[str, ...]:
        """The names of the checks of each sample."""
        if how.compiles:
            return tuple(check for check in CHECKS if check != "jvp")  # which runs as without `compile`
        return CHECKS if how.dtype in ("float32", "float64") else FEW_CHECKS

    def cases(self, op: Any, how: How) -> list[Case]:
        """The first samples, equal in every run."""
        self.check_is_supported(op, how)
        seed(zlib.crc32(name_of(op).encode()))
        samples = op.sample_inputs(how.device, getattr(torch, how.dtype), requires_grad=self.has_gradients)
        return [self.case_of(op, sample, how) for sample in itertools.islice(samples, how.samples)]

    def check_is_supported(self, op: Any, how: How) -> None:
        """Raise `NotCounted` if the operator has no samples of this kind."""
        if getattr(torch, how.dtype) not in op.supported_dtypes(how.device):
            raise NotCounted("dtype unsupported")

    def call(self, op: Any) -> Any:
        """The function of the operator."""
        return op

    def case_of(self, op: Any, sample: Any, how: How) -> Case:
        """The sample as a function of its tensors. All else is a constant, including tensors on other devices.

        Some samples of a GPU have numbers or indices on the CPU, but a JAX program has all operands on one device.
        """
        leaves, spec = torch_tree.tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.device.type == how.device]
        call = self.call(op)

        def fn(*tensors: torch.Tensor) -> Any:
            full = list(leaves)
            for i, t in zip(places, tensors, strict=True):
                full[i] = t
            first, args, kwargs = torch_tree.tree_unflatten(full, spec)
            return sample.output_process_fn_grad(call(first, *args, **kwargs))

        fn.__name__ = op.name
        unfair = "uninitialised memory" if op.name in UNINITIALISED else ""
        return self.case(fn, [leaves[i].detach() for i in places], how, unfair)


class SecondOrder(Operators):
    """Second derivatives, of the operators that have them, on samples for gradients."""

    has_gradients = True
    case = SecondDerivatives

    def checks(self, how: How) -> tuple[str, ...]:
        return "forward", "vjp_vjp", "jvp_vjp", "vjp_jvp"

    def check_is_supported(self, op: Any, how: How) -> None:
        super().check_is_supported(op, how)
        if not op.supports_gradgrad:
            raise NotCounted("no second derivative in torch")

    def call(self, op: Any) -> Any:
        """The operator as torch's own checks of second derivatives call it.

        The wrapper makes a matrix symmetric, for example, of which the operator reads one half and differentiates all.
        """
        return lambda *args, **kwargs: op.gradcheck_wrapper(op, *args, **kwargs)


class Float8(Operators):
    """Values, gradients and batches in float8.

    The operator database declares only a few operators, but torch also copies, views, joins and casts such tensors. So
    other operators get samples in float32 that are rounded, and whatever native torch can run counts.
    """

    def checks(self, how: How) -> tuple[str, ...]:
        return "forward", "vjp", "vmap"

    def cases(self, op: Any, how: How) -> list[Case]:
        if getattr(torch, how.dtype) in op.supported_dtypes(how.device):
            return super().cases(op, how)
        return [self.rounded(case, how) for case in super().cases(op, replace(how, dtype="float32"))]

    def rounded(self, case: Case, how: How) -> Case:
        """The same sample in float8."""
        dtype = getattr(torch, how.dtype)
        tensors = [t.to(dtype) if t.dtype == torch.float32 else t for t in case.tensors]
        has_any = any(t.dtype == dtype for t in tensors)
        return replace(case, tensors=tensors, how=how, unfair=case.unfair if has_any else "no float8 input")
