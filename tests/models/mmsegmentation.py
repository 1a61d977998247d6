"""The backbone with which mmsegmentation's figures were counted."""

from torch import nn

from fullres.models.backbones.resnet import Bottleneck, ResNet, residual_layer


def resnet50(output_stride=8):
    """Its ResNetV1c: the deep stem with half the channels of semseg's, 32, 32 and 64."""
    backbone = ResNet(50, output_stride=output_stride, deep_stem=True)
    backbone.conv1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
    backbone.conv2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False)
    backbone.conv3 = nn.Conv2d(32, 64, 3, 1, 1, bias=False)
    backbone.bn1, backbone.bn2, backbone.bn3 = (nn.BatchNorm2d(c) for c in (32, 32, 64))
    backbone.layer1 = residual_layer(Bottleneck, 64, 64, 3)
    return backbone
