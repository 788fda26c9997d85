"""Normalisation in plain operations, whose second and higher derivatives torch gets right.

Torch's own keep a mean and a standard deviation for the backward. Where that is differentiated in forward mode or in a
batch (`native_layer_norm_backward` in aten/src/ATen/functorch/BatchRulesNorm.cpp), or once more in reverse mode, they
count as constants, and the derivative is wrong without an error (torch 2.13). So do the norms of `weight_norm`, whose
Hessian is not even symmetric (`_weight_norm_interface`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional
from torch.overrides import TorchFunctionMode

Parameter = torch.Tensor | None


class PlainNorms(TorchFunctionMode):
    """Replaces normalisation by plain operations."""

    has_met_one = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = _PLAIN.get(func)
        if plain is None:
            return func(*args, **(kwargs or {}))
        self.has_met_one = True
        return plain(*args, **(kwargs or {}))


def _standardised(x: torch.Tensor, axes: list[int], eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x without mean and with variance 1, mean, 1 / standard deviation), in single precision at least."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    scale = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    return centred * scale, mean, scale


def _affine(y: torch.Tensor, weight: Parameter, bias: Parameter, shape: Sequence[int], like: torch.Tensor) -> Any:
    y = y if weight is None else y * weight.reshape(shape)
    y = y if bias is None else y + bias.reshape(shape)
    return y.to(like.dtype)


def _like(input: torch.Tensor, norm: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A tensor with the dtype of the result, which autocast may change."""
    if not torch.is_autocast_enabled(input.device.type):
        return input
    with torch.no_grad():
        return norm(input.detach())


def _layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: Parameter = None,
    bias: Parameter = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    return _native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def _native_layer_norm(
    input: torch.Tensor, normalized_shape: Sequence[int], weight: Parameter, bias: Parameter, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    axes = range(-len(normalized_shape), 0)
    y, mean, scale = _standardised(input, list(axes), eps)
    like = _like(input, lambda x: torch.layer_norm(x, normalized_shape, weight, bias, eps))
    y = _affine(y, weight, bias, list(normalized_shape), like)
    return y, mean.detach(), scale.detach()  # which have no derivatives in torch


def _group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: Parameter = None,
    bias: Parameter = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    grouped = input.reshape(input.shape[0], num_groups, math.prod(input.shape[1:]) // num_groups)
    y, _, _ = _standardised(grouped, [-1], eps)
    like = _like(input, lambda x: torch.group_norm(x, num_groups, weight, bias, eps))
    return _affine(y.reshape(input.shape), weight, bias, _of_channels(input), like)


def _batch_norm(
    input: torch.Tensor,
    weight: Parameter,
    bias: Parameter,
    running_mean: Parameter,
    running_var: Parameter,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> torch.Tensor:
    if not training:
        running = running_mean, running_var
        return torch.batch_norm(input, weight, bias, *running, training, momentum, eps, cudnn_enabled)
    if running_mean is not None or running_var is not None:  # written as ever
        with torch.no_grad():
            torch.batch_norm(input.detach(), None, None, running_mean, running_var, True, momentum, eps, cudnn_enabled)
    y, _, _ = _standardised(input, [axis for axis in range(input.ndim) if axis != 1], eps)
    like = _like(input, lambda x: torch.batch_norm(x, weight, bias, None, None, True, momentum, eps, cudnn_enabled))
    return _affine(y, weight, bias, _of_channels(input), like)


def _instance_norm(
    input: torch.Tensor,
    weight: Parameter,
    bias: Parameter,
    running_mean: Parameter,
    running_var: Parameter,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> torch.Tensor:
    if not use_input_stats:
        running = running_mean, running_var
        return torch.instance_norm(input, weight, bias, *running, False, momentum, eps, cudnn_enabled)
    if running_mean is not None or running_var is not None:
        with torch.no_grad():
            torch.instance_norm(
                input.detach(), None, None, running_mean, running_var, True, momentum, eps, cudnn_enabled
            )
    y, _, _ = _standardised(input, list(range(2, input.ndim)), eps)
    like = _like(input, lambda x: torch.instance_norm(x, weight, bias, None, None, True, momentum, eps, cudnn_enabled))
    return _affine(y, weight, bias, _of_channels(input), like)


def _batch_norm_of_module(
    input: torch.Tensor,
    running_mean: Parameter,
    running_var: Parameter,
    weight: Parameter = None,
    bias: Parameter = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    return _batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, True)


def _instance_norm_of_module(
    input: torch.Tensor,
    running_mean: Parameter = None,
    running_var: Parameter = None,
    weight: Parameter = None,
    bias: Parameter = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    return _instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, True)


def _of_channels(input: torch.Tensor) -> list[int]:
    return [-1, *(1,) * (input.ndim - 2)]


def _native_batch_norm(
    input: torch.Tensor,
    weight: Parameter,
    bias: Parameter,
    running_mean: Parameter,
    running_var: Parameter,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    given = weight, bias, running_mean, running_var, training, momentum, eps
    with torch.no_grad():
        _, mean, scale = torch.native_batch_norm(input.detach(), *given)
    if not training:
        return torch.batch_norm(input, *given, False), mean, scale
    return _batch_norm(input, weight, bias, None, None, True, momentum, eps, False), mean, scale


def _native_group_norm(
    input: torch.Tensor,
    weight: Parameter,
    bias: Parameter,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        _, mean, scale = torch.native_group_norm(input.detach(), weight, bias, N, C, HxW, group, eps)
    return _group_norm(input, group, weight, bias, eps), mean, scale


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _weight_norm_interface(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    norm = torch.norm_except_dim(v, 2, dim)
    return v * (g / norm), norm.detach()


_OF_MODULES: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.layer_norm: _layer_norm,
    torch.nn.functional.group_norm: _group_norm,
    torch.nn.functional.batch_norm: _batch_norm_of_module,
    torch.nn.functional.instance_norm: _instance_norm_of_module,
}
_OF_TORCH: dict[str, Callable[..., Any]] = {
    "layer_norm": _layer_norm,
    "native_layer_norm": _native_layer_norm,
    "group_norm": _group_norm,
    "native_group_norm": _native_group_norm,
    "batch_norm": _batch_norm,
    "native_batch_norm": _native_batch_norm,
    "instance_norm": _instance_norm,
    "_weight_norm": _weight_norm,
    "_weight_norm_interface": _weight_norm_interface,
}
_ATEN = torch.ops.aten
_AS_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator: plain
    for name, plain in _OF_TORCH.items()
    for operator in (vars(torch).get(name), getattr(_ATEN, name), getattr(_ATEN, name).default)
}
_PLAIN = _OF_MODULES | _AS_OPERATORS
