"""High-resolution networks (Wang et al., TPAMI 2020): HRNetV2-W18, -W32, -W48 and others of the family.

- Branches at output strides 4, 8, 16 and 32 with C, 2C, 4C and 8C channels run side by side (C is the W of
  the name). Stage 2 starts with two of them, stages 3 and 4 add one each.
- A stage is a row of modules (1, 4 and 3 of them): four basic blocks on each branch, then an exchange in
  which each branch receives the sum of all. Downwards a branch goes through 3x3 convolutions of stride 2,
  upwards through a 1x1 convolution and bilinear interpolation.
- Before them, two 3x3 convolutions of stride 2 and four bottlenecks, 64 wide whatever C is.
- Parameter names are those of the authors' HRNet-Semantic-Segmentation; in a network of this project they
  stand behind `backbone.` (see `models.weights`).
- `align_corners` is how published weights differ: mmsegmentation's and NVIDIA's were trained without it. Of
  the authors' own, HRNetV2's for Cityscapes, LIP and PASCAL-Context with 59 classes were too; those for
  ADE20K and COCO-Stuff, and all with OCR, were trained with it.
- mmsegmentation's exchange enlarges a branch by a factor, 2, 4 or 8, and brings what is then too large to the
  finer branch's size by interpolation once more: `by_factor`. Where all sizes are divisible it is the same.
- The backbone starts as the authors' ImageNet network does, the head as in their segmentation code (normal,
  deviation 0.001).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.auxiliary import TrainingOutput
from fullres.models.backbones.resnet import BasicBlock, Bottleneck, residual_layer
from fullres.models.parts import concatenate, conv_bn, conv_bn_relu, drawn, kaiming, resize


def _bring(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """Features of branch `source` on their way to branch `target`, but for interpolation."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_bn(channels[source], channels[target])
    same = channels[source]
    steps = [conv_bn_relu(same, same, 3, 2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, conv_bn(same, channels[target], 3, 2))


class HighResolutionModule(nn.Module):
    """Four basic blocks on each branch, then the exchange. Takes and returns a list, finest first."""

    def __init__(self, channels: Sequence[int], align_corners: bool, by_factor: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.by_factor = by_factor
        branches = range(len(channels))
        self.branches = nn.ModuleList(residual_layer(BasicBlock, c, c, 4) for c in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_bring(channels, source, target) for source in branches) for target in branches
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        return [self._sum(features, target) for target in range(len(features))]

    def _sum(self, features: list[Tensor], target: int) -> Tensor:
        size = features[target].shape[-2:]
        layers = self.fuse_layers[target]
        brought = []
        for source, (layer, x) in enumerate(zip(layers, features, strict=True)):  # type: ignore[call-overload]
            x = layer(x)
            if self.by_factor and source > target:
                factor = 2 ** (source - target)
                x = resize(x, [factor * n for n in x.shape[-2:]], self.align_corners)
            brought.append(resize(x, size, self.align_corners))
        total = brought[0]
        for x in brought[1:]:
            total = total + x
        return F.relu(total)


class HRNet(nn.Module):
    """The features of a high-resolution network, N x 3 x H x W to four of N x C x ceil(H / s) x ceil(W / s).

    `c` is 18, 32 or 48 as published. `width` multiplies every channel count, `c` and the stem's; `channels`
    are those of the four branches. `by_factor`: how branches are enlarged. Raises ValueError where `width`
    leaves a layer without channels.
    """

    # What published checkpoints hold beside the features, by prefix of the key.
    not_features: ClassVar = (
        *("incre_modules.", "downsamp_modules.", "final_layer.", "classifier."),  # ImageNet
        *("last_layer.", "aux_head.", "conv3x3_ocr.", "ocr_distri_head.", "cls_head."),  # segmentation
    )

    def __init__(
        self, c: int, width: float = 1.0, align_corners: bool = False, by_factor: bool = False
    ) -> None:
        super().__init__()
        base, stem = int(c * width), int(64 * width)
        if min(base, stem) < 1:
            raise ValueError(f"HRNet-W{c} width is {width}: at least 1/{min(c, 64)}")
        self.align_corners = align_corners
        self.by_factor = by_factor
        self.channels = [base * 2**i for i in range(4)]
        c2, c3, c4, c5 = self.channels
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        self.layer1 = residual_layer(Bottleneck, stem, stem, 4)
        self.transition1 = nn.ModuleList(
            [conv_bn_relu(stem * 4, c2, 3), nn.Sequential(conv_bn_relu(stem * 4, c3, 3, 2))]
        )
        self.stage2 = self._stage(1, 2)
        self.transition2 = self._new_branch(c3, c4, 2)
        self.stage3 = self._stage(4, 3)
        self.transition3 = self._new_branch(c4, c5, 3)
        self.stage4 = self._stage(3, 4)
        kaiming(self)

    def _stage(self, modules: int, branches: int) -> nn.Sequential:
        channels = self.channels[:branches]
        return nn.Sequential(
            *(HighResolutionModule(channels, self.align_corners, self.by_factor) for _ in range(modules))
        )

    def _new_branch(self, in_channels: int, channels: int, index: int) -> nn.ModuleList:
        """The branches so far stay as they are; number `index` starts from the coarsest of them."""
        same = [nn.Identity() for _ in range(index)]
        return nn.ModuleList([*same, nn.Sequential(conv_bn_relu(in_channels, channels, 3, 2))])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The branches behind stage 4, at output strides 4, 8, 16 and 32."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        features = self.stage2([transition(x) for transition in self.transition1])
        features = self.stage3([*features, self.transition2[-1](features[-1])])
        c2, c3, c4, c5 = self.stage4([*features, self.transition3[-1](features[-1])])
        return c2, c3, c4, c5


class HRNetV2(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W (Fig. 4b of the paper); in training to a `TrainingOutput`.

    All four branches are interpolated to output stride 4 and joined; a 1x1 convolution mixes their 15 C
    channels, another one classifies. The logits are interpolated to the image's size.
    """

    def __init__(self, backbone: HRNet, num_classes: int) -> None:
        super().__init__()
        channels = sum(backbone.channels)
        self.backbone = backbone
        self.last_layer = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, num_classes, 1),
        )
        for convolution in drawn(self.last_layer):
            nn.init.normal_(convolution.weight, std=0.001)

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        align_corners = self.backbone.align_corners
        features = concatenate(self.backbone(image), align_corners)
        logits = resize(self.last_layer(features), image.shape[-2:], align_corners)
        return TrainingOutput(logits, ()) if self.training else logits
