"""SPGNet: stacked encoders and decoders with semantic prediction guidance (Cheng et al., ICCV 2019).

No code was published. Where the paper leaves a layer open, its counts of parameters and operations decide:
those of Tables 3, 5 to 7, 9, 11 and 12 follow from what is here, but for one (FPN has 11.6M, printed 11.5M).

- A stage is a ResNet ("v1.5": stride on the 3x3) and a decoder of D channels, 128 or 256, at every level.
  Stages may differ in depth. Only the first has a stem; the others start from D channels at output stride 4.
- A decoder level (Sec. 3.3) reduces the encoder's feature by a residual block, its shortcut a 1x1 convolution
  where channels change, and another block. What comes from the level above is interpolated and added, and a
  third block fuses the two. The top level has none where no pooled image stands above it.
- The paper shows one block before and one behind the sum; the second before it is a guess at where the third
  one that is counted stands. So is the 3x3 convolution that ends the decoder at output stride 4.
- Global average pooling and a 1x1 convolution with bias, no batch norm: an image has one value a channel.
- From the second stage on, each level of the encoder receives both features of the stage before, by a 1x1
  convolution each, and passes the sum on, as in MSPN (Sec. 3.1 and Fig. 2c).
- Softmax and sum (Table 3) stand in the sigmoid's and the product's place; the transformed decoder output
  takes part in the sum, or the table's operations would not be those of the other rows.
- SE and GE (Table 4) replace the way to the attention mask and nothing else, so that supervision is all that
  differs; both gather by average pooling, as Fig. 1 draws them.
- Convolutions have batch norm but where logits or a mask are made; in-place ABN is batch norm and ReLU here.
- Sizes of the paper are 32 n + 1 (crops of 769, counted at 1025 x 2049): there the lattices of all output
  strides share their corners, so interpolation is with align_corners=True.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.backbones.resnet import Bottleneck, ResNet, residual_layer
from fullres.models.parts import conv_bn, conv_bn_relu, kaiming, resize

_STRIDE = 32  # of the encoder's last feature


class SPGNetOutput(NamedTuple):
    """In training: the logits of all supervised stages, N x classes x H x W, the last stage's last."""

    stages: tuple[Tensor, ...]

    @property
    def logits(self) -> Tensor:
        return self.stages[-1]


