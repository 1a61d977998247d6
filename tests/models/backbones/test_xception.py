import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.backbones.xception import Xception
from fullres.models.catalogue import parameter_count
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


def narrow(**arguments):
    torch.manual_seed(0)
    return with_statistics(Xception(1 / 16, **arguments))


def published_forward(state, x):
    """Written from the authors' code, deeplab/core/xception.py: the four features at output stride 32."""

    def unit(x, name, stride=1):
        w = state[f"{name}.0.weight"]
        x = F.conv2d(x, w, None, stride, w.shape[-1] // 2, groups=x.shape[1] // w.shape[1])
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.1.{n}"] for n in names), eps=1e-3)

    def module(x, name, stride):
        residual, taps = x, []
        for i in (1, 2, 3):
            residual = unit(residual.relu(), f"{name}.conv{i}.depthwise", stride if i == 3 else 1)
            residual = unit(residual, f"{name}.conv{i}.pointwise")
            taps.append(residual)
        has_conv = f"{name}.shortcut.0.weight" in state
        return residual + (unit(x, f"{name}.shortcut", stride) if has_conv else x), taps[1]

    x = unit(x, "conv1", 2).relu()
    x = unit(x, "conv2").relu()
    x, _ = module(x, "entry1", 2)
    c3, c2 = module(x, "entry2", 2)
    x, _ = module(c3, "entry3", 2)
    for i in range(16):
        x, _ = module(x, f"middle.{i}", 1)
    c4 = x
    x, _ = module(x, "exit1", 2)
    for i in range(3):
        x = unit(x, f"exit2.{i}.depthwise").relu()
        x = unit(x, f"exit2.{i}.pointwise").relu()
    return c2, c3, c4, x


def test_features_are_those_of_the_authors_code():
    backbone = narrow().double()
    image = torch.rand(1, 3, 45, 33, dtype=torch.float64)
    with torch.no_grad():
        expected = published_forward(backbone.state_dict(), image)
        for own, x in zip(backbone(image), expected, strict=True):
            torch.testing.assert_close(own, x)


@pytest.mark.parametrize("output_stride", STRIDES)
def test_features_stop_at_the_output_stride(output_stride):
    assert_features(narrow(output_stride=output_stride), STRIDES[output_stride])


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [1, 2, 2, 4]), (16, [1, 1, 1, 2]), (32, [1] * 4)])
def test_rates_are_those_of_the_authors_code(output_stride, rates):
    """A block that gives up its stride keeps the rate before it."""
    with torch.device("meta"):
        backbone = Xception(output_stride=output_stride)
    for part, rate in zip(
        (backbone.entry3, backbone.middle, backbone.exit1, backbone.exit2), rates, strict=True
    ):
        found = {m.dilation for m in part.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
        assert found == {(rate, rate)}


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(64, 96), (45, 33), (7, 70)])
def test_a_dilated_network_is_the_strided_one_sampled_densely(output_stride, size):
    strided, dilated = narrow().double(), narrow(output_stride=output_stride).double()
    dilated.load_state_dict(strided.state_dict())
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    assert_same_on_lattice(dilated, strided, image, STRIDES[output_stride])


def test_formats_state_dict_and_gradients():
    backbone = narrow(output_stride=16)
    assert_formats(backbone)
    assert_round_trip(backbone, Xception(1 / 16, output_stride=16))
    assert_all_trained(backbone, torch.rand(2, 3, 64, 64))


def test_channels_and_parameters():
    """39.92 million with a classifier of 1,000 classes, as timm lists it."""
    with torch.device("meta"):
        backbone = Xception()
        assert backbone.channels == [256, 256, 728, 2048]
        assert parameter_count(backbone) + parameter_count(nn.Linear(2048, 1000)) == 39_916_312


def test_what_does_not_exist():
    with pytest.raises(ValueError, match="output stride is 4: one of 8, 16, 32"):
        Xception(output_stride=4)
    with pytest.raises(ValueError, match=r"width is 0\.01: at least 1/32"):
        Xception(0.01)
