"""UPerNet (Xiao et al., ECCV 2018): pyramid pooling on top of a feature pyramid; its part for semantic
segmentation.

- Backbone: ResNet without dilation, features at output strides 4, 8, 16 and 32.
- Pyramid pooling of the last one, then 3x3 to 512 channels. Downwards the others join, each by a 1x1 to 512
  with batch norm and ReLU, as a sum with the level above; 3x3 on each sum.
- All four levels side by side at output stride 4, 3x3 to 512, 1x1 classifier.
- 512 channels are mmsegmentation's (66.42M parameters with ResNet-50 and an auxiliary head) and those of the
  authors' larger network; the smaller has 256. Dropout 0.1 of whole channels is mmsegmentation's alone.
- A pooled grid is reduced before it is interpolated, as in PSPNet and mmsegmentation. The authors interpolate
  2048 channels first, which is many times the work and differs by where the ReLU is; batch norm in training
  has the statistics of the small grids here, those of the interpolated ones there.
"""

from torch import Tensor, nn

from fullres.models.auxiliary import AuxiliaryHeads, TrainingOutput, training_output
from fullres.models.backbones.resnet import ResNet
from fullres.models.parts import concatenate, conv_bn_relu, resize
from fullres.models.pyramid import PyramidPooling


class UPerNet(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `TrainingOutput`."""

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int,
        channels: int = 512,
        align_corners: bool = False,
        auxiliary: AuxiliaryHeads | None = None,
    ) -> None:
        super().__init__()
        *finer, coarsest = backbone.channels
        self.align_corners = align_corners
        self.backbone = backbone
        self.ppm = PyramidPooling(coarsest, channels, align_corners=align_corners)
        self.top = conv_bn_relu(self.ppm.channels, channels, 3)
        self.lateral = nn.ModuleList(conv_bn_relu(c, channels) for c in finer)
        self.smooth = nn.ModuleList(conv_bn_relu(channels, channels, 3) for _ in finer)
        self.fuse = conv_bn_relu(4 * channels, channels, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        self.auxiliary = auxiliary

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        features = self.backbone(image)
        x = self.top(self.ppm(features[3]))
        levels = [x]
        for level in (2, 1, 0):
            fine = self.lateral[level](features[level])
            x = fine + resize(x, fine.shape[-2:], self.align_corners)
            levels.insert(0, self.smooth[level](x))
        fused = self.fuse(concatenate(levels, self.align_corners))
        logits = resize(self.classifier(fused), image.shape[-2:], self.align_corners)
        return training_output(logits, features, self.auxiliary) if self.training else logits
