"""Models and operations of torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cases._torchvision_operators  # noqa: F401
import torch
from corpus_case import Case, TorchCase, TorchTask
from torch import Tensor, nn
from torchvision import models, ops
from torchvision.models import detection, optical_flow, segmentation, swin_transformer, video
from torchvision.transforms.v2 import functional as transforms


def image(size: int = 32, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size)


def classifier(name: str, size: int = 32, **options: Any) -> Any:
    return lambda: TorchTask(models.get_model(name, weights=None, num_classes=3, **options).eval(), (image(size),))


def vit() -> TorchTask:
    net = models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3)
    nn.init.normal_(net.heads.head.weight)
    return TorchTask(net.eval(), (image(16),))


def swin(block: Any) -> TorchTask:
    net = models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=3, block=block)
    return TorchTask(net.eval(), (image(),))


def convnext() -> TorchTask:
    from torchvision.models.convnext import CNBlockConfig

    return TorchTask(
        models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3).eval(), (image(),)
    )


def maxvit() -> TorchTask:
    options = {"stem_channels": 8, "partition_size": 4, "block_channels": [8, 16], "block_layers": [1, 1]}
    net = models.MaxVit((32, 32), head_dim=4, stochastic_depth_prob=0.0, num_classes=3, **options)
    return TorchTask(net.eval(), (image(),))


def resnet_training() -> TorchTask:
    net = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    return TorchTask(net, (image(64, 4),))


def segmenter(make: Any) -> Any:
    return lambda: TorchTask(make(weights=None, weights_backbone=None, num_classes=2).eval(), (image(33, 1),))


def r3d() -> TorchTask:
    return TorchTask(video.r3d_18(num_classes=2).eval(), (torch.rand(1, 3, 4, 16, 16),))


def raft() -> TorchTask:
    net = optical_flow.raft_small(weights=None).eval()
    return TorchTask(net, (image(128, 1), image(128, 1)), {"num_flow_updates": 2})


def losses(make: Any) -> Any:
    """The losses of a detector, whose number of matched anchors depends on values."""

    def task() -> TorchTask:
        backbone = nn.Sequential(nn.Conv2d(3, 32, 5, stride=4, padding=2), nn.Tanh(), nn.Conv2d(32, 32, 3, padding=1))
        backbone.out_channels = 32
        anchors = detection.anchor_utils.AnchorGenerator(((16,),), ((1.0,),))
        net = make(backbone, 3, min_size=32, max_size=32, anchor_generator=anchors)
        boxes = torch.tensor([[2.0, 3.0, 15.0, 20.0], [10.0, 5.0, 30.0, 25.0]])
        return TorchTask(net.train(), ([torch.rand(3, 32, 32)], [{"boxes": boxes, "labels": torch.tensor([1, 2])}]))

    return task


def pyramid() -> TorchTask:
    net = ops.FeaturePyramidNetwork([4, 8], 6)
    return TorchTask(net, ({"a": torch.randn(1, 4, 8, 8), "b": torch.randn(1, 8, 4, 4)},))


def boxes(count: int = 3) -> Tensor:
    low = 8 * torch.rand(count, 2)
    return torch.cat([low, low + 1 + 4 * torch.rand(count, 2)], 1)


TASKS = {
    **{
        name: classifier(name)
        for name in (
            *(
                "resnet18",
                "mobilenet_v2",
                "mobilenet_v3_small",
                "shufflenet_v2_x0_5",
                "squeezenet1_1",
                "regnet_y_400mf",
            ),
            *("efficientnet_b0", "mnasnet0_5"),
        )
    },
    "densenet": lambda: TorchTask(models.DenseNet(4, (2, 2), 8, num_classes=3).eval(), (image(),)),
    "googlenet": classifier("googlenet", 64, init_weights=True, aux_logits=False),
    "vision transformer": vit,
    "swin transformer": lambda: swin(swin_transformer.SwinTransformerBlock),
    "convnext": convnext,
    "maxvit": maxvit,
    "lraspp": segmenter(segmentation.lraspp_mobilenet_v3_large),
    "r3d": r3d,
    "raft": raft,
    "retinanet losses": losses(detection.RetinaNet),
    "fcos losses": losses(detection.FCOS),
    "feature pyramid": pyramid,
    "focal loss": lambda: TorchTask(ops.sigmoid_focal_loss, (torch.randn(4), torch.tensor([0.0, 1.0, 1.0, 0.0]))),
    "generalized box iou": lambda: TorchTask(ops.generalized_box_iou_loss, (boxes(), boxes())),
    "box iou": lambda: TorchTask(ops.box_iou, (boxes(3), boxes(2))),
    "roi align": lambda: TorchTask(lambda x, b: ops.roi_align(x, [b], (2, 2)), (torch.randn(1, 2, 12, 12), boxes())),
    "affine transform": lambda: TorchTask(lambda x: transforms.affine(x, 20.0, [1, 2], 1.2, [5.0, 3.0]), (image(8),)),
    "gaussian blur": lambda: TorchTask(lambda x: transforms.gaussian_blur(x, [3, 3], [1.0, 1.0]), (image(8),)),
}


def cases() -> Iterator[Case]:
    yield TorchCase("resnet, training", resnet_training, mutable=True)
    yield from (TorchCase(name, make) for name, make in TASKS.items())
