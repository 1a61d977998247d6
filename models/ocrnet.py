"""OCRNet (Yuan et al., ECCV 2020): HRNetV2 with object-contextual representations.

- The four branches at output stride 4, side by side: 15 C channels, 720 with HRNetV2-W48.
- Soft object regions: coarse logits of a small head, 1x1 720 -> 720, batch norm, ReLU, 1x1. They have a cross
  entropy of their own, with weight 0.4.
- Pixel representations: 3x3 720 -> 512. A region's representation is their mean, weighted by the region's
  softmax over space.
- Each pixel's context is a sum over regions, by attention with 256 channels: four transforms, 1x1 with batch
  norm and ReLU, those of query and key twice; products are scaled by the root of the channels. Context and
  pixel go through a 1x1 to 512.
- Dropout of 0.05, of whole channels, and biases in front of two batch norms are the authors'. mmsegmentation,
  which has neither, counts 12.08M parameters with HRNetV2-W18; zeros for those biases are the same.
- Parameter names are those of the authors' HRNet-Semantic-Segmentation (see `models.weights`). Their weights
  were trained with align_corners, so the catalogue builds `HRNet(c, align_corners=True)`; mmsegmentation's
  and NVIDIA's were trained without: `catalogue.build(name, classes, like="mmseg")`, or "nvidia".
- SeeThroughNet's auxiliary heads (Han et al., CVPR 2022, Sec. 4.1) are on the backbone's four branches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.backbones.hrnet import HRNet
from fullres.models.parts import concatenate, resize


class OCRNetOutput(NamedTuple):
    """What the network returns in training."""

    logits: Tensor  # N x classes x H x W, the image's size
    soft_regions: Tensor  # N x classes x H x W, the coarse logits
    heads: tuple[Tensor, ...]  # of the auxiliary heads, N x outputs x h x w, each at its features' size


def _transform(in_channels: int, channels: int) -> tuple[nn.Module, nn.Module]:
    norm = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
    return nn.Conv2d(in_channels, channels, 1, bias=False), norm


def gather_regions(pixels: Tensor, soft_regions: Tensor) -> Tensor:
    """N x C x H x W features and N x K x H x W logits to the regions' representations, N x C x K x 1:
    means weighted by the logits' softmax over space."""
    weights = soft_regions.flatten(2).softmax(2)
    return (pixels.flatten(2) @ weights.transpose(1, 2)).unsqueeze(3)


class ObjectAttention(nn.Module):
    """N x C x H x W pixels and N x C x K x 1 regions to the pixels' context, N x C x H x W."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.f_pixel = nn.Sequential(
            *_transform(channels, key_channels), *_transform(key_channels, key_channels)
        )
        self.f_object = nn.Sequential(
            *_transform(channels, key_channels), *_transform(key_channels, key_channels)
        )
        self.f_down = nn.Sequential(*_transform(channels, key_channels))
        self.f_up = nn.Sequential(*_transform(key_channels, channels))

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        query = self.f_pixel(pixels)
        rows = (x.flatten(2).transpose(1, 2) for x in (query, self.f_object(regions), self.f_down(regions)))
        context = F.scaled_dot_product_attention(*rows)
        return self.f_up(context.transpose(1, 2).unflatten(2, query.shape[-2:]))


class ObjectContext(nn.Module):
    """N x C x H x W pixels and the regions' N x C x K x 1 to N x C x H x W, pixels with context."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(channels, key_channels)
        self.conv_bn_dropout = nn.Sequential(*_transform(2 * channels, channels), nn.Dropout2d(0.05))

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        return self.conv_bn_dropout(torch.cat([self.object_context_block(pixels, regions), pixels], 1))


class OCRNet(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to an `OCRNetOutput`.

    `channels` are the pixel representation's; attention has half of them.
    """

    def __init__(
        self,
        backbone: HRNet,
        num_classes: int,
        channels: int = 512,
        auxiliary: AuxiliaryHeads | None = None,
    ) -> None:
        super().__init__()
        joined = sum(backbone.channels)
        self.align_corners = backbone.align_corners
        self.backbone = backbone
        self.aux_head = nn.Sequential(
            nn.Conv2d(joined, joined, 1), nn.BatchNorm2d(joined), nn.ReLU(), nn.Conv2d(joined, num_classes, 1)
        )
        self.conv3x3_ocr = nn.Sequential(
            nn.Conv2d(joined, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.ocr_distri_head = ObjectContext(channels, channels // 2)
        self.cls_head = nn.Conv2d(channels, num_classes, 1)
        self.auxiliary = auxiliary

    def context(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Of the backbone's features: pixels with context, N x channels, and soft regions, N x classes, both
        at output stride 4."""
        joined = concatenate(features, self.align_corners)
        soft_regions = self.aux_head(joined)
        pixels = self.conv3x3_ocr(joined)
        return self.ocr_distri_head(pixels, gather_regions(pixels, soft_regions)), soft_regions

    def forward(self, image: Tensor) -> Tensor | OCRNetOutput:
        features = self.backbone(image)
        context, soft_regions = self.context(features)
        size = image.shape[-2:]
        logits = resize(self.cls_head(context), size, self.align_corners)
        if not self.training:
            return logits
        heads = () if self.auxiliary is None else self.auxiliary(features)
        return OCRNetOutput(logits, resize(soft_regions, size, self.align_corners), heads)
