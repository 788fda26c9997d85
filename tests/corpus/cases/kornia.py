"""Image and geometry operations of kornia."""

from __future__ import annotations

from collections.abc import Iterator

import kornia
import torch
from corpus_case import Case, TorchCase, TorchTask
from torch import Tensor


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(1, channels, size, size)


def homography() -> TorchTask:
    corners = torch.tensor([[[0.0, 0.0], [7.0, 0.0], [7.0, 7.0], [0.0, 7.0]]])
    fn = lambda a, b: kornia.geometry.get_perspective_transform(a, b)
    return TorchTask(fn, (corners, corners + torch.rand(1, 4, 2)))


def warp() -> TorchTask:
    matrix = torch.eye(3)[None] + 0.05 * torch.randn(1, 3, 3)
    return TorchTask(lambda x, m: kornia.geometry.warp_perspective(x, m, (8, 8)), (image(), matrix))


def rotation() -> TorchTask:
    fn = lambda v: kornia.geometry.conversions.rotation_matrix_to_axis_angle(
        kornia.geometry.conversions.axis_angle_to_rotation_matrix(v)
    )
    return TorchTask(fn, (torch.randn(2, 3),))


def projection() -> TorchTask:
    camera = torch.tensor([[[4.0, 0.0, 3.0], [0.0, 4.0, 3.0], [0.0, 0.0, 1.0]]])
    return TorchTask(kornia.geometry.camera.project_points, (torch.rand(1, 3) + 1, camera))


TASKS = {
    "gaussian blur": lambda: TorchTask(lambda x: kornia.filters.gaussian_blur2d(x, (3, 3), (1.0, 1.0)), (image(),)),
    "sobel": lambda: TorchTask(lambda x: kornia.filters.sobel(x), (image(),)),
    "bilateral blur": lambda: TorchTask(
        lambda x: kornia.filters.bilateral_blur(x, (3, 3), 0.1, (1.0, 1.0)), (image(),)
    ),
    "canny": lambda: TorchTask(lambda x: kornia.filters.canny(x)[0], (image(),)),
    "lab colours": lambda: TorchTask(kornia.color.rgb_to_lab, (image(),)),
    "hsv colours": lambda: TorchTask(kornia.color.rgb_to_hsv, (image(),)),
    "structural similarity": lambda: TorchTask(lambda a, b: kornia.metrics.ssim(a, b, 3), (image(), image())),
    "histogram": lambda: TorchTask(
        lambda x: kornia.enhance.histogram(x, torch.linspace(0, 1, 5), torch.tensor(0.1)), (torch.rand(1, 20),)
    ),
    "equalization": lambda: TorchTask(lambda x: kornia.enhance.equalize_clahe(x, grid_size=(2, 2)), (image(),)),
    "homography": homography,
    "perspective warp": warp,
    "rotation vectors": rotation,
    "projection": projection,
    "harris corners": lambda: TorchTask(lambda x: kornia.feature.harris_response(x), (image(1),)),
    "sift descriptors": lambda: TorchTask(kornia.feature.SIFTDescriptor(16), (image(1, 16),)),
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make) for name, make in TASKS.items())
