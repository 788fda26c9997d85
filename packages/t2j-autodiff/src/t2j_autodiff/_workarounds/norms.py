"""Normalisation that torch differentiates correctly, to any order and in both modes.

Torch's own operations save statistics of the input for the backward, and its formulas of second derivatives take these
for constants. Observed with torch 2.13 in float64, against the formulas in `norm_formulas`:

- `layer_norm`: third derivatives in reverse mode are silently wrong
  (https://github.com/pytorch/pytorch/issues/175754), and so are derivatives of forward mode in either mode
  (https://github.com/pytorch/pytorch/issues/196700).
- `batch_norm` in training, and `instance_norm`, which calls it: the same
  (https://github.com/pytorch/pytorch/issues/186256, https://github.com/pytorch/pytorch/issues/196699).
- `group_norm`: right, but the derivative of a batch of pullbacks raises an error about sizes
  (`infinitely_differentiable_native_group_norm_backward` in torch/csrc/autograd/FunctionsManual.cpp).
- `weight_norm`: second derivatives in reverse mode are silently wrong, the Hessian is not even symmetric
  (`_weight_norm_differentiable_backward` in aten/src/ATen/native/WeightNorm.cpp), and there is no forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional
from torch.overrides import TorchFunctionMode

from . import norm_formulas
from .norm_formulas import Parameter


class DecomposedNorms(TorchFunctionMode):
    """Runs normalisation as elementary operations."""

    has_met_one = False  # whether a normalisation has run

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        formula = _FORMULAS.get(func)
        if formula is None:
            return func(*args, **(kwargs or {}))
        self.has_met_one = True
        return formula(*args, **(kwargs or {}))


def _functional_batch_norm(
    input: torch.Tensor,
    running_mean: Parameter,
    running_var: Parameter,
    weight: Parameter = None,
    bias: Parameter = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    given = weight, bias, running_mean, running_var, training, momentum, eps
    return norm_formulas.batch_norm(input, *given, True)


def _functional_instance_norm(
    input: torch.Tensor,
    running_mean: Parameter = None,
    running_var: Parameter = None,
    weight: Parameter = None,
    bias: Parameter = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    given = weight, bias, running_mean, running_var, use_input_stats, momentum, eps
    return norm_formulas.instance_norm(input, *given, True)


# A mode gets the functions of `torch.nn.functional`, and not what they call while it handles them.
_OF_FUNCTIONAL: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.nn.functional.layer_norm: norm_formulas.layer_norm,
    torch.nn.functional.group_norm: norm_formulas.group_norm,
    torch.nn.functional.batch_norm: _functional_batch_norm,
    torch.nn.functional.instance_norm: _functional_instance_norm,
}
_OF_TORCH: dict[str, Callable[..., Any]] = {
    "layer_norm": norm_formulas.layer_norm,
    "native_layer_norm": norm_formulas.native_layer_norm,
    "group_norm": norm_formulas.group_norm,
    "native_group_norm": norm_formulas.native_group_norm,
    "batch_norm": norm_formulas.batch_norm,
    "native_batch_norm": norm_formulas.native_batch_norm,
    "instance_norm": norm_formulas.instance_norm,
    "_weight_norm": norm_formulas.weight_norm,
    "_weight_norm_interface": norm_formulas.weight_norm_interface,
}
_ATEN = torch.ops.aten
_OF_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator: formula
    for name, formula in _OF_TORCH.items()
    for operator in (vars(torch).get(name), getattr(_ATEN, name), getattr(_ATEN, name).default)
}
_FORMULAS = _OF_FUNCTIONAL | _OF_OPERATORS
