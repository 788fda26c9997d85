"""Image models of timm."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import cases._torchvision_operators  # noqa: F401
import timm
import torch
from corpus_case import Case, TorchCase, TorchTask
from timm.layers import GatedMlp, GroupNorm1
from timm.models.convmixer import ConvMixer
from timm.models.metaformer import MetaFormer
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock


def model(name: str | type[torch.nn.Module], size: int = 32, **options: Any) -> Callable[[], TorchTask]:
    def task() -> TorchTask:
        make = functools.partial(timm.create_model, name) if isinstance(name, str) else name
        net = make(num_classes=3, **options)
        return TorchTask(net.eval(), (torch.rand(2, 3, size, size),))

    return task


TASKS = {
    "vit": model("vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=2, num_heads=2),
    "deit, distilled": model("deit_tiny_distilled_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2),
    "mixer": model(MlpMixer, img_size=32, patch_size=8, embed_dim=16, num_blocks=2),
    "gmlp": model(
        MlpMixer,
        img_size=32,
        patch_size=8,
        embed_dim=16,
        num_blocks=1,
        mlp_ratio=4,
        block_layer=SpatialGatingBlock,
        mlp_layer=GatedMlp,
    ),
    "convmixer": model(ConvMixer, dim=16, depth=2, kernel_size=5, patch_size=4),
    "poolformer": model(
        MetaFormer, dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), norm_layers=GroupNorm1, use_mlp_head=False
    ),
    "xcit": model("xcit_nano_12_p16_224", img_size=32, embed_dim=16, depth=1, num_heads=2),
    "cait": model("cait_xxs24_224", img_size=32, embed_dim=16, depth=1, num_heads=2),
    "mobilevit": model("mobilevit_xxs", 64),
    "ghostnet": model("ghostnet_050"),
    "res2net": model("res2net50_26w_4s", layers=(1, 1, 1, 1)),
    "resnest": model("resnest14d"),
    "nfnet": model("nf_resnet26"),
    "levit": model("levit_128s", 64, img_size=64, embed_dim=(16, 24, 32), depth=(1, 1, 1), num_heads=(2, 2, 2)),
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make) for name, make in TASKS.items())
