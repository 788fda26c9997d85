"""Denoisers, autoencoders and schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cases._torchvision_operators  # noqa: F401
import diffusers
import torch
from corpus_case import Case, TorchCase, TorchTask

SMALL = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
"""Options of both U-Nets."""


def unet() -> TorchTask:
    net = diffusers.UNet2DModel(
        **SMALL,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return TorchTask(net.eval(), (torch.randn(1, 2, 8, 8), torch.tensor([5])))


def conditional_unet() -> TorchTask:
    net = diffusers.UNet2DConditionModel(
        **SMALL,
        cross_attention_dim=6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return TorchTask(net.eval(), (torch.randn(1, 2, 8, 8), torch.tensor([5]), torch.randn(1, 3, 6)))


def autoencoder() -> TorchTask:
    net = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8)
    return TorchTask(net.eval(), (torch.rand(1, 3, 8, 8),))


def vector_quantizer() -> TorchTask:
    net = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, num_vq_embeddings=6)
    return TorchTask(net.eval(), (torch.rand(1, 3, 8, 8),))


def dit() -> TorchTask:
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=2, num_layers=1, sample_size=4, num_embeds_ada_norm=5
    )
    args = torch.randn(1, 2, 4, 4), torch.tensor([3]), torch.tensor([1])
    return TorchTask(net.eval(), args)


def schedule(scheduler: Any) -> Any:
    """Four steps of a sampler around a fixed denoiser."""

    def sample(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        steps = scheduler(num_train_timesteps=20)
        steps.set_timesteps(4)
        for t in steps.timesteps:
            x = steps.step((steps.scale_model_input(x, t) @ w).tanh(), t, x).prev_sample
        return x

    return lambda: TorchTask(sample, (torch.randn(2, 3), torch.randn(3, 3)))


TASKS = {
    "unet": unet,
    "conditional unet": conditional_unet,
    "autoencoder": autoencoder,
    "vector quantizer": vector_quantizer,
    "diffusion transformer": dit,
    "ddim steps": schedule(diffusers.DDIMScheduler),
    "euler steps": schedule(diffusers.EulerDiscreteScheduler),
    "dpm-solver steps": schedule(diffusers.DPMSolverMultistepScheduler),
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make) for name, make in TASKS.items())
