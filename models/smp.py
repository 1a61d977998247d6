"""SMP-18, -34, -50, -101, -152: FCN32s with split pooling ("Split-Merge Pooling", Sec. 4.1 and Fig. 3).

"We simply replace the max pooling layer with a split pooling layer and add a split pooling layer after the
batch normalization layer of convolutional blocks with a stride of 2x2 and set their strides to 1x1": five
splits, 1024 split batches at the end, merged five times. "During the training phase, we replace split and
merge pooling by shrink and expand layers."

The network is written with its strides, as shrink pooling at phase (0, 0) leaves it: a 1x1 max pool of stride
2 is that layer. `split_merge` makes the other phases. The parameters are those of FCN32s, name for name.
"""

from torch import Tensor, nn

from fullres.models.backbones.resnet import ResNet
from fullres.models.fcn import FCN32s
from fullres.models.full_resolution.split_merge import FullResolution, split_merge
from fullres.models.lattices import Lattice, LatticeOutput
from fullres.ops.pooling import share_of_phases, shares_of_phases
from fullres.ops.replicas import ReplicaBatchNorm2d


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
    memory of a dilated network; `pipeline.predict.execute` runs it within a budget. In training it shrinks
    (Sec. 3.2): logits on randomly drawn lattices, `phases[i]` of the split before output stride 4, 8, 16, 32
    (the first two splits are one, with 16 phases).
    """

    def __init__(self, backbone: ResNet, num_classes: int) -> None:
        super().__init__()
        self.phases: tuple[int, ...] = (1, 1, 1, 1)
        self.share = (0, 1)
        self.activation_checkpointing = False
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[3], num_classes, 1)
        self._tree: list[FullResolution] = []  # in a list: no submodule, its parameters are the ones above

    def strided(self) -> nn.Module:
        """The network as it is at phase (0, 0), N x 3 x H x W to N x classes x H/32 x W/32."""
        return _Strided(self.backbone, self.classifier)

    def full_resolution(self) -> FullResolution:
        """The tree of split batches; shares this network's parameters."""
        if not self._tree:
            self._tree.append(split_merge(self.strided()))
        return self._tree[0]

    def forward(self, image: Tensor) -> Tensor | LatticeOutput:
        tree = self.full_resolution()
        if not self.training:
            return tree(image)
        (name,) = tree.outputs
        drawn = share_of_phases(tree.draw_phases(self.phases), *self.share)
        batches = [pieces[name] for pieces in tree.run_phases(image, drawn, self.activation_checkpointing)]
        return LatticeOutput(
            tuple(
                Lattice(logits, offset, batch.stride)
                for batch in batches
                for offset, logits in batch.leaves(len(image))
            )
        )

    def share_phases(self, index: int, count: int) -> None:
        """In training be one of `count` replicas in a group that see the same images: each takes its share of
        the phases drawn, so together they are one network that has all of them. Behind `replicas.shared`.

        Raises ValueError where the phases are no multiple of `count`.
        """
        self.share, distinct = (index, count), 1
        shares = shares_of_phases(self.phases, count)
        for level, of_level in zip(self.full_resolution().levels, shares, strict=True):
            distinct *= of_level
            for step in level.steps:
                if isinstance(step.call, ReplicaBatchNorm2d):
                    step.call.copies = count // distinct

    def dilated(self) -> FCN32s:
        """SMP on every fourth pixel: its first two splits, phase (0, 0) alone, and dilation in the place of
        the other three. Takes the modules over, this network can't be used any more."""
        _dilate(self.backbone, 1)
        form = FCN32s(self.backbone, self.classifier.out_channels)
        form.classifier = self.classifier
        return form

    def without_splits(self) -> nn.Module:
        """SMP at every pixel by dilation in the place of all splits: what `forward` computes, as a chain of
        convolutions whose features have the size of the image. Takes the modules over, this network can't be
        used any more."""
        conv = self.backbone.conv1
        conv.stride, self.backbone.pool = (1, 1), nn.Identity()
        _dilate(self.backbone, 4)  # conv1's split, and the one in place of max pooling
        return self.strided()


def _dilate(backbone: ResNet, dilation: int) -> None:
    """Dilation in the place of the strides of all layers, behind splits that left `dilation`."""
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        convolutions = [m for m in layer.modules() if isinstance(m, nn.Conv2d)]
        after = dilation if all(conv.stride == (1, 1) for conv in convolutions) else 2 * dilation
        for conv in convolutions:
            strided = conv.stride != (1, 1)  # it still reads the finer lattice
            rate = dilation if strided else after
            conv.stride, conv.dilation = (1, 1), (rate, rate)
            conv.padding = (rate * (conv.kernel_size[0] // 2),) * 2
        dilation = after
