"""The backbone with which mmsegmentation's figures were counted."""

from fullres.models.backbones.resnet import ResNet


def resnet50(output_stride=8):
    """Its ResNetV1c: the deep stem with half the channels of semseg's, 32, 32 and 64."""
    return ResNet(50, output_stride=output_stride, deep_stem=True, stem_channels=64, contract_dilation=True)
