"""The networks by name: what `--model` takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from fullres.models.ann import ANN
from fullres.models.backbones.hrnet import HRNet, HRNetV2
from fullres.models.backbones.mobilenet import MobileNetV2
from fullres.models.backbones.resnet import ResNet
from fullres.models.backbones.xception import Xception
from fullres.models.ccnet import CCNet
from fullres.models.deeplab import DeepLabV3Plus
from fullres.models.dmnet import DMNet
from fullres.models.downsampler import Downsampler
from fullres.models.fcn import FCN8s, FCN32s
from fullres.models.hmsa import HMSA
from fullres.models.ocrnet import OCRNet
from fullres.models.pspnet import DilatedFCN, PSPNet
from fullres.models.seethrough import SeeThroughNet
from fullres.models.smp import SMP, subsampling_resnet
from fullres.models.spgnet import SPG, FPNDecoder, GatherExcite, SPGNet, Unguided, squeeze_excite
from fullres.models.unet import UNet
from fullres.models.upernet import UPerNet
from fullres.ops.normalisation import CAFFE, IMAGENET, Normalisation

Loss = Literal["cross_entropy", "ohem", "rmi", "squared_error", "energy"]

# Whose network of that name it is to be, where it is not the catalogue's own: it computes what that one
# computes, by other settings of the same modules. Its weights were trained for those. With "-aligned":
# interpolation with align_corners, of mmsegmentation's 769x769 and of the HRNet authors' OCR branch.
Publisher = Literal["mmseg", "mmseg-aligned", "hrnet-aligned", "nvidia", "ccnet"]
MMSEG: tuple[Publisher, ...] = ("mmseg", "mmseg-aligned")


@dataclass(frozen=True)
class Entry:
    """A network of the catalogue, and what the rest of the project has to know of it.

    build: of num_classes and width, and of `like` where `publishers` has some: whose networks of this name it
    can be besides the catalogue's own. family: the name without the backbone, which published checkpoints are
    recognised as. output_stride: that of its coarsest features. evidence: the module with the backbone's last
    features, which `fullres explain` shows. labelled_by: how images are labelled with it; split-merge is
    exact and keeps a memory budget; "no": not at all. training_options: attributes that a training sets from
    its configuration. auxiliary: behind which of the backbone's features it has auxiliary heads in training
    if nothing else is asked for, 0 the finest; None: it takes none. losses: what its prediction may be
    trained by, its paper's first. encoders: what published weights of a backbone are loaded into.
    """

    name: str
    build: Callable[..., nn.Module]
    paper: str
    backbone: str
    output_stride: int
    evidence: str
    labelled_by: Literal["split-merge", "windows", "no"] = "windows"
    training_options: tuple[str, ...] = ()
    auxiliary: tuple[int, ...] | None = None
    losses: tuple[Loss, ...] = ("cross_entropy", "ohem")
    encoders: tuple[str, ...] = ("backbone",)
    publishers: tuple[Publisher, ...] = ()
    family: str = ""

    @property
    def segments(self) -> bool:
        """Whether it labels images. A downsampler says where to sample them."""
        return self.labelled_by != "no"

    @property
    def splits(self) -> bool:
        """Whether its pooling splits (SMP): every phase is wanted, and training shrinks."""
        return "phases" in self.training_options


def _smp(depth: int, num_classes: int, width: float) -> SMP:
    return SMP(subsampling_resnet(depth, width), num_classes)


def _fcn32s(depth: int, num_classes: int, width: float) -> FCN32s:
    return FCN32s(ResNet(depth, width), num_classes)


def _fcn8s(depth: int, num_classes: int, width: float) -> FCN8s:
    return FCN8s(ResNet(depth, width), num_classes)


def _on_resnet(
    network: Callable[..., nn.Module],
    stride: int,
    depth: int,
    num_classes: int,
    width: float,
    like: Publisher | None = None,
) -> nn.Module:
    backbone = _resnet(depth, width, stride, like)
    channels = _scaled(512, width)
    if like is None:
        return network(backbone, num_classes, channels=channels)
    if like == "ccnet":
        return network(backbone, num_classes, channels=channels, align_corners=True, slope=0.01)
    deeper = {"deeper": True} if network is DilatedFCN else {}
    aligned = like == "mmseg-aligned"
    return network(backbone, num_classes, channels=channels, align_corners=aligned, **deeper)


def _resnet(depth: int, width: float, output_stride: int, like: Publisher | None = None) -> ResNet:
    if like == "ccnet":
        pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        return ResNet(depth, width, pool, output_stride, deep_stem=True)
    if like is None:
        return ResNet(depth, width, output_stride=output_stride, deep_stem=True)
    return ResNet(
        depth, width, output_stride=output_stride, deep_stem=True, stem_channels=64, contract_dilation=True
    )


def _xception(width: float, output_stride: int, like: None = None) -> Xception:
    return Xception(width, output_stride=output_stride)


def _mobilenet(width: float, output_stride: int, like: Publisher | None = None) -> MobileNetV2:
    return MobileNetV2(width, output_stride, dilate_first=like is not None)


def _deeplab(
    backbone: Callable[..., Any], num_classes: int, width: float, like: Publisher | None = None
) -> nn.Module:
    if like is None:
        return DeepLabV3Plus(backbone(width, 16), num_classes, channels=_scaled(256, width))
    return DeepLabV3Plus(
        backbone(width, 8, like), num_classes, channels=_scaled(512, width), rates=(12, 24, 36), projection=3,
        align_corners=like == "mmseg-aligned",
    )  # fmt: skip


def _on_hrnet(
    network: Callable[..., nn.Module],
    c: int,
    align_corners: bool,
    num_classes: int,
    width: float,
    like: Publisher | None = None,
    **variant: Any,
) -> nn.Module:
    backbone = HRNet(c, width, align_corners and like is None, by_factor=like == "mmseg")
    return network(backbone, num_classes, channels=_scaled(512, width), **variant)


def _hrnet(c: int, num_classes: int, width: float, like: Publisher | None = None) -> nn.Module:
    backbone = HRNet(c, width, align_corners=like == "hrnet-aligned", by_factor=like == "mmseg")
    return HRNetV2(backbone, num_classes)


def _spgnet(
    depths: tuple[int, ...], channels: int, num_classes: int, width: float, **variant: Any
) -> nn.Module:
    encoders = [ResNet(depth, width) for depth in depths]
    return SPGNet(encoders, num_classes, channels=_scaled(channels, width) // 4 * 4, **variant)


def _unet(num_classes: int, width: float) -> nn.Module:
    return UNet(num_classes, width)


def _downsampler(grid: int, num_classes: int, width: float) -> Downsampler:
    return Downsampler(grid, _scaled(256, width) // 4 * 4)


def _scaled(channels: int, width: float) -> int:
    return max(8, int(channels * width))


def _entries() -> list[Entry]:
    entries = []
    for family, smp, options in (
        ("smp", _smp, ("phases", "activation_checkpointing")),
        ("fcn32s", _fcn32s, ("loss_stride",)), ("fcn8s", _fcn8s, ("loss_stride",)),
    ):  # fmt: skip
        for depth in (18, 34, 50, 101, 152):
            entries.append(
                Entry(
                    f"{family}{depth}", partial(smp, depth), "SMP", f"ResNet-{depth}", 32, "backbone.layer4",
                    labelled_by="split-merge", training_options=options, losses=("cross_entropy",),
                )
            )  # fmt: skip
    resnets: list[tuple[str, Callable[..., nn.Module], str, int, tuple[int, ...]]] = [
        ("pspnet", PSPNet, "PSPNet", 8, (50, 101, 152, 269)),
        ("dilatedfcn", DilatedFCN, "PSPNet (baseline)", 8, (50, 101)),
        ("upernet", UPerNet, "UPerNet", 32, (50, 101)),
        ("ann", ANN, "ANN", 8, (50, 101)),
        ("ccnet", CCNet, "CCNet", 8, (50, 101)),
        ("dmnet", DMNet, "DMNet", 8, (50, 101)),
    ]
    for family, network, paper, stride, depths in resnets:
        for depth in depths:
            entries.append(
                Entry(
                    f"{family}{depth}", partial(_on_resnet, network, stride, depth), paper, f"ResNet-{depth}",
                    stride, "backbone.layer4", auxiliary=(2,), family=family,
                    publishers=(*MMSEG, "ccnet") if family == "ccnet" else MMSEG,
                )
            )  # fmt: skip
    deeplabs: list[tuple[str, Callable[..., nn.Module], str, str]] = [
        *((str(depth), partial(_resnet, depth), f"ResNet-{depth}", "layer4") for depth in (50, 101)),
        ("-xception", _xception, "Xception-65", "exit2"),
        ("-mobilenet", _mobilenet, "MobileNetV2", "features.17"),
    ]
    for suffix, backbone, label, last in deeplabs:
        published = backbone is not _xception
        entries.append(
            Entry(
                f"deeplabv3plus{suffix}", partial(_deeplab, backbone), "DeepLabV3+", label, 16,
                f"backbone.{last}", auxiliary=(2,), encoders=("backbone",) if published else (),
                publishers=MMSEG if published else (), family="deeplabv3plus",
            )
        )  # fmt: skip
    stage4 = "backbone.stage4"
    for c in (18, 32, 48):
        label = f"HRNetV2-W{c}"
        hrnet, ocrnet = partial(_hrnet, c), partial(_on_hrnet, OCRNet, c, True)
        entries.append(
            Entry(
                f"hrnet{c}", hrnet, "HRNet", label, 4, stage4, publishers=("mmseg", "hrnet-aligned"),
                family="hrnet",
            )
        )  # fmt: skip
        # Its soft regions are what an auxiliary head would be.
        entries.append(
            Entry(
                f"ocrnet{c}", ocrnet, "OCRNet", label, 4, stage4, auxiliary=(),
                publishers=("mmseg", "nvidia"), family="ocrnet",
            )
        )  # fmt: skip
    resolutions: list[tuple[str, tuple[float, ...]]] = [("hmsa48", (0.5, 1)), ("hmsa48x3", (0.5, 1, 2))]
    for name, scales in resolutions:
        hmsa = partial(_on_hrnet, HMSA, 48, False, scales=scales)
        entries.append(
            Entry(
                name, hmsa, "HMSA", "HRNetV2-W48", 4, stage4, losses=("rmi", "cross_entropy"), family="hmsa"
            )
        )
    # The switches of Table 4.
    variants: list[tuple[str, dict[str, Any]]] = [
        ("seethroughnet48", {}),
        ("seethroughnet48-no-cpp", {"cpp": False}),
        ("seethroughnet48-no-attention", {"attention": False}),
        ("seethroughnet48-neither", {"cpp": False, "attention": False}),
    ]
    for name, variant in variants:
        seethrough = partial(_on_hrnet, SeeThroughNet, 48, False, **variant)
        entries.append(
            Entry(
                name, seethrough, "SeeThroughNet", "HRNetV2-W48", 4, stage4, losses=("rmi", "cross_entropy")
            )
        )
    entries.append(Entry("unet", _unet, "U-Net", "-", 16, "body.down.4", encoders=()))
    for grid in (8, 16, 32):
        entries.append(
            Entry(
                f"downsampler{grid}", partial(_downsampler, grid), "Downsampling", "-", 4, "network.second",
                labelled_by="no", losses=("squared_error", "energy"), encoders=(),
            )
        )  # fmt: skip
    return [*entries, *_spgnets()]


def _spgnets() -> Iterator[Entry]:
    """The networks of SPGNet's Tables 1 and 3 to 12."""
    variants: list[tuple[str, tuple[int, ...], int, dict[str, Any]]] = [
        *((f"spgnet{depth}", (depth,), 128, {}) for depth in (18, 50, 101, 152)),
        *((f"spgnet{depth}x2", (depth, depth), 128, {}) for depth in (18, 50, 101)),
        *((f"spgnet{depth}x2-d256", (depth, depth), 256, {}) for depth in (50, 101)),
        ("spgnet18x3", (18, 18, 18), 128, {}),
        ("spgnet18-50", (18, 50), 128, {}),
        ("spgnet50-18", (50, 18), 128, {}),
        ("spgnet18x2-unguided", (18, 18), 128, {"guide": Unguided}),
        ("spgnet18x2-sum", (18, 18), 128, {"guide": partial(SPG, excite="sum")}),
        ("spgnet18x2-softmax", (18, 18), 128, {"guide": partial(SPG, excite="softmax")}),
        ("spgnet18x2-no-identity", (18, 18), 128, {"guide": partial(SPG, identity=False)}),
        ("spgnet18x2-no-supervision", (18, 18), 128, {"guide": partial(SPG, supervise=False)}),
        ("spgnet18x2-se", (18, 18), 128, {"guide": squeeze_excite}),
        ("spgnet18x2-ge", (18, 18), 128, {"guide": GatherExcite}),
        ("spgnet18-no-gap", (18,), 128, {"gap": False}),
        ("spgnet18-fpn", (18,), 128, {"gap": False, "decode": FPNDecoder}),
    ]
    for name, depths, channels, variant in variants:
        alike = len(set(depths)) == 1
        label = f"{len(depths)} x ResNet-{depths[0]}" if alike else " + ".join(f"ResNet-{d}" for d in depths)
        encoders = tuple(f"stages.{i}.encoder" for i in range(len(depths)))
        yield Entry(
            name, partial(_spgnet, depths, channels, **variant), "SPGNet", label.removeprefix("1 x "), 32,
            f"{encoders[-1]}.layer4", losses=("ohem", "cross_entropy"), encoders=encoders,
        )  # fmt: skip


CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _entries()}


def build(name: str, num_classes: int, width: float = 1.0, like: Publisher | None = None) -> nn.Module:
    """A network with fresh parameters; with `like` as that publisher has it, not the catalogue. One that
    reads images otherwise than ImageNet's networks do says so, `normalisation`. Raises ValueError that lists
    what there is."""
    check(name, like)
    if like is None:
        return CATALOGUE[name].build(num_classes, width)
    network = CATALOGUE[name].build(num_classes, width, like=like)
    if (how := normalisation(like)) != IMAGENET:
        network.normalisation = how  # type: ignore[assignment]
    return network


def normalisation(like: Publisher | None) -> Normalisation:
    """How a publisher's networks read images."""
    return CAFFE if like == "ccnet" else IMAGENET


def check(name: str, like: str | None = None) -> None:
    """Raise ValueError for a name that the catalogue lacks, or a publisher that the network lacks."""
    if name not in CATALOGUE:
        raise ValueError(f"model is '{name}': one of {', '.join(CATALOGUE)}")
    if like is not None and like not in (there := CATALOGUE[name].publishers):
        raise ValueError(
            f"like is '{like}': {name} has none"
            if not there
            else f"like is '{like}': {name} has {', '.join(there)}, or none, which is the catalogue's own"
        )


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
