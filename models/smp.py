"""SMP-18, -34, -50, -101, -152: FCN32s with split pooling ("Split-Merge Pooling", Sec. 4.1 and Fig. 3).

"We simply replace the max pooling layer with a split pooling layer and add a split pooling layer after the
batch normalization layer of convolutional blocks with a stride of 2x2 and set their strides to 1x1": five
splits, 1024 split batches at the end, merged five times. "During the training phase, we replace split and
merge pooling by shrink and expand layers."

The network is written with its strides, as shrink pooling at phase (0, 0) leaves it: a 1x1 max pool of stride
2 is that layer. `split_merge` makes the other phases. The parameters are those of FCN32s, name for name.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fullres.models.backbones.resnet import ResNet
from fullres.models.full_resolution.split_merge import FullResolution, Piece, split_merge


class _Strided(nn.Module):
    """FCN32s before its interpolation."""

    def __init__(self, backbone: ResNet, classifier: nn.Conv2d) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.backbone(image)[3])


def subsampling_resnet(depth: int, width: float = 1.0) -> ResNet:
    """A ResNet with split pooling's subsampling in place of max pooling."""
    return ResNet(depth, width, pool=nn.MaxPool2d(1, 2))


class SMP(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W, of any height and width.

    `backbone` comes from `subsampling_resnet`. `forward` runs the whole tree in one go, which takes the
    memory of a dilated network; `pipeline.execute` runs it within a budget.
    """

    def __init__(self, backbone: ResNet, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[3], num_classes, 1)
        self._tree: list[FullResolution] = []  # in a list: no submodule, its parameters are the ones above

    def full_resolution(self) -> FullResolution:
        """The tree of split batches; shares this network's parameters."""
        if not self._tree:
            self._tree.append(split_merge(_Strided(self.backbone, self.classifier)))
        return self._tree[0]

    def forward(self, image: Tensor) -> Tensor:
        return self.full_resolution()(image)

    def shrink(self, image: Tensor, counts: Sequence[int]) -> list[Piece]:
        """Logits on randomly drawn lattices (Sec. 3.2): `counts[i]` phases of the split before output stride
        4, 8, 16, 32 (the first two splits are one, with 16 phases). Each piece: N x classes x h x w."""
        tree = self.full_resolution()
        (name,) = tree.outputs
        return [pieces[name] for pieces in tree.run_phases(image, tree.draw_phases(counts))]
