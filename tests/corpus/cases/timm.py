"""Image models of timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cases._torchvision_operators  # noqa: F401
import timm
import torch
from corpus_case import Case, TorchCase, TorchTask


def model(name: str, size: int = 32, **options: Any) -> Callable[[], TorchTask]:
    def task() -> TorchTask:
        net = timm.create_model(name, pretrained=False, num_classes=3, **options)
        return TorchTask(net.eval(), (torch.rand(2, 3, size, size),))

    return task


TASKS = {
    "vit": model("vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=2, num_heads=2),
    "deit, distilled": model("deit_tiny_distilled_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2),
    "mixer": model("mixer_s32_224", img_size=32, patch_size=8, embed_dim=16, num_blocks=2),
    "gmlp": model("gmlp_ti16_224", img_size=32, patch_size=8, embed_dim=16, num_blocks=1),
    "convmixer": model("convmixer_768_32", dim=16, depth=2),
    "poolformer": model("poolformer_s12", embed_dims=(8, 8, 16, 16), layers=(1, 1, 1, 1)),
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
