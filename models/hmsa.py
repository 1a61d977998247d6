"""Hierarchical multi-scale attention (Tao et al., 2020): OCRNet at several resolutions of the image.

- OCRNet on HRNetV2-W48 labels each resolution by itself, without align_corners.
- A head on OCR's features, 3x3, 3x3, 1x1, sigmoid, says of a resolution where its own logits are to be
  trusted (Sec. 3.1). It is trained with two resolutions, half and full: the coarser one's logits where its
  mask is 1, the finer one's elsewhere; the same mask mixes the soft regions. Nothing is detached.
- Resolutions are chained in evaluation (Sec. 3.1.1), from the highest down. The authors' code: above the
  image's own, the mixture so far is brought down to the next resolution, whose mask is then between the two;
  below it, mask and masked logits are brought up.
- Half of an odd length is rounded down, as in the authors' code (NVIDIA/semantic-segmentation), where this
  network is `ocrnet.HRNet_Mscale`. Their scores on Cityscapes are with scales of 0.5, 1 and 2.
- Loss: RMI of the mixture, 0.4 times the cross entropy of the mixed soft regions, 0.05 times that of each
  resolution: SeeThroughNet's (Han et al., CVPR 2022, Eq. 7), which builds on this network, without its
  decoder.
"""

from collections.abc import Sequence

from torch import Tensor

from fullres.models.backbones.hrnet import HRNet
from fullres.models.ocrnet import OCRNet
from fullres.models.parts import resize
from fullres.models.seethrough import SeeThroughNetOutput, attention_head, mix


class HMSA(OCRNet):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `SeeThroughNetOutput` without heads.

    `channels` are the pixel representation's; attention has half of them. `scales`: the resolutions of
    evaluation, the image's own, 1, among them.
    """

    def __init__(
        self, backbone: HRNet, num_classes: int, channels: int = 512, scales: Sequence[float] = (0.5, 1)
    ) -> None:
        super().__init__(backbone, num_classes, channels)
        self.scales = sorted(scales, reverse=True)
        self.scale_attn = attention_head(channels, channels // 2)

    def forward(self, image: Tensor) -> Tensor | SeeThroughNetOutput:  # type: ignore[override]
        if self.training:
            return self._two_resolutions(image)
        joint: Tensor | None = None
        for scale in self.scales:
            logits, _, mask = self._at(image, scale)
            if joint is None:
                joint = logits
            elif scale >= 1:
                finer = resize(joint, logits.shape[-2:], self.align_corners)
                joint = mask * logits + (1 - mask) * finer
            else:
                joint = mix(mask, logits, joint, self.align_corners)
        assert joint is not None  # 1 is among the scales
        return joint

    def _two_resolutions(self, image: Tensor) -> SeeThroughNetOutput:
        half, half_regions, mask = self._at(image, 0.5)
        full, regions, _ = self._at(image, 1)
        joint = mix(mask, half, full, self.align_corners)
        joint_regions = mix(mask, half_regions, regions, self.align_corners)
        enlarged = resize(half, image.shape[-2:], self.align_corners)
        return SeeThroughNetOutput(joint, enlarged, full, (), (joint_regions,))

    def _at(self, image: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, soft regions and the mask, each of the image's size at that scale."""
        size = [max(1, int(n * scale)) for n in image.shape[-2:]]
        context, regions = self.context(self.backbone(resize(image, size, self.align_corners)))
        maps = (self.cls_head(context), regions, self.scale_attn(context))
        logits, regions, mask = (resize(x, size, self.align_corners) for x in maps)
        return logits, regions, mask
