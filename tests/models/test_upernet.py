import pytest
import torch
import torch.nn.functional as F

from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import parameter_count
from fullres.models.upernet import UPerNet
from tests.models.base import check_export, check_network, image, settled
from tests.models.mmsegmentation import resnet50

torch.set_num_threads(1)


def upernet(align_corners=False):
    backbone = ResNet(50, 1 / 16, deep_stem=True)
    auxiliary = AuxiliaryHeads(backbone.channels, 6, (0, 1, 2, 3), channels=8)
    return UPerNet(backbone, 5, channels=12, align_corners=align_corners, auxiliary=auxiliary)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (45, 33)])
def test_pyramids(align_corners, size):
    network = settled(lambda: upernet(align_corners)).double()
    state = network.state_dict()

    def unit(x, name, index=0):
        w = state[f"{name}.{index}.weight"]
        x = F.conv2d(x, w, None, 1, w.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{index + 1}.{n}"] for n in names)).relu()

    def enlarged(x, like):
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)

    x = image(1, size, torch.float64)
    with torch.no_grad():
        c2, c3, c4, c5 = network.backbone(x)
        pooled = [c5]
        for i, n in enumerate((1, 2, 3, 6)):
            pooled.append(enlarged(unit(F.adaptive_avg_pool2d(c5, n), f"ppm.features.{i}", 1), c5))
        p5 = unit(torch.cat(pooled, 1), "top")
        p4 = unit(c4, "lateral.2") + enlarged(p5, c4)
        p3 = unit(c3, "lateral.1") + enlarged(p4, c3)
        p2 = unit(c2, "lateral.0") + enlarged(p3, c2)
        levels = [unit(p2, "smooth.0"), unit(p3, "smooth.1"), unit(p4, "smooth.2"), p5]
        fused = unit(torch.cat([enlarged(level, c2) for level in levels], 1), "fuse")
        scores = F.conv2d(fused, state["classifier.1.weight"], state["classifier.1.bias"])
        torch.testing.assert_close(network(x), enlarged(scores, x))


def test_contract():
    check_network(upernet, 5)


@pytest.mark.slow
def test_export():
    check_export(upernet)


def test_mmsegmentations_figure():
    with torch.device("meta"):
        backbone = resnet50(output_stride=32)
        network = UPerNet(backbone, 19, auxiliary=AuxiliaryHeads(backbone.channels, 19))
    assert parameter_count(network) / 1e6 == pytest.approx(66.42, abs=5e-3)
