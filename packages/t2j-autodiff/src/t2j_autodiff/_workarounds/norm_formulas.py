"""Normalisation in elementary operations, with the signatures of torch's operators.

The formulas are those of torch's documentation: y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias with the biased
variance, in https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html and, beside it, the pages of
`GroupNorm`, `BatchNorm1d` and `InstanceNorm1d`, which differ in the axes; and w = g v / |v| on the page of
`torch.nn.utils.weight_norm`. Statistics that an operator returns have no derivatives, but for `native_group_norm`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Parameter = torch.Tensor | None
_WithStatistics = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # y, mean, 1 / standard deviation


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: Parameter = None,
    bias: Parameter = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """As `torch.layer_norm`, over the last axes."""
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def native_layer_norm(
    input: torch.Tensor, normalized_shape: Sequence[int], weight: Parameter, bias: Parameter, eps: float
) -> _WithStatistics:
    """As `torch.native_layer_norm`."""
    axes = range(-len(normalized_shape), 0)
    y, mean, scale = _standardised(input, list(axes), eps)
    like = _like(input, lambda x: torch.layer_norm(x, normalized_shape, weight, bias, eps))
    return _affine(y, weight, bias, list(normalized_shape), like), mean.detach(), scale.detach()


def group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: Parameter = None,
    bias: Parameter = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    """As `torch.group_norm`, over groups of channels of each example."""
    grouped = input.reshape(input.shape[0], num_groups, math.prod(input.shape[1:]) // num_groups)
    y, _, _ = _standardised(grouped, [-1], eps)
    like = _like(input, lambda x: torch.group_norm(x, num_groups, weight, bias, eps))
    return _affine(y.reshape(input.shape), weight, bias, _shape_of_channels(input), like)


def native_group_norm(
    input: torch.Tensor, weight: Parameter, bias: Parameter, N: int, C: int, HxW: int, group: int, eps: float
) -> _WithStatistics:
    """As `torch.native_group_norm`, whose statistics have derivatives (`output_differentiability` in derivatives.yaml).

    torch 2.13 adds them to the gradient only where `y`, mean and scale all have a cotangent.
    """
    with torch.no_grad():
        _, *like = torch.native_group_norm(input.detach(), weight, bias, N, C, HxW, group, eps)
    _, mean, scale = _standardised(input.reshape(N, group, C // group * HxW), [-1], eps)
    mean, scale = (
        t.reshape(as_torch.shape).to(as_torch.dtype) for t, as_torch in zip((mean, scale), like, strict=True)
    )
    return group_norm(input, group, weight, bias, eps), mean, scale


def batch_norm(
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
    """As `torch.batch_norm`, over all axes but that of channels."""
    running = running_mean, running_var
    if not training:  # affine in the input, which torch differentiates correctly
        return torch.batch_norm(input, weight, bias, *running, training, momentum, eps, cudnn_enabled)
    if running_mean is not None or running_var is not None:  # torch updates them
        with torch.no_grad():
            torch.batch_norm(input.detach(), None, None, *running, True, momentum, eps, cudnn_enabled)
    y, _, _ = _standardised(input, [axis for axis in range(input.ndim) if axis != 1], eps)
    like = _like(input, lambda x: torch.batch_norm(x, weight, bias, None, None, True, momentum, eps, cudnn_enabled))
    return _affine(y, weight, bias, _shape_of_channels(input), like)


def native_batch_norm(
    input: torch.Tensor,
    weight: Parameter,
    bias: Parameter,
    running_mean: Parameter,
    running_var: Parameter,
    training: bool,
    momentum: float,
    eps: float,
) -> _WithStatistics:
    """As `torch.native_batch_norm`."""
    given = weight, bias, running_mean, running_var, training, momentum, eps
    with torch.no_grad():
        _, mean, scale = torch.native_batch_norm(input.detach(), *given)
    if not training:
        return torch.batch_norm(input, *given, False), mean, scale
    return batch_norm(input, weight, bias, None, None, True, momentum, eps, False), mean, scale


def instance_norm(
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
    """As `torch.instance_norm`, over the axes of each channel of each example."""
    running = running_mean, running_var
    if not use_input_stats:
        return torch.instance_norm(input, weight, bias, *running, False, momentum, eps, cudnn_enabled)
    if running_mean is not None or running_var is not None:
        with torch.no_grad():
            torch.instance_norm(input.detach(), None, None, *running, True, momentum, eps, cudnn_enabled)
    y, _, _ = _standardised(input, list(range(2, input.ndim)), eps)
    like = _like(input, lambda x: torch.instance_norm(x, weight, bias, None, None, True, momentum, eps, cudnn_enabled))
    return _affine(y, weight, bias, _shape_of_channels(input), like)


def weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """As `torch._weight_norm`."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def weight_norm_interface(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """As `torch._weight_norm_interface`."""
    norm = torch.norm_except_dim(v, 2, dim)
    return v * (g / norm), norm.detach()


def _standardised(x: torch.Tensor, axes: list[int], eps: float) -> _WithStatistics:
    """((x - E[x]) / sqrt(Var[x] + eps), E[x], 1 / sqrt(Var[x] + eps)), in single precision at least.

    Torch's kernels compute half precision in single precision too (`opmath_type` in aten/src/ATen/OpMathType.h).
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    scale = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    return centred * scale, mean, scale


def _affine(
    y: torch.Tensor, weight: Parameter, bias: Parameter, shape: Sequence[int], like: torch.Tensor
) -> torch.Tensor:
    """`y` * `weight` + `bias`, in the dtype of `like`."""
    y = y if weight is None else y * weight.reshape(shape)
    y = y if bias is None else y + bias.reshape(shape)
    return y.to(like.dtype)


def _like(input: torch.Tensor, norm: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A tensor of the dtype that `norm` returns; under autocast `norm` runs to find out."""
    if not torch.is_autocast_enabled(input.device.type):
        return input
    with torch.no_grad():
        return norm(input.detach())


def _shape_of_channels(input: torch.Tensor) -> list[int]:
    """The shape in which one number per channel, axis 1, broadcasts against `input`."""
    return [-1, *(1,) * (input.ndim - 2)]
