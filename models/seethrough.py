"""SeeThroughNet (Han et al., CVPR 2022): class probabilities inside a decoder, and two resolutions.

The text leaves layers to an appendix. What is open here follows NVIDIA's two-scale network (Tao et al.,
2020), which the paper builds on.

- Backbone: HRNetV2-W48, four branches at output strides 32, 16, 8 and 4. A head on each, 3x3, batch norm,
  ReLU, 1x1, makes a coarse prediction (Sec. 3.2), 256 channels wide as auxiliary heads are.
- Eq. 3 is a recursion from coarse to fine: the map of a scale is mixed into the next finer head's, by a mask
  made from that map and the backbone's feature of its scale. So three mixed maps come about, X'_16, X'_8 and
  X'_4, and three losses are on them; the map at 32 is mixed with nothing and has no loss of its own.
- The mask's layers are those of NVIDIA's attention between resolutions: 3x3, 3x3, 1x1, sigmoid.
- The finest map is OCR's soft regions, in the place of its auxiliary head. The rest of the OCR head is
  OCRNet's.
- Both resolutions, half and full, go through the same network. Eq. 4 mixes them by a mask made from OCR's
  features at half resolution; nothing is detached.
- Half of an odd length is rounded up: maps at half resolution then have the sizes of class probabilities
  pooled over twice their strides.
- Switches of Table 4. Without CPP the maps have no channel for ignored pixels, and the finest one is trained
  as in NVIDIA's network: mixed like the logits, by cross entropy. Without attention, masks of the decoder are
  1/2 everywhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fullres.models.backbones.hrnet import HRNet
from fullres.models.ocrnet import ObjectContext, gather_regions
from fullres.models.parts import concatenate, conv_bn_relu, resize

# Pixels of the image that a cell of each of `SeeThroughNetOutput.heads` stands for: its target's pooling.
HEAD_SCALES = (4, 8, 16, 8, 16, 32)


class SeeThroughNetOutput(NamedTuple):
    """In training. Logits are N x classes x H x W."""

    logits: Tensor  # of both resolutions
    half: Tensor
    full: Tensor
    heads: tuple[Tensor, ...]  # N x (classes + 1) x ceil(H / s) x ceil(W / s), s of HEAD_SCALES; or none
    soft_regions: tuple[Tensor, ...]  # without CPP one, N x classes x H x W

    @property
    def auxiliary(self) -> Tensor | None:
        """What is trained by cross entropy in the place of class probabilities."""
        return self.soft_regions[0] if self.soft_regions else None


def mix(mask: Tensor, coarse: Tensor, fine: Tensor, align_corners: bool) -> Tensor:
    """Eq. 3 and 4: `coarse` where the mask (N x 1 x h x w, in [0, 1]) is 1, at the size of `fine`."""
    size = fine.shape[-2:]
    return resize(mask * coarse, size, align_corners) + (1 - resize(mask, size, align_corners)) * fine


def attention_head(in_channels: int, channels: int) -> nn.Sequential:
    """N x C x h x w to a mask N x 1 x h x w."""
    return nn.Sequential(
        *conv_bn_relu(in_channels, channels, 3),
        *conv_bn_relu(channels, channels, 3),
        nn.Conv2d(channels, 1, 1, bias=False),
        nn.Sigmoid(),
    )


class SeeThroughDecoder(nn.Module):
    """Features at output strides 4, 8, 16 and 32 to maps N x outputs x h x w at 4, 8 and 16."""

    def __init__(
        self, in_channels: Sequence[int], outputs: int, channels: int, attention: bool, align_corners: bool
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.heads = nn.ModuleList(
            nn.Sequential(*conv_bn_relu(c, channels, 3), nn.Conv2d(channels, outputs, 1)) for c in in_channels
        )
        # In the order of the heads, whose finest has nobody to pass its map to.
        self.masks = nn.ModuleList(
            attention_head(c + outputs, channels) for c in in_channels[1:] if attention
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [head(x) for head, x in zip(self.heads, features, strict=True)]
        for i in reversed(range(len(maps) - 1)):
            coarse, mask = maps[i + 1], torch.full_like(maps[i + 1][:, :1], 0.5)
            if self.masks:
                mask = self.masks[i](torch.cat([features[i + 1], coarse], 1))
            maps[i] = mix(mask, coarse, maps[i], self.align_corners)
        return maps[:-1]


class _OneResolution(NamedTuple):
    logits: Tensor  # N x classes x H x W
    context: Tensor  # N x C x ceil(H / 4) x ceil(W / 4), OCR's features
    maps: list[Tensor]  # the decoder's


class SeeThroughNet(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `SeeThroughNetOutput`.

    `channels` are the pixel representation's; attention and heads have half of them. `cpp` and `attention`
    are Table 4's.
    """

    def __init__(
        self,
        backbone: HRNet,
        num_classes: int,
        channels: int = 512,
        cpp: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        joined = sum(backbone.channels)
        self.cpp = cpp
        self.align_corners = backbone.align_corners
        self.backbone = backbone
        self.decoder = SeeThroughDecoder(
            backbone.channels,
            num_classes + 1 if cpp else num_classes,
            channels // 2,
            attention,
            backbone.align_corners,
        )
        self.conv3x3_ocr = nn.Sequential(
            nn.Conv2d(joined, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.ocr_distri_head = ObjectContext(channels, channels // 2)
        self.cls_head = nn.Conv2d(channels, num_classes, 1)
        self.scale_attn = attention_head(channels, channels // 2)

    def forward(self, image: Tensor) -> Tensor | SeeThroughNetOutput:
        size = image.shape[-2:]
        half_size = [-(-n // 2) for n in size]
        half = self._at_one_resolution(resize(image, half_size, self.align_corners))
        full = self._at_one_resolution(image)
        mask = resize(self.scale_attn(half.context), half_size, self.align_corners)
        logits = mix(mask, half.logits, full.logits, self.align_corners)
        if not self.training:
            return logits
        enlarged = resize(half.logits, size, self.align_corners)
        if self.cpp:
            return SeeThroughNetOutput(logits, enlarged, full.logits, (*full.maps, *half.maps), ())
        regions = mix(
            mask,
            resize(half.maps[0], half_size, self.align_corners),
            resize(full.maps[0], size, self.align_corners),
            self.align_corners,
        )
        return SeeThroughNetOutput(logits, enlarged, full.logits, (), (regions,))

    def _at_one_resolution(self, image: Tensor) -> _OneResolution:
        features = self.backbone(image)
        maps = self.decoder(features)
        pixels = self.conv3x3_ocr(concatenate(features, self.align_corners))
        context = self.ocr_distri_head(pixels, gather_regions(pixels, maps[0]))
        return _OneResolution(
            resize(self.cls_head(context), image.shape[-2:], self.align_corners), context, maps
        )
