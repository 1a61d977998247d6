"""The peer of split-merge: the same weights as a whole-image network without subsampling, dilated instead."""

import copy

from torch import Tensor, nn

from fullres.models.smp import SMP


class Dilated(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W, equal to the SMP network it is made from.

    "It is possible to design a dilated convolution network without using any subsampling operation" (Sec. 1):
    every stride is 1, the pool is gone, and what stood behind a stride is dilated by it. The convolution that
    carried the stride keeps the dilation before it.
    """

    def __init__(self, network: SMP) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(network.backbone)
        self.classifier = copy.deepcopy(network.classifier)
        self.backbone.pool = nn.Identity()
        self.backbone.conv1.stride = (1, 1)
        dilation = 4
        for layer in (self.backbone.layer1, self.backbone.layer2, self.backbone.layer3, self.backbone.layer4):
            for block in layer:
                behind = dilation
                for name in ("conv1", "conv2", "conv3"):
                    if hasattr(block, name):
                        behind = _dilate(getattr(block, name), behind)
                if isinstance(block.downsample, nn.Sequential):
                    _dilate(block.downsample[0], dilation)
                dilation = behind

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.backbone(image)[3])


def _dilate(conv: nn.Module, dilation: int) -> int:
    """Stride out, dilation in; returns the dilation behind this convolution."""
    assert isinstance(conv, nn.Conv2d)
    stride = conv.stride[0]
    conv.stride = (1, 1)
    conv.dilation = (dilation, dilation)
    conv.padding = (dilation * (conv.kernel_size[0] - 1) // 2,) * 2
    return dilation * stride
