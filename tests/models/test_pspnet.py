import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.auxiliary import AuxiliaryHeads, enlarge
from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import parameter_count
from fullres.models.count import count_macs
from fullres.models.pspnet import DilatedFCN, PSPNet
from fullres.models.pyramid import PyramidPooling
from fullres.models.weights import load_pretrained
from tests.models.base import check_export, check_network, image, settled
from tests.models.checkpoints import random_state
from tests.models.mmsegmentation import resnet50

torch.set_num_threads(1)


def backbone():
    return ResNet(50, 1 / 16, output_stride=8, deep_stem=True)


def pspnet(stages=(2,), outputs=5, **arguments):
    network = backbone()
    auxiliary = AuxiliaryHeads(network.channels, outputs, stages, channels=8)
    return PSPNet(network, 5, channels=16, auxiliary=auxiliary, **arguments)


def fcn():
    network = backbone()
    return DilatedFCN(network, 5, channels=16, auxiliary=AuxiliaryHeads(network.channels, 5, channels=8))


def pooled(x, bins, maximum):
    """Bin i of an axis of n elements: from floor(i n / bins) up to ceil((i + 1) n / bins)."""
    out = x.new_empty(*x.shape[:2], bins, bins)
    height, width = x.shape[2:]
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * height // bins, -(-(i + 1) * height // bins))
            columns = slice(j * width // bins, -(-(j + 1) * width // bins))
            part = x[:, :, rows, columns].flatten(2)
            out[:, :, i, j] = part.amax(2) if maximum else part.mean(2)
    return out


def enlarged(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("maximum", [False, True])
@pytest.mark.parametrize("reduced", [None, 3])
@pytest.mark.parametrize("bins", [(1,), (1, 2, 3, 6)])
@pytest.mark.parametrize("size", [(12, 18), (7, 10), (4, 1)])
def test_pooling_of_table_1(maximum, reduced, bins, size):
    ppm = PyramidPooling(4, reduced, bins, maximum, align_corners=True).double().eval()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = [x]
    for n, feature in zip(bins, ppm.features, strict=True):
        grid = pooled(x, n, maximum)
        if reduced:
            convolution, norm = feature[1], feature[2]
            grid = norm(torch.einsum("ncij,dc->ndij", grid, convolution.weight[:, :, 0, 0])).clamp(min=0)
        expected.append(enlarged(grid, size))
    out = ppm(x)
    torch.testing.assert_close(out, torch.cat(expected, 1))
    assert out.shape[1] == ppm.channels


@pytest.mark.parametrize("size", [(65, 97), (33, 40)])
def test_pspnet_read_from_semseg(size):
    network = settled(pspnet).double()
    state = {name: t for name, t in network.state_dict().items()}

    def unit(x, name, index=0):
        w = state[f"{name}.{index}.weight"]
        x = F.conv2d(x, w, None, 1, w.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{index + 1}.{n}"] for n in names)).relu()

    x = image(1, size, torch.float64)
    with torch.no_grad():
        c5 = network.backbone(x)[3]
        copies = [unit(pooled(c5, n, False), f"ppm.features.{i}", 1) for i, n in enumerate((1, 2, 3, 6))]
        y = unit(torch.cat([c5, *(enlarged(copy, c5.shape[2:]) for copy in copies)], 1), "cls")
        y = F.conv2d(y, state["cls.4.weight"], state["cls.4.bias"])
        torch.testing.assert_close(network(x), enlarged(y, size))


@pytest.mark.parametrize("stages", [(), (2,), (0, 1, 2, 3)])
def test_auxiliary_heads_are_at_their_features_resolution(stages):
    network = settled(lambda: pspnet(stages, outputs=6))
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout2d)):
            module.train(False)
    network.training = True
    x = image(2, (45, 33))
    with torch.no_grad():
        output, features = network(x), network.backbone(x)
        assert [tuple(head.shape[2:]) for head in output.heads] == [
            tuple(features[stage].shape[2:]) for stage in stages
        ]
        for head, stage, layers in zip(output.heads, stages, network.auxiliary, strict=True):
            torch.testing.assert_close(head, layers(features[stage]))
            assert head.shape[:2] == (2, 6)
        for head, large in zip(output.heads, enlarge(output.heads, (45, 33), True), strict=True):
            torch.testing.assert_close(large, enlarged(head, (45, 33)))
        torch.testing.assert_close(output.logits, network.eval()(x))


@pytest.mark.parametrize(
    "build",
    [pspnet, fcn, lambda: pspnet((0, 1, 2, 3), 6), lambda: pspnet(maximum=True, reduce=False, bins=(1,))],
)
def test_contract(build):
    check_network(build, 5)


def test_no_auxiliary_heads():
    network = PSPNet(backbone(), 5, channels=16).train()
    assert network(image(2, (33, 40))).heads == ()


def test_export():
    check_export(pspnet)


@pytest.mark.slow
def test_export_of_fcn():
    check_export(fcn)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(50, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3]), (269, [3, 30, 48, 8])],
)
def test_every_depth_of_the_paper(depth, blocks):
    """Sec. 5.2 compares these four; 269's blocks are those of its authors' model."""
    with torch.device("meta"):
        backbone = PSPNet(ResNet(depth, output_stride=8, deep_stem=True), 19).backbone
    layers = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    assert [len(layer) for layer in layers] == blocks


def test_spgnets_figures():
    """65.7M parameters, 2117.3 billion multiply-adds at 1025 x 2049 (SPGNet, Table 1)."""
    with torch.device("meta"):
        network = PSPNet(ResNet(101, output_stride=8, deep_stem=True), 19)
    assert parameter_count(network) / 1e6 == pytest.approx(65.707, abs=5e-4)
    assert count_macs(network, 1025, 2049) / 1e9 == pytest.approx(2117.33, abs=0.01)


def test_mmsegmentations_figure():
    """48.98M with its stem; nothing else differs from semseg's 49,080,038."""
    with torch.device("meta"):
        network = resnet50()
        auxiliary = AuxiliaryHeads(network.channels, 19)
        count = parameter_count(PSPNet(network, 19, align_corners=False, auxiliary=auxiliary))
    assert count / 1e6 == pytest.approx(48.98, abs=5e-3)
    assert 49_080_038 - count == 104_544


def test_semsegs_checkpoint_fills_every_parameter(tmp_path):
    """Auxiliary head included; both list their tensors in the order in which they are computed."""
    published = random_state("semseg_pspnet50")
    with torch.device("meta"):
        backbone = ResNet(50, output_stride=8, deep_stem=True)
        network = PSPNet(backbone, 19, auxiliary=AuxiliaryHeads(backbone.channels, 19))
    assert parameter_count(network) == 49_080_038
    network.to_empty(device="cpu")
    path = tmp_path / "train_epoch_200.pth"
    torch.save({"epoch": 200, "state_dict": {f"module.{key}": t for key, t in published.items()}}, path)
    load_pretrained(network, "pspnet50", path)
    path.unlink()
    own = network.state_dict()
    for (name, ours), (key, theirs) in zip(own.items(), published.items(), strict=True):
        assert name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]
        assert torch.equal(ours, theirs)