class SPG(nn.Module):
    """Semantic prediction guidance (Sec. 3.4, Fig. 3): decoder output N x D x h x w to the next stage's input
    N x next x h x w, and logits N x classes x h x w, None if not to be supervised.

    A mask is made from the logits. `excite` says how it meets the decoder's transformed output: multiplied
    after a sigmoid or a softmax over space, or as it is in a sum.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        next_channels: int,
        excite: Literal["sigmoid", "softmax", "sum"] = "sigmoid",
        identity: bool = True,
        supervise: bool = True,
    ) -> None:
        super().__init__()
        self.excite, self.identity, self.supervise = excite, identity, supervise
        self.predict = nn.Conv2d(channels, num_classes, 1)
        # Softmax over space takes a bias out again, and so does batch norm behind a sum.
        self.attend = nn.Conv2d(num_classes, channels, 1, bias=excite == "sigmoid")
        self.transform = conv_bn(channels, channels)
        self.output = conv_bn_relu(channels, next_channels)
        kaiming(self)

    def attention(self, logits: Tensor) -> Tensor:
        """The mask, N x D x h x w ("guided attention")."""
        mask = self.attend(logits)
        if self.excite == "sigmoid":
            return mask.sigmoid()
        if self.excite == "softmax":
            return mask.flatten(2).softmax(-1).view_as(mask)
        return mask

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = self.predict(x)
        mask, y = self.attention(logits), self.transform(x)
        y = mask + y if self.excite == "sum" else mask * y
        return self.output(x + y if self.identity else y), logits if self.supervise else None

    def class_attention(self, x: Tensor) -> Tensor:
        """Sec. 4.5, Fig. 4: for each class the L2 norm, over the 15 channels to which the class contributes
        most, of the mask made from decoder output `x`. N x classes x h x w."""
        weights = self.attend.weight[:, :, 0, 0].T  # classes x D
        most = weights.topk(min(15, weights.shape[1]), 1).indices
        chosen = torch.zeros_like(weights).scatter(1, most, 1)
        return F.conv2d(self.attention(self.predict(x)).square(), chosen[:, :, None, None]).sqrt()


class GatherExcite(nn.Module):
    """As `SPG` without supervision, the mask made from averages over `extent` x `extent` cells (GE, Table 4),
    over all of the image with None (SE)."""

    def __init__(self, channels: int, num_classes: int, next_channels: int, extent: int | None = 8) -> None:
        super().__init__()
        hidden = max(1, channels // 16)  # SENet's reduction
        self.extent = extent
        self.attend = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
        self.transform = conv_bn(channels, channels)
        self.output = conv_bn_relu(channels, next_channels)
        kaiming(self)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        size = x.shape[-2:]
        cells = (1, 1) if self.extent is None else (-(-size[0] // self.extent), -(-size[1] // self.extent))
        mask = self.attend(F.adaptive_avg_pool2d(x, cells)).sigmoid()
        return self.output(x + F.interpolate(mask, size) * self.transform(x)), None


def squeeze_excite(channels: int, num_classes: int, next_channels: int) -> GatherExcite:
    """SE of Table 4."""
    return GatherExcite(channels, num_classes, next_channels, extent=None)


class Unguided(nn.Module):
    """The baseline of Table 3: the decoder's output is passed on, the prediction is for the loss alone."""

    def __init__(self, channels: int, num_classes: int, next_channels: int) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(channels, num_classes, 1)
        self.output = conv_bn_relu(channels, next_channels)
        kaiming(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.output(x), self.auxiliary(x) if self.training else None


class Decoder(nn.Module):
    """Encoder features (finest first) and the pooled image or None, to as many features of D channels."""

    def __init__(self, encoder_channels: Sequence[int], channels: int, pooled: bool) -> None:
        super().__init__()
        quarter = channels // 4
        self.reduce = nn.ModuleList(residual_layer(Bottleneck, c, quarter, 2) for c in encoder_channels)
        fused = len(encoder_channels) - (not pooled)
        self.fuse = nn.ModuleList(Bottleneck(channels, quarter, 1, 1, None) for _ in range(fused))

    def forward(self, features: Sequence[Tensor], above: Tensor | None) -> list[Tensor]:
        levels: list[Tensor] = []
        for i in reversed(range(len(features))):
            x = self.reduce[i](features[i])
            if above is not None:
                x = self.fuse[i](x + resize(above, x.shape[-2:], align_corners=True))
            levels.append(x)
            above = x
        return levels[::-1]


class FPNDecoder(nn.Module):
    """In `Decoder`'s place, as in feature pyramid networks (Table 11): single convolutions, nearest neighbour
    interpolation, and a 3x3 on the finest level, the only one that is used for prediction."""

    def __init__(self, encoder_channels: Sequence[int], channels: int, pooled: bool) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(conv_bn_relu(c, channels) for c in encoder_channels)
        self.smooth = conv_bn_relu(channels, channels, 3)

    def forward(self, features: Sequence[Tensor], above: Tensor | None) -> list[Tensor]:
        levels: list[Tensor] = []
        for reduce, feature in zip(reversed(self.reduce), reversed(features), strict=True):
            x = reduce(feature)
            above = x if above is None else x + F.interpolate(above, x.shape[-2:])
            levels.append(above)
        return [self.smooth(levels[-1]), *levels[-2::-1]]


def _pooled(crop: tuple[int, int]) -> tuple[int, int]:
    """Elements of the last features that a crop has, upwards and across."""
    return -(-crop[0] // _STRIDE), -(-crop[1] // _STRIDE)


class ImagePool(nn.Module):
    """Average over the image and 1x1: N x C x h x w to N x D x 1 x 1.

    With the size of training `crop`s, evaluation averages over windows of that size instead (AP, Table 12),
    to N x D x h x w: a pixel that is no window's centre takes the nearest window.
    """

    def __init__(self, in_channels: int, channels: int, crop: tuple[int, int] | None) -> None:
        super().__init__()
        self.window = crop and _pooled(crop)
        self.conv = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.window is None:
            return self.conv(x.mean((-2, -1), keepdim=True))
        height, width = (min(pair) for pair in zip(self.window, x.shape[-2:], strict=True))
        x = F.avg_pool2d(F.avg_pool2d(x, (height, 1), 1), (1, width), 1)
        padding = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
        return F.pad(self.conv(x), padding, mode="replicate")


class Stemless(nn.Module):
    """A ResNet that starts with layer1, at output stride 4."""

    not_features: ClassVar = (*ResNet.not_features, "conv1.", "bn1.")

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.layer1, self.layer2 = backbone.layer1, backbone.layer2
        self.layer3, self.layer4 = backbone.layer3, backbone.layer4

    def stem(self, x: Tensor) -> Tensor:
        return x


class StageFeatures(NamedTuple):
    """Finest first, at output strides 4 to 32; `output` N x D x h x w at 4."""

    encoder: list[Tensor]
    decoder: list[Tensor]
    output: Tensor


class Stage(nn.Module):
    """The image, or the input made from the stage before and that stage's features, to `StageFeatures`.

    `before` are the channels of the encoder before, None in the first stage.
    """

    def __init__(
        self,
        encoder: ResNet,
        channels: int,
        before: Sequence[int] | None,
        decode: Callable[[Sequence[int], int, bool], nn.Module],
        gap: bool,
        crop: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        own = encoder.channels
        self.pool = ImagePool(own[-1], channels, crop) if gap else None
        self.decoder = decode(own, channels, gap)
        self.output = conv_bn_relu(channels, channels, 3)
        if before is not None:
            pairs = zip(before, own, strict=True)
            self.from_encoder = nn.ModuleList(conv_bn_relu(c, to) for c, to in pairs)
            self.from_decoder = nn.ModuleList(conv_bn_relu(channels, to) for to in own)
        kaiming(self)
        # Behind `kaiming`: it may come with weights.
        self.encoder: ResNet | Stemless = encoder if before is None else Stemless(encoder)

    def forward(self, x: Tensor, before: StageFeatures | None) -> StageFeatures:
        encoder = self.encoder
        x = encoder.stem(x)
        features = []
        for i, layer in enumerate((encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)):
            x = layer(x)
            if before is not None:
                x = x + self.from_encoder[i](before.encoder[i]) + self.from_decoder[i](before.decoder[i])
            features.append(x)
        decoded = self.decoder(features, None if self.pool is None else self.pool(x))
        return StageFeatures(features, decoded, self.output(decoded[0]))


class SPGNet(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training `SPGNetOutput`.

    Args:
        encoders: one a stage, of output stride 32. The later ones' stems are left out.
        channels: D, a multiple of 4.
        guide: builds what stands between two stages from D, the classes and the next encoder's channels:
            `SPG` or a partial of it, `GatherExcite`, `squeeze_excite` or `Unguided`.
        decode: `Decoder` or `FPNDecoder`.
        gap: whether decoders start from the pooled image.
        crop: height and width of training crops: evaluation pools over as much, not over the whole image.
    """

    def __init__(
        self,
        encoders: Sequence[ResNet],
        num_classes: int,
        channels: int = 128,
        guide: Callable[[int, int, int], nn.Module] = SPG,
        decode: Callable[[Sequence[int], int, bool], nn.Module] = Decoder,
        gap: bool = True,
        crop: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        before = [None, *(encoder.channels for encoder in encoders)]
        self.stages = nn.ModuleList(
            Stage(encoder, channels, c, decode, gap, crop)
            for encoder, c in zip(encoders, before, strict=False)
        )
        inputs = [next(encoder.layer1.parameters()).shape[1] for encoder in encoders]
        self.guides = nn.ModuleList(guide(channels, num_classes, c) for c in inputs[1:])
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        kaiming(self.classifier)

    def forward(self, image: Tensor) -> Tensor | SPGNetOutput:
        size = image.shape[-2:]
        stages = [logits for _, logits in self._run(image) if logits is not None]
        if not self.training:
            return resize(stages[-1], size, align_corners=True)
        return SPGNetOutput(tuple(resize(logits, size, align_corners=True) for logits in stages))

    def pool_over(self, crop: tuple[int, int]) -> None:
        """In evaluation pool over windows of the training crops' size (AP, Table 12), as with `crop`. Raises
        ValueError where decoders do not start from the pooled image."""
        pools = [stage.pool for stage in self.stages if isinstance(stage.pool, ImagePool)]
        if not pools:
            raise ValueError("no pooling to change")
        for pool in pools:
            pool.window = _pooled(crop)

    def guided(self, image: Tensor, stage: int = 0) -> tuple[Tensor, Tensor]:
        """Logits, and guided attention of each class behind a stage (Sec. 4.5) as it is; both N x classes x H
        x W.

        Raises:
            ValueError: no SPG module there.
        """
        if stage >= len(self.guides):
            raise ValueError(f"behind stage {stage} is no other stage, so nothing that attends to a class")
        guide = self.guides[stage]
        if not isinstance(guide, SPG):
            raise ValueError(f"behind stage {stage} is {type(guide).__name__}, which attends to no class")
        for i, (decoded, given) in enumerate(self._run(image)):
            if i == stage:
                maps = guide.class_attention(decoded)
            if given is not None:  # the last stage's is
                logits = given
        size = image.shape[-2:]
        return resize(logits, size, align_corners=True), resize(maps, size, align_corners=True)

    def attention(self, image: Tensor, stage: int = 0) -> Tensor:
        """Guided attention to look at: as `guided`, each map stretched to [0, 1]."""
        return stretched(self.guided(image, stage)[1])

    def _run(self, image: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Decoder output and logits of each stage, at output stride 4."""
        x, before = image, None
        for stage, guide in zip(self.stages[:-1], self.guides, strict=True):
            before = stage(x, before)
            x, logits = guide(before.output)
            yield before.output, logits
        output = self.stages[-1](x, before).output
        yield output, self.classifier(output)

    @property
    def has_attention(self) -> bool:
        """Whether `guided` works behind the first stage."""
        return len(self.guides) > 0 and isinstance(self.guides[0], SPG)


def stretched(maps: Tensor) -> Tensor:
    """... x H x W, each map's least value to 0 and its greatest to 1; a map of one value is 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
