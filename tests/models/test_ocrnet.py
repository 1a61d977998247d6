import pytest
import torch
import torch.nn.functional as F

from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.backbones.hrnet import HRNet
from fullres.models.catalogue import parameter_count
from fullres.models.ocrnet import OCRNet, gather_regions
from tests.models.base import check_export, check_network, image, settled

torch.set_num_threads(1)


def ocrnet(align_corners=False, stages=(0, 1, 2, 3)):
    backbone = HRNet(48, 1 / 12, align_corners=align_corners)
    auxiliary = AuxiliaryHeads(backbone.channels, 6, stages, channels=8) if stages else None
    return OCRNet(backbone, 5, channels=16, auxiliary=auxiliary)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (45, 33)])
def test_formulas(align_corners, size):
    """The paper's sums, by the names of the authors' checkpoints."""
    network = settled(lambda: ocrnet(align_corners)).double()
    state = network.state_dict()

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{n}"] for n in names)).relu()

    def transform(x, name, times=1):
        """1x1, batch norm, ReLU on rows of positions: N x P x C."""
        for k in range(0, 2 * times, 2):
            x = torch.einsum("npc,dc->npd", x, state[f"{name}.{k}.weight"][:, :, 0, 0])
            x = norm(x.transpose(1, 2), f"{name}.{k + 1}.0").transpose(1, 2)
        return x

    def enlarged(x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)

    x = image(2, size, torch.float64)
    with torch.no_grad():
        c2, *coarser = network.backbone(x)
        joined = torch.cat([c2, *(enlarged(c, c2.shape[2:]) for c in coarser)], 1)

        y = F.conv2d(joined, state["aux_head.0.weight"], state["aux_head.0.bias"])
        coarse = F.conv2d(norm(y, "aux_head.1"), state["aux_head.3.weight"], state["aux_head.3.bias"])
        pixels = F.conv2d(joined, state["conv3x3_ocr.0.weight"], state["conv3x3_ocr.0.bias"], padding=1)
        pixels = norm(pixels, "conv3x3_ocr.1")

        weights = coarse.exp() / coarse.exp().sum((2, 3), keepdim=True)
        regions = torch.einsum("nkij,ncij->nkc", weights, pixels)
        torch.testing.assert_close(gather_regions(pixels, coarse)[..., 0], regions.transpose(1, 2))

        rows, block = pixels.flatten(2).transpose(1, 2), "ocr_distri_head.object_context_block"
        query = transform(rows, f"{block}.f_pixel", 2)
        key = transform(regions, f"{block}.f_object", 2)
        product = torch.einsum("npc,nkc->npk", query, key) / query.shape[2] ** 0.5
        relation = product.exp() / product.exp().sum(2, keepdim=True)
        context = torch.einsum("npk,nkc->npc", relation, transform(regions, f"{block}.f_down"))
        context = transform(context, f"{block}.f_up")
        out = transform(torch.cat([context, rows], 2), "ocr_distri_head.conv_bn_dropout")
        out = out.transpose(1, 2).unflatten(2, c2.shape[2:])
        out = F.conv2d(out, state["cls_head.weight"], state["cls_head.bias"])
        torch.testing.assert_close(network(x), enlarged(out, size))


def test_training_output():
    """The coarse logits at the labels' size, the auxiliary heads at their features'."""
    output = settled(ocrnet).train()(image(2, (65, 97)))
    assert output.soft_regions.shape == (2, 5, 65, 97)
    sizes = [(17, 25), (9, 13), (5, 7), (3, 4)]
    assert [tuple(head.shape) for head in output.heads] == [(2, 6, *size) for size in sizes]


@pytest.mark.parametrize("build", [ocrnet, lambda: ocrnet(align_corners=True, stages=())])
def test_contract(build):
    check_network(build, 5)


@pytest.mark.slow
def test_export():
    check_export(ocrnet)


@pytest.mark.parametrize(("c", "biases"), [(18, 512 + 270), (48, 512 + 720)])
def test_parameters(c, biases):
    """Of mmsegmentation's network with W18 (12.08M, without two biases) and the authors' with W48."""
    with torch.device("meta"):
        count = parameter_count(OCRNet(HRNet(c), 19))
    if c == 18:
        assert (count - biases) / 1e6 == pytest.approx(12.08, abs=5e-3)
    else:
        assert count == 70_372_678
