import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.backbones.mobilenet import MobileNetV2, round_to_eight
from fullres.models.catalogue import parameter_count
from fullres.models.full_resolution.split_merge import split_merge
from tests.models.backbones.checks import (
    STRIDES,
    assert_all_trained,
    assert_features,
    assert_formats,
    assert_round_trip,
    assert_same_on_lattice,
)
from tests.networks import with_statistics

torch.set_num_threads(1)


def narrow(width=1 / 4, **arguments):
    torch.manual_seed(0)
    return with_statistics(MobileNetV2(width, **arguments))


def published_forward(state, x):
    """What each block returns: written from Table 2 of the paper and torchvision's key names."""

    def unit(x, conv, bn, stride=1):
        w = state[f"{conv}.weight"]
        x = F.conv2d(x, w, None, stride, w.shape[-1] // 2, groups=x.shape[1] // w.shape[1])
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{bn}.{name}"] for name in names))

    x = unit(x, "features.0.0", "features.0.1", 2).clamp(0, 6)
    strides = [1, *(2, 1), *(2, 1, 1), *(2, 1, 1, 1), *(1, 1, 1), *(2, 1, 1), 1]
    outputs = []
    for i, stride in enumerate(strides, 1):
        name, y = f"features.{i}.conv", x
        if i > 1:
            y = unit(y, f"{name}.0.0", f"{name}.0.1").clamp(0, 6)
        k = min(i - 1, 1)
        y = unit(y, f"{name}.{k}.0", f"{name}.{k}.1", stride).clamp(0, 6)
        y = unit(y, f"{name}.{k + 1}", f"{name}.{k + 2}")
        x = x + y if stride == 1 and x.shape == y.shape else y
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("width", [1 / 16, 1 / 4, 1])
def test_features_are_those_of_the_paper(width):
    backbone = narrow(width).double()
    image = torch.rand(1, 3, 45, 33, dtype=torch.float64)
    with torch.no_grad():
        outputs = published_forward(backbone.state_dict(), image)
        for own, block in zip(backbone(image), (3, 6, 13, 17), strict=True):
            torch.testing.assert_close(own, outputs[block - 1])


@pytest.mark.parametrize("output_stride", STRIDES)
def test_features_stop_at_the_output_stride(output_stride):
    assert_features(narrow(output_stride=output_stride), STRIDES[output_stride])


def test_channels():
    assert MobileNetV2().channels == [24, 32, 96, 320]
    assert narrow().channels == [8, 8, 24, 80]
    assert [round_to_eight(c) for c in (0.5, 8, 11, 12, 15.6, 18, 20, 33.6)] == [8, 8, 16, 16, 16, 24, 24, 32]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("width", [1 / 16, 1 / 4])
@pytest.mark.parametrize("size", [(64, 96), (45, 33), (7, 70)])
def test_a_dilated_network_is_the_strided_one_sampled_densely(output_stride, width, size):
    strided = narrow(width).double()
    dilated = narrow(width, output_stride=output_stride).double()
    dilated.load_state_dict(strided.state_dict())
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    assert_same_on_lattice(dilated, strided, image, STRIDES[output_stride])


def test_it_has_a_full_resolution_form():
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = narrow(1 / 16)

        def forward(self, image):
            return self.backbone(image)[3]

    network = Scores().double().eval()
    image = torch.rand(1, 3, 37, 41, dtype=torch.float64)
    with torch.no_grad():
        everywhere = split_merge(network)(image)
        assert everywhere.shape[2:] == (37, 41)
        torch.testing.assert_close(everywhere[:, :, ::32, ::32], network(image))


def test_formats_state_dict_and_gradients():
    backbone = narrow(output_stride=8)
    assert_formats(backbone)
    assert_round_trip(backbone, MobileNetV2(1 / 4, output_stride=8))
    assert_all_trained(backbone, torch.rand(2, 3, 64, 64))


def test_parameters_of_the_published_classifier():
    with torch.device("meta"):
        head = nn.ModuleList(
            [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.Linear(1280, 1000)]
        )
        assert parameter_count(MobileNetV2()) + parameter_count(head) == 3_504_872


def test_an_output_stride_that_does_not_exist():
    with pytest.raises(ValueError, match="output stride is 4: one of 8, 16, 32"):
        MobileNetV2(output_stride=4)
