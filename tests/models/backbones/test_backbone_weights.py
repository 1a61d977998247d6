import pytest
import torch

from fullres.models.backbones.hrnet import HRNet, HRNetV2
from fullres.models.backbones.mobilenet import MobileNetV2
from fullres.models.backbones.resnet import ResNet
from fullres.models.weights import WeightsError, load_backbone
from tests.models.checkpoints import published_hrnet, random_state

torch.set_num_threads(1)

HRNET_HEADS = ("last_layer.", "aux_head.", "conv3x3_ocr.", "ocr_distri_head.", "cls_head.")


def without_values(build):
    """The network with arbitrary parameters, which costs no time."""
    with torch.device("meta"):
        network = build()
    return network.to_empty(device="cpu")


def parameters(state):
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(t.numel() for key, t in state.items() if not key.endswith(buffers))


def assert_holds(network, expected):
    own = network.state_dict()
    assert own.keys() == expected.keys()
    assert [key for key in own if not torch.equal(own[key], expected[key])] == []


@pytest.mark.parametrize(
    ("name", "build", "count", "left_out"),
    [
        ("torchvision_mobilenet_v2", MobileNetV2, 3_504_872, ("features.18.", "classifier.")),
        ("semseg_resnet50_v1c", lambda: ResNet(50, deep_stem=True), 25_680_808, ("fc.",)),
        ("semseg_resnet101_v1c", lambda: ResNet(101, deep_stem=True), 44_672_936, ("fc.",)),
        ("hrnet_w48_cityscapes", lambda: HRNet(48), 65_859_379, HRNET_HEADS),
        ("hrnet_ocr_w48_cityscapes", lambda: HRNet(48), 70_372_678, HRNET_HEADS),
    ],
)
def test_a_published_checkpoint_fills_every_parameter_of_a_backbone(name, build, count, left_out, checkpoint):
    published = random_state(name)
    assert parameters(published) == count
    backbone = without_values(build)
    load_backbone(backbone, checkpoint(published))
    assert_holds(backbone, {key: t for key, t in published.items() if not key.startswith(left_out)})


def test_mmsegmentations_backbones(checkpoint):
    """Its `resnet50_v1c`: the layers of the stem have the numbers of one row."""
    rows = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
    backbone, other = (
        ResNet(50, 1 / 16, output_stride=8, deep_stem=True, stem_channels=64, contract_dilation=True)
        for _ in range(2)
    )
    state = {}
    for name, tensor in backbone.state_dict().items():
        layer, _, rest = name.partition(".")
        state[f"stem.{rows[layer]}.{rest}" if layer in rows else name] = tensor
    load_backbone(other, checkpoint({"state_dict": state | {"fc.weight": torch.rand(2)}}))
    assert_holds(other, backbone.state_dict())


def test_a_whole_networks_checkpoint_fills_the_backbone(checkpoint):
    network, backbone = HRNetV2(HRNet(48, 1 / 12), 5), HRNet(48, 1 / 12)
    load_backbone(backbone, checkpoint(published_hrnet(network)))
    assert_holds(backbone, network.backbone.state_dict())


def test_an_imagenet_classifiers_head_is_left_out(checkpoint):
    backbone, other = (HRNet(48, 1 / 12) for _ in range(2))
    heads = ("incre_modules.0.0.conv1.weight", "downsamp_modules.0.0.bias", "final_layer.0.weight")
    head = {key: torch.rand(2) for key in (*heads, "classifier.weight")}
    load_backbone(other, checkpoint({**backbone.state_dict(), **head}))
    assert_holds(other, backbone.state_dict())


@pytest.mark.parametrize(
    ("backbone", "source", "message"),
    [
        (
            lambda: ResNet(50, 1 / 16),
            lambda: ResNet(50, 1 / 16, deep_stem=True),
            "unexpected: bn2.*shapes: conv1",
        ),
        (
            lambda: ResNet(50, 1 / 16, deep_stem=True),
            lambda: ResNet(50, 1 / 16),
            "missing: bn2.*shapes: conv1",
        ),
        (lambda: MobileNetV2(1 / 4), lambda: MobileNetV2(1 / 2), r"shapes: features\.0\.0\.weight is"),
        (lambda: HRNet(48, 1 / 12), lambda: HRNet(32, 1 / 12), r"shapes: stage2\.0\.branches\.0"),
        (lambda: HRNet(48, 1 / 12), lambda: ResNet(18, 1 / 16), r"missing: bn2\..*unexpected: layer2"),
    ],
)
def test_another_networks_checkpoint_is_refused_and_changes_nothing(backbone, source, message, checkpoint):
    backbone = backbone()
    before = {key: t.clone() for key, t in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_backbone(backbone, checkpoint(source().state_dict()))
    assert_holds(backbone, before)
